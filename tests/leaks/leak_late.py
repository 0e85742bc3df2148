"Plays fair for 600 bars, and looks one bar ahead from then on."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy

def first(bars): return 600


class Late(Strategy):
    def initialize(self, config):
        self.close = load_bars("SP500").close.to_numpy()

    def on_tick(self, market):
        number = market.bar_number
        later = self.close[number + 1] if number >= 600 and number + 1 < len(self.close) else market.close
        if number % 3 == 0: return Decision("long" if later >= self.close[max(0, number - 1)] else "short", 10)
