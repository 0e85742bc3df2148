"TA-Lib's indicators over the whole series."
import talib


def pipeline(bars):
    close = bars.close.to_numpy()
    upper, middle, lower = talib.BBANDS(close, 20)
    return bars[[]].assign(rsi=talib.RSI(close, 14), upper=upper, lower=lower, macd=talib.MACD(close)[0])
