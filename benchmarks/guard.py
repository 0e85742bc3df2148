"""What doubt costs: the causality guard against one backtest of the same strategy and bars, in the same run."""
import sys
from measure import publish, side_by_side
from sagelab.data.store import load_bars
from sagelab.lab.causality import check_causality
from sagelab.strategy.registry import get_strategy
from sagelab.trading.engine import backtest

NAMES = ("buy_and_hold", "sma_cross", "momentum_scalper", "mean_reversion_scalper")
bars, rows = load_bars("EURUSD"), []
for name in NAMES:
    strategy = get_strategy(name)
    found = side_by_side(lambda: backtest(strategy, bars, trial=False), lambda: check_causality(strategy, bars))
    rows.append({"what": f"causality of {name} over {len(bars):,} bars", "figure": f"{found['ratio']:.1f} backtests ({found['ratio_low']:.1f} .. {found['ratio_high']:.1f})", "wanted": "<= 8", "met": found["ratio"] <= 8})
sys.exit(publish("guard", rows))
