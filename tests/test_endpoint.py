"Models behind an address: llama.cpp's real server, and servers that hang, lie, break off and talk nonsense."
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_server import Handler, LocalServer, running
from pydantic import BaseModel, Field

from sagelab.core.errors import AnswerError, ContextError, ModelError, ModelUnavailable, UnknownName
from sagelab.inference.base import Model, Sampling
from sagelab.inference.endpoint import EndpointConfig, EndpointModel


class Share(BaseModel):
    word: str = Field(max_length=12)
    share: float = Field(ge=0, le=1)


@pytest.fixture(scope="module")
def real(weights: Path) -> Iterator[str]:
    "The address of llama.cpp's own server, which wants a key."
    xllamacpp = pytest.importorskip("xllamacpp")
    p = xllamacpp.CommonParams()
    p.model.path, p.model_alias, p.n_ctx, p.n_parallel, p.verbosity, p.api_keys = str(weights), {"smollm2"}, 2048, 2, -1, ["a-secret-key"]
    p.cpuparams.n_threads = 1
    server = xllamacpp.Server(p)
    yield server.listening_address + "/v1"
    del server


@pytest.fixture
def keyed(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A lab that knows the key."
    secrets = lab/"config"/"secrets.env"
    secrets.write_text("LLAMA_KEY=a-secret-key\nWRONG_KEY=another-secret\n")
    secrets.chmod(0o600)
    monkeypatch.chdir(lab)
    return lab


def test_a_real_server(real: str, keyed: Path):
    with EndpointModel(EndpointConfig(url=real, key="LLAMA_KEY", context=1024)) as model:
        assert isinstance(model, Model) and model.about.constrains and "holds to schemas (tried)" in model.about.notes[1]
        reply = model.complete("Say hello.", sampling={"max_tokens": 8})
        assert reply.text and reply.usage.completion == 8 and reply.finish_reason == "length" and 0 < reply.first_token_seconds < reply.seconds
        assert isinstance(model.complete("Give a share as JSON.", Share, {"max_tokens": 120}).parsed, Share)
        assert sum(model.choose("Up or down? One word.", ["up", "down"]).values()) == pytest.approx(1)
        with model.stream("Count to ten.", sampling={"max_tokens": 12}) as stream: assert len(list(stream)) > 3
        with pytest.raises(ContextError, match="Try: a shorter text"): model.complete("word " * 4000)
        assert len([reply for reply in model.complete_many(["a", "b", "c", "d"], sampling={"max_tokens": 3}) if reply.text]) == 4


def test_a_wrong_key_is_said_and_never_shown(real: str, keyed: Path):
    with pytest.raises(ModelError, match="401") as refused: EndpointModel(EndpointConfig(url=real, key="WRONG_KEY"))
    assert "another-secret" not in str(refused.value) + repr(refused.value.__context__)
    with pytest.raises(UnknownName, match="Did you mean 'LLAMA_KEY'"): EndpointModel(EndpointConfig(url=real, key="LLAMA_KEI"))


# --- servers that are not as they should be ---------------------------------------------------------------------------

def sse(*pieces: str, finish: str | None = "stop", done: bool = True) -> str:
    chunks = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    if finish: chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n" * done


class Bad(LocalServer):
    "Has one model, and answers as it is told: one act after another, the last again and again."
    class handler(Handler):
        def do_GET(self): self.reply(200, {"data": [{"id": "bad"}]})

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            server = self.server
            server.asked += 1
            server.acts[min(server.asked, len(server.acts)) - 1](self)

    asked = 0
    acts: tuple[Callable, ...] = ()


@pytest.fixture
def server() -> Iterator[Bad]:
    with running(Bad) as server: yield server


def model_at(server: Bad, *acts: Callable, **config) -> EndpointModel:
    server.acts = acts
    return EndpointModel(EndpointConfig(url=server.address + "/v1", **{"constrains": True, "timeout_seconds": 0.5} | config))


def answers(status: int, content: object, **headers: str) -> Callable:
    return lambda handler: handler.reply(status, content, {name.replace("_", "-"): value for name, value in headers.items()})


def hangs(handler: Handler) -> None: time.sleep(1.5)


def breaks_off(handler: Handler) -> None:
    handler.reply(200, sse("Hel", finish=None, done=False), length=10_000)
    handler.connection.close()


def trickles(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        try: handler.wfile.write(sse("x", finish=None, done=False).encode())
        except OSError: return
        time.sleep(0.05)


@pytest.mark.parametrize(("act", "kind", "words"), [
    (hangs, ModelUnavailable, "does not answer within 0.5 s"),
    (breaks_off, ModelUnavailable, "after 3 characters"),
    (answers(200, sse("Hel", finish=None)), ModelUnavailable, "without saying that it was done"),
    (answers(200, "data: {nonsense\n\n"), ModelError, "talks nonsense"),
    (answers(200, "data: [1, 2]\n\n"), ModelError, "talks nonsense"),
    (answers(200, 'data: {"choices": "x"}\n\n'), ModelError, "talks nonsense"),
    (answers(200, 'data: {"choices": [{"delta": {"content": 7}}]}\n\n'), ModelError, "talks nonsense"),
    (answers(200, 'data: {"error": {"message": "out of memory"}}\n\n'), ModelError, "broke off: out of memory"),
    (answers(200, "<html>login</html>"), ModelUnavailable, "without saying that it was done"),
    (answers(401, {"error": {"message": "bad key"}}), ModelError, "bad key. Try: key="),
    (answers(404, {"error": "no such model"}), ModelError, "no such model"),
    (answers(500, "<p>broken</p>"), ModelUnavailable, "answers 500"),
    (answers(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}), ContextError, "too long"),
])
def test_each_fault_is_a_typed_error_in_time(server: Bad, act: Callable, kind: type, words: str):
    threads = threading.active_count()
    with model_at(server, act, retries=1) as model:
        started = time.monotonic()
        with pytest.raises(kind, match=words): model.complete("Hello")
        assert time.monotonic() - started < 4
    time.sleep(0.05)
    assert threading.active_count() <= threads + 1, "the server's own thread may be at work still; ours are gone"


def test_too_many_requests_are_repeated_when_the_server_says(server: Bad):
    with model_at(server, answers(429, "slow down", Retry_After="0.2"), answers(503, ""), answers(200, sse("Hello"))) as model:
        started = time.monotonic()
        assert model.complete("Hello").text == "Hello" and server.asked == 3 and time.monotonic() - started > 0.4
        server.asked, server.acts = 0, (answers(429, "slow down", Retry_After="20"),)
        with pytest.raises(ModelUnavailable, match="slow down"): model.complete("Hello", timeout=1.0)
        assert server.asked == 1, "no wait that outlasts the patience of who asks"


def test_a_stream_that_never_ends_ends_in_time(server: Bad):
    with model_at(server, trickles) as model:
        started = time.monotonic()
        with pytest.raises(ModelUnavailable, match="did not end within 0.4 s"): model.complete("Hello", timeout=0.4)
        assert time.monotonic() - started < 8
        stream = model.stream("Hello")
        assert next(iter(stream)) == "x"
        stream.close()
        assert stream.reply.finish_reason == "cancelled"


def test_a_server_that_ignores_schemas_is_found_out(server: Bad):
    with model_at(server, answers(200, sse("Hello! How can I help?")), constrains=None) as model:
        assert not model.about.constrains and "does NOT hold to schemas (tried)" in model.about.notes[1]
        server.asked, server.acts = 0, (answers(200, sse("It is 24.")), answers(200, sse('{"word": "up", "share": 24}')), answers(200, sse('Sure: {"word": "up", "share": 0.24}')))
        reply = model.complete("How much?", Share, Sampling())
        assert reply.parsed == Share(word="up", share=0.24) and reply.attempts == 3
        server.asked, server.acts = 0, (answers(200, sse("I cannot.")),)
        with pytest.raises(AnswerError, match="no valid answer in 3 attempts"): model.complete("How much?", Share)


def test_a_server_without_likelihoods_says_so(server: Bad):
    with model_at(server, answers(200, {"choices": [{"message": {"content": "up"}}]})) as model:
        with pytest.raises(ModelError, match="does not tell how likely its words are"): model.choose("Up or down?", ["up", "down"])
        server.acts = (answers(200, {"data": [{"index": 0}]}),)
        with pytest.raises(ModelError, match="no embedding"): model.embed(["x"])


def test_nothing_there(server: Bad):
    with pytest.raises(ModelUnavailable, match="cannot be reached.*Try: start the server"): EndpointModel(EndpointConfig(url="http://127.0.0.1:9/v1"))


def test_a_model_of_a_server_has_a_card(real: str, keyed: Path):
    from sagelab.core.settings import load_settings
    from sagelab.inference.catalogue import Catalogue, get_model
    catalogue = Catalogue(load_settings(keyed))
    card = catalogue.add("far", real, key="LLAMA_KEY")
    assert (card.format, card.sha256, card.key) == ("endpoint", "", "LLAMA_KEY") and "a-secret-key" not in (catalogue.folder/"far.json").read_text()
    with get_model("far", keyed) as model: assert model.about.id == "far" and model.complete("Say yes.", sampling={"max_tokens": 2}).text
    assert catalogue.add("far", real, key="LLAMA_KEY") == card and catalogue.remove("far") == card
