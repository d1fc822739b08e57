"""Averages of any length from the snapshots of a training, against one that was tracked while it ran."""

from __future__ import annotations

import pytest
import torch
from tiny_training import tiny_config, tiny_images, tiny_job, tiny_state

from dr_platform.errors import CheckpointError
from dr_platform.gan import posthoc
from dr_platform.training import averages, loop
from dr_platform.training.report import SilentReporter

STEPS = 120
CONFIG = {"kimg": STEPS * 8 / 1000, "tick_kimg": 10, "posthoc_kimg": 8 * 4 / 1000, "lr_generator": 0.01}


class Tracking(SilentReporter):
    """Averages G after every step, which is when progress is told."""

    def __init__(self, state, length: float) -> None:
        self.state, self.gamma = state, posthoc.exponent(length)
        self.average = {name: torch.zeros_like(tensor) for name, tensor in state.generator.state_dict().items()}

    def progress(self, progress) -> None:
        weight = posthoc.update_weight(self.gamma, self.state.step)
        posthoc.update_average(self.average, dict(self.state.generator.state_dict()), weight)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from dr_platform.training.group import Group

    config, root = tiny_config(**CONFIG), tmp_path_factory.mktemp("run")
    state = tiny_state(config)
    tracking = Tracking(state, 0.13)
    loop.train(tiny_job(config, root), state, tiny_images(), Group(), tracking)
    return root, state, tracking.average


def test_a_length_that_was_not_kept_is_reconstructed_to_a_thousandth(trained):
    root, _, tracked = trained
    step, found = averages.reconstruct(root, 0.13)
    assert step == STEPS
    ours, theirs = (torch.cat([side[name].flatten() for name in tracked]) for side in (found, tracked))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_snapshots_are_kept_at_their_interval(trained):
    assert averages.snapshot_steps(trained[0]) == list(range(4, STEPS + 1, 4))


def test_the_averages_survive_a_checkpoint(trained):
    _, state, _ = trained
    again = tiny_state(tiny_config(**CONFIG))
    again.load(state.tensors(), state.counters())
    assert again.averages.keys() == state.averages.keys() == set(posthoc.KEPT_LENGTHS)
    for length, average in state.averages.items():
        assert all(torch.equal(again.averages[length][name], tensor) for name, tensor in average.items())


@pytest.mark.parametrize(("length", "step"), [(0.01, None), (0.3, None), (0.1, STEPS + 1)])
def test_what_the_snapshots_cannot_give_is_refused(trained, length, step):
    with pytest.raises(CheckpointError, match=f"snapshots up to step {STEPS} give lengths from 0.03 to 0.25"):
        averages.reconstruct(trained[0], length, step)


def test_a_run_without_snapshots_says_what_to_set(tmp_path):
    with pytest.raises(CheckpointError, match=r"Set train.posthoc_kimg"):
        averages.reconstruct(tmp_path, 0.1)


def test_a_damaged_snapshot_is_named(trained, tmp_path):
    path = tmp_path / averages.SNAPSHOTS / "step-00000004.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"step-00000004.safetensors cannot be read"):
        averages.reconstruct(tmp_path, 0.1)
