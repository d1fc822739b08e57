"""Averages of any length from the snapshots of a training, against one that was tracked while it ran."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_training import tiny_config, tiny_images, tiny_job, tiny_state

from dr_platform.errors import CheckpointError, TrainingError
from dr_platform.gan import posthoc
from dr_platform.training import averages, loop
from dr_platform.training.group import Group
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


@pytest.mark.parametrize(("step", "nearest"), [(1, "4, 8, 12"), (3, "4, 8, 12"), (57, "52, 56, 60")])
def test_a_step_without_a_snapshot_is_refused_and_the_nearest_are_named(trained, step, nearest):
    with pytest.raises(CheckpointError, match=f"no snapshot of step {step}, .* nearest are {nearest}"):
        averages.reconstruct(trained[0], 0.1, step)


def test_between_snapshots_no_combination_comes_near_the_weighting():
    """Why: the relative distance of the best combination from the wanted weighting function, in closed form."""
    times = [100.0 * count for count in range(1, 41) for _ in posthoc.KEPT_LENGTHS]
    gammas = [posthoc.exponent(length) for _ in range(40) for length in posthoc.KEPT_LENGTHS]
    t, g, gamma = np.array(times), np.array(gammas), posthoc.exponent(0.03)

    def distance(time: float) -> float:
        part = posthoc.coefficients(times, gammas, time, gamma)
        inner = posthoc._overlap(t[:, None], g[:, None], t[None], g[None])
        wanted, whole = (
            posthoc._overlap(*others, np.array(time), np.array(gamma))
            for others in ((t, g), (np.array(time), np.array(gamma)))
        )
        return float(np.sqrt(max(0.0, 1 - (2 * part @ wanted - part @ inner @ part) / whole)))

    assert distance(4000) < 0.02
    assert distance(3950) > 0.3


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained[0] / averages.SNAPSHOTS, tmp_path / averages.SNAPSHOTS)
    return tmp_path, tmp_path / averages.SNAPSHOTS / "step-00000008.safetensors"


def test_files_of_other_names_are_no_snapshots(copied):
    root, path = copied
    path.with_name("step-abc.safetensors").write_bytes(b"")
    path.with_name("step-00000008 (copy).safetensors").write_bytes(b"")
    assert averages.snapshot_steps(root) == list(range(4, STEPS + 1, 4))


def test_a_flipped_bit_of_a_snapshot_is_noticed(copied):
    root, path = copied
    content = bytearray(path.read_bytes())
    content[-100] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000008.safetensors is damaged: .* Remove it, and"):
        averages.reconstruct(root, 0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda named: {"other": torch.zeros(1)}, "does not hold averages of the lengths 0.05, 0.20"),
        (lambda named: {**named, "0.10/x": torch.zeros(1)}, "does not hold averages of the lengths 0.05, 0.20"),
        (lambda named: {k: v for k, v in named.items() if k.startswith("0.05")}, "does not hold averages"),
        (lambda named: dict(list(named.items())[1:]), "is of another network"),
        (lambda named: {name: torch.zeros(3) for name in named}, "is of another network"),
    ],
)
def test_a_snapshot_of_something_else_is_named(copied, change, words):
    root, path = copied
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    with pytest.raises(CheckpointError, match=f"step-00000008.safetensors {words}"):
        averages.reconstruct(root, 0.1)


def test_a_snapshot_that_cannot_be_written_ends_the_training_in_one_line(tmp_path):
    config = tiny_config(kimg=0.016, tick_kimg=10, posthoc_kimg=0.008)
    (tmp_path / averages.SNAPSHOTS).write_text("in the way")
    with pytest.raises(TrainingError, match=r"averages cannot be written: .*\. Free some space or make it writable"):
        loop.train(tiny_job(config, tmp_path), tiny_state(config), tiny_images(), Group(), SilentReporter())
