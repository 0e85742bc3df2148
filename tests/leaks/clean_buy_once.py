"Buys at the first bar and holds."

from sagelab.strategy.base import Decision, Strategy


class BuyOnce(Strategy):
    def on_tick(self, market):
        if market.bar_number == 0: return Decision("long")
