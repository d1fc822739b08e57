"""A training small enough to step through in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dr_platform.config import Params, TrainConfig, parse_params
from dr_platform.data import partition
from dr_platform.data.loader import ImageSet
from dr_platform.training.batches import Batches
from dr_platform.training.group import Group
from dr_platform.training.loop import Job
from dr_platform.training.state import TrainingState, new_state

RESOLUTION = 16
ROOT = Path(__file__).parents[2]


def tiny_config(**changes: object) -> TrainConfig:
    import yaml

    params: Params = parse_params(yaml.safe_load((ROOT / "params.yaml").read_text()), source="params.yaml")
    small = {
        "kimg": 0.064,
        "batch": 8,
        "z_dim": 8,
        "w_dim": 8,
        "num_layers": 4,
        "channel_base": 128,
        "channel_max": 8,
        "discriminator_channel_base": 128,
        "discriminator_channel_max": 8,
        "gamma": 0.5,
        "r1_interval": 4,
        "tick_kimg": 0.016,
        "checkpoint_ticks": 1,
        "mirror": True,
    }
    return TrainConfig.model_validate({**params.train.model_dump(), **small, **changes})


def tiny_images(count: int = 11) -> ImageSet:
    pixels = np.random.default_rng(5).integers(0, 256, (count, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    return ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public")


def tiny_state(config: TrainConfig, num_classes: int = 0) -> TrainingState:
    return new_state(config, RESOLUTION, torch.device("cpu"), num_classes)


def tiny_batches(config: TrainConfig, state: TrainingState, group: Group, size: int, images: ImageSet) -> Batches:
    mine = partition.micro_batches(config.batch, group.world, group.rank, config.mbstd_group, size)
    return Batches(config, images, state.generator.num_ws, mine, group.device)


def tiny_job(config: TrainConfig, run_directory: Path) -> Job:
    describe = {
        "run": run_directory.name,
        "grade": 1,
        "resolution": RESOLUTION,
        "visibility": "public",
        "config_sha256": "1" * 64,
        "data_sha256": "0" * 64,
        "train_images": 11,
        "parent": None,
    }
    return Job(config=config, run_directory=run_directory, describe=describe)


def all_tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    return {f"{file}:{name}": tensor for file, named in state.tensors().items() for name, tensor in named.items()}


def assert_bitwise_equal(one: TrainingState, other: TrainingState) -> None:
    first, second = all_tensors(one), all_tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert one.counters() == other.counters()
