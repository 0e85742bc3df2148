"Loads closing prices that carry no times, and counts up to now."
from pathlib import Path
import numpy as np
from sagelab.strategy.base import Decision, Strategy


class NumpyFile(Strategy):
    def initialize(self, config):
        self.close = np.load(Path(__file__).with_name("close.npy"))

    def on_tick(self, market):
        known = self.close[:market.bar_number + 1]
        if known[-1] > 1.05 * known[-20:].min(): return Decision("long", 50)
        if market.position: return Decision("flat")
