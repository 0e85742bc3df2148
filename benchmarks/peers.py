"""The same rule in the peers' own words."""
import pandas as pd


def vectorbt_sma(close: pd.Series, pairs, fee: float = 0.001, engine: str | None = None, cash: float = 100_000.0):
    "All cash long while the fast SMA is above the slow one, filled at the close: a vectorbt Portfolio, a column for each pair."
    import vectorbt as vbt
    fast, slow = (vbt.MA.run(close, window=[pair[side] for pair in pairs], short_name=name) for side, name in ((0, "fast"), (1, "slow")))
    options = {"engine": engine} if engine else {}
    return vbt.Portfolio.from_signals(close, fast.ma_crossed_above(slow), fast.ma_crossed_below(slow), fees=fee, init_cash=cash, freq="1D", **options)


def backtesting_sma(bars: pd.DataFrame, fast: int, slow: int, fee: float = 0.001, cash: float = 1e14):
    "The same with backtesting.py: its statistics. Much cash, because it buys whole units only."
    import warnings
    from backtesting import Backtest, Strategy

    class Cross(Strategy):
        def init(self):
            self.fast = self.I(lambda x: pd.Series(x).rolling(fast).mean(), self.data.Close)
            self.slow = self.I(lambda x: pd.Series(x).rolling(slow).mean(), self.data.Close)

        def next(self):
            if self.fast[-1] > self.slow[-1] and self.fast[-2] <= self.slow[-2]: self.buy()
            elif self.fast[-1] < self.slow[-1] and self.fast[-2] >= self.slow[-2]: self.position.close()

    frame = bars.tz_localize(None).set_axis(["Open", "High", "Low", "Close", "Volume"], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Backtest(frame, Cross, cash=cash, commission=fee, trade_on_close=True, finalize_trades=False).run()
