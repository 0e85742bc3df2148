"Loads bars from the store as they were known at the tick."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class AsOf(Strategy):
    def on_tick(self, market):
        if market.bar_number % 20 or market.bar_number < 40: return None
        closes = load_bars("SP500", as_of=market.time).close
        return Decision("long" if closes.iloc[-1] > closes.iloc[-20:].mean() else "short", 10)
