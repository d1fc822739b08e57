"""Power spectra of real and generated pictures: where they differ, and whether a grid or an X lies over the fakes.

The average power spectrum is that of Karras et al. 2021 (StyleGAN3): whitened by the reals' mean and standard
deviation, Kaiser window with β = 8, mean squared magnitude. What may differ by chance is not a constant but what two
disjoint halves of the real patients differ by, at the sizes compared; every threshold here comes from there.

Peaks and directions are looked for in each picture's spectrum divided by its own mean at that radius, because how much
fine detail a picture has varies far more than how it is spread over directions. The quotient is averaged in decibels
above a floor: a single picture with a bright line then cannot pass for a pattern that all fakes share.

Legend: frequencies in cycles per pixel; a half plane is [R, R // 2 + 1], as the real FFT leaves it; n images of n_p
patients; S halvings. State: 4 · S · R · (R / 2 + 1) bytes, 105 MB at 512 pixels and 199 halvings, whatever n is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from dr_platform.errors import EvaluationError
from dr_platform.evaluation import intervals
from dr_platform.evaluation.estimate import Estimate
from dr_platform.evaluation.two_sample import halves

Floats = NDArray[np.float64]

LESION = "lesion"
BANDS = {
    "1/32-1/16": (1 / 32, 1 / 16),
    "1/16-1/8": (1 / 16, 1 / 8),
    "1/8-1/4": (1 / 8, 1 / 4),
    "1/4-1/2": (1 / 4, 1 / 2),
    LESION: (1 / 8, 1 / 2),  # spots of 1 to 4 pixels: a microaneurysm at 26 µm per pixel
}
DIRECTED = ("1/16-1/8", "1/8-1/4", "1/4-1/2")  # bands whose harmonics are taken
# Over the full circle of directions: a cross or a diamond; a cross with its diagonals. What a generator's pixel grid
# leaves is symmetric about its axes, so only cosines are looked at.
HARMONICS = (4, 8)
ANGLES = 36  # directions of the angular profile, over half a circle
HALVINGS = 199  # makes 1 / 200 the least p

_KAISER_BETA = 8.0
_BATCH = 16
_LEAST_PATIENTS = 8  # of the reals, so that halves hold four
_LEAST_RADIUS = 4  # cycles per image; below, a peak is the window's own width
_TINY = 1e-30
_FLOOR = 0.1  # of the ring's mean: lower power says little, and its logarithm would be loud
_BOOTSTRAPS = 400


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra of a set of pictures, and of random halves of it by patient if they were asked for."""

    resolution: int
    mean: float
    std: float
    groups: NDArray[np.int64]  # [n], 0 ... n_p - 1
    power: Floats  # half plane; white noise of variance std² is 1 everywhere
    profiles: Floats  # [n, R // 2], mean over the ring of each whole number of cycles per image from 1
    shape: Floats  # half plane; mean over images of power / its ring's mean, in dB (of the quotient + 0.1)
    harmonics: Floats  # [n, bands `DIRECTED`, `HARMONICS`] dB, the shape's mean times cos k θ
    angular: Floats  # [n, `ANGLES`] dB, the shape in the lesion band, directions from -90° in steps of 5°
    halves: NDArray[np.bool_]  # [S, n]
    shape_sums: NDArray[np.float32]  # [S, half plane], the shape summed over the first half

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return int(self.groups.max()) + 1

    @property
    def frequencies(self) -> Floats:
        """Of the radial profile, cycles per pixel, [R // 2]."""
        return np.arange(1, self.resolution // 2 + 1) / self.resolution


@dataclass(frozen=True)
class BandDifference:
    """Fakes against reals within a band.

    rms_db: root mean square over the band's rings of the difference in decibels; biased upwards by noise, its interval
    is corrected for that. level_db: the mean difference, negative where fakes lack power. threshold_db: the rms_db at
    which, with these standard errors, the difference would be as large as between halves of the reals in 1 of 1/alpha
    cases; 0 where nothing differs at all. p: share of halvings that differ as much, in standard errors.
    """

    rms_db: Estimate
    level_db: Estimate
    threshold_db: float
    p: float
    differs: bool


@dataclass(frozen=True)
class Alarm:
    """The most conspicuous deviation of its kind, in standard errors.

    threshold: what the most conspicuous one between real halves reaches in 1 of 1/alpha cases. where: its frequency
    and excess. raised: whether sigma is beyond the threshold.
    """

    sigma: Estimate
    threshold: float
    p: float
    raised: bool
    where: str


@dataclass(frozen=True)
class SpectralDifference:
    """What `compare` finds: bands by name as in `BANDS`; alarms for peaks (grids) and harmonics (X, diamonds)."""

    bands: dict[str, BandDifference]
    peak: Alarm
    harmonic: Alarm
    n_real: int
    n_fake: int
    patients: int
    halvings: int


def whitening(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and standard deviation of all values of a set of pictures, in grey levels.

    Raises EvaluationError if every value is the same.
    """
    count = 0.0
    first = second = 0.0
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH].astype(np.float64)
        count, first, second = count + part.size, first + part.sum(), second + np.square(part).sum()
    mean = first / max(count, 1)
    variance = second / max(count, 1) - mean**2
    if not variance > 0:
        raise EvaluationError("all pixels have one value: there is no spectrum. Check the images.")
    return float(mean), math.sqrt(variance)


def spectra(
    images: NDArray[np.uint8],
    groups: NDArray | None = None,
    *,
    mean: float,
    std: float,
    halvings: int = 0,
    seed: int = 0,
) -> Spectra:
    """Spectra of pictures uint8 [n, R, R, 3], R even and at least 32; the power is averaged over colour channels.

    mean, std: of the real pictures (`whitening`), for reals and fakes alike. halvings: for the reals, `HALVINGS`.
    Raises EvaluationError for other shapes.
    """
    _check(images)
    owners = intervals.patients(groups, len(images))
    size = images.shape[1]
    plane = _plane(size)
    split = halves(owners, halvings, seed) if halvings else np.zeros((0, len(images)), dtype=np.bool_)
    window = np.kaiser(size, _KAISER_BETA)
    window /= np.sqrt(np.square(window).sum())
    power, shape = np.zeros(plane.weight.shape), np.zeros(plane.weight.shape)
    sums = np.zeros((halvings, plane.weight.size), dtype=np.float32)
    profiles, harmonics, angular = [], [], []
    for start in range(0, len(images), _BATCH):
        part = (images[start : start + _BATCH].transpose(0, 3, 1, 2) - mean) / std
        waves = scipy.fft.rfft2(part * np.outer(window, window))
        squares = (waves.real**2 + waves.imag**2).mean(axis=1)
        rings = plane.ring_means(squares)
        even = 10 * np.log10(squares / np.maximum(rings[:, plane.ring], _TINY) + _FLOOR)
        flat = even.reshape(len(even), -1)
        power += squares.sum(axis=0)
        shape += even.sum(axis=0)
        sums += split[:, start : start + _BATCH].astype(np.float32) @ flat.astype(np.float32)
        profiles.append(rings[:, 1 : size // 2 + 1])
        harmonics.append((flat @ plane.harmonics).reshape(len(flat), len(DIRECTED), len(HARMONICS)))
        angular.append(flat @ plane.directions)
    count = len(images)
    return Spectra(
        resolution=size,
        mean=mean,
        std=std,
        groups=owners,
        power=power / count,
        profiles=np.concatenate(profiles),
        shape=shape / count,
        harmonics=np.concatenate(harmonics),
        angular=np.concatenate(angular),
        halves=split,
        shape_sums=sums,
    )


def compare(real: Spectra, fake: Spectra, *, alpha: float = 0.01, seed: int = 0) -> SpectralDifference:
    """Bands, peaks and directions of fakes against reals, judged by halves of the reals.

    real: with halvings. alpha: the rate of false alarms, of each test of its own; not below 1 / (halvings + 1).
    Raises EvaluationError if the two were whitened differently, or the reals have no halves or fewer than 8 patients.
    """
    _comparable(real, fake, alpha)
    bands = {name: _band(real, fake, band, alpha, seed) for name, band in BANDS.items()}
    return SpectralDifference(
        bands,
        _peak(real, fake, alpha),
        _harmonic(real, fake, alpha),
        len(real.groups),
        len(fake.groups),
        real.patients,
        len(real.halves),
    )


def radial_chance(real: Spectra, fake: Spectra) -> Floats:
    """By how many dB the radial profiles of fakes and reals would differ by chance: [S, R // 2].

    What real halves differ by in standard errors, times the standard error of this comparison.
    """
    return 10 / math.log(10) * _chance(real, real.profiles, fake, fake.profiles, logs=True)


def angular_chance(real: Spectra, fake: Spectra) -> Floats:
    """As `radial_chance`, for the angular profile: [S, `ANGLES`]."""
    return _chance(real, real.angular, fake, fake.angular, logs=False)


def in_band(frequencies: Floats, band: tuple[float, float]) -> NDArray[np.bool_]:
    """Which frequencies lie in a band; its upper end belongs to the next, but Nyquist to the last."""
    low, high = band
    return (frequencies >= low) & ((frequencies < high) | (high >= 0.5) & (frequencies <= 0.5))


# ---- tests ---------------------------------------------------------------------------------------------------------


def _band(real: Spectra, fake: Spectra, band: tuple[float, float], alpha: float, seed: int) -> BandDifference:
    rings = in_band(real.frequencies, band)

    def rms(decibels: Floats) -> Floats:
        return np.sqrt(np.square(decibels).mean(axis=-1))

    found = _decibels(fake.profiles.mean(axis=0), real.profiles.mean(axis=0))[rings]
    ours, theirs = (_patient_means(sample, sample.profiles[:, rings]) for sample in (real, fake))
    null = rms(_studentised(ours, _members(real), ours, ~_members(real), logs=True))
    score = float(rms(_studentised(theirs, _everyone(theirs), ours, _everyone(ours), logs=True))[0])
    rng = np.random.default_rng(seed)
    boot = _decibels(*(_resampled(s, rings, rng) for s in (fake, real)))
    value = float(rms(found))
    threshold = float(np.quantile(null, 1 - alpha, method="higher"))
    return BandDifference(
        intervals.basic(value, rms(boot), "bootstrap of patients", least=0.0),
        intervals.basic(float(found.mean()), boot.mean(axis=1), "bootstrap of patients"),
        value * threshold / max(score, _TINY),
        _p(score, null),
        score > threshold,
    )


def _peak(real: Spectra, fake: Spectra, alpha: float) -> Alarm:
    plane, counts = _plane(real.resolution), real.halves.sum(axis=1, dtype=np.float64)[:, None]
    total = real.shape.ravel() * len(real.groups)
    looked_at = np.flatnonzero(plane.radius.ravel() >= _LEAST_RADIUS)
    first = real.shape_sums[:, looked_at].astype(np.float64)
    second = (total[looked_at] - first) / (len(real.groups) - counts)
    ratio = first / counts - second
    # Pooled over a ring: the deviation of one frequency, taken from the very halves it is to judge, would flatter them.
    ring = plane.ring.ravel()[looked_at]
    pooled = np.bincount(ring, np.square(ratio).mean(axis=0)) / np.maximum(np.bincount(ring), 1)
    deviation = np.sqrt(pooled)[ring] + _TINY
    null = (ratio / deviation).max(axis=1)
    excess = (fake.shape - real.shape).ravel()[looked_at]
    sigma = excess / (deviation * _size_factor(real, fake))
    top = int(sigma.argmax())
    row, column = np.unravel_index(looked_at[top], plane.radius.shape)
    x, y = column / real.resolution, (row - real.resolution * (row > real.resolution // 2)) / real.resolution
    return _alarm(sigma[top], null, alpha, f"{x:.3f}, {y:.3f} cycles per pixel (x, y), {excess[top]:+.1f} dB")


def _harmonic(real: Spectra, fake: Spectra, alpha: float) -> Alarm:
    ours, theirs = (_patient_means(s, s.harmonics.reshape(len(s.groups), -1)) for s in (real, fake))
    null = np.abs(_studentised(ours, _members(real), ours, ~_members(real))).max(axis=1)
    sigma = _studentised(theirs, _everyone(theirs), ours, _everyone(ours))[0]
    top = int(np.abs(sigma).argmax())
    band, order = divmod(top, len(HARMONICS))
    turn = 0.0 if sigma[top] > 0 else 180 / HARMONICS[order]
    where = f"k = {HARMONICS[order]} at {DIRECTED[band]} cycles per pixel, strongest at {turn:g}°"
    return _alarm(abs(sigma[top]), null, alpha, where)


def _studentised(a: Floats, of_a: NDArray[np.bool_], b: Floats, of_b: NDArray[np.bool_], logs: bool = False) -> Floats:
    """Mean of a - mean of b in standard errors, or that of their logarithms: [S, columns] for subsets [S, n_p].

    Each side brings its own spread. One taken from all reals would be known too well for halves of them, which then
    looked alike, and an independent set would look different.
    """
    (mean_a, square_a), (mean_b, square_b) = _moments(a, of_a, logs), _moments(b, of_b, logs)
    return (mean_a - mean_b) / np.sqrt(square_a + square_b + _TINY)


def _chance(real: Spectra, of_real: Floats, fake: Spectra, of_fake: Floats, logs: bool) -> Floats:
    ours, theirs = _patient_means(real, of_real), _patient_means(fake, of_fake)
    squares = (_moments(rows, _everyone(rows), logs)[1] for rows in (ours, theirs))
    return _studentised(ours, _members(real), ours, ~_members(real), logs) * np.sqrt(sum(squares))


def _moments(rows: Floats, members: NDArray[np.bool_], logs: bool = False) -> tuple[Floats, Floats]:
    """Mean over the members [S, n_p] of each subset, or its logarithm, and its squared standard error: [S, columns]."""
    weight, count = members.astype(np.float64), members.sum(axis=1, dtype=np.float64)[:, None]
    centre = rows.mean(axis=0)
    mean = weight @ (rows - centre) / count
    variance = ((weight @ np.square(rows - centre) / count - np.square(mean)) / (count - 1)).clip(min=0)
    mean = mean + centre
    return (_logs(mean), variance / np.maximum(mean, _TINY) ** 2) if logs else (mean, variance)


def _patient_means(sample: Spectra, values: Floats) -> Floats:
    """[n_p, columns] of [n, columns]"""
    sums = np.zeros((sample.patients, values.shape[1]))
    np.add.at(sums, sample.groups, values)
    return sums / np.bincount(sample.groups)[:, None]


def _members(real: Spectra) -> NDArray[np.bool_]:
    """Patients of the first halves, [S, n_p]."""
    members = np.zeros((len(real.halves), real.patients), dtype=np.bool_)
    members[:, real.groups] = real.halves
    return members


def _everyone(rows: Floats) -> NDArray[np.bool_]:
    return np.ones((1, len(rows)), dtype=np.bool_)


def _alarm(sigma: float, null: Floats, alpha: float, where: str) -> Alarm:
    threshold = float(np.quantile(null, 1 - alpha, method="higher"))
    kind = "1 by definition: the unit is the standard error"
    estimate = Estimate(float(sigma), 1.0, kind, float(sigma) - 1.96, float(sigma) + 1.96)
    return Alarm(estimate, threshold, _p(float(sigma), null), bool(sigma > threshold), where)


def _size_factor(real: Spectra, fake: Spectra) -> float:
    """Standard deviation of fake - real over that of half - half, were the fakes as the reals are.

    Fakes come singly and reals often by two: if a patient's pictures are independent, as many fakes are worth one
    patient; if they are alike, one is. The first is assumed, which makes the factor rather too large.
    """
    per_real, per_fake = len(real.groups) / real.patients, len(fake.groups) / fake.patients
    worth = fake.patients * min(1.0, per_fake / per_real)
    return math.sqrt((1 / real.patients + 1 / worth) / (4 / real.patients))


def _resampled(sample: Spectra, rings: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    count = sample.patients
    drawn = rng.multinomial(count, np.full(count, 1 / count), _BOOTSTRAPS)[:, sample.groups].astype(np.float64)
    return drawn @ sample.profiles[:, rings] / drawn.sum(axis=1)[:, None]


def _p(value: float, null: Floats) -> float:
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def _decibels(power: Floats, reference: Floats) -> Floats:
    return 10 / math.log(10) * (_logs(power) - _logs(reference))


def _logs(values: Floats) -> Floats:
    return np.log(np.maximum(values, _TINY))


# ---- the plane of frequencies --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plane:
    """Geometry of the half plane. The right half stands for both, so most frequencies weigh 2."""

    radius: Floats  # cycles per image
    ring: NDArray[np.int64]  # nearest whole radius; beyond Nyquist, all corners together
    weight: Floats
    harmonics: Floats  # [R (R / 2 + 1), bands · orders]
    directions: Floats  # [R (R / 2 + 1), ANGLES], each column sums to 1
    order: NDArray[np.int64]  # of the flat plane, by ring
    starts: NDArray[np.int64]  # of the rings in that order

    def ring_means(self, values: Floats) -> Floats:
        """[n, rings] of half planes [n, R, R // 2 + 1]."""
        weight = self.weight.ravel()[self.order]
        sums = np.add.reduceat(values.reshape(len(values), -1)[:, self.order] * weight, self.starts, axis=1)
        return sums / np.add.reduceat(weight, self.starts)


@lru_cache(maxsize=4)
def _plane(size: int) -> _Plane:
    y, x = np.meshgrid(np.fft.fftfreq(size) * size, np.arange(size // 2 + 1), indexing="ij")
    radius = np.hypot(x, y)
    ring = np.minimum(np.round(radius).astype(np.int64), size // 2 + 1)
    weight = np.where((x == 0) | (x == size // 2), 1.0, 2.0)
    angle = np.arctan2(y, x)
    columns = []
    for name in DIRECTED:
        inside = in_band(radius / size, BANDS[name]) * weight
        columns += [(inside * np.cos(k * angle) / inside.sum()).ravel() for k in HARMONICS]
    inside = in_band(radius / size, BANDS[LESION]) * weight
    step = np.round((np.degrees(angle) + 90) / (180 / ANGLES)).astype(np.int64) % ANGLES  # ±90° are one direction
    directions = np.stack([(inside * (step == k)).ravel() for k in range(ANGLES)], axis=1)
    directions /= directions.sum(axis=0)
    order = ring.ravel().argsort(kind="stable")
    starts = np.searchsorted(ring.ravel()[order], np.arange(size // 2 + 2))
    return _Plane(radius, ring, weight, np.stack(columns, axis=1), directions, order, starts)


def _check(images: NDArray[np.uint8]) -> None:
    shape = list(np.shape(images))
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise EvaluationError(f"images are {images.dtype} {shape}; uint8 [n, R, R, 3] is needed.")
    if shape[1] < 32 or shape[1] % 2:
        raise EvaluationError(f"images are {shape[1]} pixels wide; spectra need an even width of at least 32.")
    if not shape[0]:
        raise EvaluationError("there are no images to take spectra of; give at least one.")


def _comparable(real: Spectra, fake: Spectra, alpha: float) -> None:
    if (real.resolution, real.mean, real.std) != (fake.resolution, fake.mean, fake.std):
        raise EvaluationError(
            f"spectra of {real.resolution} and {fake.resolution} pixels, whitened by {real.mean:.4g} ± {real.std:.4g} "
            f"and {fake.mean:.4g} ± {fake.std:.4g}, cannot be compared; use one size and the reals' whitening for both."
        )
    if real.patients < _LEAST_PATIENTS or fake.patients < _LEAST_PATIENTS:
        raise EvaluationError(
            f"there are {real.patients} real and {fake.patients} generated patients; at least {_LEAST_PATIENTS} on "
            "either side are needed. Give more images."
        )
    if not (len(real.halves) + 1) * alpha >= 1 - 1e-9:
        raise EvaluationError(
            f"{len(real.halves)} halvings of the reals cannot judge at a rate of {alpha:g}; "
            f"take spectra of the reals with halvings={math.ceil(1 / alpha) - 1} or more."
        )
