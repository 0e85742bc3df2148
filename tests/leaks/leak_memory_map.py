"Maps a file of bare numbers into memory."
from pathlib import Path
import numpy as np
from sagelab.strategy.base import Decision, Strategy


class MemoryMap(Strategy):
    def initialize(self, config):
        self.close = np.memmap(Path(__file__).with_name("close.bin"), dtype="float64", mode="r")

    def on_tick(self, market):
        later = self.close[market.bar_number + 1:market.bar_number + 2]
        if len(later) and later[0] > 1.01 * market.close: return Decision("long")
