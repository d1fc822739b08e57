"""Durable files: written aside, synced, renamed; and the digests that tell one content from another.

A reader sees the old file or the new one, never half of one. The pattern is the one of POSIX databases: write a sibling
whose name starts with a dot, fsync it, rename it over the target, fsync the directory.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dr_platform.errors import DrpError

_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form: keys sorted, no spaces. Equal values give equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's, or a directory's, content has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically and durably. Parent directories are made."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(aside, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # whoever reads of it knows that name, not the one aside
        raise
    sync(path.parent)


def write_text(path: Path, content: str) -> None:
    """Replace `path` by UTF-8 text, atomically and durably."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by indented JSON with a final newline, atomically and durably."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def directory_aside(target: Path, *, failure: type[DrpError]) -> Iterator[Path]:
    """A fresh directory beside `target` that becomes `target` when the block ends, and vanishes when it fails.

    An existing `target` is replaced; between the two renames a crash may leave it absent, never half filled.
    A full disk or a missing permission is raised as `failure`, in one line that names the target.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        aside.mkdir()
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                sync(file)
        put_in_place(aside, target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise failure(f"{target} could not be written: {error.strerror or error}. {_advice(error)}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _sweep(target: Path) -> None:
    """Settle what killed processes left beside `target`, and what this one did: unfinished ones go.

    Of an earlier `target` that was about to be replaced: it returns if nothing took its place.
    """
    for leftover in sorted(target.parent.glob(f".{glob.escape(target.name)}.*.*")):
        process, kind = leftover.name.split(".")[-2:]
        if not process.isdigit() or (int(process) != os.getpid() and _alive(int(process))):
            continue
        if kind == "old" and not target.exists():
            os.rename(leftover, target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def mend(parent: Path) -> None:
    """Let each directory below `parent` return that a killed process had moved away and not replaced."""
    for old in sorted(parent.glob(".*.*.old")):
        _sweep(old.with_name(old.name[1:].rsplit(".", 2)[0]))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def put_in_place(aside: Path, target: Path) -> None:
    """Make the directory `aside` be `target`, in place of an earlier one; the files in it are synced already."""
    with placed(aside, target):
        pass


@contextmanager
def placed(aside: Path, target: Path) -> Iterator[None]:
    """`put_in_place`, to stay only if the block succeeds; else `aside` is back, and `target` what it was or nothing."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    sync(aside)
    replaced = target.exists()
    if replaced:
        os.rename(target, old)
    os.rename(aside, target)
    sync(target.parent)
    try:
        yield
    except BaseException:
        os.rename(target, aside)
        if replaced:
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space and run the same command again."
    return "What was there before is intact."


def content_digest(root: Path, keep: Callable[[Path], bool] = lambda _: True) -> str:
    """One digest over names and bytes of all kept files under `root`, independent of times and order of creation."""
    entries = {
        file.relative_to(root).as_posix(): sha256_file(file)
        for file in sorted(root.rglob("*"))
        if file.is_file() and keep(file)
    }
    return sha256_json(entries)
