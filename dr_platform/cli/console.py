"""How the command line talks: one refreshed line while something runs, one line when something is done.

Talk goes to stderr, so that stdout is the result and nothing else. Where stderr is no terminal (a log, DVC in CI) there
is no refreshed line, only the lasting ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dr_platform.errors import DrpError, StoppedError

if TYPE_CHECKING:
    from dr_platform.records import Severity, Tick
    from dr_platform.training.plan import TrainPlan
    from dr_platform.training.report import Progress as TrainingProgress

# A terminal narrower than this would fold tables; a log has no width at all.
_LOG_WIDTH = 140
_COUNT_LOG_SECONDS = 10.0


class Console:
    """Talk on stderr, results on stdout."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _LOG_WIDTH
        self._out = rich.console.Console(highlight=False, soft_wrap=True, width=width)
        self._err = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A lasting line of talk."""
        self._err.print(text, markup=False)

    def result(self, text: str) -> None:
        """A line of the result."""
        self._out.print(text, markup=False)

    def show(self, table: Table) -> None:
        """A table of the result."""
        self._out.print(table)

    def json(self, value: Any) -> None:
        """The result as JSON, for programs: exactly one document on stdout."""
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @contextmanager
    def counting(self, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A function to call with (done, total) as work goes on; shows a bar with the time left."""
        if not self._err.is_terminal:
            yield _log_counter(self, what, unit)
            return
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )
        with bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def training(self) -> Iterator[TrainingView]:
        """What a training shows: a line per tick, and between ticks a refreshed one."""
        view = TrainingView(self)
        try:
            yield view
        finally:
            view.clear()

    @property
    def talk(self) -> rich.console.Console:
        """The console on stderr, for what draws itself."""
        return self._err

    @property
    def refreshes(self) -> bool:
        """Whether a line can be written over."""
        return self._err.is_terminal


class TrainingView:
    """The console's side of a training."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = False
        self._start = time.monotonic()
        self._told: dict[str, Severity] = {}

    def start(self, plan: TrainPlan) -> None:
        """Say what is about to be trained."""
        self._console.say(
            f"training {plan.run}: {plan.config.config}, {plan.resolution} px, {plan.train_images} images, "
            f"{plan.config.kimg:g} kimg, batch {plan.config.batch}, gamma {plan.config.r1_gamma(plan.resolution):g}"
            + (f", conditional on grades {', '.join(map(str, plan.classes))}" if plan.classes else "")
        )
        begun = plan.images_seen()
        if begun:
            self._console.say(f"continuing from {begun / 1000:.2f} kimg")

    def progress(self, now: TrainingProgress) -> None:
        """Refresh the line between ticks."""
        if not self._console.refreshes:
            return
        share = now.images_seen / now.images_total
        line = (
            f"{share:5.0%}  {now.images_seen / 1000:.2f} of {now.images_total / 1000:.2f} kimg   "
            f"{now.images_per_second:.1f} img/s   {duration(now.eta_seconds)} left"
        )
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
        self._open = True

    def tick(self, tick: Tick) -> None:
        """A lasting line with the tick's means, and one for each sign of trouble that is new or has become worse."""
        from dr_platform.training.health import news

        self.clear()
        value = tick.scalars.get
        norms = "/".join(f"{value(f'gradient/{name}', float('nan')):.2g}" for name in ("generator", "discriminator"))
        self._console.say(
            f"{tick.images_seen / 1000:7.2f} kimg  loss G {value('loss/generator', 0):.3f} D "
            f"{value('loss/discriminator', 0):.3f}  logits real {value('logits/real', 0):+.2f} fake "
            f"{value('logits/fake', 0):+.2f}  signs {value('signs/real', 0):+.2f} {value('signs/fake', 0):+.2f}  "
            f"r1 {value('r1/penalty', 0):.3g}  p {value('ada/p', 0):.2f}  |g| {norms}  "
            f"{tick.images_per_second:.1f} img/s  {tick.memory_gib:.1f} GiB  {duration(tick.eta_seconds)} left"
            + ("  checkpoint" if tick.checkpoint else "")
        )
        for finding in news(self._told, tick.findings):
            self._console.say(
                f"{finding.severity}: {finding.kind}: {finding.sentence} Try: {'; '.join(finding.advice)}."
            )

    def clear(self) -> None:
        """Take the refreshed line away."""
        if self._open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._open = False


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 42 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _log_counter(console: Console, what: str, unit: str) -> Callable[[int, int], None]:
    start = last = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done and now - last >= _COUNT_LOG_SECONDS:
            last = now
            left = (now - start) / done * (total - done)
            console.say(f"{what}: {done} of {total} {unit}, {duration(left)} left")

    return advance


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A failure the user can mend becomes one line on stderr and exit status 1; a bug keeps its traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        yield
    except StoppedError as stop:
        sys.stderr.write(f"stopped: {stop}\n")
        raise SystemExit(130) from None
    except DrpError as error:
        logging.getLogger(__name__).debug("The error above in full", exc_info=True)
        said = " ".join(str(error).split())
        # What a terminal would obey, in a file's name say, is spelt out.
        sys.stderr.write("error: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said) + "\n")
        raise SystemExit(1) from None
    except BrokenPipeError:
        # The reader of a pipe has left, as in `drp models list | head`; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if error.filename is None:
            raise
        logging.getLogger(__name__).debug("The error above in full", exc_info=True)
        sys.stderr.write(
            f"error: {error.filename}: {error.strerror}. Make it readable and writable, or move it away.\n"
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def grade_argument() -> int | None:
    """`--grade` of a stage's command line: the target of a transfer stage, or None."""
    return stage_arguments().grade


def stage_arguments() -> argparse.Namespace:
    """A stage's command line: `grade` or None, and `as_class`: one of the further grades of a conditional training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grade", type=int, choices=range(5))
    parser.add_argument("--as-class", action="store_true")
    return parser.parse_args()
