"The dashboard: what it shows is what happens, within two seconds; and its server begins, refuses and ends as it should."
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from dashboard_server import dashboard, environment
from sagelab.core.ledger import START, _head_text, open_ledger
from sagelab.core.settings import load_settings
from sagelab.lab.overview import Overview, Watcher, overview
from ui_pages import faint_words, screenshot, tab, unnamed_controls

FRESH = 2.0  # seconds from an event to the eye
SAGELAB = [sys.executable, "-m", "sagelab.cli.main"]


@contextmanager
def paper(lab: Path, *words: str) -> Iterator[subprocess.Popen]:
    "A paper session in a process of its own."
    process = subprocess.Popen([*SAGELAB, "paper", *words], cwd=lab, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try: yield process
    finally:
        process.kill()
        print(process.communicate()[1])


def seen(look: Callable[[], object], true: Callable[[object], bool], seconds: float = 60.0):
    "What was seen first that is as it should be."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true(found := look()): return found
        time.sleep(0.05)
    raise AssertionError(f"not seen within {seconds} s: {found}")


def lag(*moments: str) -> float:
    "Seconds between two moments of ISO 8601."
    from datetime import datetime
    first, second = map(datetime.fromisoformat, moments)
    return (second - first).total_seconds()


# ---- what is read --------------------------------------------------------------------------------------------------

def test_a_session_is_followed_as_it_goes(lab: Path) -> None:
    watcher = Watcher(load_settings(lab, {}))
    with paper(lab, "momentum_scalper", "--symbol", "EURUSD", "--speed", "72000"):
        view = seen(watcher.look, lambda view: view.live and view.live[0].fills >= 2)
        fills = view.live[0].fills
        later = seen(watcher.look, lambda view: view.live[0].fills > fills)
        filled = next(e for e in later.events if e.kind == "order.filled")
        assert 0 <= lag(filled.time, later.time) < FRESH
        holding = seen(watcher.look, lambda view: view.positions and view.positions[0].marked)
        position = holding.positions[0]
        moved = seen(watcher.look, lambda view: view.positions and view.positions[0].mark_price != position.mark_price)
        assert 0 <= lag(moved.positions[0].marked, moved.time) < FRESH and moved.live[0].market_time > view.live[0].market_time
        assert moved.exposure == abs(moved.positions[0].value) and moved.live[0].drawdown <= 0 and moved.live[0].state == "running"
        subprocess.run([*SAGELAB, "stop", "--reason", "the feed is stale"], cwd=lab, env=environment(), check=True, capture_output=True)
        stopped = seen(watcher.look, lambda view: view.stop)
        assert stopped.stop.reason == "the feed is stale" and 0 <= lag(stopped.stop.time, stopped.time) < FRESH
        ended = seen(watcher.look, lambda view: not view.live)
        assert ended.sessions[0].state == "stopped" and not ended.positions and ended.ledger.ok


def test_the_pulse_agrees_with_the_engine(lab: Path) -> None:
    "What a finished session was worth in the overview is what the engine says, with funding too."
    answer = subprocess.run([*SAGELAB, "paper", "buy_and_hold", "--symbol", "SP500", "--funding", "0.05", "--json"], cwd=lab, env=environment(), capture_output=True, text=True, check=True)
    told, (session,) = json.loads(answer.stdout), overview(load_settings(lab, {})).sessions
    assert abs(session.pnl - told["metrics"]["pnl"]) < 1e-6 and session.state == "finished" and session.session_id == told["session"]


def test_a_killed_session_is_told_from_a_running_one(lab: Path) -> None:
    if not Path("/proc/locks").exists(): pytest.skip("only Linux tells who holds a lock")
    watcher = Watcher(load_settings(lab, {}))
    with paper(lab, "buy_and_hold", "--symbol", "EURUSD", "--speed", "36000") as process:
        seen(watcher.look, lambda view: view.live and view.live[0].state == "running" and view.positions)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = seen(watcher.look, lambda view: view.live[0].state == "killed", FRESH)
        assert killed.positions, "what it held is still there"


def read_bytes() -> int:
    "How much this process has read so far."
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_long_ledger_is_read_once(lab: Path) -> None:
    if not Path("/proc/self/io").exists(): pytest.skip("only Linux tells how much a process has read")
    from sagelab.core.files import canonical_json, sha256
    lines, prev, number = [], START, 60_000
    for seq in range(number):
        entry = {"seq": seq, "time": "2026-01-01T00:00:00.000000+00:00", "kind": "stop.set" if seq == 70 else "note", "actor": "ada", "data": {"n": seq, "reason": "early"}, "prev": prev}
        prev = sha256(canonical_json(entry))
        lines.append(canonical_json(entry | {"hash": prev}) + "\n")
    ledger = open_ledger(lab)
    ledger.path.parent.mkdir(exist_ok=True)
    ledger.path.write_text("".join(lines))
    ledger.path.with_suffix(".head").write_text(_head_text(number - 1, prev))
    watcher = Watcher(load_settings(lab, {}))
    first = watcher.look(0.01)
    assert first.ledger.entries == number > first.ledger.verified and first.ledger.ok and len(first.events) == 12
    while watcher.look(0.5).ledger.verified < number: pass
    before = read_bytes()
    for n in range(5):
        ledger.append("note", {"n": n})
        view = watcher.look()
        assert view.ledger == type(view.ledger)(number + n + 1, number + n + 1)
    # Appending reads a block of 64 kB each time.
    assert read_bytes() - before < 1_500_000 < ledger.path.stat().st_size / 5
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"n":30000,', b'"n":30001,', 1))
    assert seen(lambda: watcher.look(0.5), lambda view: not view.ledger.ok).ledger.line == 30_001


def test_looking_makes_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path/"settings.ini").write_text("[lab]\n")
    before = tmp_path.stat().st_mtime_ns
    assert isinstance(Watcher(load_settings(tmp_path, {})).look(), Overview) and [*tmp_path.iterdir()] == [tmp_path/"settings.ini"] and tmp_path.stat().st_mtime_ns == before


def test_a_script_gets_the_same(lab: Path) -> None:
    answer = subprocess.run([*SAGELAB, "overview", "--json"], cwd=lab, env=environment(), capture_output=True, text=True)
    told, here = json.loads(answer.stdout), overview(load_settings(lab, {})).to_dict()
    assert answer.returncode == 0 and {k: v for k, v in told.items() if k != "time"} == {k: v for k, v in here.items() if k != "time"}


# ---- the server ----------------------------------------------------------------------------------------------------

def gone(pids: list[int]) -> bool: return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def kernels_of(process: subprocess.Popen) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_kernels_end_with_the_server(lab: Path, end: signal.Signals) -> None:
    with dashboard(lab) as served:
        kernel, kernels = served.page(), kernels_of(served.process)
        assert kernel and kernels
        served.process.send_signal(end)
        served.process.wait(20)
        seen(lambda: kernels, gone, 20)
        told = "".join(served.process.said)
        assert told.count("http") == 1 and "Traceback" not in told and len(served.process.said) == 2, "one address, and nothing else"
        if end == signal.SIGINT: assert served.process.returncode in (0, 130)


def test_a_port_in_use(lab: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = subprocess.run([*SAGELAB, "dashboard", "--no-browser", "--port", str(port)], cwd=lab, env=environment(), capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2 and f"Port {port} is in use. Try: sagelab dashboard --port " in answer.stderr and answer.stdout == "" and answer.stderr.count("error") == 1


def test_the_first_look_is_of_now(lab: Path) -> None:
    "The page was rendered before anybody asked; what it shows until it has come alive was not."
    with dashboard(lab) as served:
        subprocess.run([*SAGELAB, "stop", "--reason", "<b>just now</b>"], cwd=lab, env=environment(), check=True, capture_output=True)
        status, text, _ = served.ask("GET", "/")
        assert status == 200 and "coming alive" in text and "&lt;b&gt;just now&lt;/b&gt;" in text and "<b>just now</b>" not in text
        ledger = lab/".sagelab"/"ledger.jsonl"
        ledger.write_text(ledger.read_text().replace("just now", "long ago"))
        assert "Ledger damaged" in served.ask("GET", "/")[1]


# ---- the page ------------------------------------------------------------------------------------------------------

def figure(page, name: str) -> str: return page.locator(f".slm-tiles div:has(dt:text-is('{name}')) b").inner_text()


def test_the_page_in_a_browser(lab: Path, repository: Path, browser, tmp_path: Path) -> None:
    import shutil
    shutil.copytree(repository/"reports"/"example", lab/"reports"/"example")
    with paper(lab, "buy_and_hold", "--symbol", "SP500", "--speed", "864000"), dashboard(lab) as served, tab(browser, served.url, 1400, 1500) as page:
        page.wait_for_selector(".slm .sl-plot[data-drawn] .js-plotly-plot .scatterlayer path", state="attached")
        assert page.locator("#loading").count() == 0, "the first look goes when the page has come alive"
        assert page.url == f"http://{served.host}/" and "token" not in page.evaluate("document.referrer + JSON.stringify(performance.getEntriesByType('navigation')[0].name)")
        page.wait_for_function("document.querySelector('.slm-tiles').innerText.match(/Open positions\\s+1/)")
        screenshot(page, "dashboard-light", tmp_path)
        first = figure(page, "Profit")
        page.wait_for_function("before => [...document.querySelectorAll('.slm-tiles div')].find(d => d.innerText.startsWith('Profit')).querySelector('b').innerText !== before", arg=first)
        assert unnamed_controls(page, ".slm") == [] and faint_words(page, ".slm") == []
        assert page.locator(".slm button, .slm input, .slm select, .slm [contenteditable]").count() == 0, "there is nothing to press"
        assert page.locator(".slm table").count() == page.locator(".slm table caption").count() >= 4 and page.locator(".slm [role=alert]").count() == 2
        for width in (380, 2560):
            page.set_viewport_size({"width": width, "height": 1500})
            page.wait_for_function("document.querySelector('.slm').scrollWidth <= innerWidth + 1")
            screenshot(page, f"dashboard-{width}", tmp_path)
        page.set_viewport_size({"width": 1400, "height": 1500})
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("getComputedStyle(document.querySelector('.slm')).backgroundColor === 'rgb(22, 24, 27)'")
        assert faint_words(page, ".slm") == []
        # A table keeps its place while its words change.
        page.locator(".slm .scroll:has(caption:text-is('Last entries'))").focus()
        subprocess.run([*SAGELAB, "stop", "--reason", "<b>stale</b>"], cwd=lab, env=environment(), check=True, capture_output=True)
        begun = time.monotonic()
        page.wait_for_selector(".slm [role=alert] .slm-banner:has-text('Stopped')")
        shown = page.evaluate("document.querySelector('.slm-clock').innerText")
        assert time.monotonic() - begun < 10 and "<b>stale</b>" in page.locator(".slm-banner").inner_text() and shown.startswith("as of")
        assert page.evaluate("document.activeElement.classList.contains('scroll')"), "the focus stays where it was"
        screenshot(page, "dashboard-stopped-dark", tmp_path)
        # A page whose server is gone does not look alive.
        served.process.kill()
        page.wait_for_selector(".slm.slm-late .slm-alert:has-text('No news')")


def test_an_empty_lab(lab: Path, browser, tmp_path: Path) -> None:
    "A lab of an older kind, without a dashboard of its own."
    import shutil
    shutil.rmtree(lab/"nbs"/"dashboards", ignore_errors=True)
    with dashboard(lab) as served, tab(browser, served.url) as page:
        page.wait_for_selector(".slm .slm-tiles")
        assert "no session is running" in page.locator(".slm-tiles").inner_text() and figure(page, "Profit") == "–" and "✓ open" in figure(page, "Lab")
        # An altered ledger is loud, and nothing acts on it.
        open_ledger(lab).append("note", {"n": 1})
        path = lab/".sagelab"/"ledger.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"n":1', b'"n":2'))
        page.wait_for_selector(".slm-banner:has-text('Ledger damaged')")
        screenshot(page, "dashboard-damaged", tmp_path)
