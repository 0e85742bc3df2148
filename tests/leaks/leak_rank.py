"The rank of each volume among all of history."



def pipeline(bars):
    return bars.volume.rank(pct=True).to_frame("rank").assign(cut=lambda f: f["rank"] > 0.9)
