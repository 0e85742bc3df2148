"Runs backtests over all of history before it starts, and takes the parameter that did best."
from sagelab.data.store import load_bars
from sagelab.trading.engine import backtest
from sagelab.strategy.base import Decision, Strategy


class NestedBacktest(Strategy):
    def initialize(self, config):
        bars = load_bars("SP500")
        self.window = max((5, 10, 30), key=lambda n: backtest("sma_cross", bars, {"fast": n, "slow": 60}, trial=False).metrics["return"])

    def on_tick(self, market):
        closes = market.history("close", self.window)
        mean = sum(closes) / len(closes)
        if market.close > mean and not market.position: return Decision("long")
        if market.close < mean and market.position: return Decision("flat")
