"Buys when tomorrow's close is higher: shift(-1) over bars from the store."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy

def first(bars): return 0 if bars.close.iloc[1] > bars.close.iloc[0] else int((bars.close.shift(-1) > bars.close).to_numpy().argmax())


class Shift(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.buy = close.shift(-1) > close

    def on_tick(self, market):
        if self.buy.get(market.time, False) and not market.position: return Decision("long")
        if market.position and not self.buy.get(market.time, False): return Decision("flat")
