"""Which worker sees which image, latent and flip at which step: integers and seeds in, integers and numbers out.

Everything is a function of (seed, step) and of the *global* batch, never of the history of a worker. So a training
resumes exactly without saved random states, and 1, 2 or 4 workers take the same step: they only share it out
differently. The minibatch standard deviation of D compares images in groups; groups are cut from the global batch
before it is shared out, so they too are the same for any number of workers and any accumulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dr_platform.errors import ConfigError

Integers = NDArray[np.int64]


class Stream(IntEnum):
    """What random numbers are drawn for; each has its own stream at each step."""

    ORDER = 0
    MIRROR = 1
    GENERATOR_LATENTS = 2
    DISCRIMINATOR_LATENTS = 3
    GENERATOR_LABELS = 4
    DISCRIMINATOR_LABELS = 5
    GENERATOR_MIXING = 6
    DISCRIMINATOR_MIXING = 7
    AUGMENT_GENERATOR = 8
    AUGMENT_FAKE = 9
    AUGMENT_REAL = 10
    AUGMENT_R1 = 11
    REAL_LABELS = 12


def stream_seed(seed: int, stream: Stream, index: int) -> int:
    """A 63-bit seed for a stream at a step or epoch; different triples give independent streams."""
    state = np.random.SeedSequence([seed, int(stream), index]).generate_state(2, np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])


def epoch_order(num_images: int, epoch: int, seed: int) -> Integers:
    """[num_images]: the order of the images in an epoch, a permutation."""
    return np.random.default_rng(stream_seed(seed, Stream.ORDER, epoch)).permutation(num_images)


def batch_images(step: int, batch: int, num_images: int, seed: int) -> Integers:
    """[batch]: the images of a step. Steps run through epoch after epoch, each image once per epoch."""
    first = step * batch
    positions = np.arange(first, first + batch)
    epochs = positions // num_images
    images = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        images[here] = epoch_order(num_images, int(epoch), seed)[positions[here] % num_images]
    return images


def batch_classes(step: int, batch: int, num_classes: int, seed: int, stream: Stream) -> Integers:
    """[batch]: a class for each image of a step. A block of `num_classes` consecutive ones holds each class once."""
    positions = np.arange(step * batch, (step + 1) * batch)
    blocks = positions // num_classes
    order = {
        block: np.random.default_rng(stream_seed(seed, stream, int(block))).permutation(num_classes)
        for block in np.unique(blocks)
    }
    return np.array([order[block][place] for block, place in zip(blocks, positions % num_classes, strict=True)])


def balanced_images(step: int, batch: int, class_sizes: Sequence[int], seed: int) -> tuple[Integers, Integers]:
    """[batch] images and [batch] classes of a step, each class equally often whatever its size.

    Images are numbered class after class. Within a class each is seen once before any is seen again.
    """
    count = len(class_sizes)
    classes = batch_classes(step, batch, count, seed, Stream.REAL_LABELS)
    # A class occurs once per block, so its n-th image is shown in the n-th block.
    turns = np.arange(step * batch, (step + 1) * batch) // count
    starts = np.concatenate([[0], np.cumsum(class_sizes)[:-1]])
    images = np.empty(batch, dtype=np.int64)
    for label, size in enumerate(class_sizes):
        epochs = turns // size
        for epoch in np.unique(epochs[classes == label]):
            here = (classes == label) & (epochs == epoch)
            # Epochs of one class must not follow those of another: the class shifts the index of the stream.
            order = epoch_order(size, int(epoch) * count + label, seed)
            images[here] = starts[label] + order[turns[here] % size]
    return images, classes


def batch_mirror(step: int, batch: int, seed: int) -> NDArray[np.bool_]:
    """[batch]: whether an image of a step is shown mirrored."""
    return np.random.default_rng(stream_seed(seed, Stream.MIRROR, step)).random(batch) < 0.5


def micro_batch_size(batch: int, world: int, group: int, limit: int | None) -> int:
    """Images per pass and worker: the largest that is at most `limit`, whole groups, and divides the worker's share.

    Raises ConfigError, naming what to change, where the batch cannot be shared out in whole groups.
    """
    if batch % (world * group):
        fitting = [n for n in range(1, batch // group + 1) if batch % (n * group) == 0]
        counts = ", ".join(str(n) for n in fitting)
        raise ConfigError(
            f"train.batch is {batch}, but {world} workers with groups of {group} (train.mbstd_group) take a multiple "
            f"of {world * group}. Set site.workers to one of {counts}, or train.batch to a multiple of {world * group}."
        )
    share = batch // world
    limit = share if limit is None else limit
    if limit < group:
        raise ConfigError(
            f"site.batch_per_worker is {limit}, less than a group of {group} (train.mbstd_group). Use at least {group}."
        )
    return max(size for size in range(group, min(limit, share) + 1, group) if share % size == 0)


def micro_batches(batch: int, world: int, rank: int, group: int, size: int) -> Integers:
    """[rounds, size]: positions within the global batch that a worker takes in each of its passes.

    D finds sample n of a pass in group n mod (size / group); the positions are laid out so that each such group is
    `group` consecutive positions of the global batch.
    """
    share = batch // world
    positions = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)
    by_group = positions.reshape(share // size, size // group, group)
    return np.ascontiguousarray(by_group.transpose(0, 2, 1)).reshape(share // size, size)
