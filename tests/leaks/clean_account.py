"Sizes by its cash and its position, and by nothing else."

from sagelab.strategy.base import Decision, Strategy


class Account(Strategy):
    def on_tick(self, market):
        if market.bar_number % 15 == 0 and market.cash > 0: return Decision("long", max(1.0, min(100.0, 50 * market.cash / market.equity)))
        if market.bar_number % 15 == 9 and market.position: return Decision("flat", 50)
