"Normalises by the mean and deviation up to now."
from sagelab.data.store import load_bars
from sagelab.strategy.base import Decision, Strategy


class ExpandingZscore(Strategy):
    def initialize(self, config):
        close = load_bars("SP500").close
        self.score = (close - close.expanding(50).mean()) / close.expanding(50).std()

    def on_tick(self, market):
        score = self.score[market.time]
        if score < -0.5 and not market.position: return Decision("long", reason=f"{score:.2f}")
        if score > 0.5 and market.position: return Decision("flat")
