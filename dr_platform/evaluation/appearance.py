"""What is measured on pictures themselves, which a feature space may not see: spectrum, rim, lesions, vessels, disc.

Generated pictures against real ones, errors over patients. Every part stands alone: where the pictures are too small or
too few for it, a note says so and the others go on. What a figure needs of the pictures is kept in numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dr_platform import records
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import anatomy, boundary, lesions, spectra, two_sample, vessels
from dr_platform.evaluation.estimate import Estimate

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]
Codes = NDArray[np.int64]

SPECTRUM_ALARM = "spectrum_alarm"

# Bands of `spectra.BANDS` by what they show: waves so many pixels long.
_BANDS = {
    "1/32-1/16": "16_32px",
    "1/16-1/8": "8_16px",
    "1/8-1/4": "4_8px",
    "1/4-1/2": "2_4px",
    spectra.LESION: "lesions",  # spots of 1 to 4 pixels
}
_UNITS = {"residual_px": "pixels", "rim_width_px": "pixels", "outside": "share of the energy"}
_NAMES = {"residual_px": "rim_residual_w1", "rim_width_px": "rim_width_w1", "outside": "rim_outside_w1"}
_REGIONS: tuple[boundary.Region, ...] = ("rim", "centre", "whole")
_QUANTILES = 101
_DIGITS = 6  # significant, of what is kept for figures


@dataclass(frozen=True, eq=False)
class Pictures:
    """uint8 [n, R, R, 3] of real and of generated images, and the patient of each real one, int [n]."""

    real: Pixels
    fake: Pixels
    patients: Codes
    seed: int


@dataclass
class Findings:
    """Metrics, why others are not there, and what figures are drawn from; filled part by part."""

    pictures: Pictures
    metrics: list[records.Metric] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curves: list[records.Curve] = field(default_factory=list)
    distributions: list[records.Distribution] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: Estimate,
        said: str = "",
        *,
        higher: bool = False,
        region: Literal["whole", "centre"] = "whole",
        definition: str = "1",
    ) -> None:
        """One metric of these pictures."""
        self.metrics.append(
            records.Metric(
                name=name,
                value=value.value,
                spread=value.spread,
                spread_kind=None if value.spread is None else value.spread_kind,
                n_fake=len(self.pictures.fake),
                n_real=len(self.pictures.real),
                extractor=None,
                seed=self.pictures.seed,
                higher_is_better=higher,
                definition=definition,
                region=region,
                low=value.low,
                high=value.high,
                said=said,
            )
        )


def look(pictures: Pictures) -> Findings:
    """All that can be measured on the pictures.

    Cost: about half a second for a picture of 512 pixels on one core; memory is `spectra`'s.
    """
    found = Findings(pictures)
    parts: dict[str, Callable[[Findings], None]] = {
        "spectrum": _spectrum,
        "rim": _rim,
        "c2st": _probes,
        "photographs": _photographs,
    }
    for what, part in parts.items():
        try:
            part(found)
        except EvaluationError as error:
            found.notes.append(f"{what}: {error}")
    return found


def some_patients(patients: Codes, count: int, seed: int) -> NDArray[np.intp]:
    """Rows of at most `count` images, all those of patients drawn at random, in order; all rows if they are no more."""
    if len(patients) <= count:
        return np.arange(len(patients))
    codes = np.unique(patients, return_inverse=True)[1]
    rank = np.random.default_rng(seed).permutation(int(codes.max()) + 1)[codes]
    order = np.argsort(rank, kind="stable")
    last = rank[order[count]]  # of the first patient that is not there as a whole
    return np.sort(order[: int((rank < last).sum())])


# ---- parts ---------------------------------------------------------------------------------------------------------


def _spectrum(found: Findings) -> None:
    shown, seed = found.pictures, found.pictures.seed
    mean, std = spectra.whitening(shown.real)
    real = spectra.spectra(shown.real, shown.patients, mean=mean, std=std, halvings=spectra.HALVINGS, seed=seed)
    fake = spectra.spectra(shown.fake, mean=mean, std=std)
    result = spectra.compare(real, fake, seed=seed)
    alarms = {"grid": result.peak, "direction": result.harmonic}
    raised = any(alarm.raised for alarm in alarms.values())
    words = "; ".join(
        f"{name} {alarm.sigma.value:.1f} of {alarm.threshold:.1f} standard errors, {alarm.where}"
        for name, alarm in alarms.items()
    )
    found.add(SPECTRUM_ALARM, Estimate(float(raised)), f"the alarm of the spectrum ({words})")
    for name, alarm in alarms.items():
        said = f"standard errors; {alarm.threshold:.2f} by chance in 1 of 100; p {alarm.p:.3g}; {alarm.where}"
        found.add(f"spectrum_{name}", alarm.sigma, said)
    for band, difference in result.bands.items():
        said = (
            f"dB; {difference.threshold_db:.2f} by chance in 1 of 100, p {difference.p:.3g}; "
            f"on average {difference.level_db.value:+.2f} dB"
        )
        found.add(f"spectrum_db_{_BANDS[band]}", difference.rms_db, said)
    found.curves += [_radial(real, fake), _angular(real, fake)]


def _rim(found: Findings) -> None:
    shown = found.pictures
    real, fake = boundary.boundaries(shown.real), boundary.boundaries(shown.fake)
    here, there = (1 - sample.missing / len(sample.fields) for sample in (fake, real))
    said = f"share of generated pictures with a field of view; {there:.1%} of the real ones"
    found.add(
        "rim_found", Estimate(here, math.sqrt(here * (1 - here) / len(shown.fake)), "binomial"), said, higher=True
    )
    result = boundary.compare(real, fake, shown.patients, seed=shown.seed)
    for name, far in result.measures.items():
        said = f"{_UNITS[name]}; generated ones on average {far.shift.value:+.3g}; p {far.p:.3g}"
        found.add(_NAMES[name], far.w1, said)
    found.add("rim_profile_w1", result.profile.w1, f"grey levels around the rim; p {result.profile.p:.3g}")
    found.curves.append(_rim_curve(real, fake, shown.patients))


def _probes(found: Findings) -> None:
    """How well a linear probe tells generated from real ones by the rim, the centre, the whole."""
    shown = found.pictures
    for which in _REGIONS:
        real, fake = (boundary.local_features(images, which) for images in (shown.real, shown.fake))
        told = two_sample.separability(real, fake, shown.patients, seed=shown.seed)
        said = f"AUC; {told.control.value:.3f} with shuffled labels, p {told.p:.3g}"
        found.add(f"c2st_{which}", told.auc, said, region="centre" if which == "centre" else "whole")


def _photographs(found: Findings) -> None:
    """Numbers taken of each photograph, and how far their distributions lie apart."""
    shown = found.pictures
    real, fake = (_table(images) for images in (shown.real, shown.fake))
    missing: dict[str, list[str]] = {}
    for name, ours in real.values.items():
        theirs = fake.values[name]
        measured = [int(np.isfinite(values).sum()) for values in (theirs, ours)]
        if not all(measured):
            side = fake if measured[1] else real
            missing.setdefault(side.reasons.get(name, "it could not be measured in any picture"), []).append(name)
            continue
        found.distributions.append(_distribution(name, ours, theirs))
        try:
            value = anatomy.distance_between(ours, theirs, kind="w1", seed=shown.seed, groups=shown.patients)
        except EvaluationError as error:
            missing.setdefault(str(error), []).append(name)
            continue
        said = (
            f"standard deviations of the real ones; mean {np.nanmean(theirs):.4g} generated, {np.nanmean(ours):.4g} "
            f"real; measured in {measured[0]} and {measured[1]}"
        )
        found.add(f"{name}_w1", value, said, definition=_definition(name))
    found.notes += [f"{', '.join(names)}: {why}" for why, names in missing.items()]


# ---- numbers of a photograph ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table:
    """Columns [n] by name, NaN where it could not be measured, and the first reason why."""

    values: dict[str, NDArray[np.float64]]
    reasons: dict[str, str]


def _table(images: Pixels) -> _Table:
    rows, reasons = [], dict[str, str]()
    for image in images:
        row = {}
        for name, value, reason in _numbers(image):
            row[name] = math.nan if value is None else float(value)
            if value is None and reason:
                reasons.setdefault(name, reason)
        rows.append(row)
    return _Table({name: np.array([row[name] for row in rows]) for name in rows[0]}, reasons)


def _numbers(image: Pixels) -> Iterator[tuple[str, float | None, str | None]]:
    """Name, value and why there is none."""
    fov = anatomy.field_of(image)
    spots = lesions.microaneurysms(image, fov)
    yield "microaneurysms", spots.count(), spots.reason
    tree = vessels.vessels(image, fov)
    yield "vessel_share", tree.share, tree.reason
    yield "vessel_calibre", None if tree.calibre_um is None else tree.calibre_um[1], tree.reason
    yield "vessel_tortuosity", tree.tortuosity, tree.reason or "no vessel is long enough"
    yield "vessel_dimension", tree.fractal_dimension, tree.reason
    place = anatomy.disc_and_macula(image, fov)
    yield "disc_upright", place.upright, place.reason
    yield "disc_macula_distance", place.distance, place.reason
    yield "disc_macula_angle", place.angle_deg, place.reason


def _definition(name: str) -> str:
    return f"1 {vessels.CLASSICAL}" if name.startswith("vessel_") else "1"


# ---- for figures ---------------------------------------------------------------------------------------------------


def _radial(real: spectra.Spectra, fake: spectra.Spectra) -> records.Curve:
    ours, theirs = (10 * np.log10(np.maximum(sample.profiles.mean(axis=0), 1e-30)) for sample in (real, fake))
    return _curve("spectrum", real.frequencies, ours, theirs, *_range(spectra.radial_chance(real, fake)))


def _angular(real: spectra.Spectra, fake: spectra.Spectra) -> records.Curve:
    degrees = np.arange(spectra.ANGLES) * (180 / spectra.ANGLES) - 90
    ours, theirs = real.angular.mean(axis=0), fake.angular.mean(axis=0)
    return _curve("direction", degrees, ours, theirs, *_range(spectra.angular_chance(real, fake)))


def _rim_curve(real: boundary.Boundaries, fake: boundary.Boundaries, patients: Codes) -> records.Curve:
    """Mean brightness around the rim, on the circles that most pictures show."""
    sides = [
        (sample.profiles, owners)
        for sample, owners in ((real, patients), (fake, np.arange(len(fake.fields), dtype=np.int64)))
    ]
    seen = np.minimum(*(np.isfinite(values).mean(axis=0) for values, _ in sides)) > 0.5
    radii = np.linspace(*boundary.RIM, boundary.RADII)[seen]
    (ours, error_r), (theirs, error_f) = (_clustered_mean(values[:, seen], owners) for values, owners in sides)
    off = 1.96 * np.hypot(error_r, error_f)
    return _curve("rim", radii, ours, theirs, -off, off)


def _clustered_mean(values: Floats, owners: Codes) -> tuple[Floats, Floats]:
    """Mean of each column of [n, k] over what is there, and its standard error over patients."""
    there = np.isfinite(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / count
    codes = np.unique(owners, return_inverse=True)[1]
    sums = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(sums, codes, np.where(there, values - mean, 0.0))
    return mean, np.sqrt(np.square(sums).sum(axis=0)) / count


def _range(chance: Floats) -> tuple[Floats, Floats]:
    low, high = np.quantile(chance, (0.025, 0.975), axis=0)
    return low, high


def _curve(
    name: Literal["spectrum", "direction", "rim"], x: Floats, real: Floats, fake: Floats, low: Floats, high: Floats
) -> records.Curve:
    """low, high: of generated - real, by chance."""
    return records.Curve(
        name=name, x=_kept(x), real=_kept(real), fake=_kept(fake), low=_kept(real + low), high=_kept(real + high)
    )


def _distribution(name: str, real: Floats, fake: Floats) -> records.Distribution:
    sides = [values[np.isfinite(values)] for values in (real, fake)]
    ours, theirs = (
        np.quantile(values, np.linspace(0, 1, min(len(values), _QUANTILES)), method="nearest") for values in sides
    )
    return records.Distribution(
        name=name, real=_kept(ours), fake=_kept(theirs), n_real=len(sides[0]), n_fake=len(sides[1])
    )


def _kept(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
