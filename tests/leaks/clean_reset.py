"Keeps its closes in the class, and forgets them when a run starts."

from sagelab.strategy.base import Decision, Strategy


class Reset(Strategy):
    closes = []

    def initialize(self, config): type(self).closes.clear()

    def on_tick(self, market):
        self.closes.append(market.close)
        if len(self.closes) > 3 and self.closes[-1] > 1.02 * self.closes[-3]: return Decision("long", 10)
        if len(self.closes) > 3 and self.closes[-1] < 0.98 * self.closes[-3]: return Decision("flat")
