"Principal components, fitted on all of history."
import numpy as np


def pipeline(bars):
    returns = bars[["open", "high", "low", "close"]].pct_change().fillna(0).to_numpy()
    _, _, axes = np.linalg.svd(returns - returns.mean(axis=0), full_matrices=False)
    return returns @ axes[0]
