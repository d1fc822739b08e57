"""What `drp doctor` looks at: one finding per thing, with advice where something is amiss."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from dr_platform.errors import DrpError

_PACKAGES = ("torch", "ray", "mlflow", "dvc", "pyarrow", "torch-fidelity", "typer", "pydantic")
_LEAST_FREE_GIB = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    well: bool
    found: str
    advice: str = ""


def examine(root: Path) -> list[Finding]:
    """Look at the machine and at the project in `root`; raises nothing a user can mend, but reports it."""
    findings = [_python(), *(_package(name) for name in _PACKAGES), _gpu(), _disk(root)]
    try:
        from dr_platform.config import load_params
        from dr_platform.road import Project

        project = Project(root, load_params(root))
    except DrpError as error:
        return [*findings, Finding("params.yaml", False, str(error), "Correct it, or: drp profile use demo")]
    findings.append(Finding("params.yaml", True, f"profile {project.params.profile}"))
    site = project.params.site
    findings.append(_ray(site.ray_address))
    findings.append(_tracking(project))
    if findings[-1].well:
        findings.append(_ledger(project))
    findings.extend(_remotes(root))
    findings.append(_weights(project.weights))
    return findings


def _python() -> Finding:
    found = platform.python_version()
    well = tuple(map(int, found.split(".")[:2])) >= (3, 11)
    return Finding("Python", well, found, "" if well else "Install Python 3.11 or newer, then: make clean setup")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "Run: make setup")


def _gpu() -> Finding:
    import torch

    count = torch.cuda.device_count()
    if count:
        names = {torch.cuda.get_device_name(index) for index in range(count)}
        return Finding("GPU", True, f"{count} x {', '.join(sorted(names))}")
    return Finding("GPU", True, "none: training on the CPU, good for 32 to 64 px")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free / 2**30
    well = free >= _LEAST_FREE_GIB
    return Finding(
        "disk", well, f"{free:.1f} GiB free", "" if well else f"Free {_LEAST_FREE_GIB:g} GiB for checkpoints."
    )


def _ray(address: str) -> Finding:
    if address in ("local", "auto") or "://" in address:
        return Finding("Ray address", True, address)
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError) as error:
        return Finding(
            "Ray address", False, f"{address}: {error}", "Start `ray start --head`, or site.ray_address: local"
        )
    return Finding("Ray address", True, f"{address} answers")


def _tracking(project: object) -> Finding:
    from dr_platform.road import Project

    assert isinstance(project, Project)
    uri = project.params.site.tracking_uri
    shown = uri.rpartition("@")[2] if "@" in uri else uri
    try:
        project.tracker()
    except DrpError as error:
        return Finding("MLflow", False, str(error), "Start the server, or correct site.tracking_uri")
    return Finding("MLflow store", True, shown)


def _ledger(project: object) -> Finding:
    from dr_platform import tracking
    from dr_platform.road import Project

    assert isinstance(project, Project)
    try:
        audit = tracking.audit(project.ledger(), project.tracker(), artifacts=False)
    except DrpError as error:
        return Finding("ledger", False, str(error), "Mend it, then: drp audit verify")
    if audit.problems:
        more = f" (and {len(audit.problems) - 1} more)" if len(audit.problems) > 1 else ""
        return Finding("ledger", False, audit.problems[0].said + more, "Run: drp audit verify")
    return Finding("ledger", True, f"{len(audit.entries)} entries; every champion alias follows from it")


def _remotes(root: Path) -> list[Finding]:
    from dr_platform import lineage

    try:
        known = {remote.name: remote for remote in lineage.remotes(root)}
        stray = lineage.misrouted(root)
    except DrpError as error:
        return [Finding("DVC", False, str(error), "Run: drp init")]
    findings = []
    for name in ("public", "private"):
        remote = known.get(name)
        if remote is None:
            findings.append(Finding(f"DVC remote {name}", False, "missing", "Run: drp init"))
        else:
            advice = "" if remote.verify else f"Run: dvc remote modify {name} verify true"
            findings.append(Finding(f"DVC remote {name}", remote.verify, remote.url, advice))
    if stray:
        findings.append(
            Finding("DVC outputs", False, stray[0], "Give it `remote: private` in dvc.yaml or its .dvc file")
        )
    return findings


def _weights(directory: Path | None) -> Finding:
    from dr_platform.evaluation import features

    directory = directory or (Path(named) if (named := os.environ.get(features.WEIGHTS_VARIABLE)) else None)
    if directory is None:
        return Finding(
            "Inception-v3 weights",
            True,
            "not given: metrics use the embedded drp-small-v1",
            f"For published FID set site.weights_dir to a folder with {features.INCEPTION_FILES[0]}",
        )
    held = [name for name in features.INCEPTION_FILES if (directory / name).is_file()]
    if held:
        return Finding("Inception-v3 weights", True, held[0])
    return Finding("Inception-v3 weights", False, f"not in {directory}", f"Put {features.INCEPTION_FILES[0]} there")
