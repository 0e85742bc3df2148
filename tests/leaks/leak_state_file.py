"Writes the closes of one run to a file and reads them in the next."
import json
from pathlib import Path
from sagelab.strategy.base import Decision, Strategy


class StateFile(Strategy):
    def initialize(self, config):
        self.path = Path(__file__).with_name("state.json")
        self.known, self.mine = json.loads(self.path.read_text()) if self.path.exists() else [], []

    def on_tick(self, market):
        self.mine.append(market.close)
        if len(self.mine) % 200 == 0: self.path.write_text(json.dumps(self.mine))
        later = self.known[len(self.mine):len(self.mine) + 1]
        if later and later[0] > 1.01 * market.close: return Decision("long", 40)
