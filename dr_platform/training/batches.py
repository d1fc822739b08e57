"""What a worker shows G and D at a step: images, latents, labels and augmentations, drawn anew from (seed, step).

Everything is drawn for the global batch and then cut, so a sample's random numbers follow from its place in the batch
and not from the worker that takes it. Real images for D's two phases are the same; their augmentations are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dr_platform.config import TrainConfig
from dr_platform.data import partition
from dr_platform.data.loader import ImageSet, batch_of
from dr_platform.data.partition import Integers, Stream
from dr_platform.gan import Augmentation, Draws, augmentation_named, draw
from dr_platform.training.step import FakePass, RealPass


@dataclass(frozen=True)
class Batches:
    """The source of a worker's passes."""

    config: TrainConfig
    images: ImageSet
    num_ws: int  # places that style mixing chooses from
    mine: Integers  # [passes, size] positions in the global batch that this worker takes
    device: torch.device
    pixels: Tensor = field(init=False)  # of the images, on the device where they fit

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", self.images.pixels_near(self.device))

    @property
    def augmentation(self) -> Augmentation | None:
        """What D's images undergo. Fundus photographs are mirrored only if both eyes are among them."""
        return augmentation_named(self.config.augment, flip=self.images.has_both_eyes)

    @property
    def num_classes(self) -> int:
        """Labels of a conditional training, else 0."""
        return len(self.images.class_sizes)

    def real(self, step: int, stream: Stream) -> list[RealPass]:
        """The step's real images. stream: of their augmentation, AUGMENT_REAL or AUGMENT_R1."""
        config = self.config
        if self.num_classes:
            chosen, classes = partition.balanced_images(step, config.batch, self.images.class_sizes, config.seed)
        else:
            chosen, classes = partition.batch_images(step, config.batch, len(self.images), config.seed), None
        mirror = partition.batch_mirror(step, config.batch, config.seed) if config.mirror else None
        draws = self._draws(step, stream)
        return [
            RealPass(
                batch_of(self.pixels, chosen[places], None if mirror is None else mirror[places]).to(self.device),
                self._one_hot(classes, places),
                self._cut(draws, places),
            )
            for places in self.mine
        ]

    def fake(self, step: int, latents: Stream, labels: Stream, mixing: Stream, augment: Stream) -> list[FakePass]:
        """The latents of a phase, each kind of number from its stream."""
        config = self.config
        z = self._normal(step, latents)
        classes = None
        if self.num_classes:
            classes = partition.batch_classes(step, config.batch, self.num_classes, config.seed, labels)
        mixed = self._mixing(step, mixing)
        draws = self._draws(step, augment)
        passes = []
        for places in self.mine:
            index = torch.from_numpy(places)
            second = None if mixed is None else tuple(part[index].to(self.device) for part in mixed)
            c, cut = self._one_hot(classes, places), self._cut(draws, places)
            passes.append(FakePass(z[index].to(self.device), c, cut, second))  # type: ignore[arg-type]
        return passes

    def _normal(self, step: int, stream: Stream) -> Tensor:
        return torch.randn(self.config.batch, self.config.z_dim, generator=self._source(step, stream))

    def _mixing(self, step: int, stream: Stream) -> tuple[Tensor, Tensor] | None:
        """Second latents, and the place from which they count: past the last one for samples that are not mixed."""
        config = self.config
        if config.style_mixing == 0:
            return None
        source = self._source(step, stream)
        second = torch.randn(config.batch, config.z_dim, generator=source)
        place = torch.randint(1, self.num_ws, (config.batch,), generator=source)
        mixed = torch.rand(config.batch, generator=source) < config.style_mixing
        return second, torch.where(mixed, place, self.num_ws)

    def _draws(self, step: int, stream: Stream) -> Draws | None:
        if self.augmentation is None:
            return None
        return draw(self.config.batch, self._source(step, stream))

    def _cut(self, draws: Draws | None, places: Integers) -> Draws | None:
        return None if draws is None else draws[torch.from_numpy(places)]

    def _one_hot(self, classes: Integers | None, places: Integers) -> Tensor | None:
        if classes is None:
            return None
        chosen = torch.from_numpy(np.asarray(classes[places]))
        return F.one_hot(chosen, self.num_classes).to(self.device, torch.float32)

    def _source(self, step: int, stream: Stream) -> torch.Generator:
        return torch.Generator().manual_seed(partition.stream_seed(self.config.seed, stream, step))
