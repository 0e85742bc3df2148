"Keeps the closes of one run in its class, for the next run to read ahead."

from sagelab.strategy.base import Decision, Strategy


class ClassCache(Strategy):
    closes = []

    def initialize(self, config):
        self.known, self.mine = list(type(self).closes), []
        type(self).closes = self.mine

    def on_tick(self, market):
        self.mine.append(market.close)
        later = self.known[len(self.mine):len(self.mine) + 1]
        if later and later[0] > 1.01 * market.close: return Decision("long")
        if later and later[0] < 0.99 * market.close: return Decision("flat")
