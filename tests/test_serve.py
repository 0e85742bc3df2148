"`sagelab serve` with a real model, asked by OpenAI's own client: answers, streams, schemas, calls, refusals, limits, and an end that leaves nothing."
import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import openai
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from sagelab.core.errors import ModelUnavailable
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.core.stop import Latch
from sagelab.inference.base import EchoModel
from sagelab.inference.catalogue import Catalogue, get_model
from sagelab.inference.pool import ModelPool, model_bytes
from sagelab.inference.server import ModelServer, in_background
from sagelab.lab.template import init_lab

PATIENCE = 60  # seconds for what usually takes one
# On one core a model has one thread: several that wait for each other are slow on a machine that is busy with other tests.
PROGRAM = """
import os, runpy, sys
if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
runpy.run_module("sagelab.cli.main", run_name="__main__", alter_sys=True)
"""
SERVE = (sys.executable, "-c", PROGRAM, "serve")


@dataclass
class Served:
    "A server that answers."
    process: subprocess.Popen
    said: dict  # what it printed
    root: Path
    errors: list[str]

    def client(self, **more) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": self.said["url"], "api_key": self.said["token"], "max_retries": 0, "timeout": 2 * PATIENCE, **more})

    def get(self, path: str, headers: dict | None = None, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
        line = http.client.HTTPConnection("127.0.0.1", self.said["port"], timeout=PATIENCE)
        try:
            line.request(method, path, body, {"Authorization": f"Bearer {self.said['token']}"} if headers is None else headers)
            answer = line.getresponse()
            return answer.status, answer.read().decode()
        finally: line.close()

    def figures(self) -> dict[tuple, float]:
        found = text_string_to_metric_families(self.get("/metrics")[1])
        return {(one.name, *(one.labels[key] for key in sorted(one.labels))): one.value for family in found for one in family.samples}


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("SAGELAB_", "OPENAI_"))} | more


@contextmanager
def serving(root: Path, *words: str, **settings: str) -> Iterator[Served]:
    "`sagelab serve` as a process of its own."
    process = subprocess.Popen([*SERVE, "--json", *words], cwd=root, env=environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors: list[str] = []
    listener = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    listener.start()
    try:
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("}"): break
        assert text, "".join(errors)
        yield Served(process, json.loads(text), root, errors)
    finally:
        if process.poll() is None: process.send_signal(signal.SIGINT)
        try: process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            listener.join(PATIENCE)
            process.stdout.close()
            process.stderr.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def root(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")/"lab"
    init_lab(root)
    Catalogue(load_settings(root, environment={})).add("smollm2", str(weights))
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Served]:
    with serving(root, SAGELAB_SERVE_MAX_BODY_MB="0.1", SAGELAB_SERVE_QUEUE="0", SAGELAB_SERVE_ALERT_MEMORY_MB="1") as served: yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client() as client: yield client


def ask(client: openai.OpenAI, text: str = "Say hello.", **more):
    return client.chat.completions.create(**{"model": "smollm2", "messages": [{"role": "user", "content": text}], "max_tokens": 16, **more})


def test_it_listens_on_this_machine_only(served: Served):
    assert served.said["models"] == ["smollm2"] and len(served.said["token"]) > 30 and served.said["url"] == f"http://127.0.0.1:{served.said['port']}/v1"
    assert {line.laddr.ip for line in psutil.Process(served.process.pid).net_connections("inet") if line.status == "LISTEN"} == {"127.0.0.1"}


def test_a_talk(client: openai.OpenAI):
    talk = [{"role": "system", "content": "You answer in one short sentence, and you are kind to everybody who asks."}, {"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
    first = client.chat.completions.create(model="smollm2", messages=talk, max_completion_tokens=8, temperature=0.7, top_p=0.9, seed=-3, user="me", n=1)
    again = client.chat.completions.create(model="smollm2", messages=[*talk, {"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "Again."}], max_tokens=4, stop=["\n"])
    assert first.choices[0].message.content.strip() and first.choices[0].finish_reason in ("stop", "length") and first.model == "smollm2" and first.id.startswith("chatcmpl-")
    assert 1 <= first.usage.completion_tokens <= 8 and first.usage.prompt_tokens > 10 and first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert again.usage.prompt_tokens_details.cached_tokens > 10 and "\n" not in again.choices[0].message.content


def test_a_stream_comes_in_pieces_and_ends_when_nobody_listens(served: Served, client: openai.OpenAI):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert len(chunks) > 4 and text.strip() and chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 1 and chunks[-2].choices[0].finish_reason in ("stop", "length")
    stream = ask(client, "Write a very long story.", stream=True, max_tokens=4000)
    next(iter(stream)), next(iter(stream))
    assert served.figures()["sagelab_running",] == 1, "it is still writing"
    stream.close()
    until(lambda: served.figures()["sagelab_running",] == 0)
    assert ask(client, max_tokens=2).choices and served.figures()["sagelab_errors_total", "hung_up"] == 1


class Event(BaseModel):
    kind: Literal["earnings", "merger", "other"]
    companies: list[Literal["Oracle", "Sun"]]
    impact: float


def test_an_answer_fits_its_schema(client: openai.OpenAI):
    said = [{"role": "user", "content": "Oracle buys Sun for 7.4 billion. Describe it as JSON."}]
    parsed = client.chat.completions.parse(model="smollm2", messages=said, response_format=Event, max_tokens=900)
    assert isinstance(parsed.choices[0].message.parsed, Event)
    with client.chat.completions.stream(model="smollm2", messages=said, response_format=Event, max_tokens=900) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Event)
    cut = ask(client, "Describe a merger as JSON.", max_tokens=12, response_format={"type": "json_object"})
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 12 and cut.choices[0].message.content.strip().startswith("{")


def tool(name: str, says: str, **properties) -> dict:
    return {"type": "function", "function": {"name": name, "description": says, "parameters": {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}}}


TOOLS = [tool("weather", "Tells the weather of a city.", city={"type": "string"}, unit={"enum": ["C", "F"]}), tool("clock", "Tells the time.")]


def test_a_call_that_is_demanded_is_one(client: openai.OpenAI):
    def called(**more):
        choice = ask(client, "What is the weather in Paris, in C?", tools=TOOLS, max_tokens=300, **more).choices[0]
        call, = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None and call.type == "function"
        return choice.message, call.function.name, json.loads(call.function.arguments)
    message, name, arguments = called(tool_choice={"type": "function", "function": {"name": "weather"}})
    assert name == "weather" and set(arguments) == {"city", "unit"} and arguments["unit"] in ("C", "F")
    assert called(tool_choice={"type": "function", "function": {"name": "clock"}})[1:] == ("clock", {})
    for seed in range(3): assert called(tool_choice="required", temperature=1.0, seed=seed)[1] in ("weather", "clock")
    answer = client.chat.completions.create(model="smollm2", tools=TOOLS, tool_choice="none", max_tokens=12, messages=[
        {"role": "user", "content": "What is the weather in Paris?"}, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "18 degrees, sun"}])
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls
    chunks = list(ask(client, "Call clock.", tools=TOOLS, tool_choice="required", max_tokens=300, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert len(calls) == 1 and isinstance(json.loads(calls[0].function.arguments), dict) and chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_model_may_answer_instead_of_calling(client: openai.OpenAI):
    for text in ("Say hello.", "What is the weather in Paris, in C?"):
        choice = ask(client, text, tools=TOOLS, max_tokens=120).choices[0]
        if choice.message.tool_calls: assert choice.message.tool_calls[0].function.name in ("weather", "clock") and json.loads(choice.message.tool_calls[0].function.arguments) is not None
        else: assert choice.message.content


def test_a_text_goes_on(client: openai.OpenAI):
    given = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 4}
    assert "Paris" in client.completions.create(**given).choices[0].text
    assert "Paris" in "".join(chunk.choices[0].text for chunk in client.completions.create(**given, stream=True))


def test_the_models_that_there_are(client: openai.OpenAI):
    model, = client.models.list().data
    assert model.id == "smollm2" and model.created > 1_700_000_000 and client.models.retrieve("smollm2") == model
    with pytest.raises(openai.NotFoundError, match="Did you mean 'smollm2'") as error: ask(client, model="smollm3")
    assert error.value.code == "model_not_found" and error.value.param == "model"


REFUSED = [({"n": 2}, "n"), ({"logprobs": True}, "logprobs"), ({"temperature": 9}, "temperature"), ({"presence_penalty": 1}, "presence_penalty"), ({"extra_body": {"temprature": 1}}, "temprature"),
           ({"messages": []}, "messages"), ({"tool_choice": "required"}, "tool_choice"), ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strnig"}}}}, "response_format.json_schema.schema"),
           ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}, None), ({"messages": [{"role": "user", "content": "word " * 9000}]}, None)]


@pytest.mark.parametrize("given, param", REFUSED, ids=[str(param) for _, param in REFUSED])
def test_what_is_not_done_is_refused_by_its_name(client: openai.OpenAI, given: dict, param: str | None):
    with pytest.raises(openai.BadRequestError) as error: ask(client, **given)
    assert error.value.type == "invalid_request_error" and (param is None or error.value.param == param)


def test_a_prompt_that_is_too_long_says_so(client: openai.OpenAI):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="tokens, and the model reads") as error: list(ask(client, "word " * 9000, stream=stream))
        assert error.value.code == "context_length_exceeded"


def test_a_body_that_is_none(served: Served):
    for body, status, code in ((b"{", 400, "invalid_json"), (b"[1]", 400, "invalid_json"), (b"", 400, "invalid_json"), (b'"' + b"x" * 300_000 + b'"', 413, "request_too_large")):
        answer = served.get("/v1/chat/completions", method="POST", body=body)
        assert answer[0] == status and json.loads(answer[1])["error"]["code"] == code
    with pytest.raises(openai.APIStatusError) as error: ask(served.client(), "x" * 200_000)
    assert error.value.status_code == 413


def test_strangers_stay_outside(served: Served):
    for key in ("wrong", "wröng"): assert served.get("/v1/models", {"Authorization": f"Bearer {key}".encode()})[0] == 401
    with pytest.raises(openai.AuthenticationError): served.client(api_key="wrong").models.list()
    token = {"Authorization": f"Bearer {served.said['token']}"}
    for host in ("evil.example", f"evil.example:{served.said['port']}", "127.0.0.1:1"): assert served.get("/v1/models", token | {"Host": host})[0] == 403
    assert served.get("/v1/models", token | {"Host": f"localhost:{served.said['port']}"})[0] == 200
    assert served.get("/metrics", {})[0] == 401 and served.get("/v1/models", {})[0] == 401
    assert served.get("/v1/chat/completions", {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}, "OPTIONS")[0] in (401, 405)


def test_a_model_that_makes_no_embeddings_says_so(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="makes no embeddings"): client.embeddings.create(model="smollm2", input="x")


def test_a_queue_that_is_full(served: Served, client: openai.OpenAI):
    with ask(client, "Write a very long story.", stream=True, max_tokens=4000) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as error: ask(client)
        assert error.value.code == "queue_full" and int(error.value.response.headers["retry-after"]) >= 1
    until(lambda: served.figures()["sagelab_running",] == 0)


def test_the_stop_latch_ends_every_answer(served: Served, client: openai.OpenAI):
    latch = Latch(served.root)
    stream = iter(ask(client, "Write a very long story.", stream=True, max_tokens=4000))
    next(stream)
    latch.set("test", "because")
    try:
        with pytest.raises(openai.APIError, match="The lab was stopped by"): list(stream)
        with pytest.raises(openai.InternalServerError, match="Nothing runs until a person lifts it") as error: ask(client)
        assert error.value.status_code == 503 and error.value.code == "stopped"
        status, said = served.get("/health", {})
        assert status == 503 and json.loads(said)["status"] == "stopped"
    finally: latch.clear("it was a test", "test")
    until(lambda: served.figures()["sagelab_running",] == 0)
    assert ask(client, max_tokens=2).choices


def test_figures_and_health(served: Served, client: openai.OpenAI):
    ask(client, "Say hello to all.", max_tokens=8), ask(client, "Say hello to all.", max_tokens=8)
    figures = served.figures()
    assert figures["sagelab_tokens_total", "completion", "smollm2"] > 5 and figures["sagelab_tokens_total", "cached", "smollm2"] > 5 and figures["sagelab_prefix_cache_hits_total", "smollm2"] >= 1
    assert figures["sagelab_model_loads_total", "smollm2"] == 1 and figures["sagelab_model_memory_bytes", "smollm2"] > 90e6 < figures["sagelab_memory_bytes",]
    assert figures["sagelab_request_seconds_count", "/v1/chat/completions"] >= 2 and figures["sagelab_tokens_per_second_count", "smollm2"] >= 1 and figures["sagelab_queue",] == 0
    status, said = served.get("/health", {})
    health = json.loads(said)
    assert status == 200 and health["status"] == "degraded" and health["alerts"][0]["name"] == "memory" and figures["sagelab_alert", "memory"] == 1, "one megabyte was allowed"
    assert served.said["token"] not in said and "smollm2" not in said
    assert sum("Alert on: memory" in line for line in served.errors) == 1, "once, not once a request"


def test_the_ledger_knows_and_nobody_knows_the_token(served: Served, client: openai.OpenAI):
    ask(client, "Where is the treasure?", max_tokens=4)
    assert open_ledger(served.root).tail(1)[0].kind == "model.asked"
    for path in (path for path in served.root.rglob("*") if path.is_file()): assert served.said["token"].encode() not in path.read_bytes() and b"treasure" not in path.read_bytes(), path
    assert served.said["token"] not in "".join(served.errors) and served.said["token"] not in " ".join(psutil.Process(served.process.pid).cmdline())


def test_too_many_requests(root: Path):
    with serving(root, SAGELAB_SERVE_REQUESTS_PER_MINUTE="2", SAGELAB_SERVE_TOKEN="a-token-of-our-own-for-this") as limited:
        assert limited.said["token"] is None
        client = limited.client(api_key="a-token-of-our-own-for-this")
        assert client.models.list() and client.models.list()
        with pytest.raises(openai.RateLimitError) as error: client.models.list()
        assert error.value.code == "rate_limit_exceeded" and 1 <= int(error.value.response.headers["retry-after"]) <= 60
        taken = subprocess.run([*SERVE, "--port", str(limited.said["port"])], cwd=root, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
        assert taken.returncode == 2 and "in use" in taken.stderr and "--port 0" in taken.stderr and "Traceback" not in taken.stderr


def test_a_signal_in_the_middle_of_an_answer_leaves_nothing(root: Path):
    with serving(root, "--model", "smollm2") as served, served.client() as client:
        assert served.figures()["sagelab_model_loads_total", "smollm2"] == 1, "loaded before it was asked"
        stream = iter(ask(client, "Write a very long story.", stream=True, max_tokens=4000))
        next(stream)
        children = psutil.Process(served.process.pid).children(recursive=True)
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="is being ended"): list(stream)
        assert served.process.wait(PATIENCE) == 0
    assert not any(child.is_running() for child in children) and "Ended; the models were given back." in "".join(served.errors)
    with socket.socket() as line: assert line.connect_ex(("127.0.0.1", served.said["port"])) != 0
    assert open_ledger(root).tail(1)[0].data["finish_reason"] == "cancelled"


def test_a_configuration_for_an_editor(root: Path):
    "What is printed, with the token that Continue would put in, reaches a server that is started as it says."
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port = str(line.getsockname()[1])
    done = subprocess.run([*SERVE, "--continue-config", "--port", port], cwd=root, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    model, = yaml.safe_load(done.stdout)["models"]
    assert done.returncode == 0 and f"sagelab serve --port {port}" in done.stderr and model["apiKey"] == "${{ secrets.SAGELAB_SERVE_TOKEN }}"
    with serving(root, "--port", port, SAGELAB_SERVE_TOKEN="a-token-of-my-own") as served:
        assert served.said["token"] is None
        with openai.OpenAI(base_url=model["apiBase"], api_key="a-token-of-my-own", max_retries=0) as client: assert client.models.retrieve(model["model"]).id == "smollm2"


def test_two_models_in_a_memory_for_one(lab: Path, weights: Path):
    catalogue = Catalogue(load_settings(lab))
    for name in ("one", "two"): catalogue.add(name, str(weights))
    with ModelPool(lambda name: get_model(name, lab, threads=1), lambda name: model_bytes(catalogue, name), 500 * 2**20, 0.5) as pool:
        def say(name: str, tokens: int) -> str:
            with pool.using(name, PATIENCE) as model: return model.complete("Count to a hundred.", sampling={"max_tokens": tokens}).text
        with ThreadPoolExecutor(4) as callers: assert all(callers.map(lambda _: say("one", 8), range(4))) and pool.loads() == {"one": 1}, "four callers, one load"
        assert say("two", 8) and [one.name for one in pool.loaded()] == ["two"]
        with pool.using("two") as model:
            with pytest.raises(ModelUnavailable, match=r"two \(\d+ MB\) is in use"): pool.using("one", 0).__enter__()
            assert model.complete("Count to a thousand.", sampling={"max_tokens": 150}).text, "longer than it may idle"
        until(lambda: pool.loaded() == [])
        assert pool.loads() == {"one": 1, "two": 1}


class Lengths(EchoModel):
    "A model that embeds, by length."
    def __init__(self):
        super().__init__()
        self.about = replace(self.about, embeds=True)

    def embed(self, texts): return np.array([[len(text), 0.1] for text in texts], np.float32)


def test_a_small_embedding_model_is_served(lab: Path, minilm: Path):
    Catalogue(load_settings(lab)).add("minilm", str(minilm))
    with serving(lab) as served, served.client() as client:
        found = client.embeddings.create(model="minilm", input=["Profit rises", "Earnings go up", "It rains in Bergen"]).data
        near, far = (float(np.dot(found[0].embedding, one.embedding)) for one in found[1:])
        assert len(found[0].embedding) == 384 and near > far + 0.2
        with pytest.raises(openai.BadRequestError): client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "Hello"}])


def test_embeddings(lab: Path):
    pool = ModelPool(lambda name: Lengths(), lambda name: 1)
    with in_background(ModelServer(load_settings(lab), pool, lambda: {"lengths": 1}, "a-token-of-our-own-for-this")) as url, openai.OpenAI(base_url=url, api_key="a-token-of-our-own-for-this", max_retries=0) as client:
        for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            found = client.embeddings.create(model="lengths", input=["a", "bcd"] * 30, **encoding).data
            vectors = [np.frombuffer(base64.b64decode(one.embedding), "<f4") if isinstance(one.embedding, str) else one.embedding for one in found]
            assert [one.index for one in found] == list(range(60)) and np.allclose(vectors, [[1, 0.1], [3, 0.1]] * 30)
        with pytest.raises(openai.BadRequestError): client.embeddings.create(model="lengths", input=[])
