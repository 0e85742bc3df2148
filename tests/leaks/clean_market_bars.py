"Indicators of pandas over the bars that the market hands over."

from sagelab.strategy.base import Decision, Strategy


class MarketBars(Strategy):
    def on_tick(self, market):
        if market.bar_number % 5: return None
        bars = market.bars(30)
        if len(bars) < 30: return None
        score = (bars.close.iloc[-1] - bars.close.mean()) / bars.close.std()
        if score < -1: return Decision("long", 50)
        if score > 1 and market.position: return Decision("flat")
