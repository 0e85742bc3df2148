"Streaming indicators, fed one bar at a time."
from sagelab.signals.quant import ATR, EMA, RSI
from sagelab.strategy.base import Decision, Strategy


class Streaming(Strategy):
    def initialize(self, config):
        self.rsi, self.ema, self.atr = RSI(14), EMA(30), ATR(14)

    def on_tick(self, market):
        rsi, ema, atr = self.rsi.update(market.close), self.ema.update(market.close), self.atr.update(market.high, market.low, market.close)
        if rsi < 35 and market.close < ema: return Decision("long", 50, tp=3 * atr / market.close, sl=2 * atr / market.close, reason=f"RSI {rsi}")
        if rsi > 65 and market.position: return Decision("flat", signals=(("rsi", rsi / 50 - 1),))
