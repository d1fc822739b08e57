"""What a training will take, from a few measured steps: hours, memory, disk, and money where an hour has a price.

Measuring (training/rehearsal.py, in a process of its own) is apart from reckoning: `estimate` is a function of what was
measured. A step is so many passes and one rest; R1 comes every `r1_interval` steps; a tick draws and reports; a
checkpoint is written. The global batch stays what params.yaml says, and the passes are the fastest that were measured.

Assumed, and said with every plan: all workers are as fast as the one measured, which had the machine to itself; where
they have fewer cores than threads, time grows in proportion; talk between workers is not counted.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dr_platform.cluster import Resources, resources
from dr_platform.config import Params, parse_params
from dr_platform.data import partition
from dr_platform.data.loader import select_images
from dr_platform.errors import ConfigError, DataError, TrainingError
from dr_platform.profiles import read
from dr_platform.training import loop
from dr_platform.training.rehearsal import GRID_IMAGES, Fixed, Passes, Refused, Task, child

KEPT_CHECKPOINTS = 3  # the loop keeps two, and writes the third before it removes one
SWEEP_TICKS = 4  # ticks of a trial, each with a checkpoint
_SHARE_OF_MEMORY = 0.9
_PATIENCE_SECONDS = 120.0
_EQUIVARIANCE_PASSES = 4  # per image of EQ-T and EQ-R
_MOST_KIMG = 1e9  # as in params.yaml
_MOST_PRICE = 1e9
_LEAST_STEPS, _MOST_STEPS = 2, 100


@dataclass(frozen=True)
class Figure:
    """A number from n repetitions, with one standard error of it."""

    value: float
    error: float
    n: int

    def times(self, factor: float) -> Figure:
        """The number and its error multiplied: the errors of equal parts are one error."""
        return Figure(self.value * factor, self.error * factor, self.n)

    def plus(self, other: Figure) -> Figure:
        """The sum of two numbers measured apart."""
        return Figure(self.value + other.value, math.hypot(self.error, other.error), min(self.n, other.n))


NOTHING = Figure(0.0, 0.0, 2**31)


@dataclass(frozen=True)
class Choice:
    """One size of pass: its speed with all workers, and the memory it takes of each."""

    batch_per_worker: int
    images_per_second: Figure
    memory_bytes: int
    chosen: bool


@dataclass(frozen=True)
class Plan:
    """What a training, or a sweep of `trainings`, takes; `hours` are by the clock, `worker_hours` are paid."""

    device: str
    workers: int
    batch: int
    batch_per_worker: int
    rounds: int  # passes of a worker in each step
    trainings: int
    at_a_time: int
    crowding: float  # time grows by it where there are fewer cores than threads
    kimg: float  # of each training
    choices: tuple[Choice, ...]
    refused: str | None  # the first size left out, and why
    seconds_per_step: Figure
    training_hours: Figure  # of one training
    metrics_hours: Figure  # of one training: generating images only
    hours: Figure
    worker_hours: Figure
    cost: Figure | None
    memory_bytes: int  # of each worker
    dataset_bytes: int | None  # of each worker; None if it is not known how many images there will be
    checkpoint_bytes: int
    disk_bytes: int
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Rehearsed:
    """What was measured."""

    passes: tuple[Passes, ...]
    fixed: Fixed
    refused: Refused | None


def make_plan(
    params: Params,
    *,
    steps: int = 3,
    kimg: float | None = None,
    price: float | None = None,
    sweep: bool = False,
    images: int | None = None,
    scratch: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Measure on this machine's device, and reckon. No data is needed.

    steps: repetitions of each measurement. kimg: length, instead of that in `params`. price: of one worker for an hour,
    in any currency. images: training images, for the memory they take. scratch: directory on the disk for checkpoints.
    Raises ConfigError for impossible input and TrainingError if not even the smallest pass could be measured.
    """
    if not _LEAST_STEPS <= steps <= _MOST_STEPS:
        raise ConfigError(
            f"--steps is {steps}, but a spread needs at least {_LEAST_STEPS} (and at most {_MOST_STEPS}). Use 3."
        )
    if kimg is not None and not 0 < kimg <= _MOST_KIMG:
        raise ConfigError(f"--kimg is {kimg:g}. Give thousands of images, above 0 and at most {_MOST_KIMG:g}.")
    if price is not None and not 0 <= price <= _MOST_PRICE:
        raise ConfigError(f"--gpu-price is {price:g}. Give the price of one GPU for an hour, such as 2.5.")
    params = _with_length(params, kimg, sweep)
    wanted = _resources(params, sweep)
    rehearsed = rehearse(params, wanted, steps=steps, scratch=scratch, progress=progress)
    return estimate(params, rehearsed, wanted, sweep=sweep, price=price, images=images)


def with_profile(params: Params, name: str) -> Params:
    """`params` under the values of a profile; the file is not touched. Raises ConfigError for an unknown name."""
    raw = params.model_dump(mode="json", by_alias=True)
    for section, values in read(name).items():
        raw[section] = {**raw[section], **values} if isinstance(values, dict) else values
    return parse_params(raw, source=f"profile {name}")


def count_images(params: Params, prepared: Path) -> int | None:
    """Training images there will be: the subset, or those prepared, or None if neither is known."""
    if params.train.subset is not None:
        return params.train.subset
    try:
        return len(select_images(prepared, params.prepare.grade, visibility=params.prepare.visibility))
    except DataError:
        return None


def rehearse(
    params: Params,
    wanted: Resources,
    *,
    steps: int,
    scratch: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Rehearsed:
    """Measure passes of every size that fits, in a process with the settings of a worker."""
    config = params.train
    largest = partition.micro_batch_size(config.batch, wanted.workers, config.mbstd_group, params.site.batch_per_worker)
    share = config.batch // wanted.workers
    group = config.mbstd_group
    task = Task(
        config=config,
        resolution=params.prepare.resolution,
        sizes=tuple(size for size in range(group, largest + 1, group) if share % size == 0),
        steps=steps,
        use_gpu=wanted.use_gpu,
        threads=params.site.threads_per_worker,
        memory_limit=int(_SHARE_OF_MEMORY * _available_bytes() / wanted.workers),
        patience_seconds=_PATIENCE_SECONDS,
        scratch=scratch,
    )
    context = multiprocessing.get_context("spawn")  # with malloc's settings that cluster.py leaves in the environment
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(task, sending), name="rehearsal")
    process.start()
    sending.close()
    passes: list[Passes] = []
    fixed: Fixed | None = None
    refused: Refused | None = None
    try:
        while True:
            message = receiving.recv()
            if isinstance(message, Passes):
                passes.append(message)
                progress(f"measured passes of {message.size} images")
            elif isinstance(message, Fixed):
                fixed = message
            elif isinstance(message, str):
                progress(message)
            else:
                refused = message
    except EOFError:
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
    if not passes or fixed is None:
        why = refused.reason if refused else f"the process that measured ended with status {process.exitcode}"
        raise TrainingError(
            f"Not even passes of {group} images (train.mbstd_group) could be measured at {task.resolution} px: {why}. "
            "Use a smaller prepare.resolution, train.channel_base or train.discriminator_channel_base."
        )
    if process.exitcode and refused is None:
        larger = [size for size in task.sizes if size > passes[-1].size]
        refused = Refused(larger[0], f"its process ended with status {process.exitcode}") if larger else None
    return Rehearsed(tuple(passes), fixed, refused)


def estimate(
    params: Params,
    rehearsed: Rehearsed,
    wanted: Resources,
    *,
    sweep: bool = False,
    price: float | None = None,
    images: int | None = None,
    cores: int | None = None,
    gpus: int | None = None,
) -> Plan:
    """The plan that follows from what was measured; cores, gpus: of this machine where they are not given."""
    config, fixed, workers = params.train, rehearsed.fixed, wanted.workers
    job = loop.Job(config, Path(), {})
    trainings = len(set(params.sweep.sizes)) * len(set(params.sweep.gammas)) if sweep else 1
    at_a_time = _at_a_time(params, wanted, trainings, sweep, gpus)
    crowding = _crowding(params, wanted, at_a_time, cores)

    steps = {passes.size: _seconds_per_step(params, passes, workers).times(crowding) for passes in rehearsed.passes}
    best = min(steps, key=lambda size: steps[size].value)
    choices = tuple(
        Choice(
            batch_per_worker=passes.size,
            images_per_second=_inverse(steps[passes.size], config.batch),
            memory_bytes=passes.memory_bytes,
            chosen=passes.size == best,
        )
        for passes in rehearsed.passes
    )
    ticks = math.ceil(job.steps_total / job.steps_per_tick)
    commits = math.ceil(ticks / config.checkpoint_ticks)
    seconds = (
        steps[best]
        .times(job.steps_total)
        .plus(_figure(fixed.tick_seconds).times(ticks * crowding))
        .plus(_figure(fixed.checkpoint_seconds).times(commits))
    )
    drawn = params.evaluate.images + _EQUIVARIANCE_PASSES * params.evaluate.equivariance_images
    metrics = _figure(fixed.forward_seconds).times(drawn)
    each = seconds.plus(metrics).times(1 / 3600)
    hours = each.times(math.ceil(trainings / at_a_time))
    paid = each.times(trainings * workers)
    grids = ticks * GRID_IMAGES * 3 * params.prepare.resolution**2
    disk = trainings * (KEPT_CHECKPOINTS * fixed.checkpoint_bytes + 2 * grids)
    chosen = next(passes for passes in rehearsed.passes if passes.size == best)
    return Plan(
        device=fixed.device,
        workers=workers,
        batch=config.batch,
        batch_per_worker=best,
        rounds=config.batch // workers // best,
        trainings=trainings,
        at_a_time=at_a_time,
        crowding=crowding,
        kimg=config.kimg,
        choices=choices,
        refused=f"{rehearsed.refused.size}: {rehearsed.refused.reason}" if rehearsed.refused else None,
        seconds_per_step=steps[best],
        training_hours=seconds.times(1 / 3600),
        metrics_hours=metrics.times(1 / 3600),
        hours=hours,
        worker_hours=paid,
        cost=None if price is None else paid.times(price),
        memory_bytes=chosen.memory_bytes,
        dataset_bytes=None if images is None else images * 3 * params.prepare.resolution**2,
        checkpoint_bytes=fixed.checkpoint_bytes,
        disk_bytes=disk,
        assumptions=_assumptions(workers, at_a_time, crowding),
    )


def _seconds_per_step(params: Params, passes: Passes, workers: int) -> Figure:
    """Of the global batch on `workers`: so many passes of G and D, R1 in one step of `r1_interval`, and the rest."""
    rounds = params.train.batch // workers // passes.size
    # Summed within each repetition, since what slows one phase of a step slows the others as well.
    together = [sum(parts) for parts in zip(passes.generator, passes.discriminator, strict=True)]
    step = _figure(together).times(rounds).plus(_figure(passes.rest))
    return step.plus(_figure(passes.r1).times(rounds / params.train.r1_interval)) if passes.r1 else step


def _with_length(params: Params, kimg: float | None, sweep: bool) -> Params:
    """`params` with the length that is planned, and in a sweep the ticks that a trial has."""
    if not sweep:
        return params if kimg is None else _updated(params, kimg=kimg)
    length = params.sweep.kimg if kimg is None else kimg
    return _updated(params, kimg=length, tick_kimg=length / SWEEP_TICKS, checkpoint_ticks=1)


def _updated(params: Params, **changes: float) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def _resources(params: Params, sweep: bool) -> Resources:
    """A trial of a sweep has one worker where `site.workers` is auto."""
    wanted = resources(params.site)
    return replace(wanted, workers=1) if sweep and params.site.workers == "auto" else wanted


def _at_a_time(params: Params, wanted: Resources, trainings: int, sweep: bool, gpus: int | None) -> int:
    if not sweep:
        return 1
    slots = min(params.sweep.max_concurrent, trainings)
    if not wanted.use_gpu or params.site.ray_address != "local":
        return slots
    return max(1, min(slots, (torch.cuda.device_count() if gpus is None else gpus) // wanted.workers))


def _crowding(params: Params, wanted: Resources, at_a_time: int, cores: int | None) -> float:
    """By how much threads outnumber the cores of this machine; 1 on GPUs and on a cluster."""
    if wanted.use_gpu or params.site.ray_address != "local":
        return 1.0
    threads = at_a_time * wanted.workers * params.site.threads_per_worker
    return max(1.0, threads / (cores or os.cpu_count() or 1))


def _assumptions(workers: int, at_a_time: int, crowding: float) -> tuple[str, ...]:
    said = ["this machine was as busy while measuring as it will be"]
    if workers > 1:
        said.append(f"{workers} workers are each as fast as the one measured alone; talk between them is not counted")
    if at_a_time > 1:
        said.append(f"{at_a_time} trainings at a time do not slow each other down")
    if crowding > 1:
        said.append(f"threads outnumber cores {crowding:.1f} to 1, so everything takes that much longer")
    said.append("metrics: drawing images only; features of real images come on top, once")
    return tuple(said)


def _figure(values: Sequence[float]) -> Figure:
    if not values:
        return NOTHING
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Figure(float(np.mean(values)), error, len(values))


def _inverse(seconds: Figure, count: int) -> Figure:
    """count / seconds, with the relative error of the seconds."""
    rate = count / seconds.value
    return Figure(rate, rate * seconds.error / seconds.value, seconds.n)


def _available_bytes() -> int:
    """Memory that processes may still take: the machine's, or what a container leaves of it."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            available = min(available, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return available
