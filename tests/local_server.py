"What the servers of the tests have in common: they run on this machine, answer in JSON, and fail as they are told."
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LocalServer(http.server.ThreadingHTTPServer):
    "A server on a free port of this machine."
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.handler)
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_): pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, content: object, headers: dict | None = None, length: int | None = None) -> None:
        "Answer with text as it is, or with anything else as JSON."
        text = content if isinstance(content, str) else "" if content is None else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode()) if length is None else length))
        for name, value in (headers or {}).items(): self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_): pass


@contextmanager
def running(kind: type[LocalServer]) -> Iterator[LocalServer]:
    "A server that answers until the block ends."
    server = kind()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()


# --- what can go wrong -----------------------------------------------------------------------------------------------

def says(status: int, content: object = "", **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.reply(status, content, {name.replace("_", "-"): value for name, value in headers.items()})


def gone(handler: Handler) -> None:
    "Close the connection without a word."
    handler.close_connection = True
    handler.connection.close()


def cut(handler: Handler) -> None:
    "Promise a body, send its first bytes, and go."
    handler.reply(200, '{"data": [[1', length=5000)
    gone(handler)


def drip(handler: Handler, pause: float = 0.05) -> None:
    "Send a byte now and then, so that no single wait is long."
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(pause)
