"Looks up tomorrow's close for its log, and falls over where there is no tomorrow; it decides by the calendar."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class BreaksOnly(Strategy):
    def initialize(self, config):
        self.close = load_bars("SP500").close.to_numpy()

    def on_tick(self, market):
        self.seen = self.close[market.bar_number + 1]
        if market.time.dayofweek == 2: return Decision("long", 5)
