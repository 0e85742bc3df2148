"""buy_and_hold: one trade, never closed, and the return of the index less one fee."""
from sagelab.data.store import load_bars
from sagelab.trading.costs import Costs
from sagelab.trading.engine import backtest


def test_return_is_the_index_return():
    bars = load_bars("SP500")
    result = backtest("buy_and_hold", bars, costs=Costs(fee=0.001))
    assert [t.outcome for t in result.trades] == ["open"]
    assert abs(result.metrics["return"] - (bars.close.iloc[-1] / (bars.open.iloc[1] * 1.001) - 1)) < 1e-12


def test_at_close_it_buys_the_first_close():
    bars = load_bars("SP500")
    assert backtest("buy_and_hold", bars, fill="close").trades[0].entry_price == bars.close.iloc[0]
