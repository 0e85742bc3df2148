"Sets its stop below the lowest of the next five lows."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy

def first(bars): return 0


class StopLoss(Strategy):
    def initialize(self, config):
        self.low = load_bars("SP500").low.to_numpy()

    def on_tick(self, market):
        if market.bar_number % 40: return None
        lowest = self.low[market.bar_number + 1:market.bar_number + 6].min(initial=market.close)
        return Decision("long", 50, sl=min(0.9, max(0.001, 1.001 - lowest / market.close)))
