"""A real SQLite store, migrated once and copied for each test, and a real checkpoint of a tiny generator."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tracking_samples import SHA, Trained, report_on

from dr_platform import checkpoint as checkpoints
from dr_platform import tracking
from dr_platform.gan import Generator

TINY = {
    "z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 16, "img_channels": 3,
    "num_layers": 4, "channel_base": 128, "channel_max": 8,
}  # fmt: skip


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store with our experiment; making one takes seconds."""
    root = tmp_path_factory.mktemp("store")
    tracking.connect("sqlite:///mlflow.db", "mlartifacts", root)
    return root / "mlflow.db"


@pytest.fixture
def project(migrated: Path, tmp_path: Path) -> Path:
    """A project directory with a store of its own."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copyfile(migrated, root / "mlflow.db")
    with sqlite3.connect(root / "mlflow.db") as store:
        location = (root / "mlartifacts").as_uri()
        store.execute("update experiments set artifact_location = ? where name = 'dr-platform'", (location,))
    return root


@pytest.fixture
def connect(project: Path) -> Callable[[], tracking.Tracker]:
    """A new connection to the project's store, as another process would make it."""
    return lambda: tracking.connect("sqlite:///mlflow.db", "mlartifacts", project)


@pytest.fixture
def tracker(connect: Callable[[], tracking.Tracker]) -> tracking.Tracker:
    return connect()


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Trained]:
    """Make the checkpoint of a training with this seed."""

    def make(seed: int) -> Trained:
        torch.manual_seed(seed)
        generator = Generator(**TINY)
        record = checkpoints.write(
            tmp_path_factory.mktemp(f"run-{seed}"),
            {
                checkpoints.GENERATOR_FILE: generator.state_dict(),
                "discriminator.safetensors": {"knows_the_training_images": torch.ones(3)},
            },
            {"step": 10},
            {
                "run": f"dr1-t16-{seed}", "step": 10, "images_seen": 160, "complete": True, "grade": 1,
                "resolution": 16, "visibility": "proprietary", "config_sha256": SHA, "data_sha256": SHA,
                "train_images": 480, "parent": None, "generator": generator.init_kwargs, "discriminator": {},
            },
        )  # fmt: skip
        directory = next(checkpoints.committed(tmp_path_factory.getbasetemp() / f"run-{seed}0"))
        return Trained(directory, record, report_on(record))

    return make


@pytest.fixture(scope="session")
def trained(train: Callable[[int], Trained]) -> Trained:
    return train(0)
