"Least squares, again and again, over labels that were known when it learnt."
from sagelab.data.store import load_bars
import numpy as np
from sagelab.strategy.base import Decision, Strategy


class Learning(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.features = np.column_stack([close.pct_change(lag).fillna(0).to_numpy() for lag in (1, 5, 20)])
        self.labels, self.weights = close.pct_change().shift(-1).to_numpy(), None

    def on_tick(self, market):
        number = market.bar_number
        if number >= 200 and number % 50 == 0: self.weights = np.linalg.lstsq(self.features[:number - 1], self.labels[:number - 1], rcond=None)[0]
        if self.weights is None: return None
        expected = float(self.features[number] @ self.weights)
        if expected > 0.0008: return Decision("long", 20)
        if expected < -0.0008: return Decision("flat")
