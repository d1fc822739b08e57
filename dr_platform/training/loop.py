"""The training loop, read top to bottom.

A step is a function of the state and of (seed, step): images, latents and flips come from data/partition.py. The loop
adds the order of things: which phase, when to report, when to commit a checkpoint, when to stop.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr_platform import checkpoint, pictures, sampling
from dr_platform.config import TrainConfig
from dr_platform.data import partition
from dr_platform.data.loader import ImageSet
from dr_platform.data.partition import Stream
from dr_platform.errors import TrainingError
from dr_platform.gan import blur_sigma, ema_beta, update_ema
from dr_platform.records import Tick
from dr_platform.training import averages, health
from dr_platform.training.batches import Batches
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS
from dr_platform.training.report import Progress, Reporter, read_ticks
from dr_platform.training.state import TrainingState
from dr_platform.training.step import Players, Scalars, View, gradient_norm
from dr_platform.training.vitals import watching

logger = logging.getLogger(__name__)

STOP_FILE = "stop"
_KEEP_CHECKPOINTS = 2
_GRID_SEEDS = range(16)
_UNSTABLE = "Lower train.lr_generator, train.lr_discriminator or raise train.gamma."


@dataclass(frozen=True)
class Job:
    """What a worker needs to know besides the state and the images."""

    config: TrainConfig
    run_directory: Path
    describe: dict[str, Any]  # the fields of records.Checkpoint that do not change during the training
    batch_per_worker: int | None = None

    @property
    def images_total(self) -> int:
        """Length of the training in images, a whole number of steps."""
        return self.steps_total * self.config.batch

    @property
    def steps_total(self) -> int:
        """Length of the training in steps."""
        return max(1, round(self.config.kimg * 1000 / self.config.batch))

    @property
    def steps_per_tick(self) -> int:
        """Steps between two reports."""
        return max(1, round(self.config.tick_kimg * 1000 / self.config.batch))


def train(job: Job, state: TrainingState, images: ImageSet, group: Group, reporter: Reporter) -> bool:
    """Train from `state` to the length of the job; returns False if asked to stop before (see `STOP_FILE`).

    Commits checkpoints under `job.run_directory / CHECKPOINTS`. Raises TrainingError, on every worker alike, if a
    gradient is not finite (naming step and phase), a checkpoint cannot be written, or a tick is critical and
    `config.stop_when_unhealthy` (after a checkpoint).
    """
    config = job.config
    size = partition.micro_batch_size(config.batch, group.world, config.mbstd_group, job.batch_per_worker)
    mine = partition.micro_batches(config.batch, group.world, group.rank, config.mbstd_group, size)
    players = Players(state.generator, state.discriminator, group)
    batches = Batches(config, images, state.generator.num_ws, mine, group.device)
    clock = _Clock(state.images_seen)
    reporter.resume(state.images_seen)
    past = read_ticks(job.run_directory) if group.is_first else ()
    monitor = health.Monitor(config, images.images, len(_GRID_SEEDS), past)
    if state.step == 0:
        _draw_samples(job, state, group, reporter, monitor)

    while state.step < job.steps_total:
        # One step: the phases, the average of G, the counters.
        scalars = take_step(state, players, batches)
        _add_totals(state, scalars, group)
        _keep_averages(job, state, group)
        stop = group.any(group.is_first and (job.run_directory / STOP_FILE).exists())
        done = state.step == job.steps_total
        if group.is_first:
            reporter.progress(clock.progress(state.images_seen, job.images_total))

        # Once per tick: samples, a checkpoint if due, the report.
        tick_ends = done or state.step % job.steps_per_tick == 0
        ticks = state.step // job.steps_per_tick
        due = done or stop or (tick_ends and ticks % config.checkpoint_ticks == 0)
        tick, ill = None, False
        if tick_ends:
            _look_for_leaks(state, batches, group, monitor)
            tick = clock.tick(state, job.images_total, _draw_samples(job, state, group, reporter, monitor), due)
            state.totals = {}
            tick, ill = _judged(tick, config, state, group, monitor)
            due = due or ill
        # The tick first: a crash in between then repeats it, where the other order would lose it.
        if tick is not None and group.is_first:
            reporter.tick(tick)
        if due:
            commit(job, state, group, complete=done)
        if tick is not None and ill and not done:
            raise TrainingError(health.reason_to_stop(tick.findings))
        if stop and not done:
            return False
    return True


def take_step(state: TrainingState, players: Players, batches: Batches) -> Scalars:
    """One optimiser step of G and D (and of R1 where due) on the global batch; moves the state to the next step."""
    config, step = batches.config, state.step
    scalars = Scalars()
    view = View(
        blur_sigma(state.images_seen, config.blur_start(), config.blur_images()), batches.augmentation, state.ada.p
    )

    fakes = batches.fake(
        step, Stream.GENERATOR_LATENTS, Stream.GENERATOR_LABELS, Stream.GENERATOR_MIXING, Stream.AUGMENT_GENERATOR
    )
    players.generator_phase(fakes, view, scalars)
    _apply(state, "generator", scalars)

    fakes = batches.fake(
        step,
        Stream.DISCRIMINATOR_LATENTS,
        Stream.DISCRIMINATOR_LABELS,
        Stream.DISCRIMINATOR_MIXING,
        Stream.AUGMENT_FAKE,
    )
    reals = batches.real(step, Stream.AUGMENT_REAL)
    statistics = players.discriminator_phase(reals, fakes, view, scalars)
    _apply(state, "discriminator", scalars)
    state.generator.apply_statistics(statistics)

    gamma = config.r1_gamma(batches.images.resolution)
    if step % config.r1_interval == 0 and gamma > 0:
        players.r1_phase(batches.real(step, Stream.AUGMENT_R1), view, gamma * config.r1_interval, scalars)
        _apply(state, "r1", scalars)

    beta = ema_beta(config.batch, config.ema_kimg * 1000, state.images_seen, config.ema_rampup)
    update_ema(state.generator_ema, state.generator, beta)
    state.step += 1
    state.images_seen += config.batch
    _adjust_augmentation(state, batches, scalars, players.group)
    state.update_averages()
    return scalars


def commit(job: Job, state: TrainingState, group: Group, *, complete: bool) -> None:
    """Rank 0 writes a checkpoint; every worker learns whether that went well. Raises TrainingError if not."""
    failure: TrainingError | None = None
    if group.is_first:
        root = job.run_directory / CHECKPOINTS
        describe = {
            **job.describe,
            "step": state.step,
            "images_seen": state.images_seen,
            "complete": complete,
            "generator": state.generator.init_kwargs,
            "discriminator": state.discriminator.init_kwargs,
        }
        try:
            checkpoint.write(root, state.tensors(), state.counters(), describe)
            checkpoint.prune(root, _KEEP_CHECKPOINTS)
        except TrainingError as error:
            failure = error
    if group.any(failure is not None):
        raise failure or TrainingError("Rank 0 could not write a checkpoint; its message says why.")


def _apply(state: TrainingState, phase: str, scalars: Scalars) -> None:
    network = state.generator if phase == "generator" else state.discriminator
    optimizer = state.optimizer_g if phase == "generator" else state.optimizer_d
    if state.low_precision:
        # Half precision overflows now and then; the published loop cleans such values and goes on (spec: NaN is 0, an
        # infinity 1e5). Losses are looked at all the same, once per step: see `_add_totals`.
        for parameter in network.parameters():
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)
    norm = gradient_norm(network)
    if not state.low_precision and not torch.isfinite(norm):
        raise TrainingError(
            f"The gradient of the {phase} phase is {norm.item()} at step {state.step + 1} "
            f"({state.images_seen} images). {_UNSTABLE}"
        )
    scalars.add(f"gradient/{phase}", norm)
    optimizer.step()


def _keep_averages(job: Job, state: TrainingState, group: Group) -> None:
    """Rank 0 keeps a snapshot of the power-function averages where one is due; a step done again writes it again.

    Every worker learns whether that went well. Raises TrainingError if not.
    """
    every = max(1, round((job.config.posthoc_kimg or 0) * 1000 / job.config.batch))
    if not state.averages or (state.step % every and state.step != job.steps_total):
        return
    failure: TrainingError | None = None
    if group.is_first:
        try:
            averages.write_snapshot(job.run_directory, state.step, state.averages)
        except OSError as error:
            failure = TrainingError(
                f"{job.run_directory / averages.SNAPSHOTS} cannot be written: {error.strerror or error}. Free some "
                "space or make it writable; the same command continues from the last checkpoint."
            )
    if group.any(failure is not None):
        raise failure or TrainingError("Rank 0 could not write a snapshot of averages; its message says why.")


def _adjust_augmentation(state: TrainingState, batches: Batches, scalars: Scalars, group: Group) -> None:
    """Count the signs of D's logits for real images, over all workers, and move p where that is due (ADA)."""
    config = batches.config
    if batches.augmentation is None or config.augment_p != "adaptive":
        return
    signs = group.sum(scalars.sums["signs/real"].clone())
    state.ada = state.ada.after(round(float(signs)), scalars.counts["signs/real"] * group.world)
    if state.step % config.ada_interval == 0:
        state.ada = state.ada.adjusted(
            target=config.ada_target,
            images=config.batch * config.ada_interval,
            ada_images=config.ada_kimg * 1000,
            limit=config.ada_limit,
        )


def _add_totals(state: TrainingState, scalars: Scalars, group: Group) -> None:
    """Add a step's scalars to the tick's totals, over all workers; gradient norms are the same on each of them."""
    scalars.add("ada/p", torch.tensor(state.ada.p))
    names = sorted(scalars.sums)
    sums = group.sum(torch.stack([scalars.sums[name] for name in names]))
    for name, value in zip(names, sums.tolist(), strict=True):
        if not math.isfinite(value):
            raise TrainingError(f"{name} is {value} at step {state.step} ({state.images_seen} images). {_UNSTABLE}")
        total, count = state.totals.get(name, (0.0, 0.0))
        state.totals[name] = (total + value, count + scalars.counts[name] * group.world)


def _judged(
    tick: Tick, config: TrainConfig, state: TrainingState, group: Group, monitor: health.Monitor
) -> tuple[Tick, bool]:
    """Rank 0's tick with its findings; and, on every worker alike, whether they are a reason to stop."""
    if group.is_first:
        tick = monitor.judge(tick, state.generator)
    if not config.stop_when_unhealthy:
        return tick, False
    ill = group.any(any(finding.severity == "critical" for finding in tick.findings))
    return tick.model_copy(update={"checkpoint": tick.checkpoint or ill}), ill


def _draw_samples(
    job: Job, state: TrainingState, group: Group, reporter: Reporter, monitor: health.Monitor
) -> str | None:
    if not group.is_first:
        return None
    generator, seeds = state.generator_ema, list(_GRID_SEEDS)
    classes, labels = generator.mapping.c_dim, None
    if classes:  # the first rows show the first class, and so on
        labels = np.eye(classes)[np.arange(len(seeds)) * classes // len(seeds)]
    with watching(generator) as outputs:
        images = sampling.sample_images(generator, seeds, psi=1.0, batch=8, labels=labels)
    monitor.look(images, outputs)
    drawn = pictures.generated(images, job.describe["visibility"], job.describe.get("sources", ()))
    return reporter.samples(f"images-{state.images_seen:09d}.png", drawn)


def _look_for_leaks(state: TrainingState, batches: Batches, group: Group, monitor: health.Monitor) -> None:
    """Rank 0 draws other images each tick and has them compared with real ones, where augmentation is at work."""
    augmentation, resolution = batches.augmentation, batches.images.resolution
    if not group.is_first or augmentation is None or state.ada.p < health.LEAKS_FROM_P:
        return
    if resolution < health.LEAK_RESOLUTION:
        return
    # Real images that are mirrored, or of both eyes, look either way: a flip cannot be told.
    both_ways = batches.config.mirror or batches.images.has_both_eyes
    known = {"shift_whole": "shift"}
    transforms = {known.get(name, name) for name in augmentation.transforms} - ({"flip"} if both_ways else set())
    first = (state.step * health.LEAK_FAKES) % (sampling.SEED_LIMIT - health.LEAK_FAKES)
    seeds, classes = range(first, first + health.LEAK_FAKES), batches.num_classes
    labels = np.eye(classes)[np.arange(len(seeds)) % classes] if classes else None
    monitor.look_for_leaks(sampling.sample_images(state.generator_ema, seeds, batch=16, labels=labels), transforms)


class _Clock:
    """Speed and time left, measured since this process began to train."""

    def __init__(self, images_seen: int) -> None:
        self._start = self._tick_start = time.monotonic()
        self._first = self._tick_first = images_seen

    def progress(self, seen: int, total: int) -> Progress:
        rate = (seen - self._first) / max(time.monotonic() - self._start, 1e-9)
        return Progress(seen, total, rate, (total - seen) / max(rate, 1e-9))

    def tick(self, state: TrainingState, total: int, samples: str | None, committed: bool) -> Tick:
        now = time.monotonic()
        seconds = now - self._tick_start
        overall = self.progress(state.images_seen, total)
        tick = Tick(
            step=state.step,
            images_seen=state.images_seen,
            images_total=total,
            seconds=seconds,
            images_per_second=(state.images_seen - self._tick_first) / max(seconds, 1e-9),
            eta_seconds=overall.eta_seconds,
            memory_gib=_memory_gib(),
            scalars={name: value / count for name, (value, count) in sorted(state.totals.items())},
            samples=samples,
            checkpoint=committed,
        )
        self._tick_start, self._tick_first = now, state.images_seen
        return tick


def _memory_gib() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
