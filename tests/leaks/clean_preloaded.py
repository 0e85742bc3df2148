"Loads all bars at the start, computes a trailing average, and looks up today's."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class Preloaded(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.buy = close > close.rolling(20).mean()

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
