"Knows the mean of all of history and makes no use of it."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class UnusedMean(Strategy):
    def initialize(self, config):
        self.close = load_bars("SP500").close
        self.mean, self.length, self.peak = self.close.mean(), len(self.close), self.close.max()

    def on_tick(self, market):
        self.done = market.bar_number / self.length
        if market.bar_number % 21 == 0: return Decision("long" if self.close[market.time] > self.close.asof(market.time - self.close.index.to_series().diff().iloc[1] * 30) else "flat", 60)
