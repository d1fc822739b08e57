"""Training on Ray survives what kills it, and the result is the same to the bit."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from small_project import assert_one_line_error, prepared_project, run, start, wait_for

from dr_platform import checkpoint, cluster, road
from dr_platform.config import load_params
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS, TrainPlan, make_plan
from dr_platform.training.report import SilentReporter, read_ticks
from dr_platform.training.worker import work

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]

TRAIN = (sys.executable, "-m", "pipelines.train")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Shards prepared once; each test trains in a project of its own that links to them."""
    return prepared_project(tmp_path_factory.mktemp("faults") / "prepared")


@pytest.fixture
def fresh(project, tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    for name in os.listdir(project):
        (root / name).symlink_to(project / name)
    return root


def plan_of(root: Path) -> TrainPlan:
    project = road.Project(root, load_params(root))
    return make_plan(project.params, project.prepared, project.storage)


def _work_rank(rank: int, world: int, port: int, plan: TrainPlan) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    work(plan, Group.current(torch.device("cpu")), SilentReporter())
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def undisturbed(project, tmp_path_factory):
    """The final tensors of a run that nobody disturbs and no Ray starts, with one worker."""
    plan = plan_of(project)
    quiet = TrainPlan(**{**plan.__dict__, "run_directory": tmp_path_factory.mktemp("quiet") / plan.run})
    work(quiet, Group(), SilentReporter())
    return final_tensors(quiet.run_directory)


def final_tensors(run_directory: Path) -> dict[str, torch.Tensor]:
    directory = cluster.finished_checkpoint(run_directory)
    assert directory is not None
    _, tensors, _ = checkpoint.read(directory)
    return {f"{file}/{name}": tensor for file, named in tensors.items() for name, tensor in named.items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def ray_workers(driver: int) -> list[psutil.Process]:
    family = psutil.Process(driver).children(recursive=True)
    return [process for process in family if "RayTrainWorker" in "".join(process.cmdline()[:1])]


def test_a_killed_worker_is_restarted_and_changes_nothing(fresh, undisturbed):
    plan = plan_of(fresh)
    process = start(fresh, *TRAIN)
    wait_for(lambda: len(list(read_ticks(plan.run_directory))) >= 2, process)
    (victim,) = ray_workers(process.pid)
    victim.kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert_same(final_tensors(plan.run_directory), undisturbed)
    seen = [tick.images_seen for tick in read_ticks(plan.run_directory)]
    assert seen == sorted(set(seen))


def test_a_killed_driver_continues_with_the_same_command(fresh, undisturbed):
    plan = plan_of(fresh)
    process = start(fresh, *TRAIN)
    wait_for(lambda: any((plan.run_directory / CHECKPOINTS).glob("step-*")), process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
    done = run(fresh, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert_same(final_tensors(plan.run_directory), undisturbed)


def test_sigterm_commits_a_checkpoint_and_the_same_command_continues(fresh, undisturbed):
    plan = plan_of(fresh)
    process = start(fresh, *TRAIN)
    wait_for(lambda: len(list(read_ticks(plan.run_directory))) >= 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped: " in output
    assert "was stopped and has a checkpoint. Run the same command to continue." in output
    stopped = checkpoint.newest(plan.run_directory / CHECKPOINTS)
    assert not checkpoint.verify(stopped).complete
    second = start(fresh, *TRAIN)
    wait_for(lambda: (plan.run_directory / cluster.LOCK_FILE).read_text().startswith(f"Process {second.pid} "), second)
    refused = run(fresh, *TRAIN)
    assert_one_line_error(refused, f"Process {second.pid} on {socket.gethostname()} is already training")
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, output
    assert_same(final_tensors(plan.run_directory), undisturbed)


def test_two_workers_on_ray_give_the_bits_of_two_plain_processes(fresh, tmp_path):
    plan = plan_of(fresh)
    reference = TrainPlan(**{**plan.__dict__, "run_directory": tmp_path / "reference" / plan.run})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_work_rank, args=(2, port, reference), nprocs=2)
    params = load_params(fresh)
    site = params.site.model_copy(update={"workers": 2})
    cluster.fit(plan, site)
    assert_same(final_tensors(plan.run_directory), final_tensors(reference.run_directory))


def test_a_nan_ends_with_one_line_and_no_retry(fresh):
    text = (fresh / "params.yaml").read_text()
    (fresh / "params.yaml").unlink()
    (fresh / "params.yaml").write_text(text.replace("gamma: 0.05", "gamma: 1.0e+38"))
    done = run(fresh, *TRAIN)
    assert_one_line_error(done, "the r1 phase is", "at step 1 ", "Lower train.lr_generator")
