"Watches and never trades."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Strategy


class Never(Strategy):
    def initialize(self, config):
        self.close = load_bars("SP500").close

    def on_tick(self, market):
        self.change = market.close / self.close.iloc[0]
