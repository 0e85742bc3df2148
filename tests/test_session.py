"Backtest, replay and paper are one loop; a killed session loses nothing; the latch halts everything."
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sagelab.core.errors import Stopped
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.core.stop import open_latch
from sagelab.data.store import load_bars
from sagelab.strategy.registry import get_strategy
from sagelab.trading.costs import Costs
from sagelab.trading.engine import backtest
from sagelab.trading.paper import Conditions
from sagelab.trading.session import run_session, session_events

STRATEGIES = ("buy_and_hold", "sma_cross", "momentum_scalper", "mean_reversion_scalper")
SAMPLES = ("SP500", "NASDAQ", "EURUSD")
COSTS = Costs(fee=0.001, spread=0.0002)
TROUBLE = Conditions((5, 900_000), partial_fill=0.3, slippage=0.001, reject=0.05, disconnect=0.2, seed=11)
KILLS = 100


@pytest.fixture
def settings(lab: Path):
    return load_settings(lab)


@pytest.mark.parametrize("symbol", SAMPLES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_backtest_replay_and_paper_leave_the_same_trades_log(name: str, symbol: str, settings) -> None:
    strategy, bars = get_strategy(name, settings.root), load_bars(symbol, lab=settings.root)
    tested = backtest(strategy, bars, costs=COSTS, lab=settings.root)
    replayed = run_session(strategy, bars, settings=settings, costs=COSTS, journal=False)
    papered = run_session(strategy, bars, settings=settings, costs=COSTS)
    assert tested.trade_log().encode() == replayed.result.trade_log().encode() == (papered.folder/"trades.log").read_bytes()
    assert tested.metrics == replayed.result.metrics == papered.result.metrics


@pytest.mark.parametrize("symbol", SAMPLES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_seeded_trouble_is_the_same_trouble_again(name: str, symbol: str, settings) -> None:
    strategy, bars = get_strategy(name, settings.root), load_bars(symbol, lab=settings.root)
    first, second = (run_session(strategy, bars, settings=settings, costs=COSTS, conditions=TROUBLE, journal=False, risk=risk) for risk in ("watch", "off"))
    assert first.result.trade_log() == second.result.trade_log()
    assert abs(first.result.metrics["pnl"] - sum(t.pnl for t in first.result.trades)) < 1e-6
    other = run_session(strategy, bars, settings=settings, costs=COSTS, conditions=Conditions(TROUBLE.latency_ms, seed=12, reject=0.05, slippage=0.001), journal=False)
    if len(first.result.trades) > 20: assert other.result.trade_log() != first.result.trade_log()


def paper_once(root: Path, ready) -> None:
    "A session in a process of its own, which may be killed at any moment."
    settings = load_settings(root)
    ready.set()
    run_session(get_strategy("momentum_scalper", root), load_bars("EURUSD", lab=root).iloc[:2500], settings=settings, costs=COSTS, conditions=TROUBLE)


def test_a_session_killed_at_a_hundred_points_loses_and_doubles_nothing(lab: Path) -> None:
    "kill -9 again and again at random moments; each start goes on where the last one ended, or begins the next session."
    context, dice, killed, finished = multiprocessing.get_context("fork"), random.Random(20260101), 0, 0
    settings = load_settings(lab)
    strategy, bars = get_strategy("momentum_scalper", lab), load_bars("EURUSD", lab=lab).iloc[:2500]
    whole = run_session(strategy, bars, settings=settings, costs=COSTS, conditions=TROUBLE, journal=False)
    begun = time.monotonic()
    run_session(strategy, bars, settings=settings, costs=COSTS, conditions=TROUBLE)
    patience = time.monotonic() - begun
    while killed < KILLS:
        ready = context.Event()
        child = context.Process(target=paper_once, args=(lab, ready))
        child.start()
        assert ready.wait(30)
        child.join(dice.uniform(0, 0.5 * patience))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            killed += 1
        else: finished += 1
    last = run_session(strategy, bars, settings=settings, costs=COSTS, conditions=TROUBLE)
    ledger = open_ledger(lab)
    assert ledger.verify().ok
    sessions = [entry.data["session"] for entry in ledger.entries("session.started")]
    assert len(sessions) == len(set(sessions)) >= 2, "each session has one beginning, however often it was killed"
    for session in sessions: check_reconciles(session_events(ledger, session), whole)
    assert last.result.trade_log() == whole.result.trade_log()
    print(f"{killed} kills, {finished + 2} sessions finished, {len([*ledger.entries()]):,} entries")


def check_reconciles(events: list[tuple[str, dict]], whole) -> None:
    "The ledger alone gives the position, and every order once."
    kinds = [kind for kind, _ in events]
    assert kinds[0] == "session.started" and kinds.count("session.started") == 1 and kinds.count("session.finished") == 1
    created = [data["client_order_id"] for kind, data in events if kind == "order.created"]
    assert len(created) == len(set(created)) == len(whole.result.orders)
    fills = [data["fill"] for kind, data in events if kind in ("order.filled", "order.partial")]
    assert [(f["price"], f["quantity"]) for f in fills] == [(f.price, f.quantity) for f in whole.result.fills]
    position = sum((1 if f["side"] == "buy" else -1) * f["quantity"] for f in fills)
    assert abs(position - dict(events)["session.finished"]["position"]) < 1e-6


def test_a_changed_strategy_does_not_continue_a_killed_session(settings) -> None:
    class Killed(BaseException): "Stands for kill -9."
    def die(done, total): raise Killed
    bars, Scalper = load_bars("SP500", lab=settings.root), get_strategy("momentum_scalper", settings.root)
    with pytest.raises(Killed): run_session(Scalper, bars, settings=settings, costs=COSTS, progress=die)
    from sagelab.core.errors import LedgerError
    class Other(Scalper):
        name = "momentum_scalper"
        def on_tick(self, market):
            decision = super().on_tick(market)
            return decision if market.bar_number > 200 else None
    with pytest.raises(LedgerError, match="cannot be continued: its event 2 was order.created"): run_session(Other, bars, settings=settings, costs=COSTS)
    assert run_session(Other, bars, settings=settings, costs=COSTS, fresh=True).resumed == 0


def test_a_stop_that_was_lifted_still_ends_the_sessions_of_the_dead(settings) -> None:
    class Killed(BaseException): "Stands for kill -9."
    def die(done, total): raise Killed
    bars, Scalper = load_bars("SP500", lab=settings.root), get_strategy("momentum_scalper", settings.root)
    with pytest.raises(Killed): run_session(Scalper, bars, settings=settings, costs=COSTS, progress=die)
    open_latch(settings.root).set("enough", "tester")
    open_latch(settings.root).clear("go on", "tester")
    assert run_session(Scalper, bars, settings=settings, costs=COSTS).resumed == 0
    kinds = [entry.kind for entry in open_ledger(settings.root).entries()]
    assert kinds.count("session.started") == 2 and kinds.count("session.stopped") == 1 and kinds.count("session.finished") == 1


def test_the_latch_ends_a_session_in_a_thread_whose_strategy_swallows_it(settings) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from sagelab.strategy.base import Strategy
    class Deaf(Strategy):
        def on_tick(self, market):
            try: time.sleep(0.01)
            except BaseException: pass
    threading.Timer(0.5, lambda: open_latch(settings.root).set("enough")).start()
    begun, bars = time.monotonic(), load_bars("SP500", lab=settings.root)
    with ThreadPoolExecutor(1) as pool, pytest.raises(Stopped): pool.submit(backtest, Deaf, bars, lab=settings.root).result()
    with pytest.raises(Stopped): backtest(Deaf, bars, lab=settings.root)
    assert time.monotonic() - begun < 30


def test_every_try_on_the_command_line_counts(lab: Path) -> None:
    for words in (["backtest"], ["paper"], ["replay-market"]):
        subprocess.run([sys.executable, "-m", "sagelab.cli.main", *words, "sma_cross", "--symbol", "SP500", "-c", f"fast={5 + len(words[0])}", "--json"], cwd=lab, check=True, capture_output=True)
    assert len({entry.data["variant"] for entry in open_ledger(lab).entries("backtest.finished")}) == 3


def test_two_sessions_of_the_same_kind_do_not_share_one_journal(lab: Path) -> None:
    words = [sys.executable, "-m", "sagelab.cli.main", "paper", "sma_cross", "--symbol", "SP500", "--json"]
    running = [subprocess.Popen(words, cwd=lab, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [json.loads(process.communicate()[0]) for process in running]
    assert len({f["session"] for f in found}) == 3 and len({f["trades_sha256"] for f in found}) == 1 and open_ledger(lab).verify().ok


SLOW = '''
from sagelab.strategy.base import Decision, Strategy

class Slow(Strategy):
    "Leaves an order open and takes its time."
    def on_tick(self, market):
        import time
        if market.bar_number == 2: return Decision("long", order_type="limit", price=1.0)
        {work}
'''


@pytest.mark.parametrize("verb", ["backtest", "paper", "replay-market", "run", "sweep", "guard"])
def test_the_latch_halts_whatever_runs(verb: str, lab: Path) -> None:
    begun, deadline = lab/"begun", time.monotonic() + 60
    slow = SLOW.format(work=f"open({str(begun)!r}, 'w').close(); time.sleep(0.05)")
    (lab/"strategies"/"slow.py").write_text(slow)
    words = {"run": ["run", "nbs/experiments/backtest.ipynb", "-p", "strategies", "slow"], "sweep": ["sweep", "slow", "--symbol", "SP500", "--grid", "x=1,2"]}
    if verb == "sweep": (lab/"strategies"/"slow.py").write_text(slow.replace(
        "    def on_tick", "    class Config(StrategyConfig):\n        x: int = 1\n    def on_tick").replace("import Decision, Strategy", "import Decision, Strategy, StrategyConfig"))
    process = subprocess.Popen([sys.executable, "-m", "sagelab.cli.main", *words.get(verb, [verb, "slow", "--symbol", "SP500"])], cwd=lab,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline: time.sleep(0.05)
    time.sleep(0.5)
    assert begun.exists() and process.poll() is None, process.communicate()[1]
    open_latch(lab).set("the test says so", "tester")
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1 and "the test says so" in told and "sagelab resume" in told
    entries = [(entry.kind, entry.data) for entry in open_ledger(lab).entries()]
    if verb == "paper":
        assert ("order.cancelled", "stopped") in [(kind, data.get("reason")) for kind, data in entries] and "session.stopped" in dict(entries)
    if verb == "run": assert "run.stopped" in dict(entries) and not [*lab.glob("reports/.partial*")]
    again = subprocess.run([sys.executable, "-m", "sagelab.cli.main", "backtest", "sma_cross", "--symbol", "SP500"], cwd=lab, capture_output=True, text=True)
    assert again.returncode == 1 and "the test says so" in again.stderr, "it survives a restart"


def test_a_strategy_that_swallows_everything_is_halted_too(settings) -> None:
    class Stubborn(type(get_strategy("sma_cross", settings.root)()).__mro__[1]):
        def on_tick(self, market):
            try: time.sleep(0.01)
            except Exception: pass
    import threading
    threading.Timer(0.5, lambda: open_latch(settings.root).set("enough")).start()
    begun = time.monotonic()
    with pytest.raises(Stopped): run_session(Stubborn, load_bars("SP500", lab=settings.root), settings=settings)
    assert time.monotonic() - begun < 30
