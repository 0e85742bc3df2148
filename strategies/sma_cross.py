"""Long while the fast moving average is above the slow one: the field's common reference."""
from pydantic import Field
from sagelab.signals.quant import SMA, sma
from sagelab.strategy.base import Decision, Market, Strategy, StrategyConfig


class SmaCross(Strategy):
    """All cash long when the fast SMA crosses above the slow one, flat when it crosses below.

    A crossing is a change of side from one bar to the next; equality is no side. The side on the first bar where both
    averages exist is no crossing. A `fast` longer than `slow` is allowed and trades against the trend.
    """

    class Config(StrategyConfig):
        fast: int = Field(10, ge=1, le=100_000, description="bars of the fast average")
        slow: int = Field(30, ge=1, le=100_000, description="bars of the slow average")

    def initialize(self, config):
        self.fast, self.slow = SMA(config.fast), SMA(config.slow)
        self.above = None

    def on_tick(self, market: Market):
        close = market.close
        fast, slow = self.fast.update(close), self.slow.update(close)
        # Equality and warm-up (NaN) are neither above nor below, so the side stays as it was.
        if fast > slow:
            if self.above is False:
                self.above = True
                return Decision("long", signals=(("sma_cross", 1.0),), reason="fast SMA crossed above slow")
            self.above = True
        elif fast < slow:
            if self.above:
                self.above = False
                return Decision("flat", signals=(("sma_cross", -1.0),), reason="fast SMA crossed below slow")
            self.above = False

    @staticmethod
    def compiled(bars, grid):
        "The same rule for `sweep`: every SMA once, then one fused pass for each cell."
        from sagelab.trading.kernels import Cross
        close, windows = bars.close.to_numpy(), sorted({*grid["fast"], *grid["slow"]})
        place = {window: row for row, window in enumerate(windows)}
        return Cross(lines=[sma(close, window) for window in windows],
                     fast=[place[window] for window in grid["fast"]], slow=[place[window] for window in grid["slow"]])
