"""A thousand damaged images: each is decoded or refused in one line, and nothing hangs, crashes or is filled in."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from image_bytes import flipped, picture, written
from PIL import Image
from shared_data import FUNDUS_MINI

from dr_platform.data.pixels import MAX_SIDE, Decoded, UnusableImageError, decode, encode, leftovers

SEED = 20261125
MUTATIONS = 1000


def photograph() -> np.ndarray:
    """A real one of 128 x 85 where there are some, else a drawn one."""
    path = FUNDUS_MINI / "images" / "hrf" / "01_dr.jpg"
    if not path.is_file():
        return picture(85, 128)
    with Image.open(path) as image:
        return np.asarray(image.reduce(4))


SOURCES = {
    "baseline jpeg": lambda pixels: written(pixels, "JPEG", quality=92, subsampling=0),
    "progressive jpeg": lambda pixels: written(pixels, "JPEG", quality=92, progressive=True),
    "png": lambda pixels: written(pixels, "PNG"),
    "tiff": lambda pixels: written(pixels, "TIFF"),
    "lzw tiff": lambda pixels: written(pixels, "TIFF", compression="tiff_lzw"),
}


def bit_flips(content: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(int(rng.integers(1, 5))):
        content = flipped(content, int(rng.integers(len(content))), int(rng.integers(8)))
    return content


def truncation(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def header_damage(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes of the first 64 overwritten; in a PNG with checksums that fit, or nothing would be tried."""
    damaged = bytearray(content)
    for at in rng.integers(2, 64, int(rng.integers(1, 9))):
        damaged[at] = rng.integers(256)
    if content.startswith(b"\x89PNG"):
        damaged[:16] = content[:16]
        damaged[29:33] = struct.pack(">I", zlib.crc32(damaged[12:29]))
        damaged[33:] = content[33:]
    return bytes(damaged)


def stretch_of_zeros(content: bytes, rng: np.random.Generator) -> bytes:
    """What a bad sector leaves."""
    at = int(rng.integers(len(content)))
    return content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]


MUTATORS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    bit_flips, truncation, header_damage, stretch_of_zeros,
)  # fmt: skip


def test_a_thousand_damaged_images_are_decoded_or_refused(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = photograph()
    sources = {kind: make(pixels) for kind, make in SOURCES.items()}
    rng = np.random.default_rng(SEED)
    outcomes: Counter[tuple[str, str, str]] = Counter()
    longest, started = 0.0, time.monotonic()
    for number in range(MUTATIONS):
        kind = list(sources)[number % len(sources)]
        mutate = MUTATORS[number // len(sources) % len(MUTATORS)]
        content = mutate(sources[kind], rng)
        began = time.monotonic()
        try:
            decoded = decode(content, "a")
        except UnusableImageError as error:
            outcome = "refused"
            said = str(error)
            if "\n" in said or len(said) > 200 or "0x" in said:
                pytest.fail(f"mutation {number}: {said}")
        else:
            outcome = "decoded"
            _check_decoded(decoded)
        longest = max(longest, time.monotonic() - began)
        outcomes[kind, mutate.__name__, outcome] += 1
    assert time.monotonic() - started < 30  # 3 s on an idle core
    assert longest < 5
    assert capfd.readouterr() == ("", "")
    _check_counts(outcomes)


def _check_decoded(decoded: Decoded) -> None:
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.ndim == 3
    assert decoded.pixels.shape[2] == 3
    assert 1 <= min(decoded.pixels.shape[:2]) <= max(decoded.pixels.shape[:2]) <= MAX_SIDE
    assert decoded.orientation in range(1, 9)


def _check_counts(outcomes: Counter[tuple[str, str, str]]) -> None:
    def count(kind: str, mutation: str, outcome: str) -> int:
        return outcomes[kind, mutation, outcome]

    each = MUTATIONS // len(SOURCES) // len(MUTATORS)
    assert outcomes.total() == MUTATIONS
    for kind in SOURCES:
        # What is cut short is never filled in.
        assert count(kind, "truncation", "refused") == each
    # Every byte of a PNG counts, and each is under a checksum, which four flips of a bit cannot leave unchanged.
    assert count("png", "bit_flips", "refused") == each
    assert count("png", "stretch_of_zeros", "refused") >= each - 2
    # The pixels of an uncompressed TIFF are nearly all of it, and any are as good as others: 4 in 33,000 bytes are not.
    assert count("tiff", "bit_flips", "decoded") >= each * 9 // 10
    # A flip in coded data decodes to other pixels, silently; one in the tables, a tenth of the file, often not at all.
    assert count("baseline jpeg", "bit_flips", "decoded") >= each // 2
    for kind in SOURCES:
        assert count(kind, "header_damage", "refused") >= each // 10


def test_what_a_damaged_image_becomes_is_clean() -> None:
    """Whatever was decoded, what is stored of it holds pixels only."""
    content = written(photograph(), "JPEG", quality=92, comment=b"DOE^JANE")
    rng = np.random.default_rng(SEED)
    stored = 0
    for _ in range(60):
        try:
            decoded = decode(bit_flips(content, rng), "a.jpg")
        except UnusableImageError:
            continue
        again = encode(decoded.pixels, decoded.lossless)
        assert leftovers(again) == []
        with Image.open(io.BytesIO(again)) as image:
            assert image.size == decoded.pixels.shape[1::-1]
        stored += 1
    assert stored >= 30
