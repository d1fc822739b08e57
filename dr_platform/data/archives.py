"""A delivery as a zip or tar, read into a directory: whole and as it is, or not at all.

Libraries repair what is hostile: zipfile turns `../x` into `x` without a word, and tarfile's filters rewrite absolute
names. A name that had to be repaired is no name of this delivery, so such an archive is refused before anything is
written. All members are checked from the archive's own listing; then they are extracted aside, and each must have the
size that was listed; and only then the directory gets its name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dr_platform import files
from dr_platform.errors import DataError

logger = logging.getLogger(__name__)

MAX_ENTRIES = 200_000  # EyePACS, the largest public collection, has 88,702 photographs
MAX_TOTAL_BYTES = 2**38  # 256 GiB
MAX_RATIO = 200  # of the whole; photographs hardly shrink, tables by 20, and deflate cannot do more than 1,032
RATIO_FROM_BYTES = 2**27  # below 128 MiB nothing is a bomb
MAX_NAME_BYTES = 255  # of one part of a path, as file systems have it
MAX_PATH_BYTES = 1024
MAX_DEPTH = 32

ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar")

_CHUNK = 1 << 20
_ENCRYPTED, _UTF8 = 0x1, 0x800
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ZIP_START, _ZIP_SPLIT_START, _ZIP_END, _ZIP64_END = b"PK\x03\x04", b"PK\x07\x08", b"PK\x05\x06", b"PK\x06\x06"
_ZIP_END_BYTES = 22 + 65_535 + 76  # the end record, the longest comment, and zip64's records before them
_TAR_BLOCK = 512
_TAR_TYPES = {
    tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a FIFO",
}  # fmt: skip
_UNIX_TYPES = {
    stat.S_IFLNK: "a symbolic link", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    RuntimeError, LookupError, OverflowError,
)  # fmt: skip


class _RefusedError(Exception):
    """Why an archive is not read, in a few words. Never leaves this module."""


class _WritingError(OSError):
    """The disk is full or not ours to write: no fault of the archive."""


@dataclass(frozen=True)
class _Member:
    """A file or directory of an archive, as its listing has it."""

    name: str
    size: int
    directory: bool


def open_delivery(path: Path, into: Path) -> Path:
    """The directory `into`, made of the files of a zip or tar (plain, gz, bz2, xz). Modes, owners, times are not kept.

    Archives inside stay as they are, with a warning (`nested_archives`). `into` must not exist.
    Raises DataError, with nothing extracted, for an archive that is damaged, encrypted, split, larger than the limits
    above, or has a member that is no plain file or directory, or whose name could mean another place or another member.
    """
    if into.exists() or into.is_symlink():
        raise DataError(f"{into} exists already, and an archive is read into a new directory. Name another one.")
    try:
        kind = _kind(path)
        with files.directory_aside(into, failure=DataError) as aside, _damage_named():
            if kind == "zip":
                _read_zip(path, aside)
            else:
                _read_tar(path, aside)
    except _RefusedError as refused:
        raise DataError(f"{path} is not read: {refused}. Nothing was extracted.") from None
    if nested := nested_archives(into):
        logger.warning("%s holds archives, which stay packed: %s.", path, ", ".join(map(_shown, nested[:5])))
    return into


def nested_archives(directory: Path) -> list[str]:
    """The archives among a delivery's files, relative to it: they may hold images, and nobody has looked."""
    found = (file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
    return sorted(name for name in found if name.lower().endswith(ARCHIVE_ENDINGS))


@contextmanager
def _damage_named() -> Iterator[None]:
    """Failures of reading become the reason; those of writing are the caller's to tell."""
    try:
        yield
    except (_RefusedError, _WritingError):
        raise
    except UnicodeError:
        raise _RefusedError("a name in it is not UTF-8") from None
    except _DAMAGED as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise _RefusedError(f"it is damaged ({said[:100]}); fetch it again") from None


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _WritingError(*error.args) from None


def _kind(path: Path) -> str:
    """zip or tar, by content."""
    if not path.is_file():
        raise _RefusedError("it is no file" if path.exists() else "there is no such file")
    try:
        with open(path, "rb") as stream:
            start = stream.read(_TAR_BLOCK)
            stream.seek(max(path.stat().st_size - _ZIP_END_BYTES, 0))
            end = stream.read()
    except OSError as error:
        raise _RefusedError(f"it cannot be opened ({error.strerror})") from None
    if not start:
        raise _RefusedError("it is empty")
    if _is_split_zip(path, start, end):
        raise _RefusedError("it is a part of a split zip; make one of the parts first, with zip -s 0 or 7-Zip")
    if start.startswith((_ZIP_START, _ZIP_END)):
        return "zip"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")) or start[257:262] == b"ustar" or _is_old_tar(start):
        return "tar"
    other = "a RAR" if start.startswith(b"Rar!") else "a 7z" if start.startswith(b"7z\xbc\xaf") else "another kind of"
    raise _RefusedError(f"it is {other} archive or none, and zip and tar are read; pack it again as one of them")


def _is_split_zip(path: Path, start: bytes, end: bytes) -> bool:
    """By the names of the parts, the mark of a first part, or the number of the last one."""
    numbered = path.suffix.lower() == ".z01" or (path.suffix[1:].isdigit() and ".zip." in path.name.lower())
    first = start.startswith(_ZIP_SPLIT_START)
    at = end.rfind(_ZIP_END)
    last = at >= 0 and end[at + 4 : at + 6] not in (b"\0\0", b"\xff\xff") and not start.startswith(_ZIP_START)
    return numbered or first or last or path.with_suffix(".z01").exists()


def _is_old_tar(start: bytes) -> bool:
    """A header without a magic still has its checksum."""
    said = start[148:156].strip(b" \0")
    return len(start) == _TAR_BLOCK and said.isdigit() and int(said, 8) == sum(start[:148]) + 256 + sum(start[156:])


# ---- members ---------------------------------------------------------------------------------------------------------


def _check(members: Sequence[_Member], packed_bytes: int) -> None:
    """Refuse the whole archive for the first member that is not safe."""
    if len(members) > MAX_ENTRIES:
        raise _RefusedError(f"it has {len(members):,} entries, more than {MAX_ENTRIES:,}")
    if not any(not member.directory for member in members):
        raise _RefusedError("there is no file in it")
    _check_total(sum(member.size for member in members), packed_bytes)
    kinds: dict[tuple[str, ...], bool] = {}
    spelled: dict[tuple[str, ...], tuple[str, ...]] = {}
    for member in members:
        parts = _parts(member.name)
        if not parts and not member.directory:
            raise _RefusedError("a file has no name")
        folded = tuple(_folded(part) for part in parts)
        if folded in kinds and not (kinds[folded] and member.directory):
            raise _RefusedError(f"two entries are called {_shown(member.name)}, apart perhaps from case or accents")
        for depth in range(1, len(parts) + 1):
            directory = member.directory or depth < len(parts)
            if spelled.setdefault(folded[:depth], parts[:depth])[-1] != parts[depth - 1]:
                raise _RefusedError(
                    f"{_shown(member.name)} is spelled in two ways, which some file systems take for one"
                )
            if kinds.setdefault(folded[:depth], directory) != directory:
                raise _RefusedError(f"{_shown(member.name)} is both a file and a directory")


def _check_total(total: int, packed_bytes: int) -> None:
    if total > MAX_TOTAL_BYTES:
        raise _RefusedError(f"it unpacks to {total:,} bytes, more than {MAX_TOTAL_BYTES:,}")
    if total > RATIO_FROM_BYTES and total > MAX_RATIO * packed_bytes:
        raise _RefusedError(f"it unpacks to more than {MAX_RATIO} times its size, as bombs do")


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a member's path. Raises _RefusedError if one could lead elsewhere, or to another file."""
    if name in (".", "./"):  # the directory itself, which `tar -c .` has first
        return ()
    parts = tuple(name.removesuffix("/").split("/"))
    if parts[0] == "." and len(parts) > 1:
        parts = parts[1:]
    shown = _shown(name)
    try:
        encoded = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise _RefusedError(f"the name {shown} is not UTF-8") from None
    if name.startswith("/") or name[1:2] == ":" or "\\" in name:
        raise _RefusedError(f"the name {shown} is absolute or of another system")
    if ".." in parts:
        raise _RefusedError(f"the name {shown} leads out of the directory")
    if "" in parts or "." in parts:
        raise _RefusedError(f"the name {shown} has an empty part")
    if max(encoded) > MAX_NAME_BYTES or sum(encoded) + len(parts) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise _RefusedError(f"the name {shown} is too long")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in name):
        raise _RefusedError(f"the name {shown} has control characters")
    return parts


def _folded(part: str) -> str:
    """What file systems that ignore case or Unicode forms take for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", part).casefold())


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 60 else name[:40] + "…" + name[-19:])


def _write(stream: IO[bytes], aside: Path, member: _Member) -> None:
    """Copy one file of exactly the size listed, so that a listing that lies fills no disk."""
    target = aside.joinpath(*_parts(member.name))
    with _writing():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(exist_ok=False)
    left = member.size
    with open(target, "wb") as copy:
        while chunk := stream.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            with _writing():
                copy.write(chunk)
    if left:
        raise _RefusedError(f"{_shown(member.name)} is not of the size that is listed")


def _make_directory(aside: Path, member: _Member) -> None:
    with _writing():
        aside.joinpath(*_parts(member.name)).mkdir(parents=True, exist_ok=True)


# ---- zip -------------------------------------------------------------------------------------------------------------


def _read_zip(path: Path, aside: Path) -> None:
    packed = path.stat().st_size
    _check_listing(path, packed)
    with zipfile.ZipFile(path) as archive:
        listed = archive.infolist()
        members = [_zip_member(info) for info in listed]
        if sum(info.compress_size for info in listed) > packed:
            raise _RefusedError("its entries overlap, as those of bombs do")
        _check(members, packed)
        for info, member in zip(listed, members, strict=True):
            if member.directory:
                _make_directory(aside, member)
                continue
            with archive.open(info) as stream:
                _write(stream, aside, member)


def _check_listing(path: Path, packed: int) -> None:
    """Refuse a listing so long that reading it would be the harm."""
    with open(path, "rb") as stream:
        stream.seek(max(packed - _ZIP_END_BYTES, 0))
        end = stream.read()
    at, at_64 = end.rfind(_ZIP_END), end.rfind(_ZIP64_END)
    if at < 0 or at + 22 > len(end):
        raise _RefusedError("it is cut short: its listing, at the end, is missing")
    entries, size = struct.unpack_from("<HI", end, at + 10)
    if at_64 >= 0 and (entries == 0xFFFF or size == 0xFFFFFFFF):
        entries, size = struct.unpack_from("<QQ", end, at_64 + 32)
    if entries > MAX_ENTRIES or size > MAX_ENTRIES * (46 + MAX_NAME_BYTES):
        raise _RefusedError(f"it lists {entries:,} entries, more than {MAX_ENTRIES:,}")


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    name = info.orig_filename  # `filename` ends at a zero byte
    if not info.flag_bits & _UTF8 and not name.isascii():
        name = name.encode("cp437").decode()  # Python read UTF-8 that nobody marked as the code page of MS-DOS
    if info.flag_bits & _ENCRYPTED:
        raise _RefusedError(f"{_shown(name)} is encrypted; decrypt it first")
    if info.volume:
        raise _RefusedError("it is a part of a split zip; make one of the parts first, with zip -s 0 or 7-Zip")
    if kind := _UNIX_TYPES.get(stat.S_IFMT(info.external_attr >> 16)):
        raise _RefusedError(f"{_shown(name)} is {kind}, not a file")
    if info.compress_type not in _ZIP_METHODS:
        raise _RefusedError(f"{_shown(name)} is packed by method {info.compress_type}, which is not read")
    return _Member(name, info.file_size, name.endswith("/"))


# ---- tar -------------------------------------------------------------------------------------------------------------


class _Bounded(io.BufferedReader):
    """A stream that gives a megabyte at once, no more: tarfile reads a name of whatever length it is said to have."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or size > _CHUNK:
            raise _RefusedError("an entry's header is too large")
        return super().read(size)


def _read_tar(path: Path, aside: Path) -> None:
    """Twice through the archive, which has no listing: to check it to its end, and to extract it."""
    packed = path.stat().st_size
    members: list[_Member] = []
    with _tar_stream(path) as stream:
        with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as archive:
            total = 0
            for info in _tar_infos(archive):
                members.append(_tar_member(info))
                total += info.size
                _check_total(total, packed)
                if len(members) > MAX_ENTRIES:
                    break
            else:
                _check_tar_end(stream, archive.offset)
    _check(members, packed)
    with _tar_stream(path) as stream, tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as archive:
        for member, info in zip(members, _tar_infos(archive), strict=True):
            if _tar_member(info) != member:
                raise _RefusedError("it was changed while it was read")
            content = archive.extractfile(info)
            if content is None:
                _make_directory(aside, member)
            else:
                _write(content, aside, member)


def _tar_stream(path: Path) -> _Bounded:
    with open(path, "rb") as stream:
        start = stream.read(6)
    if start.startswith(b"\x1f\x8b"):
        return _Bounded(gzip.GzipFile(path))  # type: ignore[arg-type]
    if start.startswith(b"BZh"):
        return _Bounded(bz2.BZ2File(path))  # type: ignore[arg-type]
    if start.startswith(b"\xfd7zXZ"):
        return _Bounded(lzma.LZMAFile(path))  # type: ignore[arg-type]
    return _Bounded(io.FileIO(path))


def _tar_infos(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while info := archive.next():
        archive.members.clear()  # type: ignore[attr-defined]  # it would remember each
        yield info


def _tar_member(info: tarfile.TarInfo) -> _Member:
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse() or info.size < 0:
        kind = _TAR_TYPES.get(info.type, "sparse or of an unknown type")
        raise _RefusedError(f"{_shown(info.name)} is {kind}, not a file")
    member = _Member(info.name, info.size if info.isfile() else 0, info.isdir())
    _parts(member.name)
    try:
        tarfile.data_filter(info, "/delivery")  # a short path, which it looks up for every member
    except tarfile.FilterError:
        raise _RefusedError(f"{_shown(info.name)} leads out of the directory") from None
    return member


def _check_tar_end(stream: IO[bytes], offset: int) -> None:
    """tarfile takes any block that is no header for the end. The end is a block of zeros, and zeros follow it."""
    stream.seek(offset)
    if len(block := stream.read(_TAR_BLOCK)) < _TAR_BLOCK:
        raise _RefusedError("it is cut short: its end is missing")
    after = 0
    while block:
        if any(block):
            raise _RefusedError(f"it is damaged at byte {offset + after:,}")
        after += len(block)
        if after > RATIO_FROM_BYTES:
            raise _RefusedError("it ends in more zeros than any tar has")
        block = stream.read(_CHUNK)
