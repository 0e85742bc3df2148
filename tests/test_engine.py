"""The engine against random strategies, against vectorbt, and against a strategy that searches memory for the future."""
import gc, random, subprocess, sys, types
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy
from sagelab.trading.costs import Costs
from sagelab.trading.engine import CHUNK, backtest

BARS = load_bars("EURUSD")


class Monkey(Strategy):
    "Decides at random, from a seed: every kind of order, size and exit."

    def __init__(self, seed: int, sides=("long", "short", "flat")): self.seed, self.sides = seed, sides

    def initialize(self, config): self.random = random.Random(self.seed)

    def on_tick(self, market):
        r = self.random
        if r.random() > 0.2: return None
        kind = r.choice(["market", "market", "limit", "stop"])
        return Decision(r.choice(self.sides), r.choice([10, 50, 100, r.uniform(1, 100)]), kind, None if kind == "market" else market.close * r.uniform(0.999, 1.001),
                        tp=r.choice([None, r.uniform(0.0001, 0.01)]), sl=r.choice([None, r.uniform(0.0001, 0.01)]),
                        target_duration=r.choice([None, r.uniform(1, 50_000)]), valid_for=r.choice([None, r.uniform(1, 50_000)]))


@given(st.integers(0, 10**6), st.integers(0, 5000), st.sampled_from(["next_open", "close"]), st.floats(0, 0.01), st.floats(0, 0.005), st.floats(-0.5, 1))
@settings(max_examples=150, deadline=None)
def test_books_balance_and_runs_repeat(seed, first, fill, fee, slippage, funding):
    bars, costs = BARS.iloc[first:first + 400], Costs(fee=fee, slippage=slippage, spread=slippage, funding=funding)
    result, again = (backtest(Monkey(seed), bars, costs=costs, fill=fill) for _ in range(2))
    assert result.trades_sha256 == again.trades_sha256 and result.metrics == again.metrics and result.equity.equals(again.equity)
    assert result.metrics["pnl"] == pytest.approx(sum(t.pnl for t in result.trades), abs=1e-5)
    times = bars.index.as_unit("ns").asi8
    assert all(times[0] <= t.entry_ns <= t.exit_ns <= times[-1] for t in result.trades)
    low, high = bars.low.min() * (1 - 2 * slippage), bars.high.max() * (1 + 2 * slippage)
    assert all(low <= f.price <= high and f.quantity > 0 and f.fee >= 0 for f in result.fills)
    assert {o.status for o in result.orders} <= {"created", "filled", "cancelled", "rejected"}


@given(st.integers(0, 10**6), st.floats(0, 0.01))
@settings(max_examples=60, deadline=None)
def test_long_only_never_borrows(seed, fee):
    result = backtest(Monkey(seed, ("long", "flat")), BARS.iloc[:400], costs=Costs(fee=fee))
    cash = result.equity - result.positions * result.bars.close
    assert cash.min() > -1e-6 and result.positions.min() >= 0


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_past_does_not_change_when_more_bars_come(seed):
    short, long = (backtest(Monkey(seed), BARS.iloc[:count]) for count in (300, 600))
    assert short.equity.equals(long.equity.iloc[:300])
    closed = [t for t in short.trades if not t.open]
    assert closed == long.trades[:len(closed)]


def reachable_numbers(start) -> set[float]:
    "Every number that can be reached from an object by following references, but not through code."
    seen, found, rest = set(), set(), [start]
    while rest:
        thing = rest.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType)): continue
        seen.add(id(thing))
        if isinstance(thing, float): found.add(thing)
        elif isinstance(thing, np.ndarray):
            found.update(thing.ravel().tolist())
            if thing.base is not None: rest.append(thing.base)
        else: rest += gc.get_referents(thing)
    return found


def test_nothing_reachable_from_market_is_later_than_its_bar():
    values = BARS[["open", "high", "low", "close", "volume"]].to_numpy()
    first_seen = pd.Series(np.repeat(np.arange(len(values)), 5), values.ravel()).groupby(level=0).min()

    class Searcher(Strategy):
        def initialize(self, config): self.looked = 0

        def on_tick(self, market):
            if market.bar_number in (0, 5, 1000, CHUNK - 1, CHUNK, CHUNK + 7, len(BARS) - 1):
                known = first_seen.index.intersection(list(reachable_numbers(market)))
                assert first_seen[known].max() == market.bar_number
                assert len(known) >= market.bar_number
                self.looked += 1

    searcher = Searcher()
    backtest(searcher, BARS)
    assert searcher.looked == 7


@pytest.mark.parametrize("strategy, symbol", [("buy_and_hold", "SP500"), ("sma_cross", "SP500"), ("sma_cross", "EURUSD")])
def test_the_same_fills_as_a_vectorbt_portfolio(strategy, symbol):
    result = backtest(strategy, symbol, costs=Costs(fee=0.001, slippage=0.0005))
    theirs = result.to_vectorbt()
    assert np.allclose(theirs.value(), result.equity, rtol=1e-9)
    assert theirs.trades.count() == result.metrics["trades"]


def test_metrics_as_vectorbt_has_them():
    result = backtest("sma_cross", "SP500", costs=Costs(fee=0.001))
    import vectorbt  # noqa: F401 - it adds .vbt to pandas
    theirs = result.equity.pct_change().fillna(0).vbt.returns(freq="1D", year_freq="252D")
    for name, value in (("sharpe", theirs.sharpe_ratio()), ("sortino", theirs.sortino_ratio()), ("max_drawdown", theirs.max_drawdown()), ("return", theirs.total())):
        assert result.metrics[name] == pytest.approx(value, abs=1e-9), name
    assert result.metrics["volatility"] == pytest.approx(theirs.annualized_volatility(), abs=1e-9)


TRACED = """
import sys, threading, time
from sagelab.trading import engine

def trace(*_): return trace

def work(asked):
    with engine.watchdog(lambda: 0, 0.1, "The strategy"):
        asked.set()
        time.sleep(1)

ended = []
def outer(asked):
    try: work(asked)
    except BaseException as error: ended.append(type(error).__name__)

threading.settrace(trace); sys.settrace(trace)
asked = threading.Event()
thread = threading.Thread(target=outer, args=(asked,), daemon=True)
thread.start(); asked.wait()
# Whoever waits gives up just when the body ends, as a trial does with a strategy that cannot be stopped.
import ctypes
thread.join(0.25)
ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
thread.join(20)
print(ended)
"""


def test_a_watched_thread_ends_under_a_debugger():
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and ("KeyboardInterrupt" in done.stdout or "StrategyError" in done.stdout), done.stderr
