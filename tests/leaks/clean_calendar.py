"Buys on Mondays and sells on Fridays."

from sagelab.strategy.base import Decision, Strategy


class Calendar(Strategy):
    def on_tick(self, market):
        if market.time.dayofweek == 0: return Decision("long")
        if market.time.dayofweek == 4: return Decision("flat")
