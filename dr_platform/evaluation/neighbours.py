"""Statistics of nearest neighbours in feature space: precision, recall, density, coverage, AuthPct and C_T.

Neighbours are exact. Distances are computed in tiles through dot products, in float64 and around the mean, and those
reported are taken again from the differences, so that a copy is at distance 0 and not at the root of the rounding.

Manifolds grow with the number of images that span them, so the sides of a comparison have one size: unequal ones are
refused, or cut down by a seed.

Kynkäänniemi et al. 2019 (precision, recall); Naeem et al. 2020 (density, coverage); Alaa et al. 2022 (authenticity);
Meehan et al. 2020 (C_T).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.cluster.vq
import scipy.linalg
import scipy.stats

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import intervals
from dr_platform.evaluation.estimate import Estimate

_QUERIES = 512
_REFERENCES = 4096  # a tile of distances is 16 MiB


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest rows of a reference for each query, nearest first: int [n, k] and float64 [n, k]."""

    indices: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class CopyingTest:
    """C_T of data copying. z: mean over cells of Mann-Whitney's z; below 0, samples lie nearer to the training images
    than held-out ones do. p: one-sided, of no copying, over patients. cells: (held-out, generated, z) of each used.
    left_out: share of the held-out images that lie in cells too small to use.
    """

    z: Estimate
    p: float
    cells: tuple[tuple[int, int, float], ...]
    left_out: float


def nearest(reference: np.ndarray, queries: np.ndarray, k: int = 1) -> Neighbours:
    """The k nearest rows of `reference` [m, d] to each row of `queries` [n, d], by Euclidean distance, m ≥ k ≥ 1."""
    _check(reference, queries, k)
    return _search(reference, queries, k, skip_self=False)


def radii(sample: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row [n, d] to its k-th nearest other row, n > k: float64 [n]."""
    _check(sample, sample, k + 1)
    return _search(sample, sample, k, skip_self=True).distances[:, -1]


def precision_recall(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    k: int = 3,
    seed: int | None = None,
    groups: np.ndarray | None = None,
) -> tuple[Estimate, Estimate]:
    """Share of generated images within the reals' manifold, and of reals within the generated ones'.

    A manifold is the union of balls around its images, each reaching to its k-th nearest neighbour, its rim included.
    real, fake: [n, d] of one n > k; with `seed`, the larger is cut down to the smaller at random. groups: int [n],
    patients of the reals, over whom recall's interval is. Intervals are conditional on the manifold.
    """
    real, fake, groups = equal_size(real, fake, seed, groups)
    precision = intervals.share(ball_counts(real, radii(real, k), fake) > 0)
    recall = intervals.share(ball_counts(fake, radii(fake, k), real) > 0, groups)
    return precision, recall


def density_coverage(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    k: int = 5,
    seed: int | None = None,
    groups: np.ndarray | None = None,
) -> tuple[Estimate, Estimate]:
    """How many reals' balls hold a generated image, over k; and the share of reals whose ball holds one.

    Balls reach to a real's k-th nearest real, rim excluded. Equal distributions expect density 1 and coverage
    `expected_coverage(n, n, k)`. Arguments as in `precision_recall`; coverage's interval is Wilson's, over patients
    where `groups` tells them. It takes the balls as given, whose chance adds: benchmarks/results/calibration.json finds
    87-94 % covered where 95 % are meant.
    """
    real, fake, groups = equal_size(real, fake, seed, groups)
    reach = radii(real, k)
    by_fake, by_real = _held(real, reach, fake, rim=False)
    density = _density(by_fake / k, by_real / k, intervals.patients(groups, len(real)))
    covered = nearest(fake, real).distances[:, 0] < reach
    return density, intervals.share(covered, groups)


def expected_coverage(reals: int, fakes: int, k: int) -> float:
    """Coverage that equal distributions expect: 1 - the chance that the k nearest of the others are all real."""
    return 1 - math.prod((reals - i) / (reals + fakes - i) for i in range(1, k + 1))


def auth_pct(train: np.ndarray, fake: np.ndarray) -> Estimate:
    """Percentage of generated images that are authentic: farther from their nearest training image than that one is
    from its own nearest. [n, d] each, n ≥ 2 training images. Depends on n: compare at equal numbers. With Wilson's
    interval, conditional on the training images.
    """
    found = nearest(train, fake)
    authentic = found.distances[:, 0] > radii(train, 1)[found.indices[:, 0]]
    part = intervals.share(authentic)
    spread, low, high = (100 * (value or 0.0) for value in (part.spread, part.low, part.high))
    return Estimate(100 * part, spread, part.spread_kind, low, high)


def copying(
    train: np.ndarray,
    heldout: np.ndarray,
    fake: np.ndarray,
    *,
    seed: int,
    cells: int | None = None,
    dimensions: int = 64,
    least: int = 20,
    heldout_groups: np.ndarray | None = None,
) -> CopyingTest:
    """C_T: within each cell of the training images, are generated images nearer to them than held-out ones are?

    train, heldout, fake: [n, d]. Everything happens on the first `dimensions` principal components of the training
    images, whose k-means cells (by `seed`; None: one per 2 `least` held-out images, at most 32) hold the comparisons.
    A cell counts by its held-out images; one with fewer than `least` of either kind is left out.
    heldout_groups: int [n], patients, over whom the spread is taken. Raises EvaluationError where no cell is left.
    """
    for sample in (heldout, fake):
        _check(train, sample, 1)
    train, heldout, fake = _principal(train, dimensions, train, heldout, fake)
    count = cells or max(1, min(32, len(heldout) // (2 * least)))
    centres, _ = scipy.cluster.vq.kmeans2(train, count, minit="++", rng=np.random.default_rng(seed))
    near_h, near_f = (nearest(train, sample).distances[:, 0] for sample in (heldout, fake))
    cell_h, cell_f = (nearest(centres, sample).indices[:, 0] for sample in (heldout, fake))
    codes, rows, variance, used = intervals.patients(heldout_groups, len(heldout)), [], 0.0, 0
    effects = np.zeros(len(heldout))  # of each held-out image on the weighted sum of z
    for cell in range(count):
        here_h, here_f = cell_h == cell, cell_f == cell
        n, m = int(here_h.sum()), int(here_f.sum())
        if min(n, m) < least:
            continue
        above = intervals.placements(near_h[here_h], near_f[here_f])
        beyond = intervals.placements(near_f[here_f], near_h[here_h])
        unit = math.sqrt((n + m + 1) / (12 * n * m))  # of the mean placement, under the hypothesis
        z = (float(beyond.mean()) - 0.5) / unit
        effects[here_h] = (above.mean() - above) / unit
        variance += (n / unit) ** 2 * float(beyond.var(ddof=1)) / m
        rows.append((n, m, z))
        used += n
    if not rows:
        raise EvaluationError(
            f"no cell holds {least} held-out and {least} generated images ({len(heldout)} and {len(fake)} in {count} "
            "cells). Use fewer cells or more images."
        )
    value = sum(n * z for n, _, z in rows) / used
    variance += len(heldout) ** 2 * intervals.cluster_variance(effects, codes)
    spread = math.sqrt(variance) / used
    estimate = intervals.normal(value, spread, f"DeLong over {codes.max() + 1} patients in {len(rows)} cells")
    p = float(scipy.stats.norm.cdf(value / spread)) if spread > 0 else float(value >= 0)
    return CopyingTest(estimate, p, tuple(rows), 1 - used / len(heldout))


def ball_counts(reference: np.ndarray, reach: np.ndarray, queries: np.ndarray, *, rim: bool = True) -> np.ndarray:
    """How many balls around the rows of `reference` [m, d], of radii `reach` [m], hold each query [n, d]: int [n]."""
    _check(reference, queries, 1)
    return _held(reference, reach, queries, rim=rim)[0]


def squared_distances(reference: np.ndarray, queries: np.ndarray) -> Iterator[np.ndarray]:
    """Squared distances of some hundred queries at a time to all references: float32 [a, m], in the queries' order.

    Those of copies are 0 up to float64's rounding.
    """
    _check(reference, queries, 1)
    for start in range(0, len(queries), _QUERIES):
        tiles = _tiles(reference, queries[start : start + _QUERIES])
        yield np.concatenate([squares.astype(np.float32) for _, _, squares in tiles], axis=1)


def equal_size(
    real: np.ndarray, fake: np.ndarray, seed: int | None, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Both samples at the smaller one's size, drawn by `seed`, and the reals' groups along with them."""
    if groups is not None:
        groups = intervals.patients(groups, len(real))
    size = min(len(real), len(fake))
    if len(real) == len(fake):
        return real, fake, groups
    if seed is None:
        raise EvaluationError(
            f"there are {len(real)} real and {len(fake)} generated images; manifolds compare at equal numbers only. "
            f"Give {size} of each, or a seed to draw them."
        )
    rng = np.random.default_rng(seed)
    rows_r, rows_f = (np.sort(rng.choice(len(sample), size, replace=False)) for sample in (real, fake))
    return real[rows_r], fake[rows_f], None if groups is None else groups[rows_r]


def _held(reference: np.ndarray, reach: np.ndarray, queries: np.ndarray, *, rim: bool) -> tuple[np.ndarray, np.ndarray]:
    """How many balls hold each query, int [n], and how many queries each ball holds, int [m]."""
    balls, held = np.zeros(len(queries), dtype=np.int64), np.zeros(len(reference), dtype=np.int64)
    limits = np.square(reach)
    for rows, columns, squares in _tiles(reference, queries):
        inside = squares <= limits[columns] if rim else squares < limits[columns]
        balls[rows] += inside.sum(axis=1)
        held[columns] += inside.sum(axis=0)
    return balls, held


def _density(by_fake: np.ndarray, by_real: np.ndarray, codes: np.ndarray) -> Estimate:
    variance = intervals.cluster_variance(by_fake, np.arange(len(by_fake)))
    variance += intervals.cluster_variance(by_real, codes)
    kind = f"standard error over the generated images and {codes.max() + 1} patients"
    return intervals.normal(float(by_fake.mean()), math.sqrt(variance), kind)


def _search(reference: np.ndarray, queries: np.ndarray, k: int, *, skip_self: bool) -> Neighbours:
    indices = np.zeros((len(queries), k), dtype=np.int64)
    best = np.full((len(queries), k), np.inf)
    for rows, columns, squares in _tiles(reference, queries):
        if skip_self:
            own = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
            squares[own - rows.start, own - columns.start] = np.inf
        keep = min(k, squares.shape[1])
        chosen = squares.argmin(axis=1)[:, None] if keep == 1 else np.argpartition(squares, keep - 1, axis=1)[:, :keep]
        both = np.concatenate([best[rows], np.take_along_axis(squares, chosen, axis=1)], axis=1)
        names = np.concatenate([indices[rows], chosen + columns.start], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, :k]
        best[rows] = np.take_along_axis(both, order, axis=1)
        indices[rows] = np.take_along_axis(names, order, axis=1)
    distances = _distances(reference, queries, indices)
    order = np.argsort(distances, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1))


def _distances(reference: np.ndarray, queries: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """From the differences, one neighbour at a time: exact where the dot products' rounding is not."""
    found = np.empty(indices.shape)
    for start in range(0, len(queries), _QUERIES):
        rows = slice(start, start + _QUERIES)
        mine = np.asarray(queries[rows], dtype=np.float64)
        for rank in range(indices.shape[1]):
            found[rows, rank] = np.linalg.norm(mine - reference[indices[rows, rank]], axis=1)
    return found


def _tiles(reference: np.ndarray, queries: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Squared distances [a, b] of some queries to some references, and which; around the references' mean."""
    centre = np.mean(reference, axis=0, dtype=np.float64)
    for first in range(0, len(reference), _REFERENCES):
        columns = slice(first, min(first + _REFERENCES, len(reference)))
        there = np.asarray(reference[columns], dtype=np.float64) - centre
        norms = np.einsum("ij,ij->i", there, there)
        for start in range(0, len(queries), _QUERIES):
            rows = slice(start, min(start + _QUERIES, len(queries)))
            here = np.asarray(queries[rows], dtype=np.float64) - centre
            squares = here @ there.T
            squares *= -2
            squares += np.einsum("ij,ij->i", here, here)[:, None]
            squares += norms
            yield rows, columns, squares


def _principal(train: np.ndarray, dimensions: int, *samples: np.ndarray) -> list[np.ndarray]:
    centre = np.mean(train, axis=0, dtype=np.float64)
    kept = min(dimensions, train.shape[1])
    if kept == train.shape[1]:
        return [np.asarray(sample, dtype=np.float64) - centre for sample in samples]
    spread = np.cov(train, rowvar=False, dtype=np.float64)
    _, axes = scipy.linalg.eigh(spread, subset_by_index=[len(spread) - kept, len(spread) - 1])
    return [(np.asarray(sample, dtype=np.float64) - centre) @ axes for sample in samples]


def _check(reference: np.ndarray, queries: np.ndarray, least: int) -> None:
    if reference.ndim != 2 or queries.ndim != 2 or reference.shape[1] != queries.shape[1]:
        raise EvaluationError(
            f"features have shapes {reference.shape} and {queries.shape}; neighbours need [n, d] twice, with one d. "
            "Take both from the same extractor."
        )
    if len(reference) < max(least, 1) or len(queries) < 1:
        raise EvaluationError(
            f"{len(reference)} images cannot hold the {least} that neighbours are sought among. Use more images."
            if len(queries)
            else "there are no images to seek neighbours for. Give at least 1."
        )
    if not (np.isfinite(reference.sum()) and np.isfinite(queries.sum())):
        raise EvaluationError("some features are not finite. Check the images and the extractor's weights.")
