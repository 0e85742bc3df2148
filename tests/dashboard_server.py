"The dashboard as a process of its own, and what can be said to it over HTTP and websocket."
import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from jupyter_server.services.kernels.connection.base import deserialize_binary_message, deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

V1 = "v1.kernel.websocket.jupyter.org"
START_SECONDS = 90


@dataclass
class Served:
    "A server that answers, and the way into it."
    process: subprocess.Popen
    host: str  # "127.0.0.1:8866"
    url: str  # with the token; empty: it needs none
    cookie: str = ""
    children: list = field(default_factory=list)

    @property
    def token(self) -> str: return self.url.partition("token=")[2]

    @property
    def headers(self) -> dict[str, str]: return {"Cookie": self.cookie, "Origin": f"http://{self.host}"} if self.cookie else {"Origin": f"http://{self.host}"}

    def ask(self, method: str, path: str, headers: dict | None = None, body: str | None = None) -> tuple[int, str, dict]:
        "Status, text and headers of an answer; no headers are added but Host."
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, body, headers if headers is not None else self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace"), dict(answer.getheaders())
        finally: connection.close()

    def page(self) -> str:
        "A page of our own, and the id of the kernel behind it."
        status, text, _ = self.ask("GET", "/")
        assert status == 200, (status, text[:300])
        return re.search(r'"kernelId":\s*"([^"]+)"', text)[1]


def environment() -> dict[str, str]: return {name: value for name, value in os.environ.items() if not name.startswith("SAGELAB_")}


@contextmanager
def running(words: list[str], folder: Path, ready, **more) -> Iterator[subprocess.Popen]:
    "A process until `ready` says so of a line; it is ended, with its children, afterwards."
    process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    children: list[psutil.Process] = []
    try:
        lines, until = [], time.monotonic() + START_SECONDS
        while time.monotonic() < until and (line := process.stdout.readline()):
            lines.append(line)
            if ready(line): break
        else: raise AssertionError(f"{words} did not start: {''.join(lines)}")
        # A pipe that nobody reads would hold the server up.
        process.said = lines
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        yield process
    finally:
        try: children = psutil.Process(process.pid).children(recursive=True)
        except psutil.Error: pass
        if process.poll() is None: process.send_signal(signal.SIGINT)
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()
        for child in children:
            try: child.kill()
            except psutil.Error: pass


@contextmanager
def dashboard(lab: Path, *words: str) -> Iterator[Served]:
    "`sagelab dashboard` on a lab, and one viewer's cookie."
    found: list[str] = []
    def ready(line: str) -> bool:
        if line.startswith("http://"): found.append(line.strip())
        return bool(found)
    with running([sys.executable, "-m", "sagelab.cli.main", "dashboard", "--no-browser", *words], lab, ready) as process:
        served = Served(process, found[0].split("/")[2], found[0])
        _, _, headers = served.ask("GET", f"/?token={served.token}", {})
        served.cookie = headers["Set-Cookie"].split(";")[0]
        yield served


@contextmanager
def plain_voila(notebook: Path, port: int) -> Iterator[Served]:
    "Voila as it comes."
    words = [sys.executable, "-m", "voila", notebook.name, "--no-browser", f"--port={port}", "--Voila.port_retries=0"]
    with running(words, notebook.parent, lambda line: f":{port}/" in line) as process: yield Served(process, f"localhost:{port}", "")


# ---- the kernel's protocol -----------------------------------------------------------------------------------------

def frame(protocol: str | None, channel: str, kind: str, content: dict, number: int = 0) -> str | bytes:
    "A message as a browser puts it."
    # A kernel takes no message twice.
    header = {"msg_id": f"attack-{number}-{time.monotonic_ns()}", "msg_type": kind, "session": "attack", "username": "mallory", "version": "5.3", "date": "2026-01-01T00:00:00Z"}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    if protocol == V1: return serialize_msg_to_ws_v1(message, channel, lambda part: json.dumps(part).encode())
    return json.dumps(message | {"channel": channel, "buffers": []})


def told(protocol: str | None, received: str | bytes) -> dict:
    "A message as a kernel puts it: kind, parent, content."
    if protocol == V1:
        _, parts = deserialize_msg_from_ws_v1(received)
        header, parent, _, content = map(json.loads, parts[:4])
    else:
        message = deserialize_binary_message(received) if isinstance(received, bytes) else json.loads(received)
        header, parent, content = message["header"], message["parent_header"], message["content"]
    return {"kind": header["msg_type"], "parent": parent.get("msg_id", ""), "content": content}


async def _talk(served: Served, kernel: str, protocol: str | None, frames: list, seconds: float, headers: dict | None, enough) -> list[dict]:
    request = HTTPRequest(f"ws://{served.host}/api/kernels/{kernel}/channels?session_id=attack-{time.monotonic_ns()}", headers=served.headers if headers is None else headers, request_timeout=20)
    line = await websocket_connect(request, subprotocols=[protocol] if protocol else None, max_message_size=2**26)
    found, until = [], time.monotonic() + seconds
    try:
        # A server that has heard enough hangs up in the middle of the words.
        with suppress(WebSocketClosedError):
            for one in frames: await line.write_message(one, binary=isinstance(one, bytes))
        while (left := until - time.monotonic()) > 0:
            try: received = await asyncio.wait_for(line.read_message(), left)
            except (TimeoutError, asyncio.TimeoutError): break
            if received is None: break
            found.append(told(protocol, received))
            if enough(found): break
    finally: line.close()
    return found


def talk(served: Served, kernel: str, protocol: str | None, frames: list, seconds: float = 1.5, headers: dict | None = None, enough=lambda found: False) -> list[dict]:
    "Say something on a line to a kernel, and listen for a while, or until it is enough; raises what a refused line raises."
    return asyncio.run(_talk(served, kernel, protocol, frames, seconds, headers, enough))


def models(served: Served, kernel: str, protocol: str | None = V1) -> dict[str, dict]:
    "The widgets behind a page: id -> state."
    answers = talk(served, kernel, protocol, [frame(protocol, "shell", "comm_info_request", {"target_name": "jupyter.widget"})], 30, enough=lambda found: found[-1]["kind"] == "comm_info_reply")
    names = answers[-1]["content"]["comms"]
    asked = [frame(protocol, "shell", "comm_msg", {"comm_id": name, "data": {"method": "request_state"}}, number) for number, name in enumerate(names)]
    found: dict[str, dict] = {}
    def complete(answers: list[dict]) -> bool:
        data, name = answers[-1]["content"].get("data", {}), answers[-1]["content"].get("comm_id")
        # An update says what changed; an answer says everything.
        if answers[-1]["kind"] == "comm_msg" and data.get("method") == "update" and name in names and (name in found or "_model_name" in data["state"]): found.setdefault(name, {}).update(data["state"])
        return len(found) == len(names)
    talk(served, kernel, protocol, asked, 30, enough=complete)
    return found


def named(widgets: dict[str, dict], model: str, **state) -> str:
    "The one widget of a kind with such a state."
    name, = (name for name, found in widgets.items() if found.get("_model_name") == model and all(found.get(k) == v for k, v in state.items()))
    return name
