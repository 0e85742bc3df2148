"Limit and stop orders around yesterday's range."

from sagelab.strategy.base import Decision, Strategy


class LimitOrders(Strategy):
    def on_tick(self, market):
        if market.bar_number % 4: return None
        highs, lows = market.history("high", 3), market.history("low", 3)
        if market.close >= max(highs) * 0.995: return Decision("long", 25, "stop", max(highs) * 1.001, tp=0.03, sl=0.02, valid_for=5 * 86_400)
        return Decision("short", 25, "limit", min(lows) * 1.01, target_duration=10 * 86_400)
