"""One worker's whole life: load, start or resume, train. Runs under Ray, and in a plain process for tests."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist

from dr_platform import checkpoint
from dr_platform.errors import DataError
from dr_platform.gan import kernels
from dr_platform.training import loop
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS, TrainPlan
from dr_platform.training.report import DirectoryReporter, Reporter, SilentReporter
from dr_platform.training.state import TrainingState, new_state

logger = logging.getLogger(__name__)


def work(plan: TrainPlan, group: Group, reporter: Reporter | None = None) -> bool:
    """Train as planned, from the newest committed checkpoint of the run if there is one.

    Returns False if the training was asked to stop before its end. Bitwise reproducible on the CPU for a given number
    of workers and threads.
    """
    settle_process(plan.threads, plan.config.tf32)
    kernels.set_enabled(plan.triton)
    images = plan.load()
    if images.sha256 != plan.data_sha256:
        raise DataError("The prepared images changed after the training was planned. Run the command again.")
    state = new_state(plan.config, images.resolution, group.device, len(plan.classes))
    if plan.initial:
        state.start_from(plan.initial.directory)
    _resume(plan, state, group)
    job = loop.Job(
        config=plan.config,
        run_directory=plan.run_directory,
        describe=_description(plan),
        batch_per_worker=plan.batch_per_worker,
    )
    if reporter is None:
        reporter = DirectoryReporter(plan.run_directory) if group.is_first else SilentReporter()
    return loop.train(job, state, images, group, reporter)


def settle_process(threads: int, tf32: bool) -> None:
    """Settings of a process that trains, or rehearses a training."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # Shapes do not change from step to step, so the fastest algorithm for each is worth looking for.
    torch.backends.cudnn.benchmark = True


def _description(plan: TrainPlan) -> dict[str, Any]:
    return {
        "run": plan.run,
        "grade": plan.grade,
        "resolution": plan.resolution,
        "classes": plan.classes,
        "visibility": plan.visibility,
        "config_sha256": plan.config_sha256,
        "data_sha256": plan.data_sha256,
        "train_images": plan.train_images,
        "sources": plan.sources,
        "parent": plan.initial.parent if plan.initial else None,
    }


def _resume(plan: TrainPlan, state: TrainingState, group: Group) -> None:
    """Continue from the checkpoint that rank 0 finds, so that all workers start from the same one."""
    root = plan.run_directory / CHECKPOINTS
    found = [checkpoint.newest(root) if group.is_first else None]
    if group.world > 1:
        dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return
    record, tensors, counters = checkpoint.read(found[0])
    plan.require_own(record)
    state.load(tensors, counters)
    logger.info("Resuming %s at step %d (%d images)", plan.run, state.step, state.images_seen)
