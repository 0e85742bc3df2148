"Fills the gaps of a weekly opinion from behind, so that Tuesday knows Friday's."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class Bfill(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        opinion = (close > close.rolling(5).mean()).astype(float).where(close.index.dayofweek == 4)
        self.buy = opinion.bfill() > 0

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
