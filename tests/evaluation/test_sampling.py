"""Images for seeds."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dr_platform.sampling import latents, sample_images, to_uint8


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_seed_gives_the_same_picture_in_any_company(waves: torch.nn.Module, batch: int) -> None:
    together = sample_images(waves, range(10), batch=10)
    alone = sample_images(waves, [7], batch=1)
    assert np.array_equal(sample_images(waves, range(10), batch=batch), together)
    assert np.array_equal(alone[0], together[7])


def test_latents_are_standard_normal_and_differ_between_neighbouring_seeds() -> None:
    z = latents(range(2000), 16).double()
    # 32,000 draws: the mean's standard error is 1/√32000, the variance's √(2/32000); five of them are allowed.
    assert abs(z.mean()) < 5 / 32000**0.5
    assert abs(z.var() - 1) < 5 * (2 / 32000) ** 0.5
    neighbours = (z[1:] * z[:-1]).mean()
    assert abs(neighbours) < 5 / 32000**0.5
    assert len(torch.unique(z[:, 0])) == 2000


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_could_mean_another_one_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="is not between 0 and 4294967295"):
        latents([seed], 4)


def test_pixels_follow_the_published_rounding() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 0.0078, 1.0, 3.0]).reshape(1, 1, 1, 6)
    # x·127.5 + 128, clamped, cut off: -1 gives 0.5 and so 0, 0.0078 gives 128.99 and so 128.
    assert to_uint8(levels)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


def test_one_channel_becomes_three_equal_ones(make_waves: Callable[..., torch.nn.Module]) -> None:
    pictures = sample_images(make_waves(channels=1), [0, 1])
    assert pictures.shape == (2, 32, 32, 3)
    assert np.array_equal(pictures[..., 0], pictures[..., 2])


def test_psi_zero_gives_one_picture_for_all_seeds(waves: torch.nn.Module) -> None:
    pictures = sample_images(waves, range(4), psi=0.0)
    assert (pictures == pictures[0]).all()


def test_labels_reach_the_generator(make_waves: Callable[..., torch.nn.Module]) -> None:
    generator = make_waves(c_dim=2)
    labels = np.eye(2, dtype=np.float32)[[0, 1, 0]]
    plain, labelled = sample_images(generator, [4, 5, 6]), sample_images(generator, [4, 5, 6], batch=2, labels=labels)
    assert (plain != labelled).reshape(3, -1).any(axis=1).tolist() == [False, True, False]


def test_images_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FloatingPointError):
        to_uint8(torch.full((1, 3, 4, 4), float("nan")))


def test_sampling_imports_nothing_of_the_package() -> None:
    tree = ast.parse(inspect.getsource(inspect.getmodule(sample_images)))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in imported if name.startswith("dr_platform")]
