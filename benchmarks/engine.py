"""The event engine with an ordinary Python on_tick and full accounting: bars per CPU-second, the peer, and growth to two million bars."""
import sys, time
import numpy as np, pandas as pd
from measure import publish, ratio_text, side_by_side
from peers import backtesting_sma
from sagelab.data.store import load_bars
from sagelab.strategy.registry import get_strategy
from sagelab.trading.costs import Costs
from sagelab.trading.engine import backtest


def long_series(count: int) -> pd.DataFrame:
    "Real daily bars, chained end to end to the length asked for, on a one-minute clock."
    source = load_bars("SP500").to_numpy()
    values = np.tile(source, (-(-count // len(source)), 1))[:count]
    index = pd.date_range("2000-01-01", periods=count, freq="1min", tz="UTC", name="time").as_unit("ns")
    bars = pd.DataFrame(values, index=index, columns=["open", "high", "low", "close", "volume"])
    bars.attrs.update(symbol="LONG", interval="1m")
    return bars


def run(bars):
    return backtest(SmaCross, bars, {"fast": 10, "slow": 30}, costs=Costs(fee=0.001), fill="close")


SmaCross = get_strategy("sma_cross")
bars = long_series(200_000)
measured = side_by_side(lambda: run(bars), lambda: backtesting_sma(bars, 10, 30), rounds=5, clock=time.process_time)
speed = len(bars) / measured["ours_seconds"]
seconds = {}
for count in (200_000, 500_000, 1_000_000, 2_000_000):
    series = long_series(count)
    begun = time.process_time()
    run(series)
    seconds[count] = time.process_time() - begun
per_bar = {count: used / count for count, used in seconds.items()}
growth = per_bar[2_000_000] / per_bar[200_000]
sys.exit(publish("engine", [
    {"what": "bars per CPU-second, 200,000 bars", "figure": f"{speed:,.0f}", "wanted": ">= 600,000", "met": speed >= 600_000},
    {"what": "against backtesting.py", "figure": ratio_text(measured), "wanted": ">= 4x", "met": measured["ratio"] >= 4},
    {"what": "time a bar, 2,000,000 over 200,000", "figure": f"{growth:.2f}", "wanted": "<= 1.3 (linear)", "met": growth <= 1.3},
], measured=measured, seconds=seconds))
