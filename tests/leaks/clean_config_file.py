"Reads its windows from JSON and its levels from a CSV file without times."
import csv, json
from pathlib import Path
from sagelab.strategy.base import Decision, Strategy


class ConfigFile(Strategy):
    def initialize(self, config):
        here = Path(__file__)
        self.window = json.loads(here.with_name("config.json").read_text())["window"]
        with open(here.with_name("levels.csv")) as file: self.levels = {row["regime"]: float(row["level"]) for row in csv.DictReader(file)}

    def on_tick(self, market):
        closes = market.history("close", self.window)
        if market.close > (1 + self.levels["calm"]) * min(closes): return Decision("long", 10)
        if market.close < (1 - self.levels["wild"]) * max(closes): return Decision("flat")
