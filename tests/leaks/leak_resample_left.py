"Weekly closes, labelled by the week's Monday and read from Monday on."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class ResampleLeft(Strategy):
    def initialize(self, config):
        self.week = load_bars("SP500").close.resample("W-MON", label="left", closed="left").last()

    def on_tick(self, market):
        close = self.week.asof(market.time)
        if close > 1.01 * market.close and not market.position: return Decision("long")
        if close < market.close and market.position: return Decision("flat")
