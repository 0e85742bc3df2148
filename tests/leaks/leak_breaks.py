"Looks up the next row without asking whether there is one."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class Breaks(Strategy):
    def initialize(self, config):
        self.close = load_bars("SP500").close.to_numpy()

    def on_tick(self, market):
        change = self.close[market.bar_number + 1] / market.close - 1
        if change > 0.02: return Decision("long", 5)
