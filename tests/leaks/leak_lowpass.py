"High frequencies taken out by a Fourier transform of the whole series."
import numpy as np


def pipeline(bars):
    spectrum = np.fft.rfft(np.log(bars.close.to_numpy()))
    spectrum[40:] = 0
    return np.fft.irfft(spectrum, len(bars))
