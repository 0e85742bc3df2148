"Asks for the latest signals at every twentieth bar without saying as of when."
from sagelab.signals.quant import get_signals
from sagelab.strategy.base import Decision, Strategy


class Signals(Strategy):
    def on_tick(self, market):
        if market.bar_number % 100 == 50:
            trend = next(s for s in get_signals("SP500") if s.name == "trend")
            return Decision("long" if trend.score > 0 else "short", 10 + 80 * abs(trend.score), signals=(("trend", trend.score),))
