"""Images moved by any affine transform, each by its own, without aliasing and without inventing a border.

The image is continued by reflection as far as the transforms reach, sampled twice as finely through an orthogonal
wavelet's low-pass filter, looked up bilinearly, and brought back through the same filter. All of it is linear in the
image, so the gradient is the adjoint operator and a gradient of the gradient the operator again: R1 passes through.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B. Filters: Daubechies 1992,
"Ten Lectures on Wavelets" (sym2, sym6). Matrices act on homogeneous columns (x right, y down, 1).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .ops import resample

# Low-pass filters of symlets, in the order that upsampling takes.
_SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
_SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_REACH = len(_SYM6) // 4  # pixels of the image that the finer filter needs on each side


def wavelet_filter() -> Tensor:
    """sym6's low-pass filter with unit sum: float64 [12]."""
    taps = torch.tensor(_SYM6, dtype=torch.float64)
    return taps / taps.sum()


@functools.lru_cache(maxsize=1)
def filter_bank() -> NDArray[np.float64]:
    """Four zero-phase filters that part the spectrum into octaves, lowest first, and sum to the identity: [4, 43].

    sym2's half-band pair, cascaded: the low band is parted again at half the frequency by the pair with zeros between
    its taps.
    """
    low = np.convolve(_SYM2, _SYM2[::-1]) / 2
    high = low * (-1.0) ** np.arange(len(low))  # the same response, seen from the other end of the spectrum
    if low[len(low) // 2] * high[len(high) // 2] < 0:
        high = -high
    bands: list[NDArray[Any]] = []
    rest: NDArray[Any] = np.ones(1)
    for octave in range(3):
        bands.append(np.convolve(rest, _dilated(high, 2**octave)))
        rest = np.convolve(rest, _dilated(low, 2**octave))
    widest = len(rest)
    padded = [np.pad(band, (widest - len(band)) // 2) for band in [rest, *bands[::-1]]]
    return np.stack(padded)


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Each image under its transform, in its own frame; those under the identity as they are.

    images: [N, C, H, W]. inverse: float64 [N, 3, 3] on the CPU, maps pixels of the result to pixels of the image, with
    the origin at the centre. Returns [N, C, H, W] in the dtype of the images; coordinates never in less than float32.

    An image does not depend on the others of its batch beyond the rounding of coordinates.
    """
    inverse = inverse.to("cpu", torch.float64)
    moves = (inverse != torch.eye(3, dtype=torch.float64)).any(dim=2).any(dim=1)
    if not moves.any():
        return images
    if moves.all():
        return _warp_all(images, inverse)
    # At a small p most images rest, and the filters would give them back as they are.
    places = moves.nonzero()[:, 0]
    moved = _warp_all(images[places.to(images.device)], inverse[places])
    return images.index_copy(0, places.to(images.device), moved)


def _warp_all(images: Tensor, inverse: Tensor) -> Tensor:
    dtype = images.dtype
    images = images.to(torch.promote_types(dtype, torch.float32))
    height, width = images.shape[2:]
    left, top, right, bottom = _margins(inverse, width, height)
    padded = F.pad(images, (left, right, top, bottom), mode="reflect")
    inverse = _shifted((left - right) / 2, (top - bottom) / 2) @ inverse

    taps = wavelet_filter().to(images)
    # Same phase as an interpolation: every second sample lies on a pixel.
    before, after = (len(_SYM6) + 1) // 2, (len(_SYM6) - 2) // 2
    fine = resample(padded, taps, up=2, padding=(before, after, before, after), gain=4)
    half = _shifted(-0.5, -0.5)
    inverse = half @ _scaled(2, 2) @ inverse @ _scaled(0.5, 0.5) @ torch.linalg.inv(half)

    # Normalised coordinates, as the lookup takes them: the frame spans [-1, 1].
    rows, columns = (height + 2 * _REACH) * 2, (width + 2 * _REACH) * 2
    inverse = _scaled(2 / fine.shape[3], 2 / fine.shape[2]) @ inverse @ _scaled(columns / 2, rows / 2)
    theta = inverse[:, :2].to(images)
    grid = F.affine_grid(theta, [len(images), images.shape[1], rows, columns], align_corners=False)
    looked_up = _Lookup.apply(fine, grid)
    crop = (len(_SYM6) - 2) // 2 - 2 * _REACH  # what the filter takes, less the canvas's margin
    return resample(looked_up, taps.flip(0), down=2, padding=(crop, crop, crop, crop)).to(dtype)


def band_gains(images: Tensor, gains: Tensor) -> Tensor:
    """Each image with the bands of `filter_bank` amplified by its own gains.

    images: [N, C, H, W]; gains: float64 [N, 4]. Returns [N, C, H, W]; beyond its border an image is reflected.
    """
    number, channels, height, width = images.shape
    taps = (gains @ torch.from_numpy(filter_bank()).to(gains.device)).to(images)  # [N, 43]
    weight = taps.repeat_interleave(channels, dim=0)
    reach = min(weight.shape[1] // 2, height - 1, width - 1)
    weight = weight[:, weight.shape[1] // 2 - reach :][:, : 2 * reach + 1]  # an image smaller than the filter
    planes = F.pad(images.reshape(1, -1, height, width), (reach, reach, reach, reach), mode="reflect")
    planes = F.conv2d(planes, weight[:, None, None, :], groups=number * channels)
    planes = F.conv2d(planes, weight[:, None, :, None], groups=number * channels)
    return planes.reshape(number, channels, height, width)


def _margins(inverse: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """Pixels to add on the left, top, right and bottom, so that no transform of the batch looks beyond them.

    The downsampling filter reads the canvas up to `_REACH` pixels beyond the image's outermost ones; there the lookup
    may fall between fine samples, half a pixel apart, which the upsampling filter made of `_REACH` pixels on each side.
    The published margin takes the first reach as it is in the image, where a transform that shrinks stretches it: there
    the outer taps see (in the fifth digit) how far others of the batch have moved.
    """
    x, y = (width - 1) / 2 + _REACH, (height - 1) / 2 + _REACH
    corners = torch.tensor([[-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]], dtype=torch.float64)
    reached = (inverse @ corners.t())[:, :2]  # [N, 2, 4]
    least, most = reached.amin(dim=(0, 2)).tolist(), reached.amax(dim=(0, 2)).tolist()

    def needed(excursion: float, size: int) -> int:
        return math.ceil(min(max(excursion + _REACH + 0.5 - (size - 1) / 2, 0), size - 1))

    return needed(-least[0], width), needed(-least[1], height), needed(most[0], width), needed(most[1], height)


def _shifted(x: float, y: float) -> Tensor:
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def _scaled(x: float, y: float) -> Tensor:
    return torch.diag(torch.tensor([x, y, 1], dtype=torch.float64))


def _dilated(taps: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """`taps` with step - 1 zeros between them."""
    wide = np.zeros((len(taps) - 1) * step + 1)
    wide[::step] = taps
    return wide


class _Lookup(torch.autograd.Function):
    """Bilinear sampling, zero outside, as a linear operator on images; the grid is a constant.

    torch's own has a gradient but no gradient of the gradient. Being linear, it needs only its adjoint for both.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape  # type: ignore[attr-defined]
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradients[0], grid, ctx.shape), None


class _Spread(torch.autograd.Function):
    """The adjoint of `_Lookup`: every sample returned to the four pixels it came from."""

    @staticmethod
    def forward(ctx: FunctionCtx, samples: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        images = samples.new_zeros(1).expand(shape)  # its values have no part in the gradient with respect to it
        gradient, _ = torch.ops.aten.grid_sampler_2d_backward(samples, images, grid, 0, 0, False, [True, False])
        return gradient

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Lookup.apply(gradients[0], grid), None, None
