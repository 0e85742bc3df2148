"llama.cpp compiled here, asked for real: raw likelihoods, schemas, whole options, time, memory, and who asks at once."
import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from conftest import require
from pydantic import BaseModel, Field

from sagelab.core.errors import ContextError, ModelError, ModelUnavailable, Stopped, UsageError
from sagelab.core.plugins import build_plugin
from sagelab.core.stop import Latch
from sagelab.inference.base import Message, Model, softmax
from sagelab.inference.choice import Question, fit_calibration, report_choice
from sagelab.inference.nativellama import NativeLlamaConfig, NativeLlamaModel

QUESTION = (Message("user", "Is this text positive or negative? Answer with one word: positive or negative.\n\n{item}"), Message("assistant", "Sentiment:"))
LONG = {"max_tokens": 1500}


@pytest.fixture(scope="module")
def path(weights: Path) -> Path:
    require(importlib.util.find_spec("llama_cpp"), "llama-cpp-python is missing: pip install 'sagelab[llamacpp]'")
    return weights


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[NativeLlamaModel]:
    with NativeLlamaModel(NativeLlamaConfig(path=path, name="smollm2", context=2048, threads=1)) as model: yield model


def test_a_model_answers_and_says_how(path: Path):
    with build_plugin("sagelab.models", "llamacpp-python", "model", {"path": path, "context": 512, "threads": 1, "cutoff": "2024-11-01"}) as model:
        assert isinstance(model, Model) and model.about.constrains and model.about.scores and model.about.notes[1] == "1 threads, as asked"
        reply = model.complete("Say hello.", sampling={"max_tokens": 12})
        assert reply.text.strip() and reply.model == "smollm2" and reply.finish_reason in ("stop", "length")
        assert reply.usage.prompt > 10 and 1 <= reply.usage.completion <= 12 and 0 < reply.first_token_seconds <= reply.seconds
        assert model._engine.ends == {0, 2, 4} and model._engine.prompt([Message("user", "Hi")]).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


def test_a_seed_is_an_answer(model: NativeLlamaModel):
    def said(seed): return model.complete("Invent a company.", sampling={"temperature": 1.0, "top_p": 0.95, "seed": seed, "max_tokens": 16}).text
    model.complete("Something else.", sampling={"max_tokens": 1})
    assert (first := said(7)) == said(7) and len({first, said(8), said(9)}) == 3


def test_a_stream_is_the_answer_and_stops_when_nobody_reads(model: NativeLlamaModel):
    with model.stream("Name three colours.", sampling={"max_tokens": 16}) as stream:
        pieces = list(stream)
        assert "".join(pieces) == stream.reply.text and len(pieces) > 3
    for _ in (stream := model.stream("Write a very long story.", sampling=LONG)): break
    assert stream.reply.finish_reason == "cancelled" and stream.reply.usage.completion < 1000
    assert not [thread for thread in threading.enumerate() if thread.name == "sagelab stream"]


def test_a_task_that_is_cancelled_stops_the_model(model: NativeLlamaModel):
    async def impatient():
        with pytest.raises(TimeoutError): await asyncio.wait_for(model.acomplete("Write a very long story.", sampling=LONG), 0.3)
        return (await model.acomplete("Say yes.", sampling={"max_tokens": 3})).text
    assert asyncio.run(impatient())


class Person(BaseModel):
    name: Annotated[str, Field(max_length=30)]
    share: float = Field(ge=0, le=1)


class Event(BaseModel):
    kind: Literal["earnings", "merger", "guidance", "other"]
    impact: float = Field(ge=-1, le=1)
    year: int = Field(ge=1990, le=2030)
    tickers: list[Annotated[str, Field(pattern=r"^[A-Z]{1,5}$")]] = Field(min_length=1, max_length=3)
    people: list[Person] = Field(max_length=2)


def test_every_first_answer_fits_a_nested_schema_with_bounds(model: NativeLlamaModel):
    for seed in range(3):
        reply = model.complete("Oracle buys Sun for 7.4 billion. Describe it as JSON.", Event, {"temperature": 1.0, "seed": seed, "max_tokens": 400}, retries=0)
        assert isinstance(reply.parsed, Event) and reply.finish_reason == "stop"


def test_a_schema_that_cannot_be_held_to_is_refused(model: NativeLlamaModel):
    with pytest.raises(UsageError, match="No answer can be held to this schema"): model.complete("x", {"type": "string", "pattern": "(?=a)b(?<!c)"})
    assert model.complete("Say yes.", sampling={"max_tokens": 2}).text


@pytest.mark.parametrize("said", ["naïve café", "日本 😀🎉 👩‍👩‍👧", "\u0627\u0644"])
def test_characters_are_whole_however_they_are_cut(model: NativeLlamaModel, said: str):
    with model.stream("Say it.", {"enum": [said]}) as stream: pieces = list(stream)
    assert stream.reply.parsed == said and "\ufffd" not in "".join(pieces) and len(pieces) > 1
    talk = [Message("user", "Write emoji."), Message("assistant", f"Here they are: {said}")]
    # Where it is cut off, the last character may be half.
    assert "\ufffd" not in model.complete(talk, sampling={"max_tokens": 8, "temperature": 1.0}).text.rstrip("\ufffd")


def test_a_text_that_ends_the_answer_is_no_part_of_it(model: NativeLlamaModel):
    talk = [Message("user", "Count from one to nine."), Message("assistant", "1, 2, 3, 4,")]
    reply = model.complete(talk, sampling={"max_tokens": 24, "stop": [", 7", "never"]})
    assert reply.text == " 5, 6" and reply.finish_reason == "stop"


def test_what_was_read_is_not_read_again(model: NativeLlamaModel):
    rules = Message("system", " ".join(f"Rule {i}: name the market and the year." for i in range(40)))
    cold = model.complete([rules, Message("user", "What is a bond?")], sampling={"max_tokens": 2})
    warm = model.complete([rules, Message("user", "Who buys shares?")], sampling={"max_tokens": 2})
    again = model.complete([rules, Message("user", "What is a bond?")], sampling={"max_tokens": 2})
    assert cold.usage.prompt > 380 and cold.usage.cached < 40 and warm.usage.cached > 0.9 * warm.usage.prompt and again.text == cold.text


def test_limits_are_typed_errors(model: NativeLlamaModel):
    with pytest.raises(ContextError, match="tokens, and the model reads 2,048"): model.complete("word " * 4000)
    with pytest.raises(ContextError): model.choose("word " * 4000, ["a", "b"])
    with pytest.raises(ModelUnavailable, match="did not end within 0.05 s"): model.complete("word " * 1500, timeout=0.05)
    assert model.complete("word " * 30, sampling={"max_tokens": 2}).text


def test_the_stop_latch_halts_an_answer(model: NativeLlamaModel, lab: Path):
    model.latch = Latch(lab)
    try:
        stream = model.stream("Write a very long story.", sampling=LONG)
        next(pieces := iter(stream))
        model.latch.set("test", "because")
        with pytest.raises(Stopped): list(pieces)
        with pytest.raises(Stopped): model.choose("Up or down?", ["up", "down"])
    finally: model.latch = None


def test_an_option_is_as_likely_as_all_its_tokens(model: NativeLlamaModel, monkeypatch: pytest.MonkeyPatch):
    # Counted once more by hand: every spelling from an empty memory, token by token.
    messages, options = (Message("user", "Will the central bank act? Answer: rate hike, rate hold or rate cut."), Message("assistant", "It will be a")), ["rate hike", "rate cut"]
    engine = model._engine
    text, read, plain = engine.prompt(messages), [], engine._forward
    monkeypatch.setattr(engine, "_forward", lambda tokens: read.append(len(tokens)) or plain(tokens))
    engine.restart()
    found = model.scores(messages, options)
    begun = engine.encode(text)
    assert sum(read) <= 1.5 * len(begun), "a choice costs about one reading of the question"
    assert model.scores(messages, options) == pytest.approx(found, abs=1e-3)

    def likely(spelling):
        total, tokens = 0.0, list(begun)
        for token in engine.encode(text + spelling)[len(tokens):]:
            engine.restart()
            for at in range(0, len(tokens), engine.portion): logits = engine.read(tokens[at:at + engine.portion])
            total += float(np.log(softmax(logits))[token])
            tokens.append(token)
        return np.exp(total)
    hike, cut = (sum(likely(gap + form) for gap in ("", " ") for form in (option, option.capitalize())) for option in options)
    assert np.exp(found) == pytest.approx([hike, cut], rel=0.02)


HEADLINES = [("Profit rises to a record", "positive"), ("Company goes bankrupt", "negative"), ("Sales beat all forecasts", "positive"), ("Chief executive arrested for fraud", "negative"),
             ("Shares soar after great results", "positive"), ("Factory burns down", "negative"), ("Dividend is raised", "positive"), ("Product recalled after deaths", "negative"),
             ("New drug is approved", "positive"), ("Huge losses and layoffs", "negative"), ("Wins large contract", "positive"), ("Shares crash after warning", "negative"),
             ("Record orders in Asia", "positive"), ("Sued for billions", "negative"), ("Upgraded by all banks", "positive"), ("Fined for price fixing", "negative")]


def test_a_choice_is_better_without_its_bias(model: NativeLlamaModel):
    question = Question(QUESTION, ("positive", "negative"))
    calibration = fit_calibration(model, question, HEADLINES[:8])
    raw, fair = (report_choice(model, question, HEADLINES[8:], used) for used in (None, calibration))
    assert fair.log_loss < raw.log_loss and fair.accuracy >= raw.accuracy and fair.accuracy >= 0.75


def test_who_comes_meanwhile_waits_as_long_as_they_like(model: NativeLlamaModel):
    with model.stream("Write a very long story.", sampling=LONG) as busy:
        reading = iter(busy)
        assert next(reading)
        with pytest.raises(ModelUnavailable, match="did not end within 0.1 s"): model.complete("Say yes.", timeout=0.1)
        given_up = threading.Event()
        given_up.set()
        assert model.complete("Say yes.", cancel=given_up).finish_reason == "cancelled"
    alone = model.complete("Say yes.", sampling={"max_tokens": 4}).text
    said = [None] * 3
    def ask(i): said[i] = model.complete("Say yes.", sampling={"max_tokens": 4}).text
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert said == [alone] * 3


def test_a_model_that_is_closed_while_it_writes_ends_first(path: Path):
    model = NativeLlamaModel(NativeLlamaConfig(path=path, context=2048, threads=1))
    stream = model.stream("Write a very long story.", sampling={"max_tokens": 40})
    next(pieces := iter(stream))
    model.close()
    assert list(pieces) and stream.reply.usage.completion > 2
    model.close()
    with pytest.raises(ModelError, match="is closed. Try: get_model"): model.complete("x")
    with pytest.raises(ModelError, match="is closed"): model.choose("x", ["a", "b"])


MEMORY = """
import gc, sys, psutil
from sagelab.inference.nativellama import NativeLlamaConfig, NativeLlamaModel
me = psutil.Process()
def load(close=True):
    model = NativeLlamaModel(NativeLlamaConfig(path=sys.argv[1], context=1024, threads=1))
    model.complete("Say yes.", sampling={"max_tokens": 2})
    model.choose("Up?", ["yes", "no"])
    loaded = me.memory_info().rss
    if close: model.close()
    del model
    gc.collect()
    return loaded, me.memory_info().rss
load()
before, threads = me.memory_info().rss, me.num_threads()
rounds = [load(close) for close in (True, True, False, False, True)]
print([(loaded - before) // 2**20 for loaded, _ in rounds], [(after - before) // 2**20 for _, after in rounds], me.num_threads() - threads)
"""


def test_memory_comes_back_and_nothing_is_said(path: Path):
    # In a process of its own: what other tests hold comes and goes.
    said = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, timeout=300)
    loaded, after, threads = (json.loads(part) for part in said.stdout.strip().replace("] ", "]|").split("|"))
    assert min(loaded) > 90 and max(after) < 45 and after[-1] - after[1] <= 2 and threads <= 0, said.stdout
    assert said.stderr == ""


@pytest.mark.parametrize("forgotten", ["model.stream('Write a long story.')", "next(iter(model.stream('Write a long story.')))"])
def test_a_process_that_ends_meanwhile_ends_well(path: Path, forgotten: str):
    code = f"from sagelab.inference.nativellama import *; model = NativeLlamaModel(NativeLlamaConfig(path={str(path)!r}, threads=1, context=512)); {forgotten}"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_what_makes_no_sense_is_refused(path: Path, tmp_path: Path):
    for length in (0, 23, 50_000_000):
        with open(path, "rb") as whole: (tmp_path/"cut.gguf").write_bytes(whole.read(length))
        with pytest.raises(ModelError, match="no GGUF file that can be trusted"): NativeLlamaModel(NativeLlamaConfig(path=tmp_path/"cut.gguf"))
    with pytest.raises(ModelError, match="There is no file"): NativeLlamaModel(NativeLlamaConfig(path=tmp_path/"none.gguf"))
    with pytest.raises(UsageError, match="trained to read 8,192 tokens, not 9,000"): NativeLlamaModel(NativeLlamaConfig(path=path, context=9000))
    with pytest.raises(UsageError, match="Did you mean 'threads'"): build_plugin("sagelab.models", "llamacpp-python", "model", {"path": path, "thread": 1})
    # Whole by its lengths, and of a kind that nobody knows: C refuses it, and says so in a value.
    strange = path.read_bytes().replace(b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama", b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00lxxxx", 1)
    (tmp_path/"strange.gguf").write_bytes(strange)
    with pytest.raises(ModelError, match="llama.cpp cannot load"): NativeLlamaModel(NativeLlamaConfig(path=tmp_path/"strange.gguf", threads=1))
