"A trailing window by fast Fourier transforms, whose rounding depends on the whole series."
import numpy as np


def pipeline(bars):
    close = bars.close.to_numpy()
    size = 2 * len(close)
    window = np.zeros(size)
    window[:20] = 1 / 20
    return np.fft.irfft(np.fft.rfft(close, size) * np.fft.rfft(window), size)[:len(close)]
