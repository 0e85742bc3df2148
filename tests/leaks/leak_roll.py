"np.roll by one to the left: every bar gets the next one's return, and the last gets the first one's."
import numpy as np


def pipeline(bars):
    returns = np.diff(np.log(bars.close), prepend=np.nan)
    return np.roll(returns, -1)
