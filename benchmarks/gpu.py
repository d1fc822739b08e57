"""What one GPU makes of this: its ceilings, the kernel beside them, whole training steps, and losses that stay finite.

    python benchmarks/gpu.py [--minutes 10] [--stages ceilings checks kernels training r1 profile learning]
    python benchmarks/gpu.py --dry-run            # the same code at toy size on a CPU, Triton interpreted

One call, one JSON file in benchmarks/results, written again after every stage, so that a call cut short leaves what it
has measured. A stage that no longer fits the minutes is left out and named; `learning` takes the rest of the time.

Times are medians over repeated calls between CUDA events, after a warm-up that also compiles. Training is measured on
whole steps at the published width and batch 32, R1 steps apart from the others and weighted by their interval:

    plain    the kernels off: the plain form, planar
    triton   as the platform trains on CUDA
    graphs   the same with the phases as CUDA graphs
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dr_platform.build import build_networks
from dr_platform.config import TrainConfig, load_params
from dr_platform.data import partition
from dr_platform.data.loader import ImageSet
from dr_platform.data.phantom import phantom
from dr_platform.gan import kernels
from dr_platform.gan.filters import lowpass_filter
from dr_platform.gan.kernels import operators
from dr_platform.gan.losses import r1_penalty
from dr_platform.gan.ops import LRELU_GAIN, LRELU_SLOPE, filtered_lrelu
from dr_platform.gan.schedule import LayerSpec, layer_schedule
from dr_platform.training import loop
from dr_platform.training.batches import Batches
from dr_platform.training.group import Group
from dr_platform.training.state import TrainingState, new_state
from dr_platform.training.step import FakePass, Players, RealPass, Scalars, View

ROOT = Path(__file__).parents[1]
CONV_CLAMP = 256.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What differs between the measurement and its rehearsal."""

    configs: tuple[str, ...] = ("stylegan3-t", "stylegan3-r")
    resolutions: tuple[int, ...] = (256, 512)
    kernel_resolution: int = 512
    kernel_batch: int = 8
    channel_share: int = 1  # channels are divided by it
    num_layers: int = 14
    latent: int = 512
    batch: int = 32
    mbstd_group: int = 4
    images_per_pass: dict[int, int] = field(default_factory=lambda: {256: 16, 512: 8})
    repeats: int = 20
    warm_up: int = 2  # steps
    steps: int = 3
    matrix: int = 8192
    copy_bytes: int = 2**31
    phantoms: int = 128
    check_shape: tuple[int, int, int] = (2, 20, 36)  # images, channels, side
    check_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    reserve_seconds: float = 25.0


REHEARSAL = Size(
    configs=("stylegan3-t",),
    resolutions=(16,),
    kernel_resolution=16,
    kernel_batch=1,
    channel_share=128,
    num_layers=4,
    latent=8,
    batch=1,
    mbstd_group=1,
    images_per_pass={16: 1},
    repeats=1,
    warm_up=0,
    steps=1,
    matrix=64,
    copy_bytes=2**16,
    phantoms=4,
    check_shape=(1, 4, 10),
    check_dtypes=(torch.float16,),
    reserve_seconds=0.0,
)


@dataclass
class Bench:
    """The device, the sizes, and the time that is left."""

    device: torch.device
    size: Size
    deadline: float  # time.monotonic()

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def seconds(self, call: Callable[[], Any], repeats: int | None = None) -> float:
        """Median time of a call, after two that warm up."""
        on_gpu = self.device.type == "cuda"
        for _ in range(2 if on_gpu else 0):
            call()
        times = []
        for _ in range(repeats or self.size.repeats):
            if on_gpu:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                call()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1000)
            else:
                begun = time.perf_counter()
                call()
                times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# --- Ceilings ---------------------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> Row:
    """Bytes and products per second that this card reaches in PyTorch's own operators."""
    size = bench.size
    source = torch.zeros(size.copy_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    row: Row = {"copy_bytes_per_second": 2 * size.copy_bytes / bench.seconds(functools.partial(target.copy_, source))}
    del source, target
    side = size.matrix
    for name, dtype, tf32 in (
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        with _tf32(tf32):
            row[f"matmul_{name}_flops"] = 2 * side**3 / bench.seconds(functools.partial(torch.mm, a, b))
    spec = _layers("stylegan3-t", size)[-4]  # the heaviest kind: many pixels and still many channels
    for layout in ("contiguous_format", "channels_last"):
        form = getattr(torch, layout)
        shape = (size.kernel_batch, spec.in_channels, spec.in_size, spec.in_size)
        x = torch.randn(shape, device=bench.device).half().to(memory_format=form)
        weight = torch.randn(spec.out_channels, spec.in_channels, 3, 3, device=bench.device).half()
        weight = weight.to(memory_format=form)
        products = 2 * 9 * x.numel() * spec.out_channels
        row[f"conv_{layout}_flops"] = products / bench.seconds(functools.partial(F.conv2d, x, weight, padding=2))
    return row


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# --- The kernel -------------------------------------------------------------------------------------------------------


def _layers(config: str, size: Size) -> list[LayerSpec]:
    """Layers with filters, at the published width or a fraction of it."""
    rotation = config == "stylegan3-r"
    width = (2 if rotation else 1) / size.channel_share
    layers = layer_schedule(
        size.kernel_resolution,
        channel_base=int(32768 * width),
        channel_max=max(int(512 * width), 1),
        num_layers=size.num_layers,
        conv_kernel=1 if rotation else 3,
        use_radial_filters=rotation,
    ).layers
    return [spec for spec in layers if not spec.is_torgb]


def _filters(spec: LayerSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    rate = spec.tmp_sampling_rate
    up = lowpass_filter(spec.up_taps, spec.in_cutoff, spec.in_half_width * 2, rate)
    down = lowpass_filter(spec.down_taps, spec.out_cutoff, spec.out_half_width * 2, rate, radial=spec.down_radial)
    if up is None or down is None:
        raise ValueError(f"{spec.name} has no filters.")
    return up.to(device), down.to(device)


def _distinct(layers: list[LayerSpec]) -> list[LayerSpec]:
    found = {(s.up_factor, s.down_factor, s.padding, s.down_radial): s for s in layers}
    return list(found.values())


def checks(bench: Bench) -> list[Row]:
    """The kernel on this device against the plain form in float64, for every distinct layer; raises if one is off."""
    rows = []
    for config in bench.size.configs:
        for spec in _distinct(_layers(config, bench.size)):
            for dtype in bench.size.check_dtypes:
                rows.append({"config": config, **_check(bench, spec, dtype)})
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise ArithmeticError(f"the kernel is off by more than its rounding: {wrong}")
    return rows


def _check(bench: Bench, spec: LayerSpec, dtype: torch.dtype) -> Row:
    up_filter, down_filter = _filters(spec, bench.device)
    generator = torch.Generator().manual_seed(0)
    images, channels, side = bench.size.check_shape
    side += 16 if spec.padding[0] < -8 else 0  # such a layer crops
    x = torch.randn(images, channels, side, side, generator=generator).to(bench.device, dtype).requires_grad_()
    bias = torch.randn(channels, generator=generator).to(bench.device)

    def both(x: Tensor, *filters: Tensor) -> tuple[Tensor, Tensor]:
        y = filtered_lrelu(x, *filters, bias, spec.up_factor, spec.down_factor, spec.padding * 2, clamp=CONV_CLAMP)
        (gradient,) = torch.autograd.grad(y.double().square().sum(), x)
        return y.detach(), gradient

    ours = both(x, up_filter, down_filter)
    theirs = both(x.detach().double().requires_grad_(), up_filter.double(), down_filter.double())
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]
    # Rounding as in tests/gan/kernels, and 1e-4 of the radial filters; a gradient may differ in the few samples that
    # rounding moves over a kink, each of which weighs about one in the root of their number.
    unit = {torch.float32: 8 * 2.0**-24, torch.float16: 2.5 * 2.0**-11, torch.bfloat16: 2.5 * 2.0**-8}[dtype]
    limit = unit + 1e-4 * spec.down_radial
    return {
        "layer": spec.name,
        "dtype": str(dtype),
        "forward": errors[0],
        "gradient": errors[1],
        "ok": errors[0] < limit and errors[1] < 10 * limit + 2e-2,
    }


def kernel_times(bench: Bench) -> list[Row]:
    """Forward and backward of every layer's filtered leaky ReLU, kernel and plain form, and the memory roof."""
    rows = []
    for config in bench.size.configs:
        layers = _layers(config, bench.size)
        for spec in layers if bench.device.type == "cuda" else layers[-1:]:
            rows.append({"config": config, **_kernel_row(bench, spec)})
            if bench.seconds_left < bench.size.reserve_seconds:
                return rows
    return rows


def _kernel_row(bench: Bench, spec: LayerSpec) -> Row:
    dtype = torch.float16 if spec.use_fp16 else torch.float32
    up_filter, down_filter = _filters(spec, bench.device)
    side = spec.in_size + spec.conv_kernel - 1
    channels = spec.out_channels + -spec.out_channels % kernels.CHANNEL_ALIGNMENT  # as the generator aligns them
    x = torch.randn(bench.size.kernel_batch, channels, side, side, device=bench.device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.zeros(channels, device=bench.device, requires_grad=True)
    scale = torch.ones(len(x), channels, device=bench.device, requires_grad=True)
    row: Row = {"layer": spec.name, "dtype": str(dtype), "batch": len(x)}

    def forward() -> Tensor:
        factors = (spec.up_factor, spec.down_factor, spec.padding * 2, LRELU_GAIN, LRELU_SLOPE, CONV_CLAMP)
        return kernels.filtered_lrelu(x, up_filter, down_filter, bias, scale, *factors)[0]

    def plain() -> Tensor:
        scaled = x * scale.to(dtype)[:, :, None, None]
        with kernels.enabled(False):
            factors = (spec.up_factor, spec.down_factor, spec.padding * 2)
            return filtered_lrelu(scaled, up_filter, down_filter, bias, *factors, clamp=CONV_CLAMP)

    for name, function in (("kernel", forward), ("plain", plain)):
        y = function()
        dy = torch.ones_like(y)
        row[f"{name}_forward_seconds"] = bench.seconds(function)
        backward = functools.partial(torch.autograd.grad, y, [x, bias, scale], dy, retain_graph=True)
        row[f"{name}_backward_seconds"] = bench.seconds(backward)
        row["outputs"] = y.numel()
        del y, dy, backward
    codes = len(x) * np.prod([n * spec.up_factor + sum(spec.padding) - spec.up_taps + 1 for n in x.shape[2:]])
    row["forward_bytes"] = x.element_size() * (x.numel() + row["outputs"]) + int(codes) * -(-channels // 4)
    # The backward pass also reads the input once more, for the gradient of its scale.
    row["backward_bytes"] = row["forward_bytes"] + x.element_size() * x.numel()
    if spec.up_factor == 2 and spec.use_fp16:
        row["launches"] = _launches(bench, forward, spec, (up_filter, down_filter), dtype)
    return row


def _launches(
    bench: Bench, forward: Callable[[], Tensor], spec: LayerSpec, filters: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Row:
    """Forward times under other cuts of the work, for the table `operators.LAUNCHES`."""
    terms = sum(len(operators.separable_factors(f)) for f in filters)
    key = (dtype, spec.up_factor, spec.down_factor, terms)
    found = {}
    for channels, warps in ((16, 4), (16, 8), (32, 8)) if bench.device.type == "cuda" else ((16, 4),):
        operators.LAUNCHES[key] = operators.Launch(block_channels=channels, num_warps=warps)
        found[f"{channels} channels, {warps} warps"] = bench.seconds(forward)
    del operators.LAUNCHES[key]
    return found


# --- Training ---------------------------------------------------------------------------------------------------------


def configuration(config: str, resolution: int, size: Size) -> TrainConfig:
    """The published width and depth, batch 32, R1 every 16 steps; a fraction of it to rehearse."""
    base = load_params(ROOT).train.model_dump()
    width = {"channel_base": 32768 // size.channel_share, "channel_max": 512 // size.channel_share}
    width |= {f"discriminator_{name}": value for name, value in width.items()}
    depth = {"z_dim": size.latent, "w_dim": size.latent, "num_layers": size.num_layers, "mapping_layers": 2}
    gamma = 8 * (resolution / 512) ** 2
    training = {
        "config": config,
        "batch": size.batch,
        "gamma": gamma,
        "r1_interval": 16,
        "mbstd_group": size.mbstd_group,
        "augment": "none",  # its margins follow the draws, which a graph cannot
    }
    return TrainConfig.model_validate({**base, **width, **depth, **training})


class Training:
    """A state and what a step of it needs. mode: plain, triton or graphs."""

    def __init__(self, bench: Bench, config: TrainConfig, images: ImageSet, mode: str) -> None:
        self.config = config
        self.images = images
        self.state: TrainingState = new_state(config, images.resolution, bench.device)
        group = Group.current(bench.device)
        self.players = Players(self.state.generator, self.state.discriminator, group)
        limit = bench.size.images_per_pass[images.resolution]
        per_pass = partition.micro_batch_size(config.batch, 1, config.mbstd_group, limit)
        mine = partition.micro_batches(config.batch, 1, 0, config.mbstd_group, per_pass)
        self.batches = Batches(config, images, self.state.generator.num_ws, mine, bench.device)
        self.mode = mode
        if mode == "graphs":
            replayed = GraphedPhases(self.players, bench.device, mine.shape, images.resolution, config)
            for name in ("generator_phase", "discriminator_phase", "r1_phase"):
                setattr(self.players, name, getattr(replayed, name))

    def warm_up(self, steps: int) -> None:
        """The first of them with R1, the others without."""
        for step in range(steps):
            self.state.step = step
            self.step()

    def step(self) -> Scalars:
        with kernels.enabled(self.mode != "plain"):
            return loop.take_step(self.state, self.players, self.batches)


class GraphedPhases:
    """The three phases of a step as CUDA graphs, behind the names that the loop calls; on a CPU they just run.

    A phase is launched as one piece, so the CPU no longer sets the pace. Inputs are copied into the tensors that were
    captured. Each graph writes gradients of its own, which are put in place for the optimiser after it has run. Checks
    that wait for the device, the optimisers, and the averages stay outside.
    """

    def __init__(
        self, players: Players, device: torch.device, shape: tuple[int, ...], resolution: int, config: TrainConfig
    ) -> None:
        latents = torch.randn(*shape, config.z_dim, device=device)
        images = torch.randn(*shape, 3, resolution, resolution, device=device).clamp(-1, 1)
        self._fakes = [FakePass(z, None, None) for z in latents]
        self._reals = [RealPass(real, None, None) for real in images]
        weight = config.r1_gamma(resolution) * config.r1_interval
        generator, discriminator, plain = players.generator, players.discriminator, View()
        self._g = _Captured(functools.partial(players.generator_phase, self._fakes, plain), generator, device)
        main = functools.partial(players.discriminator_phase, self._reals, self._fakes, plain)
        self._d = _Captured(main, discriminator, device)
        self._r1 = _Captured(functools.partial(players.r1_phase, self._reals, plain, weight), discriminator, device)

    def generator_phase(self, fakes: Sequence[FakePass], view: View, scalars: Scalars) -> None:
        self._take(fakes, ())
        self._g.run(scalars)

    def discriminator_phase(
        self, reals: Sequence[RealPass], fakes: Sequence[FakePass], view: View, scalars: Scalars
    ) -> Tensor:
        self._take(fakes, reals)
        return self._d.run(scalars)

    def r1_phase(self, reals: Sequence[RealPass], view: View, weight: float, scalars: Scalars) -> None:
        self._take((), reals)
        self._r1.run(scalars)

    def _take(self, fakes: Sequence[FakePass], reals: Sequence[RealPass]) -> None:
        for ours, theirs in zip(self._fakes, fakes, strict=False):
            ours.z.copy_(theirs.z)
        for mine, given in zip(self._reals, reals, strict=False):
            mine.images.copy_(given.images)


class _Captured:
    """One phase as a graph: what it returns, the gradients it leaves and the scalars it adds are read after replay."""

    def __init__(self, phase: Callable[[Scalars], Any], network: torch.nn.Module, device: torch.device) -> None:
        self._phase, self._network = phase, network
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        # Warming up on another stream makes every lazy choice (cuDNN's, Triton's, the factors') before the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                phase(Scalars())
        torch.cuda.current_stream().wait_stream(stream)
        network.zero_grad(set_to_none=True)
        self._graph, self._scalars = torch.cuda.CUDAGraph(), Scalars()
        with torch.cuda.graph(self._graph):
            self._result = phase(self._scalars)
        self._gradients = [parameter.grad for parameter in network.parameters()]

    def run(self, scalars: Scalars) -> Any:
        if self._graph is None:
            return self._phase(scalars)
        self._graph.replay()
        for parameter, gradient in zip(self._network.parameters(), self._gradients, strict=True):
            parameter.grad = gradient
        for name, value in self._scalars.sums.items():
            scalars.sums[name] = scalars.sums.get(name, 0) + value
            scalars.counts[name] = scalars.counts.get(name, 0) + self._scalars.counts[name]
        return self._result


def _noise(resolution: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (64, resolution, resolution, 3), dtype=np.uint8)
    return ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public")


def training_times(bench: Bench) -> list[Row]:
    """Seconds per thousand images and peak memory of T and R in each mode; a mode that fails says why."""
    rows = []
    for config in bench.size.configs:
        for resolution in bench.size.resolutions:
            for mode in ("triton", "graphs", "plain"):
                if bench.seconds_left < 2 * bench.size.reserve_seconds:
                    return rows
                row: Row = {"config": config, "resolution": resolution, "mode": mode}
                try:
                    row |= _training_row(bench, configuration(config, resolution, bench.size), resolution, mode)
                except RuntimeError as error:  # out of memory, or a capture that the driver refuses
                    row["error"] = str(error).splitlines()[0]
                print(row, file=sys.stderr)
                rows.append(row)
                _release(bench)
    return rows


def _training_row(bench: Bench, config: TrainConfig, resolution: int, mode: str) -> Row:
    training = Training(bench, config, _noise(resolution), mode)
    training.warm_up(bench.size.warm_up)
    _reset_peak(bench)
    times = {}
    for name, first in (("main", 1), ("r1", 0)):
        seconds = []
        for _ in range(bench.size.steps):
            training.state.step = first
            bench.wait()
            begun = time.perf_counter()
            training.step()
            bench.wait()
            seconds.append(time.perf_counter() - begun)
        times[name] = statistics.median(seconds)
    mean = (times["r1"] + (config.r1_interval - 1) * times["main"]) / config.r1_interval
    return {
        "images_per_pass": training.batches.mine.shape[1],
        "main_step_seconds": times["main"],
        "r1_step_seconds": times["r1"],
        "seconds_per_kimg": mean / config.batch * 1000,
        **_peak(bench),
    }


def _reset_peak(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(bench: Bench) -> Row:
    if bench.device.type != "cuda":
        return {}
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30, "reserved_gib": torch.cuda.memory_reserved() / 2**30}


def _release(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def r1_times(bench: Bench) -> list[Row]:
    """The gradient of D's R1 penalty: eager double backward, and torch.func.grad compiled (AOT refuses the former)."""
    rows = []
    for resolution in bench.size.resolutions:
        config = configuration(bench.size.configs[0], resolution, bench.size)
        critic = build_networks(config, resolution)[1].to(bench.device)
        count = bench.size.images_per_pass[resolution]
        images = torch.rand(count, 3, resolution, resolution, device=bench.device) * 2 - 1
        row: Row = {"resolution": resolution, "images": count}
        rows.append(row)

        def eager(critic: torch.nn.Module = critic, images: Tensor = images) -> list[Tensor | None]:
            real = images.detach().requires_grad_()
            penalty = r1_penalty(critic(real, None), real).mean()
            return list(torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True))

        def penalty(parameters: dict[str, Tensor], images: Tensor = images, critic: torch.nn.Module = critic) -> Tensor:
            def score(images: Tensor) -> Tensor:
                return torch.func.functional_call(critic, parameters, (images, None)).sum()

            return torch.func.grad(score)(images).float().square().sum(dim=(1, 2, 3)).mean()

        row["eager_seconds"] = bench.seconds(eager)
        parameters = {name: value.detach() for name, value in critic.named_parameters()}
        # Compiling for a CPU takes longer than the rehearsal is worth; tracing is what can fail.
        backend = "inductor" if bench.device.type == "cuda" else "eager"
        compiled = torch.compile(torch.func.grad(penalty), backend=backend)
        try:
            found = compiled(parameters)
            pairs = zip(eager(), found.values(), strict=True)
            row["largest_difference"] = max(float((a - b).norm() / a.norm()) for a, b in pairs if a is not None)
            row["compiled_seconds"] = bench.seconds(functools.partial(compiled, parameters))
        except Exception as error:  # a compiler has many ways to fail, and the other stages must still run
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        _release(bench)
    return rows


def profile(bench: Bench) -> Row:
    """One step of T by operator, and the share of the time in which the device had nothing to do."""
    resolution = bench.size.resolutions[-1]
    training = Training(
        bench, configuration(bench.size.configs[0], resolution, bench.size), _noise(resolution), "triton"
    )
    training.warm_up(bench.size.warm_up)
    bench.wait()
    on_gpu = bench.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]
    begun = time.perf_counter()
    training.step()
    bench.wait()
    wall = time.perf_counter() - begun
    with torch.profiler.profile(activities=activities) as recorded:
        training.step()
        bench.wait()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, attribute))
    busy = sum(getattr(event, attribute) for event in events) / 1e6
    top = [
        {"name": event.key[:120], "seconds": getattr(event, attribute) / 1e6, "calls": event.count}
        for event in events[:25]
    ]
    return {"resolution": resolution, "wall_seconds": wall, "busy_seconds": busy, "gap": 1 - busy / wall, "top": top}


def learning(bench: Bench) -> Row:
    """T on synthetic photographs until the time is over: losses and gradient norms, which must stay finite."""
    resolution = bench.size.resolutions[0]
    pixels = np.stack([phantom(0, index, resolution).image for index in range(bench.size.phantoms)])
    images = ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public")
    training = Training(bench, configuration(bench.size.configs[0], resolution, bench.size), images, "triton")
    rows: list[Row] = []
    begun = time.perf_counter()
    while not rows or (bench.seconds_left > bench.size.reserve_seconds and bench.size is not REHEARSAL):
        scalars = training.step()  # raises TrainingError where a gradient is not finite
        if training.state.step % 10 == 1:
            means = {name: float(total) / scalars.counts[name] for name, total in scalars.sums.items()}
            rows.append({"images": training.state.images_seen, **means})
    finite = all(np.isfinite(value) for row in rows for value in row.values())
    return {
        "resolution": resolution,
        "images_seen": training.state.images_seen,
        "seconds": time.perf_counter() - begun,
        "finite": bool(finite),
        "curve": rows,
    }


STAGES: dict[str, Callable[[Bench], Any]] = {
    "ceilings": ceilings,
    "checks": checks,
    "kernels": kernel_times,
    "training": training_times,
    "r1": r1_times,
    "profile": profile,
    "learning": learning,
}


# --- The call ---------------------------------------------------------------------------------------------------------


def environment(bench: Bench, arguments: list[str]) -> Row:
    """What the numbers depend on."""
    row: Row = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/gpu.py", *arguments]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": bench.device.type,
        "rehearsal": bench.size is REHEARSAL,
    }
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        row |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30}
        row |= {"multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
    return row


def write(path: Path, results: Row) -> None:
    """The whole file at once, so that a call cut short never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(path)


def measure(bench: Bench, stages: list[str], path: Path, results: Row) -> Row:
    """Run the stages in their order; a failed one leaves its message, and the next ones run."""
    for name in stages:
        if bench.seconds_left < bench.size.reserve_seconds:
            results[name] = {"left out": f"{bench.seconds_left:.0f} seconds were left"}
        else:
            begun = time.monotonic()
            try:
                found = STAGES[name](bench)
            except Exception as error:  # the file must say what failed, and the card's time is not to be lost
                found = {"error": f"{type(error).__name__}: {error}"}
            results[name] = found
            results["stage_seconds"] = {**results.get("stage_seconds", {}), name: time.monotonic() - begun}
            print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
        write(path, results)
        _release(bench)
    return results


def main() -> None:
    """Measure and write one JSON document; exits 1 if a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the whole call")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="default: all")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-DEVICE-DATE.json")
    parser.add_argument("--dry-run", action="store_true", help="toy size on the CPU, Triton interpreted")
    options = parser.parse_args()
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton decides at its import whether it interprets, and that may have happened above.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device. Rehearse on the CPU with --dry-run.")

    deadline = time.monotonic() + options.minutes * 60
    device = torch.device("cpu" if options.dry_run else "cuda")
    bench = Bench(device, REHEARSAL if options.dry_run else Size(), deadline)
    # As a training does: fixed shapes, so cuDNN may search; TF32 off, since it would round the layers in float32.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    about = environment(bench, sys.argv[1:])
    name = about["device"].lower().replace(" ", "-")
    path = options.output or ROOT / "benchmarks/results" / f"gpu-{name}-{about['date'][:10]}.json"
    if options.dry_run:  # one wide strip instead of two: the interpreter counts programs
        operators.LAUNCHES[torch.float32, 2, 2, 2] = operators.Launch(tile_up=128)
    results = measure(bench, options.stages, path, {"environment": about})
    print(path)
    failed = [stage for stage in options.stages if isinstance(results[stage], dict) and "error" in results[stage]]
    if failed:
        sys.exit("\n".join(f"{stage}: {results[stage]['error']}" for stage in failed))


if __name__ == "__main__":
    main()
