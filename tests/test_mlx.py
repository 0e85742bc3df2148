"mlx on real weights: the same answers as anywhere, in few words, for on Linux it is slow; and plans that these weights do not have."
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

from sagelab.core.errors import ContextError, ModelError, ModelUnavailable, UsageError
from sagelab.core.plugins import build_plugin
from sagelab.inference.base import Message, Model
from sagelab.inference.mlx import FACTORS, LISTS, MlxConfig, MlxModel, build_network, network_settings, read_tensors
from sagelab.inference.weights import read_weights

# The model's own words before every talk would cost a second each time.
BRIEF = Message("system", ".")


def asked(text: str, *more: Message) -> tuple[Message, ...]:
    return (BRIEF, Message("user", text), *more)


@pytest.fixture(scope="module")
def path(weights: Path) -> Path:
    missing = [name for name in ("mlx", "mlx_lm", "llguidance", "gguf") if not importlib.util.find_spec(name)]
    require(not missing, f"{', '.join(missing)} missing: pip install 'sagelab[mlx]'")
    return weights


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[MlxModel]:
    with build_plugin("sagelab.models", "mlx", "model", {"path": path, "context": 512}) as model: yield model


def test_a_model_answers_and_says_how(model: MlxModel):
    assert isinstance(model, Model) and model.about.constrains and model.about.scores and model.about.id == "smollm2"
    assert model.about.notes[0].startswith("on the ") and model._engine.ends == {0, 2, 4} and model._engine.prompt([Message("user", "Hi")]).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    with model.stream(asked("Say hello."), sampling={"max_tokens": 6}) as stream: pieces = list(stream)
    reply = stream.reply
    assert "".join(pieces) == reply.text and reply.text.strip() and len(pieces) > 1 and reply.finish_reason in ("stop", "length")
    assert reply.usage.prompt > 10 and 1 <= reply.usage.completion <= 6
    again = model.complete(asked("Say hello."), sampling={"max_tokens": 6})
    assert again.text == reply.text and again.usage.cached == again.usage.prompt - 1


def test_a_seed_is_an_answer(model: MlxModel):
    def said(seed): return model.complete(asked("Invent a company."), sampling={"temperature": 1.5, "seed": seed, "max_tokens": 3}).text
    assert (first := said(7)) == said(7) and len({first, said(8), said(9)}) > 1


class Event(BaseModel):
    kind: Literal["earnings", "merger"]
    impact: float = Field(ge=-1, le=1)
    tickers: list[Annotated[str, Field(pattern=r"^[A-Z]{1,4}$")]] = Field(min_length=1, max_length=1)


def test_the_first_answer_fits_a_schema(model: MlxModel):
    reply = model.complete(asked("Oracle buys Sun."), Event, {"temperature": 1.0, "max_tokens": 80}, retries=0)
    assert isinstance(reply.parsed, Event) and reply.finish_reason == "stop"


def test_characters_are_whole_however_they_are_cut(model: MlxModel):
    with model.stream(asked("Say it."), {"enum": ["é 日 😀"]}) as stream: pieces = list(stream)
    assert stream.reply.parsed == "é 日 😀" and "\ufffd" not in "".join(pieces) and len(pieces) > 1


def test_whoever_stops_reading_stops_the_model(model: MlxModel):
    for _ in (stream := model.stream(asked("Write a story."), sampling={"max_tokens": 400})): break
    assert stream.reply.finish_reason == "cancelled" and stream.reply.usage.completion < 300
    with pytest.raises(ModelUnavailable, match="did not end within 0.01 s"): model.complete("word " * 300, timeout=0.01)
    with pytest.raises(ContextError, match="tokens, and the model reads 512"): model.complete("word " * 600)


def test_a_text_that_ends_the_answer_is_no_part_of_it(model: MlxModel):
    reply = model.complete(asked("Count from one to nine.", Message("assistant", "1, 2, 3, 4,")), sampling={"max_tokens": 12, "stop": [", 6"]})
    assert reply.text == " 5" and reply.finish_reason == "stop"


def test_an_option_is_as_likely_as_all_its_tokens(model: MlxModel, monkeypatch: pytest.MonkeyPatch):
    messages, options = asked("Profit rises. Good or bad news?", Message("assistant", "It is")), ["good news", "bad news"]
    engine = model._engine
    read, plain = [], engine._forward
    monkeypatch.setattr(engine, "_forward", lambda tokens: read.append(len(tokens)) or plain(tokens))
    engine.restart()
    found = model.choose(messages, options)
    assert found["good news"] > 0.5 and sum(read) <= 1.5 * len(engine.encode(engine.prompt(messages)))


def test_both_engines_find_the_same_likelihoods(model: MlxModel, path: Path):
    pytest.importorskip("llama_cpp", reason="the other engine is missing: pip install 'sagelab[llamacpp]'")
    from sagelab.inference.nativellama import NativeLlamaConfig, NativeLlamaModel
    messages, options = asked("Is this good or bad: Company goes bankrupt", Message("assistant", "It is")), ["good", "bad"]
    with NativeLlamaModel(NativeLlamaConfig(path=path, context=512, threads=1)) as other:
        assert model.choose(messages, options) == pytest.approx(other.choose(messages, options), abs=0.02)
        for text in ("naïve café 😀👩‍👩‍👧 1234567 3.14", "  a  b\n\n\tc  ", "I'll don't HE'S", "<|im_start|>user\nhi<|im_end|>\n", "日本語", "\r\n\r\n x"):
            assert model._engine.encode(text) == other._engine.encode(text) and model._engine.decode(model._engine.encode(text)) == other._engine.decode(other._engine.encode(text))


def test_packings_that_mlx_does_not_know_are_unpacked(path: Path):
    import mlx.core as mx
    (packed, words), (plain, same) = read_tensors(path), read_tensors(path, unpack=True)
    assert set(plain) == {name for name in packed if name.endswith(".weight")} and all(list(words[name]) == list(same[name]) for name in LISTS[:2])
    assert np.array(words[LISTS[2]]).tolist() == list(same[LISTS[2]])
    for name in ("blk.3.attn_k", "blk.7.ffn_down"):
        both = [np.array(x.astype(mx.float32)) for x in (mx.dequantize(*(packed[f"{name}.{part}"].astype(kind) for part, kind in (("weight", mx.uint32), ("scales", mx.float32), ("biases", mx.float32))), group_size=32, bits=4), plain[f"{name}.weight"])]
        assert np.allclose(*both, atol=2e-3)


def random_weights(architecture: str, **more) -> tuple[dict, dict]:
    "A header and tensors of a small network, as a GGUF file has them."
    import mlx.core as mx
    header = {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in {
        "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2, "block_count": 2, "feed_forward_length": 96,
        "attention.layer_norm_rms_epsilon": 1e-5, "context_length": 128}.items()}
    shapes = {"attn_q.weight": (64, 64), "attn_k.weight": (32, 64), "attn_v.weight": (32, 64), "attn_output.weight": (64, 64), "ffn_gate.weight": (96, 64), "ffn_up.weight": (96, 64),
              "ffn_down.weight": (64, 96), "attn_norm.weight": (64,), "ffn_norm.weight": (64,), **more}
    lot = np.random.default_rng(1)
    def drawn(shape): return mx.array(lot.normal(size=shape).astype(np.float32) / 4)
    return header, {"token_embd.weight": drawn((50, 64)), "output_norm.weight": drawn((64,)), **{f"blk.{i}.{name}": drawn(shape) for i in range(2) for name, shape in shapes.items()}}


@pytest.mark.parametrize(("architecture", "more"), [
    ("llama", {}), ("mistral", {}), ("qwen2", {"attn_q.bias": (64,), "attn_k.bias": (32,), "attn_v.bias": (32,)}), ("qwen3", {"attn_q_norm.weight": (16,), "attn_k_norm.weight": (16,)})])
def test_every_plan_takes_all_its_tensors(path: Path, architecture: str, more: dict):
    import mlx.core as mx
    header, tensors = random_weights(architecture, **more)
    def said(tensors): return np.array(build_network(network_settings(header, list(tensors), 50), tensors)(mx.array([[1, 2, 3]])))
    logits = said(tensors)
    assert logits.shape == (1, 3, 50) and np.isfinite(logits).all()
    assert not np.allclose(said(tensors | {"output.weight": 2 * tensors["token_embd.weight"]}), logits), "the last layer is its own where there is one"
    with pytest.raises(ValueError): said({name: tensor for name, tensor in tensors.items() if "blk.1.attn_q.weight" not in name})
    with pytest.raises(ModelError, match="blk.0.ffn_gate_exps.weight"): said(tensors | {"blk.0.ffn_gate_exps.weight": tensors["token_embd.weight"]})


def test_stretched_positions_are_taken_as_they_are(path: Path):
    import mlx.core as mx
    header, tensors = random_weights("llama")
    def said(tensors): return np.array(build_network(network_settings(header, list(tensors), 50), tensors)(mx.array([[1, 2, 3]])))
    assert np.allclose(said(tensors | {FACTORS: mx.ones((8,))}), said(tensors), atol=1e-5)
    assert not np.allclose(said(tensors | {FACTORS: 8 * mx.ones((8,))}), said(tensors), atol=1e-3)


MEMORY = """
import gc, sys, threading, psutil
from sagelab.inference.mlx import MlxConfig, MlxModel
me = psutil.Process()
HI = [{"role": "system", "content": "."}, {"role": "user", "content": "Hi"}]
def load(close=True):
    model = MlxModel(MlxConfig(path=sys.argv[1], context=512))
    model.complete(HI, sampling={"max_tokens": 1})
    loaded = me.memory_info().rss
    if close: model.close()
    del model
    gc.collect()
    return loaded, me.memory_info().rss
load()
before = me.memory_info().rss
rounds = [load(close) for close in (False, True)]
print([(loaded - before) // 2**20 for loaded, _ in rounds], [(after - before) // 2**20 for _, after in rounds], sum(t.name == "sagelab mlx" for t in threading.enumerate()))
left = MlxModel(MlxConfig(path=sys.argv[1], context=512))
next(iter(left.stream(HI)))
"""


def test_memory_comes_back_and_a_process_that_forgets_ends_well(path: Path):
    # In a process of its own: what other tests hold comes and goes.
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded, after, threads = (json.loads(part) for part in done.stdout.strip().replace("] ", "]|").split("|"))
    assert loaded[0] > 60 and after[-1] < 45 and threads == 0, done.stdout
    assert "terminate" not in done.stderr and "Traceback" not in done.stderr


def test_a_closed_model_says_so_and_leaves_no_thread(path: Path):
    before = {thread.name for thread in threading.enumerate()} - {"sagelab mlx"}
    running = sum(thread.name == "sagelab mlx" for thread in threading.enumerate())
    with MlxModel(MlxConfig(path=path, context=512)) as closed: pass
    closed.close()
    with pytest.raises(ModelError, match="is closed. Try: get_model"): closed.complete("x")
    with pytest.raises(ModelError, match="is closed"): closed.choose("x", ["a", "b"])
    assert {thread.name for thread in threading.enumerate()} - {"sagelab mlx"} == before and sum(thread.name == "sagelab mlx" for thread in threading.enumerate()) == running


def test_what_makes_no_sense_is_refused(path: Path, tmp_path: Path):
    for length in (0, 23, 50_000_000):
        with open(path, "rb") as whole: (tmp_path/"cut.gguf").write_bytes(whole.read(length))
        with pytest.raises(ModelError, match="no GGUF file that can be trusted"): MlxModel(MlxConfig(path=tmp_path/"cut.gguf"))
    with pytest.raises(UsageError, match="trained to read 8,192 tokens, not 9,000"): MlxModel(MlxConfig(path=path, context=9000))
    content = path.read_bytes()
    for old, new, said in ((b"smollm2", b"smollm2", None), (b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00falco", "this model is a falco"),
                           (b"\x06\x00\x00\x00\x00\x00\x00\x00smollm", b"\x06\x00\x00\x00\x00\x00\x00\x00klingo", "this is gpt2/klingo")):
        if said is None: continue
        (tmp_path/"other.gguf").write_bytes(content.replace(old, new, 1))
        assert read_weights(tmp_path/"other.gguf").parameters
        with pytest.raises(ModelError, match=said): MlxModel(MlxConfig(path=tmp_path/"other.gguf"))
