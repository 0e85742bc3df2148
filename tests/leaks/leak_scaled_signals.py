"Signals whose scores are divided by the largest of all of history."
from sagelab.signals.base import Signal
from sagelab.strategy.base import Decision, Strategy

def signals(bars):
    momentum = bars.close.pct_change(20).dropna()
    scores = momentum / momentum.abs().max()
    return [Signal("SP500", moment.to_pydatetime(), "momentum", float(score)) for moment, score in scores.items()]


class ScaledSignals(Strategy):
    def on_new_signal(self, signal):
        if abs(signal.score) > 0.2: return Decision("long" if signal.score > 0 else "flat", signals=((signal.name, signal.score),))
