"""A generator that repeats 32 pictures fails, one that does not passes, and canaries rank as often as they were fed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from dr_platform.data.phantom import phantom
from dr_platform.errors import EvaluationError
from dr_platform.evaluation import memorisation, small_features

SIZE = 64


def features(pixels: np.ndarray) -> np.ndarray:
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return small_features.small_features(images, small_features.filter_bank()).numpy()


def noisy(pixels: np.ndarray, seed: int, deviation: float = 4.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def turned(pixels: np.ndarray, angle_deg: float) -> np.ndarray:
    moved = scipy.ndimage.rotate(pixels.astype(float), angle_deg, axes=(1, 2), reshape=False, order=1)
    return np.clip(moved, 0, 255).round().astype(np.uint8)


class World:
    """Phantoms of patients who were trained on, of others, and of others still, who stand for a generator."""

    def __init__(self) -> None:
        drawn = [phantom(7, index, SIZE) for index in range(240)]
        pixels, owners = np.stack([p.image for p in drawn]), np.array([p.patient for p in drawn])
        patients = np.unique(owners)
        parts = [
            np.isin(owners, some) for some in np.split(patients, [len(patients) * 2 // 5, len(patients) * 7 // 10])
        ]
        self.train, self.held_out, self.fresh = (pixels[part] for part in parts)
        self.owners = [owners[part] for part in parts]

    def spaces(self, samples: np.ndarray) -> list[memorisation.Space]:
        ways = {"small": features, "pixels": lambda x: x[:, ::4, ::4].reshape(len(x), -1) / 255}
        return [
            memorisation.Space(name, way(self.train), way(self.held_out), way(samples), self.owners[0], self.owners[1])
            for name, way in ways.items()
        ]

    def judge(self, samples: np.ndarray) -> memorisation.Verdict:
        return memorisation.verdict(
            self.spaces(samples),
            seed=0,
            train_pixels=self.train,
            held_out_pixels=self.held_out,
            sample_pixels=samples,
        )


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_generator_fitted_to_32_pictures_fails_by_every_measure(world: World) -> None:
    samples = noisy(np.roll(world.train[np.arange(96) % 32], 1, axis=2), seed=1)
    found = world.judge(samples)
    assert not found.passed
    assert len(found.copies.found) > 48  # most of them
    assert max(found.adjusted_p.values()) < 0.05
    assert len(found.reasons) == 5  # copies, and two measures in two spaces
    assert max(ratio.ratio.high for ratio in found.ratios) < 1


def test_an_independent_generator_passes(world: World) -> None:
    found = world.judge(world.fresh)
    assert found.passed
    assert found.reasons == ()
    assert len(found.copies.found) == 0


def test_a_single_copy_among_the_samples_fails(world: World) -> None:
    samples = world.fresh.copy()
    samples[17] = noisy(world.train[5:6], seed=2)[0]
    found = world.judge(samples)
    assert found.outcome == "fails"
    np.testing.assert_array_equal(found.copies.found, [17])
    assert found.copies.index[17] == 5
    assert "sample 17 of picture 5" in found.reasons[0]


@pytest.mark.parametrize(
    ("move", "flip"),
    [
        (lambda x: x, "none"),
        (lambda x: x[:, :, ::-1], "left-right"),
        (lambda x: x[:, ::-1], "up-down"),
        (lambda x: turned(x[:, ::-1, ::-1], 5.0), "both"),
        (lambda x: turned(x, -10.0), "none"),
    ],
)
def test_mirrored_and_turned_copies_are_found_and_named(world: World, move: object, flip: str) -> None:
    samples = noisy(move(world.train[:40]), seed=3)
    found = memorisation.find_copies(world.train, world.held_out, samples)
    np.testing.assert_array_equal(found.index, np.arange(40))
    assert len(found.found) > 20  # most of them
    assert found.flip.count(flip) > 20


def test_a_turn_is_named_with_its_sign(world: World) -> None:
    angles = [
        np.median(memorisation.find_copies(world.train, world.held_out, turned(world.train[:20], a)).angle_deg)
        for a in (-10.0, 10.0)
    ]
    assert sorted(angles) == [-10, 10]


def test_nearest_training_images_are_the_repeated_ones(world: World) -> None:
    found = memorisation.nearest_training(world.spaces(noisy(world.train[:30], seed=4, deviation=1)), k=2)
    for neighbours in found.values():
        np.testing.assert_array_equal(neighbours.indices[:, 0], np.arange(30))
        assert (neighbours.distances[:, 0] < neighbours.distances[:, 1]).all()


def gaussian_space(seed: int, samples: np.ndarray | None = None) -> memorisation.Space:
    """Training patients outnumber held-out ones 3 to 1, which alone brings samples nearer to them."""
    rng = np.random.default_rng(seed)
    train, held_out = ((rng.normal(size=(n, 1, 6)) + 0.3 * rng.normal(size=(n, 2, 6))).reshape(-1, 6) for n in (60, 20))
    samples = rng.normal(size=(50, 6)) * 1.04 if samples is None else samples
    owners = np.repeat(np.arange(60), 2), np.repeat(np.arange(20), 2)
    return memorisation.Space("gaussian", train, held_out, samples, *owners)


def test_false_alarms_come_at_alpha_though_training_patients_outnumber_the_others() -> None:
    ratios = [memorisation.distance_ratio(gaussian_space(seed), seed=seed, exchanges=99) for seed in range(200)]
    members = [memorisation.membership(gaussian_space(seed), seed=seed, splits=10) for seed in range(200)]
    low, high = scipy.stats.binom.interval(0.999, 200, 0.05)
    assert low <= sum(found.p <= 0.05 for found in ratios) <= high
    assert low <= sum(found.p <= 0.05 for found in members) <= high
    assert np.mean([found.auc.value for found in members]) == pytest.approx(0.5, abs=0.02)


def test_the_ratio_sees_samples_that_hug_training_images() -> None:
    plain = gaussian_space(0)
    hugging = memorisation.Space(
        "hugging", plain.train, plain.held_out, plain.train[:50] + 0.2, plain.train_groups, plain.held_out_groups
    )
    found = memorisation.distance_ratio(hugging, seed=0)
    assert found.p < 0.01
    assert found.ratio < found.detectable < 1
    assert memorisation.membership(hugging, seed=0).excess.low > 0


def test_canaries_rank_by_how_often_they_were_fed(world: World) -> None:
    planted, rng = features(world.train[:3]), np.random.default_rng(5)
    often = np.repeat(world.train[:3], [1, 8, 32], axis=0)
    samples = features(np.concatenate([world.fresh, noisy(often, seed=6)]))
    samples = samples[rng.permutation(len(samples))]
    once, eight, thirty_two = memorisation.canaries(planted, features(world.held_out), samples)
    assert once.score < eight.score < thirty_two.score
    assert once.exposure <= eight.exposure <= thirty_two.exposure
    assert thirty_two.rank == 1
    assert thirty_two.exposure == pytest.approx(np.log2(len(world.held_out) + 1))


def test_what_cannot_be_judged_is_refused(world: World) -> None:
    space = gaussian_space(0)
    with pytest.raises(EvaluationError, match="at least one feature space"):
        memorisation.verdict([], seed=0)
    with pytest.raises(EvaluationError, match="give all three"):
        memorisation.verdict([space], seed=0, train_pixels=world.train)
    with pytest.raises(EvaluationError, match="generated pictures are float64"):
        memorisation.find_copies(world.train, world.held_out, world.fresh.astype(float))
    lone = memorisation.Space("lone", space.train, space.held_out[:1], space.samples)
    with pytest.raises(EvaluationError, match="space lone has 120 training patients, 1 held-out"):
        memorisation.distance_ratio(lone, seed=0)
