"""Design of the low-pass filters that keep the generator free of aliasing.

Filters are designed in float64 and stored in float32, as published weights hold them. Cut-offs, widths and rates are in
cycles per image width, so that one filter reads the same at every resolution. A filter of one tap is no filter: None.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks", appendix C.1 (separable: Kaiser-windowed sinc; radial:
Kaiser-windowed jinc, which has no preferred direction and so lets the image rotate).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import j1
from torch import Tensor


def kaiser_attenuation(num_taps: int, width: float, sampling_rate: float) -> float:
    """Stop-band attenuation in dB that `num_taps` taps reach with a transition band of `width` cycles (full width)."""
    return 2.285 * (num_taps - 1) * math.pi * width / (sampling_rate / 2) + 7.95


def kaiser_beta(attenuation: float) -> float:
    """Shape parameter of the Kaiser window for a stop-band attenuation in dB (Kaiser 1974)."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def lowpass_filter(
    num_taps: int, cutoff: float, width: float, sampling_rate: float, radial: bool = False
) -> Tensor | None:
    """A low-pass filter with unit gain at DC, in float32.

    cutoff, width (of the whole transition band) and sampling_rate: in cycles per image width.
    Returns [num_taps] to be applied along both axes, [num_taps, num_taps] if `radial`, None for a single tap.
    Raises ValueError for a radial filter with an odd number of taps: the jinc has no value at its centre.
    """
    if num_taps == 1:
        return None
    # Tap positions in image widths, symmetric about the filter's centre.
    offsets = (np.arange(num_taps) - (num_taps - 1) / 2) / sampling_rate
    window = np.kaiser(num_taps, kaiser_beta(kaiser_attenuation(num_taps, width, sampling_rate)))
    if radial:
        if num_taps % 2:
            raise ValueError(f"a radial filter needs an even number of taps, found {num_taps}. Use {num_taps + 1}.")
        radius = np.hypot(*np.meshgrid(offsets, offsets, indexing="ij"))
        taps = j1(2 * np.pi * cutoff * radius) / (np.pi * radius) * np.outer(window, window)
    else:
        taps = np.sinc(2 * cutoff * offsets) * window
    return torch.from_numpy((taps / taps.sum()).astype(np.float32))


def binomial_filter(taps: tuple[float, ...] | list[float]) -> Tensor:
    """The discriminator's resampling filter, normalised to sum 1, in float32.

    Fewer than 8 taps give the outer product [taps, taps]; 8 or more stay one-dimensional and separable.
    """
    line = torch.tensor(taps, dtype=torch.float32)
    grid = torch.outer(line, line) if line.numel() < 8 else line
    return grid / grid.sum()
