"""momentum_scalper: enters on a burst, and leaves at its target, its stop or its time."""
import numpy as np
from sagelab.data.store import load_bars
from sagelab.signals.quant import rsi
from sagelab.trading.engine import backtest


def test_enters_only_where_rsi_passes_its_level():
    bars = load_bars("EURUSD")
    result = backtest("momentum_scalper", bars)
    strength, place = rsi(bars.close, 14), {t.value: n for n, t in enumerate(bars.index)}
    assert len(result.trades) > 50
    for trade in result.trades:
        decided = place[trade.entry_ns] - 1
        if trade.side == "long": assert strength[decided] > 70 >= strength[decided - 1]
        else: assert strength[decided] < 30 <= strength[decided - 1]


def test_every_exit_is_one_of_three():
    trades = backtest("momentum_scalper", "EURUSD").trades
    assert {t.reason for t in trades} <= {"take_profit", "stop_loss", "market", "open"} and len({t.reason for t in trades}) >= 3


def test_nothing_is_held_longer_than_asked():
    bars = load_bars("EURUSD")
    place = {t.value: n for n, t in enumerate(bars.index)}
    result = backtest("momentum_scalper", bars, {"hold_bars": 5, "take_profit": 50, "stop_loss": 50})
    assert max(place[t.exit_ns] - place[t.entry_ns] for t in result.trades if not t.open) == 5


def test_long_only_and_size():
    result = backtest("momentum_scalper", "EURUSD", {"short": "false", "size_pct": 25})
    assert {t.side for t in result.trades} == {"long"}
    assert np.allclose([t.quantity * t.entry_price for t in result.trades[:1]], 25_000)
