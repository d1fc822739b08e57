"""The edge to DVC and git: which commit, which data, which lock a result follows from, and where data may go.

Two facts decide how proprietary bytes are kept out of the public remote, both tried with DVC 3.67. An output that names
its remote goes nowhere else, whatever `dvc push -r` says; an output that names none goes wherever `-r` points. So the
default remote is `private`, `track` writes the remote into every .dvc file it makes, `misrouted` finds whatever names
none or the wrong one, and `push` refuses to start while there is any.

DVC runs as a subprocess of this interpreter, so that its progress reaches the terminal and its state is its own; only
its configuration and its index of outputs are read in process.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import yaml
from dvc.config import Config, ConfigError
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo

from dr_platform import files
from dr_platform.errors import LineageError
from dr_platform.records import Visibility

logger = logging.getLogger(__name__)

RemoteName = Literal["public", "private"]
REMOTE_OF: Mapping[Visibility, RemoteName] = {"public": "public", "proprietary": "private"}
RAW = PurePosixPath("data/raw")
REMOTES = "dvc-remotes"  # where both remotes lie until someone names better places
LOCK_FILE = "dvc.lock"
# `remote: ${item}` in a foreach over visibilities needs a remote of that name; it is another name for `private`.
_ALIAS = ("proprietary", "remote://private/")
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
_QUIET = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Remote:
    """A place for data, as DVC's configuration names it."""

    name: str
    url: str
    default: bool
    verify: bool


# -- where the code stands ---------------------------------------------------------------------------------------------


def git_commit(root: Path) -> str | None:
    """The full hash of the commit checked out at `root`; None where there is no repository or no commit.

    Raises LineageError if git is not installed.
    """
    return _git(root, "rev-parse", "--quiet", "--verify", "HEAD")


def is_dirty(root: Path) -> bool:
    """Whether a tracked file at `root` differs from the commit; False where there is none. Raises as `git_commit`."""
    return bool(_git(root, "status", "--porcelain", "--untracked-files=no"))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LineageError("git is not installed, so no result can name its commit. Install git.") from None
    return done.stdout.strip() if done.returncode == 0 else None


def _in_git(root: Path) -> bool:
    try:
        return _git(root, "rev-parse", "--is-inside-work-tree") == "true"
    except LineageError:
        return False


# -- where the data stands ---------------------------------------------------------------------------------------------


def dvc_lock_sha256(root: Path) -> str | None:
    """SHA-256 of dvc.lock, which lists each stage's inputs, parameters and outputs; None before the first run."""
    path = root / LOCK_FILE
    return files.sha256_file(path) if path.is_file() else None


def stage_outputs(root: Path) -> dict[str, str]:
    """What DVC versions: path below `root` -> MD5, from dvc.lock and all .dvc files.

    Read from the files themselves, so it works in the middle of a `dvc repro`, which holds DVC's own lock.
    Raises LineageError if one of them is damaged.
    """
    found: dict[str, str] = {}
    lock = root / LOCK_FILE
    if lock.is_file():
        stages = _yaml(lock).get("stages") or {}
        found |= _hashes(PurePosixPath(), (out for stage in stages.values() for out in stage.get("outs", [])))
    for path in _dvc_files(root):
        found |= _hashes(PurePosixPath(path.relative_to(root).parent.as_posix()), _yaml(path).get("outs") or [])
    return dict(sorted(found.items()))


def data_versions(root: Path) -> dict[str, str]:
    """The version of each raw collection: NAME/VISIBILITY -> MD5."""
    versions = {}
    for path, digest in stage_outputs(root).items():
        parts = PurePosixPath(path).parts
        if PurePosixPath(*parts[:2]) == RAW and len(parts) == 4 and parts[2] in get_args(Visibility):
            versions[f"{parts[3]}/{parts[2]}"] = digest
    return versions


def _dvc_files(root: Path) -> Iterator[Path]:
    for directory, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name != REMOTES]
        yield from (Path(directory, name) for name in names if name.endswith(".dvc"))


def _hashes(base: PurePosixPath, outs: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> dict[str, str]:
    return {str(base / out["path"]): out["md5"] for out in outs if out.get("md5")}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        loaded = None
    if not isinstance(loaded, dict):
        raise LineageError(f"{path} is damaged. Restore it: git checkout {path.name}")
    return loaded


# -- the project -------------------------------------------------------------------------------------------------------


def init_project(root: Path) -> None:
    """Make `root` a DVC project with a public and a private remote; repeat it at will, nothing set by hand is changed.

    With or without git. Both remotes begin as directories below `dvc-remotes/`, verify what they read, and the
    private one is the default. Raises LineageError.
    """
    if not (root / ".dvc").is_dir():
        _dvc(root, "init", "--quiet", *([] if _in_git(root) else ["--no-scm"]))
    merged = _config(root)
    with _config(root).edit("repo") as config:
        core, places = config.setdefault("core", {}), config.setdefault("remote", {})
        core |= {"analytics": False, "check_update": False}
        if not merged["core"].get("remote"):
            core["remote"] = "private"
        for name in get_args(RemoteName):
            if name not in merged["remote"]:
                places[name] = {"url": os.path.relpath(root / REMOTES / name), "verify": True}
        if _ALIAS[0] not in merged["remote"]:
            places[_ALIAS[0]] = {"url": _ALIAS[1]}
    if not _in_git(root) and not merged["core"].get("no_scm"):
        with _config(root).edit("local") as config:
            config.setdefault("core", {})["no_scm"] = True
    _make_local_remotes(root)


def _make_local_remotes(root: Path) -> None:
    for remote in remotes(root):
        path = Path(remote.url)
        if path.is_absolute() and path.is_relative_to((root / REMOTES).resolve()):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The directory keeps itself out of git, wherever the project's own .gitignore stands.
            files.write_text(root / REMOTES / ".gitignore", "*\n")


def remotes(root: Path) -> list[Remote]:
    """The remotes of the project at `root`, by name, with local paths made absolute. Raises LineageError."""
    config = _config(root)
    default = config.get("core", {}).get("remote")
    return [
        Remote(name, str(settings["url"]), name == default, bool(settings.get("verify", False)))
        for name, settings in sorted(config.get("remote", {}).items())
    ]


def _config(root: Path) -> Config:
    if not (root / ".dvc").is_dir():
        raise LineageError(f"{root} is no DVC project. Run: make demo, or dvc init")
    try:
        return Config(dvc_dir=str((root / ".dvc").resolve()))
    except ConfigError as error:
        raise LineageError(f"{root / '.dvc' / 'config'} is not valid: {_last_line(str(error))}. Correct it.") from None


# -- running stages ----------------------------------------------------------------------------------------------------


def repro(root: Path, targets: Sequence[str] = (), *, force: bool = False) -> bool:
    """Run what is out of date of `dvc.yaml` (or of `targets` and what they need); returns whether anything was.

    The stages' output goes to this process's terminal. Raises LineageError if a stage fails.
    """
    before = _lock_text(root)
    complete = all((root / path).exists() for path in stage_outputs(root))
    _dvc(root, "repro", *(["--force"] if force else []), *targets, show=True)
    return force or not complete or before is None or before != _lock_text(root)


def _lock_text(root: Path) -> bytes | None:
    path = root / LOCK_FILE
    return path.read_bytes() if path.is_file() else None


# -- data that travels -------------------------------------------------------------------------------------------------


def track(root: Path, directory: Path, visibility: Visibility) -> Path:
    """Version a directory of data and bind it to the remote of its visibility; returns its .dvc file.

    directory: below data/raw/VISIBILITY of the project. Raises LineageError.
    """
    _config(root)
    home = root / RAW / visibility
    if not directory.resolve().is_relative_to(home.resolve()):
        raise LineageError(f"{directory} is {visibility}, but does not lie in {home}. Move it there first.")
    _dvc(root, "add", "--quiet", str(directory))
    pointer = directory.with_name(f"{directory.name}.dvc")
    content = _yaml(pointer)
    for out in content["outs"]:
        out["remote"] = REMOTE_OF[visibility]
    files.write_text(pointer, yaml.safe_dump(content, sort_keys=False))
    return pointer


def push(root: Path) -> None:
    """Send every output to its remote, unless one could reach the wrong place. Raises LineageError."""
    faults = misrouted(root)
    if faults:
        raise LineageError(f"nothing was pushed: {faults[0]}" + (f" ({len(faults)} such faults)" if faults[1:] else ""))
    _dvc(root, "push", show=True)


def misrouted(root: Path) -> list[str]:
    """One sentence for each output that a `dvc push` could carry to the wrong remote; empty in a sound project.

    An output must name a remote; below data/raw/proprietary it must be the private one; a collection that calls itself
    proprietary must not lie among the public ones; and no picture of a private output may lie in a public one.
    """
    faults = []
    private: dict[str, str] = {}
    public: dict[str, str] = {}
    urls = {remote.name: remote.url for remote in remotes(root)}
    closed = {"private", *(name for name, url in urls.items() if url.startswith("remote://private"))}
    versioned = _versioned(root)
    for out, pictures in versioned:
        path = Path(out.fspath).relative_to(root.resolve()).as_posix()
        proprietary = PurePosixPath(path).is_relative_to(RAW / "proprietary")
        if out.remote is None:
            faults.append(f"{path} names no remote, so dvc push -r public would carry it. Add `remote:` to its entry.")
        elif out.remote not in closed and proprietary:
            faults.append(f"{path} is proprietary, but goes to the remote {out.remote}. Write remote: private")
        elif out.remote not in closed and _calls_itself_proprietary(Path(out.fspath)):
            faults.append(f"{path} calls itself proprietary, but goes to the remote {out.remote}. Move it away")
        here = {digest: f"{path}/{name}" if name else path for digest, name in pictures.items()}
        (private if out.remote in closed or proprietary else public).update(here)
    tracked = {Path(out.fspath) for out, _ in versioned}
    for collection in sorted((root / RAW).resolve().glob("*/*/collection.json")):
        if collection.parent not in tracked:
            path = collection.parent.relative_to(root.resolve()).as_posix()
            faults.append(f"{path} is not versioned: its ingest was interrupted. Run it again with --replace")
    for digest in sorted(private.keys() & public.keys()):
        faults.append(f"{public[digest]} is public, but is the same picture as {private[digest]}. Remove one.")
    return faults


def _versioned(root: Path) -> list[tuple[Output, dict[str, str]]]:
    """Every output that `dvc push` may carry, with its pictures: MD5 -> path within the output."""
    _config(root)
    try:
        with Repo(str(root)) as repo:
            return [(out, _pictures(repo, out)) for out in repo.index.outs if out.use_cache and out.can_push]
    except DvcException as error:
        raise LineageError(f"DVC cannot read {root}: {_last_line(str(error))}.") from None


def _calls_itself_proprietary(path: Path) -> bool:
    try:
        return json.loads((path / "collection.json").read_text(encoding="utf-8")).get("visibility") == "proprietary"
    except (OSError, ValueError, AttributeError):
        return False


def _pictures(repo: Repo, out: Output) -> dict[str, str]:
    """The picture files of an output, from the listing in DVC's cache; none if that is not there."""
    digest = out.hash_info.value if out.hash_info else None
    if not digest:
        return {}
    if not digest.endswith(".dir"):
        return {digest: ""} if PurePosixPath(out.fspath).suffix.lower() in _PICTURES else {}
    listing = Path(repo.cache.local.oid_to_path(digest))
    entries = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else []
    return {
        entry["md5"]: entry["relpath"]
        for entry in entries
        if PurePosixPath(entry["relpath"]).suffix.lower() in _PICTURES
    }


# -- the subprocess ----------------------------------------------------------------------------------------------------


def _dvc(root: Path, *arguments: str, show: bool = False) -> None:
    """Run DVC at `root`. show: let it write to the terminal; else its last line goes into the error."""
    command = [sys.executable, "-m", "dvc", *arguments]
    # Stages call `drp`, which lies beside this interpreter even where no virtual environment was activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **_QUIET, "PATH": path}, capture_output=not show, text=True, check=False
    )
    if done.returncode:
        why = "see above" if show else _last_line(done.stderr)
        raise LineageError(f"dvc {' '.join(arguments[:2])} failed ({why}). Correct it and run the same command again.")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = [line for line in lines if line.startswith(("ERROR", "fatal"))] or lines or ["DVC gave no reason"]
    return wanted[-1].removeprefix("ERROR: ").removeprefix("fatal: ").rstrip(".")
