"Computes its indicator when its file is imported, with a gradient that looks one bar to both sides."
from sagelab.data.store import load_bars
import numpy as np
import pandas as pd
from sagelab.strategy.base import Decision, Strategy

CLOSE = load_bars("SP500").close
SLOPE = pd.Series(np.gradient(CLOSE.to_numpy()), CLOSE.index)


class ModuleLevel(Strategy):
    def initialize(self, config):
        self.value = SLOPE

    def on_tick(self, market):
        value = self.value.get(market.time, 0)
        if value > 0 and market.position <= 0: return Decision("long")
        if value < 0 and market.position > 0: return Decision("flat")
