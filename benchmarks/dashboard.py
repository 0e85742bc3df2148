"From opening the address to painted plots: the dashboard, with a page ready, against Voila as it comes with the same notebook in the same browser."
import os, re, shutil, socket, subprocess, sys, tempfile, threading
from pathlib import Path
from measure import publish, ratio_text, side_by_side
from playwright.sync_api import sync_playwright
from sagelab.core.settings import load_settings
from sagelab.lab.template import init_lab
from sagelab.strategy.registry import get_strategy
from sagelab.data.store import load_bars
from sagelab.trading.session import run_session

ROUNDS, MOST_SECONDS, TIMES = 5, 3.0, 3.0
ALIVE = ".slm .sl-plot[data-drawn] .scatterlayer path"
FIRST = "#loading svg polyline"  # plots that the server painted, until the page has come alive
SAGELAB = [sys.executable, "-c", "import sys; from sagelab.cli.main import main; sys.exit(main())"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SAGELAB_")}


def make_lab() -> Path:
    "A lab with a finished session, so that there is something to draw."
    lab = init_lab(Path(tempfile.mkdtemp()) / "lab")
    run_session(get_strategy("momentum_scalper"), load_bars("SP500", lab=lab), settings=load_settings(lab, {}))
    return lab


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served(words: list[str], folder: Path) -> tuple[subprocess.Popen, str]:
    "A server, and its address."
    process = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            # What nobody reads would stop the server in the end.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, found[0]
    sys.exit(f"{words} did not start")


def painted(browser, url: str, plots: str = ALIVE) -> None:
    "Open the address in a fresh window and wait for the plots, and for a picture of them."
    window = browser.new_context()
    page = window.new_page()
    page.goto(url)
    page.wait_for_selector(plots, state="attached", timeout=120_000)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    window.close()


lab = make_lab()
notebook = shutil.copy(Path("nbs/dashboards/monitor.ipynb"), lab / "nbs" / "monitor.ipynb")
ours, url = served([*SAGELAB, "dashboard", "--no-browser", "--port", str(free_port())], lab)
port = free_port()
theirs, _ = served([sys.executable, "-m", "voila", str(notebook), "--no-browser", f"--port={port}"], lab)
try:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
        # While the peer is visited, our next page is made ready, as it is between two people.
        peer = lambda: painted(chromium, f"http://localhost:{port}/")
        found, alive = side_by_side(lambda: painted(chromium, url, FIRST), peer, ROUNDS), side_by_side(lambda: painted(chromium, url), peer, ROUNDS)
        chromium.close()
finally:
    for process in (ours, theirs): process.terminate()
    for process in (ours, theirs):
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()
sys.exit(publish("dashboard", [
    {"what": "address opened to painted plots, page ready", "figure": f"{found['ours_seconds']:.2f} s", "wanted": f"<= {MOST_SECONDS:g} s", "met": found["ours_seconds"] <= MOST_SECONDS},
    {"what": "against Voila as it comes", "figure": ratio_text(found), "wanted": f">= {TIMES:g}x", "met": found["ratio"] >= TIMES},
    {"what": "until these plots go on by themselves", "figure": ratio_text(alive), "wanted": f"<= {MOST_SECONDS:g} s", "met": alive["ours_seconds"] <= MOST_SECONDS},
], **found))
