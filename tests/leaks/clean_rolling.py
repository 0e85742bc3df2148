"A moving average of the bars that the market hands over."

from sagelab.strategy.base import Decision, Strategy


class Rolling(Strategy):
    def on_tick(self, market):
        closes = market.history("close", 20)
        if len(closes) < 20: return None
        mean = sum(closes) / 20
        if market.close > 1.01 * mean and not market.position: return Decision("long")
        if market.close < mean and market.position: return Decision("flat")
