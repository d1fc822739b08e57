"""A few steps of a training on random images, to know what it will cost before any image is at hand.

The steps are the loop's own, so that whatever a step comes to include is timed. Passes of growing size are tried until
memory would not suffice. Runs in a process of its own (see planning.py): its memory is then the training's, and a size
that the machine cannot bear ends that process and nothing else.
"""

from __future__ import annotations

import gc
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dr_platform import checkpoint, sampling
from dr_platform.config import TrainConfig
from dr_platform.data import partition
from dr_platform.data.loader import ImageSet
from dr_platform.gan import AdaptiveP
from dr_platform.pictures import generated
from dr_platform.records import Tick
from dr_platform.training import health, loop
from dr_platform.training.batches import Batches
from dr_platform.training.group import Group
from dr_platform.training.report import DirectoryReporter
from dr_platform.training.state import TrainingState, new_state
from dr_platform.training.step import FakePass, Players, RealPass, Scalars, View
from dr_platform.training.vitals import watching
from dr_platform.training.worker import settle_process

GRID_IMAGES = 16  # drawn once a tick
_REAL_IMAGES = 64
_SHARE_OF_GPU = 0.9  # of what is free: a long training fragments its memory
_WORTH_SAYING_SECONDS = 20.0  # how long a measurement may take before its length is told
_USUAL_P = 0.3
_NEVER = 2**30  # steps between R1 phases that do not come
_CLEAR_REFS, _RESET_PEAK = Path("/proc/self/clear_refs"), "5"  # makes VmHWM what is held now (proc(5))


@dataclass(frozen=True)
class Task:
    """What to rehearse; travels to the process by pickle."""

    config: TrainConfig
    resolution: int
    sizes: tuple[int, ...]  # images per pass, growing
    steps: int  # repetitions of each measurement
    use_gpu: bool
    threads: int
    memory_limit: int  # bytes that the process may take on the CPU
    patience_seconds: float  # a size expected to take longer is not tried
    scratch: Path  # a directory on the disk that checkpoints will go to


@dataclass(frozen=True)
class Passes:
    """Seconds of each part of a step whose batch is one pass of `size` images, one number per repetition."""

    size: int
    generator: tuple[float, ...]
    discriminator: tuple[float, ...]
    r1: tuple[float, ...]  # empty where gamma is 0
    rest: tuple[float, ...]  # optimisers, the average of G, images and latents: once a step, whatever its passes
    memory_bytes: int  # peak, networks and optimisers included, libraries not


@dataclass(frozen=True)
class Fixed:
    """What does not depend on the size of a pass."""

    device: str
    checkpoint_bytes: int
    checkpoint_seconds: tuple[float, ...]
    tick_seconds: tuple[float, ...]  # sample grid, its file, its health
    forward_seconds: tuple[float, ...]  # per generated image


@dataclass(frozen=True)
class Refused:
    """A size that was not measured, and why."""

    size: int
    reason: str


Message = Passes | Fixed | Refused


def rehearse(task: Task, announce: Callable[[str], None] = lambda _: None) -> Iterator[Message]:
    """Passes of each size that fits, `Fixed` after the first, and last `Refused` if a size was left out.

    announce: told how long a measurement takes, if that is long.
    """
    settle_process(task.threads, task.config.tf32)
    device = torch.device("cuda" if task.use_gpu else "cpu")
    before = 0 if task.use_gpu else _status_bytes("VmRSS")
    limit = int(_SHARE_OF_GPU * torch.cuda.mem_get_info()[0]) if task.use_gpu else task.memory_limit - before
    state = new_state(task.config, task.resolution, device, _num_classes(task.config))
    if task.config.augment_p == "adaptive" and task.config.augment != "none":
        state.ada = AdaptiveP(p=_USUAL_P)  # a training spends most of its time with p above 0
    measured: list[Passes] = []
    seconds = 0.0
    for size in task.sizes:
        reason = _refusal(task, measured, size, seconds, limit)
        if reason is None:
            start = time.perf_counter()
            try:
                measured.append(_measure(task, state, device, size, before, announce))
            except torch.OutOfMemoryError:
                reason = "the GPU's memory does not suffice"
            seconds = time.perf_counter() - start
        if reason is not None:
            yield Refused(size, reason)
            return
        yield measured[-1]
        if len(measured) == 1:
            yield _fixed(task, state, device)


def child(task: Task, messages: Connection) -> None:
    """Entry of the process: send what `rehearse` yields, and what it announces."""
    for message in rehearse(task, messages.send):
        messages.send(message)
    messages.close()


def _refusal(task: Task, measured: Sequence[Passes], size: int, seconds: float, limit: int) -> str | None:
    """Why the next size should not even be tried, from those before."""
    if not measured:
        return None
    last = measured[-1]
    if seconds * size / last.size > task.patience_seconds:
        return f"measuring it would take more than {task.patience_seconds:.0f} s"
    slope = last.memory_bytes / last.size
    if len(measured) > 1:
        slope = max(0.0, (last.memory_bytes - measured[-2].memory_bytes) / (last.size - measured[-2].size))
    expected = last.memory_bytes + slope * (size - last.size)
    if expected > limit:
        return f"it would take about {expected / 2**30:.1f} GiB, and {max(limit, 0) / 2**30:.1f} GiB are available"
    return None


def _measure(
    task: Task, state: TrainingState, device: torch.device, size: int, before: int, announce: Callable[[str], None]
) -> Passes:
    config = task.config.model_copy(update={"batch": size, "r1_interval": _NEVER})
    with_r1 = config.model_copy(update={"r1_interval": 1})
    shape = (_REAL_IMAGES, task.resolution, task.resolution, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    classes = _num_classes(config)
    shares = tuple(len(part) for part in np.array_split(np.arange(_REAL_IMAGES), classes)) if classes else ()
    images = ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public", class_sizes=shares)
    players = _TimedPlayers(state, Group(device=device))
    mine = partition.micro_batches(size, 1, 0, config.mbstd_group, size)
    state.step = 1  # step 0 would be one of R1
    _reset_peak(device)

    def step(chosen: TrainConfig) -> dict[str, float]:
        players.seconds = {}
        batches = Batches(chosen, images, state.generator.num_ws, mine, device)
        whole = _timed(device, lambda: loop.take_step(state, players, batches))
        return {**players.seconds, "rest": max(0.0, whole - sum(players.seconds.values()))}

    warm_up = _timed(device, lambda: step(config))
    whole = warm_up * (task.steps * (2 if _has_r1(config) else 1) + 1)
    if whole > _WORTH_SAYING_SECONDS:
        announce(f"a step of {size} images takes {warm_up:.0f} s: measuring it takes about {whole:.0f} s")
    plain = [step(config) for _ in range(task.steps)]
    r1: list[float] = []
    if _has_r1(config):
        step(with_r1)
        usual = float(np.mean([times["rest"] for times in plain]))
        # R1 has an optimiser step of its own, which is the rest's excess.
        r1 = [times["r1"] + max(0.0, times["rest"] - usual) for times in (step(with_r1) for _ in range(task.steps))]
    return Passes(
        size=size,
        generator=tuple(times["generator"] for times in plain),
        discriminator=tuple(times["discriminator"] for times in plain),
        r1=tuple(r1),
        rest=tuple(times["rest"] for times in plain),
        memory_bytes=_peak_bytes(device, before),
    )


class _TimedPlayers(Players):
    """Players that note how long each phase took."""

    def __init__(self, state: TrainingState, group: Group) -> None:
        super().__init__(state.generator, state.discriminator, group)
        self.seconds: dict[str, float] = {}

    def generator_phase(self, fakes: Sequence[FakePass], view: View, scalars: Scalars) -> None:
        phase = super().generator_phase
        self.seconds["generator"] = _timed(self.group.device, lambda: phase(fakes, view, scalars))

    def discriminator_phase(
        self, reals: Sequence[RealPass], fakes: Sequence[FakePass], view: View, scalars: Scalars
    ) -> Tensor:
        phase, statistics = super().discriminator_phase, []
        self.seconds["discriminator"] = _timed(
            self.group.device, lambda: statistics.append(phase(reals, fakes, view, scalars))
        )
        return statistics[0]

    def r1_phase(self, reals: Sequence[RealPass], view: View, weight: float, scalars: Scalars) -> None:
        phase = super().r1_phase
        self.seconds["r1"] = _timed(self.group.device, lambda: phase(reals, view, weight, scalars))


def _num_classes(config: TrainConfig) -> int:
    return len(config.condition_on) + 1 if config.condition_on else 0


def _has_r1(config: TrainConfig) -> bool:
    return max(config.gamma or 0, config.r1_lambda or 0) > 0


def _fixed(task: Task, state: TrainingState, device: torch.device) -> Fixed:
    """A checkpoint and a tick, each done as the loop does it, into the scratch directory."""
    checkpoints: list[float] = []
    ticks: list[float] = []
    forward: list[float] = []
    seeds = list(range(GRID_IMAGES))
    shape = (_REAL_IMAGES, task.resolution, task.resolution, 3)
    monitor = health.Monitor(task.config, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), GRID_IMAGES)
    with tempfile.TemporaryDirectory(dir=task.scratch) as name:
        run = Path(name)
        reporter = DirectoryReporter(run)
        describe = _description(task, state)

        def draw() -> None:
            with watching(state.generator_ema) as outputs:
                pictures.append(sampling.sample_images(state.generator_ema, seeds, psi=1.0, batch=8))
            seen.append(outputs)

        def report() -> None:
            monitor.look(pictures[-1], seen[-1])
            reporter.samples("images.png", generated(pictures[-1], "public"))
            reporter.tick(monitor.judge(_tick(), state.generator))

        def commit(root: Path) -> None:
            checkpoint.write(root, state.tensors(), state.counters(), describe)

        pictures: list[np.ndarray] = []
        seen: list = []
        draw()
        report()  # the reference of the real images is measured once in a training
        for _ in range(task.steps):
            drawn = _timed(device, draw)
            forward.append(drawn / GRID_IMAGES)
            ticks.append(drawn + _timed(device, report))
            checkpoints.append(_timed(device, lambda: commit(run / f"checkpoints-{len(checkpoints)}")))
    return Fixed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        checkpoint_bytes=checkpoint_bytes(state),
        checkpoint_seconds=tuple(checkpoints),
        tick_seconds=tuple(ticks),
        forward_seconds=tuple(forward),
    )


def checkpoint_bytes(state: TrainingState) -> int:
    """Bytes of a checkpoint's tensors: G, its average, D and both optimisers, as they are after a first step."""
    return sum(
        tensor.numel() * tensor.element_size() for named in state.tensors().values() for tensor in named.values()
    )


def _description(task: Task, state: TrainingState) -> dict[str, object]:
    return {
        "run": "rehearsal",
        "step": state.step,
        "images_seen": state.images_seen,
        "complete": False,
        "grade": 0,
        "resolution": task.resolution,
        "visibility": "public",
        "config_sha256": "0" * 64,
        "data_sha256": "0" * 64,
        "train_images": _REAL_IMAGES,
        "parent": None,
        "generator": state.generator.init_kwargs,
        "discriminator": state.discriminator.init_kwargs,
    }


def _tick() -> Tick:
    return Tick(
        step=0,
        images_seen=0,
        images_total=0,
        seconds=0.0,
        images_per_second=0.0,
        eta_seconds=0.0,
        memory_gib=0.0,
        scalars={},
        samples=None,
        checkpoint=False,
    )


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of `work`, on a GPU until it has done what was queued."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_PEAK)


def _peak_bytes(device: torch.device, before: int) -> int:
    """Most that was allocated on the GPU, or by how much this process's peak exceeds what it held `before`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(key: str) -> int:
    """VmRSS (held now) or VmHWM (peak) of this process; where there is no /proc, its peak since it began.

    `ru_maxrss` would not do on Linux: a process starts with the peak of the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
