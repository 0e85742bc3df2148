"Real pages for browser tests: a notebook served by Voila or opened in JupyterLab, and what a person would check on it."
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

# Read before a test takes all SAGELAB_* out of its environment.
SCREENSHOTS = os.environ.get("SAGELAB_SCREENSHOTS", "")
PATIENCE = 60_000  # milliseconds; a shared machine is slow now and then
TOKEN = "for-this-test-only"
NOT_FOR_VOILA = ("sagelab", "@jupyter/docprovider-extension", "@jupyter/collaboration-extension", "jupyterlab-jupytext")
VOILA_OWN = "https://cdn.jsdelivr.net/npm/@fortawesome/"  # icons that Voila's own template asks for; nothing here needs them
UNNAMED = """root => {
  const seen = e => e.getClientRects().length && getComputedStyle(e).visibility !== "hidden";
  const named = e => e.getAttribute("aria-label") || (e.getAttribute("aria-labelledby") || "").split(" ").map(id => document.getElementById(id)?.textContent ?? "").join("").trim()
    || [...(e.labels ?? [])].map(l => l.textContent).join("").trim() || ((/^(BUTTON|A|SUMMARY)$/.test(e.tagName) || e.getAttribute("role")) && e.textContent.trim());
  const controls = "input, select, textarea, button, summary, a[href], [tabindex='0'], [role=slider], [role=tab], [role=button], [contenteditable=true]";
  return [...root.querySelectorAll(controls)].filter(e => seen(e) && !named(e)).map(e => e.outerHTML.slice(0, 160));
}"""
CONTRAST = """root => {
  const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number), part = p => p <= .04045 ? p / 12.92 : ((p + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * part(r / 255) + .7152 * part(g / 255) + .0722 * part(b / 255);
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const found = [], walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.getClientRects().length || e.closest("svg, style, script, .unseen, option")) continue;
    const [low, high] = [luminance(parse(getComputedStyle(e).color)), luminance(ground(e))].sort((a, b) => a - b);
    if ((high + .05) / (low + .05) < 4.5) found.push(`${walk.currentNode.textContent.trim().slice(0, 40)}: ${((high + .05) / (low + .05)).toFixed(2)}`);
  }
  return found;
}"""


def write_notebook(path: Path, *cells: str) -> Path:
    "A notebook of code cells."
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
               "cells": [cell | {"id": f"cell-{place}", "source": source} for place, source in enumerate(cells)]}
    path.write_text(json.dumps(content))
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(
    words: list[str],  # what follows `python -m`; {port} is filled in
    ready: str,  # a path that answers when it is up
    folder: Path,  # working folder
    lab: Path,  # the lab that notebooks belong to
    private: Path,  # a folder for everything Jupyter wants to keep
) -> Iterator[str]:  # the address, without a slash at its end
    "A server of its own, with nothing of the user's configuration; it and its kernels are gone afterwards."
    port = free_port()
    own = {f"JUPYTER_{name}_DIR": str(private/name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")} | {"IPYTHONDIR": str(private/"ipython"), "JUPYTERLAB_SETTINGS_DIR": str(private/"lab"),
           "JUPYTERLAB_WORKSPACES_DIR": str(private/"workspaces"), "SAGELAB_LAB": str(lab), "JUPYTER_PLATFORM_DIRS": "0"}
    # A server may be started before a test has taken them away.
    others = {name: value for name, value in os.environ.items() if not name.startswith("SAGELAB_")}
    private.mkdir(parents=True, exist_ok=True)
    with open(private/"server.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", *(word.format(port=port) for word in words)], cwd=folder, env=others | own, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + PATIENCE / 1000
            while not _answers(f"http://127.0.0.1:{port}{ready}"):
                assert server.poll() is None and time.monotonic() < deadline, (private/"server.log").read_text()[-3000:]
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)
            try: server.wait(15)
            except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try: return urllib.request.urlopen(url, timeout=5).status < 500
    except urllib.error.HTTPError as error: return error.code < 500
    except OSError: return False


@contextmanager
def voila_server(notebook: Path, lab: Path, private: Path, *options: str) -> Iterator[str]:
    "Voila with one notebook; a page with `?theme=dark` is dark."
    # Voila loads every extension of JupyterLab, also those that need parts of JupyterLab that it has not.
    words = ["voila", str(notebook), "--no-browser", "--Voila.ip=127.0.0.1", "--port={port}", "--VoilaConfiguration.allow_theme_override=YES",
             *(f"--VoilaConfiguration.extension_denylist={name}" for name in NOT_FOR_VOILA), *options]
    with serving(words, "/voila/static/nothing", notebook.parent, lab, private) as address: yield address


@contextmanager
def lab_server(folder: Path, lab: Path, private: Path) -> Iterator[str]:
    "JupyterLab on a folder; it asks nobody whether they want its news."
    answered = private/"lab"/"@jupyterlab"/"apputils-extension"/"notification.jupyterlab-settings"
    answered.parent.mkdir(parents=True, exist_ok=True)
    answered.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    words = ["jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
             "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.expose_app_in_browser=True", "--allow-root"]
    with serving(words, f"/api?token={TOKEN}", folder, lab, private) as address: yield address


@contextmanager
def tab(browser, url: str, width: int = 1400, height: int = 900, scheme: str = "light") -> Iterator:
    "A page in a window of its own; at its end no script has complained and nothing was fetched from elsewhere."
    session, told, fetched = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme), [], []
    page = session.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(url)
    yield page
    home = urlsplit(url).netloc
    assert not told, told
    outside = [found for found in fetched if not found.startswith(("data:", "blob:", VOILA_OWN)) and urlsplit(found).netloc != home]
    assert not outside, outside
    session.close()


def open_in_lab(page, cells: bool = True) -> None:
    "Wait for the notebook of a JupyterLab page and run all of its cells."
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function("window.jupyterapp && [...document.querySelectorAll('.jp-Notebook-ExecutionIndicator')].some(e => e.dataset.status === 'idle')")
    if cells: page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")


def set_lab_theme(page, name: str) -> None:
    "Give JupyterLab another theme, e.g. JupyterLab Dark."
    page.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', { theme: name })", name)
    page.wait_for_function("name => document.body.dataset.jpThemeName === name && !document.getElementById('jupyterlab-splash')", arg=name)


def screenshot(page, name: str, folder: Path, selector: str = "") -> Path:
    "Keep a picture, in the folder that SAGELAB_SCREENSHOTS names or else in the given one."
    path = Path(SCREENSHOTS or folder)/f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if selector: page.locator(selector).first.screenshot(path=path)
    else: page.screenshot(path=path)
    return path


def unnamed_controls(page, selector: str = ".sagelab") -> list[str]:
    "Controls in view that a screen reader could not call by a name."
    return page.locator(selector).first.evaluate(UNNAMED)


def faint_words(page, selector: str = ".sagelab") -> list[str]:
    "Words in view whose contrast to their background is below 4.5."
    return page.locator(selector).first.evaluate(CONTRAST)
