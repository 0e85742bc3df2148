"Gaps in a slow series, interpolated towards the next known value."
import numpy as np


def pipeline(bars):
    slow = bars.close.where(np.arange(len(bars)) % 20 == 0)
    return slow.interpolate()
