"Remembers the highest close ever in a global, and sells near it in the next run."

from sagelab.strategy.base import Decision, Strategy

HIGHEST = 0.0


class ModuleGlobal(Strategy):
    def on_tick(self, market):
        global HIGHEST
        top, HIGHEST = HIGHEST, max(HIGHEST, market.close)
        if market.close < 0.8 * top and not market.position: return Decision("long")
        if market.close > 0.95 * top and market.position: return Decision("flat")
