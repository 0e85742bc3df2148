"Local models, asked for real: answers, schemas, time, memory, tapes, the catalogue under two processes, and the command line."
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from sagelab.core.errors import AnswerError, ContextError, ModelError, ModelUnavailable, Stopped
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.core.stop import Latch
from sagelab.inference.base import Message, Model, Sampling, ScriptedModel
from sagelab.inference.cassette import Cassette
from sagelab.inference.catalogue import Catalogue, get_model
from sagelab.inference.choice import Question, fit_calibration, report_choice
from sagelab.inference.llamacpp import LlamaCppConfig, LlamaCppModel

QUESTION = (Message("user", "Is this text positive or negative? Answer with one word: positive or negative.\n\n{item}"), Message("assistant", "Sentiment:"))


@pytest.fixture(scope="module")
def model(weights: Path) -> Iterator[LlamaCppModel]:
    with LlamaCppModel(LlamaCppConfig(path=weights, name="smollm2", context=2048, threads=1)) as model: yield model


def test_a_model_answers_and_says_how(model: LlamaCppModel):
    assert isinstance(model, Model)
    reply = model.complete("Say hello.", sampling={"max_tokens": 12})
    assert reply.text.strip() and reply.model == "smollm2" and reply.finish_reason in ("stop", "length")
    assert reply.usage.prompt > 10 and 1 <= reply.usage.completion <= 12 and 0 < reply.first_token_seconds <= reply.seconds
    assert model.about.notes[0] == "on the CPU" or model.about.notes[0].startswith("on ")


def test_messages_that_a_template_refuses_are_an_error(model: LlamaCppModel):
    twice = [Message("user", "Well?"), Message("assistant", "Yes"), Message("assistant", "and no")]
    with pytest.raises(ModelError, match="llama.cpp"): model.complete(twice, sampling={"max_tokens": 4})


def test_one_seed_gives_one_answer_in_one_state(weights: Path):
    answers = set()
    for _ in range(2):
        with LlamaCppModel(LlamaCppConfig(path=weights, context=512, threads=1)) as fresh:
            answers.add(fresh.complete("Invent a company.", sampling={"temperature": 1.0, "seed": 7, "max_tokens": 24}).text)
    assert len(answers) == 1


def test_a_stream_is_the_answer_and_stops_when_nobody_reads(model: LlamaCppModel):
    with model.stream("Name three colours.", sampling={"max_tokens": 16}) as stream:
        pieces = list(stream)
        assert "".join(pieces) == stream.reply.text and len(pieces) > 3
    started = time.monotonic()
    for _ in (stream := model.stream("Write a very long story.", sampling={"max_tokens": 1500})): break
    assert stream.reply.finish_reason == "cancelled" and time.monotonic() - started < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "sagelab stream"]


def test_a_task_that_is_cancelled_stops_the_model(model: LlamaCppModel):
    async def impatient():
        with pytest.raises(TimeoutError): await asyncio.wait_for(model.acomplete("Write a very long story.", sampling={"max_tokens": 1500}), 0.5)
        return (await model.acomplete("Say yes.", sampling={"max_tokens": 3})).text
    started = time.monotonic()
    assert asyncio.run(impatient()) and time.monotonic() - started < 15


def test_a_choice_is_stopped_while_the_question_is_read(model: LlamaCppModel):
    long = "Is this good? " + "I like it. " * 400
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="within 0.3 s"): model.choose(long, ["good", "bad"], timeout=0.3)

    async def impatient():
        with pytest.raises(TimeoutError): await asyncio.wait_for(model.achoose("Well? " + long, ["good", "bad"]), 0.3)
        return await model.achoose("Is good good?", ["good", "bad"])
    assert sum(asyncio.run(impatient()).values()) == pytest.approx(1) and time.monotonic() - started < 12


class Person(BaseModel):
    name: Annotated[str, Field(max_length=30)]
    share: float = Field(ge=0, le=1)


class Event(BaseModel):
    kind: Literal["earnings", "merger", "guidance", "other"]
    impact: float = Field(ge=-1, le=1)
    year: int = Field(ge=1990, le=2030)
    tickers: list[Annotated[str, Field(pattern=r"^[A-Z]{1,5}$")]] = Field(min_length=1, max_length=3)
    people: list[Person] = Field(max_length=2)


def test_every_answer_fits_a_nested_schema_with_bounds(model: LlamaCppModel):
    for seed in range(12):
        reply = model.complete("Oracle buys Sun for 7.4 billion. Describe it as JSON.", Event, {"temperature": 1.0, "seed": seed, "max_tokens": 400})
        assert isinstance(reply.parsed, Event)


def test_an_answer_that_is_cut_off_is_asked_for_with_more_room(model: LlamaCppModel):
    reply = model.complete("Describe a merger as JSON.", Event, {"max_tokens": 30}, retries=4)
    assert isinstance(reply.parsed, Event) and reply.attempts > 1 and reply.sampling.max_tokens > 30
    with pytest.raises(AnswerError, match="more max_tokens may help"): model.complete("Describe a merger as JSON.", Event, {"max_tokens": 3}, retries=0)


def test_what_was_read_is_not_read_again(model: LlamaCppModel):
    rules = Message("system", " ".join(f"Rule {i}: name the market and the year." for i in range(40)))
    cold = model.complete([rules, Message("user", "What is a bond?")], sampling={"max_tokens": 2})
    warm = model.complete([rules, Message("user", "Who buys shares?")], sampling={"max_tokens": 2})
    assert cold.usage.prompt > 380 and warm.usage.cached > 0.9 * warm.usage.prompt and cold.first_token_seconds > warm.first_token_seconds


def test_limits_are_typed_errors(model: LlamaCppModel):
    with pytest.raises(ContextError, match="tokens, and the model reads 2,048"): model.complete("word " * 4000)
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="did not end within 1 s"): model.complete("word " * 1500, timeout=1.0)
    assert time.monotonic() - started < 8
    assert model.complete("Say yes.", sampling={"max_tokens": 2}).text


def test_the_stop_latch_halts_an_answer(model: LlamaCppModel, lab: Path):
    model.latch = Latch(lab)
    try:
        stream = model.stream("Write a very long story.", sampling={"max_tokens": 1500})
        next(iter(stream))
        halted = model.stream("Write a very long story.", sampling={"max_tokens": 1500})
        model.latch.set("test", "because")
        with pytest.raises(Stopped): halted.reply
    finally: model.latch = None


HEADLINES = [("Profit rises to a record", "positive"), ("Company goes bankrupt", "negative"), ("Sales beat all forecasts", "positive"), ("Chief executive arrested for fraud", "negative"),
             ("Shares soar after great results", "positive"), ("Factory burns down", "negative"), ("Dividend is raised", "positive"), ("Product recalled after deaths", "negative"),
             ("New drug is approved", "positive"), ("Huge losses and layoffs", "negative"), ("Wins large contract", "positive"), ("Shares crash after warning", "negative"),
             ("Record orders in Asia", "positive"), ("Sued for billions", "negative"), ("Upgraded by all banks", "positive"), ("Fined for price fixing", "negative")]


def test_a_choice_is_better_without_its_bias(model: LlamaCppModel):
    question = Question(QUESTION, ("positive", "negative"))
    calibration = fit_calibration(model, question, HEADLINES[:8])
    raw, fair = (report_choice(model, question, HEADLINES[8:], used) for used in (None, calibration))
    assert fair.log_loss < raw.log_loss and fair.accuracy >= raw.accuracy and fair.accuracy >= 0.75
    p = model.choose(question.of(HEADLINES[0][0]), question.options, calibration)
    assert sum(p.values()) == pytest.approx(1) and list(p) == ["positive", "negative"]


def test_a_choice_of_labels_costs_one_call(model: LlamaCppModel):
    calls = []
    ask = model._server.handle_chat_completions
    class Counted:
        handle_chat_completions = staticmethod(lambda *given: (calls.append(1), ask(*given))[1])
    model._server, server = Counted, model._server
    try: model.choose("Up, down or flat? Answer with one word.", ["up", "down", "flat"])
    finally: model._server = server
    assert len(calls) == 1
    shared = model.choose("The bank lowered rates. Which is it: rate cut, rate rise or hold?", ["rate cut", "rate rise", "hold"])
    assert sum(shared.values()) == pytest.approx(1) and shared["rate cut"] != shared["rate rise"]


def test_a_tape_gives_the_same_run_without_the_weights(model: LlamaCppModel, tmp_path: Path):
    def run(asked):
        return [asked.complete("Invent a company.", sampling={"temperature": 1.0, "seed": 3, "max_tokens": 12}).text,
                asked.complete("Describe a merger as JSON.", Event, {"max_tokens": 400}).parsed, asked.choose("Up or down?", ["up", "down"])]
    recorded = run(Cassette(model, tmp_path/"cassette.jsonl"))
    assert run(Cassette(None, tmp_path/"cassette.jsonl", model.about)) == recorded


def test_many_questions_at_once(weights: Path):
    with LlamaCppModel(LlamaCppConfig(path=weights, context=512, threads=1, slots=2)) as two:
        replies = list(two.complete_many([f"Say the number {i}." for i in range(5)] + ["word " * 3000], sampling={"max_tokens": 8}))
    assert all(reply.text for reply in replies[:5]) and isinstance(replies[5], ContextError)


def test_the_port_that_it_opens_wants_a_key(model: LlamaCppModel):
    request = urllib.request.Request(model._server.listening_address + "/v1/completions", data=b'{"prompt": "x", "max_tokens": 1}', headers={"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused: urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 401 and "127.0.0.1" in model._server.listening_address


MEMORY = """
import gc, sys, psutil
from sagelab.inference.llamacpp import LlamaCppConfig, LlamaCppModel
me = psutil.Process()
def load():
    with LlamaCppModel(LlamaCppConfig(path=sys.argv[1], context=1024, threads=1)) as model:
        model.complete("Say yes.", sampling={"max_tokens": 2})
        loaded = me.memory_info().rss
    gc.collect()
    return loaded, me.memory_info().rss
load()
before, threads = me.memory_info().rss, me.num_threads()
rounds = [load() for _ in range(5)]
print([(loaded - before) // 2**20 for loaded, _ in rounds], [(after - before) // 2**20 for _, after in rounds], me.num_threads() - threads)
"""


def test_memory_comes_back(weights: Path):
    # In a process of its own: what other tests hold comes and goes.
    said = subprocess.run([sys.executable, "-c", MEMORY, str(weights)], capture_output=True, text=True, timeout=120)
    loaded, after, threads = (json.loads(part) for part in said.stdout.strip().replace("] ", "]|").split("|"))
    assert min(loaded) > 90 and max(after) < 45 and after[-1] - after[1] <= 2 and threads <= 0, said.stdout + said.stderr


def test_a_closed_model_says_so(weights: Path):
    with LlamaCppModel(LlamaCppConfig(path=weights, context=512, threads=1)) as asked: pass
    with pytest.raises(ModelError, match="is closed"): asked.complete("x")
    with pytest.raises(ModelError, match="is closed"): asked.choose("x", ["a", "b"])


def test_a_model_that_is_closed_at_once_ends(weights: Path):
    code = f"from sagelab.inference.llamacpp import *; [LlamaCppModel(LlamaCppConfig(path={str(weights)!r}, threads=1, context=512)).close() for _ in range(20)]"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("length", [0, 3, 23, 1000, 50_000_000])
def test_weights_that_are_cut_short_are_refused(weights: Path, tmp_path: Path, length: int):
    with open(weights, "rb") as whole: (tmp_path/"cut.gguf").write_bytes(whole.read(length))
    with pytest.raises(ModelError, match="no GGUF file that can be trusted"): LlamaCppModel(LlamaCppConfig(path=tmp_path/"cut.gguf"))


def test_two_processes_that_add_one_model(lab: Path, weights: Path):
    code = f"from sagelab.core.settings import load_settings; from sagelab.inference.catalogue import Catalogue; print(Catalogue(load_settings({str(lab)!r})).add('small', {str(weights)!r}).sha256)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=60)[0] for process in both}
    assert len(said) == 1 and [p.returncode for p in both] == [0, 0] and Catalogue(load_settings(lab)).names() == ["small"]


def sagelab(lab: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sagelab.cli.main", *words], cwd=lab, capture_output=True, text=True, timeout=120)


def test_the_command_line_asks(lab: Path, weights: Path):
    Catalogue(load_settings(lab)).add("smollm2", str(weights))
    said = sagelab(lab, "ask", "Say hello.", "--max-tokens", "8")
    assert said.returncode == 0 and said.stdout.strip() and "smollm2, on " in said.stderr
    (lab/"schema.json").write_text(json.dumps({"type": "object", "properties": {"up": {"type": "boolean"}, "by": {"type": "number", "minimum": 0, "maximum": 1}}, "required": ["up", "by"]}))
    answer = json.loads(sagelab(lab, "ask", "Did it rise?", "--schema", "schema.json", "--profile", "creative", "--json").stdout)
    assert answer["sampling"]["profile"] == "creative" and set(answer["parsed"]) == {"up", "by"}
    entry = open_ledger(lab).tail(1)[0]
    assert entry.kind == "model.asked" and entry.data["model"] == "smollm2" and "Did it rise" not in (lab/".sagelab"/"ledger.jsonl").read_text()
    wrong = sagelab(lab, "ask", "Hello", "-m", "smolm2")
    assert wrong.returncode == 2 and "Did you mean 'smollm2'?" in wrong.stderr
    assert "profile 'creativ'. Did you mean 'creative'?" in sagelab(lab, "ask", "Hello", "--profile", "creativ").stderr
    speed = json.loads(sagelab(lab, "model", "bench", "--json").stdout)
    assert speed["tokens_per_second"] > 1 and speed["cached_tokens"] > 0.9 * speed["prompt_tokens"]


def test_weights_that_were_changed_are_not_run(lab: Path, weights: Path, tmp_path: Path):
    copy = tmp_path/"copy.gguf"
    copy.write_bytes(weights.read_bytes())
    Catalogue(load_settings(lab)).add("mine", str(copy))
    with open(copy, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(ModelError, match="have changed since they were added"): get_model("mine", lab)


OUT_OF_MEMORY = """
import resource, sys
import numpy, pandas, psutil, xllamacpp
from sagelab.core.errors import ModelError
from sagelab.inference.catalogue import get_model
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + int(sys.argv[1]) * 2**20,) * 2)
try: get_model(sys.argv[2], threads=1)
except ModelError as error: print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the addresses of a process")
@pytest.mark.parametrize("megabytes", [20, 150, 300, 420])
def test_out_of_memory_is_an_error_and_no_crash(lab: Path, weights: Path, megabytes: int):
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, str(megabytes), str(weights)], cwd=lab, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "memory" in done.stdout, done.stdout + done.stderr


def test_a_scripted_model_stands_in_for_a_real_one():
    assert ScriptedModel(["a"]).complete("x", sampling=Sampling(profile="deterministic")).sampling.profile == "deterministic"


NOTEBOOK = """
from sagelab.inference.catalogue import get_model
from sagelab.lab.run import record
with get_model() as model:
    text = model.complete("Invent a company.", sampling={"temperature": 1.0, "max_tokens": 12}).text
    up = model.choose("Up or down?", ["up", "down"])["up"]
print(text)
from sagelab.lab.guards import guard
doubt = guard("sma_cross", "SP500", only="cutoff", trial=False).verdicts["cutoff"]
record([], {"answer": {"length": len(text), "up": up}}, [doubt["verdict"] + ": " + doubt["sentence"]])
"""


def test_a_run_with_a_model_in_it_is_replayed_without_the_model(lab: Path, weights: Path, tmp_path: Path):
    import nbformat
    from sagelab.lab.run import replay, run_notebook
    settings = load_settings(lab)
    Catalogue(settings).add("smollm2", str(weights))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    nbformat.write(book, lab/"nbs"/"experiments"/"ask.ipynb")
    run = run_notebook(lab/"nbs"/"experiments"/"ask.ipynb", {}, settings=settings)
    said, = run.manifest["models"]
    assert said["id"] == "smollm2" and len(said["sha256"]) == 64 and said["cutoff"] == "2024-11-01" and said["backend"] == "llamacpp"
    assert {"cassette.jsonl", "models.json"} <= set(run.manifest["artifacts"])
    assert "warning: " in run.manifest["notes"][0] and "2024-11-01, the training cutoff" in run.manifest["notes"][0]
    Catalogue(settings).remove("smollm2")
    assert replay(run.run_id, settings=settings).identical
    tape = run.folder/"cassette.jsonl"
    tape.write_text(tape.read_text().replace("Invent a company", "Invent a country"))
    assert "cassette.jsonl" in replay(run.run_id, settings=settings).difference
