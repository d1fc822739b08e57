"""EQ-T and EQ-R: does moving a generator's input move its picture, and nothing else? In decibels.

A generator is run twice per transform, once as it is and once with its Fourier input moved; the first picture is then
moved by an ideal operator, and the two are compared where both are defined. Karras et al. 2021, "Alias-Free Generative
Adversarial Networks", section 3.2 and appendix E. Squared errors are pooled over all images before the logarithm, so
a batch with no error at all (a shift by 0 pixels) counts like any other.

A fundus picture is black outside its field of view, and black is easy to move. So each number can also be had within
the field alone: the circle found in the unmoved picture, moved along, and cut with the operator's mask.

Legend: images [N, C, H, W]; (tx, ty) a shift as a share of width and height; angle in radians; an operator returns the
moved images and a mask [1, 1, H, W], 1 where they are defined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dr_platform.data.fundus import FieldOfView, find_field_of_view
from dr_platform.errors import DataError, EvaluationError
from dr_platform.evaluation.precision import whole_float32
from dr_platform.gan import Generator

EQ_BATCH = 4  # images that share a transform, as in the paper; part of the metric, not of the machine
MAX_SHIFT = 0.125  # of the width
SIGNAL_RANGE = 2.0  # images span [-1, 1]
NAMES = ("eq_t_int_db", "eq_t_frac_db", "eq_r_db")
FIELD_NAMES = ("eq_t_int_field_db", "eq_t_frac_field_db", "eq_r_field_db")

_LANCZOS = 3  # lobes of the Lanczos window
_RADIUS = 6  # of the band-limiting filter, input pixels
_EXTENT = 64  # how far the sincs run before they wrap, input pixels
_ROTATION_UP = 4
_LEAST_MSE = 1e-15  # "no error at all" reads as 156 dB: JSON knows no infinity


Fields = list[FieldOfView | None]


@dataclass(frozen=True)
class Transforms:
    """One batch's transforms: an integer shift (a whole number of pixels), a fractional shift, an angle."""

    integer: tuple[float, float]
    fractional: tuple[float, float]
    angle: float


def draw_transforms(count: int, resolution: int, seed: int) -> list[Transforms]:
    """`count` random transforms: shifts uniform within an eighth of the width, angles over the whole circle."""
    draws = np.random.default_rng(seed).uniform(-1, 1, size=(count, 5))
    shifts = draws[:, :4] * MAX_SHIFT
    whole = np.round(shifts[:, :2] * resolution) / resolution
    return [
        Transforms((float(w[0]), float(w[1])), (float(s[2]), float(s[3])), float(d[4] * math.pi))
        for w, s, d in zip(whole, shifts, draws, strict=True)
    ]


def equivariance_errors(
    generator: Generator, batches: Iterable[tuple[Tensor, Tensor | None, Transforms]]
) -> np.ndarray:
    """Sums of squared errors and of mask entries per batch: float64 [batches, 3 metrics, 2], metrics as in `NAMES`.

    generator: called as G(z, c, force_fp32=True); the [3, 3] buffer `synthesis.input.transform` moves its input.
    batches: latents [n, z_dim], labels [n, c_dim] or None, and what is done to them. Runs in full float32.
    """
    return _errors(generator, batches, in_field=False)[:, 0]


def equivariance_errors_in_field(
    generator: Generator, batches: Iterable[tuple[Tensor, Tensor | None, Transforms]]
) -> np.ndarray:
    """As `equivariance_errors`, over the frame and over the field of view: float64 [batches, 2, 3 metrics, 2].

    [:, 0] is what `equivariance_errors` gives, [:, 1] is named by `FIELD_NAMES`, and both come of the same pictures.
    A picture in which no field of view is found counts in the first only. Needs pictures of at least 16 x 16 pixels.
    """
    return _errors(generator, batches, in_field=True)


def field_masks(images: Tensor, transform: np.ndarray, fields: Fields | None = None) -> Tensor:
    """Where the field of view of each picture lies once the picture is moved: 0 or 1, like images, [N, 1, H, W].

    images: in [-1, 1], 1 or 3 channels. transform: [3, 3], from a moved picture's plane to the unmoved one's, in widths
    and heights from the centre, as the generator's input has it. fields: those of the images, found if not given. All 0
    for a picture in which no field is found.
    """
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(_centred(height, images), _centred(width, images), indexing="ij")
    from_x, from_y = (float(row[0]) * x + float(row[1]) * y + float(row[2]) for row in transform[:2])
    masks = torch.zeros(len(images), 1, height, width, dtype=images.dtype, device=images.device)
    for mask, fov in zip(masks, _fields(images) if fields is None else fields, strict=True):
        if fov is not None:
            across = (from_x + 0.5) * width - 0.5 - fov.cx
            along = (from_y + 0.5) * height - 0.5 - fov.cy
            mask[0] = (across.square() + along.square() <= fov.radius**2).to(masks)
    return masks


def decibels(errors: np.ndarray) -> tuple[float, float | None]:
    """PSNR in dB of pooled errors, and one standard error by the delta method, with the batch as the unit.

    errors: float64 [batches, 2], squared errors and mask entries. The standard error is None for fewer than 2 batches.
    Raises EvaluationError if the masks leave nothing to compare.
    """
    squared, weight = map(float, errors.sum(axis=0))
    if weight <= 0:
        raise EvaluationError("the images are too small for this transform: nothing is left to compare.")
    mse = max(squared / weight, _LEAST_MSE)
    value = 20 * math.log10(SIGNAL_RANGE) - 10 * math.log10(mse)
    count = len(errors)
    if count < 2:
        return value, None
    residuals = errors[:, 0] - mse * errors[:, 1]  # of the ratio estimator Σ squared / Σ weight
    error = math.sqrt(count / (count - 1) * float(residuals @ residuals)) / weight
    return value, 10 / math.log(10) * error / mse


def integer_translation(images: Tensor, tx: float, ty: float) -> tuple[Tensor, Tensor]:
    """Shift by round(tx·W), round(ty·H) whole pixels, zeros from outside."""
    height, width = images.shape[-2:]
    dx, dy = round(tx * width), round(ty * height)
    # A crop where the shift leaves the frame, zeros where it enters: padding by a signed amount does both.
    moved = F.pad(images, (dx, -dx, dy, -dy)) if abs(dx) < width and abs(dy) < height else torch.zeros_like(images)
    columns = _between(width, dx, width + dx, images)
    rows = _between(height, dy, height + dy, images)
    return moved, rows[:, None].mul(columns)[None, None]


def fractional_translation(images: Tensor, tx: float, ty: float) -> tuple[Tensor, Tensor]:
    """Shift by any amount through a separable Lanczos-3 filter of 6 taps, zeros outside the image."""
    height, width = images.shape[-2:]
    moved, columns = _shift_rows(images, tx * width)
    moved, rows = _shift_rows(moved.transpose(-1, -2), ty * height)
    return moved.transpose(-1, -2), rows[:, None].mul(columns)[None, None]


def rotation(images: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Turn about the centre: upsampled 4 times through the filter that keeps what both lattices hold, then bilinear."""
    up, (height, width) = _ROTATION_UP, images.shape[-2:]
    matrix = rotation_matrix(angle)
    taps = band_limiting_filter(matrix, up).to(images)
    margin = taps.shape[0] // 2  # 23
    fine = _filter_up(images, taps, up, margin)
    theta = np.linalg.inv(matrix)
    theta[:2, 2] = theta[:2, 2] * 2 + np.array([1 / (up * width), 1 / (up * height)])
    theta[0] *= width / (width + 2 * margin / up)
    theta[1] *= height / (height + 2 * margin / up)
    grid = F.affine_grid(torch.from_numpy(theta[None, :2]).to(images), [1, 1, height, width], align_corners=False)
    moved = F.grid_sample(fine, grid.expand(len(images), -1, -1, -1), padding_mode="zeros", align_corners=False)
    inside = _inner(fine, 2 * margin + 1)
    return moved, F.grid_sample(inside, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def pseudo_rotation(images: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """The picture as it is, with the frequencies removed that `rotation` of its turned twin removes."""
    taps = band_limiting_filter(rotation_matrix(-angle), 1).to(images)
    margin = taps.shape[0] // 2  # 5
    return _depthwise(F.pad(images, [margin] * 4), taps), _inner(images, margin)


def rotation_matrix(angle: float) -> np.ndarray:
    """[[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]] in float64."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def band_limiting_filter(matrix: np.ndarray, up: int) -> Tensor:
    """Low-pass that keeps only frequencies representable both before and after `matrix`: float64, odd square.

    The ideal filters of the two lattices, convolved (periodically, over 128 input pixels), times the convolution of
    their Lanczos windows, cut to radius 6; each of the up² polyphase parts sums to 1 / up², so DC passes unchanged.
    """
    half = _EXTENT * up - 1
    axis = np.fft.ifftshift(np.arange(-half, half + 1) / up)  # 0 first, as the FFT counts
    y, x = np.meshgrid(axis, axis, indexing="ij")
    xo = matrix[0, 0] * x + matrix[0, 1] * y
    yo = matrix[1, 0] * x + matrix[1, 1] * y
    ideal = _circular_convolution(np.outer(np.sinc(axis), np.sinc(axis)), np.sinc(xo) * np.sinc(yo))
    window = _circular_convolution(np.outer(_window(axis), _window(axis)), _window(xo) * _window(yo))
    full = np.fft.fftshift(ideal * window)
    radius = _RADIUS * up - 1
    taps = full[half - radius : half + radius + 1, half - radius : half + radius + 1].copy()
    for row in range(up):
        for column in range(up):
            phase = taps[row::up, column::up]
            phase /= phase.sum() * up**2
    return torch.from_numpy(taps)


@torch.no_grad()
def _errors(
    generator: Generator, batches: Iterable[tuple[Tensor, Tensor | None, Transforms]], in_field: bool
) -> np.ndarray:
    transform = generator.synthesis.input.transform
    with whole_float32(), _restored(transform):
        rows = [_batch_errors(generator, transform, z, c, moves, in_field) for z, c, moves in batches]
    return np.array(rows, dtype=np.float64).reshape(-1, 1 + in_field, len(NAMES), 2)


def _batch_errors(
    generator: Generator, transform: Tensor, z: Tensor, c: Tensor | None, moves: Transforms, in_field: bool
) -> list[list[tuple[float, float]]]:
    def moved_input(matrix: np.ndarray) -> Tensor:
        transform.copy_(torch.from_numpy(matrix))
        return generator(z, c, force_fp32=True).float()

    still = moved_input(np.eye(3))
    fields = _fields(still) if in_field else []
    rows: list[list[tuple[float, float]]] = [[] for _ in range(1 + in_field)]

    def compare(found: Tensor, expected: Tensor, mask: Tensor, matrix: np.ndarray) -> None:
        rows[0].append(_squared_error(found, expected, mask))
        if in_field:
            rows[1].append(_squared_error(found, expected, mask * field_masks(still, matrix, fields)))

    for operator, (tx, ty) in ((integer_translation, moves.integer), (fractional_translation, moves.fractional)):
        shift = np.eye(3)
        shift[:2, 2] = -tx, -ty
        expected, mask = operator(still, tx, ty)
        compare(moved_input(shift), expected, mask, shift)
    turn = rotation_matrix(-moves.angle)
    expected, mask = rotation(still, moves.angle)
    turned, valid = pseudo_rotation(moved_input(turn), moves.angle)
    compare(turned, expected, mask * valid, turn)
    return rows


def _fields(images: Tensor) -> Fields:
    pixels = images.mul(127.5).add(128).clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    found: Fields = []
    for picture in pixels.cpu().numpy():
        try:
            found.append(find_field_of_view(np.ascontiguousarray(picture)))
        except DataError:
            found.append(None)
    return found


def _centred(size: int, like: Tensor) -> Tensor:
    """Pixel centres as shares of the size, 0 in the middle."""
    return (torch.arange(size, device=like.device, dtype=torch.float64) + 0.5) / size - 0.5


def _squared_error(found: Tensor, expected: Tensor, mask: Tensor) -> tuple[float, float]:
    mask = mask.expand_as(found)
    squared = (found.double() - expected.double()).square() * mask
    return squared.sum().item(), mask.sum(dtype=torch.float64).item()


def _shift_rows(images: Tensor, shift_px: float) -> tuple[Tensor, Tensor]:
    # out(x) = Σ_k weight(k) in(x - whole - k), k = -(a-1) .. a, weight(k) = sinc(k - part) sinc((k - part) / a)
    a, width = _LANCZOS, images.shape[-1]
    whole = math.floor(shift_px)
    taps = np.arange(1 - a, a + 1) - (shift_px - whole)
    weights = np.sinc(taps) * np.sinc(taps / a)
    weights /= weights.sum()
    columns = _between(width, whole + a, whole - (a - 1) + width, images)
    if abs(whole) >= width + a:
        return torch.zeros_like(images), columns
    left, right = whole + a, a - 1 - whole
    padded = F.pad(images, (left, right))
    # conv2d correlates: tap k reads in(x - whole - k), so the largest k comes first.
    kernel = torch.from_numpy(weights[::-1].copy()).to(images)[None]
    return _depthwise(padded, kernel), columns


def _between(size: int, low: int, high: int, like: Tensor) -> Tensor:
    """1 where max(low, 0) <= index < min(high, size), else 0."""
    index = torch.arange(size, device=like.device)
    return ((index >= low) & (index < high)).to(like.dtype)


def _inner(images: Tensor, border: int) -> Tensor:
    """Mask [1, 1, H, W] that leaves out `border` pixels on each side."""
    height, width = images.shape[-2:]
    columns = _between(width, border, width - border, images)
    return _between(height, border, height - border, images)[:, None].mul(columns)[None, None]


def _depthwise(images: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(images.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, images.shape[:2])[:, :, 0]


def _filter_up(images: Tensor, taps: Tensor, up: int, margin: int) -> Tensor:
    """Upsampled by `up` with gain up², `margin` samples more on each side: [N, C, up·H + 2·margin, up·W + 2·margin].

    Zeros inserted and filtered, written as the transposed convolution that skips the zeros.
    """
    planes = images.flatten(0, 1)[:, None]
    fine = F.conv_transpose2d(planes, taps[None, None] * up**2, stride=up).unflatten(0, images.shape[:2])[:, :, 0]
    reach = taps.shape[0]
    before = margin + (reach + up - 1) // 2 - (reach - 1)
    after = margin + (reach - up) // 2 - (reach - 1) + (up - 1)
    return F.pad(fine, (before, after, before, after))


def _window(x: np.ndarray) -> np.ndarray:
    return np.sinc(x / _LANCZOS) * (np.abs(x) < _LANCZOS)


def _circular_convolution(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.fft.irfft2(np.fft.rfft2(a) * np.fft.rfft2(b), s=a.shape)


@contextmanager
def _restored(buffer: Tensor) -> Iterator[None]:
    before = buffer.clone()
    try:
        yield
    finally:
        buffer.copy_(before)
