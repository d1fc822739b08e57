"""Who made which model champion, when, why and on what evidence: a file that only grows, each line sealing the last.

A line is one decision in canonical JSON. It holds the SHA-256 of the line before and of itself, so no byte can change
unseen; lines cut off at the end are missed by their copies in the registry's tags (`tracking.champions`). Who can
rewrite the file and all its copies could forge the whole: write the head that `drp audit verify` prints elsewhere.

The file lies beside a SQLite registry and in the project for any other. For a registry on a server that one file is the
original, so promote from one project directory: another, without the file, is refused, never forked.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dr_platform import files
from dr_platform.errors import RegistryError
from dr_platform.records import LedgerAction, LedgerEntry

ACTOR_VARIABLE = "DRP_ACTOR"
GENESIS = "0" * 64  # what the first entry names as the one before it
_FIRST_BYTES = b'{"action":'  # keys are sorted, so every line begins like this
_REASON_BYTES = 3000  # a database may keep no more than 5000 characters of a tag, and a tag holds the whole line
_MOST_WHO = 100


@dataclass(frozen=True)
class Problem:
    """Something in ledger, alias or tags that is not as it was written."""

    entry: int | None  # which entry of the ledger it is about, if any
    model: str | None
    said: str


@dataclass(frozen=True)
class Evidence:
    """Digests of what a version was judged by."""

    checkpoint_sha256: str
    report_sha256: str
    weights_sha256: str


@dataclass(frozen=True)
class Ledger:
    """The ledger's file. Whoever writes, or reads to act on it, holds `locked()`."""

    path: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ledger among the processes of this machine; the system frees it when its holder dies."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(self.path.with_name(f"{self.path.name}.lock"), "a")  # noqa: SIM115
        except OSError as error:
            raise RegistryError(f"{error.filename} cannot be written: {error.strerror}. Make it writable.") from None
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def content(self) -> bytes:
        """The file's bytes, none where there is no file yet. Raises RegistryError."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RegistryError(f"{self.path} cannot be read: {error.strerror}. Make it readable.") from None

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All entries. Raises RegistryError that names the first one that was changed."""
        entries, problem = examine(self.content())
        if problem:
            raise RegistryError(f"{self.path.name}: {problem.said} Nothing was changed. Run: drp audit verify")
        return entries

    def append(self, entry: LedgerEntry) -> None:
        """Write an entry as the last line and wait until the disk has it; a line torn by a kill is cut off before.

        Raises RegistryError, with the file as before, if it cannot be written.
        """
        content = self.content()
        whole = content.rfind(b"\n") + 1
        line = line_of(entry)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.ftruncate(descriptor, whole)
                os.lseek(descriptor, whole, os.SEEK_SET)
                if os.write(descriptor, line) != len(line):
                    raise OSError(0, "the disk took a part of the line only")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, whole)
                raise
            finally:
                os.close(descriptor)
            files.sync(self.path.parent)
        except OSError as error:
            raise RegistryError(
                f"{self.path} cannot be written: {error.strerror}. No alias was moved. Run the same command again."
            ) from None


def ledger_of(uri: str, root: Path) -> Ledger:
    """The ledger of the registry at `uri`: beside a SQLite file (relative to `root`), else in `root`."""
    if uri.startswith("sqlite:///"):
        store = (root / uri.removeprefix("sqlite:///")).absolute()
        return Ledger(store.with_name(f"{store.name}.ledger.jsonl"))
    return Ledger((root / "ledger.jsonl").absolute())


def make_entry(
    entries: Sequence[LedgerEntry],
    *,
    action: LedgerAction,
    model: str,
    from_version: int | None,
    to_version: int,
    evidence: Evidence,
    rules_sha256: str | None,
    reason: str,
) -> LedgerEntry:
    """The entry that follows on `entries`, dated now, in the name of DRP_ACTOR or else of the system's user."""
    fields: dict[str, Any] = {
        "version": 1,
        "index": len(entries),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "who": actor(),
        "action": action,
        "model": model,
        "from_version": from_version,
        "to_version": to_version,
        **vars(evidence),
        "rules_sha256": rules_sha256,
        "reason": _shortened(_in_one_line(reason)),
        "previous": entries[-1].sha256 if entries else GENESIS,
    }
    return LedgerEntry(**fields, sha256=files.sha256_json(fields))


def actor() -> str:
    """Who acts: DRP_ACTOR, else the name of the system's user."""
    try:
        named = os.environ.get(ACTOR_VARIABLE) or getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        named = f"uid {os.getuid()}"
    return _in_one_line(named)[:_MOST_WHO]


def line_of(entry: LedgerEntry) -> bytes:
    """An entry as its line: canonical JSON in ASCII, keys sorted, no spaces, and a newline."""
    return json.dumps(entry.model_dump(), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def examine(content: bytes) -> tuple[tuple[LedgerEntry, ...], Problem | None]:
    """The sound entries of a ledger's bytes in order up to the first that is not, and what is wrong with that one.

    A last line without its newline that breaks off inside its JSON is no problem: a kill tore it, nothing followed from
    it, and the next entry takes its place.
    """
    entries: list[LedgerEntry] = []
    *whole, tail = content.split(b"\n")
    for line in [*(part + b"\n" for part in whole), *([tail] if tail else [])]:
        if not line.endswith(b"\n") and _is_torn(line):
            break
        found = _entry_in(line, len(entries), entries[-1].sha256 if entries else GENESIS)
        if isinstance(found, Problem):
            return tuple(entries), found
        entries.append(found)
    return tuple(entries), None


def reigns(entries: Sequence[LedgerEntry], model: str) -> list[int]:
    """The champions that `drp rollback` would go through, the present one last; empty where there was none.

    A rollback takes the champion off that it ended, so a second one goes further back instead of to and fro.
    """
    line: list[int] = []
    for entry in entries:
        if entry.model != model or entry.action == "hold":
            continue
        if not line and entry.from_version is not None:
            line.append(entry.from_version)
        if entry.action == "rollback":
            line = line[:-1]
        if line[-1:] != [entry.to_version]:
            line.append(entry.to_version)
    return line


def champion(entries: Sequence[LedgerEntry], model: str) -> int | None:
    """The version that the ledger says is champion, or None."""
    return next(iter(reversed(reigns(entries, model))), None)


def last_move(entries: Sequence[LedgerEntry], model: str) -> LedgerEntry | None:
    """The entry that made the present champion, or None."""
    return next((entry for entry in reversed(entries) if entry.model == model and entry.action != "hold"), None)


def _entry_in(line: bytes, index: int, previous: str) -> LedgerEntry | Problem:
    """The entry that a line holds, if it is what was written at this place."""

    def changed(how: str) -> Problem:
        return Problem(index, None, f"Entry {index} was changed: {how}.")

    try:
        entry = LedgerEntry.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return changed(f"{where}: {first['msg']}" if where else "its line is no JSON of an entry")
    if line != line_of(entry):
        return changed("its line is not written as entries are")
    if files.sha256_json(entry.model_dump(exclude={"sha256"})) != entry.sha256:
        return changed("it does not match its own SHA-256")
    if entry.index != index:
        return Problem(index, entry.model, f"Entry {index} is missing: entry {entry.index} stands in its place.")
    if entry.previous != previous:
        before = f"entry {index - 1}" if index else "the beginning"
        return Problem(
            index, entry.model, f"Entry {index} does not follow on {before}: one of the two was written anew."
        )
    return entry


def _is_torn(line: bytes) -> bool:
    """Whether a line without its newline is the beginning of one, rather than a whole one with a changed end."""
    if not line.startswith(_FIRST_BYTES):
        return _FIRST_BYTES.startswith(line)
    try:
        _, end = json.JSONDecoder().raw_decode(line.decode("ascii"))
    except ValueError:  # also where a byte is no ASCII
        return line.isascii()
    return end == len(line)


def _in_one_line(text: str) -> str:
    """Text that a terminal shows as one line, whatever was in it."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _shortened(reason: str) -> str:
    """The reason, cut where its JSON would be longer than a tag."""
    if len(json.dumps(reason)) <= _REASON_BYTES:
        return reason
    kept = reason
    while len(json.dumps(kept)) > _REASON_BYTES:
        kept = kept[: len(kept) * 9 // 10]
    return f"{kept}…"
