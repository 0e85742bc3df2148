"Normalises by the mean and deviation of all of history."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class GlobalZscore(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.mean, self.deviation = close.mean(), close.std()

    def on_tick(self, market):
        score = (market.close - self.mean) / self.deviation
        if score < 0 and not market.position: return Decision("long", reason=f"{score:.2f}")
        if score > 0.5 and market.position: return Decision("flat")
