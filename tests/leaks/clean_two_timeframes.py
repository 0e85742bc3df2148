"Trades hours by the range of the day before."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy

SYMBOL = "EURUSD"


class TwoTimeframes(Strategy):
    def initialize(self, config):
        bars = load_bars("EURUSD")
        days = bars.index.date
        self.high, self.low = (bars.groupby(days)[name].agg(how).shift(1) for name, how in (("high", "max"), ("low", "min")))

    def on_tick(self, market):
        day = market.time.date()
        if not market.position and market.close > self.high[day]: return Decision("long")
        if market.position and market.close < self.low[day]: return Decision("flat")
