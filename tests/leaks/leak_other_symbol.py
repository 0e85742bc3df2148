"Trades one index by tomorrow's close of another."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class OtherSymbol(Strategy):
    def initialize(self, config):
        close = load_bars("NASDAQ").close
        self.buy = close.shift(-1) > 1.01 * close

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
