"""Runs: killed half way, failing, altered, replayed; and what a full disk does."""
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
import nbformat
import pytest
from sagelab.core.errors import Finding, RunError, UnknownName, UsageError
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.lab.run import find_run, list_runs, replay, run_notebook

BACKTEST = "nbs/experiments/backtest.ipynb"


def notebook(path: Path, *cells: str, parameters: str | None = None) -> Path:
    "Write a small notebook; the first cell holds the parameters."
    new = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    if parameters is not None: new.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    new.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(new, path)
    return path


@pytest.fixture
def settings(lab): return load_settings(lab)


@pytest.fixture
def done(lab, settings): return run_notebook(lab / BACKTEST, {"strategies": "buy_and_hold, sma_cross", "symbol": "EURUSD"}, settings=settings)


def test_a_run_has_all_its_artifacts(done, lab, settings):
    assert {p.name for p in done.folder.iterdir()} == {"run.json", "notebook.ipynb", "report.html", "trades.log", "equity.parquet"}
    manifest = json.loads((done.folder / "run.json").read_text())
    assert set(manifest["metrics"]) == {"buy_and_hold", "sma_cross"} and manifest["data"][0]["symbol"] == "EURUSD" and manifest["seed"] == 42
    for line in (done.folder / "trades.log").read_text().splitlines():
        assert {"trade_id", "timestamp", "symbol", "side", "size_pct", "entry_price", "exit_price", "duration_seconds", "strategy", "signals", "outcome",
                "pnl_pct"} <= set(json.loads(line))
    page = re.sub(r"<script.*?</script>", "", (done.folder / "report.html").read_text(), flags=re.DOTALL)  # plotly.js holds addresses that it never asks
    assert "Plotly" in (done.folder / "report.html").read_text() and not re.search(r"""(src|href)=["']https?:""", page) and "buy_and_hold" in page
    assert find_run("last", settings).run_id == find_run(done.run_id[:17], settings).run_id == done.run_id
    assert [e.kind for e in open_ledger(lab).entries()] == ["backtest.finished", "backtest.finished", "run.finished"]


def test_replay_is_identical_and_finds_what_changed(done, lab, settings):
    assert replay("last", settings=settings).identical
    strategy = lab / "strategies" / "sma_cross.py"
    strategy.write_text(strategy.read_text().replace("if fast > slow", "if fast > slow * 1.001"))
    changed = replay("last", settings=settings)
    assert not changed.identical and changed.difference.startswith("sma_cross.")
    strategy.unlink()
    with pytest.raises(RunError, match="sma_cross"): replay("last", settings=settings)


def test_replay_finds_altered_artifacts(done, settings):
    log = done.folder / "trades.log"
    log.write_text(log.read_text().replace("win", "WIN", 1))
    found = replay("last", settings=settings)
    assert not found.identical and "trades.log was altered" in found.difference


def test_replay_names_changed_data(done, lab, settings):
    from sagelab.data.store import open_store
    store = open_store(settings)
    bars = store.read("EURUSD")
    bars.iloc[100, 4] += 1
    store.write("EURUSD", "1h", bars)
    found = replay("last", settings=settings)
    assert not found.identical and "the data of EURUSD changed" in found.difference


@pytest.mark.parametrize("cells, message", [(("1 / 0",), "ZeroDivisionError"), (("def (",), "SyntaxError"), (("import sys; sys.exit(3)",), "SystemExit"),
                                            (("import os; os.kill(os.getpid(), 9)",), "died|dead|Dead")])
def test_a_failing_notebook_is_not_listed(lab, settings, cells, message):
    with pytest.raises(RunError, match=message) as caught: run_notebook(notebook(lab / "wrong.ipynb", *cells), settings=settings)
    assert list_runs(settings) == [] and not list((lab / "reports").iterdir())
    assert "The notebook as far as it came" in str(caught.value) and [e.kind for e in open_ledger(lab).entries()] == ["run.failed"]


def test_unknown_parameters_get_the_nearest(lab, settings):
    with pytest.raises(UnknownName, match="Did you mean 'strategies'"): run_notebook(lab / BACKTEST, {"strategys": "x"}, settings=settings)
    with pytest.raises(UnknownName, match="no cell tagged"): run_notebook(notebook(lab / "bare.ipynb", "1"), {"a": 1}, settings=settings)


def test_what_is_no_notebook_is_refused(lab, settings):
    (lab / "torn.ipynb").write_text('{"cells": [')
    with pytest.raises(UsageError, match="cannot be read as a notebook"): run_notebook(lab / "torn.ipynb", settings=settings)
    with pytest.raises(UsageError, match="There is no notebook"): run_notebook(lab / "none.ipynb", settings=settings)


def test_an_endless_cell_is_ended(lab):
    impatient = load_settings(lab, lab_kernel_timeout_seconds=2)
    with pytest.raises(RunError, match="(?i)time"): run_notebook(notebook(lab / "endless.ipynb", "while True: pass"), settings=impatient)
    assert list_runs(impatient) == []


def test_a_killed_run_leaves_nothing_listed_and_the_next_is_clean(lab, settings):
    slow = notebook(lab / "slow.ipynb", "import time; open('started', 'w').close(); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-m", "sagelab.cli.main", "run", str(slow)], cwd=lab, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((lab / "reports").glob(".partial-*/started")): assert time.monotonic() < deadline; time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list_runs(settings) == [] and list((lab / "reports").glob(".partial-*"))
    run = run_notebook(notebook(lab / "quick.ipynb", "a", parameters="a = 1"), {"a": 2}, settings=settings)
    assert [r.run_id for r in list_runs(settings)] == [run.run_id] and not list((lab / "reports").glob(".partial-*"))
    assert "run.abandoned" in [e.kind for e in open_ledger(lab).entries()] and open_ledger(lab).verify().ok


def test_too_little_disk_is_refused_before_anything_begins(lab):
    greedy = load_settings(lab, lab_min_free_disk_mb=10**9)
    with pytest.raises(Finding, match="MB are free"): run_notebook(lab / BACKTEST, settings=greedy)
    assert not list((lab / "reports").iterdir())


def test_a_disk_that_fills_up_leaves_no_run(lab, settings):
    "A file-size limit is the full disk that needs no root: every write beyond it fails."
    code = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
            f"from sagelab.cli.main import main; raise SystemExit(main(['run', {BACKTEST!r}]))")
    answer = subprocess.run([sys.executable, "-c", code], cwd=lab, capture_output=True, text=True)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr.splitlines()[-1] and "error:" in answer.stderr
    assert list_runs(settings) == [] and open_ledger(lab).verify().ok


def test_secrets_do_not_reach_a_run(lab, settings):
    (lab / "config").mkdir(exist_ok=True)
    secret = lab / "config" / "secrets.env"
    secret.write_text("TOKEN=hunter2-very-secret\n")
    secret.chmod(0o600)
    run = run_notebook(notebook(lab / "leak.ipynb", "print('hunter2-very-secret')"), settings=settings)
    assert "hunter2" not in (run.folder / "notebook.ipynb").read_text() and "***TOKEN***" in (run.folder / "notebook.ipynb").read_text()
    with pytest.raises(RunError) as caught: run_notebook(notebook(lab / "leak2.ipynb", "raise ValueError('hunter2-very-secret')"), settings=settings)
    assert "hunter2" not in str(caught.value)
    kept = [p for p in (lab / ".sagelab").rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
    assert kept == []


def test_replay_of_a_notebook_that_records_nothing_compares_what_it_said(lab, settings):
    run_notebook(notebook(lab / "steady.ipynb", "print(a)", "a + 1", parameters="a = 1"), {"a": 2}, settings=settings)
    assert replay("last", settings=settings).identical
    run_notebook(notebook(lab / "moody.ipynb", "import time; print(time.time_ns())"), settings=settings)
    found = replay("last", settings=settings)
    assert not found.identical and found.difference.startswith("outputs.")
