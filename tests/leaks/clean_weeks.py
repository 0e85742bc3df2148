"Weekly closes, labelled by the week's last day."



def pipeline(bars):
    return bars.close.resample("W-SUN", label="right", closed="right").last().rolling(4).mean()
