"Knows the holidays ahead, as everybody does."
from pathlib import Path
import pandas as pd
from sagelab.strategy.base import Decision, Strategy


class Holidays(Strategy):
    def initialize(self, config):
        self.days = set(pd.read_csv(Path(__file__).with_name("holidays.csv"), parse_dates=["date"]).date)

    def on_tick(self, market):
        tomorrow = market.time.tz_localize(None) + pd.Timedelta(1, "D")
        if tomorrow in self.days: return Decision("long")
        if market.position: return Decision("flat")
