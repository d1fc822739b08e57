"""What a synthetic fundus photograph shows, before it is drawn: whose eye it is, its anatomy, vessels and lesions.

Everything is sampled in millimetres on the retina and nothing here knows of pixels, so one (seed, index) is the same
retina at every size. Each part has a random stream of its own: changing the grade leaves anatomy, light and patient as
they were, and a photograph can be drawn without drawing those before it.

Frames: millimetres from the centre of the field, x to the right and y down as in the picture. Anatomy is sampled for a
right eye (disc to the right of the macula) and mirrored for a left one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dr_platform.errors import DataError

Array = NDArray[Any]  # of floats: 32 bits in pictures, 64 in geometry
Side = Literal["left", "right"]

FIELD_DIAMETER_MM = 13.0  # 45 degrees of retina, at 0.289 mm per degree (Gullstrand's eye)
FIELD_RADIUS_MM = FIELD_DIAMETER_MM / 2
DEFAULT_GRADES = (0.45, 0.20, 0.20, 0.09, 0.06)  # share of ICDR grades 0-4, roughly a screening clinic's
FELLOW_EYE_SHARES_GRADE = 0.7  # otherwise it draws its own, so the shares above hold for both eyes

_IMAGES_PER_BLOCK, _PATIENTS_PER_BLOCK = 5, 3  # two patients with both eyes, one with a single eye
BLOCK, PATIENT, EYE, GRADE, VESSELS, LESIONS, TEXTURE, SENSOR = range(8)  # independent random streams

# What the eye ground looks like through different cameras and pigments, RGB in [0, 1] at full light.
_PALETTE = np.array(
    [
        (0.90, 0.33, 0.16),  # saturated orange-red
        (0.80, 0.50, 0.29),  # tan
        (0.62, 0.30, 0.07),  # dark amber
        (0.98, 0.58, 0.46),  # pale pink
        (0.76, 0.42, 0.35),  # dull rose
        (0.70, 0.47, 0.18),  # olive brown
    ]
)


@dataclass(frozen=True)
class Scene:
    """All that is in one photograph."""

    patient: int  # number within the seed
    side: Side
    grade: int  # ICDR 0-4
    traits: Traits
    eye: Eye
    vessels: list[Strand]  # trunks first
    marks: tuple[Mark, ...]


def sample_scene(
    seed: int, index: int, grades: Sequence[float], grade: int | None, microaneurysms: float = 1.0
) -> Scene:
    """The scene numbered `index` of the collection `seed`; see `phantom` for the arguments."""
    if seed < 0 or index < 0:
        raise DataError(f"phantom seed {seed}, index {index}: both start at 0.")
    if not 0 <= microaneurysms < math.inf:
        raise DataError(f"phantom with {microaneurysms} times its microaneurysms: give a number of at least 0.")
    patient, side, first = _patient_of(seed, index)
    if grade is None:
        grade = _grade(seed, index, first, grades)
    elif grade not in range(5):
        raise DataError(f"phantom grade {grade}: ICDR grades are 0, 1, 2, 3 and 4.")
    traits = _traits(random_stream(seed, PATIENT, patient))
    eye = _eye(random_stream(seed, EYE, index), traits, side)
    vessels = _vessels(random_stream(seed, VESSELS, index), traits, eye, beaded=grade >= 3)
    marks = _marks(random_stream(seed, LESIONS, index, grade), eye, vessels, grade)
    if microaneurysms != 1:
        marks = _with_times(random_stream(seed, LESIONS, index, grade, 1), marks, eye, vessels, microaneurysms)
    return Scene(patient, side, grade, traits, eye, vessels, marks)


# ---- who -----------------------------------------------------------------------------------------------------------


def random_stream(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _patient_of(seed: int, index: int) -> tuple[int, Side, int]:
    """Patient number, side, and the index of that patient's first photograph: O(1), so any index can be drawn alone."""
    block, place = divmod(index, _IMAGES_PER_BLOCK)
    rng = random_stream(seed, BLOCK, block)
    owners = np.repeat(np.arange(_PATIENTS_PER_BLOCK), rng.permutation([2, 2, 1]))
    right_first = rng.random(_PATIENTS_PER_BLOCK) < 0.5
    owner = int(owners[place])
    first = int(np.argmax(owners == owner))
    is_right = bool(right_first[owner]) == (place == first)
    return block * _PATIENTS_PER_BLOCK + owner, "right" if is_right else "left", index - (place - first)


def _grade(seed: int, index: int, first: int, grades: Sequence[float]) -> int:
    shares = np.asarray(grades, dtype=np.float64)
    if shares.shape != (5,) or not np.all(np.isfinite(shares)) or (shares < 0).any() or shares.sum() == 0:
        raise DataError(f"phantom grades {tuple(grades)}: give five shares ≥ 0, one for each of grades 0-4, not all 0.")
    rng = random_stream(seed, GRADE, index, 0)
    if index != first and rng.random() < FELLOW_EYE_SHARES_GRADE:
        rng = random_stream(seed, GRADE, first, 0)
    elif index != first:
        rng = random_stream(seed, GRADE, index, 1)
    return int(np.searchsorted(np.cumsum(shares / shares.sum())[:-1], rng.random(), side="right"))


@dataclass(frozen=True)
class Traits:
    """What the two eyes of a patient, seen by one camera, have in common."""

    ground: Array  # RGB of the eye ground
    tigroid: float  # how far choroidal vessels show through
    calibre: float  # factor on vessel diameters
    tortuosity: float  # radians
    disc_axes: tuple[float, float]  # half axes, mm
    cup: float  # cup to disc ratio
    disc_pallor: float
    macula_depth: float


def _traits(rng: np.random.Generator) -> Traits:
    ground = rng.dirichlet(np.full(len(_PALETTE), 0.35)) @ _PALETTE * rng.uniform(0.85, 1.08)
    height = float(np.clip(rng.normal(0.94, 0.05), 0.84, 1.06))
    return Traits(
        ground=ground,
        tigroid=0.02 + 0.13 * rng.random() ** 3,
        calibre=rng.normal(1.0, 0.08),
        tortuosity=rng.uniform(0.08, 0.24),
        disc_axes=(height * rng.uniform(0.86, 0.97), height),
        cup=rng.uniform(0.25, 0.6),
        disc_pallor=rng.uniform(0.55, 1.0),
        macula_depth=rng.uniform(0.16, 0.42),
    )


@dataclass(frozen=True)
class Eye:
    """One photograph: where the anatomy lies in the field (mm), and how light, lens and sensor treated it."""

    mirror: float  # +1 right eye, -1 left
    disc: tuple[float, float]
    disc_axes: tuple[float, float]
    fovea: tuple[float, float]
    fill: float  # field diameter over frame side
    shift: tuple[float, float]  # of the field's centre, in frame sides
    cut: float  # the sensor ends at this |y| in mm; infinite where the field is whole
    tab_angle: float | None  # orientation tab on the rim, radians
    exposure: float
    vignette: float
    glow: tuple[float, float, float, float]  # x, y, width (mm), strength
    rim: tuple[float, float]  # stray light at the rim: angle, strength
    foveal_reflex: float
    blur_mm: float
    fringe_mm: float  # blue against red at the rim
    noise: float  # standard deviation at full light
    quality: int  # JPEG


def _eye(rng: np.random.Generator, traits: Traits, side: str) -> Eye:
    mirror = 1.0 if side == "right" else -1.0
    tilt = rng.normal(-0.09, 0.05)  # the disc lies a little above the fovea
    between = rng.normal(4.45, 0.15)  # 15.5 degrees
    fovea = np.array((rng.uniform(-2.6, -0.2), rng.normal(0.0, 0.3)))
    disc = fovea + between * np.array((math.cos(tilt), math.sin(tilt)))
    fill = rng.uniform(0.935, 0.98)
    slack = (1 - fill) / 2
    glow_x, glow_y = rng.normal(0, 2.2, 2)
    stray = rng.random() < 0.25
    return Eye(
        mirror=mirror,
        disc=(float(mirror * disc[0]), float(disc[1])),
        disc_axes=traits.disc_axes,
        fovea=(float(mirror * fovea[0]), float(fovea[1])),
        fill=fill,
        shift=(float(rng.uniform(-slack, slack)), float(rng.uniform(-slack, slack))),
        cut=float(rng.uniform(0.80, 0.95) * FIELD_RADIUS_MM if rng.random() < 0.2 else math.inf),
        tab_angle=float(rng.normal(-0.6, 0.05)) if rng.random() < 0.3 else None,
        exposure=float(np.clip(rng.normal(1.0, 0.13), 0.6, 1.25)),
        vignette=float(rng.uniform(0.15, 0.6)),
        glow=(float(glow_x), float(glow_y), float(rng.uniform(2.0, 4.5)), float(rng.uniform(0.05, 0.35))),
        rim=(float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.1, 0.4)) if stray else 0.0),
        foveal_reflex=float(max(0.0, rng.normal(0.0, 0.15))),
        blur_mm=float(rng.uniform(0.008, 0.024)),
        fringe_mm=float(rng.normal(0, 0.012)),
        noise=float(rng.uniform(0.006, 0.02)),
        quality=int(rng.integers(85, 96)),
    )


# ---- vessels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strand:
    """Vessels of one order, [k vessels, n points], in mm."""

    xy: Array  # [k, n, 2]
    heading: Array  # [k, n]
    radius: Array  # [k, n]
    vein: NDArray[np.bool_]  # [k]


@dataclass(frozen=True)
class _Course:
    """How k vessels are to run: from `start` [k, 2], turning by `turn` within about `relax` mm, for `length` mm."""

    start: Array
    heading: Array
    turn: Array
    relax: Array
    length: Array
    radius: Array
    vein: NDArray[np.bool_]


# Trunks of a right eye: heading when leaving the disc, how far it turns, radius in µm. Negative headings point up.
_TRUNKS = np.array(
    [
        (-100, -72, 78, 1),  # superior temporal vein, then its artery, and so on round the disc
        (-112, -58, 56, 0),
        (100, 72, 80, 1),
        (112, 58, 57, 0),
        (-48, 14, 52, 1),
        (-60, 22, 40, 0),
        (48, -14, 54, 1),
        (60, -22, 40, 0),
        (-12, -8, 24, 1),
        (12, 6, 22, 0),
        (-172, 6, 20, 0),  # small ones towards the macula
        (170, -6, 22, 1),
    ],
    dtype=np.float64,
)


def _vessels(rng: np.random.Generator, traits: Traits, eye: Eye, beaded: bool) -> list[Strand]:
    """The vessel tree, trunks first. Headings relax exponentially from one direction to another, which gives the
    temporal arcades their bow round the macula; radii obey Murray's law, r³ = Σ r_child³, at every branching."""
    k = len(_TRUNKS)
    heading = np.radians(_TRUNKS[:, 0] + rng.normal(0, 5, k))
    turn = np.radians(_TRUNKS[:, 1] + rng.normal(0, 6, k))
    radius = _TRUNKS[:, 2] * 1e-3 * traits.calibre * rng.normal(1, 0.07, k)
    start = np.array((eye.mirror * eye.disc[0] + 0.05, eye.disc[1])) + rng.normal(0, (0.06, 0.10), (k, 2))
    length = np.where(radius > 0.03, 11.0, 4.2)
    strands: list[Strand] = []
    vein = _TRUNKS[:, 3] > 0
    relax = np.where(radius > 0.03, rng.uniform(2.2, 3.2, k), 1.5)
    for order, (points, branches) in enumerate(((64, 7), (32, 4), (20, 3), (12, 0))):
        course = _Course(start, heading, turn, relax, length, radius, vein)
        strand, radius_at, ratio = _grow(rng, course, points, branches, traits.tortuosity)
        strands.append(strand)
        if not branches:
            break
        # Children leave in turn to either side and then bend half way back, except that none starts beyond the field.
        at = np.clip(radius_at * (points - 1), 1, points - 2).astype(int)
        rows = np.arange(len(start))[:, None]
        child = ratio * strand.radius[rows, at]
        side = np.where((np.arange(branches) + rng.integers(0, 2, (len(start), 1))) % 2, 1.0, -1.0)
        angle = side * rng.uniform(0.45, 1.15, child.shape)
        keep = (child > 0.007) & (np.hypot(*np.moveaxis(_to_field(strand.xy[rows, at], eye), -1, 0)) < 6.6)
        start, heading = strand.xy[rows, at][keep], (strand.heading[rows, at] + angle)[keep]
        turn, radius = (-angle * rng.uniform(0.2, 0.8, child.shape))[keep], child[keep]
        vein = np.broadcast_to(vein[:, None], child.shape)[keep]
        relax = np.full(len(start), 1.2)
        length = np.clip(radius * rng.uniform(60, 130, len(start)), 0.5, 6.0 / (order + 1))
    return [_finish(strand, eye, beaded) for strand in strands]


def _grow(
    rng: np.random.Generator, course: _Course, points: int, branches: int, tortuosity: float
) -> tuple[Strand, Array, Array]:
    """One order of vessels; with the places (fraction of length) and radius ratios of their branches, [k, branches]."""
    k = len(course.start)
    step = course.length / (points - 1)
    s = np.arange(points) * step[:, None]  # [k, n]
    wave = 2 * math.pi / rng.uniform(1.2, 5.0, (k, 3, 1))
    phase = rng.uniform(0, 2 * math.pi, (k, 3, 1))
    wobble = tortuosity * np.sin(wave * s[:, None] + phase).sum(axis=1) * (1 - np.exp(-s / 0.6))  # none at the start
    theta = course.heading[:, None] + course.turn[:, None] * (1 - np.exp(-s / course.relax[:, None])) + wobble
    moves = np.stack((np.cos(theta), np.sin(theta)), axis=-1) * step[:, None, None]
    xy = course.start[:, None] + np.cumsum(moves, axis=1) - moves
    at = (np.arange(branches) + rng.uniform(0.25, 0.95, (k, branches))) / max(branches, 1)
    ratio = rng.uniform(0.35, 0.8, (k, branches))
    passed = np.arange(points)[None, :, None] / (points - 1) > at[:, None]
    after = np.prod(np.where(passed, np.cbrt(1 - ratio[:, None] ** 3), 1.0), axis=2)
    return Strand(xy, theta, course.radius[:, None] * after, course.vein), at, ratio


def _to_field(xy: Array, eye: Eye) -> Array:
    """Right-eye coordinates to the picture's."""
    return xy * np.array((eye.mirror, 1.0))


def _finish(strand: Strand, eye: Eye, beaded: bool) -> Strand:
    """Mirrors, beads the veins, and tapers what runs into the foveal avascular zone to nothing."""
    xy = _to_field(strand.xy, eye)
    off_fovea = np.hypot(xy[..., 0] - eye.fovea[0], xy[..., 1] - eye.fovea[1])
    radius = strand.radius * np.clip((off_fovea - 0.3) / 0.4, 0, 1)
    if beaded:
        along = np.cumsum(np.hypot(*np.moveaxis(np.diff(xy, axis=1, prepend=xy[:, :1]), -1, 0)), axis=1)
        radius = radius * np.where(strand.vein[:, None], 1 + 0.28 * np.sin(2 * math.pi * along / 0.55), 1.0)
    return Strand(xy, strand.heading, radius, strand.vein)


# ---- lesions -------------------------------------------------------------------------------------------------------


_MICROANEURYSM_UM = (25, 100)  # range of diameters


@dataclass(frozen=True)
class Mark:
    """A lesion in mm: discs that make it up, [n, 3] as x, y, radius, and the circle that holds them."""

    kind: str
    x: float
    y: float
    discs: Array

    @property
    def diameter(self) -> float:
        reach = np.hypot(self.discs[:, 0] - self.x, self.discs[:, 1] - self.y) + self.discs[:, 2]
        return 2 * float(reach.max())


def _marks(rng: np.random.Generator, eye: Eye, vessels: list[Strand], grade: int) -> tuple[Mark, ...]:
    """The lesions of an ICDR grade (Wilkinson et al. 2003): none; microaneurysms only; more than those; haemorrhages in
    all quadrants (with the beading of `_vessels`); new vessels or blood in front of the retina."""
    if grade == 0:
        return ()
    free = _free_places(rng, eye, vessels)
    marks: list[Mark] = []

    def discs(kind: str, many: int, low_um: float, high_um: float) -> None:
        for x, y in free(many):
            marks.append(Mark(kind, x, y, np.array([(x, y, rng.uniform(low_um, high_um) / 2000)])))

    low, high = ((1, 9), (5, 18), (14, 34), (8, 26))[grade - 1]
    discs("microaneurysm", int(rng.integers(low, high)), *_MICROANEURYSM_UM)
    if grade == 1:
        return tuple(marks)
    discs("dot_haemorrhage", int(rng.integers(*((2, 9), (20, 41), (8, 25))[grade - 2])), 100, 260)
    for x, y in free(int(rng.integers(*((1, 4), (9, 19), (4, 12))[grade - 2]))):
        marks.append(_blot(rng, x, y, eye))
    for _ in range(int(rng.integers(*((1, 3), (0, 3), (0, 3))[grade - 2]))):
        marks.extend(_exudates(rng, eye))
    for x, y in free(int(rng.integers(*((0, 2), (2, 6), (1, 4))[grade - 2])), within=4.2):
        marks.append(_blobs("cotton_wool_spot", x, y, rng.normal(0, 0.14, (5, 2)), rng.uniform(0.13, 0.26, 5)))
    if grade == 4:
        marks.extend(_proliferation(rng, eye, free))
    return tuple(marks)


def _with_times(
    rng: np.random.Generator, marks: tuple[Mark, ...], eye: Eye, vessels: list[Strand], times: float
) -> tuple[Mark, ...]:
    """The marks with so many times as many microaneurysms: the first of them, or all and further ones."""
    own = [mark for mark in marks if mark.kind == "microaneurysm"]
    wanted = round(times * len(own))
    more = _free_places(rng, eye, vessels)(max(0, wanted - len(own)))
    sizes = rng.uniform(*_MICROANEURYSM_UM, len(more)) / 2000
    further = [Mark("microaneurysm", x, y, np.array([(x, y, r)])) for (x, y), r in zip(more, sizes, strict=True)]
    rest = [mark for mark in marks if mark.kind != "microaneurysm"]
    return (*own[:wanted], *further, *rest)


def _lit(xy: Array, eye: Eye) -> NDArray[np.bool_]:
    """Which places [n, 2] lie well inside the field and off the disc."""
    off_disc = np.hypot(xy[:, 0] - eye.disc[0], xy[:, 1] - eye.disc[1]) > 1.25
    return (np.hypot(xy[:, 0], xy[:, 1]) < 0.92 * FIELD_RADIUS_MM) & (np.abs(xy[:, 1]) < eye.cut - 0.3) & off_disc


def _free_places(rng: np.random.Generator, eye: Eye, vessels: list[Strand]) -> Callable[..., list[tuple[float, float]]]:
    """A sampler of places in the lit field that no vessel wider than 40 µm crosses."""
    wide = np.concatenate([strand.xy[strand.radius > 0.02] for strand in vessels])
    tree = cKDTree(wide)

    def free(many: int, within: float = math.inf, beyond: float = 0.0) -> list[tuple[float, float]]:
        tries = 20 * many + 60
        radius = 0.92 * FIELD_RADIUS_MM * np.sqrt(rng.random(tries))
        angle = rng.uniform(0, 2 * math.pi, tries)
        xy = np.column_stack((radius * np.cos(angle), radius * np.sin(angle)))
        off_fovea = np.hypot(xy[:, 0] - eye.fovea[0], xy[:, 1] - eye.fovea[1])
        fits = _lit(xy, eye) & (tree.query(xy)[0] > 0.15) & (off_fovea < within) & (off_fovea > beyond)
        return [(float(x), float(y)) for x, y in xy[fits][:many]]

    return free


def _blobs(kind: str, x: float, y: float, offsets: Array, radii: Array) -> Mark:
    return Mark(kind, x, y, np.column_stack((x + offsets[:, 0], y + offsets[:, 1], radii)))


def _blot(rng: np.random.Generator, x: float, y: float, eye: Eye) -> Mark:
    """A round-edged blot, or a flame drawn out along the nerve fibres, which run towards the disc."""
    if rng.random() < 0.6:
        return _blobs("blot_haemorrhage", x, y, rng.normal(0, 0.07, (9, 2)), rng.uniform(0.04, 0.15, 9))
    along = math.atan2(eye.disc[1] - y, eye.disc[0] - x) + rng.normal(0, 0.2)
    t = np.linspace(-1, 1, 15)
    half = rng.uniform(0.2, 0.45)
    offsets = (half * t[:, None]) * (math.cos(along), math.sin(along)) + rng.normal(0, 0.02, (15, 2))
    return _blobs("flame_haemorrhage", x, y, offsets, 0.08 * np.sqrt(1 - 0.85 * t**2) * rng.uniform(0.8, 1.1, 15))


def _exudates(rng: np.random.Generator, eye: Eye) -> list[Mark]:
    """A cluster of hard exudates in the posterior pole; half of the clusters are rings (circinate)."""
    many = int(rng.integers(8, 32))
    away, turn = rng.uniform(0.7, 3.0), rng.uniform(0, 2 * math.pi)
    centre = np.array(eye.fovea) + away * np.array((math.cos(turn), math.sin(turn)))
    ring = rng.random() < 0.5
    radius = rng.normal(rng.uniform(0.4, 0.8), 0.08, many) if ring else np.abs(rng.normal(0, 0.4, many))
    angle = rng.uniform(0, rng.uniform(3.5, 6.3) if ring else 6.3, many)
    xy = centre + radius[:, None] * np.column_stack((np.cos(angle), np.sin(angle)))
    size = 0.012 + 0.075 * rng.random(many) ** 2
    return [Mark("hard_exudate", float(x), float(y), np.array([(x, y, r)]))
            for (x, y), r, lit in zip(xy, size, _lit(xy, eye), strict=True) if lit]  # fmt: skip


def _proliferation(rng: np.random.Generator, eye: Eye, free: Callable[..., list[tuple[float, float]]]) -> list[Mark]:
    """Tufts of new vessels on the disc or elsewhere; on some, blood before the retina and scars of laser treatment."""
    marks = []
    places = free(int(rng.integers(1, 3)), beyond=2.0)
    if rng.random() < 0.5:
        places.append((eye.disc[0] + rng.normal(0, 0.3), eye.disc[1] + rng.normal(0, 0.3)))
    for x, y in places:
        heading = rng.uniform(0, 2 * math.pi, (9, 1)) + np.cumsum(rng.normal(0.05, 0.45, (9, 45)), axis=1)
        path = np.cumsum(np.stack((np.cos(heading), np.sin(heading)), axis=-1) * 0.026, axis=1).reshape(-1, 2)
        marks.append(_blobs("neovascularisation", x, y, path, np.full(len(path), rng.uniform(0.010, 0.017))))
    if rng.random() < 0.5:
        for x, y in free(1, within=4.5):
            marks.append(_boat(rng, x, y))
    if rng.random() < 0.4:
        for x, y in free(int(rng.integers(25, 80)), beyond=3.4):
            marks.append(Mark("laser_scar", x, y, np.array([(x, y, rng.uniform(0.11, 0.24))])))
    return marks


def _boat(rng: np.random.Generator, x: float, y: float) -> Mark:
    """Blood settled between retina and vitreous: a level upper edge over half an ellipse, filled with small discs."""
    half, depth, brush = rng.uniform(0.6, 1.3), rng.uniform(0.4, 0.8), 0.1
    u, v = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(0, 1, 17))
    inside = np.hypot(u, v) <= 1
    offsets = np.column_stack((u[inside] * (half - brush), v[inside] * (depth - brush) - depth / 2 + brush))
    return _blobs("preretinal_haemorrhage", x, y, offsets, np.full(len(offsets), brush))
