"""The augmentation pipeline of StyleGAN2-ADA: what the critic's images undergo, real and generated alike.

Drawing is apart from applying. `draw` makes, for each sample, random values and random gates for every transform, as a
function of a generator of random numbers alone; `augment` is then a pure function of images, draws and p, whatever the
company of a sample. So a step is the same for any number of workers, and a resumed training needs no saved state.

A transform acts on a sample where its gate lies below p times the transform's multiplier. Geometric ones make one
matrix and are executed together (warp.py); colour ones make another.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B.
Legend: N samples, transforms in the order of execution, matrices on homogeneous columns; a geometric matrix maps pixels
of the result to pixels of the image, origin at the centre, x right and y down.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .warp import band_gains, warp

# What each sample draws: name -> number of values. Normal ones have a Gaussian, the others lie in [0, 1).
_VALUES = {
    "flip": 1, "rotate90": 1, "shift_whole": 2, "scale": 1, "rotate_before": 1, "aniso": 1, "rotate_after": 1,
    "shift": 2,
    "brightness": 1, "contrast": 1, "lumaflip": 1, "hue": 1, "saturation": 1,
    "filter": 4, "noise": 1, "noise_seed": 1, "cutout": 2,
}  # fmt: skip
_NORMAL = {"scale", "aniso", "shift", "brightness", "contrast", "saturation", "filter", "noise"}
# Gates: one for all values of a transform, but the bands of the filter are amplified each by its own chance.
_GATES = dict.fromkeys(_VALUES, 1) | {"filter": 4}


def _columns(counts: dict[str, int]) -> dict[str, slice]:
    """Where each name's columns are, side by side."""
    ends = list(itertools.accumulate(counts.values()))
    return {name: slice(end - count, end) for (name, count), end in zip(counts.items(), ends, strict=True)}


_PLACES = _columns(_VALUES)
_GATE_PLACES = _columns(_GATES)
_COLUMNS = sum(_VALUES.values())
# The white axis of colour space: luma is along it, hue turns about it.
_LUMA = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) / math.sqrt(3)
# Share of a natural image's power in the four bands (about 1/f), by which the filter keeps the total.
_BAND_POWER = torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64) / 13


@dataclass(frozen=True)
class Augmentation:
    """Which transforms there are, how likely, and how far they go. A multiplier of 0 leaves a transform out."""

    # Multipliers of p.
    flip: float = 0  # left and right exchanged
    rotate90: float = 0  # by a quarter, half or three quarters of a turn
    shift_whole: float = 0  # by whole pixels
    scale: float = 0
    rotate: float = 0  # before and after `aniso`
    aniso: float = 0  # one axis longer, the other shorter
    shift: float = 0  # by fractions of pixels
    brightness: float = 0
    contrast: float = 0
    lumaflip: float = 0  # light for dark, hue kept
    hue: float = 0
    saturation: float = 0
    filter: float = 0  # four frequency bands amplified
    noise: float = 0
    cutout: float = 0  # a square of grey

    # How far they go; the published values.
    shift_whole_max: float = 0.125  # of the width or height
    scale_std: float = 0.2  # powers of two
    rotate_max: float = 1.0  # half turns
    aniso_std: float = 0.2  # powers of two
    shift_std: float = 0.125  # of the width or height
    brightness_std: float = 0.2  # of half the range
    contrast_std: float = 0.5  # powers of two
    hue_max: float = 1.0  # half turns
    saturation_std: float = 1.0  # powers of two
    filter_std: float = 1.0  # powers of two
    noise_std: float = 0.1  # of half the range
    cutout_size: float = 0.5  # of the width and height

    @property
    def is_geometric(self) -> bool:
        """Whether any transform moves pixels."""
        return any((self.flip, self.rotate90, self.shift_whole, self.scale, self.rotate, self.aniso, self.shift))

    @property
    def is_colour(self) -> bool:
        """Whether any transform changes colours."""
        return any((self.brightness, self.contrast, self.lumaflip, self.hue, self.saturation))

    @property
    def transforms(self) -> tuple[str, ...]:
        """The names of those that are in use."""
        return tuple(name for name in _MULTIPLIERS if getattr(self, name) > 0)


_MULTIPLIERS = tuple(field.name for field in fields(Augmentation) if not field.name.endswith(("_max", "_std", "_size")))

# The published default: "blit", geometry and colour.
BGC = Augmentation(
    flip=1, rotate90=1, shift_whole=1, scale=1, rotate=1, aniso=1, shift=1,
    brightness=1, contrast=1, lumaflip=1, hue=1, saturation=1,
)  # fmt: skip

# What two photographs of one eye may differ by. The eye lies upright, so no quarter turn, no half turn, no light for
# dark; heads tilt by some degrees (15 at most here) and the field is centred on disc or macula within a tenth of its
# width, by operators and not by whole pixels. Cameras differ in magnification by a few percent (0.07 powers of two are
# 5 %) and a disc stays round, so no stretching. Exposure and contrast vary between flashes by less than a fifth. Hue is
# pigment and blood: a turn of 0.03 half turns, 5 degrees, is what white balance does, and more would make a
# haemorrhage an exudate. Nothing that could cover, blur or imitate a microaneurysm of 1 to 4 pixels: no cutout, no
# noise, no filter. Mirrored, a right eye is a left one: only where both are among the images.
FUNDUS = Augmentation(
    scale=1, rotate=1, shift=1, brightness=1, contrast=1, hue=1, saturation=1,
    scale_std=0.07, rotate_max=15 / 180, shift_std=0.04,
    brightness_std=0.1, contrast_std=0.2, hue_max=0.03, saturation_std=0.25,
)  # fmt: skip


def augmentation_named(name: str, flip: bool) -> Augmentation | None:
    """The pipeline called none, fundus or bgc; None for none. flip: whether `fundus` may mirror.

    Raises ValueError for another name.
    """
    if name == "none":
        return None
    if name == "bgc":
        return BGC
    if name == "fundus":
        return replace(FUNDUS, flip=1) if flip else FUNDUS
    raise ValueError(f"there is no augmentation {name!r}. Use none, fundus or bgc.")


@dataclass(frozen=True)
class Draws:
    """Random values and gates, both [N, columns], of N samples, float64 on the CPU; independent of p."""

    values: Tensor
    gates: Tensor

    def __getitem__(self, samples: Tensor) -> Draws:
        """Those of some samples."""
        return Draws(self.values[samples], self.gates[samples])

    def value(self, name: str) -> Tensor:
        """[N], or [N, k] for k values."""
        return self.values[:, _PLACES[name]].squeeze(1)

    def chosen(self, name: str, probability: float) -> Tensor:
        """[N]: which samples a transform of this probability acts on; [N, k] for k gates."""
        return self.gates[:, _GATE_PLACES[name]].squeeze(1) < probability


def draw(number: int, generator: torch.Generator) -> Draws:
    """The draws of `number` samples, the same for the same state of `generator` (on the CPU)."""
    uniform = torch.rand(number, _COLUMNS, generator=generator, dtype=torch.float64)
    normal = torch.randn(number, _COLUMNS, generator=generator, dtype=torch.float64)
    is_normal = torch.zeros(_COLUMNS, dtype=torch.bool)
    for name in _NORMAL:
        is_normal[_PLACES[name]] = True
    gates = torch.rand(number, sum(_GATES.values()), generator=generator, dtype=torch.float64)
    return Draws(torch.where(is_normal, normal, uniform), gates)


def draws_at(number: int, percentile: float) -> Draws:
    """Draws that let every transform act, each with its value at one percentile: what golden numbers were made with.

    Normal values are erfinv(2 q - 1), without the root of 2 that a quantile has; the second rotation stays away.
    """
    values = torch.full((number, _COLUMNS), percentile, dtype=torch.float64)
    for name in _NORMAL:
        values[:, _PLACES[name]] = torch.erfinv(torch.tensor(2 * percentile - 1, dtype=torch.float64))
    values[:, _PLACES["rotate_after"]] = 0.5
    values[:, _PLACES["noise"]] = torch.erfinv(torch.tensor(percentile, dtype=torch.float64))
    return Draws(values, torch.zeros_like(draw(number, torch.Generator()).gates))


def augment(
    images: Tensor, draws: Draws, p: float, augmentation: Augmentation, noise_field: Tensor | None = None
) -> Tensor:
    """The images under the transforms that their draws choose; differentiable any number of times.

    images: [N, 3 or 1, H, W] in about [-1, 1]; the result may leave that range. p: probability, in [0, 1].
    noise_field: standard normal [N, C, H, W], for noise; None: follows from the draws.
    Returns [N, C, H, W]. Raises ValueError for another number of channels where colours are changed.

    Each sample is treated by itself: another in its batch changes it by rounding at most.
    """
    height, width = images.shape[2:]
    if augmentation.is_geometric:
        images = warp(images, inverse_geometry(draws, p, augmentation, width, height))
    if augmentation.is_colour:
        images = _recolour(images, colour_matrix(draws, p, augmentation, images.shape[1]))
    if augmentation.filter:
        images = band_gains(images, _gains(draws, p, augmentation))
    if augmentation.noise:
        sigma = draws.value("noise").abs() * augmentation.noise_std
        sigma = torch.where(draws.chosen("noise", p * augmentation.noise), sigma, 0)
        field = _noise(draws, images) if noise_field is None else noise_field
        images = images + field * _per_sample(sigma, images)
    if augmentation.cutout:
        images = images * _holes(draws, p, augmentation, images)
    return images


def inverse_geometry(draws: Draws, p: float, augmentation: Augmentation, width: int, height: int) -> Tensor:
    """[N, 3, 3]: from pixels of the result to pixels of the image, all geometric transforms together."""
    total = torch.eye(3, dtype=torch.float64)
    for factor in geometric_factors(draws, p, augmentation, width, height):
        total = total @ factor
    return total.expand(len(draws.values), 3, 3)


def geometric_factors(draws: Draws, p: float, augmentation: Augmentation, width: int, height: int) -> list[Tensor]:
    """The inverse of each geometric transform, [N, 3, 3], in the order in which they act on the image."""
    a = augmentation
    # Both rotations together shall have probability p: 1 - (1 - p_rotation)^2 = p.
    p_rotation = 1 - math.sqrt(min(max(1 - p * a.rotate, 0), 1))

    def chosen(name: str, value: Tensor, otherwise: float, probability: float) -> Tensor:
        gate = draws.chosen(name, probability)
        return torch.where(gate if value.ndim == 1 else gate[:, None], value, otherwise)

    factors = []
    if a.flip:
        side = chosen("flip", 1 - 2 * torch.floor(2 * draws.value("flip")), 1, p * a.flip)
        factors.append(_scaling(1 / side, torch.ones_like(side)))
    if a.rotate90:
        quarters = chosen("rotate90", torch.floor(4 * draws.value("rotate90")), 0, p * a.rotate90)
        factors.append(_rotation(quarters * (math.pi / 2)))
    size = torch.tensor([width, height], dtype=torch.float64)
    if a.shift_whole:
        shares = (2 * draws.value("shift_whole") - 1) * a.shift_whole_max
        factors.append(_translation(-torch.round(chosen("shift_whole", shares, 0, p * a.shift_whole) * size)))
    if a.scale:
        scale = chosen("scale", torch.exp2(draws.value("scale") * a.scale_std), 1, p * a.scale)
        factors.append(_scaling(1 / scale, 1 / scale))
    if a.rotate:
        angle = (2 * draws.value("rotate_before") - 1) * (math.pi * a.rotate_max)
        factors.append(_rotation(chosen("rotate_before", angle, 0, p_rotation)))
    if a.aniso:
        ratio = chosen("aniso", torch.exp2(draws.value("aniso") * a.aniso_std), 1, p * a.aniso)
        factors.append(_scaling(1 / ratio, ratio))
    if a.rotate:
        angle = (2 * draws.value("rotate_after") - 1) * (math.pi * a.rotate_max)
        factors.append(_rotation(chosen("rotate_after", angle, 0, p_rotation)))
    if a.shift:
        factors.append(_translation(-chosen("shift", draws.value("shift") * a.shift_std, 0, p * a.shift) * size))
    return factors


def colour_matrix(draws: Draws, p: float, augmentation: Augmentation, channels: int = 3) -> Tensor:
    """[N, 4, 4]: what maps (r, g, b, 1) to its augmented self. channels: 1 leaves hue and saturation alone."""
    a = augmentation
    total = torch.eye(4, dtype=torch.float64).expand(len(draws.values), 4, 4)
    along = torch.outer(_LUMA, _LUMA)
    identity = torch.eye(4, dtype=torch.float64)

    def chosen(name: str, value: Tensor, otherwise: float, multiplier: float) -> Tensor:
        return torch.where(draws.chosen(name, p * multiplier), value, otherwise)

    if a.brightness:
        offset = chosen("brightness", draws.value("brightness") * a.brightness_std, 0, a.brightness)
        matrix = identity.repeat(len(offset), 1, 1)
        matrix[:, :3, 3] = offset[:, None]
        total = matrix @ total
    if a.contrast:
        factor = chosen("contrast", torch.exp2(draws.value("contrast") * a.contrast_std), 1, a.contrast)
        total = torch.diag_embed(torch.stack([factor, factor, factor, torch.ones_like(factor)], dim=1)) @ total
    if a.lumaflip:
        turned = chosen("lumaflip", torch.floor(2 * draws.value("lumaflip")), 0, a.lumaflip)
        total = (identity - 2 * along * turned[:, None, None]) @ total
    if a.hue and channels > 1:
        angle = chosen("hue", (2 * draws.value("hue") - 1) * (math.pi * a.hue_max), 0, a.hue)
        total = _turn_about_luma(angle) @ total
    if a.saturation and channels > 1:
        factor = chosen("saturation", torch.exp2(draws.value("saturation") * a.saturation_std), 1, a.saturation)
        total = (along + (identity - along) * factor[:, None, None]) @ total
    return total


def _recolour(images: Tensor, matrix: Tensor) -> Tensor:
    channels = images.shape[1]
    if channels == 3:
        change = matrix.to(images)
        flat = images.flatten(2)
        return torch.baddbmm(change[:, :3, 3:], change[:, :3, :3], flat).reshape(images.shape)
    if channels == 1:
        mean = matrix[:, :3].mean(dim=1)  # [N, 4]
        return images * _per_sample(mean[:, :3].sum(dim=1), images) + _per_sample(mean[:, 3], images)
    raise ValueError(f"colours of {channels} channels cannot be augmented. Use images with 3 channels or 1.")


def _gains(draws: Draws, p: float, augmentation: Augmentation) -> Tensor:
    """[N, 4]: the amplification of each band, scaled so that a natural image keeps its power."""
    total = torch.ones(len(draws.values), 4, dtype=torch.float64)
    strength = torch.exp2(draws.value("filter") * augmentation.filter_std)
    acts = draws.chosen("filter", p * augmentation.filter)
    for band in range(4):
        gains = torch.ones_like(total)
        gains[:, band] = torch.where(acts[:, band], strength[:, band], 1)
        total = total * gains / (_BAND_POWER * gains.square()).sum(dim=1, keepdim=True).sqrt()
    return total


def _noise(draws: Draws, images: Tensor) -> Tensor:
    """Standard normal numbers like `images`, each sample's from a seed of its own."""
    field = torch.empty(images.shape, dtype=torch.float32)
    for sample, seed in zip(field, (draws.value("noise_seed") * 2**32).long().tolist(), strict=True):
        sample.copy_(torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed)))
    return field.to(images)


def _holes(draws: Draws, p: float, augmentation: Augmentation, images: Tensor) -> Tensor:
    """[N, 1, H, W]: 0 within each sample's square, else 1."""
    height, width = images.shape[2:]
    acts = draws.chosen("cutout", p * augmentation.cutout)
    size = torch.where(acts, augmentation.cutout_size, 0)[:, None]
    centre = draws.value("cutout")

    def outside(length: int, place: Tensor) -> Tensor:
        positions = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        return (positions - place[:, None]).abs() >= size / 2

    columns, rows = outside(width, centre[:, 0]), outside(height, centre[:, 1])
    return (columns[:, None, None, :] | rows[:, None, :, None]).to(images)


def _per_sample(numbers: Tensor, images: Tensor) -> Tensor:
    return numbers.to(images)[:, None, None, None]


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _rotation(angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))


def _translation(shift: Tensor) -> Tensor:
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(shift), 1, 1)
    matrix[:, :2, 2] = shift
    return matrix


def _turn_about_luma(angle: Tensor) -> Tensor:
    """[N, 4, 4]: rotations about the white axis v: v vᵀ + cos (I - v vᵀ) + sin [v]ₓ (Rodrigues)."""
    x, y, z, _ = _LUMA.tolist()
    cross = torch.tensor([[0, -z, y, 0], [z, 0, -x, 0], [-y, x, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    along = torch.outer(_LUMA, _LUMA)
    rest = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)) - along
    fixed = torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    return along + fixed + angle.cos()[:, None, None] * rest + angle.sin()[:, None, None] * cross
