"Holds weekly bars labelled by their Monday, and reads only those of finished weeks."
from sagelab.data.store import load_bars
import pandas as pd
from sagelab.strategy.base import Decision, Strategy


class WeekToDate(Strategy):
    def initialize(self, config):
        self.week = load_bars("SP500").close.resample("W-MON", label="left", closed="left").last()

    def on_tick(self, market):
        close = self.week.asof(market.time - pd.Timedelta(7, "D"))
        if close > 1.02 * market.close and not market.position: return Decision("long")
        if close < market.close and market.position: return Decision("flat")
