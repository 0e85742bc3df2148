"Weekly closes, labelled by the week's end and read from the next week on."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class Resample(Strategy):
    def initialize(self, config):
        week = load_bars("SP500").close.resample("W-FRI", label="right", closed="right").last()
        self.week = week.shift(1)

    def on_tick(self, market):
        close = self.week.asof(market.time)
        if close > 1.01 * market.close and not market.position: return Decision("long")
        if close < market.close and market.position: return Decision("flat")
