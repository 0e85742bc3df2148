"A cached table of constants."
from functools import lru_cache
from sagelab.strategy.base import Decision, Strategy

@lru_cache
def weights(count): return [2 * (number + 1) / (count * (count + 1)) for number in range(count)]


class LruTable(Strategy):
    def on_tick(self, market):
        weight = weights(10)
        closes = market.history("close", 10)
        if len(closes) < 10: return None
        mean = sum(w * c for w, c in zip(weight, closes))
        if market.close > 1.02 * mean: return Decision("long", 30)
        if market.close < 0.98 * mean: return Decision("flat")
