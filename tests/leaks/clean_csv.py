"Reads the file with the prices, up to today's row."
from pathlib import Path
import pandas as pd
from sagelab.strategy.base import Decision, Strategy


class Csv(Strategy):
    def initialize(self, config):
        close = pd.read_csv(Path(__file__).with_name("prices.csv"), index_col=0, parse_dates=True).close
        self.buy = close > close.rolling(10).mean()

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
