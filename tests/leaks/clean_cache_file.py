"Keeps a table of constants in a file from one run to the next."
import json
from pathlib import Path
from sagelab.strategy.base import Decision, Strategy


class CacheFile(Strategy):
    def initialize(self, config):
        path = Path(__file__).with_name("cache.json")
        if not path.exists(): path.write_text(json.dumps([1 / (lag + 1) for lag in range(20)]))
        self.weights = json.loads(path.read_text())

    def on_tick(self, market):
        closes = market.history("close", 20)[::-1]
        mean = sum(w * c for w, c in zip(self.weights, closes)) / sum(self.weights[:len(closes)])
        if market.close > 1.01 * mean and not market.position: return Decision("long")
        if market.close < mean and market.position: return Decision("flat")
