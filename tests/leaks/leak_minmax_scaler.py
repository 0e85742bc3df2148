"Scales prices to the lowest and highest of all of history and sizes by that."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy

def first(bars): return 0


class MinmaxScaler(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.low, self.high = close.min(), close.max()

    def on_tick(self, market):
        if market.bar_number % 50 == 0: return Decision("long", 1 + 98 * (market.close - self.low) / (self.high - self.low))
        if market.bar_number % 50 == 40: return Decision("flat")
