"Reads a file whose times are the wall clock of New York, and converts them."
from pathlib import Path
import pandas as pd
from sagelab.strategy.base import Decision, Strategy

SYMBOL = "EURUSD"


class LocalCsv(Strategy):
    def initialize(self, config):
        table = pd.read_csv(Path(__file__).with_name("hours.csv"), index_col=0, parse_dates=True)
        table.index = table.index.tz_localize("America/New_York", ambiguous="NaT", nonexistent="NaT").tz_convert("UTC")
        self.buy = table.score > 0

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
