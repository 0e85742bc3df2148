"The month's highest close, given to every day of the month."



def pipeline(bars):
    return bars.close / bars.close.groupby(bars.index.strftime("%Y-%m")).transform("max")
