"Follows signals that score each bar by what was known at it."
from sagelab.data.bars import known_at
from sagelab.signals.base import Signal
from sagelab.signals.quant import score_bars
from sagelab.strategy.base import Decision, Strategy

def signals(bars):
    scores, moments = score_bars(bars).trend, known_at(bars, "1d")
    return [Signal("SP500", moment.to_pydatetime(), "trend", float(score)) for moment, score in zip(moments, scores) if score == score]


class Signals(Strategy):
    def on_new_signal(self, signal):
        if abs(signal.score) > 0.3: return Decision("long" if signal.score > 0 else "flat", 70, signals=((signal.name, signal.score),))
