"""Distances that need no Gaussian: KID, CMMD and MIND, each with its standard error.

KID and CMMD are maximum mean discrepancies. They are computed over all pairs rather than over random subsets, which
costs n² d multiplications but leaves no randomness except that of the images. Kernel matrices are walked in tiles, each
pair once, and only their row sums are kept: leaving out a patient then needs no kernel again, so the jackknife is free.
KID's published form, an average over subsets, is torch-fidelity's.

Bińkowski et al. 2018, "Demystifying MMD GANs"; Jayasumana et al. 2024, "Rethinking FID" (CMMD); Berthet et al. 2026,
"MIND: Monge Inception Distance"; del Barrio and Loubes 2019 (the spread of optimal transport).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import features, intervals
from dr_platform.evaluation.estimate import Estimate

# In place, from dot products [a, b] and squared norms [a, 1] and [1, b], the kernel's values up to a constant.
Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray], None]

_TILE = 1024  # rows and columns: 8 MiB, large enough for the matrix product to run at full speed
_SIGNS_AT_A_TIME = 1 << 22  # exchanges x images
_PROJECTED_AT_A_TIME = 1 << 21  # images x directions


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """A squared MMD, and what it is without each patient: the jackknife's pseudo-samples.

    without_real, without_fake: float64, one value per patient (per image where there are no groups); empty where too
    few images are left. Those of two generators on the same reals and seeds are paired.
    """

    value: float
    without_real: np.ndarray
    without_fake: np.ndarray

    @property
    def spread(self) -> float | None:
        """The jackknife standard error over both samples, or None where there are too few images."""
        return _jackknife(self.without_real, self.without_fake)


def kid(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
    fake_groups: np.ndarray | None = None,
) -> Estimate:
    """Kernel inception distance: squared MMD with the kernel (x·y / d + 1)³, unbiased, with its standard error.

    real, fake: [n, d], n ≥ 2; any float type, computed in float64. groups, fake_groups: int [n], each row's patient.
    Over all pairs of two images, unless `subsets` is given: then the published mean over that many subsets of
    `subset_size` (at most the smaller n), drawn by `seed`; `spread_kind` says which it was. The value can be negative.
    The standard error is the jackknife over patients, joined for subsets by what their choice adds. It is not the
    standard deviation over subsets that papers print, which mostly reflects the subset's size.
    Memory beyond the arguments is some tens of MiB. Raises EvaluationError for fewer than 2 images or a value that is
    not finite.
    """
    found = mmd2(real, fake, cubic(np.shape(real)[-1]), groups=groups, fake_groups=fake_groups)
    value, kind, added = found.value, "all pairs", 0.0
    if subsets is not None:
        size = min(subset_size, len(real), len(fake))
        value, deviation = features.kernel_distance(real, fake, subsets=subsets, subset_size=size, seed=seed)
        kind, added = f"{subsets} subsets of {size} images", deviation / math.sqrt(subsets)
    return _estimate(value, found.spread, added, kind)


def cmmd(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
    biased: bool = False,
    groups: np.ndarray | None = None,
    fake_groups: np.ndarray | None = None,
) -> Estimate:
    """Squared MMD of directions, x / |x|, with the kernel exp(-|x - y|² / 2σ²), times `scale`.

    real, fake: [n, d], n ≥ 2, no row 0. biased: as the reference computes it, pairs of an image with itself included,
    which adds about scale (1 / n + 1 / m) times the mean of 1 - k; else over pairs of two images, and maybe negative.
    """
    unit_r, unit_f = (_directions(sample) for sample in _checked(real, fake))
    found = mmd2(unit_r, unit_f, gaussian(sigma), biased=biased, groups=groups, fake_groups=fake_groups)
    spread = None if found.spread is None else scale * found.spread
    return _estimate(scale * found.value, spread, 0.0, "all pairs, biased" if biased else "all pairs")


def mind(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    projections: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
    fake_groups: np.ndarray | None = None,
) -> Estimate:
    """Mean squared 2-Wasserstein distance along random directions, times 3 d: a shift by δ counts 3 |δ|².

    real, fake: [n, d], n ≥ 2; their n may differ, since the transport between two sorted samples is exact for any.
    Directions are uniform on the sphere. The value is the plug-in one: equal distributions give more than 0, by an
    amount that falls with n, so compare at equal n. The standard error, from the transport's potentials, covers both
    samples and the choice of directions, not that bias; at equal distributions it reads too small.
    """
    real, fake = _checked(real, fake)
    codes = intervals.patients(groups, len(real)), intervals.patients(fake_groups, len(fake))
    rng, width = np.random.default_rng(seed), real.shape[1]
    step = max(1, _PROJECTED_AT_A_TIME // max(len(real), len(fake)))
    squares, effects = [], (np.zeros(len(real)), np.zeros(len(fake)))
    for start in range(0, projections, step):
        directions = rng.normal(size=(width, min(step, projections - start)))
        directions /= np.linalg.norm(directions, axis=0)
        x, y = (_project(sample, directions) for sample in (real, fake))
        order_x, order_y = np.argsort(x, axis=0), np.argsort(y, axis=0)
        x, y = np.take_along_axis(x, order_x, axis=0), np.take_along_axis(y, order_y, axis=0)
        squares.append(_transport_cost(x, y))
        for effect, order, here, there in ((effects[0], order_x, x, y), (effects[1], order_y, y, x)):
            back = np.empty_like(here)
            np.put_along_axis(back, order, _potential(here, there), axis=0)
            effect += back.sum(axis=1)
    costs, alpha = np.concatenate(squares), 3.0 * width
    variance = sum(intervals.cluster_variance(e / projections, c) for e, c in zip(effects, codes, strict=True))
    variance += float(costs.var(ddof=1)) / projections if projections > 1 else 0.0
    kind = f"influence-function standard error; {projections} directions, seed {seed}"
    return intervals.normal(alpha * float(costs.mean()), alpha * math.sqrt(variance), kind)


def kid_difference(
    real: np.ndarray,
    fake_a: np.ndarray,
    fake_b: np.ndarray,
    *,
    seed: int,
    repeats: int = 9999,
    groups: np.ndarray | None = None,
) -> intervals.PairedComparison:
    """KID of A minus KID of B on the same reals, row i of both made from the same seed: paired, exact over all pairs.

    The interval is the jackknife's over patients and seeds together. p is the exact permutation test's: under
    "A and B are one", images of a seed may change sides. KID's difference is linear in those changes, so the kernel
    is computed once however many there are.
    """
    if np.shape(fake_a) != np.shape(fake_b):
        raise EvaluationError(
            f"pairs need equal shapes, not {np.shape(fake_a)} and {np.shape(fake_b)}. Use the same seeds."
        )
    kernel, n, m = cubic(np.shape(real)[-1]), len(fake_a), len(real)
    a = _sums(*_checked(real, fake_a), kernel, groups, None, False)
    b = _sums(*_checked(real, fake_b), kernel, groups, None, False)
    a_to_b, b_to_a = _across(fake_a, fake_b, kernel)
    gains = (a.fake.rows - b.fake.rows + a_to_b - b_to_a) / (n * (n - 1)) - 2 * (a.fake.across - b.fake.across) / (
        n * m
    )
    one, other = _discrepancy(a, False), _discrepancy(b, False)
    found = one.value - other.value
    spread = _jackknife(one.without_real - other.without_real, one.without_fake - other.without_fake)
    rng, under = np.random.default_rng(seed), []
    step = max(1, _SIGNS_AT_A_TIME // n)
    for start in range(0, repeats, step):
        under.append(rng.choice([-1.0, 1.0], size=(min(step, repeats - start), n)) @ gains)
    p = intervals.permutation_p(found, np.concatenate(under))
    return intervals.PairedComparison(_estimate(found, spread, 0.0, "all pairs, paired"), p, repeats)


def mmd2(
    real: np.ndarray,
    fake: np.ndarray,
    kernel: Kernel,
    *,
    biased: bool = False,
    groups: np.ndarray | None = None,
    fake_groups: np.ndarray | None = None,
) -> Discrepancy:
    """Squared maximum mean discrepancy over all pairs, with its jackknife over patients.

    real, fake: [n, d], n ≥ 2. biased: pairs of an image with itself count. Work: (n² + m² + 2 n m) d flops in float64;
    memory beyond the arguments: a few tiles of 8 MiB.
    """
    return _discrepancy(_sums(*_checked(real, fake), kernel, groups, fake_groups, biased), biased)


def mmd2_jackknife(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """KID over all pairs and its delete-one jackknife standard error; n ≥ 3 on both sides."""
    found = mmd2(real, fake, cubic(real.shape[1]))
    if found.spread is None:
        raise EvaluationError(f"a jackknife needs 3 images on either side, not {len(real)} and {len(fake)}. Use more.")
    return found.value, found.spread


def cubic(width: int) -> Kernel:
    """(x·y / width + 1)³."""

    def apply(products: np.ndarray, _: np.ndarray, __: np.ndarray) -> None:
        products *= 1 / width
        products += 1
        products *= products * products

    return apply


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|² / 2σ²) - 1. The constant cancels in an MMD, and without it small distances keep their digits."""

    def apply(products: np.ndarray, norms_x: np.ndarray, norms_y: np.ndarray) -> None:
        products *= -2
        products += norms_x
        products += norms_y
        np.maximum(products, 0, out=products)
        products *= -1 / (2 * sigma**2)
        np.expm1(products, out=products)

    return apply


@dataclass(frozen=True, eq=False)
class _Side:
    """Sums of the kernel for one sample: per row within and across, per patient what lies within it alone."""

    rows: np.ndarray  # [n], over the other images of the sample
    across: np.ndarray  # [n], over the other sample
    diagonal: np.ndarray  # [n]
    codes: np.ndarray  # [n]
    inside: np.ndarray  # [patients], over ordered pairs of two images of the patient


@dataclass(frozen=True, eq=False)
class _Sums:
    real: _Side
    fake: _Side


def _sums(
    real: np.ndarray,
    fake: np.ndarray,
    kernel: Kernel,
    groups: np.ndarray | None,
    fake_groups: np.ndarray | None,
    biased: bool,
) -> _Sums:
    codes = intervals.patients(groups, len(real)), intervals.patients(fake_groups, len(fake))
    across = _across(real, fake, kernel)
    sides = []
    for sample, other, code in zip((real, fake), across, codes, strict=True):
        diagonal = _diagonal(sample, kernel) if biased else np.zeros(len(sample))
        sides.append(_Side(_within(sample, kernel), other, diagonal, code, _inside(sample, kernel, code)))
    return _Sums(*sides)


def _discrepancy(sums: _Sums, biased: bool) -> Discrepancy:
    real, fake = sums.real, sums.fake
    n, m = len(real.rows), len(fake.rows)
    crossing = float(real.across.sum())
    mean_r, mean_f = _mean_pair(real, n, biased), _mean_pair(fake, m, biased)
    value = mean_r + mean_f - 2 * crossing / (n * m)
    kept_r, within_r, across_r = _leaving_out(real, biased)
    kept_f, within_f, across_f = _leaving_out(fake, biased)
    without_r = within_r + mean_f - 2 * across_r / (kept_r * m)
    without_f = within_f + mean_r - 2 * across_f / (kept_f * n)
    return Discrepancy(value, without_r, without_f)


def _mean_pair(side: _Side, n: int, biased: bool) -> float:
    total = float(side.rows.sum()) + float(side.diagonal.sum())
    return total / (n * n if biased else n * (n - 1))


def _leaving_out(side: _Side, biased: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per patient: images left, mean kernel within what is left, kernel sum across of what is left. Or three empty."""
    count = len(side.inside)
    left = len(side.codes) - np.bincount(side.codes, minlength=count).astype(np.float64)
    if count < 2 or left.min() < 2:
        return np.ones(0), np.ones(0), np.ones(0)
    rows, diagonal, across = (
        np.bincount(side.codes, weights=values, minlength=count) for values in (side.rows, side.diagonal, side.across)
    )
    total = side.rows.sum() - 2 * rows + side.inside + side.diagonal.sum() - diagonal
    return left, total / (left * left if biased else left * (left - 1)), side.across.sum() - across


def _jackknife(*without: np.ndarray) -> float | None:
    if min(len(values) for values in without) < 2:
        return None
    return math.sqrt(sum(float(values.var()) * (len(values) - 1) for values in without))


def _estimate(value: float, spread: float | None, added: float, kind: str) -> Estimate:
    if spread is None:
        return Estimate(value, None, f"none: needs 3 images on either side; {kind}")
    return intervals.normal(value, math.hypot(spread, added), f"jackknife standard error; {kind}")


def _panels(sample: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows by the tile: where they are, their float64 values, and their squared norms."""
    for start in range(0, len(sample), _TILE):
        rows = slice(start, min(start + _TILE, len(sample)))
        values = np.asarray(sample[rows], dtype=np.float64)
        yield rows, values, np.einsum("ij,ij->i", values, values)


def _kernel_tile(
    x: np.ndarray, norms_x: np.ndarray, y: np.ndarray, norms_y: np.ndarray, kernel: Kernel, space: np.ndarray
) -> np.ndarray:
    tile = space[: len(x) * len(y)].reshape(len(x), len(y))
    np.matmul(x, y.T, out=tile)
    kernel(tile, norms_x[:, None], norms_y[None])
    return tile


def _within(sample: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Row sums of the kernel matrix of a sample with itself, diagonal left out: each tile serves rows and columns."""
    sums, space = np.zeros(len(sample)), np.empty(min(_TILE, len(sample)) ** 2)
    for rows, x, norms_x in _panels(sample):
        for columns, y, norms_y in _panels(sample[rows.start :]):
            tile = _kernel_tile(x, norms_x, y, norms_y, kernel, space)
            if columns.start == 0:
                np.fill_diagonal(tile, 0)
            else:
                sums[rows.start + columns.start : rows.start + columns.stop] += tile.sum(axis=0)
            sums[rows] += tile.sum(axis=1)
    return sums


def _across(x_sample: np.ndarray, y_sample: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    sums_x, sums_y = np.zeros(len(x_sample)), np.zeros(len(y_sample))
    space = np.empty(min(_TILE, len(x_sample)) * min(_TILE, len(y_sample)))
    for rows, x, norms_x in _panels(x_sample):
        for columns, y, norms_y in _panels(y_sample):
            tile = _kernel_tile(x, norms_x, y, norms_y, kernel, space)
            sums_x[rows] += tile.sum(axis=1)
            sums_y[columns] += tile.sum(axis=0)
    return sums_x, sums_y


def _diagonal(sample: np.ndarray, kernel: Kernel) -> np.ndarray:
    norms = np.concatenate([norms for _, _, norms in _panels(sample)])[:, None]
    values = norms.copy()
    kernel(values, norms, norms)
    return values[:, 0]


def _inside(sample: np.ndarray, kernel: Kernel, codes: np.ndarray) -> np.ndarray:
    sizes = np.bincount(codes)
    order, ends = np.argsort(codes, kind="stable"), np.cumsum(sizes)
    sums = np.zeros(len(sizes))
    for patient in np.flatnonzero(sizes > 1):
        own = order[ends[patient] - sizes[patient] : ends[patient]]
        sums[patient] = _within(sample[own], kernel).sum()
    return sums


def _project(sample: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return np.concatenate([values @ directions for _, values, _ in _panels(sample)])


def _transport_cost(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared 2-Wasserstein distance of sorted columns, [n, p] and [m, p]: exact for any n and m."""
    n, m = len(x), len(y)
    if n == m:
        return np.square(x - y).mean(axis=0)
    levels = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))  # in units of 1 / (n m)
    mass = np.diff(levels, prepend=0) / (n * m)
    return mass @ np.square(x[(levels - 1) // m] - y[(levels - 1) // n])


def _potential(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What moving mass onto each sorted x costs, up to a constant: the Kantorovich potential, [n, p].

    Between neighbours it grows as |· - q|², where q is the y at which the mass below the gap ends.
    """
    n, m = len(x), len(y)
    cuts = np.arange(1, n) * m
    q = (y[(cuts - 1) // n] + y[np.minimum(cuts // n, m - 1)]) / 2
    steps = np.square(x[1:] - q) - np.square(x[:-1] - q)
    return np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(steps, axis=0)])


def _directions(sample: np.ndarray) -> np.ndarray:
    unit = np.array(sample, dtype=np.float64)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    if not norms.all():
        raise EvaluationError(f"row {int(norms.argmin())} of the features is 0 and has no direction. Check that image.")
    unit /= norms
    return unit


def _checked(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = np.asarray(real), np.asarray(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise EvaluationError(
            f"features have shapes {real.shape} and {fake.shape}; a distance needs [n, d] twice, with one d. "
            "Take both from the same extractor."
        )
    if min(len(real), len(fake)) < 2:
        raise EvaluationError(
            f"a distance needs at least 2 images on either side; there are {len(real)} real and {len(fake)} generated. "
            "Raise evaluate.images, or prepare more."
        )
    if not all(np.isfinite(norms).all() for sample in (real, fake) for _, _, norms in _panels(sample)):
        raise EvaluationError("some features are not finite. Check the images and the extractor's weights.")
    return real, fake
