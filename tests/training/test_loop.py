"""The loop: resuming is exact, stopping is clean, failures leave what was there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_training import assert_bitwise_equal, tiny_config, tiny_images, tiny_job, tiny_state

from dr_platform import checkpoint
from dr_platform.records import Tick
from dr_platform.training import loop
from dr_platform.training.plan import CHECKPOINTS
from dr_platform.training.report import DirectoryReporter, SilentReporter, read_progress, read_ticks


class Recording(SilentReporter):
    """Keeps the ticks."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)


def loaded(run_directory, config, num_classes=0):
    newest = checkpoint.newest(run_directory / CHECKPOINTS)
    _, tensors, counters = checkpoint.read(newest)
    state = tiny_state(config, num_classes)
    state.load(tensors, counters)
    return state


# p moves by a tenth every 3 steps and is not 0 when the run is broken; labels, mixed styles and averages besides.
EVERYTHING = {"augment": "bgc", "ada_kimg": 0.24, "ada_interval": 3, "ada_target": -0.99, "style_mixing": 0.5}
EVERYTHING |= {"posthoc_kimg": 0.016, "condition_on": [2]}


@pytest.mark.parametrize("changes", [{"augment": "none"}, EVERYTHING], ids=["plain", "everything"])
def test_resuming_gives_the_state_and_the_losses_of_an_unbroken_run(tmp_path, alone, changes):
    config, classes = tiny_config(**changes), 2 if "condition_on" in changes else 0
    images = dataclasses.replace(tiny_images(), class_sizes=(4, 7)) if classes else tiny_images()
    unbroken, ticks = tiny_state(config, classes), Recording()
    loop.train(tiny_job(config, tmp_path / "a"), unbroken, images, alone, ticks)

    half = config.model_copy(update={"kimg": 0.040})  # 5 of 8 steps: in the middle of a tick and of an R1 interval
    loop.train(tiny_job(half, tmp_path / "b"), tiny_state(config, classes), images, alone, SilentReporter())
    resumed, later = loaded(tmp_path / "b", config, classes), Recording()
    assert resumed.step == 5
    assert (resumed.ada.p > 0) == bool(classes)
    loop.train(tiny_job(config, tmp_path / "b"), resumed, images, alone, later)

    assert_bitwise_equal(resumed, unbroken)
    assert [tick.scalars for tick in later.ticks[1:]] == [tick.scalars for tick in ticks.ticks[3:]]


def test_a_stop_request_commits_a_checkpoint_that_continues_bitwise(tmp_path, alone):
    config = tiny_config()
    unbroken = tiny_state(config)
    loop.train(tiny_job(config, tmp_path / "a"), unbroken, tiny_images(), alone, SilentReporter())

    run = tmp_path / "b"
    run.mkdir()
    (run / loop.STOP_FILE).touch()
    assert loop.train(tiny_job(config, run), tiny_state(config), tiny_images(), alone, SilentReporter()) is False
    (run / loop.STOP_FILE).unlink()
    state = loaded(run, config)
    assert state.step == 1
    assert loop.train(tiny_job(config, run), state, tiny_images(), alone, SilentReporter()) is True
    assert_bitwise_equal(state, unbroken)


def test_a_tick_reports_what_people_look_for(tmp_path, alone):
    config = tiny_config()
    reporter = DirectoryReporter(tmp_path)
    loop.train(tiny_job(config, tmp_path), tiny_state(config), tiny_images(), alone, reporter)
    ticks = list(read_ticks(tmp_path))
    assert [tick.images_seen for tick in ticks] == [16, 32, 48, 64]
    assert {
        "loss/generator", "loss/discriminator", "logits/real", "logits/fake", "signs/real", "signs/fake",
        "gradient/generator", "gradient/discriminator", "gradient/r1", "r1/penalty", "ada/p",
    } == {name for name in ticks[0].scalars if not name.startswith("health/")}  # fmt: skip
    assert {
        "health/distance", "health/nearest", "health/effective_rank", "health/grid_2", "health/grid_amplitude",
        "health/gradient_min", "health/contrast_min", "health/magnitude_max", "health/clamped_max",
    } <= set(ticks[0].scalars)  # fmt: skip
    assert all((tmp_path / tick.samples).is_file() for tick in ticks)
    assert ticks[-1].eta_seconds == 0
    assert read_progress(tmp_path).images_seen == 64


def test_resuming_cuts_the_history_back_to_the_checkpoint(tmp_path, alone):
    config = tiny_config(checkpoint_ticks=2)
    loop.train(tiny_job(config, tmp_path), tiny_state(config), tiny_images(), alone, DirectoryReporter(tmp_path))
    before = [tick.scalars for tick in read_ticks(tmp_path)]
    newest, older = list(checkpoint.committed(tmp_path / CHECKPOINTS))
    (newest / "generator.safetensors").write_bytes(b"damaged")
    state = loaded(tmp_path, config)
    assert state.step == int(older.name.removeprefix("step-"))
    loop.train(tiny_job(config, tmp_path), state, tiny_images(), alone, DirectoryReporter(tmp_path))
    assert [tick.scalars for tick in read_ticks(tmp_path)] == before


def test_the_average_follows_the_generator_and_its_buffers(tmp_path, alone):
    config = tiny_config()
    state = tiny_state(config)
    start = tiny_state(config)
    loop.train(tiny_job(config, tmp_path), state, tiny_images(), alone, SilentReporter())
    assert torch.equal(state.generator_ema.mapping.w_avg, state.generator.mapping.w_avg)
    assert not torch.equal(state.generator.mapping.w_avg, start.generator.mapping.w_avg)
    weight = state.generator_ema.synthesis.input.weight
    assert not torch.equal(weight, state.generator.synthesis.input.weight)
    assert not torch.equal(weight, start.generator.synthesis.input.weight)
