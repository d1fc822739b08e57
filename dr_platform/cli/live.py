"""A sweep as people watch it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table

from dr_platform.cli.console import Console, duration
from dr_platform.cli.tables import plain_table
from dr_platform.sweep import Trial

if TYPE_CHECKING:
    from dr_platform.sweep import Sweep
    from dr_platform.training.report import Progress

    State = dict[tuple[int, float], Trial | Progress]


@contextmanager
def sweep_view(console: Console, sweep: Sweep) -> Iterator[Callable[[State], None]]:
    """A table that refreshes on a terminal; elsewhere a line per finished trial."""
    if not console.refreshes:
        seen = set(sweep.finished())

        def tell(state: State) -> None:
            for cell, known in state.items():
                if cell not in seen and isinstance(known, Trial):
                    seen.add(cell)
                    console.say(f"n = {cell[0]}, gamma = {cell[1]:g}: {known.metric} {known.value:.4g}")

        yield tell
        return
    with Live(console=console.talk, refresh_per_second=2, transient=True) as live:
        yield lambda state: live.update(_table(sweep, state))


def _table(sweep: Sweep, state: State) -> Table:
    table = plain_table(">images", ">gamma", "state", ">img/s", ">left", ">metric")
    for cell in sweep.cells:
        known = state.get((cell.size, cell.gamma))
        if known is None:
            row = ("waiting", "", "", "")
        elif isinstance(known, Trial):
            row = ("done", "", "", f"{known.value:.4g}")
        else:
            share = f"{known.images_seen / known.images_total:.0%}"
            row = (share, f"{known.images_per_second:.1f}", duration(known.eta_seconds), "")
        table.add_row(str(cell.size), f"{cell.gamma:g}", *row)
    return table
