"""Augmentations: what each does, that a sample minds its own business, derivatives, and the published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gan_golden import golden, relative_error
from shared_data import needs_golden
from torch import Tensor

from dr_platform.gan import augmentation as augmenting
from dr_platform.gan.augmentation import (
    BGC,
    FUNDUS,
    Augmentation,
    Draws,
    augment,
    augmentation_named,
    colour_matrix,
    draw,
    draws_at,
)
from dr_platform.gan.warp import _margins, _warp_all, filter_bank, warp, wavelet_filter

NAMES = tuple(augmenting._MULTIPLIERS)


def drawn(number: int, seed: int = 0) -> Draws:
    return draw(number, torch.Generator().manual_seed(seed))


def only(name: str, **changes: float) -> Augmentation:
    return Augmentation(**{name: 1, **changes})


def pictures(number: int = 4, size: int = 32, dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth images, whose interpolation errs little."""
    source = torch.Generator().manual_seed(1)
    coarse = torch.randn(number, 3, 6, 6, generator=source, dtype=dtype)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False) * 0.4


def set_value(draws: Draws, name: str, value: float) -> Draws:
    values = draws.values.clone()
    values[:, augmenting._PLACES[name]] = value
    return Draws(values, torch.zeros_like(draws.gates))


# --- What each transform does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_at_p_zero(name):
    images = pictures()
    unchanged = augment(images, drawn(4), 0.0, only(name))
    # A sample at rest is not resampled; the bands of the filter sum to it with coefficients of 13 digits.
    assert float((unchanged - images).abs().max()) < (1e-11 if name == "filter" else 1e-14)


def test_resampling_without_a_move_gives_the_image_back():
    """The wavelet's filter is orthonormal to its own shifts by two, to the 12 digits published."""
    images = pictures()
    at_rest = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    torch.testing.assert_close(_warp_all(images, at_rest), images, rtol=0, atol=1e-11)
    assert warp(images, at_rest) is images


def test_samples_at_rest_stay_bitwise_while_others_move():
    images = pictures(3, dtype=torch.float32)
    inverse = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    inverse[1, :2, 2] = torch.tensor([1.3, -0.4])
    moved = warp(images, inverse)
    assert torch.equal(moved[[0, 2]], images[[0, 2]])
    torch.testing.assert_close(moved[1:2], _warp_all(images[1:2], inverse[1:2]))


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_changes_at_p_one(name):
    images = pictures()
    draws = Draws(torch.full_like(drawn(4).values, 0.8), drawn(4).gates)
    changed = augment(images, draws, 1.0, only(name))
    assert all(float(difference) > 1e-2 for difference in (changed - images).abs().amax(dim=(1, 2, 3)))


def test_a_flip_is_a_flip_and_a_quarter_turn_a_quarter_turn():
    images = pictures()
    flipped = augment(images, set_value(drawn(4), "flip", 0.7), 1.0, only("flip"))
    # sym6 is not quite symmetric, so a mirrored image passes it a little differently.
    assert float((flipped - images.flip(3)).square().mean().sqrt() / images.std()) < 0.03
    turned = augment(images, set_value(drawn(4), "rotate90", 0.3), 1.0, only("rotate90"))
    assert float((turned - images.rot90(1, dims=(2, 3))).square().mean().sqrt() / images.std()) < 0.03


def test_a_shift_by_whole_pixels_moves_right_and_down_and_reflects_at_the_border():
    images = pictures()
    # (2u - 1) / 8 of 32 pixels: u = 0.875 moves by 3.
    moved = augment(images, set_value(drawn(4), "shift_whole", 0.875), 1.0, only("shift_whole"))
    torch.testing.assert_close(moved[:, :, 3:, 3:], images[:, :, :-3, :-3], rtol=0, atol=2e-3)
    torch.testing.assert_close(moved[:, :, 3:, :3], images[:, :, :-3, 1:4].flip(3), rtol=0, atol=2e-3)


def test_enlarging_twice_shows_the_middle():
    images = pictures(size=64)
    larger = augment(images, set_value(drawn(4), "scale", 5.0), 1.0, only("scale"))  # 2 to the 0.2 · 5
    shrunk = torch.nn.functional.avg_pool2d(larger, 2)
    torch.testing.assert_close(shrunk[:, :, 4:-4, 4:-4], images[:, :, 20:44, 20:44], rtol=0, atol=2e-2)


def test_brightness_is_added_and_contrast_multiplied():
    images = pictures()
    brighter = augment(images, set_value(drawn(4), "brightness", 1.5), 1.0, only("brightness"))
    torch.testing.assert_close(brighter, images + 0.3)
    stronger = augment(images, set_value(drawn(4), "contrast", 2.0), 1.0, only("contrast"))
    torch.testing.assert_close(stronger, images * 2)


def test_a_luma_flip_inverts_grey_and_keeps_what_is_coloured():
    images = pictures()
    flipped = augment(images, set_value(drawn(4), "lumaflip", 0.9), 1.0, only("lumaflip"))
    luma, other = images.mean(dim=1, keepdim=True), flipped.mean(dim=1, keepdim=True)
    torch.testing.assert_close(other, -luma)
    torch.testing.assert_close(flipped - other, images - luma)


def test_a_third_of_a_turn_of_hue_exchanges_the_colours():
    images = pictures()
    turned = augment(images, set_value(drawn(4), "hue", 0.5 + 1 / 3), 1.0, only("hue"))
    torch.testing.assert_close(turned, images[:, [2, 0, 1]])


def test_saturation_scales_the_distance_from_grey():
    images = pictures()
    grey = images.mean(dim=1, keepdim=True)
    stronger = augment(images, set_value(drawn(4), "saturation", 1.0), 1.0, only("saturation"))
    torch.testing.assert_close(stronger, grey + 2 * (images - grey))


def test_the_bands_of_the_filter_sum_to_the_identity_and_part_the_spectrum_in_octaves():
    bank = filter_bank()
    np.testing.assert_allclose(bank.sum(axis=0), np.eye(43)[21], atol=1e-12)
    response = np.abs(np.fft.rfft(bank, 512, axis=1))  # up to half a cycle per pixel in 256 steps
    centres = (response**2 * np.arange(257)).sum(axis=1) / (response**2).sum(axis=1) / 256
    assert (np.diff(centres) > 0.08).all()
    assert response.argmax(axis=1).tolist()[0] == 0
    assert response.argmax(axis=1).tolist()[3] == 256


def test_the_filter_keeps_the_power_of_an_image_whose_bands_have_the_expected_power():
    gains = augmenting._gains(drawn(64), 1.0, only("filter"))
    expected = torch.tensor([10.0, 1, 1, 1], dtype=torch.float64) / 13
    # Each of the four steps restores the power it changes, measured on an image that no other step has changed.
    single = augmenting._gains(set_value(drawn(1), "filter", 0.0), 1.0, only("filter"))
    torch.testing.assert_close(single, torch.ones(1, 4, dtype=torch.float64))
    assert float(((expected * gains.square()).sum(dim=1).log2()).abs().mean()) < 1.0


def test_noise_has_its_own_strength_for_each_sample_and_repeats():
    images = torch.zeros(64, 3, 32, 32)
    draws = drawn(64)
    noisy = augment(images, draws, 1.0, only("noise"))
    sigma = draws.value("noise").abs() * 0.1
    torch.testing.assert_close(noisy.double().std(dim=(1, 2, 3)), sigma, rtol=0.1, atol=1e-4)
    assert torch.equal(noisy, augment(images, draws, 1.0, only("noise")))


def test_cutout_removes_a_square_of_half_the_side():
    holes = augment(torch.ones(200, 3, 32, 32), drawn(200), 1.0, only("cutout"))
    inside = drawn(200).value("cutout").sub(0.5).abs().amax(dim=1) < 0.25
    assert inside.sum() > 20
    torch.testing.assert_close(
        holes[inside].mean(dim=(1, 2, 3)), torch.full((int(inside.sum()),), 0.75), rtol=0.05, atol=0
    )


# --- Probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["brightness", "contrast", "hue", "saturation"])
def test_a_transform_acts_with_probability_p(name, p):
    matrices = colour_matrix(drawn(4000), p, only(name))
    acted = (matrices - torch.eye(4, dtype=torch.float64)).abs().amax(dim=(1, 2)) > 0
    assert float(acted.double().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_the_two_rotations_together_act_with_probability_p(p):
    before, after = augmenting.geometric_factors(drawn(4000), p, only("rotate"), 32, 32)
    turned = ((before - torch.eye(3)).abs().amax(dim=(1, 2)) > 0) | ((after - torch.eye(3)).abs().amax(dim=(1, 2)) > 0)
    assert float(turned.double().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


def test_draws_of_a_few_samples_are_those_of_the_batch():
    places = torch.tensor([5, 0, 3])
    images = pictures(6)
    whole = augment(images, drawn(6), 0.7, BGC)
    part = augment(images[places], drawn(6)[places], 0.7, BGC)
    torch.testing.assert_close(part, whole[places], rtol=0, atol=1e-12)


def test_each_band_of_the_filter_has_its_own_chance():
    """At p = 1/2 all four act together in 1 of 16 samples, not in every second one."""
    gates = drawn(4000).chosen("filter", 0.5).double()
    assert gates.shape == (4000, 4)
    assert float(gates.prod(dim=1).mean()) == pytest.approx(1 / 16, abs=4 * math.sqrt(1 / 16 * 15 / 16 / 4000))
    untouched = augmenting._gains(drawn(4000), 0.5, only("filter")).eq(1).all(dim=1).double()
    assert float(untouched.mean()) == pytest.approx(1 / 16, abs=4 * math.sqrt(1 / 16 * 15 / 16 / 4000))


@pytest.mark.parametrize("preset", [BGC, FUNDUS, only("scale", scale_std=0.6)], ids=["bgc", "fundus", "shrinking"])
def test_a_sample_does_not_depend_on_its_company(preset):
    """White images, and many that shrink: their canvas reaches furthest beyond the border."""
    images = torch.rand(32, 3, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    for seed in range(4):
        whole = augment(images, drawn(32, seed), 1.0, preset)
        for place in range(32):
            alone = augment(images[place : place + 1], drawn(32, seed)[torch.tensor([place])], 1.0, preset)
            torch.testing.assert_close(alone[0], whole[place], rtol=0, atol=1e-12)


def test_a_sample_does_not_depend_on_its_company_in_single_precision():
    """Another's larger margin changes the rounding of coordinates only."""
    images = pictures(16, dtype=torch.float32)
    whole = augment(images, drawn(16), 1.0, BGC)
    for place in range(16):
        alone = augment(images[place : place + 1], drawn(16)[torch.tensor([place])], 1.0, BGC)
        torch.testing.assert_close(alone[0], whole[place], rtol=0, atol=2e-5)


def test_the_margin_holds_all_that_is_looked_at():
    """More of the reflected image around it changes nothing, and a pixel less would."""
    images = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    inverse = torch.diag(torch.tensor([1.6, 1.6, 1.0], dtype=torch.float64))[None]
    margin = _margins(inverse, 24, 24)
    assert len(set(margin)) == 1  # symmetric
    # The outermost canvas sample lies 3 pixels out, 1.6 times as far in the image, half a pixel and 3 taps before it.
    assert margin[0] == math.ceil(1.6 * (11.5 + 3) + 3.5 - 11.5)
    mate = torch.eye(3, dtype=torch.float64)[None].clone()
    mate[:, :2, 2] = 14.0  # needs more, to the right and below; with -14 to the left and above
    for shift in (mate, torch.linalg.inv(mate)):
        both = _warp_all(images.expand(2, -1, -1, -1), torch.cat([inverse, shift]))
        torch.testing.assert_close(both[:1], _warp_all(images, inverse), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coordinates_of_low_precision_images_are_not_rounded(dtype):
    images = pictures(4, size=64, dtype=torch.float32).to(dtype)
    moved = augment(images, drawn(4), 1.0, only("shift"))
    assert moved.dtype == dtype
    exact = augment(images.float(), drawn(4), 1.0, only("shift"))
    torch.testing.assert_close(moved, exact.to(dtype))


# --- Derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flip", "rotate", "scale", "saturation", "filter", "cutout"])
def test_first_and_second_derivatives_are_right(name):
    images = pictures(2, size=8).requires_grad_()

    def apply(images: Tensor) -> Tensor:
        return augment(images, drawn(2), 1.0, only(name))[:, :, ::3, ::3].square()

    assert torch.autograd.gradcheck(apply, (images,))
    assert torch.autograd.gradgradcheck(apply, (images,))


def test_r1_through_the_whole_pipeline_is_that_of_the_composed_critic():
    """The pipeline is affine in the image, so its Jacobian J gives the penalty of a linear critic: |Jᵀ w|²."""
    images = pictures(2, size=16).requires_grad_()
    weight = torch.randn(3 * 16 * 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    critic = weight.clone().requires_grad_()
    logits = augment(images, drawn(2), 1.0, BGC).flatten(1) @ critic
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    (by_critic,) = torch.autograd.grad(gradient.square().sum(), critic)
    # d|Jᵀw|²/dw = 2 J Jᵀ w: apply J to the gradient, which the affine part's difference gives.
    zero = torch.zeros_like(images)
    moved = augment(2 * gradient.detach(), drawn(2), 1.0, BGC) - augment(zero, drawn(2), 1.0, BGC)
    torch.testing.assert_close(by_critic, moved.flatten(1).sum(dim=0))


# --- Presets ----------------------------------------------------------------------------------------------------------


def test_the_fundus_pipeline_keeps_what_makes_an_eye():
    for absent in ("rotate90", "lumaflip", "aniso", "shift_whole", "filter", "noise", "cutout", "flip"):
        assert absent not in FUNDUS.transforms
    assert FUNDUS.rotate_max * 180 <= 15
    assert augmentation_named("fundus", flip=True).transforms == ("flip", *FUNDUS.transforms)
    assert augmentation_named("fundus", flip=False) is FUNDUS
    assert augmentation_named("bgc", flip=False) is BGC
    assert augmentation_named("none", flip=True) is None
    with pytest.raises(ValueError, match="Use none, fundus or bgc"):
        augmentation_named("ada", flip=False)


@pytest.mark.parametrize(("width", "kept"), [(1, 0.25), (2, 0.7), (4, 0.7)])
def test_a_microaneurysm_survives_the_fundus_pipeline(width, kept):
    """A dark spot on grey, against its ground, after moves and colours.

    Of one pixel that falls between four the interpolation leaves 0.6 squared; contrast takes another fifth at two
    standard deviations. The wider ones keep their depth but for contrast.
    """
    images = torch.zeros(200, 3, 64, 64, dtype=torch.float64)
    images[:, :, 31 : 31 + width, 31 : 31 + width] = -1
    seen = augment(images, drawn(200), 1.0, FUNDUS)
    depth = seen.flatten(2).median(dim=2).values - seen.amin(dim=(2, 3))
    # In green, where it shows: 3 of 200 may have drawn a contrast beyond 2.2 standard deviations.
    assert float(depth[:, 1].quantile(0.015)) > kept


def test_the_darkness_of_a_spot_grows_with_its_area():
    """On average: where it falls on the pixels makes single ones a few percent darker or lighter."""
    images = torch.zeros(100, 3, 64, 64, dtype=torch.float64)
    images[:, :, 31:33, 31:33] = -1
    # Shifts vary where the spot falls.
    moved = augment(images, drawn(100), 1.0, only("scale", scale_std=FUNDUS.scale_std, shift=1, shift_std=0.04))
    area = torch.exp2(2 * drawn(100).value("scale") * FUNDUS.scale_std)
    shares = -moved[:, 0].sum(dim=(1, 2)) / (4 * area)
    assert float(shares.mean()) == pytest.approx(1, abs=4 * float(shares.std()) / 10)
    assert float(shares.std()) < 0.05


def test_colours_of_two_channels_are_refused():
    with pytest.raises(ValueError, match="colours of 2 channels"):
        augment(torch.zeros(1, 2, 16, 16), drawn(1), 1.0, only("brightness"))


# --- Published numbers ------------------------------------------------------------------------------------------------

OURS = {"xflip": "flip", "xint": "shift_whole", "xfrac": "shift", "imgfilter": "filter"}


def golden_cases() -> list[str]:
    from shared_data import GOLDEN

    return sorted(golden("ada").meta["cases"]) if GOLDEN.is_dir() else ["absent"]


@needs_golden
@pytest.mark.parametrize("name", golden_cases())
def test_augmented_images_equal_the_published_ones(name):
    case = golden("ada")
    options = case.meta["cases"][name]
    wanted = Augmentation(**{OURS.get(each, each): 1.0 for each in options["enabled"]})
    images = case[options["input"]]
    found = augment(images, draws_at(len(images), options["percentile"]), 1.0, wanted, case.get(f"{name}/noise_field"))
    theirs = case[name]
    assert float((found - theirs).abs().max() / theirs.abs().max()) < 1e-5


@needs_golden
@pytest.mark.parametrize("percentile", [0.3, 0.5, 0.7])
def test_the_gradient_of_the_pipeline_equals_the_published_one(percentile):
    case = golden("ada")
    images = case["x_rgb"].requires_grad_()
    found = augment(images, draws_at(2, percentile), 1.0, BGC)
    (ours,) = torch.autograd.grad(found, images, case[f"bgc_grad/p{percentile}/dy"])
    assert relative_error(ours, case[f"bgc_grad/p{percentile}/dx"]) < 1e-5


@needs_golden
def test_filters_equal_the_published_ones():
    assert relative_error(wavelet_filter(), golden("ada")["Hz_geom"]) < 1e-7
    assert relative_error(torch.from_numpy(filter_bank()), golden("ada")["Hz_fbank"]) < 1e-6


@needs_golden
def test_transforms_that_were_really_drawn_give_the_published_images():
    case = golden("ada")
    images, inverse = case["random/x"], case["random/geometry_G_inv_pixel"]
    found = warp(images, inverse.double())
    theirs = case["random/geometry_y"]
    assert float((found - theirs).abs().max() / theirs.abs().max()) < 1e-5
    matrix = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    matrix[:, :3] = case["random/color_matrix_3x4"].double()
    assert relative_error(augmenting._recolour(images, matrix), case["random/color_y"]) < 1e-5
