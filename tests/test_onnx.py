"Models that ONNX Runtime runs, converted from real weights: against PyTorch on the same numbers, limits, memory, and that it tells nobody."
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
from conftest import require
from pydantic import BaseModel, Field

from sagelab.core.errors import ContextError, ModelError, ModelUnavailable, UsageError
from sagelab.core.settings import load_settings
from sagelab.inference.base import Message, Model
from sagelab.inference.catalogue import Catalogue, get_model
from sagelab.inference.onnx import SILENCE, OnnxConfig, OnnxModel, convert
from sagelab.inference.transformers import TransformersConfig, TransformersModel

QUESTION = (Message("user", "The bank lowered rates. Which is it: rate cut, rate rise or hold?"),)
OPTIONS = ["rate cut", "rate rise", "hold"]


@pytest.fixture(scope="module")
def converted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("onnxruntime_genai", "onnx", "onnx_ir") if not find_spec(name)]
    require(not missing, f"not installed: {', '.join(missing)}. Try: pip install 'sagelab[onnx]'")
    return convert(folder, tmp_path_factory.mktemp("converted")/"smollm2", "fp32")


@pytest.fixture(scope="module")
def model(converted: Path) -> Iterator[OnnxModel]:
    with OnnxModel(OnnxConfig(path=converted, name="smollm2", context=2048, threads=1)) as model: yield model


def fresh(model) -> None: model._engine.restart()


def test_it_says_what_pytorch_says_of_the_same_numbers(model: OnnxModel, folder: Path):
    assert isinstance(model, Model) and model.about.notes[0].lower() == "on the cpu" and model.about.constrains and model.about.scores
    with TransformersModel(TransformersConfig(path=folder, context=2048, threads=1, device="cpu")) as other:
        for talk in ("Say hello.", [Message("user", "Is it good?"), Message("assistant", "Sentiment:")]):
            ours, theirs = (asked.complete(talk, sampling={"max_tokens": 8}) for asked in (model, other))
            assert (ours.text, ours.usage.prompt, ours.finish_reason) == (theirs.text, theirs.usage.prompt, theirs.finish_reason)
        assert model.scores(QUESTION, OPTIONS) == pytest.approx(other.scores(QUESTION, OPTIONS), abs=1e-2)


def test_one_seed_gives_one_answer_and_a_stream_is_it(model: OnnxModel):
    drawn = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    fresh(model)
    whole = model.complete("Invent a company.", sampling=drawn).text
    fresh(model)
    with model.stream("Invent a company.", sampling=drawn) as stream: assert "".join(stream) == stream.reply.text == whole
    for _ in (stream := model.stream("Write a very long story.", sampling={"max_tokens": 1500})): break
    assert stream.reply.finish_reason == "cancelled" and not [thread for thread in threading.enumerate() if thread.name == "sagelab stream"]


class Event(BaseModel):
    kind: Literal["earnings", "merger", "other"]
    impact: float = Field(ge=-1, le=1)
    year: int = Field(ge=1990, le=2030)


def test_every_answer_fits_a_schema_with_bounds(model: OnnxModel):
    for seed in range(4):
        assert isinstance(model.complete("Oracle buys Sun. Describe it as JSON.", Event, {"temperature": 1.0, "seed": seed, "max_tokens": 60}, retries=0).parsed, Event)


def test_what_was_read_is_not_read_again(model: OnnxModel):
    rules = Message("system", " ".join(f"Rule {i}: name the market and the year." for i in range(40)))
    fresh(model)
    cold, warm = (model.complete([rules, Message("user", end)], sampling={"max_tokens": 4}) for end in ("What is a bond?", "Who buys shares?"))
    assert cold.usage.cached == 0 and warm.usage.cached > 0.9 * warm.usage.prompt > 350
    fresh(model)
    assert model.complete([rules, Message("user", "Who buys shares?")], sampling={"max_tokens": 4}).text == warm.text


def test_limits_are_typed_errors(model: OnnxModel, converted: Path, tmp_path: Path):
    with pytest.raises(ContextError, match="tokens, and the model reads 2,048"): model.complete("word " * 4000)
    with pytest.raises(ModelUnavailable, match="did not end within 0.2 s"): model.complete("word " * 1900, timeout=0.2)
    assert model.complete("Say yes.", sampling={"max_tokens": 2}).text
    with pytest.raises(UsageError, match="was trained to read 8,192"): OnnxModel(OnnxConfig(path=converted, context=9000, threads=1))
    for file in converted.iterdir():
        if file.suffix != ".data": shutil.copy(file, tmp_path)
    (tmp_path/"model.onnx.data").write_bytes(b"cut short")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"): OnnxModel(OnnxConfig(path=tmp_path, threads=1))


def test_what_cannot_be_converted_leaves_nothing(folder: Path, tmp_path: Path, converted: Path):
    (tmp_path/"strange").mkdir()
    shutil.copy(folder/"model.safetensors", tmp_path/"strange")
    (tmp_path/"strange"/"config.json").write_text('{"model_type": "nobody-knows"}')
    with pytest.raises(ModelError, match="cannot be converted"): convert(tmp_path/"strange", tmp_path/"new")
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]
    with pytest.raises(UsageError, match="already"): convert(folder, converted)


ASK = """
import os, sys, psutil
from sagelab.inference.onnx import OnnxConfig, OnnxModel
me = psutil.Process()
def load():
    with OnnxModel(OnnxConfig(path=sys.argv[1], context=512, threads=1)) as model:
        model.complete("Say yes.", sampling={"max_tokens": 2})
        loaded = me.memory_info().rss
    return loaded >> 20, me.memory_info().rss >> 20
load()
print([load() for _ in range(2)])
assert "ORT_DISABLE_TELEMETRY" not in os.environ
"""


def test_it_tells_nobody_and_gives_its_memory_back(converted: Path, tmp_path: Path):
    "The wheel keeps what it wants to report in a data base in the user's cache, and sends it from there."
    environment = {key: value for key, value in os.environ.items() if key != SILENCE} | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path/".cache")}
    said = subprocess.run([sys.executable, "-c", ASK, str(converted)], capture_output=True, text=True, timeout=240, env=environment)
    assert said.returncode == 0, said.stderr
    assert not [path for path in tmp_path.rglob("*") if "onnx" in path.name.lower() or "microsoft" in path.name.lower()]
    rounds = eval(said.stdout)
    assert all(loaded - after > 300 for loaded, after in rounds), rounds


def test_the_catalogue_runs_a_folder(lab: Path, converted: Path):
    card = Catalogue(load_settings(lab)).add("fast", str(converted), cutoff="2024-11-01")
    assert (card.backend, card.format, card.architecture, card.context) == ("onnx", "onnx", "llama", 8192) and card.chat_template
    with get_model("fast", lab, threads=1, context=512) as asked: assert asked.complete("Say yes.", sampling={"max_tokens": 2}).text
    with pytest.raises(ModelError, match="is closed"): asked.complete("x")
