"Signals that are the labels of a triple barrier: which of two prices is touched first."
from sagelab.signals.base import Signal
from sagelab.strategy.base import Decision, Strategy

def signals(bars):
    close, found = bars.close.to_numpy(), []
    for number in range(0, len(close), 5):
        later = close[number + 1:number + 11] / close[number] - 1
        touched = next((move for move in later if abs(move) > 0.01), None)
        if touched is not None: found.append(Signal("SP500", bars.index[number].to_pydatetime(), "barrier", 1.0 if touched > 0 else -1.0))
    return found


class TripleBarrier(Strategy):
    def on_new_signal(self, signal):
        return Decision("long" if signal.score > 0 else "flat", signals=((signal.name, signal.score),))
