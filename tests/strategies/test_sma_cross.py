"""sma_cross: the field's reference, held to vectorbt's own words and to its compiled form."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sagelab.core.errors import UsageError
from sagelab.data.store import load_bars
from sagelab.strategy.registry import get_strategy
from sagelab.trading.costs import Costs
from sagelab.trading.engine import backtest
from sagelab.trading.sweep import sweep


@pytest.mark.parametrize("fast, slow", [(10, 30), (5, 20), (50, 200), (30, 10)])
def test_same_trades_and_return_as_vectorbt(fast, slow):
    import vectorbt as vbt
    close = load_bars("SP500").close
    fast_line, slow_line = vbt.MA.run(close, fast, short_name="fast"), vbt.MA.run(close, slow, short_name="slow")
    theirs = vbt.Portfolio.from_signals(close, fast_line.ma_crossed_above(slow_line), fast_line.ma_crossed_below(slow_line), fees=0.001, init_cash=1e5, freq="1D")
    ours = backtest("sma_cross", "SP500", {"fast": fast, "slow": slow}, costs=Costs(fee=0.001), fill="close")
    records = theirs.trades.records
    assert abs(ours.metrics["return"] - theirs.total_return()) < 1e-9
    assert np.allclose([[t.entry_price, t.exit_price, t.pnl] for t in ours.trades], records[["entry_price", "exit_price", "pnl"]], rtol=1e-9)
    assert abs(ours.metrics["sharpe"] - theirs.sharpe_ratio(year_freq="252D")) < 1e-9
    assert abs(ours.metrics["max_drawdown"] - theirs.max_drawdown()) < 1e-9
    assert abs(ours.metrics["win_rate"] - theirs.trades.closed.win_rate()) < 1e-9


def test_reference_return():
    assert round(100 * backtest("sma_cross", "SP500", costs=Costs(fee=0.001), fill="close").metrics["return"], 4) == 31.1241


@given(st.integers(1, 60), st.integers(1, 250), st.floats(0, 0.01), st.floats(0, 0.01), st.sampled_from(["close", "next_open"]), st.integers(0, 4000))
@settings(max_examples=40, deadline=None)
def test_compiled_form_makes_the_same_trades(fast, slow, fee, slippage, fill, first):
    bars, costs = load_bars("SP500").iloc[first:first + 1000], Costs(fee=fee, slippage=slippage)
    cell = sweep("sma_cross", bars, {"fast": [fast], "slow": [slow]}, costs=costs, fill=fill).table.iloc[0]
    metrics = backtest("sma_cross", bars, {"fast": fast, "slow": slow}, costs=costs, fill=fill).metrics
    assert (cell["return"], cell.max_drawdown, cell.trades) == (metrics["return"], metrics["max_drawdown"], metrics["trades"])
    assert cell.sharpe == pytest.approx(metrics["sharpe"], abs=1e-9) if metrics["sharpe"] is not None else np.isnan(cell.sharpe)


def test_parameters_are_checked():
    with pytest.raises(UsageError, match="fast = 0"): backtest("sma_cross", "SP500", {"fast": 0})
    assert get_strategy("sma_cross").Config().slow == 30
