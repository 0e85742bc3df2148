"Models that PyTorch runs, on real weights: their words against the library's own, time, memory, schemas, options, the catalogue."
import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field

from sagelab.core.errors import AnswerError, ContextError, ModelError, ModelUnavailable, Stopped, UsageError
from sagelab.core.settings import load_settings
from sagelab.core.stop import Latch
from sagelab.inference.base import Message, Model
from sagelab.inference.catalogue import Catalogue, get_model
from sagelab.inference.tokens import Engine
from sagelab.inference.transformers import TransformersConfig, TransformersModel


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[TransformersModel]:
    with TransformersModel(TransformersConfig(path=folder, name="smollm2", context=2048, threads=1, device="cpu")) as model: yield model


def fresh(model: TransformersModel) -> Engine:
    "The engine, with nothing in its memory."
    model._engine.restart()
    return model._engine


def test_a_model_answers_and_says_how(model: TransformersModel):
    assert isinstance(model, Model)
    reply = model.complete("Say hello.", sampling={"max_tokens": 12})
    assert reply.text.strip() and reply.model == "smollm2" and reply.finish_reason in ("stop", "length")
    assert reply.usage.prompt > 10 and 1 <= reply.usage.completion <= 12 and 0 < reply.first_token_seconds <= reply.seconds
    assert model.about.notes[0] == "on the CPU, as asked, float32" and model.about.constrains and model.about.scores


def test_the_first_words_are_those_of_the_library_itself(model: TransformersModel):
    engine = fresh(model)
    for question in ("Say hello.", "What moves the price of a bond?"):
        given = engine.tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with engine.working(): said = engine.model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1]:]
        reply = model.complete(question, sampling={"max_tokens": 12})
        assert reply.text == engine.tokenizer.decode(said, skip_special_tokens=True) and reply.usage.prompt == given["input_ids"].shape[1]


def test_a_gguf_file_and_its_folder_are_the_same_model(weights: Path, folder: Path, model: TransformersModel):
    "The file's own numbers, unpacked by another library, are what runs; and what ran from the file said the same."
    import gguf
    from sagelab.inference.weights import read_weights
    row = next(tensor for tensor in gguf.GGUFReader(weights).tensors if tensor.name == "blk.3.ffn_down.weight")
    ours = model._engine.model.get_parameter("model.layers.3.mlp.down_proj.weight").detach().numpy()
    assert np.array_equal(ours, gguf.quants.dequantize(row.data, row.tensor_type)) and read_weights(weights).parameters == model._engine.model.num_parameters()
    fresh(model)
    assert (folder.parent/"said").read_text() == model.complete("Say hello.", sampling={"max_tokens": 8}).text


def test_a_beginning_of_the_answer_is_gone_on_from(model: TransformersModel):
    begun = model._engine.prompt([Message("user", "Is it good?"), Message("assistant", "Sentiment:")])
    assert begun.endswith("assistant\nSentiment:")
    assert model._engine.prompt([Message("user", "Is it good?")]).endswith("assistant\n")


def test_one_seed_gives_one_answer_in_one_state(model: TransformersModel):
    import torch
    drawn = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    answers = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        fresh(model)
        answers.add(model.complete("Invent a company.", sampling=drawn).text)
    fresh(model)
    assert len(answers) == 1 and model.complete("Invent a company.", sampling=drawn | {"seed": 8}).text not in answers
    fresh(model)
    assert model.complete("Invent a company.", sampling=drawn | {"top_p": 1e-6}).text == (fresh(model) and model.complete("Invent a company.", sampling={"max_tokens": 16}).text)


def test_a_stream_is_the_answer_and_stops_when_nobody_reads(model: TransformersModel):
    with model.stream("Name three colours.", sampling={"max_tokens": 16}) as stream:
        pieces = list(stream)
        assert "".join(pieces) == stream.reply.text and len(pieces) > 3
    for _ in (stream := model.stream("Write a very long story.", sampling={"max_tokens": 1500})): break
    assert stream.reply.finish_reason == "cancelled" and stream.reply.usage.completion < 1000
    assert not [thread for thread in threading.enumerate() if thread.name == "sagelab stream"]


def test_characters_of_many_tokens_come_whole(model: TransformersModel):
    "The tokens of real text, said by the real tokeniser."
    from sagelab.inference.tokens import Voice
    text, heard = "naïve 📈 東京 – 👩‍🔬 e\u0301 ½ Ωmega", []
    tokens = model._engine.encode(text)
    voice = Voice(model._engine.decode, (), heard.append)
    for token in tokens: assert voice.take(token)
    voice.end()
    assert "".join(heard) == text == voice.text and not any("\ufffd" in piece for piece in heard) and len(tokens) > len(heard) > 5


def test_a_stop_text_ends_the_answer(model: TransformersModel):
    whole = model.complete("Name three colours.", sampling={"max_tokens": 16}).text
    middle = whole[len(whole) // 2:len(whole) // 2 + 3]
    reply = model.complete("Name three colours.", sampling={"max_tokens": 16, "stop": (middle,)})
    assert reply.text == whole[:whole.index(middle)] and reply.finish_reason == "stop"


def test_a_task_that_is_cancelled_stops_the_model(model: TransformersModel):
    async def impatient():
        with pytest.raises(TimeoutError): await asyncio.wait_for(model.acomplete("Write a very long story.", sampling={"max_tokens": 1500}), 0.5)
        return (await model.acomplete("Say yes.", sampling={"max_tokens": 3})).text
    assert asyncio.run(impatient())


class Event(BaseModel):
    kind: Literal["earnings", "merger", "guidance", "other"]
    impact: float = Field(ge=-1, le=1)
    year: int = Field(ge=1990, le=2030)
    tickers: list[Annotated[str, Field(pattern=r"^[A-Z]{1,5}$")]] = Field(min_length=1, max_length=3)


def test_every_answer_fits_a_schema_with_bounds(model: TransformersModel):
    for seed in range(2):
        reply = model.complete("Oracle buys Sun for 7.4 billion. Describe it as JSON.", Event, {"temperature": 1.0, "seed": seed, "max_tokens": 120}, retries=0)
        assert isinstance(reply.parsed, Event) and reply.attempts == 1
    with pytest.raises(AnswerError, match="more max_tokens may help"): model.complete("Describe a merger as JSON.", Event, {"max_tokens": 3}, retries=0)


def test_what_was_read_is_not_read_again(model: TransformersModel):
    rules = Message("system", " ".join(f"Rule {i}: name the market and the year." for i in range(40)))
    read, ask = [], model._engine._ask
    model._engine._ask = lambda tokens, *given, **more: (read.append(len(tokens)), ask(tokens, *given, **more))[1]
    try:
        fresh(model)
        cold = model.complete([rules, Message("user", "What is a bond?")], sampling={"max_tokens": 1})
        warm = model.complete([rules, Message("user", "Who buys shares?")], sampling={"max_tokens": 1})
    finally: del model._engine._ask
    assert cold.usage.prompt > 380 and cold.usage.cached == 0 and warm.usage.cached > 0.9 * warm.usage.prompt
    assert sum(read) == cold.usage.prompt + warm.usage.prompt - warm.usage.cached
    # What was remembered gives the same likelihoods as what is read afresh.
    tokens = list(model._engine.tokens)
    with model._engine.working():
        warm_row = model._engine.read(tokens[model._engine.recall(tokens):])
        cold_row = fresh(model).read(tokens)
    assert np.abs(warm_row - cold_row).max() < 1e-2


def test_limits_are_typed_errors(model: TransformersModel):
    with pytest.raises(ContextError, match="tokens, and the model reads 2,048"): model.complete("word " * 4000)
    with pytest.raises(ModelUnavailable, match="did not end within 0.2 s"): model.complete("word " * 1900, timeout=0.2)
    assert model.complete("Say yes.", sampling={"max_tokens": 2}).text
    with pytest.raises(UsageError, match="was trained to read 8,192"): TransformersModel(TransformersConfig(path=model.config.path, context=9000, threads=1))


def test_the_stop_latch_halts_an_answer(model: TransformersModel, lab: Path):
    model.latch = Latch(lab)
    try:
        halted = model.stream("Write a very long story.", sampling={"max_tokens": 1500})
        next(iter(halted._pieces.get, None))
        model.latch.set("test", "because")
        with pytest.raises(Stopped): halted.reply
    finally: model.latch = None


def test_options_are_followed_to_their_end_in_one_pass(model: TransformersModel):
    question, options = "The bank lowered rates. Which is it: rate cut, rate rise or hold?", ["rate cut", "rate rise", "hold"]
    messages, passes, ask = (Message("user", question),), [], model._engine._ask
    model._engine._ask = lambda *given, **more: (passes.append(1), ask(*given, **more))[1]
    try:
        fresh(model)
        once = model.scores(messages, options)
        assert len(passes) == 2, "the question, and all options together"
        passes.clear()
        fresh(model)
        model.choose("Up or down? Answer with one word.", ["up", "down"])
        assert len(passes) <= 2
    finally: del model._engine._ask
    # One after the other, as another engine would.
    fresh(model)
    model._engine.after = lambda prefixes: Engine.after(model._engine, prefixes)
    try: assert once == pytest.approx(model.scores(messages, options), abs=1e-2)
    finally: del model._engine.after
    assert model.complete(question, sampling={"max_tokens": 5}).text == (fresh(model) and model.complete(question, sampling={"max_tokens": 5}).text)


def test_an_option_is_as_likely_as_its_tokens(model: TransformersModel):
    "Against the library's own loss, spelled out: the chance of ' hold' and of 'hold' after the same words."
    import torch
    engine, options = fresh(model), ["hold", "sell"]
    found = model.scores((Message("user", "Hold or sell?"), Message("assistant", "I would")), options)
    text = engine.prompt([Message("user", "Hold or sell?"), Message("assistant", "I would")])
    def chance(said: str) -> float:
        begun, whole = engine.encode(text), engine.encode(text + said)
        assert whole[:len(begun)] == begun
        with engine.working(): rows = engine.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        return float(torch.stack([rows[at - 1, whole[at]] for at in range(len(begun), len(whole))]).sum().exp())
    for option, value in zip(options, found):
        assert np.exp(value) == pytest.approx(sum(chance(blank + said) for blank in ("", " ") for said in (option, option.capitalize())), rel=1e-2)


def test_two_threads_take_turns(model: TransformersModel):
    alone = {question: (fresh(model), model.complete(question, sampling={"max_tokens": 6}).text)[1] for question in ("Say one.", "Name a fruit.", "Name a city.")}
    found = {}
    threads = [threading.Thread(target=lambda q=q: found.update({q: model.complete(q, sampling={"max_tokens": 6}).text})) for q in alone]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert found == alone


def test_threads_of_the_process_are_put_back(model: TransformersModel):
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with model._engine.working(): assert torch.get_num_threads() == 1 and torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 2 and not torch.is_inference_mode_enabled()
    finally: torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_refused(folder: Path):
    import torch
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(UsageError, match=f"device = {missing}, but this build of PyTorch"): TransformersModel(TransformersConfig(path=folder, device=missing))


@pytest.mark.parametrize("length", [0, 23, 50_000_000])
def test_weights_that_are_cut_short_are_refused(folder: Path, weights: Path, tmp_path: Path, length: int):
    with open(weights, "rb") as whole: (tmp_path/"cut.gguf").write_bytes(whole.read(length))
    with pytest.raises(ModelError, match="no GGUF file that can be trusted"): TransformersModel(TransformersConfig(path=tmp_path/"cut.gguf"))
    (tmp_path/"config.json").write_bytes((folder/"config.json").read_bytes())
    with open(folder/"model.safetensors", "rb") as whole: (tmp_path/"model.safetensors").write_bytes(whole.read(length))
    with pytest.raises(ModelError, match="cannot be trusted"): TransformersModel(TransformersConfig(path=tmp_path))


def test_weights_that_lack_some_are_refused(folder: Path, tmp_path: Path):
    "The library would fill the gaps with random numbers."
    from safetensors.torch import load_file, save_file
    for file in folder.iterdir():
        if file.suffix != ".safetensors": (tmp_path/file.name).write_bytes(file.read_bytes())
    held = load_file(folder/"model.safetensors")
    save_file({key: value for key, value in held.items() if "layers.7.mlp" not in key}, tmp_path/"model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 3 of its weights, such as model.layers.7.mlp"): TransformersModel(TransformersConfig(path=tmp_path, threads=1))


MEMORY = """
import gc, sys, psutil
from sagelab.inference.transformers import TransformersConfig, TransformersModel
me = psutil.Process()
def load():
    with TransformersModel(TransformersConfig(path=sys.argv[1], context=1024, threads=1, device="cpu")) as model:
        model.complete("Say yes.", sampling={"max_tokens": 2})
        loaded = me.memory_info().rss
    gc.collect()
    return loaded, me.memory_info().rss
load()
before, threads = me.memory_info().rss, me.num_threads()
rounds = [load() for _ in range(2)]
print([(loaded - before) // 2**20 for loaded, _ in rounds], [(after - before) // 2**20 for _, after in rounds], me.num_threads() - threads)
"""


def test_memory_comes_back(folder: Path):
    said = subprocess.run([sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, timeout=240)
    loaded, after, threads = (json.loads(part) for part in said.stdout.strip().replace("] ", "]|").split("|"))
    assert min(loaded) > 300 and max(after) < 100 and threads <= 0, said.stdout + said.stderr


def test_a_closed_model_says_so(folder: Path):
    with TransformersModel(TransformersConfig(path=folder, context=512, threads=1)) as asked: pass
    with pytest.raises(ModelError, match="is closed"): asked.complete("x")
    with pytest.raises(ModelError, match="is closed"): asked.choose("x", ["a", "b"])
    asked.close()


def test_the_catalogue_runs_a_file_or_a_folder(lab: Path, weights: Path, folder: Path):
    said = subprocess.run([sys.executable, "-m", "sagelab.cli.main", "model", "add", "exact", str(weights), "--backend", "transformers", "--json"], cwd=lab, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and json.loads(said.stdout)["backend"] == "transformers", said.stderr
    catalogue = Catalogue(load_settings(lab))
    card = catalogue.add("folder", str(folder), cutoff="2024-11-01")
    assert (card.backend, card.format, card.parameters, card.quantisation, card.architecture, card.context) == ("transformers", "safetensors", 134_515_008, "F32", "llama", 8192)
    with get_model("folder", lab, threads=1, device="cpu") as asked:
        assert asked.about.backend == "transformers" and asked.about.cutoff == "2024-11-01" and asked.complete("Say yes.", sampling={"max_tokens": 2}).text
    assert "HF_HUB_OFFLINE" not in os.environ
