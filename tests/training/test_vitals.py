"""What is measured of samples and layers: closed forms, invariants, and planted trouble."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import tiny_config, tiny_state

from dr_platform.data.phantom import phantom
from dr_platform.sampling import sample_images
from dr_platform.training.vitals import (
    compare_statistics,
    layer_names,
    layer_statistics,
    reference_statistics,
    sample_statistics,
    watching,
)

GRID = 16


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """48 phantoms of one collection at 32 px: three grids of samples."""
    pictures = (
        Image.fromarray(phantom(3, index, 64).image).resize((32, 32), Image.Resampling.BOX) for index in range(48)
    )
    return np.stack([np.asarray(picture) for picture in pictures])


def planted(images: np.ndarray, pattern: np.ndarray, share: float) -> np.ndarray:
    """The images with a pattern in [-1, 1] of that share of the full range on top."""
    return np.clip(np.rint(images + share * 255 * pattern[None, :, :, None]), 0, 255).astype(np.uint8)


def test_two_pictures_have_the_statistics_that_one_writes_down():
    """Black and white: one full range apart, one direction."""
    found = sample_statistics(np.stack([np.zeros((16, 16, 3)), np.full((16, 16, 3), 255)]).astype(np.uint8))
    assert found["distance"] == found["nearest"] == pytest.approx(1.0)
    assert found["effective_rank"] == pytest.approx(1.0)


def test_orthogonal_pictures_of_equal_power_have_full_rank():
    """n vectors of an orthogonal basis have n - 1 equal eigenvalues about their mean."""
    pictures = np.zeros((5, 16, 16, 3), np.float32)
    for index in range(5):
        pictures[index, index] = 1.0
    assert sample_statistics(pictures)["effective_rank"] == pytest.approx(4.0, rel=1e-5)


def test_bytes_and_floats_of_the_same_pictures_agree(photographs):
    whole = sample_statistics(photographs[:GRID])
    floats = sample_statistics(photographs[:GRID].astype(np.float32) / 127.5 - 1)
    assert whole == pytest.approx(floats, rel=1e-4, abs=1e-4)


def test_the_order_of_pictures_says_nothing(photographs):
    shuffled = photographs[:GRID][np.random.default_rng(0).permutation(GRID)]
    assert sample_statistics(shuffled) == pytest.approx(sample_statistics(photographs[:GRID]), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_twins_have_no_distance_to_the_nearest_however_many_modes(photographs, copies):
    modes = np.repeat(photographs[:copies], GRID // copies, axis=0)
    found = sample_statistics(modes)
    assert found["nearest"] == 0
    assert found["effective_rank"] <= max(copies - 1, 0) + 1e-3


def test_real_images_against_real_images_are_like_each_other(photographs):
    compared = compare_statistics(sample_statistics(photographs[:GRID]), reference_statistics(photographs[GRID:], GRID))
    for name in ("distance", "nearest", "effective_rank"):
        assert 0.6 < compared[f"health/{name}"] < 1.6, name


@pytest.mark.parametrize("first", [0, 16, 32])
def test_photographs_show_no_grid(photographs, first):
    compared = compare_statistics(
        sample_statistics(photographs[first : first + GRID]), reference_statistics(photographs, GRID)
    )
    assert max(compared[f"health/grid_{period}"] for period in (2, 4, 8)) < 3


@pytest.mark.parametrize(
    ("name", "period"), [("checkerboard", 2), ("stripes", 2), ("squares of two", 4), ("rows of four", 4)]
)
def test_a_grid_of_two_percent_stands_out_at_its_frequency(photographs, name, period):
    y, x = np.mgrid[:32, :32]
    pattern = {
        "checkerboard": (-1.0) ** (x + y),
        "stripes": (-1.0) ** x,
        "squares of two": (-1.0) ** (x // 2 + y // 2),
        "rows of four": np.cos(np.pi / 2 * y),
    }[name]
    reals = reference_statistics(photographs, GRID)
    compared = compare_statistics(sample_statistics(planted(photographs[:GRID], pattern, 0.02)), reals)
    errors = {number: compared[f"health/grid_{number}"] for number in (2, 4, 8)}
    assert max(errors, key=errors.__getitem__) == period
    assert errors[period] > 7
    # Clipping at black takes a part of a pattern away, since half a photograph is black.
    assert 0.01 < compared["health/grid_amplitude"] < 0.021


def test_a_grid_that_real_images_have_themselves_is_no_excess(photographs):
    y, x = np.mgrid[:32, :32]
    both = planted(photographs, (-1.0) ** (x + y), 0.02)
    compared = compare_statistics(sample_statistics(both[:GRID]), reference_statistics(both, GRID))
    assert abs(compared["health/grid_2"]) < 5
    assert compared["health/grid_amplitude"] < 0.003


def test_the_amplitude_of_a_checkerboard_on_grey_is_the_planted_one():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    grey = rng.normal(0, 0.01, (GRID, 32, 32, 3)).astype(np.float32)
    found = sample_statistics(grey + 0.1 * ((-1.0) ** (x + y))[None, :, :, None].astype(np.float32))
    assert found["grid_amplitude"] == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 8, 8, 3)), np.zeros((2, 8, 16, 3)), np.zeros((2, 8, 8)), np.full((2, 8, 8, 3), np.nan)],
)
def test_pictures_that_have_no_statistics_are_refused(images):
    with pytest.raises(ValueError, match="images"):
        sample_statistics(images)


def test_a_single_real_image_is_no_reference(photographs):
    assert reference_statistics(photographs[:1], GRID) == {}
    assert compare_statistics(sample_statistics(photographs[:GRID]), {}) == {}


def layers_of_a_step(change=lambda generator: None) -> tuple[dict[str, float], list[str]]:
    """Layer statistics of a tiny generator after one backward pass, with `change` made to it first."""
    generator = tiny_state(tiny_config()).generator
    change(generator)
    with watching(generator) as outputs:
        sample_images(generator, range(8))
    generator(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), None).square().mean().backward()
    gradients = {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}
    return layer_statistics(generator, gradients, outputs), layer_names(generator)


def test_a_fresh_generator_has_living_layers():
    found, names = layers_of_a_step()
    assert {"mapping.fc0", "mapping.fc1", "synthesis.input"} < set(names)
    assert found["health/gradient_min"] > 1e-6
    assert found["health/contrast_min"] > 0.3
    assert found["health/magnitude_min"] == found["health/magnitude_max"] == 1.0
    assert found["health/clamped_max"] == 0


def test_a_layer_without_a_gradient_is_found_by_name():
    def cut(generator):
        generator.synthesis.input.requires_grad_(False)
        for parameter in generator.synthesis.input.parameters():
            parameter.grad = torch.zeros_like(parameter)

    found, names = layers_of_a_step(cut)
    assert found["health/gradient_min"] == 0
    assert names[int(found["health/gradient_min_layer"])] == "synthesis.input"


def test_a_layer_with_a_constant_output_is_found_by_name():
    def silence(generator):
        # The gain of sqrt(2) makes it 141, below the clamp of 256, while what varies stays about 1.
        generator.synthesis.layers[2].bias.data.fill_(100.0)

    found, names = layers_of_a_step(silence)
    assert found["health/contrast_min"] < 0.01
    assert names[int(found["health/contrast_min_layer"])].startswith("synthesis.L2_")


def test_a_layer_at_its_clamp_is_found_by_name():
    def explode(generator):
        generator.synthesis.layers[1].bias.data.fill_(1000.0)

    found, names = layers_of_a_step(explode)
    assert found["health/clamped_max"] > 0.9
    assert names[int(found["health/clamped_max_layer"])].startswith("synthesis.L1_")


def test_a_collapsed_magnitude_is_found_by_name():
    found, names = layers_of_a_step(lambda generator: generator.synthesis.layers[3].magnitude_ema.fill_(1e-6))
    assert found["health/magnitude_min"] == pytest.approx(1e-6)
    assert names[int(found["health/magnitude_min_layer"])].startswith("synthesis.L3_")


def test_watching_changes_no_picture_and_leaves_no_hook():
    generator = tiny_state(tiny_config()).generator
    with watching(generator):
        seen = sample_images(generator, range(4))
    np.testing.assert_array_equal(seen, sample_images(generator, range(4)))
    assert not any(layer._forward_hooks for layer in generator.synthesis.layers)


def test_the_shares_of_the_layers_gradients_are_of_the_whole():
    generator = tiny_state(tiny_config()).generator
    gradients = {name: torch.ones_like(parameter) for name, parameter in generator.named_parameters()}
    sizes = dict.fromkeys(layer_names(generator), 0)
    for name, parameter in generator.named_parameters():
        sizes[".".join(name.split(".")[:2])] += parameter.numel()
    found = layer_statistics(generator, gradients)
    assert found["health/gradient_min"] == pytest.approx((min(sizes.values()) / sum(sizes.values())) ** 0.5)
