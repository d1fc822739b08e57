"""Work on images by several processes: results in the order of the tasks, few images in memory at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import TypeVar

from dr_platform.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks from which processes pay: each takes a second to start.
WORTH = 64

_AHEAD = 3  # tasks given to a process before its results are asked for


def processes() -> int:
    """As many as there are cores to use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Task], Result], tasks: Iterable[Task], count: int) -> Iterator[Result]:
    """`function` of each task, by `count` processes; by this one if they are few. function: of a module.

    Raises what the function raises; DataError if a process is killed, as by lack of memory.
    """
    waiting = iter(tasks)
    first = list(islice(waiting, WORTH))
    if count == 1 or len(first) < WORTH:
        yield from map(function, chain(first, waiting))
        return
    context = multiprocessing.get_context("spawn")  # this process has threads, so it must not be forked
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_obey_parent, initargs=(os.getpid(),))
    running: deque[Future[Result]] = deque()
    try:
        for task in chain(first, waiting):
            with _interruptions_later():
                running.append(pool.submit(function, task))
            if len(running) > _AHEAD * count:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a process that reads images was killed, perhaps for lack of memory. Free some and run the same again."
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _interruptions_later() -> Iterator[None]:
    """Whatever process is started meanwhile never hears an interruption, not even before it can say that it ignores it.

    A blocked signal is inherited; one that comes now reaches this process a little later.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_parent(parent: int) -> None:
    """End with the process that gave the work: an interruption is for that one to see, and its death is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
