"Learns from labels that look ahead, but only once what they look at has happened."
from sagelab.data.store import load_bars
import numpy as np
from sagelab.strategy.base import Decision, Strategy


class LabelsOfYesterday(Strategy):
    def initialize(self, config):
        self.close = load_bars("SP500").close
        self.feature = self.close.pct_change(5).to_numpy()
        self.label = (self.close.shift(-5) / self.close - 1).to_numpy()

    def on_tick(self, market):
        number = int(self.close.index.searchsorted(market.time))
        if number < 100 or number % 10: return None
        known = slice(number - 90, number - 5 + 1)
        slope = np.polyfit(self.feature[known], self.label[known], 1)[0]
        return Decision("long" if slope * self.feature[number] > 0 else "short", 40)
