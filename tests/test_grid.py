"""Grids: many runs on many workers, of which some fail, are killed, or are stopped; and the same numbers every time."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from sagelab.core.errors import MissingExtra, RunError, Stopped, UsageError
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.core.stop import open_latch
from sagelab.lab.grid import run_grid
from sagelab.lab.run import list_runs

RATIO = "from sagelab.lab.run import record\nrecord([], {'ratio': a / b})"
TRADES = """from sagelab.data.store import load_bars
from sagelab.lab.run import record, seed_everything
from sagelab.trading.engine import backtest
import random
seed_everything(seed)
record([backtest("sma_cross", load_bars("SP500").iloc[:700], {"fast": fast, "slow": slow}, trial=True)], {"draw": random.random()})"""
# A run that waits until the test lets it go, so that something can happen to it half way.
GATE = """from pathlib import Path
import time
Path(gate, f"began-{a}").touch()
while not Path(gate, "open").exists() and a > 1: time.sleep(0.02)"""


def notebook(path: Path, parameters: str, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    made.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(made, path)
    return path


def wait_until(test, what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"waited {seconds} seconds for {what}"
        time.sleep(0.05)


def at_work(*places: Path) -> list[str]:
    "Processes that belong to grids of a lab: kernels in its folders, and workers."
    found = []
    for process in psutil.process_iter():
        try: cwd, words, state = process.cwd(), " ".join(process.cmdline()), process.status()
        except psutil.Error: continue
        if state != psutil.STATUS_ZOMBIE and process.pid != os.getpid() and any(cwd.startswith(f"{place}{os.sep}") for place in places): found.append(words[:200])
    return found


def kinds(lab: Path) -> list[str]: return [entry.kind for entry in open_ledger(lab).entries()]


def hidden(lab: Path) -> list[Path]: return [*(lab / "reports").glob(".*")]


@pytest.fixture
def settings(lab): return load_settings(lab)


@pytest.fixture
def ratio(lab): return notebook(lab / "ratio.ipynb", "a = 1\nb = 1", RATIO)


@pytest.fixture
def gated(lab, tmp_path):
    (tmp_path / "gate").mkdir()
    return notebook(lab / "gated.ipynb", "a = 1\ngate = ''", GATE), tmp_path / "gate"


@pytest.fixture(scope="module")
def cluster():
    "A scheduler and two worker processes, on loopback."
    distributed = pytest.importorskip("distributed") if os.environ.get("CI") != "true" else __import__("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, worker_dashboard_address=None) as made: yield made


def begun(lab: Path, *words: str) -> subprocess.Popen:
    "The command line at work."
    return subprocess.Popen([sys.executable, "-m", "sagelab.cli.main", "run", *words], cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_failures_are_kept_apart_and_everything_is_written_down(lab, settings, ratio):
    process = begun(lab, "ratio.ipynb", "--grid", "a=1,2", "--grid", "b=[4, 0]", "--workers", "2", "--json")
    printed, said = process.communicate(timeout=120)
    answer = json.loads(printed)
    assert process.returncode == 1 and said == "" and answer["state"] == "failed" and answer["missing"] == 0
    assert [(run["parameters"], run["state"], run["metrics"]) for run in answer["runs"]] == [({"a": 1, "b": 4}, "finished", {"ratio": 0.25}), ({"a": 2, "b": 4}, "finished", {"ratio": 0.5})]
    failure = answer["failures"][0]
    assert (failure["parameters"], failure["cell"], failure["source"]) == ({"a": 1, "b": 0}, 2, RATIO) and "ZeroDivisionError" in failure["traceback"] and "\x1b" not in failure["traceback"]
    assert Path(failure["notebook"]).parent == lab / ".sagelab" / "failed" / failure["run_id"] and Path(failure["notebook"]).is_file()
    runs = list_runs(settings)
    assert [run.run_id for run in runs] == sorted(run["run_id"] for run in answer["runs"]) and runs[0].manifest["grid"] == {"id": answer["grid_id"], "number": 0, "of": 4, "axes": {"a": 1, "b": 4}}
    assert len(runs[0].manifest["code"]["source_sha256"]) == 64 and runs[0].manifest["packages"]["pandas"]
    import pandas as pd
    table = pd.read_parquet(Path(answer["folder"]) / "results.parquet")
    assert list(table.columns) == ["a", "b", "state", "run_id", "ratio", "seconds"] and len(table) == 4 and len(pd.read_csv(Path(answer["folder"]) / "results.csv")) == 4
    assert json.loads((Path(answer["folder"]) / "grid.json").read_text())["results"]["failures"][0]["cell"] == 2 and "ZeroDivisionError" in Path(answer["page"]).read_text()
    assert sorted(kinds(lab)) == ["grid.finished", "run.failed", "run.failed", "run.finished", "run.finished"] and open_ledger(lab).verify().ok and not hidden(lab)


@pytest.mark.parametrize("words, message", [(["--grid", "aa=1"], "Did you mean 'a'?"), (["--grid", "a="], "has no values"), (["--grid", "a=1,1"], "twice"), (["--grid", "a=1", "-p", "a=2"], "as well"),
                                            (["--grid", "a=0:200", "--grid", "b=0:200"], "40,000 combinations"), (["--workers", "2"], "belong to a grid"),
                                            (["--grid", "a=1", "--workers", "2", "--dask", "tcp://127.0.0.1:1"], "cluster's own matter"), (["--grid", "a.x=1", "-p", "a=1"], "has none")])
def test_slips_are_refused_before_anything_begins(lab, ratio, words, message, monkeypatch, capsys):
    from sagelab.cli.main import main
    monkeypatch.chdir(lab)
    assert main(["run", "ratio.ipynb", *words]) == 2 and message in capsys.readouterr().err
    assert not list((lab / "reports").iterdir()) and kinds(lab) == []


def test_a_notebook_without_parameters_is_told_what_to_do(lab, settings):
    bare = notebook(lab / "bare.ipynb", "", "1")
    with pytest.raises(UsageError, match="give it the tag 'parameters'"): run_grid(bare, {"a": [1]}, settings=settings)
    with pytest.raises(UsageError, match="There is no notebook"): run_grid(lab / "none.ipynb", {"a": [1]}, settings=settings)


def numbers(result) -> dict:
    "What must not depend on who made the runs: bytes of the trade logs, and figures."
    return {number: ((run.folder / "trades.log").read_bytes(), json.dumps(run.manifest["metrics"]), run.manifest["results"][0]["equity_sha256"]) for number, run in result.runs.items()}


def test_numbers_are_the_same_on_one_worker_two_workers_and_a_cluster(lab, settings, cluster):
    trades = notebook(lab / "trades.ipynb", "fast = 5\nslow = 50\nseed = 1", TRADES)
    grid = {"fast": [5, 10], "slow": [30, 50]}
    made = [run_grid(trades, grid, settings=settings, **how) for how in ({"workers": 1}, {"workers": 2}, {"dask": cluster.scheduler_address})]
    assert [result.state for result in made] == ["finished"] * 3, [result.failures for result in made]
    assert len(numbers(made[0])) == 4 and len({log for log, *_ in numbers(made[0]).values()}) == 4 and numbers(made[0]) == numbers(made[1]) == numbers(made[2])
    assert len(list_runs(settings)) == 12 and {run.manifest["seed"] for run in list_runs(settings)} == {42} and kinds(lab).count("backtest.finished") == 12 == kinds(lab).count("run.finished")
    assert not at_work(lab) and not [*(lab / ".sagelab" / "grids").iterdir()] and "deflated Sharpe ratio" in made[0].page.read_text()


def test_a_cluster_that_does_not_see_the_lab_gets_an_archive(lab, settings, cluster, ratio, monkeypatch):
    from sagelab.lab import cluster as module
    plain = module.DaskPool.__init__
    def blind(self, *given):
        plain(self, *given)
        self.lab["token"] = "another machine's"
    monkeypatch.setattr(module.DaskPool, "__init__", blind)
    result = run_grid(ratio, {"a": [1, 2], "b": [2, 0]}, settings=settings, dask=cluster.scheduler_address)
    assert list(result.frame.ratio.dropna()) == [0.5, 1.0] and result.failures[0].cell == 2 and Path(result.failures[0].notebook).is_file()
    assert len(list_runs(settings)) == 2 and kinds(lab).count("run.finished") == 2 == kinds(lab).count("run.failed") and not hidden(lab) and open_ledger(lab).verify().ok


def test_a_killed_worker_of_a_cluster_loses_and_doubles_nothing(lab, settings, cluster, gated):
    from distributed import Client
    path, gate = gated
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        victims = client.run(os.getpid)
        def kill(done, total):
            if done != 1 or (gate / "open").exists(): return
            wait_until(lambda: (gate / "began-2").exists(), "the second run")
            for pid in [*victims.values()][:1]: os.kill(pid, signal.SIGKILL)
            (gate / "open").touch()
        result = run_grid(path, {"a": [1, 2, 3, 4]}, {"gate": str(gate)}, settings=settings, dask=cluster.scheduler_address, progress=kill)
        assert result.state == "finished" and len(list_runs(settings)) == 4 == kinds(lab).count("run.finished") == len({run.manifest["grid"]["number"] for run in list_runs(settings)})
        wait_until(lambda: not at_work(lab), "the killed worker's kernels to go", 20)
    assert not hidden(lab) and open_ledger(lab).verify().ok


def test_without_dask_the_message_names_the_extra(lab, settings, ratio, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sagelab\[cluster\]'"): run_grid(ratio, {"a": [1]}, settings=settings, dask="tcp://127.0.0.1:1")


def test_a_killed_worker_is_replaced_and_its_run_repeated(lab, settings, gated):
    path, gate = gated
    def kill(done, total):
        if done != 1 or (gate / "open").exists(): return
        wait_until(lambda: (gate / "began-2").exists(), "the second run")
        for folder in (lab / "reports").glob(".partial-*"): os.kill(int(folder.name.split("-")[1]), signal.SIGKILL)
        (gate / "open").touch()
    result = run_grid(path, {"a": [1, 2, 3]}, {"gate": str(gate)}, settings=settings, workers=2, progress=kill)
    assert result.state == "finished" and len(list_runs(settings)) == 3 and not hidden(lab) and not at_work(lab)


def test_ctrl_c_keeps_what_is_finished_and_resume_makes_the_rest(lab, settings, gated):
    path, gate = gated
    words = (path.name, "-p", f"gate={gate}", "--grid", "a=1,2,3", "--workers", "2")
    process = begun(lab, *words)
    wait_until(lambda: len(list_runs(settings)) == 1 and (gate / "began-3").exists(), "one run to finish and two to begin")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "1 of 3 runs" in said and "--resume goes on" in said, said
    assert len(list_runs(settings)) == 1 and not hidden(lab) and not at_work(lab) and kinds(lab) == ["run.finished", "grid.finished"]
    (gate / "open").touch()
    result = run_grid(path, {"a": [1, 2, 3]}, {"gate": str(gate)}, settings=settings, workers=2, resume=True)
    assert result.reused == 1 and result.state == "finished" and len(list_runs(settings)) == 3 and len([*(lab / "reports").glob("grid-*")]) == 1
    assert list(result.frame.state) == ["finished"] * 3
    everything = run_grid(path, {"a": [1, 2, 3]}, {"gate": str(gate)}, settings=settings, resume=True)
    assert everything.reused == 3 and len(list_runs(settings)) == 3 and len([*(lab / "reports").glob("grid-*")]) == 1


def test_a_killed_program_leaves_no_worker_and_no_kernel(lab, settings, gated):
    path, gate = gated
    process = begun(lab, path.name, "-p", f"gate={gate}", "--grid", "a=1,2,3", "--workers", "2")
    wait_until(lambda: len(list_runs(settings)) == 1 and (gate / "began-3").exists(), "one run to finish and two to begin")
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.communicate()
    wait_until(lambda: not at_work(lab) and not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers), "the workers to go", 30)
    wait_until(lambda: not hidden(lab), "the hidden folders to go", 10)
    assert len(workers) == 2 and len(list_runs(settings)) == 1 and not [*(lab / ".sagelab").glob("failed/*")]


def test_a_finished_run_is_not_taken_over_when_code_or_files_changed(lab, settings, ratio):
    first = run_grid(ratio, {"a": [1, 2]}, settings=settings, workers=1)
    strategy = lab / "strategies" / "sma_cross.py"
    strategy.write_text(strategy.read_text() + "\n")
    second = run_grid(ratio, {"a": [1, 2]}, settings=settings, workers=1, resume=True)
    assert second.grid_id == first.grid_id and second.reused == 0 and second.notes == ["2 finished runs of an earlier start are not taken over: the code changed."]
    altered = second.runs[0].folder / "notebook.ipynb"
    altered.write_text(altered.read_text() + " ")
    third = run_grid(ratio, {"a": [1, 2]}, settings=settings, workers=1, resume=True)
    assert third.reused == 1 and any("a file of the run was altered" in text for text in third.notes)


def test_other_data_is_noticed(lab, settings):
    from sagelab.lab.grid import _data_reader, why_again
    from sagelab.lab.run import Run, surroundings
    from sagelab.data.store import load_bars, open_store
    from sagelab.data.bars import bars_sha256
    bars = load_bars("EURUSD", lab=lab)
    series = {"symbol": "EURUSD", "interval": "1h", "from": str(bars.index[0]), "to": str(bars.index[-1]), "sha256": bars_sha256(bars)}
    run, about = Run(lab, {**surroundings(lab), "data": [series], "artifacts": {}}), surroundings(lab)
    assert why_again(run, about, _data_reader(settings)) == ""
    bars.iloc[100, 4] += 1
    open_store(settings).write("EURUSD", "1h", bars)
    assert "the data of EURUSD changed" in why_again(run, about, _data_reader(settings)) and "packages" in why_again(run, about | {"packages": {}}, _data_reader(settings))


def test_the_latch_stops_a_grid(lab, settings, gated):
    path, gate = gated
    def stop():
        wait_until(lambda: (gate / "began-2").exists(), "the second run")
        open_latch(lab).set("enough")
    watcher = threading.Thread(target=stop)
    watcher.start()
    with pytest.raises(Stopped, match="(?s)enough.*1 of 3 runs.*--resume"): run_grid(path, {"a": [1, 2, 3]}, {"gate": str(gate)}, settings=settings, workers=1)
    watcher.join()
    assert len(list_runs(settings)) == 1 and not hidden(lab) and not at_work(lab) and "run.stopped" in kinds(lab)
    with pytest.raises(Stopped): run_grid(path, {"a": [1]}, settings=settings)


def test_too_many_failures_end_it(lab, settings, ratio):
    result = run_grid(ratio, {"a": [1, 2, 3, 4, 5], "b": [0]}, settings=settings, workers=1, max_failures=2)
    assert result.state == "gave up" and len(result.failures) == 2 and list(result.frame.state) == ["failed", "failed", "missing", "missing", "missing"] and "Too many runs failed" in result.page.read_text()


@pytest.mark.parametrize("cell, message", [("import sys; sys.exit(3)", "SystemExit"), ("import os; os.kill(os.getpid(), 11)", "(?i)died|dead"), ("def (", "SyntaxError")])
def test_what_a_cell_can_do_is_a_failure_of_its_run_alone(lab, settings, cell, message):
    path = notebook(lab / "wild.ipynb", "a = 1", f"if a == 1: exec({cell!r})", "1")
    result = run_grid(path, {"a": [1, 2]}, settings=settings, workers=1)
    import re
    assert list(result.frame.state) == ["failed", "finished"] and re.search(message, result.failures[0].error) and result.failures[0].cell == 2


def test_secrets_do_not_reach_the_page(lab, settings):
    (lab / "config").mkdir(exist_ok=True)
    (lab / "config" / "secrets.env").write_text("TOKEN=hunter2-very-secret\n")
    (lab / "config" / "secrets.env").chmod(0o600)
    leak = notebook(lab / "leak.ipynb", "a = 1", "word = 'hunter2-' + 'very-secret'\nprint(word)\nif a == 2: raise ValueError(word)")
    result = run_grid(leak, {"a": [1, 2]}, settings=settings, workers=1)
    assert "***TOKEN***" in result.failures[0].traceback
    assert [path for folder in ("reports", ".sagelab") for path in (lab / folder).rglob("*") if path.is_file() and b"hunter2-very-secret" in path.read_bytes()] == []


def test_a_grid_that_is_at_work_is_not_resumed(lab, settings, gated):
    path, gate = gated
    process = begun(lab, path.name, "-p", f"gate={gate}", "--grid", "a=1,2", "--workers", "1")
    try:
        wait_until(lambda: (gate / "began-2").exists(), "the second run")
        from sagelab.core.errors import Finding
        with pytest.raises(Finding, match="is at work in another program"): run_grid(path, {"a": [1, 2]}, {"gate": str(gate)}, settings=settings, resume=True)
    finally:
        (gate / "open").touch()
        process.communicate(timeout=60)
    assert process.returncode == 0 and len(list_runs(settings)) == 2


def test_workers_share_one_fork_server(lab, settings, ratio, monkeypatch, tmp_path):
    from sagelab.kernels.forkserver import retire_server, server_names
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SAGELAB_KERNELS_PRELOAD", "")
    try: assert run_grid(ratio, {"a": [1, 2], "b": [1, 2]}, settings=settings, workers=2).state == "finished" and len(server_names()) == 1
    finally:
        for name in server_names(): retire_server(name)


def test_a_worker_that_cannot_start_ends_the_grid(lab, settings, ratio, monkeypatch):
    from sagelab.lab import workers
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="One worker after the other dies"): run_grid(ratio, {"a": [*range(20)]}, settings=settings, workers=1)


def test_the_page_sorts_draws_and_fits_a_phone(lab, settings, browser):
    trades = notebook(lab / "trades.ipynb", "fast = 5\nslow = 50\nseed = 1", TRADES)
    result = run_grid(trades, {"fast": [5, 10], "slow": [30, 0]}, settings=settings, workers=2)
    assert len(result.runs) == 2 == len(result.failures)
    tab, problems = browser.new_page(viewport={"width": 380, "height": 800}), []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(result.page.as_uri())
    tab.wait_for_selector("html[data-plots=drawn]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 380 and tab.locator(".plot .main-svg").count() >= 2 and problems == []
    first = lambda: [row.inner_text() for row in tab.locator(".runs tbody th").all()]
    tab.locator(".runs thead button", has_text="Sharpe").click()
    down = first()
    tab.locator(".runs thead button", has_text="Sharpe").click()
    assert sorted(down[:2]) == ["1", "3"] and first()[:2] == down[1::-1] and tab.locator(".runs th[aria-sort=ascending]").count() == 1
    tab.locator("select[data-choose]").select_option("1")
    assert tab.locator("[data-panel='1'] .main-svg").count() >= 1
    tab.locator(".failures summary").first.click()
    assert "Traceback" in tab.locator(".failures").inner_text() or "Error" in tab.locator(".failures").inner_text()
    link = tab.locator(".runs a").first.get_attribute("href")
    assert (result.folder / link).resolve().is_file()
