"Trusts a column of a feature file that was made with shift(-1)."
from pathlib import Path
import pandas as pd
from sagelab.strategy.base import Decision, Strategy


class FeatureFile(Strategy):
    def initialize(self, config):
        table = pd.read_csv(Path(__file__).with_name("features.csv"), index_col=0, parse_dates=True)
        self.buy = table.target > 0.01

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
