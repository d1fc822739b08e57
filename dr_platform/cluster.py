"""Training, and the passes of an evaluation, on Ray: the only module that imports it.

Ray Train starts the workers, forms their process group and restarts them after a crash. It does not keep checkpoints:
its own index is written in place and can lose two of them, so the truth is checkpoint.py's commit protocol in the run
directory, which every worker sees, and a restarted worker group finds the newest committed one itself.

The driver follows the run directory (`ticks.jsonl`, `progress.json`) instead of Ray's log stream: the file is there
after a crash, and holds each tick once.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

# Read by Ray when it is imported: no usage statistics, a quick look at the workers' health, readable logs. The last
# three are for glibc in the workers: it would map every large tensor afresh, and the page faults cost half of G's time.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray.train  # noqa: E402
import torch  # noqa: E402
from ray.train.torch import TorchTrainer, get_device  # noqa: E402

from dr_platform import checkpoint, errors, files  # noqa: E402
from dr_platform.config import SiteConfig  # noqa: E402
from dr_platform.errors import ClusterError, DrpError, StoppedError, TrainingError  # noqa: E402
from dr_platform.gan import kernels  # noqa: E402
from dr_platform.records import Tick  # noqa: E402
from dr_platform.training import loop  # noqa: E402
from dr_platform.training.group import Group  # noqa: E402
from dr_platform.training.plan import CHECKPOINTS, TrainPlan  # noqa: E402
from dr_platform.training.report import Progress, read_progress, read_ticks  # noqa: E402
from dr_platform.training.worker import work  # noqa: E402

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"
FAILURE_FILE = "failure.json"
RAY_DIRECTORY = "ray"
_OBJECT_STORE_BYTES = 200 * 2**20
_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_IN_HAND = 2  # tasks of a worker of a crew: the next one is there when it is done with one


@dataclass(frozen=True)
class Resources:
    """What a training runs on: processes, and whether each has a GPU."""

    workers: int
    use_gpu: bool


@dataclass
class Listener:
    """Who hears of a training while it runs, in the driver's process."""

    on_tick: Callable[[Tick], None] = lambda _: None
    on_progress: Callable[[Progress], None] = lambda _: None


def resources(site: SiteConfig) -> Resources:
    """The processes and GPUs that `site` asks for; `auto` takes every GPU there is, else two processes on the CPU."""
    gpus = torch.cuda.device_count()
    use_gpu = gpus > 0 if site.use_gpu == "auto" else site.use_gpu
    if use_gpu and gpus == 0 and site.ray_address == "local":
        raise ClusterError("site.use_gpu is true, but this machine has no CUDA device. Set it to auto or false.")
    if site.workers != "auto":
        return Resources(workers=site.workers, use_gpu=use_gpu)
    return Resources(workers=max(1, gpus) if use_gpu else min(2, os.cpu_count() or 1), use_gpu=use_gpu)


@contextmanager
def connected(site: SiteConfig, *, sweep_slots: int = 0) -> Iterator[None]:
    """A Ray session for the block: a private local one, or a connection to the cluster at `site.ray_address`.

    sweep_slots: how many trials may run at a time; a local session then has room for the workers of all of them.
    Raises ClusterError if the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    if site.ray_address == "local":
        # A token of this session's own: nothing is written to the home directory, and no stranger can join.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        _name_the_session()
        needed = resources(site).workers * max(1, sweep_slots)
        options |= {
            "address": "local",
            "num_cpus": max(needed, os.cpu_count() or 1),
            "include_dashboard": sweep_slots > 0,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "resources": {"sweep_slot": sweep_slots} if sweep_slots else None,
        }
    else:
        _probe(site.ray_address)
        options["address"] = site.ray_address
    umask = os.umask(0o077)  # Ray's logs and spill files, and the checkpoints, are for this user alone
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, TimeoutError, OSError) as error:
        raise ClusterError(
            f"Ray at {site.ray_address} cannot be used: {_one_line(error)}. Correct site.ray_address, or use local."
        ) from error
    finally:
        os.umask(umask)
    try:
        yield
    finally:
        ray.shutdown()
        if site.ray_address == "local":
            os.environ.pop("RAY_ADDRESS", None)
            os.environ.pop("RAY_GCS_SERVER_PORT", None)


def fit(plan: TrainPlan, site: SiteConfig, listener: Listener | None = None) -> Path:
    """Run the planned training on Ray and return the directory of its final checkpoint.

    A finished run is returned at once; an interrupted one continues. Raises TrainingError if another process trains in
    the same run directory, StoppedError after a SIGTERM or SIGINT (and a checkpoint), ClusterError if the
    workers failed more often than `site.max_failures`, and whatever DrpError a worker raised.
    """
    listener = listener or Listener()
    with _locked(plan.run_directory):
        finished = finished_checkpoint(plan.run_directory)
        if finished is not None:
            plan.require_own(checkpoint.verify(finished))
            for tick in read_ticks(plan.run_directory):
                listener.on_tick(tick)
            return finished
        for stale in (loop.STOP_FILE, FAILURE_FILE):
            (plan.run_directory / stale).unlink(missing_ok=True)
        with connected(site):
            _run_workers(plan, site, listener)
        _raise_failure(plan.run_directory)
        finished = finished_checkpoint(plan.run_directory)
        if finished is None:
            raise StoppedError(f"{plan.run} was stopped and has a checkpoint. Run the same command to continue.")
        return finished


class Crew:
    """Workers of an evaluation, each a process that holds one object and calls it with the tasks of its share."""

    def __init__(self, site: SiteConfig, wanted: Resources) -> None:
        self._site, self._wanted = site, wanted
        self._workers: list[Any] = []
        self._packed: list[Any] = []

    @property
    def count(self) -> int:
        """Workers there are."""
        return self._wanted.workers

    def start(self, make: Callable[[str], Callable[[Any], Any]]) -> None:
        """Give every worker what `make` returns for its device, cpu or cuda; a worker that dies begins anew."""
        site, use_gpu = self._site, self._wanted.use_gpu
        options = {"num_cpus": 1, "num_gpus": int(use_gpu)}
        options |= {"max_restarts": site.max_failures, "max_task_retries": site.max_failures}
        actor, device = ray.remote(_CrewMember).options(**options), "cuda" if use_gpu else "cpu"
        self.dismiss()
        # Goes along with every task, in a list so that it is fetched once: a worker that begins anew has it from there.
        self._packed = [ray.put(make)]
        self._workers = [actor.remote(device, site.threads_per_worker, site.triton) for _ in range(self.count)]

    def ask(self, shares: Sequence[Sequence[Any]], told: Callable[[int], None] = lambda done: None) -> list[list[Any]]:
        """The answers to at most `count` shares of tasks, in their places; told: hears how many more are done.

        Raises whatever DrpError a task raised, ClusterError if a worker is lost for good.
        """
        answers: list[list[Any]] = [[None] * len(share) for share in shares]
        waiting = [iter(enumerate(share)) for share in shares]
        pending: dict[Any, tuple[int, int]] = {}

        def hand_out(worker: int, tasks: int) -> None:
            for place, task in itertools.islice(waiting[worker], tasks):
                pending[self._workers[worker].call.remote(self._packed, task)] = worker, place

        for worker in range(len(shares)):
            hand_out(worker, _IN_HAND)
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            worker, place = pending.pop(ready)
            try:
                answers[worker][place], error = ray.get(ready)
            except ray.exceptions.RayActorError as lost:
                raise ClusterError(
                    f"A worker of the evaluation was lost more than {self._site.max_failures} times "
                    f"(site.max_failures): {_one_line(lost)}. Set site.workers to 1, or look into its memory."
                ) from lost
            if error is not None:
                raise error
            hand_out(worker, 1)
            told(1)
        return answers

    def dismiss(self) -> None:
        """End the workers."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []


class _CrewMember:
    def __init__(self, device: str, threads: int, triton: bool) -> None:
        torch.set_num_threads(threads)
        kernels.set_enabled(triton)
        self._device = device
        self._made: Callable[[Any], Any] | None = None

    def call(self, packed: list[Any], task: Any) -> tuple[Any, DrpError | None]:
        """The answer, or what the user can mend: Ray would try that again."""
        try:
            if self._made is None:
                self._made = ray.get(packed[0])(self._device)
            return self._made(task), None
        except DrpError as error:
            return None, error


@contextmanager
def crew(site: SiteConfig, at_most: int) -> Iterator[Crew | None]:
    """The workers that `site` has for an evaluation, no more than `at_most`; None where one process does it all.

    `auto` is one per GPU: on the CPU alone a single process uses every core, and starting Ray takes longer than most
    evaluations there.
    """
    wanted = resources(site)
    count = min(at_most, wanted.workers if wanted.use_gpu or site.workers != "auto" else 1)
    if count < 2:
        yield None
        return
    with connected(site):
        found = Crew(site, Resources(count, wanted.use_gpu))
        try:
            yield found
        finally:
            found.dismiss()


def finished_checkpoint(run_directory: Path) -> Path | None:
    """The final checkpoint of a run that has reached its length, or None."""
    newest = checkpoint.newest(run_directory / CHECKPOINTS)
    if newest is not None and checkpoint.verify(newest).complete:
        return newest
    return None


def _worker(spec: dict[str, Any]) -> None:
    """What Ray runs in each worker. A failure the user can mend is left in a file: Ray would retry it."""
    plan: TrainPlan = spec["plan"]
    group = Group.current(get_device())
    try:
        work(plan, group)
    except DrpError as error:
        if group.is_first:
            content = {"type": type(error).__name__, "message": str(error)}
            files.write_json(plan.run_directory / FAILURE_FILE, content)


def _run_workers(plan: TrainPlan, site: SiteConfig, listener: Listener) -> None:
    """Fit in a thread, so that this one can follow the run and hear signals."""
    wanted = resources(site)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"plan": plan},
        scaling_config=ray.train.ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=wanted.use_gpu,
            resources_per_worker={"GPU": 1} if wanted.use_gpu else {"CPU": 1},
        ),
        run_config=ray.train.RunConfig(
            name=plan.run,
            storage_path=str((plan.run_directory / RAY_DIRECTORY).absolute()),
            failure_config=ray.train.FailureConfig(max_failures=site.max_failures),
        ),
    )
    raised: list[BaseException] = []

    def fit_in_thread() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=fit_in_thread, name="ray-train", daemon=True)
    with _signals_ask_to_stop(plan.run_directory):
        thread.start()
        told, stopping = 0, False
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            told = _tell(plan.run_directory, listener, told)
            if not stopping and (plan.run_directory / loop.STOP_FILE).exists():
                stopping = True
                logger.warning("Stopping after this step, with a checkpoint")
    _tell(plan.run_directory, listener, told)
    if raised:
        raise _readable(plan, site, raised[0]) from raised[0]


def _tell(run_directory: Path, listener: Listener, told: int) -> int:
    """Pass on the ticks past `told` images, then the progress; returns the new `told`."""
    for tick in read_ticks(run_directory):
        if tick.images_seen > told:
            listener.on_tick(tick)
            told = tick.images_seen
    progress = read_progress(run_directory)
    if progress is not None:
        listener.on_progress(progress)
    return told


def _readable(plan: TrainPlan, site: SiteConfig, error: BaseException) -> DrpError:
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    logger.debug("The workers of %s failed", plan.run, exc_info=error)
    return ClusterError(
        f"The workers of {plan.run} failed more than {site.max_failures} times (site.max_failures); the last time: "
        f"{_one_line(cause)}. Ray's logs are under {plan.run_directory / RAY_DIRECTORY}."
    )


def _raise_failure(run_directory: Path) -> None:
    path = run_directory / FAILURE_FILE
    if path.is_file():
        failure = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        raise getattr(errors, failure["type"], DrpError)(failure["message"])


@contextmanager
def _locked(run_directory: Path) -> Iterator[None]:
    """Hold the run directory against a second training; the lock dies with the process."""
    run_directory.mkdir(parents=True, exist_ok=True)
    with open(run_directory / LOCK_FILE, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise TrainingError(
                f"{holder} is already training in {run_directory}. Wait for it, or stop it with SIGTERM."
            ) from None
        stream.truncate(0)
        stream.write(f"Process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


@contextmanager
def _signals_ask_to_stop(run_directory: Path) -> Iterator[None]:
    """SIGTERM and SIGINT ask the workers to commit a checkpoint and end; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        # Nothing but this: the handler may interrupt a write to the terminal, which is not reentrant.
        (run_directory / loop.STOP_FILE).touch()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name_the_session() -> None:
    """Fix the address that this session will have, in the environment that Ray's processes inherit.

    Ray's watcher of abandoned worker groups looks its session up by address. Without one it gives up as soon as a
    second Ray session runs on the machine, and a trial that was stopped early would keep its processors for ever.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"


def _probe(address: str) -> None:
    """Refuse an address nobody listens at within seconds; Ray itself would wait for minutes."""
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"site.ray_address is {address!r}. Use local, auto, or HOST:PORT of a Ray head.")
    deadline = time.monotonic() + _CONNECT_SECONDS
    try:
        socket.create_connection((host, int(port)), timeout=deadline - time.monotonic()).close()
    except OSError as error:
        raise ClusterError(
            f"No Ray head answers at {address} ({error}). Start one with `ray start --head`, or set site.ray_address "
            "to local."
        ) from None


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
