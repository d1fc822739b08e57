"""An archive becomes a directory as it is, or it is refused whole and leaves nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import time
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dr_platform.data import archives
from dr_platform.data.archives import nested_archives, open_delivery
from dr_platform.errors import DataError

CONTENT = {"labels.csv": b"image,grade\na,0\n", "images/a.jpg": bytes(range(256)) * 5, "images/Größe é.jpg": b"x"}


def zipped(members: dict[str, bytes], **options: object) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # the constructor would end it at a zero byte
            info.compress_type = zipfile.ZIP_DEFLATED
            for field, value in options.items():
                setattr(info, field, value)
            archive.writestr(info, content)
    return stream.getvalue()


def tarred(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o4777
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def found(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


# ---- what goes right -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", zipped(CONTENT)),
        ("a.tar", tarred(CONTENT)),
        ("gnu.tar", tarred(CONTENT, form=tarfile.GNU_FORMAT)),
        ("old.tar", tarred({"a.txt": b"a"}, form=tarfile.USTAR_FORMAT).replace(b"ustar\x0000", bytes(8))),
        ("a.tar.gz", gzip.compress(tarred(CONTENT))),
        ("a.tar.bz2", bz2.compress(tarred(CONTENT))),
        ("a.tar.xz", lzma.compress(tarred(CONTENT))),
        ("named.jpg", zipped(CONTENT)),
    ],
)
def test_a_delivery_is_read_as_it_is(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    if name == "old.tar":  # without its magic, the checksum is another
        header = bytearray(content)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
        (tmp_path / name).write_bytes(header)
    into = open_delivery(tmp_path / name, tmp_path / "in" / "to")
    assert into == tmp_path / "in" / "to"
    assert found(into) == ({"a.txt": b"a"} if name == "old.tar" else CONTENT)
    assert os.listdir(into.parent) == ["to"]
    assert not any(path.stat().st_mode & (stat.S_ISUID | stat.S_IXUSR) for path in into.rglob("*") if path.is_file())


def test_directories_the_tools_ways_are_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(source, ".")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(source / "empty", "empty")
        packed.write(source / "a.txt", "a.txt")
    for name in ("a.tar", "a.zip"):
        into = open_delivery(tmp_path / name, tmp_path / f"{name}-out")
        assert found(into) == {"a.txt": b"a"}
        assert (into / "empty").is_dir()


def test_utf8_names_that_nobody_marked_are_read(tmp_path: Path) -> None:
    """The archiver of macOS writes such, and Python takes them for the code page of MS-DOS."""
    content = zipped({"Gr\u00f6\u00dfe.jpg": b"x"})
    unmarked = bytearray(content)
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        flags = content.index(signature) + at
        unmarked[flags : flags + 2] = b"\0\0"
    (tmp_path / "a.zip").write_bytes(unmarked)
    assert found(open_delivery(tmp_path / "a.zip", tmp_path / "out")) == {"Gr\u00f6\u00dfe.jpg": b"x"}


def test_archives_inside_stay_packed_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"part1.ZIP": zipped(CONTENT), "b/c.tar.gz": b"x", "d.jpg": b"x"}))
    into = open_delivery(tmp_path / "a.zip", tmp_path / "out")
    assert nested_archives(into) == ["b/c.tar.gz", "part1.ZIP"]
    assert "stay packed: 'b/c.tar.gz', 'part1.ZIP'" in caplog.text


# ---- what is refused -------------------------------------------------------------------------------------------------

GOOD = {"a.jpg": b"x" * 100}
_NFD, _NFC = unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.jpg")
NAMES = {
    "../escape.jpg": "leads out of the directory",
    "a/../../escape.jpg": "leads out of the directory",
    "/etc/escape.jpg": "absolute",
    "C:\\escape.jpg": "absolute or of another system",
    "C:escape.jpg": "absolute or of another system",
    "a\\escape.jpg": "absolute or of another system",
    "\\\\host\\escape.jpg": "absolute or of another system",
    "a//escape.jpg": "has an empty part",
    "a/./escape.jpg": "has an empty part",
    "new\nline.jpg": "control characters",
    "zero\0byte.jpg": "control characters",
    "gpj.\u202eescape.exe": "control characters",
    "n" * 256: "too long",
    "ü" * 128: "too long",
    "/".join("abcdefg" * 40): "too long",
    "/".join(["n" * 200] * 6): "too long",
    "A.JPG": "two entries",
}
TWINS = [
    ["é.jpg", _NFD], ["straße.jpg", "STRASSE.jpg"], ["ﬁ.jpg", "fi.jpg"], ["x/b.jpg", "X/c.jpg"], ["a.jpg/b", "c"],
]  # fmt: skip


def refuse(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """The contract: one line, nothing extracted, nothing left beside, soon."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "kept").mkdir(exist_ok=True)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    started = time.monotonic()
    with pytest.raises(DataError, match=reason) as caught:
        open_delivery(tmp_path / name, tmp_path / "out")
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert "Nothing was extracted" in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "name"),
    # In a tar a name ends at a zero byte.
    [(zipped, name) for name in NAMES] + [(tarred, name) for name in NAMES if "\0" not in name],
)
def test_a_name_that_could_lead_elsewhere_refuses_the_whole(
    make: Callable[[dict[str, bytes]], bytes], name: str, tmp_path: Path
) -> None:
    refuse(tmp_path, "bad.bin", make({**GOOD, name: b"escaped"}), NAMES[name])


@pytest.mark.parametrize("twins", TWINS)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_names_that_some_file_systems_take_for_one_are_refused(
    twins: list[str], make: Callable[[dict[str, bytes]], bytes], tmp_path: Path
) -> None:
    content = make({**GOOD, **dict.fromkeys(twins, b"x")})
    refuse(tmp_path, "bad.bin", content, "two entries|two ways|both a file and a directory")


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for text in (b"one", b"two"):
            info = tarfile.TarInfo("a.jpg")
            info.size = 3
            archive.addfile(info, io.BytesIO(text))
    refuse(tmp_path, "a.tar", stream.getvalue(), "two entries are called 'a.jpg'")
    twice = zipped({"a.jpg": b"one", "b.jpg": b"two"}).replace(b"b.jpg", b"a.jpg")
    refuse(tmp_path, "a.zip", twice, "two entries are called 'a.jpg'")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a FIFO"),
        (tarfile.GNUTYPE_SPARSE, "sparse|cut short"),
        (b"Z", "unknown type|two entries"),
    ],
)
def test_what_is_no_file_refuses_a_tar(kind: bytes, said: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("good.jpg")
        archive.addfile(info)
        info = tarfile.TarInfo("bad.jpg")
        info.type, info.linkname = kind, "good.jpg"
        archive.addfile(info)
    refuse(tmp_path, "a.tar", stream.getvalue(), said)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_what_is_no_file_refuses_a_zip(kind: int, tmp_path: Path) -> None:
    refuse(
        tmp_path, "a.zip", zipped({"link": b"/etc/passwd"}, external_attr=(kind | 0o777) << 16), "is a .*, not a file"
    )


def patched(content: bytes, signature: bytes, at: int, value: bytes) -> bytes:
    """A zip with a field of each local header or listing entry overwritten."""
    changed, position = bytearray(content), content.find(signature)
    while position >= 0:
        changed[position + at : position + at + len(value)] = value
        position = content.find(signature, position + 1)
    return bytes(changed)


ZIP, TAR = zipped(CONTENT), tarred(CONTENT)
BAD = {
    "encrypted.zip": (patched(patched(ZIP, b"PK\3\4", 6, b"\1\x08"), b"PK\1\2", 8, b"\1\x08"), "is encrypted"),
    "method.zip": (patched(ZIP, b"PK\1\2", 10, b"\x63\0"), "packed by method 99"),
    "latin1.zip": (
        patched(patched(zipped({"\u00e9\u00e9": b"x"}), b"PK\3\4", 6, b"\0\0"), b"PK\1\2", 8, b"\0\0").replace(
            "\u00e9\u00e9".encode(), b"\xe9\xe9\xe9\xe9"), "not UTF-8"),
    "flagged.zip": (zipped({"\u00e9\u00e9": b"x"}).replace("\u00e9\u00e9".encode(), b"\xe9\xe9\xe9\xe9"), "not UTF-8"),
    "other-name.zip": (ZIP.replace(b"labels.csv", b"pwned_.csv", 1), "damaged"),
    "crc.zip": (patched(ZIP, b"PK\1\2", 16, b"\0\0\0\0"), "damaged"),
    "lying-size.zip": (patched(ZIP, b"PK\1\2", 24, struct.pack("<I", 3)), "damaged|not of the size"),
    "overlap.zip": (patched(ZIP, b"PK\1\2", 20, struct.pack("<I", 900)), "overlap"),
    "cut.zip": (ZIP[: len(ZIP) // 2], "cut short: its listing"),
    "only-start.zip": (ZIP[:40], "cut short: its listing"),
    "cut-end.zip": (ZIP[:-10], "cut short: its listing"),
    "many.zip": (ZIP[:-14] + struct.pack("<HHIIH", 60_000, 60_000, 2**31, 0, 0), "lists 60,000 entries"),
    "no-files.zip": (zipped({"a/": b""}), "no file in it"),
    "first.zip": (b"PK\x07\x08" + ZIP, "part of a split zip; make one"),
    "last.zip": (bytes(999) + ZIP[ZIP.index(b"PK\5\6") :].replace(b"PK\5\6\0\0", b"PK\5\6\3\0"), "part of a split zip"),
    "a.z01": (ZIP, "part of a split zip"),
    "a.zip.002": (bytes(900), "part of a split zip"),
    "volume.zip": (patched(ZIP, b"PK\1\2", 34, b"\1\0"), "part of a split zip"),
    "empty.zip": (b"", "it is empty"),
    "text.zip": (b"404 not found", "another kind of archive or none"),
    "a.rar": (b"Rar!\x1a\x07\0" + bytes(99), "a RAR archive"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive"),
    "cut.tar": (TAR[:1500], "damaged|cut short"),
    "cut-at-block.tar": (TAR[: 512 * 7], "damaged|cut short"),
    "no-end.tar": (tarred(GOOD)[:1024], "cut short: its end is missing"),
    "junk-behind.tar": (TAR + b"junk" * 128, "damaged at byte"),
    "junk-inside.tar": (TAR[:1024] + b"junk" * 128 + TAR[1536:], "damaged"),
    "latin1.tar": (tarred(GOOD, form=tarfile.USTAR_FORMAT), "not UTF-8"),
    "no-files.tar": (tarred({"a": b""}, tarfile.DIRTYPE), "no file in it"),
    "cut.tar.gz": (gzip.compress(TAR)[:-20], "damaged"),
    "crc.tar.gz": (gzip.compress(TAR)[:-8] + bytes(8), "damaged"),
    "cut.tar.bz2": (bz2.compress(TAR)[:-20], "damaged"),
    "cut.tar.xz": (lzma.compress(TAR)[:-20], "damaged"),
    "text.gz": (gzip.compress(b"no tar"), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_whole(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    if name == "latin1.tar":
        header = bytearray(content)
        header[0:2] = b"\xe9."
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
        content = bytes(header)
    refuse(tmp_path, name, content, reason)


def test_a_directory_a_fifo_or_nothing_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.zip")
    (tmp_path / "directory.zip").mkdir()
    for name, reason in (("fifo.zip", "no file"), ("directory.zip", "no file"), ("nothing.zip", "no such file")):
        with pytest.raises(DataError, match=reason):
            open_delivery(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_exists_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(ZIP)
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for into in ("out", "link"):
        with pytest.raises(DataError, match="exists already"):
            open_delivery(tmp_path / "a.zip", tmp_path / into)
    assert list((tmp_path / "out").iterdir()) == []


# ---- bombs -----------------------------------------------------------------------------------------------------------


class _Zeros(io.RawIOBase):
    """A file of zeros that takes no memory."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


@pytest.fixture(scope="module")
def bomb_tar() -> bytes:
    """160 MiB of zeros in a tar."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as packed:
        with tarfile.open(fileobj=packed, mode="w|") as archive:
            info = tarfile.TarInfo("zeros.jpg")
            info.size = 160 << 20
            archive.addfile(info, _Zeros())  # type: ignore[arg-type]
    return stream.getvalue()


def test_bombs_are_refused_from_their_listing(tmp_path: Path, bomb_tar: bytes) -> None:
    refuse(tmp_path, "a.tar.gz", bomb_tar, "more than 200 times its size")
    huge = patched(ZIP, b"PK\1\2", 24, struct.pack("<I", 2**32 - 2))
    refuse(tmp_path, "a.zip", huge, "more than 200 times its size")


def test_each_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value, reason in (
        ("MAX_ENTRIES", 2, "3 entries, more than 2"), ("MAX_TOTAL_BYTES", 1000, "1,29. bytes, more than 1,000"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, value)
            refuse(tmp_path, "a.zip", ZIP, reason)
            refuse(tmp_path, "a.tar", TAR, reason)


def test_a_header_that_claims_a_giant_name_takes_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    refuse(tmp_path, "a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240), "header is too large")


def test_five_thousand_entries_are_listed_soon(tmp_path: Path) -> None:
    stream = io.BytesIO()
    header = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT)
    stream.write(header * 5_000 + bytes(1024))
    refuse(tmp_path, "a.tar", stream.getvalue(), "two entries")
