"""mean_reversion_scalper: fades a stretch in calm markets, and leaves at the mean or at its stop."""
from sagelab.data.store import load_bars
from sagelab.signals.quant import sma, volatility_regime
from sagelab.trading.engine import backtest


def test_buys_below_and_sells_above_the_mean_in_calm_markets():
    bars = load_bars("SP500")
    mean, regime, place = sma(bars.close, 20), volatility_regime(bars.close), {t.value: n for n, t in enumerate(bars.index)}
    trades = backtest("mean_reversion_scalper", bars).trades
    assert len(trades) > 20 and {t.side for t in trades} == {"long", "short"}
    for trade in trades:
        decided = place[trade.entry_ns] - 1
        assert regime[decided] == 0 and (bars.close.iloc[decided] < mean[decided]) == (trade.side == "long")


def test_stop_loss_bounds_the_loss_but_for_gaps():
    trades = backtest("mean_reversion_scalper", "SP500", {"stop_loss": 0.01}).trades
    assert any(t.reason == "stop_loss" for t in trades) and min(t.pnl_pct for t in trades) > -5


def test_storms_count_when_asked():
    calm, every = (len(backtest("mean_reversion_scalper", "SP500", {"calm_only": flag}).trades) for flag in ("true", "false"))
    assert every > calm
