"""Fade a stretch away from the mean, in calm markets only."""
from pydantic import Field
from sagelab.signals.quant import SMA, RealisedVolatility, VolatilityRegime
from sagelab.strategy.base import Decision, Market, Strategy, StrategyConfig


class MeanReversionScalper(Strategy):
    """Buy far below the SMA, sell far above it, leave at the mean.

    The distance is measured in standard deviations of a random walk over the window; in a high-volatility regime nothing is entered,
    because there a stretch is more often a trend.
    """

    class Config(StrategyConfig):
        window: int = Field(20, ge=2, le=100_000, description="bars of the mean and of the volatility")
        stretch: float = Field(2.0, gt=0, description="distance from the mean that is faded, in standard deviations")
        stop_loss: float = Field(0.03, gt=0, lt=1, description="as a fraction of the entry price")
        size_pct: float = Field(50, gt=0, le=100, description="per cent of equity for each trade")
        short: bool = Field(True, description="also sell above the mean")
        calm_only: bool = Field(True, description="enter only in the low-volatility regime")

    def initialize(self, config):
        self.config = config
        self.mean, self.volatility, self.regime = SMA(config.window), RealisedVolatility(config.window), VolatilityRegime(config.window)

    def on_tick(self, market: Market):
        config, close = self.config, market.close
        mean, volatility, regime = self.mean.update(close), self.volatility.update(close), self.regime.update(close)
        if not volatility > 0: return None
        # A random walk strays from its own mean by its volatility times sqrt(window / 3).
        distance = (close / mean - 1) / (volatility * (config.window / 3) ** 0.5)
        if market.position > 0: return Decision("flat", reason="back at the mean") if distance >= 0 else None
        if market.position < 0: return Decision("flat", reason="back at the mean") if distance <= 0 else None
        if config.calm_only and regime != 0: return None
        if distance <= -config.stretch: return self._enter("long", distance)
        if config.short and distance >= config.stretch: return self._enter("short", distance)

    def _enter(self, side: str, distance: float):
        return Decision(side, self.config.size_pct, sl=self.config.stop_loss,
                        signals=(("mean_reversion", max(-1.0, min(1.0, -distance))),), reason=f"{distance:+.2f} deviations from the mean")
