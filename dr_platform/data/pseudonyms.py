"""Patient identifiers and image names become keyed hashes, so that what leaves the hospital's table names nobody.

A plain hash of a patient number is undone by hashing all numbers. With a secret key only its holder can repeat the
hash, to find a patient again when images are revoked. So the key must outlive the project and never lie in it. Public
collections use a published key: they hide nothing, and the same image has the same pseudonym everywhere.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dr_platform import files
from dr_platform.errors import DataError

KEY_BYTES = 32
KEY_VARIABLE = "DRP_KEY_FILE"
DEFAULT_KEY_FILE = Path("~/.config/dr_platform/pseudonym.key")

_DIGITS = 16  # 64 bits: among a million images, two alike are expected once in 37 million collections
_FINGERPRINT_DIGITS = 8

Subject = Literal["patient", "image"]


@dataclass(frozen=True)
class Key:
    """A secret for pseudonyms. Its text form shows the fingerprint only."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """8 hexadecimal digits that tell keys apart and give none away: recorded with what was made with the key."""
        return _hash(self, "fingerprint", "")[:_FINGERPRINT_DIGITS]

    def __repr__(self) -> str:
        return f"Key({self.fingerprint})"


PUBLIC_KEY = Key(hashlib.sha256(b"dr_platform: pseudonyms of public collections, version 1").digest())


def pseudonym(key: Key, kind: Subject, text: str) -> str:
    """16 hexadecimal digits for a patient's identifier or an image's name; the same each time under the same key.

    The first 64 bits of HMAC-SHA-256 (RFC 2104). A patient and an image of the same name have different ones.
    """
    if kind not in ("patient", "image"):
        raise ValueError(f"no pseudonyms for {kind!r}")
    return _hash(key, kind, text)[:_DIGITS]


def _hash(key: Key, kind: str, text: str) -> str:
    """The kind ends with a zero byte, which no kind holds: no two pairs of kind and text are the same message."""
    message = kind.encode() + b"\0" + text.encode("utf-8", "surrogatepass")
    return hmac.new(key.secret, message, hashlib.sha256).hexdigest()


def key_file(path: Path | None) -> Path:
    """Where the key lies: the path given, else $DRP_KEY_FILE, else a file in the user's configuration."""
    return (path or Path(os.environ.get(KEY_VARIABLE) or DEFAULT_KEY_FILE)).expanduser()


def load_key(path: Path | None, project_root: Path) -> Key:
    """The key of this user, made of 32 random bytes where there is none yet.

    Raises DataError if it lies in the project, where it could be committed or sent away with the data; if others may
    read it; or if it is no key.
    """
    where = key_file(path)
    _check_outside(where, project_root)
    try:
        content = _read(where)
        return Key(_create(where) if content is None else _checked(where, content))
    except OSError as error:
        raise DataError(
            f"The key {where} cannot be read or made: {error.strerror}. "
            f"Name another file in ${KEY_VARIABLE}, outside of the project."
        ) from None


def _check_outside(where: Path, project_root: Path) -> None:
    """Also where a symbolic link leads to, and also before its directories exist."""
    root = project_root.resolve()
    if any(place.is_relative_to(root) for place in (where.resolve(), where.absolute())):
        raise DataError(
            f"The key {where} lies in the project {project_root}, so it could leave with the data. "
            f"Move it out, to {DEFAULT_KEY_FILE}, say, and name it in ${KEY_VARIABLE}."
        )


def _read(where: Path) -> bytes | None:
    """The file's bytes, or None where there is none. The permissions checked are those of the file that is read."""
    try:
        with open(os.open(where, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"The key {where} is no regular file. Name another one in ${KEY_VARIABLE}.")
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise DataError(
                    f"The key {where} can be used by others (mode {stat.S_IMODE(found.st_mode):04o}). "
                    f"Run: chmod 600 {where}"
                )
            return stream.read(KEY_BYTES + 1)
    except FileNotFoundError:
        if where.is_symlink():
            raise DataError(f"The key {where} is a link to nothing. Remove it, or restore the key.") from None
        return None


def _checked(where: Path, content: bytes) -> bytes:
    if len(content) != KEY_BYTES:
        size = f"more than {KEY_BYTES}" if len(content) > KEY_BYTES else str(len(content))
        raise DataError(
            f"The key {where} has {size} bytes instead of {KEY_BYTES}. Restore it from your copy; "
            f"a new one would give every patient another pseudonym."
        )
    return content


def _create(where: Path) -> bytes:
    """Make the key of a user who has none; of two who do so at once, one makes it and both have the same.

    It is written aside and linked, since a name that was created exclusively would be seen while it is still empty.
    """
    made = [parent for parent in (where.parent, *where.parent.parents) if not parent.exists()]
    for parent in reversed(made):
        parent.mkdir(mode=0o700, exist_ok=True)
    secret = secrets.token_bytes(KEY_BYTES)
    aside = where.with_name(f".{where.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(secret)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(aside, where)
        except FileExistsError:
            content = _read(where)
            if content is None:
                raise OSError(errno.EAGAIN, "it appears and vanishes") from None
            return _checked(where, content)
    finally:
        aside.unlink(missing_ok=True)
    files.sync(where.parent)
    return secret
