"""The leak monitor: what its statistics measure, what it finds in transformed photographs, how often it errs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from shared_data import FUNDUS_MINI, needs_photographs
from torch import Tensor

from dr_platform.data.phantom import phantom
from dr_platform.gan.leaks import TRANSFORMS, find_leaks, leak_statistics

SIZE = 64
POOL = 256  # photographs, about half of them of right eyes
SHAPE = ("field_x", "field_y", "field_radius", "field_aspect", "field_slant", "disc_x", "disc_upright", "disc_slant")


@functools.cache
def collection() -> tuple[Tensor, Tensor]:
    """Photographs [POOL, 3, SIZE, SIZE] in [-1, 1], and whether they show a right eye [POOL]."""
    phantoms = [phantom(5, index, SIZE) for index in range(POOL)]
    images = torch.from_numpy(np.stack([each.image for each in phantoms])).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([each.eye == "right" for each in phantoms])


def photographs() -> Tensor:
    return collection()[0]


def photographs_for(transform: str) -> Tensor:
    """All, or those of right eyes for the flip: a side means something in one eye only."""
    images, right = collection()
    return images[right] if transform == "flip" else images


@functools.cache
def statistics_of_photographs() -> dict[str, Tensor]:
    return leak_statistics(photographs())


def halves(images: Tensor, seed: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Two disjoint samples."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:size]], images[order[size : 2 * size]]


# --- The published transforms, one by one, as a generator that draws them would --------------------------------------

GREY = torch.full((3, 3), 1 / 3)  # projects colours onto grey
TURN = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # its exponential turns hues
Draw = Callable[[Tensor, torch.Generator], Tensor]


def sample(images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, move: Tensor | None = None) -> Tensor:
    """`images` sampled at linearly transformed places, mirrored beyond their borders. move: [n, 2] half widths."""
    move = torch.zeros(len(images), 2) if move is None else move
    matrix = torch.stack([xx, xy, move[:, 0], yx, yy, move[:, 1]], dim=1).unflatten(1, (2, 3))
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def recolour(images: Tensor, matrices: Tensor) -> Tensor:
    return torch.einsum("nij,njhw->nihw", matrices, images)


def hue_matrices(angles: Tensor) -> Tensor:
    turn = angles[:, None, None]
    return turn.cos() * torch.eye(3) + turn.sin() * TURN + (1 - turn.cos()) * GREY


def flip(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=rng) < 0.5, x.flip(3), x)


def rotate90(x: Tensor, rng: torch.Generator) -> Tensor:
    quarters = torch.randint(4, (len(x),), generator=rng).tolist()
    return torch.stack([image.rot90(quarter, (1, 2)) for image, quarter in zip(x, quarters, strict=True)])


def integer_shift(x: Tensor, rng: torch.Generator) -> Tensor:
    pixels = ((torch.rand(len(x), 2, generator=rng) * 2 - 1) * 0.125 * SIZE).round()
    one, zero = torch.ones(len(x)), torch.zeros(len(x))
    return sample(x, one, zero, zero, one, pixels * 2 / SIZE)


def fractional_shift(x: Tensor, rng: torch.Generator) -> Tensor:
    one, zero = torch.ones(len(x)), torch.zeros(len(x))
    return sample(x, one, zero, zero, one, 0.125 * 2 * torch.randn(len(x), 2, generator=rng))


def scale(x: Tensor, rng: torch.Generator) -> Tensor:
    factor, zero = torch.exp2(0.2 * torch.randn(len(x), generator=rng)), torch.zeros(len(x))
    return sample(x, 1 / factor, zero, zero, 1 / factor)


def rotate(x: Tensor, rng: torch.Generator) -> Tensor:
    angle = (torch.rand(len(x), generator=rng) * 2 - 1) * math.pi
    return sample(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def aniso(x: Tensor, rng: torch.Generator) -> Tensor:
    factor, zero = torch.exp2(0.2 * torch.randn(len(x), generator=rng)), torch.zeros(len(x))
    return sample(x, 1 / factor, zero, zero, factor)


def brightness(x: Tensor, rng: torch.Generator) -> Tensor:
    return x + 0.2 * torch.randn(len(x), 1, 1, 1, generator=rng)


def contrast(x: Tensor, rng: torch.Generator) -> Tensor:
    return x * torch.exp2(0.5 * torch.randn(len(x), 1, 1, 1, generator=rng))


def lumaflip(x: Tensor, rng: torch.Generator) -> Tensor:
    flipped = torch.rand(len(x), 1, 1, generator=rng) < 0.5
    return recolour(x, torch.eye(3) - 2 * flipped * GREY)


def hue(x: Tensor, rng: torch.Generator) -> Tensor:
    return recolour(x, hue_matrices((torch.rand(len(x), generator=rng) * 2 - 1) * math.pi))


def saturation(x: Tensor, rng: torch.Generator) -> Tensor:
    factor = torch.exp2(torch.randn(len(x), 1, 1, generator=rng))
    return recolour(x, GREY + factor * (torch.eye(3) - GREY))


def band_filter(x: Tensor, rng: torch.Generator) -> Tensor:
    bands, rest = [], x
    for reach in (1, 2, 4):
        smooth = F.avg_pool2d(F.pad(rest, (reach,) * 4, mode="reflect"), 2 * reach + 1, stride=1)
        bands.append(rest - smooth)
        rest = smooth
    gains = torch.exp2(torch.randn(len(x), 4, generator=rng))
    gains = gains / (gains.square() @ torch.tensor([1.0, 1, 1, 10]) / 13).sqrt()[:, None]
    return sum(band * gain[:, None, None, None] for band, gain in zip([*bands, rest], gains.T, strict=True))


def noise(x: Tensor, rng: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=rng) * torch.randn(len(x), 1, 1, 1, generator=rng).abs() * 0.1


def cutout(x: Tensor, rng: torch.Generator) -> Tensor:
    centre = torch.rand(len(x), 2, 1, generator=rng)
    across, down = ((torch.arange(SIZE) + 0.5) / SIZE - centre).abs().lt(0.25).unbind(dim=1)
    return x * ~(across[:, None, None, :] & down[:, None, :, None])


PUBLISHED: dict[str, tuple[str, Draw]] = {
    "flip": ("flip", flip),
    "rotate90": ("rotate90", rotate90),
    "integer shift": ("shift", integer_shift),
    "fractional shift": ("shift", fractional_shift),
    "scale": ("scale", scale),
    "rotate": ("rotate", rotate),
    "aniso": ("aniso", aniso),
    "brightness": ("brightness", brightness),
    "contrast": ("contrast", contrast),
    "lumaflip": ("lumaflip", lumaflip),
    "hue": ("hue", hue),
    "saturation": ("saturation", saturation),
    "filter": ("filter", band_filter),
    "noise": ("noise", noise),
    "cutout": ("cutout", cutout),
}


# --- What the statistics measure --------------------------------------------------------------------------------------


def plain_fundus(x: float = 0.0, y: float = 0.0, radius: float = 0.7, disc: float = 0.4) -> Tensor:
    """[1, 3, SIZE, SIZE]: an orange field on black, a bright disc on its right. Positions in half widths."""
    axis = (torch.arange(SIZE) * 2 + 1) / SIZE - 1
    image = torch.full((3, SIZE, SIZE), -1.0)
    for at, size, colour in ((x, radius, (0.4, -0.2, -0.6)), (x + disc, 0.12, (0.9, 0.7, 0.3))):
        inside = (axis - at).square() + (axis[:, None] - y).square() < size**2
        image = torch.where(inside, torch.tensor(colour)[:, None, None], image)
    return image[None]


def changes(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """How far a change of 32 photographs moves each statistic."""
    before = leak_statistics(photographs()[:32])
    after = leak_statistics(change(photographs()[:32]))
    return {name: after[name] - before[name] for name in before}


def assert_moves(moved: dict[str, Tensor], expected: dict[str, float | Tensor], but: tuple[str, ...] = ()) -> None:
    """Each statistic moved as expected, those not named not at all.

    A pixel on the threshold of the field may change sides: one of 2900, at most five deviations from the mean, which
    is 4e-3 of the deviation and less of all else.
    """
    for name, value in moved.items():
        if name not in but:
            wanted = torch.as_tensor(expected.get(name, 0.0), dtype=torch.float64).expand_as(value)
            torch.testing.assert_close(value, wanted, atol=5e-3, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.2, -0.1), (-0.25, 0.25)])
def test_the_field_is_found_where_it_was_drawn(x, y):
    found = leak_statistics(plain_fundus(x, y))
    pixel = 2 / SIZE
    assert float(found["field_x"]) == pytest.approx(x, abs=pixel)
    assert float(found["field_y"]) == pytest.approx(y, abs=pixel)


def test_the_logarithm_of_the_fields_size_follows_its_radius():
    small, large = (float(leak_statistics(plain_fundus(radius=r))["field_radius"]) for r in (0.6, 0.9))
    assert large - small == pytest.approx(math.log(1.5), abs=0.02)  # half a pixel in 20


def test_mirroring_changes_the_side_and_nothing_else():
    before, after = (leak_statistics(x) for x in (photographs()[:32], photographs()[:32].flip(3)))
    for name, value in before.items():
        sign = -1 if name in ("field_x", "field_slant", "disc_x", "disc_slant") else 1
        torch.testing.assert_close(after[name], sign * value, atol=1e-3, rtol=1e-3)


def test_a_quarter_turn_sets_the_disc_upright():
    image = plain_fundus()
    assert leak_statistics(image)["disc_upright"] > 0.7
    assert leak_statistics(image.rot90(1, (2, 3)))["disc_upright"] < -0.7


def test_brightness_moves_levels_only():
    assert_moves(changes(lambda x: x + 0.1), {"level": 0.1, "border": 0.1})


def test_contrast_moves_levels_and_contrasts_but_no_colour():
    moved = changes(lambda x: x * 1.5)
    by = {"contrast": math.log(1.5), "deviation": math.log(1.5)}
    assert_moves(moved, by, but=("level", "border", "polarity", "noise"))


def test_a_negative_keeps_its_shape_and_its_colour():
    moved = changes(lambda x: recolour(x, (torch.eye(3) - 2 * GREY).expand(len(x), 3, 3)))
    before = leak_statistics(photographs()[:32])
    by = {name: -2 * before[name] for name in ("level", "border", "polarity")}
    assert_moves(moved, by, but=("noise",))


def test_turning_the_hue_moves_the_hue_only():
    moved = changes(lambda x: recolour(x, hue_matrices(torch.full((len(x),), 0.5))))
    # Towards the third axis of colours, which counts as negative; noise is measured per channel.
    assert_moves(moved, {"hue": 0.5}, but=("noise",))


def test_saturation_moves_saturation_only():
    moved = changes(lambda x: recolour(x, (GREY + 2 * (torch.eye(3) - GREY)).expand(len(x), 3, 3)))
    assert_moves(moved, {"saturation": math.log(2)}, but=("noise",))


@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_noise_is_measured_by_its_deviation(sigma):
    torch.manual_seed(0)
    flat = torch.zeros(8, 3, SIZE, SIZE) + sigma * torch.randn(8, 3, SIZE, SIZE)
    # The median of 3072 absolute values is known to 1.2 / sqrt(3072) = 2 %: four of those.
    torch.testing.assert_close(
        leak_statistics(flat)["noise"].exp(), torch.full((8,), sigma).double(), rtol=0.09, atol=0
    )


def test_only_a_flat_square_counts_as_cut_out():
    assert leak_statistics(photographs())["flat_grey"].max() == 0
    image = plain_fundus()
    image[:, :, 16:48, 16:48] = 0
    # A quarter of the image, less a margin of half the window of 9 pixels all around.
    assert float(leak_statistics(image)["flat_grey"]) == pytest.approx((24 / 64) ** 2, abs=0.01)


def test_an_image_has_the_same_statistics_alone_and_in_a_batch():
    batch = leak_statistics(photographs()[:8])
    alone = leak_statistics(photographs()[3:4])
    for name, value in batch.items():
        assert value.shape == (8,)
        assert value.dtype == torch.float64
        torch.testing.assert_close(alone[name], value[3:4], atol=1e-5, rtol=1e-5)


def test_shape_and_colour_do_not_depend_on_the_resolution():
    small, large = photographs()[:8], photographs()[:8].repeat_interleave(2, 2).repeat_interleave(2, 3)
    before, after = leak_statistics(small), leak_statistics(large)
    for name in (*SHAPE, "level", "border", "contrast", "deviation", "polarity", "hue", "saturation", "flat_grey"):
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 1, 64, 64), (3, 64, 64), (4, 3, 16, 16)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="Pass colour images"):
        leak_statistics(torch.zeros(shape))


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_blank_images_have_finite_statistics(value):
    for values in leak_statistics(torch.full((2, 3, 32, 32), value)).values():
        assert values.isfinite().all()


# --- What is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_transform_that_leaks_is_found_and_named(name, seed):
    transform, draw = PUBLISHED[name]
    real, fake = halves(photographs_for(transform), seed, size=60)
    fake = draw(fake, torch.Generator().manual_seed(seed))
    leaks = find_leaks(leak_statistics(real), leak_statistics(fake), TRANSFORMS)
    found = {leak.transform: leak for leak in leaks}
    assert transform in found
    assert found[transform].z > 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_transform_that_leaks_into_every_other_image_is_found(name):
    transform, draw = PUBLISHED[name]
    images = photographs_for(transform)
    real, fake = halves(images, 0, size=len(images) // 2)
    fake[::2] = draw(fake[::2], torch.Generator().manual_seed(0))
    leaks = find_leaks(leak_statistics(real), leak_statistics(fake), [transform])
    assert [leak.transform for leak in leaks] == [transform]


def test_mirrored_photographs_of_both_eyes_are_no_leak():
    real, fake = halves(photographs(), 0)
    assert (
        find_leaks(leak_statistics(real), leak_statistics(flip(fake, torch.Generator().manual_seed(0))), ["flip"]) == []
    )


@pytest.mark.parametrize(("num_real", "num_fake"), [(64, 64), (192, 64), (128, 128), (16, 16)])
def test_photographs_against_others_seldom_raise_an_alarm(num_real, num_fake):
    found, calls = 0, 300
    for seed in range(calls):
        order = torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))
        real, fake = order[:num_real], order[num_real : num_real + num_fake]
        pair = [{name: values[part] for name, values in statistics_of_photographs().items()} for part in (real, fake)]
        found += bool(find_leaks(*pair, TRANSFORMS))
    # At most 1 % of the calls: 3 expected, and four deviations of that count.
    assert found <= 3 + 4 * math.sqrt(3)


@pytest.mark.parametrize("law", ["normal", "heavy tails", "two modes", "skewed"])
def test_the_chance_of_a_false_alarm_holds_whatever_the_distribution(law):
    rng = torch.Generator().manual_seed(0)
    names, calls = statistics_of_photographs().keys(), 300

    def draw(count: int) -> dict[str, Tensor]:
        normal = torch.randn(len(names), count, generator=rng, dtype=torch.float64)
        values = {
            "normal": normal,
            "heavy tails": torch.tan(torch.pi * (torch.special.ndtr(normal) - 0.5)),  # Cauchy
            "two modes": normal / 10 + torch.randn(normal.shape, generator=rng, dtype=torch.float64).sign(),
            "skewed": normal.exp(),
        }[law]
        return dict(zip(names, 5 * values, strict=True))  # far above the least extra spread worth reporting

    found = sum(bool(find_leaks(draw(64), draw(64), TRANSFORMS)) for _ in range(calls))
    assert found <= 3 + 4 * math.sqrt(3)


def test_fakes_that_are_all_alike_worse_raise_no_alarm():
    real, fake = halves(photographs(), 0)
    worse = F.avg_pool2d(fake, 3, stride=1, padding=1, count_include_pad=False) * 0.9 - 0.1
    assert find_leaks(leak_statistics(real), leak_statistics(worse), TRANSFORMS) == []


def test_fakes_of_few_kinds_raise_no_alarm():
    real, fake = halves(photographs(), 0)
    assert find_leaks(leak_statistics(real), leak_statistics(fake[:8].repeat(8, 1, 1, 1)), TRANSFORMS) == []


# --- Real photographs, 28 pixels enlarged, eyes mixed -----------------------------------------------------------------


@functools.cache
def real_photographs() -> Tensor:
    paths = sorted((FUNDUS_MINI / "images" / "retinamnist28").glob("*.png"))[:768]
    pictures = [
        np.array(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for path in paths
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@needs_photographs
def test_real_photographs_against_others_seldom_raise_an_alarm():
    statistics, calls, found = leak_statistics(real_photographs()), 300, 0
    for seed in range(calls):
        order = torch.randperm(len(real_photographs()), generator=torch.Generator().manual_seed(seed))
        pair = [{name: values[part] for name, values in statistics.items()} for part in (order[:64], order[64:128])]
        found += bool(find_leaks(*pair, TRANSFORMS))
    assert found <= 3 + 4 * math.sqrt(3)


@needs_photographs
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "flip"])
def test_leaks_are_found_among_real_photographs(name):
    transform, draw = PUBLISHED[name]
    real, fake = halves(real_photographs(), 0, size=256)
    fake = draw(fake, torch.Generator().manual_seed(0))
    leaks = find_leaks(leak_statistics(real), leak_statistics(fake), TRANSFORMS)
    assert transform in {leak.transform for leak in leaks}


# --- What is reported -------------------------------------------------------------------------------------------------


def pretend(**spreads: float) -> dict[str, Tensor]:
    """Statistics of 64 images, normal with spread 1, or that named."""
    quantiles = torch.special.ndtri((torch.arange(64, dtype=torch.float64) + 0.5) / 64)
    return {name: quantiles * spreads.get(name, 1.0) for name in statistics_of_photographs()}


def test_only_named_transforms_are_judged():
    real, fake = pretend(), pretend(hue=10, noise=10)
    assert {leak.transform for leak in find_leaks(real, fake, TRANSFORMS)} == {"hue", "noise"}
    assert {leak.transform for leak in find_leaks(real, fake, ["hue", "scale"])} == {"hue"}
    assert find_leaks(real, fake, []) == []


def test_an_unknown_transform_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no leaks are known of xflip\. Name some of: flip, rotate90"):
        find_leaks(pretend(), pretend(), ["hue", "xflip"])


def test_the_clearest_leak_comes_first_and_each_transform_once():
    leaks = find_leaks(pretend(), pretend(hue=3, field_x=5, field_y=4), TRANSFORMS)
    assert [(leak.transform, leak.statistic) for leak in leaks] == [("shift", "field_x"), ("hue", "hue")]


def test_location_counts_only_where_the_transform_moves_one_way():
    real = {name: values.repeat(4) for name, values in pretend().items()}
    for move, expected in ((5.0, ["noise"]), (-5.0, [])):
        fake = pretend()
        fake["noise"] = fake["noise"] + move
        fake["hue"] = fake["hue"] + move
        leaks = find_leaks(real, fake, TRANSFORMS)
        assert [leak.transform for leak in leaks if leak.evidence == "location"] == expected
        assert len(leaks) == len(expected)


def test_a_difference_too_small_to_matter_is_not_reported():
    calm = {name: values * 1e-3 for name, values in pretend().items()}
    lively = {name: values * 1e-2 for name, values in pretend().items()}
    assert find_leaks(calm, lively, TRANSFORMS) == []


def test_values_that_are_not_finite_are_left_out():
    real, fake = pretend(), pretend(hue=3)
    (before,) = find_leaks(real, fake, ["hue"])
    for statistics in (real, fake):
        statistics["hue"] = torch.cat([statistics["hue"], torch.tensor([math.nan, math.inf], dtype=torch.float64)])
    assert find_leaks(real, fake, ["hue"]) == [before]


def test_too_few_images_give_no_verdict():
    few = {name: values[::16] for name, values in pretend(hue=100).items()}
    assert find_leaks(pretend(), few, TRANSFORMS) == []


def test_the_sentence_has_the_numbers_and_the_way_out():
    (leak,) = find_leaks(pretend(), pretend(hue=3), ["hue"])
    assert leak.fake_spread / leak.real_spread == pytest.approx(3, rel=1e-6)
    assert leak.real_spread == pytest.approx(1, rel=0.02)  # quantiles of 64 have a slightly smaller mean deviation
    for part in ("3.0 times as much", "hue", f"z {leak.z:.1f}", "64 fakes", "train.ada_target", "augment", "If p is"):
        assert part in leak.sentence
    assert "\n" not in leak.sentence


def test_the_sentence_divides_by_no_spread_of_zero():
    constant = {name: values * 0 for name, values in pretend().items()}
    (leak,) = find_leaks(constant, pretend(), ["cutout"])
    assert "reals hardly do" in leak.sentence
