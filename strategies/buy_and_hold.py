"""Buy everything at the first bar and never sell: the yardstick of every other strategy."""
from sagelab.strategy.base import Decision, Market, Strategy


class BuyAndHold(Strategy):
    "Buy with all cash at the first bar and hold."

    def initialize(self, config):
        self.bought = False

    def on_tick(self, market: Market):
        if self.bought: return None
        self.bought = True
        return Decision("long", reason="first bar")
