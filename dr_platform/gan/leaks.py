"""Does the generator draw the augmentation? Simple statistics of its images against those of real ones.

Adaptive augmentation shows the critic transformed images and trusts that the generator still draws untransformed ones.
It may not: at a high p, or with a transform that cannot be undone, the generator learns to draw turned, tinted or
blanked images itself; the augmentation leaks. Each transform here has statistics that it spreads: where the disc lies,
how large the field of view is, what hue it has.

The verdict rests on spread, not on location: a leaking transform acts to a random amount, so its statistic varies more
among fakes than among reals, while a generator that is merely not good yet draws images that are all darker, or all
softer. Where a transform moves a statistic one way only (a blank square, added noise), that counts too. Still a
suspicion, not a proof: see `Leak.sentence`.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.special import stdtrit
from torch import Tensor

_SIDE = 64  # pixels per side at which shapes and colours are measured; noise and bands at full size
_DISC_SIDES = (3, 13)  # of the squares that the disc, at half of that, is sought with: disc and surroundings
_LEAST_NOISE = 0.01  # a little more than a grey level: rounding is no noise
_EPSILON = 1e-3  # an eighth of a grey level: no logarithm of less

_FEWEST = 8  # images of either kind below which nothing is judged
_CLIP = 6.0  # robust deviations at which an outlier stops counting more


@dataclass(frozen=True)
class _Trace:
    """What a transform does to a statistic. `least`: extra spread, or shift, below which there is nothing to report."""

    transform: str
    statistic: str
    noun: str
    least: float  # about a fifth of what the published transform does at p = 1
    direction: Literal[-1, 0, 1] = 0  # in which the transform moves the location, if it moves it one way only


_TRACES = (
    _Trace("flip", "disc_x", "the side of the optic disc", 0.15),
    _Trace("rotate90", "disc_upright", "the direction of the optic disc, across or upright", 0.15, -1),
    _Trace("shift", "field_x", "the horizontal position of the field of view", 0.03),
    _Trace("shift", "field_y", "the vertical position of the field of view", 0.03),
    _Trace("scale", "field_radius", "the size of the field of view", 0.03),
    _Trace("rotate", "disc_slant", "the slant of the line to the optic disc", 0.15),
    _Trace("rotate", "disc_upright", "the direction of the optic disc, across or upright", 0.15, -1),
    _Trace("aniso", "field_aspect", "the width of the field of view against its height", 0.05),
    _Trace("aniso", "field_slant", "the slant of the field of view", 0.05),
    _Trace("brightness", "border", "the brightness of the border", 0.04),
    _Trace("brightness", "level", "the brightness of the field of view", 0.04),
    _Trace("contrast", "contrast", "the contrast of the field of view with its border", 0.07),
    _Trace("contrast", "deviation", "the contrast inside the field of view", 0.07),
    _Trace("lumaflip", "polarity", "how much brighter the field of view is than the corners", 0.2),
    _Trace("hue", "hue", "hue", 0.2),
    _Trace("saturation", "saturation", "saturation", 0.14),
    _Trace("filter", "fine_band", "the strength of the finest details against the next finer", 0.1),
    _Trace("filter", "middle_band", "the strength of fine details against coarser ones", 0.1),
    _Trace("noise", "noise", "noise", 0.2, 1),
    _Trace("cutout", "flat_grey", "the share of flat grey", 0.02, 1),
)
TRANSFORMS = tuple(dict.fromkeys(trace.transform for trace in _TRACES))


@dataclass(frozen=True)
class Leak:
    """A suspicion that the generator draws a transform. Locations and spreads are in the units of the statistic."""

    transform: str  # one of TRANSFORMS
    statistic: str  # the one that shows it most clearly
    noun: str  # what it measures, in words
    evidence: Literal["spread", "location"]
    real_location: float
    real_spread: float  # that of a normal distribution with the same mean deviation
    fake_location: float
    fake_spread: float
    z: float  # excess of the fakes in standard errors
    num_fakes: int

    @property
    def sentence(self) -> str:
        """One line for the log: the numbers, what they may mean, and what to try."""
        if self.evidence == "location":
            seen = f"fakes differ from reals in {self.noun} ({self.fake_location:.2g} against {self.real_location:.2g}"
        elif self.fake_spread < 100 * self.real_spread:
            seen = (
                f"fakes vary {self.fake_spread / self.real_spread:.1f} times as much as reals in {self.noun} "
                f"({self.fake_spread:.2g} against {self.real_spread:.2g}"
            )
        else:
            seen = f"fakes vary in {self.noun}, reals hardly do ({self.fake_spread:.2g} against {self.real_spread:.2g}"
        return (
            f"{seen}; z {self.z:.1f}, {self.num_fakes} fakes). If p is high, {self.transform} may be leaking: "
            "raise train.ada_target, or set augment to fundus or none. Fakes of a young generator differ anyway."
        )


def find_leaks(
    real: Mapping[str, Tensor],
    fake: Mapping[str, Tensor],
    transforms: Collection[str],
    false_alarms: float = 0.01,
) -> list[Leak]:
    """Suspicions that fakes show one of `transforms`, the clearest first, at most one for each transform.

    real, fake: what `leak_statistics` gave for real and generated images, their numbers may differ.
    transforms: those in use, names of TRANSFORMS; no other is judged.
    false_alarms: chance that a call finds anything although fakes are drawn as reals are; shared out evenly between the
    tests made (Bonferroni), of which there is one for each spread and one for each location that can move one way.
    Values that are not finite are left out. With fewer than 8 images of either kind nothing is found.
    Raises ValueError for an unknown transform.
    """
    unknown = sorted(set(transforms) - set(TRANSFORMS))
    if unknown:
        raise ValueError(f"no leaks are known of {', '.join(unknown)}. Name some of: {', '.join(TRANSFORMS)}.")
    traces = [trace for trace in _TRACES if trace.transform in transforms]
    num_tests = len({(trace.statistic, "spread") for trace in traces})
    num_tests += len({trace.statistic for trace in traces if trace.direction})
    strongest: dict[str, Leak] = {}
    for trace in traces:
        for leak in _judge(trace, real[trace.statistic], fake[trace.statistic], false_alarms / num_tests):
            rival = strongest.get(leak.transform)
            if rival is None or leak.z > rival.z:
                strongest[leak.transform] = leak
    return sorted(strongest.values(), key=lambda leak: -leak.z)


def _judge(trace: _Trace, real: Tensor, fake: Tensor, false_alarms: float) -> list[Leak]:
    """Leaks that one statistic shows: by its spread, by its location, by both or by none."""
    real, fake = real[real.isfinite()].double(), fake[fake.isfinite()].double()
    fewer = min(len(real), len(fake))
    if fewer < _FEWEST:
        return []
    # Centres are each kind's own, so that a shift is no spread; limits are common, so that both are treated alike.
    away = [(values - values.median()).abs() for values in (real, fake)]
    limit = _CLIP * max(float(torch.cat(away).median()) * 1.4826, trace.least)
    centre = torch.cat([real, fake]).median()
    deviations = [values.clamp(max=limit) for values in away]
    levels = [(values - centre).clamp(-limit, limit) for values in (real, fake)]
    real_spread, fake_spread = (float(values.mean()) * math.sqrt(math.pi / 2) for values in deviations)
    real_location, fake_location = (float(values.mean() + centre) for values in levels)

    # Student's quantile, with the degrees of freedom of the smaller sample alone, errs on the safe side.
    needed = float(stdtrit(fewer - 1, 1 - false_alarms))
    found: list[tuple[Literal["spread", "location"], float]] = []
    extra = fake_spread**2 - real_spread**2
    z = _excess(*deviations)
    if z > needed and extra > trace.least**2:
        found.append(("spread", z))
    z = _excess(*levels) * trace.direction
    if z > needed and (fake_location - real_location) * trace.direction > trace.least:
        found.append(("location", z))
    return [
        Leak(
            transform=trace.transform,
            statistic=trace.statistic,
            noun=trace.noun,
            evidence=evidence,
            real_location=real_location,
            real_spread=real_spread,
            fake_location=fake_location,
            fake_spread=fake_spread,
            z=z,
            num_fakes=len(fake),
        )
        for evidence, z in found
    ]


def _excess(real: Tensor, fake: Tensor) -> float:
    """Difference of the means in its standard errors (Welch); 0 where both are constant and equal."""
    error = math.sqrt(float(real.var()) / len(real) + float(fake.var()) / len(fake))
    difference = float(fake.mean() - real.mean())
    return difference / error if error > 0 else math.copysign(math.inf, difference) if difference else 0.0


@torch.no_grad()
def leak_statistics(images: Tensor) -> dict[str, Tensor]:
    """Statistics of each image, by name, each [n] in float64 on the CPU.

    images: [n, 3, h, w] in about [-1, 1], at least 32 pixels high and wide. Positions are in half widths from the
    centre, x right, y down; lengths as natural logarithms. Raises ValueError on another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 32:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, but leaks are sought in [n, 3, h, w] of at least 32 pixels. "
            "Pass colour images."
        )
    images = images.detach().float()
    small = _shrink(images)
    found = _shape(small) | _colour(small) | _detail(images) | {"flat_grey": _flat_grey(small)}
    return {name: values.double().cpu() for name, values in found.items()}


def _shrink(images: Tensor) -> Tensor:
    factor = max(min(images.shape[2:]) // _SIDE, 1)
    return F.avg_pool2d(images, factor) if factor > 1 else images


def _field(luminance: Tensor) -> Tensor:
    """1 inside the field of view, else 0, [n, h, w]: brighter than a quarter of the way from black to lit tissue.

    luminance: brighter in the field than around it, see `_polarity`.
    """
    flat = luminance.flatten(1)
    count = flat.shape[1]
    dark, lit = (flat.kthvalue(max(int(count * share), 1), dim=1).values for share in (0.02, 0.7))
    return (luminance > (dark + (lit - dark) / 4)[:, None, None]).float()


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """x [w] and y [h, 1] of pixel centres in half widths."""
    height, width = like.shape[-2:]
    x = (torch.arange(width, dtype=like.dtype, device=like.device) * 2 + 1) / width - 1
    y = (torch.arange(height, dtype=like.dtype, device=like.device) * 2 + 1 - height) / width
    return x, y[:, None]


def _polarity(luminance: Tensor) -> Tensor:
    """How much brighter the middle of the image is than its corners, [n]; negative for a negative."""
    x, y = _grid(luminance)
    away = x.square() + y.square()
    corner, middle = ((mask.float().expand_as(luminance)) for mask in (away > 1.3, away < 0.5))
    return _mean(luminance, middle) - _mean(luminance, corner)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the pixels, [n]."""
    return (values * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=_EPSILON)


def _box(values: Tensor, side: int) -> Tensor:
    """Sum over a square of an odd number of pixels, nothing outside, [n, h, w]."""
    for dim in (1, 2):
        before, after = [0, 0, 0, 0], side // 2
        before[4 - 2 * dim], before[5 - 2 * dim] = after + 1, after
        total = F.pad(values, before).cumsum(dim=dim)
        length = values.shape[dim]
        values = total.narrow(dim, side, length) - total.narrow(dim, 0, length)
    return values


def _shape(small: Tensor) -> dict[str, Tensor]:
    """Where the field of view is, its size and form, and on which side of it the optic disc lies."""
    luminance = small.mean(dim=1)
    # A negative keeps its shape: only `polarity` shall tell it.
    luminance = luminance * _polarity(luminance).sign()[:, None, None]
    field = _field(luminance)
    x, y = _grid(luminance)
    centre_x, centre_y = _mean(x, field), _mean(y, field)
    dx, dy = x - centre_x[:, None, None], y - centre_y[:, None, None]
    xx, yy, xy = _mean(dx * dx, field), _mean(dy * dy, field), _mean(dx * dy, field)
    size = (xx + yy).clamp(min=_EPSILON)

    # The disc is brighter than what lies around it, both taken inside the field only; half the size is enough.
    within, shone = F.avg_pool2d(field[:, None], 2)[:, 0], F.avg_pool2d((luminance * field)[:, None], 2)[:, 0]
    near, around = (_box(shone, side) / _box(within, side).clamp(min=_EPSILON) for side in _DISC_SIDES)
    excess = (near - around).clamp(min=0) * within
    weight = (excess / excess.amax(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)) ** 6
    half_x, half_y = _grid(excess)
    radius = size.sqrt()
    disc_x, disc_y = (_mean(half_x, weight) - centre_x) / radius, (_mean(half_y, weight) - centre_y) / radius
    away = disc_x.square() + disc_y.square() + 0.05
    return {
        "field_x": centre_x,
        "field_y": centre_y,
        "field_radius": field.mean(dim=(1, 2)).clamp(min=_EPSILON).log() / 2,
        "field_aspect": ((xx - yy) / size),
        "field_slant": (2 * xy / size),
        "disc_x": disc_x,
        "disc_upright": (disc_x.square() - disc_y.square()) / away,
        "disc_slant": 2 * disc_x * disc_y / away,
    }


def _colour(small: Tensor) -> dict[str, Tensor]:
    """Levels and colours of the field of view and of the border around it."""
    luminance = small.mean(dim=1)
    polarity = _polarity(luminance)
    field = _field(luminance * polarity.sign()[:, None, None])
    level, border = _mean(luminance, field), _mean(luminance, 1 - field)
    deviation = _mean((luminance - level[:, None, None]).square(), field).sqrt()
    red, green, blue = (_mean(channel, field) for channel in small.unbind(dim=1))
    # The plane of equal luminance, its first axis towards red: fundus photographs lie near it, far from the cut at pi.
    chroma_red, chroma_green = (2 * red - green - blue) / math.sqrt(6), (green - blue) / math.sqrt(2)
    chroma = torch.hypot(chroma_red, chroma_green).clamp(min=_EPSILON)
    contrast = (level - border).abs().clamp(min=_EPSILON)
    return {
        "level": level,
        "border": border,
        "contrast": contrast.log(),
        "deviation": deviation.clamp(min=_EPSILON).log(),
        "polarity": polarity,
        "hue": torch.atan2(chroma_green, chroma_red),
        "saturation": (chroma / contrast).log(),  # a gain of contrast alone does not change it
    }


def _detail(images: Tensor) -> dict[str, Tensor]:
    """Noise and the balance of spatial frequencies, from luminance at full size."""
    luminance = images.mean(dim=1, keepdim=True)
    bands = []
    for _ in range(3):
        coarse = F.avg_pool2d(luminance, 2)
        band = luminance - F.interpolate(coarse, size=luminance.shape[2:], mode="bilinear")
        bands.append(band.square().mean(dim=(1, 2, 3)).clamp(min=_EPSILON**2).log() / 2)
        luminance = coarse
    even, odd = images[:, :, :, 0::2], images[:, :, :, 1::2]
    width = min(even.shape[3], odd.shape[3])
    detail = even[..., :width] - odd[..., :width]
    height = detail.shape[2] // 2
    diagonal = (detail[:, :, 0 : 2 * height : 2] - detail[:, :, 1 : 2 * height : 2]) / 2
    noise = diagonal.abs().flatten(1).median(dim=1).values / 0.6745
    return {
        "noise": noise.clamp(min=_LEAST_NOISE).log(),
        "fine_band": bands[0] - bands[1],
        "middle_band": bands[1] - bands[2],
    }


def _flat_grey(small: Tensor) -> Tensor:
    """Largest share of the image that a square of even mid-grey takes, as cutting out leaves it."""
    grey = (small.abs().amax(dim=1) < 0.1).float()
    side = max(small.shape[-1] // 8, 3) | 1
    return (_box(grey, side) > 0.95 * side**2).float().mean(dim=(1, 2))
