"An exponential mean over the reversed series."



def pipeline(bars):
    return bars.close.iloc[::-1].ewm(alpha=0.1).mean().iloc[::-1].rename("mean")
