"""Does a generator repeat its training images? Copies in pixels, distances in feature spaces, membership inference.

No single measure tells memorisation reliably, so three are asked, and each against a control of its own: held-out
patients for copies and distances, a split of the members themselves for membership. A generator passes if none of them
is beyond its control; that does not prove that it remembers nothing, and `detectable` says what would have been seen.

Patients are exchanged, not images: two eyes of one patient are not two witnesses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import intervals, neighbours
from dr_platform.evaluation.estimate import Estimate

ANGLES_DEG = (0.0, -2.0, 2.0, -5.0, 5.0, -10.0, 10.0)
FLIPS = {"none": (1.0, 1.0), "left-right": (-1.0, 1.0), "up-down": (1.0, -1.0), "both": (-1.0, -1.0)}  # signs of x, y
SHIFTS = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03)  # of the width, tried along both axes
COMPARED_SIZE = 24  # pixels a side at which pictures are correlated
SAMPLES = 2000  # at most this many generated images enter the test by exchange
MARGIN = 0.03  # of the membership AUC over its control
_COMPARED_FIELD = 0.95  # of the half side: what a small rotation keeps within the picture
_PICTURES_AT_A_TIME = 256


@dataclass(frozen=True, eq=False)
class Space:
    """One feature space: rows [n, d] of training images, held-out images and samples, and the patients of the former.

    train_groups, held_out_groups: int [n]; None: every image is a patient.
    """

    name: str
    train: np.ndarray
    held_out: np.ndarray
    samples: np.ndarray
    train_groups: np.ndarray | None = None
    held_out_groups: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Copies:
    """The training picture most like each sample. index: int [n]; correlation: [n] in [-1, 1]; flip, angle_deg: what
    the sample had to undergo. threshold: above it, a sample counts as a copy. held_out_largest: the largest
    correlation of a held-out picture, by the same search.
    """

    index: np.ndarray
    correlation: np.ndarray
    flip: tuple[str, ...]
    angle_deg: np.ndarray
    threshold: float
    held_out_largest: float

    @property
    def found(self) -> np.ndarray:
        """Rows of the samples that are copies: int."""
        return np.flatnonzero(self.correlation > self.threshold)


@dataclass(frozen=True)
class DistanceRatio:
    """Distance to the nearest training image over that to the nearest held-out one, as samples' geometric mean.

    ratio: relative to what exchanging patients between the two sides gives, so 1 means no memory whatever the sides'
    sizes; its interval is that of the exchange, mirrored. p: one-sided, of no memory, by the exchanges; never 0.
    detectable: the ratio below which p would have been under 0.05.
    """

    space: str
    ratio: Estimate
    p: float
    detectable: float
    exchanges: int


@dataclass(frozen=True)
class MembershipTest:
    """Can members be told from held-out images by their distance to the nearest sample?

    auc: members against held-out, 0.5 if not. control: the same between two random parts of the members, the smaller
    with as many patients as are held out, as mean and standard deviation over splits. p: of no membership signal.
    excess: auc - control, over both spreads; its interval is over patients.
    """

    space: str
    auc: Estimate
    control: Estimate
    excess: Estimate
    p: float


@dataclass(frozen=True)
class Canary:
    """How strongly the samples speak of one planted image. score: higher is more. rank: among the held-out images, 1
    is above them all. exposure: log2 of (held-out images + 1) / rank, in bits.
    """

    score: float
    rank: int
    exposure: float


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the measures say together. adjusted_p: Holm's, by measure and space. reasons: why it fails; empty if not."""

    outcome: Literal["passes", "fails"]
    reasons: tuple[str, ...]
    adjusted_p: dict[str, float]
    copies: Copies | None
    ratios: tuple[DistanceRatio, ...]
    memberships: tuple[MembershipTest, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was beyond its control."""
        return self.outcome == "passes"


def nearest_training(spaces: Sequence[Space], k: int = 1) -> dict[str, neighbours.Neighbours]:
    """The k nearest training images of every sample, by space: rows to show beside it, and how far they are."""
    return {space.name: neighbours.nearest(space.train, space.samples, k) for space in spaces}


def find_copies(
    train: np.ndarray, held_out: np.ndarray, samples: np.ndarray, *, threshold: float | None = None
) -> Copies:
    """Samples that are training pictures, mirrored or slightly turned.

    train, held_out, samples: uint8 [n, R, R, 3]. Pictures are averaged to 24 pixels a side; what remains of them over
    the training pictures' mean, within the inscribed disc, is correlated under 4 flips and 7 rotations of up to 10°.
    With the picture found most alike it is correlated again under 49 shifts of up to 3 % of the width.
    threshold: None takes the middle between the most alike held-out picture and identity. A copy there, which a
    patient in both sets would bring, therefore blunts the search and should have been removed before.
    """
    for name, pictures in (("training", train), ("held-out", held_out), ("generated", samples)):
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or not len(pictures):
            raise EvaluationError(
                f"the {name} pictures are {pictures.dtype} {pictures.shape}; copies are sought in uint8 [n, R, R, 3]. "
                "Give 8-bit RGB pictures, at least 1."
            )
    small = _small(train)
    mean = small.mean(dim=0)
    mask = _disc()
    reference = _unit(small, mean, mask)
    largest = float(_best_correlations(held_out, reference, mean, mask)[0].max())
    correlation, index, move = _best_correlations(samples, reference, mean, mask)
    moves = list(itertools.product(FLIPS, ANGLES_DEG))
    return Copies(
        index=index,
        correlation=correlation,
        flip=tuple(moves[i][0] for i in move),
        angle_deg=np.array([moves[i][1] for i in move]),
        threshold=(1 + largest) / 2 if threshold is None else threshold,
        held_out_largest=largest,
    )


def distance_ratio(space: Space, *, seed: int, exchanges: int = 499) -> DistanceRatio:
    """Are samples nearer to training images than to held-out ones, beyond what the sides' sizes explain?

    Training and held-out patients change sides at random, `exchanges` times, the sides keeping their numbers of
    patients; the mean of log(d_train / d_held-out) is compared with what comes of that. At most 2,000 samples are used,
    drawn by `seed`. Needs 2 patients on either side.
    """
    rng = np.random.default_rng(seed)
    samples = space.samples
    if len(samples) > SAMPLES:
        samples = samples[np.sort(rng.choice(len(samples), SAMPLES, replace=False))]
    codes_t, codes_h = _codes(space)
    members, strangers = int(codes_t.max()) + 1, int(codes_h.max()) + 1
    logs = np.concatenate(
        [_log_nearest(space.train, codes_t, samples), _log_nearest(space.held_out, codes_h, samples)]
    )  # [patients, samples]
    found = float((logs[:members].min(axis=0) - logs[members:].min(axis=0)).mean())
    under = np.empty(exchanges)
    for i in range(exchanges):
        order = rng.permutation(members + strangers)
        under[i] = (logs[order[:members]].min(axis=0) - logs[order[members:]].min(axis=0)).mean()
    p = float((1 + (under <= found).sum()) / (1 + exchanges))
    middle, spread = float(np.median(under)), float(under.std(ddof=1))
    low, high = np.quantile(under, [0.025, 0.975]) - middle
    ratio = math.exp(found - middle)
    estimate = Estimate(
        ratio,
        ratio * spread,
        f"{exchanges} exchanges of {members} training and {strangers} held-out patients, seed {seed}",
        ratio * math.exp(-high),
        ratio * math.exp(-low),
    )
    detectable = math.exp(float(np.quantile(under, 0.05)) - middle)
    return DistanceRatio(space.name, estimate, p, detectable, exchanges)


def membership_scores(images: np.ndarray, samples: np.ndarray, k: int = 1) -> np.ndarray:
    """Minus the mean distance of each image [n, d] to its k nearest samples [m, d]: float64 [n], higher for members."""
    return -neighbours.nearest(samples, images, k).distances.mean(axis=1)


def membership(space: Space, *, seed: int, splits: int = 100) -> MembershipTest:
    """Membership inference from the samples alone, with its control and interval over patients. Needs 3 members."""
    codes_t, codes_h = _codes(space)
    member, stranger = (membership_scores(images, space.samples) for images in (space.train, space.held_out))
    found = intervals.auc(member, stranger, codes_t, codes_h)
    patients, rng = int(codes_t.max()) + 1, np.random.default_rng(seed)
    if patients < 3:
        raise EvaluationError(f"a split of {patients} training patients is no control. Give at least 3.")
    aside = min(int(codes_h.max()) + 1, patients // 2)
    values = np.empty(splits)
    for i in range(splits):
        out = np.isin(codes_t, rng.choice(patients, aside, replace=False))
        values[i] = intervals.auc(member[~out], member[out])
    kind = f"standard deviation over {splits} splits of the members, {aside} of {patients} patients aside, seed {seed}"
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    control = intervals.normal(mean, deviation, kind)
    spread = deviation if found.spread is None else found.spread
    excess = intervals.normal(float(found) - mean, math.hypot(spread, deviation / math.sqrt(splits)), "over patients")
    p = intervals.one_sided_p(excess)
    return MembershipTest(space.name, found, control, excess, p)


def canaries(planted: np.ndarray, held_out: np.ndarray, samples: np.ndarray, *, k: int = 32) -> tuple[Canary, ...]:
    """Exposure of planted images: each one's score ranked among those of held-out images, which were not trained on.

    planted, held_out, samples: features [n, d]. The score is minus the mean distance to the `k` nearest samples: an
    image that is repeated often has many near it, one that is repeated once only one.
    """
    k = min(k, len(samples))
    scores, others = membership_scores(planted, samples, k), membership_scores(held_out, samples, k)
    ranks = [1 + int((others >= score).sum()) for score in scores]
    bits = [math.log2((len(others) + 1) / rank) for rank in ranks]
    return tuple(Canary(float(s), r, b) for s, r, b in zip(scores, ranks, bits, strict=True))


def verdict(
    spaces: Sequence[Space],
    *,
    seed: int,
    train_pixels: np.ndarray | None = None,
    held_out_pixels: np.ndarray | None = None,
    sample_pixels: np.ndarray | None = None,
    alpha: float = 0.05,
    margin: float = MARGIN,
    exchanges: int = 499,
) -> Verdict:
    """Whether a generator repeats its training images, by all measures together.

    It fails if a sample is a copy in pixels (where all three sets of pictures are given), if samples are nearer to
    training than to held-out patients, or if membership shows by more than `margin` over its control; the tests by
    Holm's p below `alpha`, over all spaces. Exchanges limit p to 1 / (exchanges + 1) before Holm.
    """
    if not spaces:
        raise EvaluationError("memorisation is judged in at least one feature space; there is none. Give one.")
    pixels = (train_pixels, held_out_pixels, sample_pixels)
    copies = None
    if train_pixels is not None and held_out_pixels is not None and sample_pixels is not None:
        copies = find_copies(train_pixels, held_out_pixels, sample_pixels)
    elif any(one is not None for one in pixels):
        raise EvaluationError("copies are sought with training, held-out and generated pictures; give all three.")
    ratios = tuple(distance_ratio(space, seed=seed, exchanges=exchanges) for space in spaces)
    memberships = tuple(membership(space, seed=seed) for space in spaces)
    p = {f"distance ratio, {found.space}": found.p for found in ratios}
    p |= {f"membership, {found.space}": found.p for found in memberships}
    adjusted = intervals.holm(p)
    reasons = []
    if copies is not None and len(copies.found):
        first = int(copies.found[0])
        reasons.append(
            f"{len(copies.found)} of {len(copies.correlation)} samples are copies of training pictures (sample {first} "
            f"of picture {copies.index[first]}, correlation {copies.correlation[first]:.3f})"
        )
    for found in ratios:
        if adjusted[f"distance ratio, {found.space}"] < alpha:
            reasons.append(f"samples are nearer to training than to held-out patients in {found.space}: {found.ratio}")
    for test in memberships:
        if adjusted[f"membership, {test.space}"] < alpha and test.excess > margin:
            reasons.append(f"members are told from held-out images in {test.space}: AUC {test.auc} by {test.control}")
    return Verdict("fails" if reasons else "passes", tuple(reasons), adjusted, copies, ratios, memberships)


def _codes(space: Space) -> tuple[np.ndarray, np.ndarray]:
    codes = (
        intervals.patients(space.train_groups, len(space.train)),
        intervals.patients(space.held_out_groups, len(space.held_out)),
    )
    found = [int(one.max(initial=-1)) + 1 for one in codes]
    if min(found) < 2 or not len(space.samples):
        raise EvaluationError(
            f"space {space.name} has {found[0]} training patients, {found[1]} held-out ones and {len(space.samples)} "
            "samples; memorisation needs 2, 2 and 1. Hold out more patients or generate images."
        )
    return codes


def _log_nearest(reference: np.ndarray, codes: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Log of each sample's distance to the nearest image of each patient: float32 [patients, samples].

    A distance of 0 counts as 1e-6 of the median, so that one exact copy weighs much and not without limit.
    """
    order = np.argsort(codes, kind="stable")
    firsts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    parts = neighbours.squared_distances(reference, samples)
    nearest = np.concatenate([np.minimum.reduceat(part[:, order], firsts, axis=1) for part in parts]).T
    floor = max(1e-12 * float(np.median(nearest)), float(np.finfo(np.float32).tiny))
    return np.log(np.maximum(nearest, floor)) / 2


def _turns() -> Tensor:
    """Coordinates' maps of all flips with all rotations: float32 [28, 2, 2], in the order of their product."""
    turns = []
    for (x, y), angle_deg in itertools.product(FLIPS.values(), ANGLES_DEG):
        cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        turns.append([[x * cos, -x * sin], [y * sin, y * cos]])
    return torch.tensor(turns)


def _small(pictures: np.ndarray) -> Tensor:
    """uint8 [n, R, R, 3] to float32 [n, 3, 24, 24], each pixel the mean of what it covers."""
    parts = []
    for start in range(0, len(pictures), _PICTURES_AT_A_TIME):
        part = torch.from_numpy(np.ascontiguousarray(pictures[start : start + _PICTURES_AT_A_TIME]))
        parts.append(F.adaptive_avg_pool2d(part.permute(0, 3, 1, 2).float(), COMPARED_SIZE))
    return torch.cat(parts)


def _disc() -> Tensor:
    axis = (torch.arange(COMPARED_SIZE) + 0.5) * 2 / COMPARED_SIZE - 1
    return torch.hypot(axis[:, None], axis[None]) < _COMPARED_FIELD


def _unit(small: Tensor, mean: Tensor, mask: Tensor) -> Tensor:
    rest = (small - mean)[:, :, mask].flatten(1)
    rest = rest - rest.mean(dim=1, keepdim=True)
    return rest / rest.norm(dim=1, keepdim=True).clamp_min(1e-6)


def _moved(small: Tensor, turns: Tensor, dx: float = 0.0, dy: float = 0.0) -> Tensor:
    """Pictures [n, 3, 24, 24] under the maps [n, 2, 2] and then a shift, in parts of the width."""
    shift = torch.tensor([2 * dx, 2 * dy]).expand(len(small), 2)  # the grid is 2 wide
    grid = F.affine_grid(torch.cat([turns, shift[:, :, None]], dim=2), list(small.shape), align_corners=False)
    return F.grid_sample(small, grid, padding_mode="border", align_corners=False)


def _best_correlations(
    pictures: np.ndarray, reference: Tensor, mean: Tensor, mask: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest correlation of each picture over training pictures and moves; which picture; which flip and rotation."""
    turns, parts = _turns(), []
    for start in range(0, len(pictures), _PICTURES_AT_A_TIME):
        small = _small(pictures[start : start + _PICTURES_AT_A_TIME])
        best = [
            (_unit(_moved(small, turn.expand(len(small), 2, 2)), mean, mask) @ reference.T).max(dim=1) for turn in turns
        ]
        values, rows = torch.stack([b.values for b in best]), torch.stack([b.indices for b in best])
        value, move = values.max(dim=0)
        row = rows.gather(0, move[None])[0]
        for dx, dy in itertools.product(SHIFTS, SHIFTS):
            again = (_unit(_moved(small, turns[move], dx, dy), mean, mask) * reference[row]).sum(dim=1)
            value = torch.maximum(value, again)
        parts.append((value.double(), row, move))
    values, rows, moves = (torch.cat(part) for part in zip(*parts, strict=True))
    return values.numpy(), rows.numpy(), moves.numpy()
