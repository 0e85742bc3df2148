"""The papermill engine `sagelab`: the notebooks of papermill's own engine, and an end to everything that never ends."""
import asyncio, json, os, re, signal, subprocess, sys, threading, time
from pathlib import Path
import nbformat
import papermill
import psutil
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from sagelab.core.errors import SettingsError, UnknownName, UsageError
from sagelab.kernels.client import private_folder, runtime_folder

PYTHON = {"name": "python3", "display_name": "python3", "language": "python"}
WARM = {"name": "sagelab", "display_name": "SageLab", "language": "python"}


@pytest.fixture(autouse=True)
def own_runtime(tmp_path_factory, monkeypatch):
    "Fork servers and sockets of the tests are apart from those of the person who runs them."
    folder = tmp_path_factory.getbasetemp() / "runtime"
    folder.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("SAGELAB_KERNELS_IDLE_SECONDS", "60")
    monkeypatch.setenv("SAGELAB_KERNELS_PRELOAD", "")


def notebook(path: Path, *cells, kernel: dict = PYTHON, parameters: str | None = None) -> Path:
    "Write a notebook; a cell is its source, or source and tags."
    new = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    if parameters is not None: cells = ((parameters, ["parameters"]), *cells)
    for cell in cells:
        source, tags = (cell, []) if isinstance(cell, str) else cell
        made = nbformat.v4.new_markdown_cell(source[1:]) if source.startswith("#!") else nbformat.v4.new_code_cell(source)
        new.cells.append(made)
        if tags: made.metadata["tags"] = tags
    nbformat.write(new, path)
    return path


def execute(path: Path, output: Path, engine: str | None = "sagelab", **options):
    options = {"progress_bar": False} | options
    if engine: return papermill.execute_notebook(str(path), str(output), engine_name=engine, **options)
    # Now and then a plain kernel and papermill's own engine wait for each other for ever; that is not ours to test.
    for last in (False, True):
        try: return papermill.execute_notebook(str(path), str(output), **{"execution_timeout": 60} | options)
        except CellTimeoutError:
            if last: raise


def outputs(nb) -> list[list[str]]:
    "What each code cell left, as text."
    def text(o): return o.get("text") or o.get("ename") or o.data.get("text/plain", "")
    return [[text(o) for o in cell.outputs] for cell in nb.cells if cell.cell_type == "code"]


def kernels() -> set[int]:
    "Kernel processes that this process or a fork server of the tests has started and that run."
    found = set()
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(runtime_folder()) in words and process.info["status"] != psutil.STATUS_ZOMBIE: found.add(process.pid)
    return found


# What differs between any two runs: moments, durations, process-wide counters of names, memory addresses.
VARYING = {"start_time", "end_time", "duration", "iopub.status.busy", "iopub.status.idle", "iopub.execute_input", "shell.execute_reply"}


def comparable(path: Path) -> dict:
    "An executed notebook without what differs between any two runs: moments, random names, process numbers."
    text = re.sub(r"[0-9a-f]{32}|0x[0-9a-f]{8,}|/tmp/ipykernel_\d+/\d+\.py|[0-9a-f]{8}-[0-9a-f-]{8,}(_\d+_\d+)?", "<name>", re.sub(r'"id": "[0-9a-f]{8}"', '"id": "<name>"', path.read_text()))

    def pairs(found):  # names of widgets were made the same: their states are put in order
        keys = [key for key, _ in found]
        if len(set(keys)) < len(keys) or keys == ["<name>"]: return sorted((value for _, value in found), key=json.dumps)
        return {key: "moment" if key in VARYING else value for key, value in found}
    result = json.loads(text, object_pairs_hook=pairs)
    result["metadata"]["papermill"].pop("output_path")
    return merged(result)


def merged(nb: dict) -> dict:
    "Texts of one stream in a row are one text: how they are cut into messages is chance, in papermill too."
    for cell in nb["cells"]:
        whole = []
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream": output["text"] = "".join(output["text"])
            if whole and output["output_type"] == "stream" and whole[-1].get("name") == output["name"]: whole[-1]["text"] += output["text"]
            else: whole.append(output)
        if "outputs" in cell: cell["outputs"] = whole
    return nb


DISPLAYS = ["from IPython.display import display, HTML, Image, clear_output\nshown = display(HTML('<b>1</b>'), display_id='one')",
            "shown.update(HTML('<b>2</b>')); display(HTML('again'), display_id='one')", "shown.update(HTML('<b>3</b>'))",
            "print('gone'); clear_output(); print('stays')", "for n in range(3): clear_output(wait=True); print(n)", "print('gone'); clear_output(wait=True)",
            "import base64; Image(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=='))"]
WIDGETS = ["import ipywidgets as w\nfrom IPython.display import display, clear_output\nslider = w.IntSlider(3, description='n'); slider", "out = w.Output(); display(out)",
           "with out: print('inside'); display(1)", "slider.value = 5", "with out: clear_output()\nwith out: print('last')", "w.Image(value=b'abc', format='png')"]
NOTEBOOKS = {
    "text": ["#!# A title", "1 + 1", "print('a'); print('b')\n'c'", "import sys; print('wrong', file=sys.stderr)", "", ("print('never')", ["skip-execution"]), "None"],
    "parameters": ["print(x, y)", "{'a': [x]}"],
    "displays": DISPLAYS,
    "widgets": WIDGETS,
    "allowed error": [("1 / 0", ["raises-exception"]), "print('after')"],
    "error": ["#! text", "a = 1", "def f(): raise ValueError('seen')\nf()", "print('never')"],
    "syntax": ["def (", "1"],
    "exit zero": ["import sys; sys.exit(0)", "2"],
    "exit three": ["import sys; sys.exit(3)", "2"],
    "stdin": ["input('name? ')", "1"],
    "magics": ["%%capture said\nprint(1)", "said.stdout", "%time 1", "!echo shell", "%%javascript\nalert(1)"],
    "history": ["5", "_ + 1", "In[1], Out[2]", "get_ipython().set_next_input('x')", "?len"],
    "long": ["for n in range(20_000): print(n)", "'x' * 100_000"],
    "description": ["#papermill_description=first\n1", "2"],
}


@pytest.mark.parametrize("kind", NOTEBOOKS)
def test_the_same_notebook_as_papermills_own_engine(tmp_path, kind):
    path = notebook(tmp_path / "in.ipynb", *NOTEBOOKS[kind], parameters="x = 1\ny = 'a'" if kind == "parameters" else None)
    given, errors = {"x": 5, "y": "b"} if kind == "parameters" else None, []
    for engine in (None, "sagelab"):
        try: execute(path, tmp_path / f"{engine}.ipynb", engine, parameters=given)
        except papermill.PapermillExecutionError as error: errors.append((error.cell_index, error.exec_count, error.source, error.ename, error.evalue))
    theirs, ours = (comparable(tmp_path / f"{engine}.ipynb") for engine in (None, "sagelab"))
    if kind == "magics":  # how long it took
        for nb in (theirs, ours): nb["cells"][2]["outputs"] = [o for o in nb["cells"][2]["outputs"] if o["output_type"] != "stream"]
    assert ours == theirs
    assert errors[:1] == errors[1:], errors


@pytest.mark.parametrize("options", [{"allow_errors": True}, {"allow_error_names": ["ZeroDivisionError"]}, {"force_raise_errors": True}, {"record_timing": False},
                                     {"coalesce_streams": True}, {"store_widget_state": False}, {"request_save_on_cell_execute": False}, {"report_mode": True},
                                     {"skip_cells_with_tag": "mine"}, {"shutdown_kernel": "immediate"}, {"extra_arguments": ["--InteractiveShell.ast_node_interactivity=all"]}])
def test_the_same_with_nbclients_options(tmp_path, options):
    cells = ["import sys\nprint('10%\\r20%'); print('e', file=sys.stderr); sys.stderr.flush(); print('b')", ("x; 1 / 0", ["raises-exception"]), ("2", ["mine"]), "x; 3"]
    path, errors = notebook(tmp_path / "in.ipynb", *cells, parameters="x = 1"), []
    for engine in (None, "sagelab"):
        try: execute(path, tmp_path / f"{engine}.ipynb", engine, parameters={"x": 4}, **options)
        except papermill.PapermillExecutionError as error: errors.append(error.cell_index)
    theirs, ours = (comparable(tmp_path / f"{engine}.ipynb") for engine in (None, "sagelab"))
    for nb in (theirs, ours):  # two streams come side by side, in any order
        for cell in nb["cells"]:
            if "outputs" in cell: cell["outputs"].sort(key=lambda o: (o["output_type"] == "stream", o.get("name", "")))
            merged(nb)
    assert ours == theirs and errors[:1] == errors[1:]


def test_log_files_and_hooks(tmp_path, caplog):
    seen = []
    hooks = {name: (lambda name: lambda **about: seen.append((name, about.get("cell_index"))))(name)
             for name in ("on_notebook_start", "on_cell_start", "on_cell_execute", "on_cell_complete", "on_cell_executed", "on_cell_error", "on_notebook_complete", "on_notebook_error")}
    async def started(**about): seen.append(("coroutine", about["cell_index"]))
    hooks["on_cell_start"] = started
    path = notebook(tmp_path / "in.ipynb", "import sys; print('to stdout'); print('to stderr', file=sys.stderr)", "'value'", "1 / 0")
    with open(tmp_path / "out.txt", "w") as out, open(tmp_path / "err.txt", "w") as err, caplog.at_level("INFO"), pytest.raises(papermill.PapermillExecutionError):
        execute(path, tmp_path / "out.ipynb", log_output=True, stdout_file=out, stderr_file=err, **hooks)
    assert (tmp_path / "out.txt").read_text() == "to stdout\n" and "to stderr\n" in (tmp_path / "err.txt").read_text()
    assert {"to stdout\n", "'value'", "Executing notebook with kernel: python3"} <= {record.message for record in caplog.records}
    assert seen == [("on_notebook_start", None), ("coroutine", 0), ("on_cell_execute", 0), ("on_cell_complete", 0), ("on_cell_executed", 0),
                    ("coroutine", 1), ("on_cell_execute", 1), ("on_cell_complete", 1), ("on_cell_executed", 1),
                    ("coroutine", 2), ("on_cell_execute", 2), ("on_cell_complete", 2), ("on_cell_executed", 2), ("on_cell_error", 2), ("on_notebook_error", None), ("on_notebook_complete", None)]


def test_the_command_line_of_papermill(tmp_path):
    path = notebook(tmp_path / "in.ipynb", "print(x + 1)", parameters="x = 0")
    done = subprocess.run([sys.executable, "-m", "papermill", str(path), str(tmp_path / "out.ipynb"), "-k", "sagelab", "--engine", "sagelab", "-p", "x", "41", "--progress-bar"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert outputs(nbformat.read(tmp_path / "out.ipynb", 4))[-1] == ["42\n"] and "3/3" in done.stderr
    dead = notebook(tmp_path / "dead.ipynb", "import os; os._exit(3)")
    done = subprocess.run([sys.executable, "-m", "papermill", str(dead), str(tmp_path / "out.ipynb"), "--engine", "sagelab"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 138 and "with exit code 3" in done.stderr


def test_autosave_within_a_long_cell(tmp_path):
    path, out = notebook(tmp_path / "in.ipynb", "import time\nfor n in range(30): print(n, flush=True); time.sleep(0.1)"), tmp_path / "out.ipynb"
    thread = threading.Thread(target=execute, args=(path, out), kwargs={"autosave_cell_every": 1})
    thread.start()
    seen, deadline = False, time.monotonic() + 60
    while thread.is_alive() and not seen and time.monotonic() < deadline:
        try: cell = nbformat.read(out, 4).cells[0]
        except Exception: continue
        seen = bool(cell.outputs) and cell.metadata.papermill.status == "running"
        time.sleep(0.01)
    thread.join()
    assert seen and outputs(nbformat.read(out, 4)) == [[*outputs(nbformat.read(out, 4))[0]]]


# ---- kernels


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
def test_no_ports_its_own_environment_and_nothing_on_the_terminal(tmp_path, kernel, capfd):
    started = []
    path = notebook(tmp_path / "in.ipynb", "import os, ipykernel\nprint(os.environ['GIVEN'], os.environ['PYTHONHASHSEED'], os.getpid())",
                    "from ipykernel.connect import get_connection_info\nprint(get_connection_info(unpack=True)['transport'])", "os.system('echo noise >&2'); os.write(2, b'more noise')", kernel=kernel)
    nb = execute(path, tmp_path / "out.ipynb", environment={"GIVEN": "yes", "PYTHONHASHSEED": "0"}, on_start=started.append)
    assert outputs(nb)[0] == [f"yes 0 {started[0]}\n"]
    assert outputs(nb)[1] == ["ipc\n"]
    assert "noise" not in "".join(capfd.readouterr())


def test_an_unknown_kernel_gets_the_nearest(tmp_path):
    path = notebook(tmp_path / "in.ipynb", "1")
    with pytest.raises(UnknownName, match="Did you mean 'python3'"): execute(path, tmp_path / "out.ipynb", kernel_name="pyton3")
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[0].outputs == []
    with pytest.raises(UsageError, match="Did you mean 'execution_timeout'"): execute(path, tmp_path / "out.ipynb", execution_timout=3)


def test_a_plain_kernel_where_none_can_be_forked(tmp_path, monkeypatch):
    folder = tmp_path / "open"
    (folder / "sagelab").mkdir(parents=True)
    (folder / "sagelab").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with pytest.warns(RuntimeWarning, match="A plain kernel is used"):
        nb = execute(notebook(tmp_path / "in.ipynb", "6 * 7", kernel=WARM), tmp_path / "out.ipynb")
    assert outputs(nb) == [["42"]]


def test_settings_say_whether_kernels_are_forked(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[lab]\n[kernels]\nwarm = no\ncell_timeout_seconds = 1.5\n")
    path = notebook(tmp_path / "in.ipynb", "import os; print(' '.join(open('/proc/self/cmdline').read().split('\\0')))", "import time; time.sleep(60)", kernel=WARM)
    with pytest.raises(CellTimeoutError, match=r"longer than 1.5 s, the limit for a cell"): execute(path, tmp_path / "out.ipynb", cwd=str(tmp_path))
    assert "ipykernel_launcher" in outputs(nbformat.read(tmp_path / "out.ipynb", 4))[0][0]
    (tmp_path / "settings.ini").write_text("[lab]\n[kernels]\nwarmth = no\n")
    with pytest.raises(SettingsError, match="warm"): execute(path, tmp_path / "out.ipynb", cwd=str(tmp_path))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_kernel_manager_of_ones_own(tmp_path, asynchronous):
    import jupyter_client
    path = notebook(tmp_path / "in.ipynb", "seen = globals().get('seen', 0) + 1; seen")
    made = jupyter_client.AsyncKernelManager if asynchronous else jupyter_client.KernelManager
    assert outputs(execute(path, tmp_path / "out.ipynb", kernel_manager_class=made)) == [["1"]]
    if asynchronous: return
    manager, client = jupyter_client.manager.start_new_kernel()
    try: assert [outputs(execute(path, tmp_path / "out.ipynb", km=manager)) for _ in range(2)] == [[["1"]], [["2"]]] and manager.is_alive()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# ---- what never ends, and what ends too soon


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
@pytest.mark.parametrize("source, message", [
    ("import os; os.kill(os.getpid(), 11)", r"Cell 2 of 3 \('import os; os.kill.*by SIGSEGV"), ("import os; os.kill(os.getpid(), 9)", "by SIGKILL.*memory"), ("import os; os._exit(7)", "with exit code 7")])
def test_a_dead_kernel_is_seen_at_once(tmp_path, kernel, source, message):
    path, begun = notebook(tmp_path / "in.ipynb", "print('before')", source, "3", kernel=kernel), time.monotonic()
    with pytest.raises(DeadKernelError, match=message): execute(path, tmp_path / "out.ipynb")
    nb = nbformat.read(tmp_path / "out.ipynb", 4)
    assert time.monotonic() - begun < 60 and outputs(nb)[:2] == [["before\n"], ["DeadKernelError"]]
    assert [cell.metadata.papermill.status for cell in nb.cells] == ["completed", "failed", "pending"] and nb.metadata.papermill.exception


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
def test_an_endless_loop(tmp_path, kernel):
    path = notebook(tmp_path / "in.ipynb", "print('before')\nwhile True: pass", "2", kernel=kernel)
    with pytest.raises(CellTimeoutError, match=r"Cell 1 of 2 .*longer than 1 s.*was interrupted.*Try: a larger execution_timeout"): execute(path, tmp_path / "out.ipynb", execution_timeout=1)
    assert outputs(nbformat.read(tmp_path / "out.ipynb", 4)) == [["before\n", "KeyboardInterrupt", "CellTimeoutError"], []]
    with pytest.raises(CellTimeoutError, match=r"Cell 1 of 2 .*the run had taken 2 s.*Try: a larger run_timeout"): execute(path, tmp_path / "out.ipynb", run_timeout=2)


def test_a_run_that_takes_too_long_between_cells(tmp_path):
    path = notebook(tmp_path / "in.ipynb", "1", "2")
    with pytest.raises(CellTimeoutError, match="Cell 2 of 2 .*was not begun"):
        execute(path, tmp_path / "out.ipynb", run_timeout=10, on_cell_executed=lambda **about: time.sleep(11))


def test_a_loop_that_does_not_listen(tmp_path, monkeypatch):
    from sagelab.kernels import cells
    path = notebook(tmp_path / "in.ipynb", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass")
    started = []
    with pytest.raises(CellTimeoutError, match="did not listen to an interrupt, so its kernel was ended"): execute(path, tmp_path / "out.ipynb", execution_timeout=1, on_start=started.append)
    assert not psutil.pid_exists(started[0]) and cells.Limits().grace_seconds == 5


def test_interrupt_on_timeout_goes_on(tmp_path):
    path, out = notebook(tmp_path / "in.ipynb", ("while True: pass", ["raises-exception"]), "2"), tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError): execute(path, out, execution_timeout=1, interrupt_on_timeout=True)
    assert outputs(nbformat.read(out, 4))[-2:] == [["KeyboardInterrupt"], ["2"]]
    slow = {"ename": "Slow", "evalue": "", "traceback": []}
    with pytest.raises(papermill.PapermillExecutionError):
        execute(path, out, timeout_func=lambda cell: 1 if "while" in cell.source else None, interrupt_on_timeout=True, error_on_timeout=slow)
    assert outputs(nbformat.read(out, 4))[-1] == ["2"]


def test_a_kernel_that_never_answers(tmp_path, monkeypatch):
    spec = tmp_path / "share" / "kernels" / "mute"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": [sys.executable, "-c", "import time; time.sleep(600)", "{connection_file}"], "display_name": "mute", "language": "python"}))
    (tmp_path / "share" / "kernels" / "gone").mkdir()
    (tmp_path / "share" / "kernels" / "gone" / "kernel.json").write_text(json.dumps({"argv": [sys.executable, "-c", "1", "{connection_file}"], "display_name": "gone", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    started, path = [], notebook(tmp_path / "in.ipynb", "1")
    with pytest.raises(DeadKernelError, match="no answer within 2 s. Try: a larger start_timeout"): execute(path, tmp_path / "out.ipynb", kernel_name="mute", start_timeout=2, on_start=started.append)
    assert not psutil.pid_exists(started[0])
    with pytest.raises(DeadKernelError, match="ended before it was ready"): execute(path, tmp_path / "out.ipynb", kernel_name="gone")


def test_a_large_output_is_cut_and_the_run_goes_on(tmp_path):
    path = notebook(tmp_path / "in.ipynb", "for n in range(300): print('x' * 1_000_000)", "print('y' * 200_000_000)", "from IPython.display import display, clear_output\nclear_output(); display('z' * 30_000_000)",
                    "for n in range(5): clear_output(wait=True); print('v' * 900_000)", "print('end')", kernel=PYTHON)
    before = psutil.Process().memory_info().rss
    nb = execute(path, tmp_path / "out.ipynb", output_limit_mb=1)
    cut = [any("was cut after 1 MB" in o.get("text", "") for o in cell.outputs) for cell in nb.cells]
    assert cut == [True, True, True, False, False] and outputs(nb)[4] == ["end\n"] and len(outputs(nb)[3][0]) == 900_001
    assert (tmp_path / "out.ipynb").stat().st_size < 5_000_000 and psutil.Process().memory_info().rss - before < 500_000_000


# ---- ended from outside


# A shell's background jobs ignore Ctrl-C, and so would what they start; measuring coverage has a plan of its own for SIGTERM.
CHILD = "import papermill, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGTERM, signal.SIG_DFL); papermill.execute_notebook(sys.argv[1], sys.argv[2], engine_name='sagelab', progress_bar=False, on_start=lambda pid: print(pid, flush=True))"


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, (-2, 1, 130)), (signal.SIGTERM, (143,)), (signal.SIGKILL, (-9,))])
def test_ended_from_outside_the_kernel_ends_too(tmp_path, kernel, number, code):
    path, out = notebook(tmp_path / "in.ipynb", "print('done')", f"open({str(tmp_path / 'begun')!r}, 'w').close()\nwhile True: pass", kernel=kernel), tmp_path / "out.ipynb"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    pid, deadline = int(child.stdout.readline()), time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline: time.sleep(0.02)
    time.sleep(0.5)  # a save that waits for its turn has it
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode in code, said
    while _runs(pid) and time.monotonic() < deadline: time.sleep(0.05)
    assert not _runs(pid), "the kernel outlives its run"
    nb = nbformat.read(out, 4)
    assert outputs(nb)[0] == ["done\n"] and nb.cells[1].metadata.papermill.status == ("running" if number == signal.SIGKILL else "failed")
    with private_folder(): left = [folder for folder in runtime_folder().iterdir() if folder.name.startswith(f"{child.pid}-")]
    assert left == []


def _runs(pid: int) -> bool:
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


# ---- going on


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
def test_resume_goes_on_in_the_same_kernel(tmp_path, kernel):
    cells = ["import os; print(os.getpid())", "shown = display(1, display_id=True)", "import ipywidgets as w; s = w.IntSlider(1); s", "print(total)", "shown.update(2); s.value = 7; print(os.getpid())"]
    path, out = notebook(tmp_path / "in.ipynb", *cells, parameters="x = 1", kernel=kernel), tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="total"): execute(path, out, parameters={"x": 2}, keep_failed_seconds=60)
    nb = nbformat.read(out, 4)
    before = {cell.id: cell.metadata.get("papermill") for cell in nb.cells}
    next(cell for cell in nb.cells if cell.source == "print(total)").source = "total = x; print(total)"
    nbformat.write(nb, out)
    nb = execute(out, out, resume=True, parameters={"x": 2})
    said = outputs(nb)
    assert said[2] == said[6] and said[3] == ["2"] and said[5] == ["2\n"] and nb.metadata.sagelab == {"resumed": {"from_cell": 6, "because": ""}}
    assert nb.cells[2].metadata.papermill == before[nb.cells[2].id] and nb.cells[1].metadata.papermill.status == "completed" and [cell.execution_count for cell in nb.cells] == [1, None, 3, 4, 5, 7, 8]
    states = nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    assert [state["state"]["value"] for state in states if state["model_name"] == "IntSliderModel"] == [7]
    assert not _runs(int(said[2][0]))


def test_resume_begins_anew_where_it_must(tmp_path):
    path, out = notebook(tmp_path / "in.ipynb", "import os; print(os.getpid())", "1 / 0", parameters="x = 1"), tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError): execute(path, out, parameters={"x": 2}, keep_failed_seconds=60)
    first = outputs(nbformat.read(out, 4))[2]
    with pytest.raises(papermill.PapermillExecutionError): execute(out, out, resume=True, parameters={"x": 3})
    nb = nbformat.read(out, 4)
    assert "cell 2 is not what it was" in nb.metadata.sagelab.resumed.because and outputs(nb)[2] != first and _runs(int(first[0]))
    os.kill(int(first[0]), 9)
    with pytest.raises(papermill.PapermillExecutionError): execute(path, out, keep_failed_seconds=60)
    os.kill(int(outputs(nbformat.read(out, 4))[1][0]), 9)
    with pytest.raises(papermill.PapermillExecutionError): execute(out, out, resume=True)
    assert "its kernel is gone" in nbformat.read(out, 4).metadata.sagelab.resumed.because


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
def test_a_kept_kernel_outlives_its_run_but_not_its_time(tmp_path, kernel):
    path, out = notebook(tmp_path / "in.ipynb", "import os; print(os.getpid())", "1 / 0", "print('on')", kernel=kernel), tmp_path / "out.ipynb"
    code = CHILD.replace("progress_bar=False", "progress_bar=False, keep_failed_seconds=6")
    subprocess.run([sys.executable, "-c", code, str(path), str(out)], capture_output=True, cwd=tmp_path)
    nb = nbformat.read(out, 4)
    pid, folder = int(outputs(nb)[0][0]), runtime_folder() / nb.metadata.sagelab.kept.kernel
    time.sleep(1)
    assert _runs(pid) and folder.is_dir()
    deadline = time.monotonic() + 30
    while _runs(pid) and time.monotonic() < deadline: time.sleep(0.1)
    assert not _runs(pid) and not folder.exists()


# ---- many at once


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
def test_nothing_is_left_after_many_runs(tmp_path, kernel):
    good, bad = notebook(tmp_path / "in.ipynb", "x", parameters="x = 1", kernel=kernel), notebook(tmp_path / "bad.ipynb", "1 / 0", kernel=kernel)
    started, me = [], psutil.Process()

    def some():
        for n in range(3): assert outputs(execute(good, tmp_path / "out.ipynb", parameters={"x": n}, on_start=started.append))[-1] == [str(n)]
        with pytest.raises(papermill.PapermillExecutionError): execute(bad, tmp_path / "out.ipynb", on_start=started.append)
    some()
    before = me.num_fds(), threading.active_count()
    some()
    some()
    # A kernel that said farewell is on its way out.
    deadline = time.monotonic() + 5
    while any(map(_runs, started)) and time.monotonic() < deadline: time.sleep(0.02)
    assert me.num_fds() <= before[0] and threading.active_count() <= before[1] and not any(map(_runs, started)) and len(set(started)) == 12
    assert not [folder for folder in runtime_folder().iterdir() if folder.name.startswith(f"{os.getpid()}-")]


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
def test_two_threads_at_once(tmp_path, kernel):
    path, done = notebook(tmp_path / "in.ipynb", "import time; time.sleep(0.5); x", parameters="x = 1", kernel=kernel), {}

    def work(n): done[n] = outputs(execute(path, tmp_path / f"out{n}.ipynb", parameters={"x": n}))[-1]
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(120)
    assert done == {n: [str(n)] for n in range(3)}


@pytest.mark.parametrize("kernel", [PYTHON, WARM])
def test_within_a_running_event_loop(tmp_path, kernel):
    path = notebook(tmp_path / "in.ipynb", "x", ("1 / 0", ["raises-exception"]), parameters="x = 1", kernel=kernel)
    async def within():
        with pytest.raises(papermill.PapermillExecutionError): execute(path, tmp_path / "out.ipynb", parameters={"x": 3})
    asyncio.run(within())
    assert outputs(nbformat.read(tmp_path / "out.ipynb", 4))[-2:] == [["3"], ["ZeroDivisionError"]]


def test_papermill_and_the_engine_load_in_any_order():
    for first, second in (("papermill", "sagelab.kernels.engine"), ("sagelab.kernels.engine", "papermill"), ("papermill.engines", "sagelab.kernels.cells"), ("sagelab.kernels.cells", "papermill.execute")):
        subprocess.run([sys.executable, "-c", f"import {first}, {second}; from papermill.engines import papermill_engines; papermill_engines.get_engine('sagelab')"], check=True)
    said = subprocess.run([sys.executable, "-c", "import sys, sagelab.kernels.engine; print('papermill' in sys.modules, 'zmq' in sys.modules, 'pydantic' in sys.modules)"], capture_output=True, text=True)
    assert said.stdout.split() == ["False"] * 3
