"Somebody who holds the dashboard's token tries to do more than look, over real HTTP and websockets; and somebody who does not, to look."
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from dashboard_server import V1, Served, dashboard, frame, models, named, plain_voila, talk
from tornado.httpclient import HTTPClientError
from tornado.simple_httpclient import HTTPStreamClosedError

PROTOCOLS = [V1, None]
CHANNELS = ["shell", "control", "stdin", "iopub"]
# A notebook that is as weak as one can be: its button acts, its box is kept, and it takes lines of a kind of its own.
WEAK = """
import ipywidgets
from pathlib import Path
from IPython import get_ipython
marks = []
box, button = ipywidgets.Text("untouched", description="box"), ipywidgets.Button(description="press")
def mark(name):
    box.value = f"{box.value}, {name}"
    Path(ROOT, f"marker-{name}").write_text(name)
button.on_click(lambda _: mark("click"))
get_ipython().kernel.comm_manager.register_target("weak", lambda comm, message: mark("comm"))
ipywidgets.VBox([box, button])
"""


def weak_notebook(path: Path, root: Path, monitor: bool) -> Path:
    "A notebook with something to attack, below the monitor or alone."
    cells = [nbformat.v4.new_code_cell("from sagelab.ui.monitor import Monitor\n\nMonitor()")] if monitor else []
    book = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(f"ROOT = {str(root)!r}\n{WEAK}")])
    book.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def attack(served: Served, kernel: str, protocol: str | None, channels: list[str], marker: Path) -> None:
    "Everything a browser could say to a kernel that would change something."
    found = models(served, kernel, protocol)
    button = named(found, "ButtonModel")
    code = f"open({str(marker)!r}, 'w').write('x'); box.value = 'executed'"
    said = [("execute_request", {"code": code, "silent": False, "store_history": True, "user_expressions": {"a": code}, "allow_stdin": True}),
            ("comm_open", {"comm_id": "a" * 32, "target_name": "weak", "data": {}}), ("comm_open", {"comm_id": "b" * 32, "target_name": "jupyter.widget", "data": {"state": {"_model_name": "x"}}}),
            ("comm_msg", {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}), ("comm_info_request", {"target_name": "jupyter.widget", "code": code}),
            ("complete_request", {"code": "open", "cursor_pos": 4}), ("inspect_request", {"code": "open", "cursor_pos": 4, "detail_level": 1}), ("history_request", {"hist_access_type": "tail", "n": 9}),
            ("input_reply", {"value": code}), ("debug_request", {"seq": 1, "type": "request", "command": "evaluate", "arguments": {"expression": code}}), ("create_subshell_request", {}), ("interrupt_request", {})]
    said += [("comm_msg", {"comm_id": name, "data": {"method": "update", "state": {"value": "owned", "html": "owned", "text": "owned", "_dom_classes": ["owned"], "patience": 1e9}, "buffer_paths": []}}) for name in found]
    frames = [frame(protocol, channel, kind, content, number) for channel in channels for number, (kind, content) in enumerate(said)]
    talk(served, kernel, protocol, frames, 2.0)


def effects(served: Served, kernel: str, root: Path) -> dict:
    "What became of it."
    found = models(served, kernel)
    return {"box": found[named(found, "TextModel")]["value"], "markers": sorted(path.name for path in root.glob("marker-*"))}


def alive(served: Served, kernel: str) -> bool:
    "Does the kernel still answer?"
    try: return any(answer["kind"] == "kernel_info_reply" for answer in talk(served, kernel, V1, [frame(V1, "shell", "kernel_info_request", {})], 5,
                                                                                     enough=lambda found: found[-1]["kind"] == "kernel_info_reply"))
    except (HTTPClientError, HTTPStreamClosedError): return False


def widgets_left(served: Served, kernel: str) -> list[str]:
    "The widgets of a kernel that may be gone."
    try: answers = talk(served, kernel, V1, [frame(V1, "shell", "comm_info_request", {"target_name": "jupyter.widget"})], 3, enough=lambda found: found[-1]["kind"] == "comm_info_reply")
    except (HTTPClientError, HTTPStreamClosedError): return []
    return [name for answer in answers if answer["kind"] == "comm_info_reply" for name in answer["content"]["comms"]]


def refused(served: Served, kernel: str, headers: dict, protocol: str | None = V1) -> int:
    "The status with which a line was refused."
    with pytest.raises(HTTPClientError) as error: talk(served, kernel, protocol, [], headers=headers)
    return error.value.code


def content(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*")) if path.is_file()}


# ---- the server under attack ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A lab with a past, a secret, and a monitor that is as weak as can be."
    from sagelab.core.ledger import open_ledger
    from sagelab.core.stop import open_latch
    from sagelab.lab.template import init_lab
    root = init_lab(tmp_path_factory.mktemp("attacked")/"lab")
    (root/"config"/"secrets.env").write_text("BROKER_KEY=s3cret-of-the-lab\n")
    weak_notebook(root/"nbs"/"dashboards"/"monitor.ipynb", root, monitor=True)
    open_ledger(root).append("note", {"n": 1}, "ada")
    open_latch(root).set("enough", "ada")
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Served]:
    before = content(root)
    with dashboard(root) as served: yield served
    assert content(root) == before, "nothing of the lab may change, whatever was tried"


@pytest.fixture(scope="module")
def kernel(served: Served) -> str: return served.page()


# ---- who may look --------------------------------------------------------------------------------------------------

def test_nobody_looks_without_the_token(served: Served, kernel: str) -> None:
    paths = ["/", "/voila/static/voila.js", "/voila/templates/lab/static/voila-style.js", f"/api/kernels/{kernel}", f"/api/kernels/{kernel}/channels", "/voila/labextensions/anywidget/package.json", "/nothing"]
    for path in paths:
        status, text, headers = served.ask("GET", path, {})
        assert status == 403 and "carries the token" in text and served.token not in text and "Set-Cookie" not in headers, path
    token = served.token
    for wrong in ("", token[:-1], token + "a", token.swapcase(), token[::-1], "a" * len(token), "%00", token + "%00", "&token=", "x" * 20_000):
        assert served.ask("GET", f"/?token={wrong}", {})[0] in (403, 400, 431), wrong[:50]
    for cookie in ("", "x", served.cookie[:-1], served.cookie + "0", served.cookie.replace("=", "=0"), served.cookie.split("=")[0] + "=" + token):
        assert served.ask("GET", "/", {"Cookie": cookie})[0] == 403, cookie
    for path in paths[1:]: assert served.ask("GET", f"{path}?token={token}", {})[0] == 403, "the token opens the door, and only the door"


def test_no_line_without_the_token(served: Served, kernel: str) -> None:
    origin = {"Origin": f"http://{served.host}"}
    for headers in ({}, origin, origin | {"Cookie": served.cookie[:-1] + "x"}, origin | {"Authorization": f"token {served.token}"}):
        assert {refused(served, kernel, headers, protocol) for protocol in PROTOCOLS} == {403}, headers
    assert alive(served, kernel)


def test_the_token_stays_nowhere(served: Served) -> None:
    status, text, headers = served.ask("GET", f"/?token={served.token}", {})
    cookie = headers["Set-Cookie"]
    assert status == 200 and served.token not in text and served.token not in cookie and 'content="0;url=/"' in text
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    page = served.ask("GET", "/")[1]
    assert served.token not in page and "s3cret-of-the-lab" not in page and "Monitor()" not in page, "no token, no secret, no source"


def test_every_answer_is_guarded(served: Served, kernel: str) -> None:
    for path in ("/", "/nothing", "/voila/static/voila.js", f"/api/kernels/{kernel}", "/voila/templates/lab/static/voila-style.js"):
        for headers in (served.headers, {}):
            found = served.ask("GET", path, headers)[2]
            assert "frame-ancestors 'none'" in found["Content-Security-Policy"] and found["X-Frame-Options"] == "DENY" and found["X-Content-Type-Options"] == "nosniff"
            assert "http:" not in found["Content-Security-Policy"].replace("ws://127.0.0.1", "") and "*" not in found["Content-Security-Policy"] and found["Server"] == "SageLab"
            assert "Access-Control-Allow-Origin" not in found


def test_other_names_and_sites(served: Served, kernel: str) -> None:
    port = served.host.split(":")[1]
    ours = {"Cookie": served.cookie}
    for host in (f"evil.example:{port}", "evil.example", "127.0.0.1", f"127.0.0.1:{int(port) + 1}", f"127.0.0.1.evil.example:{port}", f"0.0.0.0:{port}", ""):
        assert served.ask("GET", "/", ours | {"Host": host})[0] in (400, 403), host
        assert refused(served, kernel, served.headers | {"Host": host}) in (400, 403), host
    for origin in ("http://evil.example", "null", f"https://{served.host}", f"http://{served.host}.evil.example", "http://127.0.0.1", "file://", f"http://localhost:{int(port) + 1}"):
        assert served.ask("GET", "/", ours | {"Origin": origin})[0] == 403 and {refused(served, kernel, ours | {"Origin": origin}, p) for p in PROTOCOLS} == {403}, origin
    assert served.ask("GET", "/voila/static/voila.js", ours | {"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_only_loopback(served: Served) -> None:
    import psutil
    listening = {c.laddr.ip for c in psutil.Process(served.process.pid).net_connections() if c.status == psutil.CONN_LISTEN}
    kernels = [c for child in psutil.Process(served.process.pid).children(recursive=True) for c in child.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == {"127.0.0.1"} and not kernels, "kernels listen on sockets in a private folder only"


# ---- what a viewer reaches -----------------------------------------------------------------------------------------

def test_what_is_not_there(served: Served, kernel: str, root: Path) -> None:
    paths = ["/api/kernels", "/api/kernelspecs", "/api/sessions", "/api/terminals", "/api/contents", "/api/contents/settings.ini", "/api/contents/nbs/dashboards/monitor.ipynb", "/api/config/notebook", "/api/status",
             "/api/me", "/api/shutdown", "/api/nbconvert", "/api/spec.yaml", "/files/settings.ini", "/files/config/secrets.env", "/nbconvert/html/nbs/dashboards/monitor.ipynb", "/terminals/1", "/terminals/websocket/1",
             "/view/settings.ini", "/edit/settings.ini", "/tree", "/lab", "/login", "/logout", "/metrics", "/voila/render/nbs/experiments/backtest.ipynb", "/voila/render/../experiments/backtest.ipynb",
             "/voila/render/monitor.ipynb", "/nbs/experiments/backtest.ipynb", "/monitor.ipynb", "/voila/files/monitor.ipynb", "/voila/files/settings.ini", "/voila/files/../../settings.ini", "/voila/tree", "/voila/tree/",
             "/voila/api/contents", "/voila/api/contents/", f"/voila/query/{kernel}", f"/voila/execution/{kernel}", f"/voila/api/shutdown/{kernel}", f"/api/kernels/{kernel}/restart", f"/api/kernels/{kernel}/interrupt",
             f"/api/kernels/{'0' * 8}-0000-0000-0000-{'0' * 12}", "/?template=classic", "/?theme=dark", f"/?kernel={kernel}", "/static/style/style.min.css", "/custom/custom.css", "/favicon.ico", "//evil.example/", "/%2e%2e/settings.ini"]
    for path in paths:
        status, text, _ = served.ask("GET", path)
        assert status in (400, 403, 404, 405) and "[lab]" not in text and "s3cret" not in text and "Traceback" not in text and str(root) not in text, (path, status, text[:200])


def test_no_way_up(served: Served, root: Path) -> None:
    up = ["..", "%2e%2e", "..%2f", "%2e%2e%2f", "....//", "..%5c", "%252e%252e", "..;"]
    files = [str(root/"settings.ini").lstrip("/"), "etc/passwd", "settings.ini", "nbs/dashboards/monitor.ipynb"]
    for base in ("/voila/static/", "/voila/templates/lab/static/", "/voila/templates/base/static/", "/voila/labextensions/anywidget/", "/voila/labextensions/@jupyter-widgets/jupyterlab-manager/", "/voila/api/themes/", "/"):
        for step in up:
            for file in files:
                status, text, _ = served.ask("GET", f"{base}{'/'.join([step] * 12)}/{file}")
                assert status != 200 or "[lab]" not in text and "root:" not in text and "cells" not in text, (base, step, file)
        for file in files: assert served.ask("GET", f"{base}/{file}")[0] != 200, (base, file)
    for path in ("/voila/templates/classic/static/main.js", "/voila/templates/lab/conf.json", "/voila/templates/../lab/index.html.j2", "/voila/labextensions/@jupyter/collaboration-extension/package.json", "/voila/static/%00"):
        assert served.ask("GET", path)[0] in (400, 403, 404), path


def test_nothing_but_reading(served: Served, kernel: str) -> None:
    body = json.dumps({"name": "python3", "path": "x", "type": "notebook", "content": "x", "action": "restart"})
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "MKCOL"):
        for path in ("/", "/api/kernels", f"/api/kernels/{kernel}", f"/api/kernels/{kernel}/restart", f"/api/kernels/{kernel}/interrupt", "/api/sessions", "/api/contents/x.txt", f"/voila/api/shutdown/{kernel}",
                     "/api/terminals", "/api/shutdown", "/login", "/voila/static/voila.js", f"/api/kernels/{kernel}/channels"):
            status, text, _ = served.ask(method, path, served.headers | {"Content-Type": "application/json", "X-XSRFToken": "x"}, body)
            assert status in (400, 403, 404, 405) and "Traceback" not in text, (method, path, status)
    assert alive(served, kernel)


def test_a_viewer_has_no_part_in_anothers_kernel(served: Served, kernel: str) -> None:
    _, _, headers = served.ask("GET", f"/?token={served.token}", {})
    other = {"Cookie": headers["Set-Cookie"].split(";")[0], "Origin": f"http://{served.host}"}
    assert served.ask("GET", f"/api/kernels/{kernel}", other)[0] == 404 and refused(served, kernel, other) == 404
    status, text, _ = served.ask("GET", f"/api/kernels/{kernel}")
    assert status == 200 and set(json.loads(text)) == {"id", "name", "last_activity", "execution_state", "connections"}


# ---- what a viewer can say to a kernel -----------------------------------------------------------------------------

def test_the_older_protocol_is_not_spoken(served: Served, kernel: str) -> None:
    "With it, a widget that has binary data would keep Voila counting for ever."
    assert refused(served, kernel, served.headers, None) == 400 and alive(served, kernel)


def test_words_change_nothing(served: Served, kernel: str, root: Path) -> None:
    before = {name: {k: v for k, v in state.items() if k not in ("text", "html")} for name, state in models(served, kernel).items()}
    attack(served, kernel, V1, CHANNELS, root/"marker-execute")
    for channel in CHANNELS: talk(served, kernel, V1, [frame(V1, channel, "shutdown_request", {"restart": restart}) for restart in (True, False)], 0.5)
    talk(served, kernel, V1, [frame(V1, "shell", "comm_close", {"comm_id": name, "data": {}}) for name in before], 0.5)
    assert effects(served, kernel, root) == {"box": "untouched", "markers": []}
    after = models(served, kernel)
    assert {name: {k: v for k, v in state.items() if k not in ("text", "html")} for name, state in after.items()} == before
    assert not any("owned" in json.dumps(state, default=str) for state in after.values()) and alive(served, kernel)


def test_the_page_goes_on(served: Served, kernel: str) -> None:
    def clock(): return next(state["text"] for state in models(served, kernel).values() if str(state.get("text", "")).startswith("as of"))
    first, until = clock(), time.monotonic() + 20
    while clock() <= first and time.monotonic() < until: time.sleep(0.3)
    assert first < clock(), "the monitor looks again"


def test_odd_frames_and_floods(served: Served, kernel: str) -> None:
    odd = [b"", b"\x00", b"\xff" * 100, (6).to_bytes(8, "little") + b"\x00" * 200, (2**62).to_bytes(8, "little") * 8, os.urandom(5000)]
    talk(served, kernel, V1, odd, 0.5)
    talk(served, kernel, V1, ["", "{", "null", "[[[[", '{"channel": "shell", "header": null}', '{"channel": {"a": 1}, "header": {"msg_type": ["x"]}}', "\x00" * 1000], 0.5)
    talk(served, kernel, V1, [b"x" * 200_000], 0.5)
    # Each with a name of its own: a kernel takes no message twice, and would answer one of them.
    answers = talk(served, kernel, V1, [frame(V1, "shell", "kernel_info_request", {}, number) for number in range(3000)], 20)
    assert len([one for one in answers if one["kind"] == "kernel_info_reply"]) < 1500
    assert alive(served, kernel)


def test_slow_ones_do_not_hold_the_others_up(served: Served, kernel: str) -> None:
    host, port = served.host.split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(40)]
    try:
        for line in slow: line.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert served.ask("GET", "/voila/static/voila.js")[0] == 200 and alive(served, kernel)
        huge = socket.create_connection((host, int(port)))
        slow.append(huge)
        huge.settimeout(10)
        try:
            huge.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 200_000)
            huge.recv(1000)
        except OSError: pass
        status = served.ask("POST", "/", served.headers | {"Content-Length": str(10**12)}, "x")[0]
        assert status in (400, 405, 413)
    except (ConnectionError, OSError): pass
    finally:
        for line in slow: line.close()
    assert served.ask("GET", "/voila/static/voila.js")[0] == 200


def test_pages_are_few(served: Served) -> None:
    import psutil
    from sagelab.ui.server import MOST_KERNELS
    for _ in range(MOST_KERNELS + 3): assert served.ask("GET", "/")[0] in (200, 503)
    kernels = [child for child in psutil.Process(served.process.pid).children() if "sagelab.ui.readonly" in " ".join(child.cmdline())]
    assert len(kernels) <= MOST_KERNELS + 1


# ---- the second line -----------------------------------------------------------------------------------------------

def test_a_kernel_cannot_change_the_lab(tmp_path: Path, root: Path) -> None:
    "A notebook that writes to the lab by itself: nobody says a word to it, and it cannot."
    lab = tmp_path/"lab"
    shutil.copytree(root, lab, symlinks=True)
    code = f"""
from pathlib import Path
import os, subprocess, ipywidgets
root, found = Path({str(lab)!r}), []
def attempt(name, work):
    try: work()
    except BaseException as error: found.append(f"{{name}}: {{type(error).__name__}}")
    else: found.append(f"{{name}}: DONE")
from sagelab.core.ledger import open_ledger
from sagelab.core.stop import open_latch
attempt("write", lambda: (root/"marker").write_text("x"))
attempt("ledger", lambda: open_ledger(root).append("note", {{}}))
attempt("latch", lambda: open_latch(root).clear("no"))
attempt("secrets", lambda: (root/"config"/"secrets.env").read_text())
attempt("program", lambda: subprocess.run(["touch", str(root/"marker")], check=True))
attempt("signal", lambda: os.kill(os.getppid(), 0))
import ctypes
attempt("libc", lambda: ctypes.CDLL(None).creat(str(root/"marker").encode(), 0o600) >= 0 or 1 / 0)
attempt("read", lambda: (root/"settings.ini").read_text())
environment = [name for name in os.environ if "TOKEN" in name or "KEY" in name]
ipywidgets.Text(" ".join(sorted(found)) + f" {{environment}} {{os.environ.get('SAGELAB_READ_ONLY')}}")
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(book, lab/"nbs"/"dashboards"/"monitor.ipynb")
    before = content(lab)
    os.environ["BROKER_API_KEY"] = "k"
    try:
        with dashboard(lab) as served:
            state, = (s for s in models(served, served.page()).values() if s.get("_model_name") == "TextModel")
    finally: del os.environ["BROKER_API_KEY"]
    assert content(lab) == before
    from sagelab.ui.readonly import landlock_version
    assert state["value"].count("DONE") == (1 if landlock_version() else 2) and "read: DONE" in state["value"] and state["value"].endswith("[] 1"), state["value"]


# ---- these tests can fail ------------------------------------------------------------------------------------------

def test_plain_voila_gives_way(tmp_path: Path) -> None:
    "The same attack on Voila as it comes: it needs no token, and widgets, lines and kernel are at its mercy."
    with socket.create_server(("127.0.0.1", 0)) as probe: port = probe.getsockname()[1]
    with plain_voila(weak_notebook(tmp_path/"weak.ipynb", tmp_path, monitor=False), port) as served:
        kernel = served.page()
        attack(served, kernel, V1, ["shell"], tmp_path/"marker-execute")
        found = effects(served, kernel, tmp_path)
        assert set(found["markers"]) >= {"marker-click", "marker-comm"} and "owned" in found["box"]
        assert models(served, kernel)
        talk(served, kernel, V1, [frame(V1, "control", "shutdown_request", {"restart": False})], 1.0)
        until = time.monotonic() + 20
        while (left := widgets_left(served, kernel)) and time.monotonic() < until: time.sleep(0.2)
        assert not left, "what a viewer shut down may begin anew, and the page of everybody else is dead"
