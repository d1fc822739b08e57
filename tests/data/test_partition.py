"""Which worker sees what: the same training for any number of workers."""

import numpy as np
import pytest

from dr_platform.data import partition
from dr_platform.errors import ConfigError


@pytest.mark.parametrize("num_images", [1, 7, 16, 100])
def test_each_image_is_seen_once_per_epoch(num_images):
    batch = 4
    steps = num_images  # batch epochs' worth of steps
    seen = np.concatenate([partition.batch_images(step, batch, num_images, seed=3) for step in range(steps)])
    for epoch in seen.reshape(batch, num_images):
        assert sorted(epoch) == list(range(num_images))


def test_epochs_have_different_orders():
    assert not np.array_equal(partition.epoch_order(50, 0, seed=1), partition.epoch_order(50, 1, seed=1))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("size", [4, 8])
def test_workers_share_the_batch_without_overlap(world, size):
    parts = [partition.micro_batches(32, world, rank, group=4, size=size) for rank in range(world)]
    assert all(part.shape == (32 // world // size, size) for part in parts)
    assert sorted(np.concatenate([part.ravel() for part in parts])) == list(range(32))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("size", [4, 8])
def test_minibatch_std_groups_are_the_same_for_any_split(world, size):
    """D puts sample n of a pass into group n mod (size / 4)."""
    groups = set()
    for rank in range(world):
        for one_pass in partition.micro_batches(32, world, rank, group=4, size=size):
            for group in range(size // 4):
                groups.add(tuple(sorted(one_pass[group :: size // 4])))
    assert groups == {tuple(range(first, first + 4)) for first in range(0, 32, 4)}


def test_streams_of_one_step_are_unrelated():
    seeds = {partition.stream_seed(0, stream, step) for stream in partition.Stream for step in range(100)}
    assert len(seeds) == 100 * len(partition.Stream)


def test_a_pass_is_the_largest_that_fits_the_limit():
    assert partition.micro_batch_size(32, world=2, group=4, limit=None) == 16
    assert partition.micro_batch_size(32, world=2, group=4, limit=15) == 8
    assert partition.micro_batch_size(24, world=1, group=4, limit=20) == 12


def test_a_batch_that_workers_cannot_share_says_what_to_set():
    with pytest.raises(ConfigError, match=r"train.batch is 16, but 3 workers.*site.workers to one of 1, 2, 4"):
        partition.micro_batch_size(16, world=3, group=4, limit=None)
    with pytest.raises(ConfigError, match=r"site.batch_per_worker is 2"):
        partition.micro_batch_size(16, world=1, group=4, limit=2)
