"Moving averages by the difference of running sums, which round differently than a window does."
import numpy as np


def pipeline(bars):
    sums = np.cumsum(bars.close.to_numpy())
    mean = np.full(len(bars), np.nan)
    mean[25:] = (sums[25:] - sums[:-25]) / 25
    return np.column_stack([mean, bars.close.to_numpy() - mean])
