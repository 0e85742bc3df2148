"""10,000 SMA pairs on the bundled index with return, Sharpe ratio, drawdown and trades, against vectorbt's numba and rust engines."""
import itertools, sys
import numpy as np
from measure import in_fresh_process, publish, ratio_text, side_by_side
from peers import vectorbt_sma
from sagelab.data.store import load_bars
from sagelab.strategy.registry import get_strategy
from sagelab.trading.costs import Costs
from sagelab.trading.sweep import sweep

GRID = {"fast": range(5, 55), "slow": range(20, 220)}
PAIRS = list(itertools.product(*GRID.values()))
CHUNK = 1000  # columns at a time: vectorbt is not slower so, and needs 0.5 GB instead of 5
bars, SmaCross = load_bars("SP500"), get_strategy("sma_cross")


def ours(threads: int = 0): return sweep(SmaCross, bars, GRID, costs=Costs(fee=0.001), fill="close", threads=threads).table


def theirs(engine: str, pairs=PAIRS) -> np.ndarray:
    "Return, Sharpe ratio, drawdown and trades of every pair."
    parts = []
    for first in range(0, len(pairs), CHUNK):
        portfolio = vectorbt_sma(bars.close, pairs[first:first + CHUNK], engine=engine)
        parts.append(np.c_[portfolio.total_return(), portfolio.sharpe_ratio(year_freq="252D"), portfolio.max_drawdown(), portfolio.trades.count()])
    return np.concatenate(parts)


COLD = """
import json, sys, time
begun = time.perf_counter()
from sagelab.data.store import load_bars
from sagelab.strategy.registry import get_strategy
from sagelab.trading.costs import Costs
from sagelab.trading.sweep import sweep
bars, SmaCross = load_bars("SP500"), get_strategy("sma_cross")
import numba, sagelab.trading.kernels
imported = time.perf_counter() - begun
begun = time.perf_counter()
sweep(SmaCross, bars, {"fast": range(5, 6), "slow": range(20, 21)}, costs=Costs(fee=0.001), fill="close")
started = time.perf_counter() - begun
sweep(SmaCross, bars, {"fast": range(5, 55), "slow": range(20, 220)}, costs=Costs(fee=0.001), fill="close")
import resource
print(json.dumps({"imported": imported, "started": started, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""

table = ours()
rows, details = [], {}
fresh = in_fresh_process(COLD)
for engine in ("numba", "rust"):
    expected = theirs(engine)
    mine = table[["return", "sharpe", "max_drawdown", "trades"]].to_numpy(float)
    never = table.trades.to_numpy() == 0  # Without a trade vectorbt calls the Sharpe ratio infinite; we say undefined.
    mine[never, 1] = expected[never, 1] = 0
    apart = np.abs(mine - expected).max(axis=0)
    rows.append({"what": f"every cell against vectorbt {engine}", "figure": " ".join(f"{v:.0e}" for v in apart), "wanted": "<= 1e-9", "met": bool((apart <= 1e-9).all())})
    measured = details[engine] = side_by_side(ours, lambda: theirs(engine), rounds=3)
    rows.append({"what": f"against vectorbt {engine}, warm", "figure": ratio_text(measured), "wanted": ">= 60x", "met": measured["ratio"] >= 60})
threads = details["threads"] = side_by_side(lambda: ours(2), lambda: ours(1), rounds=15)
rows += [
    {"what": "two threads against one", "figure": ratio_text(threads), "wanted": ">= 1.8x on a quiet machine", "met": threads["ratio"] >= 1.8},
    {"what": "peak memory", "figure": f"{fresh['peak_mb']:.0f} MB", "wanted": "<= 400 MB", "met": fresh["peak_mb"] <= 400},
    {"what": "second process to its first cell", "figure": f"{fresh['started']:.2f} s, after {fresh['imported']:.2f} s of imports", "wanted": "< 1 s", "met": fresh["started"] < 1},
]
sys.exit(publish("sweep", rows, **details))
