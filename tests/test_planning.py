"""Plans: the arithmetic by hand, the measurement against a training that was really run, and impossible input."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from dr_platform import checkpoint, planning
from dr_platform.cli.main import app
from dr_platform.cluster import Resources
from dr_platform.config import Params, parse_params
from dr_platform.data.loader import ImageSet
from dr_platform.errors import ConfigError, TrainingError
from dr_platform.planning import Rehearsed
from dr_platform.training import loop, rehearsal
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS
from dr_platform.training.rehearsal import Fixed, Passes, Refused, Task
from dr_platform.training.report import DirectoryReporter
from dr_platform.training.state import new_state

ROOT = Path(__file__).parents[1]
ALONE = Resources(workers=1, use_gpu=False)
TINY = {
    "kimg": 0.4, "batch": 8, "z_dim": 8, "w_dim": 8, "num_layers": 4, "channel_base": 128, "channel_max": 8,
    "discriminator_channel_base": 128, "discriminator_channel_max": 8, "r1_interval": 4, "tick_kimg": 0.1,
    "checkpoint_ticks": 2, "gamma": 0.5,
}  # fmt: skip


def parameters(site: dict | None = None, sweep: dict | None = None, **train: object) -> Params:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["prepare"]["resolution"] = 16
    raw["train"] |= {**TINY, **train}
    raw["site"] = {"workers": 1, "use_gpu": False, **(site or {})}
    raw["sweep"] |= sweep or {}
    return parse_params(raw, source="the test")


def passes(size: int, seconds: float, memory: int = 100) -> Passes:
    """G takes `seconds` per pass, D half of it, R1 as much, the rest 0.01 s a step; repeated without any spread."""
    three = (seconds,) * 3
    return Passes(size, three, tuple(s / 2 for s in three), three, (0.01,) * 3, memory)


FIXED = Fixed("a card", 1000, (0.5,) * 3, (2.0,) * 3, (0.001,) * 3)


def test_the_hours_are_those_one_writes_down():
    """50 steps of two passes, R1 in every fourth; 4 ticks of 100 (12.5 steps, so 12) images; 2 checkpoints."""
    params = parameters()
    plan = planning.estimate(params, Rehearsed((passes(4, 0.1),), FIXED, None), ALONE, cores=1)
    step = 2 * 0.15 + 0.01 + 2 * 0.1 / 4
    ticks = math.ceil(50 / 12)
    assert plan.seconds_per_step.value == pytest.approx(step)
    assert plan.training_hours.value * 3600 == pytest.approx(50 * step + ticks * 2.0 + math.ceil(ticks / 2) * 0.5)
    drawn = params.evaluate.images + 4 * params.evaluate.equivariance_images
    assert plan.metrics_hours.value * 3600 == pytest.approx(drawn * 0.001)
    assert plan.hours.value == pytest.approx(plan.training_hours.value + plan.metrics_hours.value)
    assert plan.seconds_per_step.error == pytest.approx(0, abs=1e-12)


def test_twice_the_kimg_is_twice_the_hours():
    measured = Rehearsed((passes(4, 0.1),), replace(FIXED, checkpoint_seconds=(0.0,), tick_seconds=(0.0,)), None)
    once, twice = (planning.estimate(parameters(kimg=kimg), measured, ALONE) for kimg in (0.4, 0.8))
    assert twice.training_hours.value == pytest.approx(2 * once.training_hours.value)
    assert twice.metrics_hours == once.metrics_hours


def test_the_error_of_the_hours_is_that_of_the_steps():
    """Standard deviation 0.01 of 4 repetitions: one standard error is 0.005 of the mean of 0.1, that is 5 %."""
    spread = 0.01 * math.sqrt(3) / 2  # of four numbers, two each side of the mean
    times = (0.1 - spread, 0.1 - spread, 0.1 + spread, 0.1 + spread)
    quick = Passes(8, times, (0.0,) * 4, (), (0.0,) * 4, 100)
    fixed = replace(FIXED, checkpoint_seconds=(0.0,), tick_seconds=(0.0,), forward_seconds=(0.0,))
    plan = planning.estimate(parameters(gamma=0), Rehearsed((quick,), fixed, None), ALONE)
    assert plan.training_hours.error / plan.training_hours.value == pytest.approx(0.05)
    (choice,) = plan.choices
    assert choice.images_per_second.value == pytest.approx(80)
    assert choice.images_per_second.error == pytest.approx(4)


def test_the_fastest_passes_are_chosen_and_the_batch_stays():
    measured = Rehearsed((passes(4, 0.1), passes(8, 0.15, 180), passes(16, 0.5, 340)), FIXED, Refused(32, "too much"))
    plan = planning.estimate(parameters(batch=32), measured, ALONE)
    assert (plan.batch_per_worker, plan.rounds, plan.batch, plan.memory_bytes) == (8, 4, 32, 180)
    assert [choice.batch_per_worker for choice in plan.choices if choice.chosen] == [8]
    assert plan.refused == "32: too much"


def test_two_workers_share_the_passes_and_are_paid_both():
    measured = Rehearsed((passes(4, 0.1),), FIXED, None)
    one, two = (
        planning.estimate(parameters(), measured, Resources(n, use_gpu=False), price=2.0, cores=4) for n in (1, 2)
    )
    assert (one.rounds, two.rounds) == (2, 1)
    assert two.seconds_per_step.value == pytest.approx(0.15 + 0.01 + 0.1 / 4)
    assert two.worker_hours.value == pytest.approx(2 * two.hours.value)
    assert two.cost.value == pytest.approx(2.0 * two.worker_hours.value)
    assert one.cost.value == pytest.approx(2.0 * one.hours.value)


def test_more_threads_than_cores_take_longer_in_proportion():
    measured = Rehearsed((passes(4, 0.1),), FIXED, None)
    two = Resources(2, use_gpu=False)
    roomy, crowded = (planning.estimate(parameters(), measured, two, cores=cores) for cores in (2, 1))
    assert (roomy.crowding, crowded.crowding) == (1.0, 2.0)
    assert crowded.seconds_per_step.value == pytest.approx(2 * roomy.seconds_per_step.value)
    assert any("threads outnumber cores 2.0 to 1" in said for said in crowded.assumptions)


def test_a_sweep_is_the_sum_over_its_grid_in_turns():
    params = parameters(sweep={"sizes": [8, 16, 32], "gammas": [1, 2], "kimg": 0.4, "max_concurrent": 4})
    measured = Rehearsed((passes(4, 0.1),), FIXED, None)
    one = planning.estimate(params, measured, ALONE, cores=8)
    grid = planning.estimate(params, measured, ALONE, sweep=True, price=3.0, cores=8)
    assert (grid.trainings, grid.at_a_time) == (6, 4)
    assert grid.hours.value == pytest.approx(2 * one.hours.value)  # four at first, then two
    assert grid.worker_hours.value == pytest.approx(6 * one.hours.value)
    assert grid.cost.value == pytest.approx(18 * one.hours.value)
    assert grid.disk_bytes == 6 * one.disk_bytes


def test_a_sweep_on_one_gpu_takes_turns():
    params = parameters(sweep={"max_concurrent": 4}, site={"use_gpu": True})
    measured = Rehearsed((passes(4, 0.1),), FIXED, None)
    grid = planning.estimate(params, measured, Resources(1, use_gpu=True), sweep=True, gpus=1)
    assert grid.at_a_time == 1


def test_the_images_take_three_bytes_a_pixel_and_may_be_unknown():
    measured = Rehearsed((passes(4, 0.1),), FIXED, None)
    assert planning.estimate(parameters(), measured, ALONE, images=2602).dataset_bytes == 2602 * 16 * 16 * 3
    assert planning.estimate(parameters(), measured, ALONE).dataset_bytes is None


# -- measured ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Rehearsed:
    """A rehearsal of the tiny training in this process, five repetitions."""
    params = parameters()
    task = Task(params.train, 16, (4, 8), 5, False, 1, 2**40, 60.0, tmp_path_factory.mktemp("scratch"))
    found = list(rehearsal.rehearse(task))
    assert [type(message).__name__ for message in found] == ["Passes", "Fixed", "Passes"]
    return Rehearsed((found[0], found[2]), found[1], None)


@pytest.fixture(scope="module")
def really_run(tmp_path_factory) -> tuple[Path, float]:
    """The run directory of the planned training, and its seconds."""
    torch.set_num_threads(1)
    params, run = parameters(), tmp_path_factory.mktemp("run")
    pixels = np.random.default_rng(5).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    images = ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public")
    describe = {
        "run": "planned", "grade": 1, "resolution": 16, "visibility": "public", "config_sha256": "1" * 64,
        "data_sha256": "0" * 64, "train_images": 32, "parent": None,
    }  # fmt: skip
    state = new_state(params.train, 16, torch.device("cpu"))
    start = time.perf_counter()
    loop.train(loop.Job(params.train, run, describe), state, images, Group(), DirectoryReporter(run))
    return run, time.perf_counter() - start


def test_the_predicted_time_is_that_of_a_real_training_within_a_factor_of_two(measured, really_run):
    """Two, because other processes share the cores of a test machine; alone it is within 20 %."""
    eight = Rehearsed(tuple(p for p in measured.passes if p.size == 8), measured.fixed, None)
    plan = planning.estimate(parameters(), eight, ALONE)
    ratio = plan.training_hours.value * 3600 / really_run[1]
    assert 0.5 < ratio < 2, ratio


def test_the_predicted_checkpoint_is_the_tensors_of_a_written_one(measured, really_run):
    """To the byte, without the headers: of networks this small they are a third of the files."""
    directory = checkpoint.newest(really_run[0] / CHECKPOINTS)
    tensors = 0
    for path in directory.glob("*.safetensors"):
        header = int.from_bytes(path.read_bytes()[:8], "little")
        tensors += path.stat().st_size - 8 - header
    assert measured.fixed.checkpoint_bytes == tensors


def test_the_default_networks_checkpoint_is_a_written_one_within_a_hundredth(tmp_path, monkeypatch):
    params = parse_params(yaml.safe_load((ROOT / "params.yaml").read_text()), source="params.yaml")
    task = Task(params.train, 32, (4,), 2, False, 1, 2**40, 60.0, tmp_path)
    written: list[int] = []
    write = checkpoint.write

    def weigh(*arguments):
        record = write(*arguments)
        written.append(sum(file.bytes for file in record.files.values()))
        return record

    monkeypatch.setattr(checkpoint, "write", weigh)
    (fixed,) = (message for message in rehearsal.rehearse(task) if isinstance(message, Fixed))
    assert fixed.checkpoint_bytes == pytest.approx(written[-1], rel=0.01)


def test_a_rehearsal_leaves_nothing_in_its_directory(tmp_path):
    task = Task(parameters().train, 16, (4,), 2, False, 1, 2**40, 60.0, tmp_path)
    assert len(list(rehearsal.rehearse(task))) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_long_measurement_says_how_long(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "_WORTH_SAYING_SECONDS", 0.0)
    task, said = Task(parameters().train, 16, (4,), 2, False, 1, 2**40, 60.0, tmp_path), []
    next(rehearsal.rehearse(task, said.append))
    assert len(said) == 1
    assert "a step of 4 images takes 0 s" in said[0]


def test_without_r1_there_is_no_r1_to_measure(tmp_path):
    task = Task(parameters(gamma=0).train, 16, (4,), 2, False, 1, 2**40, 60.0, tmp_path)
    first = next(rehearsal.rehearse(task))
    assert first.r1 == ()
    assert min(first.generator) > 0


@pytest.mark.parametrize(("limit", "patience", "why"), [(0, 60.0, r"GiB are available"), (2**40, 0.0, "more than 0 s")])
def test_a_size_that_would_not_fit_is_not_tried(tmp_path, limit, patience, why):
    task = Task(parameters().train, 16, (4, 8), 2, False, 1, limit, patience, tmp_path)
    *_, last = rehearsal.rehearse(task)
    assert isinstance(last, Refused)
    assert last.size == 8
    assert why in last.reason


# -- as a command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(parameters(subset=20).model_dump(mode="json", by_alias=True)), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_one_document_that_a_program_can_read(project):
    before = (project / "params.yaml").read_bytes()
    arguments = ["plan", "--json", "--steps", "2", "--gpu-price", "2.5", "--kimg", "0.8"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.stdout)
    assert plan["kimg"] == 0.8
    assert plan["cost"]["value"] == pytest.approx(2.5 * plan["worker_hours"]["value"])
    assert plan["dataset_bytes"] == 20 * 16 * 16 * 3
    assert [choice["batch_per_worker"] for choice in plan["choices"]] == [4, 8]
    assert plan["memory_bytes"] > plan["checkpoint_bytes"] / 2
    assert (project / "params.yaml").read_bytes() == before


def test_a_plan_for_people_names_what_it_assumes(project, monkeypatch):
    params = parameters()
    made = planning.estimate(params, Rehearsed((passes(4, 0.1),), FIXED, Refused(8, "too much")), ALONE, price=1.0)
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: made)
    shown = CliRunner().invoke(app, ["plan", "--gpu-price", "1"], catch_exceptions=False)
    for word in ("training", "metrics", "all together", "cost", "checkpoint", "disk", "memory"):
        assert word in shown.stdout
    assert "Assumed: this machine was as busy" in shown.stderr
    assert "Not measured: passes of 8: too much" in shown.stderr
    assert json.dumps(asdict(made))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kimg", "0"], r"--kimg is 0\. Give thousands of images, above 0"),
        (["--kimg", "nan"], r"--kimg is nan"),
        (["--kimg", "1e308"], r"--kimg is 1e\+308\. Give thousands of images, .* at most 1e\+09"),
        (["--gpu-price", "1e308"], r"--gpu-price is 1e\+308\. Give the price"),
        (["--gpu-price", "-1"], r"--gpu-price is -1\. Give the price of one GPU for an hour"),
        (["--steps", "1"], r"--steps is 1, but a spread needs at least 2"),
        (["--profile", "paper"], r"There is no profile 'paper'\. Known: demo"),
    ],
)
def test_impossible_input_is_one_line_before_anything_is_measured(project, arguments, message):
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)


def test_workers_that_cannot_share_the_batch_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"train.batch is 8, but 3 workers"):
        planning.rehearse(parameters(), Resources(3, use_gpu=False), steps=2, scratch=Path())


def test_a_process_that_ends_is_an_error_of_one_line(tmp_path):
    """The scratch directory is missing, so the child fails after its first passes."""
    with pytest.raises(TrainingError, match=r"Not even passes of 4 images .* could be measured at 16 px"):
        planning.rehearse(parameters(batch=4), ALONE, steps=2, scratch=tmp_path / "missing")


def test_a_profile_is_planned_without_touching_the_file(project):
    shutil.copy(ROOT / "params.yaml", project)
    before = (project / "params.yaml").read_bytes()
    params = planning.with_profile(planning.parse_params(yaml.safe_load(before), source="-"), "paper-dr1-512")
    assert (params.prepare.resolution, params.train.batch, params.evaluate.images) == (512, 32, 50000)
    assert (project / "params.yaml").read_bytes() == before
