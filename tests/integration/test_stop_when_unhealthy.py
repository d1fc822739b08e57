"""A training that goes wrong ends by itself where that was asked for, in one line, and MLflow knows why."""

from __future__ import annotations

import pytest
from small_project import assert_one_line_error, drp, prepared_project

from dr_platform import checkpoint, road
from dr_platform.config import load_params
from dr_platform.training.plan import CHECKPOINTS
from dr_platform.training.report import read_ticks

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]


def test_a_training_that_diverges_stops_itself_with_a_checkpoint(tmp_path):
    """A hundred times the learning rates and no R1: losses in the hundreds within a few ticks."""
    ill = {"lr_generator": 0.3, "lr_discriminator": 0.3, "gamma": 0.0, "stop_when_unhealthy": True}
    root = prepared_project(tmp_path / "project", train=ill)
    done = drp(root, "train")
    assert_one_line_error(done, "The training stopped, with a checkpoint, for", "train.stop_when_unhealthy: false")
    assert "critical: " in done.stderr

    (directory,) = (path.parent for path in root.glob("runs/*/ticks.jsonl"))
    *_, last = read_ticks(directory)
    assert last.findings[0].severity == "critical"
    assert checkpoint.verify(checkpoint.newest(directory / CHECKPOINTS)).images_seen == last.images_seen

    tracker = road.Project(root, load_params(root)).tracker()
    (run,) = tracker._client.search_runs([tracker._experiment_id])
    assert run.data.tags["health"] == f"critical: {last.findings[0].kind}"
    assert run.info.status == "FAILED"
    assert [file.path for file in tracker._client.list_artifacts(run.info.run_id) if not file.is_dir] == ["health.json"]
