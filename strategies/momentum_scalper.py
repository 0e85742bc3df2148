"""Ride a short burst of momentum, out at a small gain, a small loss or after a while."""
from pydantic import Field
from sagelab.signals.quant import ATR, EMA, RSI
from sagelab.strategy.base import Decision, Market, Strategy, StrategyConfig


class MomentumScalper(Strategy):
    """Enter in the direction of a burst: RSI beyond its level and the close beyond its EMA.

    Take-profit and stop-loss are multiples of the average true range, so they follow the market's own pace.
    """

    class Config(StrategyConfig):
        window: int = Field(14, ge=2, le=100_000, description="bars of RSI, EMA and ATR")
        level: float = Field(70, gt=50, lt=100, description="RSI above it is a burst up; below 100 - level, a burst down")
        take_profit: float = Field(2.0, gt=0, description="in average true ranges")
        stop_loss: float = Field(1.0, gt=0, description="in average true ranges")
        hold_bars: int = Field(12, ge=1, description="bars after which a position is closed")
        size_pct: float = Field(50, gt=0, le=100, description="per cent of equity for each trade")
        short: bool = Field(True, description="also trade bursts down")

    def initialize(self, config):
        self.config = config
        self.rsi, self.ema, self.atr = RSI(config.window), EMA(config.window), ATR(config.window)
        self.entered_at, self.last_rsi = None, float("nan")

    def on_tick(self, market: Market):
        config, close = self.config, market.close
        last, rsi = self.last_rsi, self.rsi.update(close)
        ema, atr = self.ema.update(close), self.atr.update(market.high, market.low, close)
        self.last_rsi = rsi
        if market.position:
            return self._leave(market)
        self.entered_at = None
        # Only the bar on which RSI passes its level counts, so that one burst gives one trade.
        if last <= config.level < rsi and close > ema: return self._enter("long", rsi, atr / close)
        if config.short and last >= 100 - config.level > rsi and close < ema: return self._enter("short", rsi, atr / close)

    def _enter(self, side: str, rsi: float, pace: float):
        config = self.config
        return Decision(side, config.size_pct, tp=config.take_profit * pace, sl=min(config.stop_loss * pace, 0.99),
                        signals=(("momentum", rsi / 50 - 1),), reason=f"RSI {rsi:.1f}")

    def _leave(self, market: Market):
        if self.entered_at is None: self.entered_at = market.bar_number
        if market.bar_number - self.entered_at >= self.config.hold_bars - 1: return Decision("flat", reason="held long enough")
