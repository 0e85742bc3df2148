"Warm kernels on real parts: forks, signals, owners that are killed, servers that are killed, and every program that starts kernels."
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import require

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")


def connection() -> dict:
    "What a kernel is asked to bind: ports of its own choice."
    return {"transport": "tcp", "ip": "127.0.0.1", "key": os.urandom(16).hex(), "signature_scheme": "hmac-sha256"} | {f"{name}_port": 0 for name in CHANNELS}


def until(condition: Callable[[], object], seconds: float = 20) -> object:
    "Wait for something to become true."
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    "A process that is there and no zombie."
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError: return False


@pytest.fixture(autouse=True)
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "A folder of sockets for this test alone, a short list of modules, and no server left behind."
    from sagelab.kernels.forkserver import retire_server, runtime_folder, server_names
    runtime = tmp_path/"runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path/"ipython"))
    monkeypatch.setenv("SAGELAB_KERNELS_PRELOAD", "numpy")
    monkeypatch.chdir(tmp_path)
    yield runtime_folder()
    if runtime_folder().exists(): runtime_folder().chmod(0o700)
    for name in server_names(): retire_server(name)


def status() -> dict:
    "What the one server says of itself."
    from sagelab.kernels.forkserver import server_names, server_status
    return next(found for name in server_names() if (found := server_status(name)))


def settled() -> dict:
    "The server, once it has imported everything."
    return until(lambda: (found := status()) and not found["importing"] and found, 60)


class Session:
    "A kernel and a client that waits for answers."
    def __init__(self, **options):
        from jupyter_client import BlockingKernelClient
        from sagelab.kernels.forkserver import start_kernel
        self.kernel = start_kernel(connection(), **options)
        self.client = BlockingKernelClient()
        self.client.load_connection_info(self.kernel.connection_info)
        self.client.start_channels(hb=False)
        self.client.wait_for_ready(timeout=30)

    def __enter__(self) -> "Session": return self

    def __exit__(self, *_) -> None:
        self.client.stop_channels()
        self.kernel.kill()
        self.kernel.wait(10)
        self.kernel.close()

    def run(self, code: str, timeout: float = 30) -> str:
        "Execute a cell; what it printed, or the name of its error."
        said: list[str] = []
        def hear(message: dict) -> None:
            if message["msg_type"] == "stream": said.append(message["content"]["text"])
        reply = self.client.execute_interactive(code, output_hook=hear, timeout=timeout)["content"]
        return "".join(said).strip() if reply["status"] == "ok" else reply["ename"]


# What a kernel is

def test_two_kernels_differ_in_what_is_random_and_agree_on_hashes() -> None:
    code = "import random, numpy, uuid\nprint(random.random(), numpy.random.rand(), uuid.uuid4(), sep='\\n')"
    hashes = "import sys; print(hash('sage'), sys.flags.hash_randomization)"
    with Session() as one, Session() as other:
        assert not set(one.run(code).split()) & set(other.run(code).split())
        assert one.run(hashes) == other.run(hashes) == subprocess.run([sys.executable, "-c", hashes], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True).stdout.strip()


def test_environment_folder_and_umask_are_those_of_the_request(tmp_path: Path) -> None:
    (tmp_path/"work").mkdir()
    with Session(cwd=tmp_path/"work", environment=dict(os.environ) | {"ONLY_HERE": "1"}) as session:
        assert session.run("import os; print(os.getcwd(), os.environ['ONLY_HERE'], os.getsid(0) == os.getpid())") == f"{tmp_path/'work'} 1 True"
    with Session() as session: assert session.run("import os; print(os.environ.get('ONLY_HERE'))") == "None"


def test_a_forked_kernel_can_compute() -> None:
    "Linear algebra, Arrow and numba bring their own threads; none may hang after a fork from a process that has loaded them."
    environment = dict(os.environ) | {"SAGELAB_KERNELS_PRELOAD": "numpy, pandas, pyarrow.parquet, numba"}
    with Session(environment=environment): settled()
    with Session(environment=environment) as session:
        assert session.run("import sys; print('numba' in sys.modules, 'pyarrow.parquet' in sys.modules)") == "True True"
        assert session.run("import numpy; a = numpy.random.rand(600, 600); print((a @ numpy.linalg.inv(a)).trace().round())", 60) == "600.0"
        assert session.run("import pyarrow, pyarrow.compute; print(pyarrow.compute.sum(pyarrow.chunked_array([list(range(1000))] * 50)))", 60) == "24975000"
        parallel = "import numba\n@numba.njit(parallel=True)\ndef f(n):\n    s = 0\n    for i in numba.prange(n): s += i\n    return s\nprint(f(1000))"
        assert session.run(parallel, 120) == "499500"


def test_what_libraries_decide_while_they_are_imported() -> None:
    environment = dict(os.environ) | {"SAGELAB_KERNELS_PRELOAD": "plotly.io, ipywidgets"}
    with Session(environment=environment): settled()
    with Session(environment=environment) as session:
        assert session.run("import sys; print('plotly.io' in sys.modules, 'ipywidgets' in sys.modules)") == "True True"
        assert "plotly_mimetype" in session.run("import plotly.io; print(plotly.io.renderers.default)")
        assert session.run("import comm, ipywidgets; print('jupyter.widget' in comm.get_comm_manager().targets)") == "True"


def test_memory_cap() -> None:
    with Session(memory_mb=300) as session:
        assert session.run("x = bytearray(100 * 2**20); print('fits')") == "fits"
        assert session.run("y = bytearray(400 * 2**20)") == "MemoryError"
        assert session.run("print('alive')") == "alive"


def test_input_and_interrupt() -> None:
    with Session() as session:
        session.client.execute("print('got', input('name? '))", allow_stdin=True)
        assert session.client.get_stdin_msg(timeout=20)["content"]["prompt"] == "name? "
        session.client.input("sage")
        while (message := session.client.get_iopub_msg(timeout=20))["msg_type"] != "stream": pass
        assert message["content"]["text"] == "got sage\n"
        # Else what comes right after an error is dropped with the rest of its queue.
        asked = session.client.execute("while True: pass", stop_on_error=False)
        while session.client.get_iopub_msg(timeout=20)["msg_type"] != "execute_input": pass
        time.sleep(0.2)
        session.kernel.interrupt()
        while (reply := session.client.get_shell_msg(timeout=20))["parent_header"]["msg_id"] != asked: pass
        assert reply["content"]["ename"] == "KeyboardInterrupt" and session.run("print(1)") == "1"


@pytest.mark.parametrize("arguments", [["--HistoryManager.hist_file=:memory:"], ["--InteractiveShell.ast_node_interactivity=all"]])
def test_arguments_of_the_command_line_hold(arguments: list[str]) -> None:
    with Session(arguments=arguments) as session:
        assert session.run("c = get_ipython(); print(c.history_manager.hist_file, c.ast_node_interactivity)").split()[0 if "hist_file" in arguments[0] else -1] == arguments[0].split("=")[1]


# How it ends

def test_atexit_runs_at_shutdown_and_not_at_a_kill(tmp_path: Path) -> None:
    code = "import atexit; atexit.register(lambda: open('{0}', 'w').write('x')); f = open('{0}.open', 'w'); f.write('unflushed'); print(1)"
    with Session() as session:
        session.run(code.format(tmp_path/"shutdown"))
        session.client.shutdown()
        assert session.kernel.wait(20) == 0
    assert (tmp_path/"shutdown").read_text() == "x" and (tmp_path/"shutdown.open").read_text() == "unflushed"
    with Session() as session:
        session.run(code.format(tmp_path/"kill"))
        session.kernel.kill()
        assert session.kernel.wait(20) == -signal.SIGKILL
    assert not (tmp_path/"kill").exists()


@pytest.mark.parametrize(("code", "ends"), [("import os; os._exit(7)", 7), ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV), ("import os; os.abort()", -signal.SIGABRT)])
def test_a_cell_that_ends_the_process(code: str, ends: int) -> None:
    with Session() as session:
        session.client.execute(code)
        assert session.kernel.wait(30) == ends
    with Session() as session: assert session.run("print('next')") == "next"


def test_exit_and_threads_without_end() -> None:
    with Session() as session:
        assert session.run("import sys; sys.exit(3)") == "SystemExit" and session.run("print(1)") == "1"
        session.run("import threading, time\nfor n in range(100): threading.Thread(target=lambda: time.sleep(3600)).start()")
        session.kernel.kill()
        assert session.kernel.wait(20) == -signal.SIGKILL


OWNER = """
import os, sys, time
sys.path.insert(0, {tests!r})
from test_kernels import Session
session = Session()
# A child in its own session, one that ignores signals, and a cell that lets no other thread run.
print(session.kernel.pid, session.run("import subprocess; a = subprocess.Popen(['sleep', '600'], start_new_session=True); "
      "b = subprocess.Popen(['sh', '-c', 'trap \\"\\" TERM INT HUP; sleep 600; sleep 600']); print(a.pid, b.pid)"), flush=True)
session.client.execute("import ctypes; ctypes.PyDLL(None).sleep(600)")
time.sleep(600)
"""


@pytest.mark.parametrize("server_too", [False, True])
def test_nothing_outlives_an_owner_that_was_killed(repository: Path, server_too: bool) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER.format(tests=str(repository/"tests"))], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 3 and all(map(alive, pids))
    time.sleep(0.3)
    if server_too: os.kill(status()["pid"], signal.SIGKILL)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: not any(map(alive, pids)), 10)


# The server

def test_kernels_outlive_their_server_and_the_next_start_works() -> None:
    with Session() as session:
        settled()
        os.kill(status()["pid"], signal.SIGKILL)
        until(lambda: not alive(session.kernel.pid) or session.run("print(1)") == "1")
        with Session() as other: assert other.run("print(2)") == "2"
        assert session.run("print(3)") == "3"
        session.client.shutdown()
        assert session.kernel.wait(20) is not None


def test_a_server_killed_between_request_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    "It is stopped, so that the request lies unread, and then killed: the next one answers, or the reason is told."
    from sagelab.kernels.forkserver import start_kernel
    with Session(): pid = settled()["pid"]
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(start_kernel, connection())
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        with asked.result(60) as kernel: assert alive(kernel.pid) and status()["pid"] != pid


def test_a_server_that_cannot_start_is_a_reason() -> None:
    from sagelab.kernels.forkserver import KernelUnavailable, start_kernel
    with pytest.raises(KernelUnavailable, match="Its log is"): start_kernel(connection(), interpreter=("/bin/false",))
    with pytest.raises(KernelUnavailable, match="cannot be started"): start_kernel(connection(), interpreter=("/no/python",))


def test_a_folder_that_is_not_there_is_a_reason_and_leaves_nothing(tmp_path: Path) -> None:
    from sagelab.kernels.forkserver import KernelUnavailable, start_kernel
    with pytest.raises(KernelUnavailable, match="FileNotFoundError"): start_kernel(connection(), cwd=tmp_path/"nowhere")
    until(lambda: status()["kernels_alive_here"] == 0)


def test_a_folder_of_somebody_else_is_refused(warm: Path) -> None:
    from sagelab.kernels.forkserver import KernelUnavailable, start_kernel
    warm.mkdir(mode=0o777)
    warm.chmod(0o777)
    with pytest.raises(KernelUnavailable, match="closed to others"): start_kernel(connection())
    warm.chmod(0o700)
    if os.getuid() == 0:
        os.chown(warm, 12345, 12345)
        with pytest.raises(KernelUnavailable, match="belongs to user 12345"): start_kernel(connection())
        os.chown(warm, 0, 0)


def test_a_changed_source_brings_a_new_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path/"lib").mkdir()
    (tmp_path/"lib"/"my_tools.py").write_text("answer = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path/"lib"))
    monkeypatch.setenv("SAGELAB_KERNELS_PRELOAD", "my_tools")
    with Session(): before = settled()
    with Session() as session: assert session.run("import my_tools; print(my_tools.answer)") == "1"
    (tmp_path/"lib"/"my_tools.py").write_text("answer = 22\n")
    with Session() as session: assert session.run("import my_tools; print(my_tools.answer)") == "22"
    assert status()["pid"] != before["pid"]
    until(lambda: not alive(before["pid"]))


def test_modules_that_are_missing_crash_or_exit_harm_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path/"lib").mkdir()
    (tmp_path/"lib"/"crashes.py").write_text("import os; os.abort()\n")
    (tmp_path/"lib"/"leaves.py").write_text("raise SystemExit\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path/"lib"))
    monkeypatch.setenv("SAGELAB_KERNELS_PRELOAD", "no_such_module, crashes, leaves, numpy")
    with Session(): found = {one["module"]: one["error"] for one in settled()["imports"]}
    assert "ModuleNotFoundError" in found["no_such_module"] and "ended with -6" in found["crashes"] and "SystemExit" in found["leaves"] and found["numpy"] == ""
    with Session() as session: assert session.run("import sys; print('numpy' in sys.modules)") == "True"


def test_an_idle_server_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGELAB_KERNELS_IDLE_SECONDS", "1")
    with Session() as session:
        pid = settled()["pid"]
        until(lambda: not alive(pid), 30)
        assert session.run("print(1)") == "1"
    with Session() as session: assert session.run("print(2)") == "2"


def test_a_server_whose_folder_is_removed_goes(warm: Path) -> None:
    with Session() as session:
        pid = settled()["pid"]
        shutil.rmtree(warm)
        assert session.run("print(1)") == "1"
    until(lambda: not alive(pid))


def test_twenty_starts_at_once_share_one_server() -> None:
    from sagelab.kernels.forkserver import server_names, start_kernel
    with ThreadPoolExecutor(20) as pool: kernels = list(pool.map(lambda _: start_kernel(connection(), timeout=120), range(20)))
    assert len({kernel.pid for kernel in kernels}) == 20 and len(server_names()) == 1 and status()["kernels_forked"] == 20
    for kernel in kernels:
        kernel.kill()
        assert kernel.wait(20) == -signal.SIGKILL
        kernel.close()


def test_many_starts_leave_nothing_behind() -> None:
    from sagelab.kernels.forkserver import start_kernel
    def handles(pid: object) -> int:
        # A connection that was just answered is closed a moment later.
        return min(time.sleep(0.01) or len(os.listdir(f"/proc/{pid}/fd")) for _ in range(20))
    with start_kernel(connection()): server = settled()["pid"]
    until(lambda: status()["kernels_alive_here"] == 0 and status()["spare"])
    before = handles("self"), handles(server)
    for _ in range(200):
        with start_kernel(connection()) as kernel: pass
        assert not alive(kernel.pid)
    until(lambda: status()["kernels_alive_here"] == 0 and status()["spare"])
    assert (handles("self"), handles(server)) == before
    assert len(_children(server)) == 1, "the spare"


@pytest.mark.parametrize("end", ["retired", "killed"])
def test_a_spare_becomes_a_kernel_and_ends_with_its_server(end: str, tmp_path: Path) -> None:
    from sagelab.kernels.forkserver import retire_server
    with Session(): server = settled()
    until(lambda: status()["spare"])
    spare, = _children(server["pid"])
    code = "import os, random, numpy; print(os.getpid(), os.getcwd(), os.environ['ONLY_HERE'], random.random(), numpy.random.rand())"
    environment = dict(os.environ) | {"ONLY_HERE": "1"}
    with Session(cwd=tmp_path, environment=environment) as first, Session(cwd=tmp_path, environment=environment) as second:
        said = [session.run(code).split() for session in (first, second)]
        assert said[0][0] == str(spare) and said[0][1:3] == said[1][1:3] == [str(tmp_path), "1"] and not set(said[0][3:]) & set(said[1][3:])
        until(lambda: status()["spare"])
        waiting, = set(_children(server["pid"])) - {int(pid) for pid, *_ in said}
        if end == "retired": retire_server(server["name"])
        else: os.kill(server["pid"], signal.SIGKILL)
        until(lambda: not alive(waiting))
        assert first.run("6 * 7; print(42)") == second.run("print(42)") == "42", "kernels live on"


def test_a_spare_that_was_killed_is_replaced() -> None:
    with Session(): server = settled()
    until(lambda: status()["spare"])
    spare, = _children(server["pid"])
    os.kill(spare, signal.SIGSTOP)
    os.kill(spare, signal.SIGKILL)
    with Session() as session: assert session.run("print(42)") == "42"


def _children(pid: int) -> list[int]: return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _parent(entry) == pid]


def _parent(entry: str) -> int:
    with contextlib.suppress(OSError): return int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


# Through Jupyter

def manager(**options):
    from jupyter_client.manager import KernelManager
    return KernelManager(kernel_name="sagelab", **options)


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_start_restart_and_shutdown_through_jupyter(transport: str, tmp_path: Path) -> None:
    kernels = manager(transport=transport, **({"ip": str(tmp_path/"s")} if transport == "ipc" else {}))
    kernels.start_kernel(env=dict(os.environ) | {"GIVEN": "1"}, cwd=str(tmp_path))
    assert kernels.provisioner.cold_reason == ""
    client = kernels.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        before = kernels.provisioner.pid
        assert client.execute_interactive("import os; assert os.environ['GIVEN'] == '1'", timeout=20)["content"]["status"] == "ok"
        kernels.restart_kernel()
        client.wait_for_ready(timeout=30)
        assert kernels.provisioner.pid != before and not alive(before) and kernels.is_alive()
        assert client.execute_interactive("print(1)", timeout=20)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        pid = kernels.provisioner.pid
        kernels.shutdown_kernel()
    assert not alive(pid) and not kernels.is_alive()


@pytest.mark.parametrize(("change", "says"), [({"SAGELAB_KERNELS_WARM": "no"}, "warm = no"), ({"XDG_RUNTIME_DIR": "open"}, "closed to others")])
def test_the_plain_kernel_serves_where_the_warm_one_cannot(change: dict, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "XDG_RUNTIME_DIR" in change:
        (tmp_path/"open"/"sagelab").mkdir(parents=True)
        (tmp_path/"open"/"sagelab").chmod(0o777)
        change = {"XDG_RUNTIME_DIR": str(tmp_path/"open")}
    for name, value in change.items(): monkeypatch.setenv(name, value)
    kernels = manager()
    kernels.start_kernel()
    client = kernels.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        assert says in kernels.provisioner.cold_reason
        assert client.execute_interactive("1", timeout=20)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        kernels.shutdown_kernel(now=True)


def test_debugger() -> None:
    "A breakpoint in a cell is hit, and the variables there are seen: the whole way over the control channel."
    with Session() as session:
        client, sequence = session.client, iter(range(1, 100))
        def ask(command: str, **arguments: object) -> dict:
            message = client.session.msg("debug_request", {"type": "request", "seq": next(sequence), "command": command, "arguments": arguments})
            client.control_channel.send(message)
            while (reply := client.get_control_msg(timeout=30))["parent_header"]["msg_id"] != message["header"]["msg_id"]: pass
            return reply["content"]
        assert ask("initialize", clientID="test", adapterID="", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)["success"]
        assert ask("attach")["success"]
        code = "x = 41\ny = x + 1\nprint(y)"
        path = ask("dumpCell", code=code)["body"]["sourcePath"]
        assert ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 3}], sourceModified=False)["body"]["breakpoints"][0]["verified"]
        assert ask("configurationDone")["success"]
        client.execute(code)
        while (event := client.get_iopub_msg(timeout=30))["msg_type"] != "debug_event" or event["content"]["event"] != "stopped": pass
        thread = event["content"]["body"]["threadId"]
        frame = ask("stackTrace", threadId=thread)["body"]["stackFrames"][0]
        assert frame["line"] == 3
        variables = ask("variables", variablesReference=ask("scopes", frameId=frame["id"])["body"]["scopes"][0]["variablesReference"])["body"]["variables"]
        assert ("y", "42") in [(one["name"], one["value"]) for one in variables]
        assert ask("continue", threadId=thread)["success"]
        while (message := client.get_iopub_msg(timeout=30))["msg_type"] != "stream": pass
        assert message["content"]["text"] == "42\n"


def notebook(path: Path, *cells: str) -> Path:
    import nbformat
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
                                        metadata={"kernelspec": {"name": "sagelab", "display_name": "SageLab", "language": "python"}})
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


def test_papermill_and_nbclient(tmp_path: Path) -> None:
    import nbformat
    import papermill
    from nbclient import NotebookClient
    path = notebook(tmp_path/"in.ipynb", "x = 1", "print(x + 1)")
    papermill.execute_notebook(str(path), str(tmp_path/"out.ipynb"), parameters={"x": 5}, kernel_name="sagelab", progress_bar=False)
    assert nbformat.read(tmp_path/"out.ipynb", 4).cells[-1].outputs[0].text == "6\n"
    made = NotebookClient(nbformat.read(path, 4), kernel_name="sagelab").execute()
    assert made.cells[-1].outputs[0].text == "2\n"
    assert status()["kernels_forked"] == 2


def test_jupyter_console() -> None:
    require(Path(sys.executable).with_name("jupyter-console").is_file(), "no jupyter-console: pip install jupyter-console")
    said = subprocess.run([sys.executable, "-m", "jupyter_console", "--kernel", "sagelab", "--simple-prompt"], input="print(6 * 7)\nexit\n", text=True, capture_output=True, timeout=90)
    assert "42" in said.stdout, said.stderr
    assert status()["kernels_forked"] == 1


def test_jupyter_server(tmp_path: Path) -> None:
    "A kernel started over REST, a cell over the websocket, the server killed: the kernel goes with it."
    import socket

    import httpx
    from tornado.httpclient import HTTPRequest
    from tornado.ioloop import IOLoop
    from tornado.websocket import websocket_connect
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path/"server.log", "w")
    server = subprocess.Popen([sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=t", f"--ServerApp.root_dir={tmp_path}",
                               "--ServerApp.port_retries=0"], stdout=log, stderr=log)
    try:
        base, headers = f"http://127.0.0.1:{port}", {"Authorization": "token t"}
        def up() -> bool:
            with contextlib.suppress(httpx.HTTPError): return httpx.get(f"{base}/api", headers=headers).status_code == 200
            return False
        until(up, 60)
        kernel = httpx.post(f"{base}/api/kernels", headers=headers, json={"name": "sagelab"}, timeout=60).json()["id"]
        async def executed() -> str:
            channel = await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels", headers=headers))
            header = {"msg_id": "m", "msg_type": "execute_request", "session": "s", "username": "u", "version": "5.3", "date": "2020-01-01T00:00:00Z"}
            await channel.write_message(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [],
                                                    "content": {"code": "import os; print(os.getpid())", "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}}))
            while (message := json.loads(await channel.read_message()))["msg_type"] != "stream": pass
            return message["content"]["text"]
        pid = int(IOLoop(make_current=False).run_sync(executed, timeout=60))
        assert alive(pid) and status()["kernels_forked"] == 1
    finally:
        server.kill()
        server.wait()
        log.close()
    until(lambda: not alive(pid), 10)


# The command line

def sagelab(*words: str) -> subprocess.CompletedProcess:
    code = "import sys, typer; from sagelab.cli.kernels import kernel_verbs; kernel_verbs()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


def test_doctor_finds_a_warm_kernel_and_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(sagelab("doctor", "--json").stdout)
    assert found["well"] and found["second"]["replied_ms"] > 0 and found["servers"][0]["mine"] and found["servers"][0]["kernels_forked"] == 2
    assert json.loads(sagelab("stop", "--json").stdout)["stopped"] and json.loads(sagelab("stop", "--json").stdout)["stopped"] == []
    monkeypatch.setenv("SAGELAB_KERNELS_WARM", "no")
    answer = sagelab("doctor")
    assert answer.returncode == 1 and "warm = no" in answer.stdout


def test_list_and_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sagelab" in [row["name"] for row in json.loads(sagelab("list", "--json").stdout)]
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path/"data"))
    assert sagelab("install").returncode == 0
    spec = json.loads((tmp_path/"data"/"kernels"/"sagelab"/"kernel.json").read_text())
    assert spec["argv"][0] == sys.executable and (tmp_path/"data"/"kernels"/"sagelab"/"logo-svg.svg").is_file()
