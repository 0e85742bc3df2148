"Trailing indicators of every kind."


def pipeline(bars):
    close = bars.close
    return bars.assign(mean=close.rolling(30).mean(), deviation=close.rolling(30).std(), weighted=close.ewm(span=20).mean(), high=close.cummax(),
                       returns=close.pct_change(), rank=close.rolling(50).rank(pct=True), before=close.shift(3), filled=close.where(close > close.shift(1)).ffill())
