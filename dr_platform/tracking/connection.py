"""From an address to a tracker: find the store, make it once, and say within seconds if nothing answers."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient

from dr_platform.errors import RegistryError
from dr_platform.tracking.registry import Alone, Tracker
from dr_platform.tracking.words import FAILURES, first_line, masked

EXPERIMENT = "dr-platform"
_PROBE_SECONDS = 5
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306}


def connect(uri: str, artifacts: str, root: Path) -> Tracker:
    """The tracking server and registry at `uri`, with our experiment in it.

    uri: sqlite:///FILE (relative to `root`, made on first use), http(s)://…, or a database's. artifacts: directory
    (relative to `root`) or address where a SQLite store keeps files; a server decides for itself.
    Raises RegistryError within seconds if nothing answers there.
    """
    path = _sqlite_path(uri, root)
    if path is None:
        _probe(uri)
        return _open(uri, None, nullcontext)
    _check_sqlite(path)
    location = artifacts if "://" in artifacts else (root / artifacts).absolute().as_uri()
    alone = partial(_locked, path.with_name(f"{path.name}.lock"))
    with alone():
        return _open(f"sqlite:///{path}", location, alone)


def _sqlite_path(uri: str, root: Path) -> Path | None:
    """The file of a SQLite address, relative ones below `root`; None for any other address."""
    if not uri.startswith("sqlite:"):
        return None
    name = uri.removeprefix("sqlite:///")
    if name == uri or not name or name == ":memory:":
        raise RegistryError(f"site.tracking_uri is {uri!r}, which names no file. Write sqlite:///mlflow.db")
    return (root / name).absolute()


def _check_sqlite(path: Path) -> None:
    # MLflow would retry a file it cannot read for minutes.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        start = path.read_bytes()[:16] if path.exists() and path.stat().st_size else b""
    except OSError as error:
        raise RegistryError(f"{path} cannot be read: {error.strerror}. Correct site.tracking_uri.") from None
    if start and start != b"SQLite format 3\0":
        raise RegistryError(f"{path} is no SQLite database. Move it away, or correct site.tracking_uri.")


def _probe(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        given = parts.port
    except ValueError as error:
        raise _unreachable(uri, error) from None
    port = given or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if parts.scheme in ("http", "https") or not parts.hostname or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise _unreachable(uri, error) from None


def _open(uri: str, location: str | None, alone: Alone) -> Tracker:
    try:
        with _impatient():
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                return Tracker(client, client.create_experiment(EXPERIMENT, artifact_location=location), alone)
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            return Tracker(client, experiment.experiment_id, alone)
    except FAILURES as error:
        raise _unreachable(uri, error) from error


def _unreachable(uri: str, error: Exception) -> RegistryError:
    reason = first_line(error)
    return RegistryError(
        f"The tracking server {masked(uri)} cannot be used: {reason}. Start it, or correct site.tracking_uri."
    )


@contextmanager
def _impatient() -> Iterator[None]:
    """Few and short attempts for a first contact: whoever mistyped an address wants to know at once."""
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(_PROBE_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ[name] for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine; the system frees it when its holder dies."""
    with open(path, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
