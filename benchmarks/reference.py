"""SMA 10/30 on the bundled index, fee 0.1 %, filled at the close: the same return and trades as vectorbt and backtesting.py."""
import sys
import numpy as np
from measure import publish
from peers import backtesting_sma, vectorbt_sma
from sagelab.data.store import load_bars
from sagelab.trading.costs import Costs
from sagelab.trading.engine import backtest

bars = load_bars("SP500")
ours = backtest("sma_cross", bars, {"fast": 10, "slow": 30}, costs=Costs(fee=0.001), fill="close")
theirs = vectorbt_sma(bars.close, [(10, 30)])
entry, exit_ = (theirs.trades.records[name].to_numpy() for name in ("entry_price", "exit_price"))
mine = np.array([[t.entry_price, t.exit_price] for t in ours.trades])
third = backtesting_sma(bars, 10, 30)
closed = [t for t in ours.trades if not t.open]
third_trades = third["_trades"]
apart = abs(third["Equity Final [$]"] / 1e14 - 1 - ours.metrics["return"])
sys.exit(publish("reference", [
    {"what": "return, ours", "figure": f"{100 * ours.metrics['return']:.10f} %", "wanted": "31.1241 %", "met": round(100 * ours.metrics["return"], 4) == 31.1241},
    {"what": "return against vectorbt", "figure": f"{abs(theirs.total_return().item() - ours.metrics['return']):.1e}", "wanted": "<= 1e-9",
     "met": abs(theirs.total_return().item() - ours.metrics["return"]) <= 1e-9},
    {"what": "trades against vectorbt", "figure": f"{len(mine)} trades, prices apart {np.abs(mine - np.c_[entry, exit_]).max():.1e}", "wanted": "the same",
     "met": len(mine) == len(entry) and np.abs(mine - np.c_[entry, exit_]).max() <= 1e-9},
    {"what": "return against backtesting.py", "figure": f"{apart:.1e}", "wanted": "<= 1e-9", "met": apart <= 1e-9},
    {"what": "trades against backtesting.py", "figure": f"{len(third_trades)} finished", "wanted": f"{len(closed)}",
     "met": [t.entry_ns for t in closed] == third_trades.EntryTime.dt.tz_localize("UTC").dt.as_unit("ns").astype("int64").tolist()},
]))
