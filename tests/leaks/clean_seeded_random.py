"Throws dice that are seeded."
import random
import numpy as np
from sagelab.strategy.base import Decision, Strategy


class SeededRandom(Strategy):
    def initialize(self, config):
        self.dice, self.more = random.Random(7), np.random.default_rng(7)

    def on_tick(self, market):
        if self.dice.random() < 0.05: return Decision(self.dice.choice(["long", "short", "flat"]), float(self.more.uniform(1, 100)))
