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


@pytest.mark.parametrize("batch", [4, 7])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_every_class_is_drawn_equally_often(batch, num_classes):
    steps = 10 * num_classes
    drawn = [partition.batch_classes(n, batch, num_classes, 3, partition.Stream.GENERATOR_LABELS) for n in range(steps)]
    assert np.bincount(np.concatenate(drawn)).tolist() == [10 * batch] * num_classes


def test_classes_of_different_size_are_shown_equally_often_and_each_image_once_per_turn_of_its_class():
    sizes, batch = (3, 7, 20), 6
    steps = [partition.balanced_images(step, batch, sizes, seed=1) for step in range(70)]
    images, classes = (np.concatenate(part) for part in zip(*steps, strict=True))
    assert np.bincount(classes).tolist() == [140, 140, 140]
    starts = np.array([0, 3, 10])
    for label, size in enumerate(sizes):
        mine = images[classes == label] - starts[label]
        assert mine.min() == 0
        assert mine.max() == size - 1
        for turn in mine[: 140 // size * size].reshape(-1, size):
            assert sorted(turn) == list(range(size))


def test_balanced_images_of_a_step_do_not_depend_on_the_steps_before():
    again = partition.balanced_images(33, 8, (5, 9), seed=2)
    partition.balanced_images(0, 8, (5, 9), seed=2)
    for one, other in zip(again, partition.balanced_images(33, 8, (5, 9), seed=2), strict=True):
        assert np.array_equal(one, other)


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
