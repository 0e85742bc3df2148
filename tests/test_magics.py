"Magics in a real kernel: what they answer, how they fail, what Tab offers, and what a batch run makes of them."
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from sagelab.core.ledger import open_ledger
from sagelab.core.stop import open_latch
from sagelab.kernels.words import CELL, MAGICS
from sagelab.lab.template import init_lab

SECONDS = 120


@dataclass
class Answer:
    "What a cell answered."
    outputs: list[dict] = field(default_factory=list)

    @property
    def text(self) -> str: return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in self.outputs)

    @property
    def html(self) -> str: return "\n".join(o.get("data", {}).get("text/html", "") for o in self.outputs)

    @property
    def error(self) -> dict: return next((o for o in self.outputs if "ename" in o), {})

    @property
    def plots(self) -> list[dict]: return [o["data"]["application/vnd.plotly.v1+json"] for o in self.outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]


@dataclass
class Kernel:
    "A kernel whose notebook is in a lab."
    client: BlockingKernelClient
    lab: Path

    def run(self, code: str) -> Answer:
        answer = Answer()
        self.client.execute_interactive(code, timeout=SECONDS, output_hook=lambda message: answer.outputs.append(message["content"]) if message["msg_type"] in (
            "stream", "display_data", "update_display_data", "execute_result", "error") else None)
        return answer

    def well(self, code: str) -> Answer:
        answer = self.run(code)
        assert not answer.error, answer.error
        return answer

    def value(self, expression: str) -> object: return json.loads(self.well(f"import json; print(json.dumps({expression}))").text)

    def tab(self, code: str) -> list[str]:
        "What Tab offers at the end of the code, or where a bar stands in it."
        place = code.find("|") if "|" in code else len(code)
        code = code.replace("|", "")
        reply = self.client.complete(code, place, reply=True, timeout=SECONDS)["content"]
        assert reply["cursor_end"] == place or not reply["matches"]
        return [code[:reply["cursor_start"]].rpartition("\n")[2] + match for match in reply["matches"]]


@contextmanager
def started(lab: Path, folder: str = "nbs/experiments") -> Iterator[Kernel]:
    "A plain kernel with the magics loaded."
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(lab/folder))
    try:
        found = Kernel(client, lab)
        found.well("%load_ext sagelab")
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(lab: Path) -> Iterator[Kernel]:
    "A kernel in a lab that nobody has used."
    with started(lab) as found: yield found


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    "One kernel for many lines that it refuses."
    with started(init_lab(tmp_path_factory.mktemp("refusing")/"lab")) as found: yield found


def count(lab: Path, kind: str) -> int: return sum(entry.kind == kind for entry in open_ledger(lab).entries())


def test_backtest_and_sweep(kernel: Kernel) -> None:
    answer = kernel.well("%backtest sma_cross --symbol SP500 --fee 0.001 --fill close -c fast=10 slow=30")
    assert "31.12" in answer.text and "<table>" in answer.html and "Luck: unproven" in answer.text and "very close" in answer.text
    assert round(kernel.value("_result.metrics['return']"), 6) == 0.311241 and len(answer.plots) == 1
    answer = kernel.well("%sweep sma_cross --symbol SP500 fast=5:50:5 slow=20,50 --out grid")
    assert kernel.value("[len(grid.table), grid.cells, type(grid).__name__]") == [18, 18, "SweepResult"]
    assert answer.plots[0]["data"][0]["type"] == "heatmap" and "partly luck" in answer.text
    assert count(kernel.lab, "backtest.finished") == count(kernel.lab, "sweep.finished") == 1
    assert "20 variants were tried" in kernel.well("%backtest sma_cross --symbol SP500 --no-plot").text
    assert "Not counted" in kernel.well("%backtest sma_cross --symbol SP500 --no-trial fast=7").text and count(kernel.lab, "backtest.finished") == 2
    kernel.well("%unload_ext sagelab")
    assert "not found" in kernel.run("%backtest x").text


def test_a_cell_with_a_strategy(kernel: Kernel) -> None:
    kernel.well(CELL)
    assert kernel.value("[_result.strategy, Breakout.Config().bars, len(_result.trades) > 5]") == ["Breakout", 50, True]
    # The class stays, as from any cell: the line magic knows it, and so does the sweep.
    assert "bars=20" in kernel.well("%backtest Breakout --symbol SP500 bars=20").text
    assert "by the engine" in kernel.well("%sweep Breakout --symbol SP500 --from 2016-01-01 bars=20,50").text
    assert "clean" in kernel.well("%backtest Breakout --symbol SP500 --from 2015-01-01 --guards").text


def test_every_example_of_the_help_works(kernel: Kernel) -> None:
    texts = kernel.well("%sage").text
    commit = "git init -q && git add -A && git -c user.name=P -c user.email=p@example.com commit -qm begin"
    subprocess.run(commit, shell=True, check=True, cwd=kernel.lab)
    subprocess.run([sys.executable, "-m", "sagelab.cli.main", "demo"], check=True, cwd=kernel.lab, capture_output=True)
    for magic in sorted(MAGICS.values(), key=lambda magic: magic.name == "stop"):
        assert f"%{magic.name}" in texts and magic.help in kernel.well(f"%sage {magic.name}").text
        for example in magic.examples: kernel.well(example)
    assert open_latch(kernel.lab).state().reason == "the feed is broken"
    assert kernel.run("%backtest sma_cross --symbol SP500").error["ename"] == "Stopped"


def test_an_experiment_from_a_cell(kernel: Kernel) -> None:
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=P", "-c", "user.email=p@example.com", "commit", "-qm", "begin"]):
        subprocess.run(["git", "-C", str(kernel.lab), *words], check=True)
    subprocess.run([sys.executable, "-m", "sagelab.cli.main", "demo"], check=True, cwd=kernel.lab, capture_output=True)
    known = (kernel.lab/"strategies"/"sma_cross.py").read_text()
    head = "%%experiment --name Margin --hypothesis 'A margin avoids ripples.' --strategy sma_cross --baseline last --out margin\n"
    answer = kernel.well(head + known.replace("if fast > slow:", "if fast > slow * 1.01:"))
    assert "look-ahead: clean" in answer.text and "sagelab experiment approve exp-" in answer.text
    assert re.search(r"href='\.\./\.\./\.sagelab/experiments/exp-\d+-001/report\.html'", answer.html)
    assert any("✓" in (o.get("data", {}).get("text/plain") or "") for o in answer.outputs), "a long work says which stage it is in"
    assert kernel.value("margin.state") == "evaluated" and (kernel.lab/"strategies"/"sma_cross.py").read_text() == known
    table = kernel.well("%runs sma --out table")
    assert kernel.value("list(table.strategy)").count("sma_cross") == 1 and "/report.html'" in table.html


@pytest.mark.parametrize(("code", "name", "sentence"), [
    ("%backtest sma_cros --symbol SP500", "UnknownName", "There is no strategy 'sma_cros'. Did you mean 'sma_cross'?"),
    ("%backtest sma_cross --symbol SP5O0", "UnknownName", "Did you mean 'SP500'?"),
    ("%backtest sma_cross --symbl SP500", "UnknownName", "There is no option of %backtest '--symbl'. Did you mean '--symbol'?"),
    ("%backtest sma_cross --symbol SP500 fsat=3", "UnknownName", "Did you mean 'fast'?"),
    ("%backtest sma_cross --symbol SP500 fast=x", "UsageError", "fast = 'x'"),
    ("%backtest sma_cross --symbol SP500 --fee free", "SettingsError", "fee"),
    ("%backtest sma_cross --symbol 'SP500", "UsageError", "A quote is not closed."),
    ("%%backtest --symbol SP500\nx = 1", "UsageError", "The cell defines no strategy class."),
    ("%%backtest --symbol SP500\n" + CELL.partition("\n")[2].replace("len(before)", "lenn(before)"), "StrategyError", "(line 13 of the cell)"),
    ("%sweep sma_cross --symbol SP500 fast=5:5", "GridError", "has no values"),
    ("%runs nothing_like_it", "UnknownName", "nothing_like_it"),
    ("%stop", "UsageError", "for a reason"),
    ("%sage swep", "UnknownName", "Did you mean 'sweep'?"),
    ("%experiment --name N", "UsageError", "--hypothesis is missing"),
    ("%%experiment --name N\nx = (", "UsageError", "Line 2 of the cell is not Python"),
])
def test_errors_are_one_sentence(refusing: Kernel, code: str, name: str, sentence: str) -> None:
    error = refusing.run(code).error
    assert error["ename"] == name and sentence in error["evalue"]
    assert len(error["traceback"]) == 1 and error["traceback"][0] == f"\x1b[31merror:\x1b[39m {error['evalue']}" and "\n" not in error["evalue"]


def test_a_users_own_error_keeps_its_traceback(kernel: Kernel) -> None:
    error = kernel.run("%%backtest --symbol SP500\nx = 1\nmissing_name").error
    trace = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error["traceback"]))
    assert error["ename"] == "NameError" and "missing_name" in trace and "sagelab" not in trace.replace(str(kernel.lab), "")
    assert kernel.run("%%backtest --symbol SP500\nclass (").error["ename"] == "SyntaxError"


def test_secrets_stay_out_of_errors(kernel: Kernel) -> None:
    (kernel.lab/"config"/"secrets.env").write_text("FEED_KEY=hunter2hunter2\n")
    (kernel.lab/"config"/"secrets.env").chmod(0o600)
    error = kernel.run("%backtest hunter2hunter2 --symbol SP500").error
    assert error["ename"] == "UnknownName" and "hunter2" not in json.dumps(error)


def test_interrupt_is_short_too(kernel: Kernel) -> None:
    kernel.well("%sweep mean_reversion_scalper --symbol SP500 --from 2018-01-01 window=5,6")
    code = "%sweep mean_reversion_scalper --symbol SP500 window=5:105 stretch=1.0:3.0:0.1"
    begun = kernel.client.execute(f"import os, threading; threading.Timer(4, os.kill, (os.getpid(), 2)).start()\n{code}")
    found = []
    while True:
        message = kernel.client.get_iopub_msg(timeout=SECONDS)
        if message["parent_header"].get("msg_id") != begun: continue
        found.append((message["msg_type"], message["content"]))
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle": break
    error = next(content for kind, content in found if kind == "error")
    assert error["ename"] == "KeyboardInterrupt" and "interrupted" in error["traceback"][0] and len(error["traceback"]) == 1
    shown = [content["data"]["text/plain"] for kind, content in found if kind == "display_data"]
    assert len(shown) == 1 and "of 2,000" in shown[0], "it had said how far it was"
    assert kernel.value("1 + 1") == 2


def test_completion(kernel: Kernel) -> None:
    assert kernel.tab("%backtest sma") == ["%backtest sma_cross"] and kernel.tab("x = 1\n%backtest sma_cross --symbol SP") == ["%backtest sma_cross --symbol SP500"]
    assert kernel.tab("%sweep sma_cross --symbol SP500 ") == ["%sweep sma_cross --symbol SP500 fast=", "%sweep sma_cross --symbol SP500 slow="]
    assert kernel.tab("%sweep sma_cross fast=5:9 sl") == ["%sweep sma_cross fast=5:9 slow="] and kernel.tab("%backtest a --fi") == ["%backtest a --fill"]
    assert kernel.tab("%%backtest --symbol SP500 -c |\n" + CELL.partition("\n")[2]) == ["%%backtest --symbol SP500 -c bars="]
    kernel.well(CELL)
    assert kernel.tab("%backtest Bre") == ["%backtest Breakout"] and kernel.tab("%backtest Breakout b") == ["%backtest Breakout bars="]
    assert "%sage experiment" in kernel.tab("%sage ") and "%runs last" not in kernel.tab("%runs ")
    # Python's own completion is as it was, with jedi and without.
    kernel.well("import json")
    for jedi in (True, False):
        kernel.well(f"%config Completer.use_jedi = {jedi}")
        assert any(name.endswith("dumps") for name in kernel.tab("json.dum")) and kernel.tab("%backtest sma") == ["%backtest sma_cross"]


def test_outside_of_a_lab(tmp_path: Path) -> None:
    with started(tmp_path, ".") as kernel:
        assert "No lab found" in kernel.run("%backtest sma_cross --symbol SP500").error["evalue"] and kernel.tab("%backtest sma") == []
        assert kernel.run("%stop now").error["ename"] == "SettingsError" and "what it does" in kernel.well("%sage").text


def test_a_failing_magic_fails_the_cell_of_a_batch_run(lab: Path, tmp_path: Path, papermill_of: Callable[[list[str]], subprocess.CompletedProcess]) -> None:
    done = papermill_of(["%load_ext sagelab", "%backtest sma_cross --symbol SP500", "%backtest sma_cros --symbol SP500", "print('never')"])
    assert done.returncode != 0 and "Did you mean 'sma_cross'" in done.stderr
    cells = nbformat.read(tmp_path/"out.ipynb", 4).cells
    good, bad = ([*cell.outputs] for cell in cells if cell.source.startswith("%backtest"))
    assert [output.output_type for output in good] == ["display_data"] * 2 and [output.ename for output in bad] == ["UnknownName"]


@pytest.fixture
def papermill_of(lab: Path, tmp_path: Path) -> Callable[[list[str]], subprocess.CompletedProcess]:
    "Runs cells as a notebook by plain papermill."
    def run(cells: list[str]) -> subprocess.CompletedProcess:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": {"name": "python3", "display_name": "python3"}})
        nbformat.write(notebook, tmp_path/"in.ipynb")
        return subprocess.run([sys.executable, "-m", "papermill", str(tmp_path/"in.ipynb"), str(tmp_path/"out.ipynb"), "--cwd", str(lab), "--no-progress-bar"],
                              capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"}, timeout=300)
    return run


def test_the_extension_is_light_until_it_is_used() -> None:
    code = "import sys, sagelab; print(*sorted({'IPython', 'pandas', 'sagelab.kernels.magics'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
