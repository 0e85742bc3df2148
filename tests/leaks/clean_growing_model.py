"Least squares over what was known, again every month."
import numpy as np
from sagelab.strategy.base import Decision, Strategy


class GrowingModel(Strategy):
    def initialize(self, config): self.weights = None

    def on_tick(self, market):
        if market.bar_number >= 60 and market.bar_number % 21 == 0:
            closes = np.array(market.history("close"))
            returns = closes[1:] / closes[:-1] - 1
            rows = np.column_stack([returns[3 - lag:-1 - lag] for lag in range(4)])
            self.weights = np.linalg.lstsq(rows, returns[4:], rcond=None)[0]
        if self.weights is None: return None
        last = np.array(market.history("close", 5))
        expected = float(self.weights @ (last[1:] / last[:-1] - 1)[::-1])
        if abs(expected) > 0.0005: return Decision("long" if expected > 0 else "short", 20)
