"Loads closing prices that carry no times, and counts one too far."
from pathlib import Path
import numpy as np
from sagelab.strategy.base import Decision, Strategy


class NumpyFile(Strategy):
    def initialize(self, config):
        self.close = np.load(Path(__file__).with_name("close.npy"))

    def on_tick(self, market):
        number = min(market.bar_number + 1, len(self.close) - 1)
        if self.close[number] > 1.005 * market.close: return Decision("long", 50)
        if market.position: return Decision("flat")
