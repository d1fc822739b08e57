"""The edge to DVC and git: which commit, which data, which lock a result follows from, and where data may go.

Two facts decide how proprietary bytes are kept out of the public remote, both tried with DVC 3.67. An output that names
its remote goes nowhere else, whatever `dvc push -r` says; an output that names none goes wherever `-r` points. So the
default remote is `private`, `track` writes the remote into every .dvc file it makes, `misrouted` finds whatever names
none or the wrong one, `leaked` what lies in the wrong one already, and `push` refuses to start while there is any.

A third decides what is believed on the way back: DVC checks no byte of a remote unless told to, and when told to it
refuses without saying what. So a remote that does not verify is a fault, and `damaged` finds the objects by itself.

DVC runs as a subprocess of this interpreter, so that its progress reaches the terminal and its state is its own; its
configuration, its index of outputs and its file systems are used in process.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from dvc.config import Config, ConfigError
from dvc.exceptions import DvcException
from dvc.fs import get_cloud_fs, get_fs_config
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
_CHUNK_BYTES = 1 << 20
_PATIENCE = {"connect_timeout": 10, "read_timeout": 30}  # seconds of S3's first answer; DVC would wait for minutes


@dataclass(frozen=True)
class Remote:
    """A place for data, as DVC's configuration names it."""

    name: str
    url: str
    default: bool
    verify: bool


@dataclass(frozen=True)
class _Content:
    """An output that DVC versions, and what is in it as far as DVC's cache here can tell."""

    path: str  # below the root
    remote: str | None  # as its entry says
    place: str  # the remote it goes to, by default the default one
    digest: str | None  # MD5, with .dir for a directory; None before the first run
    files: dict[str, str]  # MD5 -> path within the output; of a directory without its listing in the cache, nothing

    def named(self, digest: str) -> str:
        """The path below the root of the file with this digest; of the output itself for its own."""
        within = self.files.get(digest)
        return f"{self.path}/{within}" if within else self.path


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
        Remote(name, str(settings["url"]), name == default, bool(_settings(config, name).get("verify", False)))
        for name, settings in sorted(config.get("remote", {}).items())
    ]


def remote_faults(root: Path) -> list[str]:
    """One sentence for each remote that is not fit to hold data; empty in a sound project.

    A remote must verify what it reads, as DVC hands on damaged bytes in silence otherwise; and no remote may lie in the
    place of the private one, or within it or around it, under a name that public data go to.
    """
    config, known = _config(root), remotes(root)
    faults = [
        f"the remote {remote.name} does not verify what is read. Run: dvc remote modify {remote.name} verify true"
        for remote in known
        if not remote.verify
    ]
    closed = _closed(known)
    places = {remote.name: _place(_settings(config, remote.name)) for remote in known}
    for name, place in places.items():
        for hidden in sorted(closed & places.keys()):
            if name not in closed and (
                place[: len(places[hidden])] == places[hidden] or _around(place, places[hidden])
            ):
                faults.append(f"the remotes {name} and {hidden} share a place. Run: dvc remote modify {name} url URL")
    return faults


def _closed(known: Iterable[Remote]) -> set[str]:
    """Names of the remotes that may hold proprietary data."""
    return {"private", *(remote.name for remote in known if remote.url.startswith("remote://private"))}


def _place(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a remote lies, from the server to the innermost directory."""
    url = urlsplit(str(settings["url"]))
    if not url.scheme:
        return ("", *Path(url.path).resolve().parts)
    return (f"{url.scheme}://{settings.get('endpointurl') or ''}", url.netloc, *PurePosixPath(url.path).parts[1:])


def _around(outer: tuple[str, ...], inner: tuple[str, ...]) -> bool:
    return inner[: len(outer)] == outer


def _settings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What is configured for a remote, with what it takes over from another one. Raises LineageError."""
    try:
        return dict(get_fs_config(config, name=name))
    except DvcException as error:
        raise LineageError(f"The remote {name} is not configured: {_last_line(str(error))}. Run: drp init") from None


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


def require_project(root: Path) -> None:
    """Raise LineageError where nothing can be versioned, before the work whose result would be."""
    _config(root)


def track(root: Path, directory: Path, visibility: Visibility) -> Path:
    """Version a directory of data and bind it to the remote of its visibility; returns its .dvc file.

    directory: below data/raw/VISIBILITY of the project. Raises LineageError, the .dvc file then being as it was.
    """
    require_project(root)
    home = root / RAW / visibility
    if not directory.resolve().is_relative_to(home.resolve()):
        raise LineageError(f"{directory} is {visibility}, but does not lie in {home}. Move it there first.")
    pointer = directory.with_name(f"{directory.name}.dvc")
    before = pointer.read_bytes() if pointer.is_file() else None
    try:
        _dvc(root, "add", "--quiet", str(directory))
        content = _yaml(pointer)
        for out in content["outs"]:
            out["remote"] = REMOTE_OF[visibility]
        files.write_text(pointer, yaml.safe_dump(content, sort_keys=False))
    except BaseException:
        if before is None:
            pointer.unlink(missing_ok=True)
        else:
            files.write_bytes(pointer, before)
        raise
    return pointer


def push(root: Path) -> None:
    """Send every output to its remote, unless one could reach the wrong place, or one has before. Raises LineageError.

    An interrupted push leaves whole objects only; the same command sends the others.
    """
    _refuse("nothing was pushed", [*remote_faults(root), *misrouted(root)])
    _reach_all(root)
    _refuse("nothing was pushed", leaked(root))
    _dvc(root, "push", show=True)


def pull(root: Path, targets: Sequence[str] = ()) -> None:
    """Fetch every output (or `targets`) from its remote and check it out; only bytes that have the recorded digests.

    Raises LineageError, with nothing checked out, if a remote does not answer, or if an object in it is damaged or
    missing: the error names the output and the object.
    """
    _refuse("nothing was pulled", remote_faults(root))
    targets = targets or _recorded(root)
    if not targets:
        return
    _reach_all(root, targets)
    show = sys.stderr.isatty()
    try:
        _dvc(root, "fetch", *targets, show=show)
    except LineageError:
        _refuse("nothing was checked out", damaged(root, targets))
        raise
    # A fetch that throws a damaged object away succeeds, and `dvc pull` would check out what is whole beside it.
    _refuse("nothing was checked out", damaged(root, targets))
    _dvc(root, "checkout", *targets, show=show)


def _recorded(root: Path) -> list[str]:
    """The outputs that have been made once: those of a stage that never ran are in no remote."""
    with _project(root) as repo:
        outs = [out for out in repo.index.outs if out.use_cache and out.can_push and out.hash_info]
        return sorted(out.fspath for out in outs)


def _refuse(outcome: str, faults: Sequence[str]) -> None:
    if faults:
        raise LineageError(f"{outcome}: {faults[0]}" + (f" ({len(faults)} such faults)" if faults[1:] else ""))


def misrouted(root: Path) -> list[str]:
    """One sentence for each output that a `dvc push` could carry to the wrong remote; empty in a sound project.

    An output must name a remote; below data/raw/proprietary it must be the private one; a collection that calls itself
    proprietary must not lie among the public ones; and no file of a private output may lie in a public one, unless it
    says nothing, such as a table without rows.
    """
    faults: list[str] = []
    closed = _closed(remotes(root))
    with _project(root) as repo:
        contents = _contents(repo)
        for content in contents:
            faults += _misrouted(root.resolve(), content, closed)
        faults += _shared(repo, contents, closed)
    tracked = {content.path for content in contents}
    for collection in sorted((root / RAW).resolve().glob("*/*/collection.json")):
        path = collection.parent.relative_to(root.resolve()).as_posix()
        if path not in tracked:
            faults.append(f"{path} is not versioned: its ingest was interrupted. Run it again with --replace")
    return faults


def _misrouted(root: Path, content: _Content, closed: Collection[str]) -> Iterator[str]:
    path, remote = content.path, content.remote
    if remote is None:
        yield f"{path} names no remote, so dvc push -r public would carry it. Add `remote:` to its entry."
    elif remote not in closed and _is_proprietary(path):
        yield f"{path} is proprietary, but goes to the remote {remote}. Write remote: private"
    elif remote not in closed and _calls_itself_proprietary(root / path):
        yield f"{path} calls itself proprietary, but goes to the remote {remote}. Move it away"


def _is_proprietary(path: str) -> bool:
    return PurePosixPath(path).is_relative_to(RAW / "proprietary")


def _calls_itself_proprietary(path: Path) -> bool:
    try:
        return json.loads((path / "collection.json").read_text(encoding="utf-8")).get("visibility") == "proprietary"
    except (OSError, ValueError, AttributeError):
        return False


def _shared(repo: Repo, contents: Iterable[_Content], closed: Collection[str]) -> Iterator[str]:
    """A sentence for each file that lies in a public output and in a private one."""
    private, public = _by_side(contents, closed)
    for digest in sorted(private.keys() & public.keys()):
        theirs, ours = public[digest], private[digest]
        if PurePosixPath(ours).suffix.lower() in _PICTURES:
            yield f"{theirs} is public, but is the same picture as {ours}. Remove one."
        elif not _says_nothing(Path(repo.cache.local.oid_to_path(digest)).read_bytes, ours):
            yield f"{theirs} is public, but is the same file as {ours}. Remove one."


def _by_side(contents: Iterable[_Content], closed: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """MD5 -> path of all that is private, and of all that is public; the listing of a directory is one of its files."""
    private: dict[str, str] = {}
    public: dict[str, str] = {}
    for content in contents:
        side = private if content.remote in closed or _is_proprietary(content.path) else public
        digests = {*content.files, *([content.digest] if content.digest else [])}
        side.update({digest: content.named(digest) for digest in sorted(digests)})
    return private, public


def _says_nothing(read: Callable[[], bytes], name: str) -> bool:
    """Whether a file holds nothing that could be anybody's: no bytes, no entries, or a table that has no rows.

    read: gives its bytes. One that cannot be read says something.
    """
    try:
        content = read()
    except OSError:
        return False
    if content in (b"", b"[]"):
        return True
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".csv":
        return not content.partition(b"\n")[2].strip()
    if suffix == ".parquet":
        try:
            return pq.ParquetFile(io.BytesIO(content)).metadata.num_rows == 0
        except pa.ArrowException:
            return False
    return False


def leaked(root: Path) -> list[str]:
    """One sentence for each object of a private output that lies in a remote for public data already.

    Asks those remotes; raises LineageError if one does not answer.
    """
    known = remotes(root)
    closed = _closed(known)
    faults = []
    with _project(root) as repo:
        private, _ = _by_side(_contents(repo), closed)
        for name in sorted({remote.name for remote in known} - closed):
            _reach(repo.config, name)
            store = repo.cloud.get_remote_odb(name)
            for digest in sorted(_present(store, list(private))):
                read = partial(store.fs.cat_file, store.oid_to_path(digest))
                if not _says_nothing(read, private[digest]):
                    faults.append(
                        f"{private[digest]} is private, but lies in the remote {name} as {_object(digest)}. "
                        "Delete that object there, and find out who has read it"
                    )
    return faults


def _present(store: Any, digests: list[str]) -> Iterable[str]:
    # In a directory DVC's own question deletes whatever is damaged; in a bucket it is the quicker of two ways.
    return store.list_oids_exists(digests) if store.fs.protocol == "local" else store.oids_exist(digests)


def damaged(root: Path, targets: Sequence[str] = ()) -> list[str]:
    """One sentence for each object that outputs here need, this machine lacks, and their remote holds damaged or not.

    Reads all of these objects. Raises LineageError if a remote does not answer.
    """
    _reach_all(root, targets)
    with _project(root) as repo:
        return [fault for content in _contents(repo, targets) for fault in _damaged(repo, content)]


def _damaged(repo: Repo, content: _Content) -> Iterator[str]:
    if content.digest is None:
        return
    cache, store = repo.cache.local, repo.cloud.get_remote_odb(content.place)
    entries = content.files
    if not cache.exists(content.digest):
        fault = _fault_of(store, content.digest)
        if fault:
            yield f"{content.path} {_in_remote(fault, content.place, content.digest)}"
            return
        if content.digest.endswith(".dir"):
            entries = _entries(store.fs.cat_file(store.oid_to_path(content.digest)))
    for digest, name in entries.items():
        if digest != content.digest and not cache.exists(digest) and (fault := _fault_of(store, digest)):
            yield f"{content.path}/{name} {_in_remote(fault, content.place, digest)}"


def _fault_of(store: Any, digest: str) -> Literal["damaged", "missing"] | None:
    found = hashlib.md5(usedforsecurity=False)
    try:
        with store.fs.open(store.oid_to_path(digest), "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                found.update(chunk)
    except FileNotFoundError:
        return "missing"
    return None if found.hexdigest() == digest.removesuffix(".dir") else "damaged"


def _in_remote(fault: str, remote: str, digest: str) -> str:
    advice = "Delete it there and run drp data push" if fault == "damaged" else "Run drp data push"
    return f"is {fault} in the remote {remote} (object {_object(digest)}). {advice} where the data are whole"


def _object(digest: str) -> str:
    """An object's path within a remote."""
    return f"files/md5/{digest[:2]}/{digest[2:]}"


# -- what DVC knows ----------------------------------------------------------------------------------------------------


@contextmanager
def _project(root: Path) -> Iterator[Repo]:
    _config(root)
    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise LineageError(f"DVC cannot read {root}: {_last_line(str(error))}.") from None


def _contents(repo: Repo, targets: Sequence[str] = ()) -> list[_Content]:
    """Every output that `dvc push` may carry, or those of `targets`."""
    chosen = repo.index.targets_view(list(targets)) if targets else repo.index
    default = repo.config["core"].get("remote") or "private"
    return [
        _Content(
            path=Path(out.fspath).relative_to(Path(repo.root_dir)).as_posix(),
            remote=out.remote,
            place=out.remote or default,
            digest=out.hash_info.value if out.hash_info else None,
            files=_files(repo, out.hash_info.value if out.hash_info else None),
        )
        for out in chosen.outs
        if out.use_cache and out.can_push
    ]


def _files(repo: Repo, digest: str | None) -> dict[str, str]:
    if not digest:
        return {}
    if not digest.endswith(".dir"):
        return {digest: ""}
    listing = Path(repo.cache.local.oid_to_path(digest))
    return _entries(listing.read_bytes()) if listing.is_file() else {}


def _entries(listing: bytes) -> dict[str, str]:
    return {entry["md5"]: entry["relpath"] for entry in json.loads(listing)}


def versions_with(root: Path, names: Collection[str]) -> list[dict[str, Path]]:
    """The versions of directories in DVC's cache that have all these files at their top: name -> file in the cache.

    Present versions and earlier ones, as long as nobody has run `dvc gc`. Raises LineageError.
    """
    found = []
    with _project(root) as repo:
        cache = repo.cache.local
        for listing in sorted(Path(cache.path).glob("*/*.dir")):
            wanted = {name: digest for digest, name in _entries(listing.read_bytes()).items() if name in names}
            paths = {name: Path(cache.oid_to_path(digest)) for name, digest in wanted.items()}
            if paths.keys() == set(names) and all(path.is_file() for path in paths.values()):
                found.append(paths)
    return found


# -- whether a remote answers ------------------------------------------------------------------------------------------


def _reach_all(root: Path, targets: Sequence[str] = ()) -> None:
    """Raise LineageError, in one line, unless every remote that outputs (or `targets`) name can be used."""
    with _project(root) as repo:
        for name in sorted({content.place for content in _contents(repo, targets)}):
            _reach(repo.config, name)


def _reach(config: Mapping[str, Any], name: str) -> None:
    """Ask a remote for one name. No exception's text gets into the error: it could hold a key."""
    url = str(_settings(config, name)["url"])
    kind, settings, path = get_cloud_fs(config, name=name)
    if kind.protocol == "local":
        return
    if kind.protocol == "s3":
        _reach_s3(kind(**{**_PATIENCE, **settings}), path, name, settings.get("endpointurl"))
        return
    try:
        kind(**settings).exists(path)
    except Exception as error:  # file systems of every kind fail in ways of their own
        raise LineageError(
            f"The remote {name} ({_without_user(url)}) cannot be used ({type(error).__name__}). "
            f"Connect to it, or correct it: dvc remote modify {name} …"
        ) from None


def _reach_s3(file_system: Any, path: str, name: str, endpoint: str | None) -> None:
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    bucket, _, prefix = path.strip("/").partition("/")
    server = _without_user(endpoint) if endpoint else "Amazon S3"
    try:
        with _one_attempt():
            file_system.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except FileNotFoundError:
        raise LineageError(
            f"There is no bucket {bucket} at {server}, though the remote {name} names it. "
            f"Create it, or correct: dvc remote modify {name} url s3://BUCKET"
        ) from None
    except (
        PermissionError,
        NoCredentialsError,
        PartialCredentialsError,
        CredentialRetrievalError,
        ProfileNotFound,
    ) as e:
        raise LineageError(
            f"{server} refuses the credentials of the remote {name} ({_code(e)}). "
            f"Correct them: dvc remote modify --local {name} access_key_id … and secret_access_key …"
        ) from None
    except (BotoCoreError, OSError) as error:
        raise LineageError(
            f"{server} does not answer for the remote {name} ({_code(error)}). "
            f"Start it, or correct: dvc remote modify {name} endpointurl …"
        ) from None


def _code(error: Exception) -> str:
    """What S3 calls an error, or the name of its class: words that hold nobody's secret."""
    response = getattr(error.__cause__, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    return code if re.fullmatch(r"[A-Za-z0-9]{3,40}", code) else type(error).__name__


def _without_user(address: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://***@", address)


@contextmanager
def _one_attempt() -> Iterator[None]:
    """Whoever mistyped an address wants to know at once; the transfer itself keeps its five attempts."""
    before = os.environ.get("AWS_MAX_ATTEMPTS")
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["AWS_MAX_ATTEMPTS"]
        else:
            os.environ["AWS_MAX_ATTEMPTS"] = before


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
