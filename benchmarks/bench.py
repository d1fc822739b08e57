"""How much faster StyleGAN3 runs on this CPU than in its plain form (see `plain.py`). Run from the project's root:

    python benchmarks/bench.py                # measure, then write benchmarks/results/cpu.json and docs/benchmarks.md
    python benchmarks/bench.py --no-publish   # measure and print, on a busy machine too
    python benchmarks/bench.py --quick        # tiny shapes, a few seconds: does it run?

Both sides compute the same numbers, which is asserted before a clock starts, and take turns in one process. A row is
the median of the ratios of neighbouring runs with its 95 % bootstrap interval. One thread is timed by the processor
time of this process, which neighbours on the machine disturb least; two by the wall.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import plain  # noqa: E402

from dr_platform.gan import Discriminator, Generator, fir, ops, update_ema  # noqa: E402
from dr_platform.gan.filters import lowpass_filter  # noqa: E402
from dr_platform.gan.losses import discriminator_fake_loss, discriminator_real_loss, generator_loss, r1_penalty  # noqa: E402

RESULTS = ROOT / "benchmarks/results/cpu.json"
PAGE = ROOT / "docs/benchmarks.md"
R1_INTERVAL = 16

# The allocator told to keep what is freed, as the training workers are: the plain form's large images are else mapped
# anew from the system each time, which costs it about half its time.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Row:
    """One comparison. `peer_s` and `ours_s` are medians in seconds; `error` is the largest relative difference."""

    id: str
    what: str
    threads: int
    peer_s: float
    ours_s: float
    ratio: float
    low: float
    high: float
    error: float
    inputs: str
    ratios: list[float]


@dataclass(frozen=True)
class Size:
    """How large a run is; `quick` only shows that everything works."""

    pairs: int
    shapes: Sequence[tuple[int, int, int]]  # planes, side before the up filter, up factor
    generators: Sequence[tuple[int, int, int]]  # resolution, batch, most channels
    training: tuple[int, int, int]  # likewise
    radial_sides: Sequence[int]

    @classmethod
    def full(cls) -> Size:
        """The published rows. Sides are those of the schedules of 64 to 512 pixels, after a 3 x 3 convolution."""
        shapes = [(256, 38, 2), (256, 38, 4), (256, 86, 2), (256, 86, 4), (128, 150, 2), (64, 278, 2)]
        return cls(7, shapes, [(64, 4, 128), (128, 2, 128)], (64, 4, 64), [178, 306])

    @classmethod
    def quick(cls) -> Size:
        """Seconds in all."""
        return cls(2, [(4, 38, 2), (4, 38, 4)], [(16, 2, 4)], (16, 2, 4), [50])


# --- Comparing --------------------------------------------------------------------------------------------------------


def timed(run: Callable[[], Any], threads: int, repeats: int = 1) -> float:
    """Seconds of one run."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def summary(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median, and its 95 % interval by 2000 bootstrap resamples."""
    drawn = np.random.default_rng(0).choice(np.array(ratios), (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def compare(
    id: str,
    what: str,
    peer: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    error: float,
    limit: float,
    inputs: Sequence[Tensor],
    pairs: int,
    threads: int = 1,
    repeats: int = 1,
) -> Row:
    """Time both in turns. Raises AssertionError unless their relative difference `error` is at most `limit`."""
    assert error <= limit, f"{id} {what}: the forms differ by {error:.1e}, more than {limit:.0e}; nothing was timed"
    torch.set_num_threads(threads)
    peer(), ours()
    times = [(timed(peer, threads, repeats), timed(ours, threads, repeats)) for _ in range(pairs)]
    ratios = [theirs / mine for theirs, mine in times]
    peer_s, ours_s = (float(np.median(side)) for side in zip(*times, strict=True))
    row = Row(id, what, threads, peer_s, ours_s, *summary(ratios), error, digest(inputs), ratios)
    print(line(row), file=sys.stderr, flush=True)
    return row


def geometric_mean(id: str, what: str, rows: Sequence[Row]) -> Row:
    """The rows as one: times and ratios by geometric mean, pair by pair."""

    def mean(values: Sequence[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    ratios = [mean(pair) for pair in zip(*(row.ratios for row in rows), strict=True)]
    times = mean([row.peer_s for row in rows]), mean([row.ours_s for row in rows])
    error, threads = max(row.error for row in rows), rows[0].threads
    inputs = hashlib.sha256("".join(row.inputs for row in rows).encode()).hexdigest()[:12]
    return Row(id, what, threads, *times, *summary(ratios), error, inputs, ratios)


def relative(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """||ours - theirs|| / ||theirs|| over all tensors together."""
    mine, reference = (torch.cat([value.detach().double().flatten() for value in side]) for side in (ours, theirs))
    return float((mine - reference).norm() / reference.norm())


def digest(inputs: Sequence[Tensor]) -> str:
    """The first digits of the inputs' sha256."""
    whole = hashlib.sha256()
    for value in inputs:
        whole.update(value.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()[:12]


# --- Rows -------------------------------------------------------------------------------------------------------------


def lrelu_rows(size: Size, threads: int) -> list[Row]:
    """C1: `filtered_lrelu`, every shape forward and with its backward pass, then the geometric means."""
    forward, both = [], []
    for planes, side, up in size.shapes:
        torch.manual_seed(0)
        x, bias = torch.randn(4, planes // 4, side, side), torch.randn(planes // 4) * 0.1
        rate, pad = 16.0 * up, (9, 8) if up == 2 else (-6, -9)
        up_filter, down_filter = lowpass_filter(6 * up, 2.0, 12.0, rate), lowpass_filter(12, 2.0, 12.0, rate)
        leaves = x.requires_grad_(), bias.requires_grad_()

        def run(form: Any, arguments: Any = (up_filter, down_filter, bias, up, 2, pad * 2), x: Tensor = x) -> Tensor:
            return form(x, *arguments, clamp=256.0)  # type: ignore[no-any-return]

        def gradients(form: Any, dy: Tensor, run: Any = run, leaves: Any = leaves) -> Sequence[Tensor]:
            return torch.autograd.grad(run(form), leaves, dy)

        def value(form: Any, run: Any = run) -> Tensor:
            with torch.no_grad():
                return run(form)  # type: ignore[no-any-return]

        # An activation within rounding of zero may take either slope: no gradient where one reaches.
        raised = plain.resample(
            x.detach() + bias.detach()[:, None, None], up_filter, up=up, padding=pad * 2, gain=up**2
        )
        near = (raised.abs() < 1e-5 * raised.abs().mean()).float()
        y = value(plain.filtered_lrelu)
        dy = torch.randn_like(y) * (1 - F.max_pool2d(near, 12, stride=2))
        mine, theirs = gradients(ops.filtered_lrelu, dy), gradients(plain.filtered_lrelu, dy)
        error = max(relative([value(ops.filtered_lrelu)], [y]), relative(mine, theirs))
        common: Any = {"error": error, "limit": 1e-6, "inputs": [x, bias, dy], "pairs": size.pairs, "threads": threads}
        name = f"filtered_lrelu {planes} x {side}² to {y.shape[3]}², up {up} down 2"
        sides = plain.filtered_lrelu, ops.filtered_lrelu
        forward.append(compare("C1", f"{name}, forward", *(lambda f=f, v=value: v(f) for f in sides), **common))
        passes = (lambda f=f, g=gradients, dy=dy: g(f, dy) for f in sides)
        both.append(compare("C1", f"{name}, forward and backward", *passes, **common))
    means = [
        geometric_mean("C1", f"filtered_lrelu, geometric mean, {name}", rows)
        for name, rows in (("forward", forward), ("forward and backward", both))
    ]
    return [*forward, *both, *means]


def generator_for(resolution: int, channels: int) -> Generator:
    """Config T at its published depth, with at most `channels` channels, the same in every run."""
    torch.manual_seed(0)
    return Generator(img_resolution=resolution, channel_base=channels * resolution, channel_max=channels)


def gradients_of(network: nn.Module, loss: Tensor) -> list[Tensor]:
    """Gradients of a loss by all parameters; zeros where it does not depend on one."""
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True))


def double_error(compute: Callable[[], Sequence[Tensor]]) -> float:
    """Relative difference of what `compute` returns with our operators and with the plain ones."""
    with plain.plain_operators():
        theirs = compute()
    return relative(compute(), theirs)


def with_plain_operators(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same call, computed in the plain form."""

    def call() -> Any:
        with plain.plain_operators():
            return run()

    return call


def generator_rows(size: Size, threads: int, note: str = "") -> list[Row]:
    """C2: forward and backward pass of the generator."""
    rows = []
    for resolution, batch, channels in size.generators:
        # Gradients are compared in double precision, where no activation rounds to the other side of zero.
        narrow = generator_for(resolution, 4).double()
        z = torch.randn(batch, 512)
        exact = double_error(lambda G=narrow, z=z: gradients_of(G, G(z.double()).square().mean()))
        assert exact < 1e-7, f"C2: the gradients differ by {exact:.1e} in double precision"  # by the styles' epsilon
        G = generator_for(resolution, channels)
        with torch.no_grad():
            error = double_error(lambda G=G, z=z: [G(z)])

        def run(G: Generator = G, z: Tensor = z) -> None:
            G.zero_grad()
            G(z).square().mean().backward()

        what = f"generator T, {resolution} px, batch {batch}, {channels} channels, forward and backward{note}"
        common: Any = {"inputs": [z], "pairs": size.pairs, "threads": threads}
        # 15 layers, each within 1e-6 as C1 asserts, whose roundings are independent: sqrt(15) of one.
        rows.append(compare("C2", what, with_plain_operators(run), run, error=error, limit=4e-6, **common))
    return rows


class Training:
    """One iteration of training as the platform does it, or with loops over tensors in Adam and the average."""

    def __init__(self, resolution: int, batch: int, channels: int, loops: bool = False) -> None:
        self.G = generator_for(resolution, channels)
        self.D = Discriminator(
            img_resolution=resolution,
            channel_base=channels * resolution,
            channel_max=channels,
            mbstd_group_size=batch,
        )
        self.average = copy.deepcopy(self.G).requires_grad_(False)
        self.update_ema = plain.update_ema if loops else update_ema
        options: Any = {"foreach": False} if loops else {"fused": True}
        self.adam_g = torch.optim.Adam(self.G.parameters(), lr=2.5e-3, betas=(0.0, 0.99), **options)
        self.adam_d = torch.optim.Adam(self.D.parameters(), lr=2e-3, betas=(0.0, 0.99), **options)
        self.z = torch.randn(2, batch, 512, generator=torch.Generator().manual_seed(1)).to(self.G.mapping.w_avg.dtype)
        self.real = torch.rand(batch, 3, resolution, resolution, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def generator_gradients(self) -> list[Tensor]:
        """Of the non-saturating loss."""
        return gradients_of(self.G, generator_loss(self.D(self.G(self.z[0]))).mean())

    def discriminator_gradients(self) -> list[Tensor]:
        """Of the logistic loss."""
        with torch.no_grad():
            fake = self.G(self.z[1])
        loss = discriminator_fake_loss(self.D(fake)).mean() + discriminator_real_loss(self.D(self.real)).mean()
        return gradients_of(self.D, loss)

    def r1_gradients(self) -> list[Tensor]:
        """Of the penalty at the real images."""
        real = self.real.detach().requires_grad_()
        return gradients_of(self.D, r1_penalty(self.D(real), real).mean())

    def step(self, network: nn.Module, adam: torch.optim.Adam, gradients: Sequence[Tensor]) -> None:
        """Move a network by its gradients."""
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()

    def iterate(self) -> None:
        """Everything but R1."""
        self.step(self.G, self.adam_g, self.generator_gradients())
        self.step(self.D, self.adam_d, self.discriminator_gradients())
        self.update_ema(self.average, self.G, 0.998)

    def regularise(self) -> None:
        """R1, every 16th iteration."""
        self.step(self.D, self.adam_d, self.r1_gradients())

    def double(self) -> Training:
        """The same in double precision."""
        for network in (self.G, self.D):
            network.double()
        self.z, self.real = self.z.double(), self.real.double()
        return self


def training_rows(size: Size) -> list[Row]:
    """C3: an iteration and the sixteenth part of its R1 step; then Adam and the moving average alone."""
    resolution, batch, channels = size.training
    narrow = Training(resolution, batch, 4).double()
    checked = narrow.generator_gradients, narrow.discriminator_gradients, narrow.r1_gradients
    error = max(double_error(gradients) for gradients in checked)
    mine, loops = Training(resolution, batch, channels), Training(resolution, batch, channels, loops=True)
    inputs = [mine.z, mine.real]
    what = f"training iteration, {resolution} px, batch {batch}, {channels} channels"
    # In double precision the forms differ by the epsilon of the styles only.
    common: Any = {"error": error, "limit": 1e-7, "inputs": inputs, "pairs": size.pairs}
    main = compare("C3", f"{what}, without R1", with_plain_operators(loops.iterate), mine.iterate, **common)
    r1 = compare("C3", f"{what}, R1 step alone", with_plain_operators(loops.regularise), mine.regularise, **common)
    ratios = [
        # Per pair only the ratios are kept; the medians share out the time between the two parts.
        (a * main.ours_s + b * r1.ours_s / R1_INTERVAL) / (main.ours_s + r1.ours_s / R1_INTERVAL)
        for a, b in zip(main.ratios, r1.ratios, strict=True)
    ]
    peer_s, ours_s = (a + b / R1_INTERVAL for a, b in ((main.peer_s, r1.peer_s), (main.ours_s, r1.ours_s)))
    name = f"{what}, R1 every {R1_INTERVAL}, Adam, average"
    whole = Row("C3", name, 1, peer_s, ours_s, *summary(ratios), error, main.inputs, ratios)
    return [main, r1, whole, *update_rows(size)]


def update_rows(size: Size) -> list[Row]:
    """The moving average and Adam over all tensors of a generator."""
    resolution, _, channels = size.training
    mine, loops = Training(resolution, 2, channels), Training(resolution, 2, channels, loops=True)
    torch.manual_seed(3)
    gradients = [torch.randn_like(parameter) for parameter in mine.G.parameters()]
    for training in (mine, loops):
        training.step(training.G, training.adam_g, gradients)
        training.update_ema(training.average, training.G, 0.998)
    count = f"{len(gradients)} tensors"
    common: Any = {"limit": 1e-6, "inputs": gradients, "pairs": size.pairs, "repeats": 10}
    error = relative(list(mine.average.parameters()), list(loops.average.parameters()))
    averages = (lambda t=t: t.update_ema(t.average, t.G, 0.998) for t in (loops, mine))
    rows = [compare("EMA", f"moving average of {count}", *averages, error=error, **common)]
    error = relative(list(mine.G.parameters()), list(loops.G.parameters()))
    steps = (lambda t=t: t.adam_g.step() for t in (loops, mine))
    return [*rows, compare("Adam", f"Adam step of {count}", *steps, error=error, **common)]


def radial_rows(size: Size) -> list[Row]:
    """Config R's down filter: one dense strided convolution against a sum of separable ones; then in its layer."""
    rows = []
    radial, up_filter = (lowpass_filter(12, 8.0, 20.0, 64.0, radial=radial) for radial in (True, False))
    assert radial is not None
    for side in size.radial_sides:
        torch.manual_seed(0)
        x = torch.randn(1, 32, side, side)
        dense = fir.resampler_for(x.shape[2:], x.dtype, radial, down=(2, 2))
        terms = fir.resampler_for(x.shape[2:], x.dtype, radial, down=(2, 2), split=True)
        planes = fir.gathered(x[0])
        dy = torch.randn_like(dense(planes))

        def both(form: fir.Resampler, planes: Tensor = planes, dy: Tensor = dy) -> list[Tensor]:
            return [form(planes), form.transposed(dy)]

        sides: Any = (lambda f=f, both=both: both(f) for f in (terms, dense))
        common: Any = {"limit": 1e-6, "inputs": [x, radial], "pairs": size.pairs}
        against = f"against {len(terms.chains)} separable terms"
        what = f"radial filter, 32 x {side}², down 2, and its transpose: dense, {against}"
        rows.append(compare("R", what, *sides, error=relative(both(dense), both(terms)), **common))

        image = x[:, :, : side // 2, : side // 2]

        def layer(form: Any, image: Tensor = image) -> Tensor:
            return form(image, up_filter, radial, None, 2, 2, (11, 10, 11, 10))  # type: ignore[no-any-return]

        sides = (lambda f=f, layer=layer: layer(f) for f in (plain.filtered_lrelu, ops.filtered_lrelu))
        error = relative([layer(ops.filtered_lrelu)], [layer(plain.filtered_lrelu)])
        what = f"filtered_lrelu, radial, 32 x {side // 2}², up 2 down 2, forward"
        rows.append(compare("R", what, *sides, error=error, **common))
    return rows


def help_seconds(runs: int) -> float:
    """Median processor time of `drp --help`."""
    command = [sys.executable, "-m", "dr_platform.cli.main", "--help"]

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(runs):
        before = spent()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(spent() - before)
    return float(np.median(times))


def rows_with_kept_memory(quick: bool) -> list[Row]:
    """C2 in a child process whose allocator keeps what is freed."""
    command = [sys.executable, __file__, "--child", *(["--quick"] if quick else [])]
    child = subprocess.run(command, env={**os.environ, **KEEP_MEMORY}, check=True, stdout=subprocess.PIPE)
    return [Row(**row) for row in json.loads(child.stdout)]


# --- Publishing -------------------------------------------------------------------------------------------------------


def line(row: Row) -> str:
    """A row of the printed table."""
    return (
        f"{row.id:5}{row.ratio:7.2f} x  [{row.low:.2f}, {row.high:.2f}]  {row.peer_s:9.4f} s {row.ours_s:9.4f} s"
        f"  {row.error:.0e}  {row.threads} thread{'s' if row.threads > 1 else ' '}  {row.what}"
    )


def page(document: dict[str, Any]) -> str:
    """docs/benchmarks.md for the measured document."""
    environment = document["environment"]
    lines = [
        "# Speed on a CPU",
        "",
        f"Written by `{environment['command']}` on {environment['date']}: {environment['machine']}, "
        f"torch {environment['torch']}, Python {environment['python']}, "
        f"load average {environment['load_average']:.2f} at the start.",
        "",
        "Each row is the median ratio of the time of the plain form to ours, with its 95 % interval; the runs took",
        "turns in one process, after their results had been found equal. One thread is processor time, two wall time.",
        "",
        "**The plain form** inserts zeros, convolves every channel (a depthwise convolution), axis by axis with a",
        "separable filter and at once with a radial one, and drops samples; it convolves with one weight per sample in",
        "as many groups; Adam and the moving average visit one tensor at a time. It runs with the allocator's",
        "defaults, as anyone's would, except in the rows that say otherwise: by default its large images are mapped",
        "anew from the system each time, and an allocator that keeps freed memory spares it that. The difference is of",
        "values and gradients in single precision (C1, R), of images in single precision (C2), and of gradients in",
        "double precision (C3).",
        "",
        "| | what | threads | ratio | 95 % interval | plain, ms | ours, ms | difference | inputs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (Row(**row) for row in document["rows"]):
        lines.append(
            f"| {row.id} | {row.what} | {row.threads} | **{row.ratio:.2f}** | {row.low:.2f} to {row.high:.2f} | "
            f"{row.peer_s * 1e3:.1f} | {row.ours_s * 1e3:.1f} | {row.error:.0e} | `{row.inputs}` |"
        )
    seconds = document["help_seconds"]
    return "\n".join([*lines, "", f"`drp --help` takes {seconds:.2f} s of processor time (bound: 0.4 s).", ""])


def refuse_under_load(publish: bool) -> None:
    """End with one line if the machine is busy and the figures were to be published."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if publish and load > cores:
        sys.exit(
            f"The load average is {load:.1f} on {cores} cores, so nothing was published. Wait, or pass --no-publish."
        )


def main() -> None:
    """Measure, print, and publish unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-publish", action="store_true", help="print only; allowed on a busy machine")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs; prints only")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = Size.quick() if options.quick else Size.full()
    if options.child:
        rows = generator_rows(replace(size, generators=size.generators[:1]), threads=1, note=", freed memory kept")
        sys.stdout.write(json.dumps([asdict(row) for row in rows]))
        return
    publish = not (options.no_publish or options.quick)
    refuse_under_load(publish)
    cores = os.cpu_count() or 1
    environment = {
        "date": date.today().isoformat(),
        "machine": f"{cores} cores, {torch.backends.cpu.get_cpu_capability().replace('AVX512', 'AVX-512')}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": [1, 2],
        "load_average": os.getloadavg()[0],
        "command": "make bench",
    }
    print(" · ".join(f"{key} {value}" for key, value in environment.items()), file=sys.stderr)
    rows = [
        *lrelu_rows(size, threads=1),
        *generator_rows(size, threads=1),
        *rows_with_kept_memory(options.quick),
        *training_rows(size),
        *radial_rows(size),
    ]
    seconds = help_seconds(size.pairs)
    refuse_under_load(publish)  # before two threads of our own fill the machine
    if not options.quick:
        rows += lrelu_rows(size, threads=2)[-2:]
    print("     plain / ours, 95 % interval      plain        ours  difference")
    print("\n".join(map(line, rows)))
    print(f"drp --help: {seconds:.2f} s of processor time")
    if publish:
        document = {"environment": environment, "help_seconds": seconds, "rows": [asdict(row) for row in rows]}
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(document))


if __name__ == "__main__":
    main()
