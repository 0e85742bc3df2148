"A scaler that is fitted again every fifty bars, to what was known then."

from sagelab.strategy.base import Decision, Strategy


class RefittedScaler(Strategy):
    def initialize(self, config):
        self.low = self.high = None

    def on_tick(self, market):
        if market.bar_number % 50 == 49:
            closes = market.history("close")
            self.low, self.high = min(closes), max(closes)
        if self.low is None: return None
        place = (market.close - self.low) / (self.high - self.low)
        if market.bar_number % 50 == 10: return Decision("long", min(99.0, max(1.0, 100 * place)))
        if market.bar_number % 50 == 40: return Decision("flat")
