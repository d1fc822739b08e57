"""Synthetic colour fundus photographs whose truth is known: the embedded data set, and the ground truth for tests.

`phantom_scene` samples a scene in millimetres; here it is drawn on whatever pixel grid was asked for. Vessels and
lesions are drawn with one brush, `_splat`, whose coverage is analytic, so that nothing is rendered large to be shrunk:
the cost follows the size, and what is smaller than a pixel is faint, not lost. Only sensor noise and the JPEG round
trip belong to a size.

Scale: a 45° field is taken as 13.0 mm of retina. It fills about 96 % of the frame, so a 512-pixel picture has 26 µm per
pixel and a microaneurysm of 25-100 µm covers 1-4 pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dr_platform.data.phantom_scene import (
    DEFAULT_GRADES,
    FIELD_DIAMETER_MM,
    FIELD_RADIUS_MM,
    SENSOR,
    TEXTURE,
    Array,
    Eye,
    Mark,
    Scene,
    Side,
    Strand,
    Traits,
    random_stream,
    sample_scene,
)
from dr_platform.errors import DataError

__all__ = ["DEFAULT_GRADES", "Lesion", "Phantom", "phantom"]

# RGB, 1 at white under full light. Blood is what it leaves of the light below it: it absorbs green most.
_VEIN = (0.74, 0.38, 0.38)
_ARTERY = (0.90, 0.54, 0.46)
_FRESH_BLOOD = (0.68, 0.32, 0.34)
# The rest hides what is below it. The disc outshines white, as it saturates most photographs.
_POOLED_BLOOD = (0.40, 0.05, 0.03)
_EXUDATE = (1.00, 0.87, 0.36)
_COTTON_WOOL = (1.00, 0.86, 0.64)
_DISC = (1.10, 0.78, 0.40)
_CUP = (1.12, 0.96, 0.56)
_SCAR = (0.93, 0.76, 0.48)
_SCAR_PIGMENT = (0.20, 0.14, 0.10)


@dataclass(frozen=True)
class Lesion:
    """One lesion as drawn. `diameter` is that of the circle around (x, y) which holds the whole of it."""

    kind: str
    x_px: float
    y_px: float
    diameter_px: float
    diameter_um: float


@dataclass(frozen=True, eq=False)
class Phantom:
    """A photograph and the truth about it. Positions are (x, y) in pixels, pixel centres at integers."""

    image: NDArray[np.uint8]  # [size, size, 3], decoded from `jpeg`
    jpeg: bytes  # the file as a camera would have stored it
    seed: int
    index: int
    grade: int  # ICDR 0-4
    eye: Side
    patient: str  # unique over seeds
    fov_xy: tuple[float, float]
    fov_radius: float
    disc_xy: tuple[float, float]
    disc_radius: float  # mean of the two half axes
    macula_xy: tuple[float, float]
    um_per_px: float
    lesions: tuple[Lesion, ...]

    def truth(self) -> dict[str, object]:
        """Everything but the picture, as values that JSON can hold."""
        facts = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("image", "jpeg", "lesions")}
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}
        return facts | {"size": int(self.image.shape[0]), "lesions": [asdict(lesion) for lesion in self.lesions]}


def phantom(
    seed: int,
    index: int,
    size: int,
    *,
    grades: Sequence[float] = DEFAULT_GRADES,
    grade: int | None = None,
    microaneurysms: float = 1.0,
) -> Phantom:
    """The photograph numbered `index` of the collection `seed`, `size` pixels square, and its truth.

    grades: relative frequency of ICDR grades 0-4 in the collection, five values ≥ 0.
    grade: fixes this photograph's grade instead; anatomy, light and patient stay what they were.
    microaneurysms: how many times as many of them are drawn, everything else being the same; fewer are among more.
    The same arguments give the same bytes. Raises DataError on a negative seed, index or number of microaneurysms, a
    size below 16, bad grades.
    """
    if size < 16:
        raise DataError(f"phantom size is {size} pixels; at least 16 are needed.")
    scene = sample_scene(seed, index, grades, grade, microaneurysms)
    eye = scene.eye
    view = _View(size, eye)
    light = _draw(view, scene, random_stream(seed, TEXTURE, index))
    jpeg = _expose(light, eye, random_stream(seed, SENSOR, index, size))
    return Phantom(
        image=np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")),
        jpeg=jpeg,
        seed=seed,
        index=index,
        grade=scene.grade,
        eye=scene.side,
        patient=f"phantom-{seed}-{scene.patient:06d}",
        fov_xy=view.xy(0.0, 0.0),
        fov_radius=view.px_per_mm * FIELD_RADIUS_MM,
        disc_xy=view.xy(*eye.disc),
        disc_radius=view.px_per_mm * sum(eye.disc_axes) / 2,
        macula_xy=view.xy(*eye.fovea),
        um_per_px=1000 / view.px_per_mm,
        lesions=tuple(view.lesion(mark) for mark in scene.marks),
    )


# ---- picture -------------------------------------------------------------------------------------------------------


class _View:
    """The pixel grid laid over a scene."""

    def __init__(self, size: int, eye: Eye) -> None:
        self.size = size
        self.px_per_mm = eye.fill * size / FIELD_DIAMETER_MM
        self.centre = (size * (0.5 + eye.shift[0]) - 0.5, size * (0.5 + eye.shift[1]) - 0.5)
        grid = np.arange(size, dtype=np.float32)
        self.x = ((grid - self.centre[0]) / self.px_per_mm)[None, :]  # mm, [1, size]
        self.y = ((grid - self.centre[1]) / self.px_per_mm)[:, None]  # mm, [size, 1]

    def xy(self, x: float, y: float) -> tuple[float, float]:
        return float(self.centre[0] + x * self.px_per_mm), float(self.centre[1] + y * self.px_per_mm)

    def lesion(self, mark: Mark) -> Lesion:
        x, y = self.xy(mark.x, mark.y)
        return Lesion(mark.kind, x, y, mark.diameter * self.px_per_mm, mark.diameter * 1000)

    def edge(self, inside_mm: Array, soft_mm: float = 0.0) -> Array:
        """Coverage of a pixel that lies `inside_mm` within a border, blurred over `soft_mm` or at least one pixel."""
        return np.clip(inside_mm / max(soft_mm, 1 / self.px_per_mm) + 0.5, 0, 1)

    def bump(self, xy: tuple[float, float], sigma: float) -> Array:
        """A Gaussian of height 1, sigma in mm."""
        return np.exp(-0.5 * ((self.y - xy[1]) / sigma) ** 2) * np.exp(-0.5 * ((self.x - xy[0]) / sigma) ** 2)


def _splat(view: _View, discs: Array, strength: Array | float = 1.0, line: bool = False) -> Array:
    """Coverage [size, size] in [0, 1] of the union of discs [n, 3] (x, y, radius in mm), times their strength.

    A disc below a pixel covers the share of it that its area (`line`: a band of its diameter) has: no brighter.
    """
    r = discs[:, 2] * view.px_per_mm
    reach = np.ceil(r + 0.5).astype(np.int64)
    pad = int(reach.max(initial=0))
    x, y = (discs[:, i] * view.px_per_mm + view.centre[i] + pad for i in (0, 1))
    side = view.size + 2 * pad
    on = (r > 0) & (x >= pad) & (x < side - pad - 1) & (y >= pad) & (y < side - pad - 1)
    peak = np.minimum(1, 2 * r if line else math.pi * r**2) * strength
    canvas = np.zeros(side * side, np.float32)
    for h in np.unique(reach[on]):
        pick = on & (reach == h)
        cx, cy = np.rint(x[pick]).astype(np.int64), np.rint(y[pick]).astype(np.int64)
        span = np.arange(-h, h + 1)
        dx, dy = cx[:, None] + span - x[pick, None], cy[:, None] + span - y[pick, None]
        away = np.sqrt((dy**2)[:, :, None] + (dx**2)[:, None, :]).astype(np.float32)
        cover = np.clip(r[pick, None, None] - away + 0.5, 0, 1) * peak[pick, None, None]
        where = ((cy[:, None] + span) * side)[:, :, None] + (cx[:, None] + span)[:, None, :]
        np.maximum.at(canvas, where.ravel(), cover.astype(np.float32).ravel())
    return canvas.reshape(side, side)[pad : side - pad, pad : side - pad]


def _trace(view: _View, strands: list[Strand], veins: bool) -> Array:
    """Discs [n, 3] close enough together to draw the chosen vessels as bands."""
    discs = []
    for strand in strands:
        picked = strand.vein == veins
        if not picked.any():
            continue
        line = np.concatenate((strand.xy[picked], strand.radius[picked, :, None]), axis=2)  # [k, n, 3]
        moves = np.diff(line, axis=1)
        step_px = np.hypot(moves[..., 0], moves[..., 1]).max() * view.px_per_mm
        spacing_px = 0.6 + 0.2 * line[..., 2].max() * view.px_per_mm
        parts = math.ceil(step_px / spacing_px)
        if parts == 1:
            discs.append(line[:, :: max(1, int(spacing_px / step_px))].reshape(-1, 3))
            continue
        along = (np.arange(parts) / parts)[:, None]
        discs.append((line[:, :-1, None] + moves[:, :, None] * along).reshape(-1, 3))
    return np.concatenate(discs)


def _draw(view: _View, scene: Scene, rng: np.random.Generator) -> Array:
    """Light on the sensor, [3, size, size], 1 at white."""
    eye, traits = scene.eye, scene.traits
    texture = _texture(view.size, rng) * (1 - 0.7 * view.bump(eye.fovea, 1.8))
    macula = traits.macula_depth * (view.bump(eye.fovea, 0.95) + 0.5 * view.bump(eye.fovea, 0.3))
    halo = 0.12 * view.bump(eye.disc, 1.6)
    ground = np.stack([
        level * (1 + traits.tigroid * tint * texture) * (1 - depth * macula + halo)
        for level, tint, depth in zip(traits.ground, (0.7, 1.3, 1.2), (0.55, 1.0, 1.05), strict=True)
    ]).astype(np.float32)  # fmt: skip
    rgb = _optic_disc(view, eye, traits, ground)
    for veins, left in ((True, _VEIN), (False, _ARTERY)):
        discs = _trace(view, scene.vessels, veins)
        depth = 1 - np.exp(-discs[:, 2] / 0.022)
        rgb *= 1 - _splat(view, discs, depth, line=True) * (1 - _tone(left))
        wide = discs[discs[:, 2] * view.px_per_mm > 1.1] * (1, 1, 0.25)
        rgb += 0.16 * _splat(view, wide, line=True) * _tone(traits.ground)
    rgb = _blemish(view, rgb, scene.marks)
    rgb += eye.foveal_reflex * view.bump(eye.fovea, 0.09)
    return _illuminate(view, eye, rgb)


def _tone(colour: Sequence[float] | Array) -> Array:
    return np.asarray(colour, np.float32)[:, None, None]


def _texture(size: int, rng: np.random.Generator) -> Array:
    """Choroid seen through the pigment epithelium, about [-1, 1]: clouds, and ridges drawn out along one direction.

    Noise on a coarse lattice, turned, stretched and enlarged in one affine resampling; bands finer than the pixels are
    left out."""
    texture = np.zeros((size, size), np.float32)
    slant = rng.uniform(0, math.pi)
    for cells, stretch, weight, ridged in ((6, 1.0, 0.35, False), (44, 2.4, 0.6, True), (60, 2.0, 0.4, True),
                                           (150, 1.0, 0.16, False)):  # fmt: skip
        noise = Image.fromarray(rng.standard_normal((2 * cells, 2 * cells), dtype=np.float32))
        angle = slant + rng.normal(0, 0.5)
        if cells > size:
            continue
        c, s, step = math.cos(angle), math.sin(angle), cells / size
        half = size / 2
        a, b, d, e = c * step / stretch, s * step / stretch, -s * step, c * step
        turned = (a, b, cells - (a + b) * half, d, e, cells - (d + e) * half)
        band = np.asarray(noise.transform((size, size), Image.Transform.AFFINE, turned, Image.Resampling.BICUBIC))
        texture += weight * (2 * np.exp(-4 * band**2) - 1 if ridged else band)
    return np.clip(texture, -1.3, 1.3)


def _optic_disc(view: _View, eye: Eye, traits: Traits, ground: Array) -> Array:
    """The ground with the disc on it, its colour in part the ground's, so that it stays in the camera's palette."""
    x, y = view.x - eye.disc[0], view.y - eye.disc[1]
    a, b = eye.disc_axes
    within = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    cup_x = x + 0.12 * a * eye.mirror  # the cup lies a little towards the temple
    in_cup = np.sqrt((cup_x / a) ** 2 + (y / b) ** 2)
    rim = view.edge((1 - within) * a, 0.16)
    cup = view.edge((traits.cup - in_cup) * a, 0.3) * rim
    nasal = 1 - 0.10 * eye.mirror * np.clip(x / a, -1, 1)
    tint = np.clip(traits.ground, 0.02, 1)
    colour = _tone((0.6 * tint**0.6 + 0.4 * np.array(_DISC)) * (0.92 + 0.12 * traits.disc_pallor))
    pale = _tone(0.5 * tint**0.35 + 0.58 * np.array(_CUP))
    pinker = np.stack(np.broadcast_arrays(np.ones_like(nasal), nasal, nasal))  # [3, 1, size]
    rgb = ground + rim * (colour * pinker - ground)
    return rgb + cup * 0.9 * traits.disc_pallor * (pale - rgb)


def _soften(cover: Array, sigma_px: float) -> Array:
    return ndimage.gaussian_filter(cover, sigma_px, truncate=3) if sigma_px > 0.3 else cover


def _blemish(view: _View, rgb: Array, marks: tuple[Mark, ...]) -> Array:
    """Draws the lesions: blood absorbs what is below it, everything else hides it."""
    inks = {  # kind: colour, opacity, blur in mm, absorbs
        "laser_scar": (_SCAR, 0.6, 0.04, False),
        "cotton_wool_spot": (_COTTON_WOOL, 0.75, 0.10, False),
        "hard_exudate": (_EXUDATE, 0.85, 0.01, False),
        "microaneurysm": (_FRESH_BLOOD, 0.95, 0.0, True),
        "dot_haemorrhage": (_FRESH_BLOOD, 0.95, 0.025, True),
        "blot_haemorrhage": (_FRESH_BLOOD, 0.95, 0.05, True),
        "flame_haemorrhage": (_FRESH_BLOOD, 0.9, 0.035, True),
        "neovascularisation": (_ARTERY, 0.8, 0.0, True),
        "preretinal_haemorrhage": (_POOLED_BLOOD, 0.93, 0.05, False),
    }
    for kind, (colour, opacity, soft, absorbs) in inks.items():
        discs = [mark.discs for mark in marks if mark.kind == kind]
        if not discs:
            continue
        every = np.concatenate(discs)
        cover = opacity * _soften(_splat(view, every), soft * view.px_per_mm)
        rgb = rgb * (1 - cover * (1 - _tone(colour))) if absorbs else rgb + cover * (_tone(colour) - rgb)
        if kind == "laser_scar":
            core = np.column_stack((every[:, :2], every[:, 2] * 0.5 * (np.arange(len(every)) % 4 == 0)))
            rgb = rgb + 0.6 * _soften(_splat(view, core), 0.03 * view.px_per_mm) * (_tone(_SCAR_PIGMENT) - rgb)
    return rgb


def _illuminate(view: _View, eye: Eye, rgb: Array) -> Array:
    """Flash, stray light and the camera's mask."""
    rho = np.minimum(np.sqrt(view.x**2 + view.y**2) / FIELD_RADIUS_MM, 1.1)
    glow = eye.glow[3] * view.bump(eye.glow[:2], eye.glow[2])
    light = eye.exposure * (1 - eye.vignette * (0.6 * rho**2 + 0.4 * rho**6)) + glow
    haze = 0.12 * glow
    if eye.rim[1]:
        facing = np.clip((view.x * math.cos(eye.rim[0]) + view.y * math.sin(eye.rim[0])) / FIELD_RADIUS_MM, 0, 1)
        haze = haze + eye.rim[1] * facing**2 * np.clip((rho - 0.86) / 0.14, 0, 1) ** 2
    mask = view.edge((1 - rho) * FIELD_RADIUS_MM)
    if eye.tab_angle is not None:
        tab = 1.005 * FIELD_RADIUS_MM * np.array((math.cos(eye.tab_angle), math.sin(eye.tab_angle)))
        mask = np.maximum(mask, view.edge(0.16 - np.hypot(view.x - tab[0], view.y - tab[1])))
    if math.isfinite(eye.cut):
        mask = mask * view.edge(eye.cut - np.abs(view.y))
    light = light * (1 + _tone((-0.15, 0.1, 0.25)) * (light - 1))  # what is dim is also redder
    return (rgb * light + haze * _tone((1.0, 0.86, 0.66))) * mask


def _expose(light: Array, eye: Eye, rng: np.random.Generator) -> bytes:
    """What the camera writes: blur, colour fringe, shot and read noise, JPEG."""
    size = light.shape[-1]
    px_per_mm = eye.fill * size / FIELD_DIAMETER_MM
    light = np.maximum(light, 0).astype(np.float32)
    if eye.blur_mm * px_per_mm > 0.3:
        light = ndimage.gaussian_filter(light, (0, eye.blur_mm * px_per_mm, eye.blur_mm * px_per_mm), truncate=3)
    shift = eye.fringe_mm * px_per_mm
    near = int(math.copysign(1, shift))
    light[2] += min(abs(shift), 1.0) * (np.roll(light[2], near, axis=1) - light[2])
    grain = min(1.0, max(0.25, size / 512))  # pixels that are larger on the retina gather more photons
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    light += grain * noise * (eye.noise * np.sqrt(light) + 0.004)
    pixels = np.rint(np.clip(light + 0.012, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=eye.quality, subsampling=0)
    return file.getvalue()
