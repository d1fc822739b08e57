"""Pictures of spectra, as PNG bytes: reals beside fakes, and the curves with what they may differ by."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dr_platform.evaluation.spectra import ANGLES, BANDS, LESION, Spectra, angular_chance, radial_chance

Floats = NDArray[np.floating]

_DPI = 110
_REAL, _FAKE = "#1f5a8c", "#c0392b"
_BAND = (0.025, 0.975)  # of the differences between real halves
_TINY = 1e-30


def spectrum_image(real: Spectra, fake: Spectra) -> bytes:
    """PNG: average power spectra of reals and fakes and the fakes' excess, dB, zero frequency in the middle."""
    figure = Figure(figsize=(11, 3.8), dpi=_DPI, layout="constrained")
    planes = [_whole(_decibels(sample.power)) for sample in (real, fake)]
    low, high = (float(v) for v in np.percentile(planes[0], (1, 99.9)))
    span = max(1.0, float(np.percentile(np.abs(planes[1] - planes[0]), 99.5)))
    shown = (
        (f"{len(real.groups)} real", planes[0], "magma", low, high),
        (f"{len(fake.groups)} generated", planes[1], "magma", low, high),
        ("generated - real", planes[1] - planes[0], "RdBu_r", -span, span),
    )
    for axes, (title, plane, colours, least, most) in zip(figure.subplots(1, 3), shown, strict=True):
        picture = axes.imshow(plane, cmap=colours, vmin=least, vmax=most, extent=(-0.5, 0.5, 0.5, -0.5))
        axes.set(title=title, xlabel="cycles per pixel")
        figure.colorbar(picture, ax=axes, label="dB", shrink=0.85)
    return _png(figure)


def radial_profile(real: Spectra, fake: Spectra) -> bytes:
    """PNG: power by frequency, and the fakes' excess with its 95 % range by chance; the lesion band is shaded."""
    figure = Figure(figsize=(7, 6), dpi=_DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    mean = _decibels(real.profiles.mean(axis=0))
    found = _decibels(fake.profiles.mean(axis=0))
    upper.plot(real.frequencies, mean, color=_REAL, label=f"{len(real.groups)} real")
    upper.plot(real.frequencies, found, color=_FAKE, label=f"{len(fake.groups)} generated")
    _halves_band(lower, real.frequencies, radial_chance(real, fake))
    lower.plot(real.frequencies, found - mean, color=_FAKE)
    lower.axhline(0, color="grey", linewidth=0.8)
    for axes in (upper, lower):
        axes.axvspan(*BANDS[LESION], color="grey", alpha=0.12, linewidth=0)
        axes.set_xscale("log")
    upper.set(ylabel="power, dB", title="Radial power spectrum (shaded: spots of 1 to 4 pixels)")
    lower.set(xlabel="cycles per pixel", ylabel="generated - real, dB")
    upper.legend()
    if len(real.halves):
        lower.legend()
    return _png(figure)


def angular_profile(real: Spectra, fake: Spectra) -> bytes:
    """PNG: how the lesion band's power spreads over directions, dB, with its 95 % range by chance."""
    figure = Figure(figsize=(7, 3.8), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    degrees = np.arange(ANGLES) * (180 / ANGLES) - 90
    mean = real.angular.mean(axis=0)
    _halves_band(axes, degrees, mean + angular_chance(real, fake))
    axes.plot(degrees, mean, color=_REAL, label=f"{len(real.groups)} real")
    axes.plot(degrees, fake.angular.mean(axis=0), color=_FAKE, label=f"{len(fake.groups)} generated")
    axes.set(xlabel="direction of the wave, degrees", ylabel="over the ring's mean, dB", xticks=np.arange(-90, 91, 45))
    axes.set_title("Angular power spectrum, spots of 1 to 4 pixels")
    axes.legend()
    return _png(figure)


def _halves_band(axes: Any, x: Floats, curves: Floats) -> None:
    if len(curves):
        low, high = np.quantile(curves, _BAND, axis=0)
        axes.fill_between(x, low, high, color=_REAL, alpha=0.25, linewidth=0, label="95 % by chance, from real halves")


def _whole(half: Floats) -> Floats:
    """The full plane [R, R], zero frequency in the middle, from the half plane of a real picture."""
    size = len(half)
    mirrored = np.roll(half[::-1], 1, axis=0)[:, 1 : (size + 1) // 2][:, ::-1]
    return np.fft.fftshift(np.concatenate((half, mirrored), axis=1))


def _decibels(power: Floats) -> Floats:
    return 10 * np.log10(np.maximum(power, _TINY))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
