"Words for each bar: is volatility above its trailing median?"
import numpy as np


def pipeline(bars):
    volatility = bars.close.pct_change().rolling(20).std()
    return np.where(volatility > volatility.rolling(250, min_periods=20).median(), "wild", "calm")
