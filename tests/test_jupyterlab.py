"`sagelab lab` in a real browser: tiles, a template that runs, magics that look right, and two people in one notebook."
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import nbformat
import psutil
import pytest
from conftest import require

from sagelab.kernels.jupyterlab import HOST

if TYPE_CHECKING: from playwright.sync_api import Browser, Page

PATIENCE = 120_000  # milliseconds; a loaded machine starts kernels slowly
TILE = ".jp-LauncherCard"


@dataclass(frozen=True)
class Server:
    "A JupyterLab that runs."
    root: str  # its address
    token: str
    lab: Path
    process: subprocess.Popen

    def address(self, path: str) -> str: return f"{self.root}/{path}{'&' if '?' in path else '?'}token={self.token}"

    def ask(self, path: str) -> object:
        with urlopen(Request(f"{self.root}/{path}", headers={"Authorization": f"token {self.token}"}), timeout=30) as answer: return json.load(answer)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe: return probe.getsockname()[1]


def own_environment(home: Path) -> dict[str, str]:
    "A person who has configured nothing."
    return {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "SAGELAB_"))} | {
        "JUPYTER_CONFIG_DIR": str(home/"config"), "JUPYTER_DATA_DIR": str(home/"data"), "JUPYTER_RUNTIME_DIR": str(home/"runtime"), "IPYTHONDIR": str(home/"ipython")}


@contextmanager
def serving(lab: Path, home: Path, *options: str) -> Iterator[Server]:
    "Start `sagelab lab`; at the end it is gone with all its kernels."
    words = [sys.executable, "-m", "sagelab.cli.main", "lab", "--no-browser", "--port", str(free_port()), *options]
    with open(home/"server.log", "w+") as log:
        process = subprocess.Popen(words, cwd=lab, stdout=log, stderr=log, env=own_environment(home), start_new_session=True)
        try:
            found, deadline = None, time.monotonic() + 120
            while not found and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.2)
                found = re.search(r"(http://127\.0\.0\.1:\d+)/lab\S*token=(\w+)", (home/"server.log").read_text())
            assert found, (home/"server.log").read_text()
            yield Server(found[1], found[2], lab, process)
        finally: end(process)


def end(process: subprocess.Popen) -> None:
    "End a server as Ctrl-C twice does, and then whatever it left."
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for _ in range(2):
        if process.poll() is None: process.send_signal(signal.SIGTERM)
        try: process.wait(10)
        except subprocess.TimeoutExpired: pass
    if process.poll() is None: process.kill()
    _, alive = psutil.wait_procs(children, 10)
    for child in alive: child.kill()
    process.wait(10)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path/"home").mkdir()
    return tmp_path/"home"


@pytest.fixture
def visit(browser: "Browser") -> Callable[[Server, str], "Page"]:
    "Opens an address in a new profile, as another person."
    def opened(server: Server, path: str, height: int = 900) -> "Page":
        page = browser.new_context(viewport={"width": 1300, "height": height}).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(server.address(path))
        page.wait_for_selector("#jp-main-dock-panel")
        return page
    return opened


def is_ready(page: "Page") -> None:
    "Wait until the status bar says that the kernel is idle; what is run before is run nowhere."
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()


def run_all(page: "Page") -> None:
    is_ready(page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def is_done(page: "Page") -> None:
    "Wait until no cell is running or waiting and the last code cell has a number."
    page.wait_for_function("""() => {
        const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map((p) => p.textContent.trim());
        return prompts.length && prompts.every((p) => /^\\[\\d+\\]:$/.test(p)); }""")


def picture(page: "Page", name: str) -> None:
    "Keep what it looked like."
    folder = Path(__file__).resolve().parent.parent/"artifacts"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder/f"jupyterlab-{name}.png")


def test_a_tile_opens_a_copy_of_the_template_that_runs(lab: Path, home: Path, visit: Callable) -> None:
    template = (lab/"nbs"/"experiments"/"backtest.ipynb").read_bytes()
    with serving(lab, home) as server:
        page = visit(server, "lab?reset")
        page.wait_for_selector(TILE)
        page.locator(".jp-Launcher-section", has_text="SageLab").locator(TILE, has_text="Experiment").wait_for()
        tiles = page.locator(TILE).all_inner_texts()
        assert sum("SageLab" in tile for tile in tiles) == 2, "the kernel, as notebook and as console"
        assert page.get_by_text("news", exact=False).count() == 0, "it asks no questions"
        picture(page, "launcher")
        page.locator(TILE, has_text="Backtest").click()
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.locator(".jp-Toolbar-kernelName", has_text=re.compile("SageLab|Python 3|python3")).wait_for()
        run_all(page)
        page.wait_for_selector(".js-plotly-plot")
        is_done(page)
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
        page.keyboard.press("Control+s")
        deadline = time.monotonic() + 30
        while "execution_count\": 1" not in (lab/"backtest-1.ipynb").read_text() and time.monotonic() < deadline: time.sleep(0.2)
        copy = nbformat.read(lab/"backtest-1.ipynb", 4)
        assert "No look-ahead found" in json.dumps(copy) and (lab/"nbs"/"experiments"/"backtest.ipynb").read_bytes() == template
        # The second copy has the next name, in the folder that the launcher was opened in.
        page.get_by_role("menuitem", name="File", exact=True).click()
        page.get_by_text("New Launcher", exact=True).click()
        page.locator(TILE, has_text="Backtest").click()
        page.locator(".lm-TabBar-tabLabel", has_text="backtest-2.ipynb").wait_for()


CELLS = ["%load_ext sagelab", "%sage", "%backtest sma_cross --symbol SP500 --from 2005-01-01", "%sweep sma_cross --symbol SP500 fast=5:50:5 slow=20:200:20", "%backtest sma_cros --symbol SP500"]


def write_notebook(path: Path, cells: list[str]) -> None:
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=about), path)


def test_magics_show_what_they_found(lab: Path, home: Path, visit: Callable) -> None:
    write_notebook(lab/"magics.ipynb", CELLS)
    with serving(lab, home) as server:
        page = visit(server, "lab/tree/magics.ipynb", height=2600)  # what is out of sight is not drawn
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        run_all(page)
        page.get_by_text("Did you mean 'sma_cross'?").first.wait_for()
        page.locator(".js-plotly-plot").nth(1).wait_for()
        assert page.locator(".sagelab-card").count() == 3 and page.locator(".js-plotly-plot").count() == 2
        assert page.locator(".sagelab-card table").first.bounding_box()["width"] < 1000
        errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-OutputArea-output:has-text('Did you mean')")
        assert "Traceback" not in errors.last.inner_text() and errors.last.bounding_box()["height"] < 60
        picture(page, "magics")
        # Tab, as a person presses it.
        page.locator(".jp-Notebook .jp-CodeCell .cm-content").last.click()
        page.keyboard.press("Control+a")
        page.keyboard.type("%backtest mean")
        page.keyboard.press("Tab")
        page.wait_for_function("() => [...document.querySelectorAll('.jp-CodeCell .cm-content')].at(-1).innerText.includes('mean_reversion_scalper')"
                               " || [...document.querySelectorAll('.jp-Completer-item')].some((i) => i.innerText.includes('mean_reversion_scalper'))")
        assert {session["path"] for session in server.ask("api/sessions")} == {"magics.ipynb"}
        kernels = psutil.Process(server.process.pid).children(recursive=True)
    assert not [kernel for kernel in kernels if kernel.is_running() and kernel.status() != psutil.STATUS_ZOMBIE], "no kernel outlives its server"


def test_alone_by_default(lab: Path, home: Path, visit: Callable) -> None:
    with serving(lab, home) as server:
        page = visit(server, "lab/tree/nbs/experiments/backtest.ipynb")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        assert page.locator("[data-id='jp-collaboration-panel'], .jp-shared-link, [title*='Collaboration']").count() == 0
    assert not [path for path in lab.iterdir() if path.name.startswith(".jupyter")], "no notes among a person's files"


def test_together_two_people_edit_one_notebook(lab: Path, home: Path, visit: Callable) -> None:
    require(find_spec("jupyter_server_ydoc"), "no jupyter-collaboration: pip install 'sagelab[collaboration]'")
    write_notebook(lab/"shared.ipynb", [""])
    with serving(lab, home, "--together") as server:
        ada, bob = (visit(server, "lab/tree/shared.ipynb") for _ in range(2))
        for page in (ada, bob): page.wait_for_selector(".jp-Notebook .jp-CodeCell .cm-content")
        ada.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
        ada.keyboard.type("answer = 6 * 7; print('it is', answer)")
        bob.locator(".jp-CodeCell .cm-content", has_text="answer = 6 * 7; print('it is', answer)").wait_for()
        is_ready(ada)
        ada.keyboard.press("Control+Enter")
        for page in (ada, bob): page.locator(".jp-OutputArea-output", has_text="it is 42").wait_for()
        bob.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
        bob.keyboard.press("Control+End")
        bob.keyboard.type("  # bob was here")
        ada.locator(".jp-CodeCell .cm-content", has_text="# bob was here").wait_for()
        picture(ada, "together")
    assert not [path for path in lab.iterdir() if path.name.startswith(".jupyter")], "its notes are in the lab's private folder"


def test_a_port_in_use_is_refused_with_the_next_one(lab: Path, home: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "sagelab.cli.main", "lab", "--no-browser", "--port", str(port), "--json"]
        done = subprocess.run(words, cwd=lab, capture_output=True, text=True, env=own_environment(home), timeout=60)
    assert done.returncode == 2 and re.fullmatch(rf"error: Port {port} is in use\. Try: sagelab lab --port \d+\n", done.stderr), done.stderr
    assert json.loads(done.stdout)["type"] == "UsageError"


def test_the_extension_says_what_jupyterlab_needs(repository: Path) -> None:
    about = json.loads((repository/"labextension"/"package.json").read_text())
    code = (repository/"labextension"/about["jupyterlab"]["_build"]["load"]).read_text()
    assert about["name"] == "sagelab" and f"_JUPYTERLAB.{about['name']}" in code and "http" not in code.replace("http://www.w3.org/2000/svg", "")
