"""What is measured of a training once per tick, beside losses: the sample grid, and the layers of G.

`sample_statistics` looks at the pictures of the grid (16, of fixed seeds), `layer_statistics` at G's gradients, running
magnitudes and outputs. Both give plain numbers, which go into `Tick.scalars` under `health/`; health.py judges them.
Diversity is taken of pixels: no network that would have to be trusted first, and a collapse shows in them as well.

Roy & Vetterli 2007, "The effective rank"; Odena et al. 2016, "Deconvolution and Checkerboard Artifacts".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dr_platform.gan import Generator

PREFIX = "health/"
GRID_PERIODS = (2, 4, 8)  # pixels; what upsampling by 2, once to three times over, leaves behind

_LEAST_CYCLES = 4  # per image: below, a frequency is one of the picture's own forms
_NEIGHBOURHOOD = 5  # bins around a peak that tell its background
_REFERENCE_GROUPS = 8
# Of a pass, enough to tell a constant; a float32 copy of all would be gigabytes at 512 px.
_PICTURES_OF_LAYERS = 4
# The output is filtered after the clamp, which moves values off the limit by the filter's ripple, about 2 %.
_AT_CLAMP = 0.98

Array = NDArray[Any]


def sample_statistics(images: Array) -> dict[str, float]:
    """How different pictures are from each other, and how much of a pixel grid shows in them.

    images: [n, H, W, 3], n >= 2, uint8 or floats in [-1, 1]; H = W.
    distance: mean over the pairs of their root mean square difference, as a share of the full range. nearest: the same
    over each picture's nearest neighbour; 0 if every picture has a twin, whatever the number of modes. effective_rank:
    exp of the entropy of the normalised eigenvalues of the pictures' covariance, 1 (one direction) to n - 1, 0 for
    equal pictures. grid_2, grid_4, grid_8: how far the mean power at 1/2, 1/4, 1/8 cycles per pixel stands out of the
    radial background around it, in robust standard errors. grid_amplitude: amplitude of the strongest of these
    patterns, as a share of the full range. Numbers of other n do not compare (effective_rank, nearest).
    Raises ValueError for another shape or a value that is not finite.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2] or len(images) < 2:
        raise ValueError(f"found images {images.shape}, but diversity takes [n, R, R, 3] with n of at least 2")
    unit = images.astype(np.float32) / 255 if images.dtype == np.uint8 else (images.astype(np.float32) + 1) / 2
    if not np.isfinite(unit).all():
        raise ValueError("the images are not finite, so they have no statistics")
    return {**_diversity(unit), **_grid(unit)}


def reference_statistics(images: NDArray[np.uint8], group: int) -> dict[str, float]:
    """`sample_statistics` of real images in groups of as many as a sample grid has, averaged over up to eight groups.

    images: [n, R, R, 3]. Empty if there are fewer than two.
    """
    count = min(group, len(images))
    if count < 2:
        return {}
    groups = min(_REFERENCE_GROUPS, len(images) // count)
    # Strided, so that a group mixes early and late images of an order that may follow the collections.
    stride = len(images) // (groups * count)
    chosen = [images[np.arange(number, groups * count, groups) * stride] for number in range(groups)]
    found = [sample_statistics(pictures) for pictures in chosen]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def compare_statistics(samples: Mapping[str, float], real: Mapping[str, float]) -> dict[str, float]:
    """Samples against reals, ready for `Tick.scalars`: ratios of diversity, excess of grid patterns.

    Real images may have a grid of their own, from a sensor or an earlier resize; only what goes beyond it counts. Empty
    without reals.
    """
    if not real:
        return {}
    ratios = {name: samples[name] / max(real[name], 1e-6) for name in ("distance", "nearest", "effective_rank")}
    excess = {name: samples[name] - max(real[name], 0.0) for name in samples if name.startswith("grid_")}
    excess["grid_amplitude"] = max(excess["grid_amplitude"], 0.0)
    return {f"{PREFIX}{name}": value for name, value in (ratios | excess).items()}


def _diversity(unit: Array) -> dict[str, float]:
    n = len(unit)
    flat = unit.reshape(n, -1)
    flat = flat - flat.mean(axis=0)
    gram = (flat @ flat.T).astype(np.float64) / flat.shape[1]
    power = np.diag(gram)
    squared = np.maximum(power[:, None] + power[None, :] - 2 * gram, 0.0)
    # Equal pictures leave rounding errors of the difference of large sums, not zeros: float32 has 24 bits.
    squared[squared < 2.0**-20 * max(float(power.max()), 1e-12)] = 0.0
    distances = np.sqrt(squared)
    apart = distances[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    eigenvalues = np.maximum(np.linalg.eigvalsh(gram), 0.0)
    total = float(eigenvalues.sum())
    rank = 0.0
    if total > 1e-12:
        shares = eigenvalues[eigenvalues > 1e-9 * total] / total
        rank = math.exp(-float((shares * np.log(shares)).sum()))
    return {
        "distance": float(apart.mean()),
        "nearest": float(apart.min(axis=1).mean()),
        "effective_rank": rank,
    }


def _grid(unit: Array) -> dict[str, float]:
    n, side = unit.shape[:2]
    window = np.hanning(side + 1)[:-1].astype(np.float32)  # periodic: no leak beyond the next bin
    windowed = (unit - unit.mean(axis=(1, 2), keepdims=True)) * (window[:, None] * window[None, :])[..., None]
    planes = np.ascontiguousarray(windowed.transpose(0, 3, 1, 2)).reshape(-1, side, side)
    spectrum = scipy.fft.rfft2(planes, overwrite_x=True)
    half = (np.square(spectrum.real) + np.square(spectrum.imag)).mean(axis=0, dtype=np.float64)  # [R, R / 2 + 1]
    mirrored = np.roll(half[::-1], 1, axis=0)[:, (side - 1) // 2 : 0 : -1]  # of a real picture: F(-f) is F(f) conjugate
    power = np.concatenate([half, mirrored], axis=1)  # [R, R]
    # What rounding to 8 bits alone puts into each bin; nothing below it is a pattern.
    floor = float((window.astype(np.float64) ** 2).sum()) ** 2 / (12 * 255**2)
    found, amplitude = {}, 0.0
    for period in GRID_PERIODS:
        cycles = side // period
        if cycles < _LEAST_CYCLES:
            continue
        peaks = [
            _stands_out(power + floor, place, n)
            for place in ((cycles, 0), (0, cycles), (cycles, cycles), (cycles, -cycles))
        ]
        found[f"grid_{period}"] = max(z for z, _ in peaks)
        # A wave a·cos has half its amplitude in each of two bins, and at 1/2 cycles per pixel the whole in one.
        coherent = float(window.sum()) ** 2 / (1 if period == 2 else 2)
        amplitude = max(amplitude, max(math.sqrt(excess) for _, excess in peaks) / coherent)
    return {**found, "grid_amplitude": amplitude}


def _stands_out(power: Array, place: tuple[int, int], n: int) -> tuple[float, float]:
    """How far a bin's log power lies above a line in log radius around it, in robust errors; and its excess power."""
    side = len(power)
    offsets = np.arange(-_NEIGHBOURHOOD, _NEIGHBOURHOOD + 1)
    rows, columns = np.meshgrid(offsets, offsets, indexing="ij")
    # The window spreads a peak to the next bins; beyond the half rate a spectrum repeats itself.
    around = np.maximum(abs(rows), abs(columns)) >= 2
    rows, columns = (place[0] + rows[around]) % side, (place[1] + columns[around]) % side
    radius = np.hypot(np.minimum(rows, side - rows), np.minimum(columns, side - columns))
    inside = radius >= 2  # not the mean, nor what the window makes of it
    x, y = np.log(radius[inside]), np.log(power[rows[inside], columns[inside]])
    slope = float(np.cov(x, y, bias=True)[0, 1] / max(x.var(), 1e-9))
    level = y - slope * x
    here = math.log(math.hypot(*(min(abs(k), side - abs(k)) for k in place)))
    background = float(np.median(level)) + slope * here
    # The log of a mean of n exponential powers spreads by 1 / sqrt(n), even where the background happens to be smooth.
    spread = max(1.4826 * float(np.median(abs(level - np.median(level)))), 1 / math.sqrt(n))
    value = float(power[place[0] % side, place[1] % side])
    return (math.log(value) - background) / spread, max(value - math.exp(background), 0.0)


@dataclass
class LayerOutputs:
    """What `watching` saw of the layers: contrast and share of clamped values, one number per pass and layer."""

    contrast: dict[str, list[Tensor]] = field(default_factory=dict)
    clamped: dict[str, list[Tensor]] = field(default_factory=dict)


@contextmanager
def watching(generator: Generator) -> Iterator[LayerOutputs]:
    """Look at the output of every synthesis layer of the passes within the block; the passes compute what they did."""
    seen = LayerOutputs()

    def hook(name: str, clamp: float | None) -> Any:
        def look(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
            x = output[0].detach()[:_PICTURES_OF_LAYERS].float()
            variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            power = (variance + mean.square()).mean()
            # 0 for an output that is 0 throughout: as constant as any.
            contrast = (variance.mean() / power.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
            seen.contrast.setdefault(name, []).append(contrast)
            if clamp is not None:
                seen.clamped.setdefault(name, []).append((x.abs() >= _AT_CLAMP * clamp).count_nonzero() / x.numel())

        return look

    synthesis = generator.synthesis
    handles = [
        getattr(synthesis, name).register_forward_hook(hook(f"synthesis.{name}", getattr(synthesis, name).conv_clamp))
        for name in synthesis.layer_names
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def layer_names(generator: nn.Module) -> list[str]:
    """The layers by which `layer_statistics` counts, such as mapping.fc0, synthesis.input, synthesis.L0_36_512."""
    return list(dict.fromkeys(_layer(name) for name, _ in generator.named_parameters()))


def layer_statistics(
    generator: Generator, gradients: Mapping[str, Tensor], outputs: LayerOutputs | None = None
) -> dict[str, float]:
    """The weakest and strongest of G's layers; each NAME comes with NAME_layer, a position in `layer_names`.

    gradients: by parameter name, as left by the last G phase; empty where there are none.
    gradient_min: smallest norm of a layer's gradient, as a share of the whole network's. magnitude_min, magnitude_max:
    running mean square of a layer's input. contrast_min: spread of a layer's output over pictures and pixels, as a
    share of its root mean square: 0 for a constant. clamped_max: share of output values at the activation limit.
    """
    names = layer_names(generator)
    found: dict[str, float] = {}

    def put(key: str, values: Mapping[str, float], *, largest: bool = False) -> None:
        if values:
            layer = (max if largest else min)(values, key=lambda name: values[name])
            found[f"{PREFIX}{key}"] = values[layer]
            found[f"{PREFIX}{key}_layer"] = float(names.index(layer))

    if gradients:
        norms = torch.stack(torch._foreach_norm([gradient.detach().float() for gradient in gradients.values()]))
        squares: dict[str, float] = {}
        for name, norm in zip(gradients, norms.tolist(), strict=True):
            squares[_layer(name)] = squares.get(_layer(name), 0.0) + norm**2
        whole = max(sum(squares.values()), 1e-300)
        put("gradient_min", {name: math.sqrt(square / whole) for name, square in squares.items()})
    layers = {f"synthesis.{name}": getattr(generator.synthesis, name) for name in generator.synthesis.layer_names}
    powers = torch.stack([layer.magnitude_ema.detach().float() for layer in layers.values()]).tolist()
    magnitudes = dict(zip(layers, powers, strict=True))
    put("magnitude_min", magnitudes)
    put("magnitude_max", magnitudes, largest=True)
    if outputs is not None and outputs.contrast:
        put("contrast_min", _means(outputs.contrast))
        put("clamped_max", _means(outputs.clamped), largest=True)
    return found


def _means(seen: Mapping[str, list[Tensor]]) -> dict[str, float]:
    if not seen:
        return {}
    values = torch.stack([torch.stack(passes).mean() for passes in seen.values()]).tolist()
    return dict(zip(seen, values, strict=True))


def _layer(parameter: str) -> str:
    return ".".join(parameter.split(".")[:2])
