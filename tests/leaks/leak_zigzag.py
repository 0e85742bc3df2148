"Swings of five per cent, each dated by its turning point."
import numpy as np


def pipeline(bars):
    close, turns, last, side = bars.close.to_numpy(), np.zeros(len(bars)), 0, 1
    for number in range(1, len(close)):
        if side * (close[number] - close[last]) > 0: last = number
        elif abs(close[number] / close[last] - 1) > 0.05:
            turns[last], side, last = side, -side, number
    return turns
