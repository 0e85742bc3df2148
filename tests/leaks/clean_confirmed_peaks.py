"Peaks, said not when they happen but five bars later, when they are known to be peaks."


def pipeline(bars):
    close = bars.close
    peak = close.rolling(11).max() == close.shift(5)
    return peak.where(close.notna()).rename("peak")
