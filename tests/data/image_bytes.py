"""Image files made byte by byte, from the specifications: what Pillow cannot write, and what nobody should."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """[H, W, 3]: slopes with a direction and some grain, so that a turned, mirrored or filled one is another one."""
    y, x = np.mgrid[0:height, 0:width]
    grain = np.random.default_rng(seed).integers(0, 24, (height, width))
    return np.stack([20 + x * 150 / width, 40 + y * 150 / height, 60 + grain], axis=2).astype(np.uint8)


def written(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """By Pillow."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: np.ndarray, colour: int, depth: int, before: bytes = b"", behind: bytes = b"", width: int | None = None
) -> bytes:
    """Of [H, W, ...] samples, or packed rows of `width` pixels. before: chunks ahead of the pixels; behind: in IDAT."""
    rows = samples.astype(">u2" if depth == 16 else "u1").reshape(len(samples), -1)
    header = struct.pack(">IIBBBBB", width or samples.shape[1], samples.shape[0], depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)) + behind
    return PNG_SIGNATURE + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_of_size(width: int, height: int, depth: int = 8, colour: int = 2, bytes_inside: int = 0) -> bytes:
    """A PNG that claims a size, and holds `bytes_inside` zeros."""
    packer = zlib.compressobj(1)
    piece = bytes(1 << 20)
    data = b"".join(packer.compress(piece) for _ in range(bytes_inside >> 20)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one chunk more, after its header."""
    at = len(PNG_SIGNATURE) + 25
    return content[:at] + chunk(kind, data) + content[at:]


def with_segment(content: bytes, marker: int, data: bytes) -> bytes:
    """A JPEG with one segment more, at its start."""
    return content[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + content[2:]


def exif(orientation: int, text: bytes = b"", order: str = "<") -> bytes:
    """An EXIF block of an orientation and an artist, without the six bytes ahead of it in a JPEG."""
    text += b"\0" * (5 - len(text)) if len(text) < 5 else b""
    entries = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack(f"{order}HHII", 0x013B, 2, len(text), 8 + 2 + 24 + 4)
    head = b"II" if order == "<" else b"MM"
    return head + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", 2) + entries + bytes(4) + text


def tiff(
    samples: np.ndarray, photometric: int, bits: int, order: str = "<", tags: dict[int, int] | None = None
) -> bytes:
    """An uncompressed TIFF of [H, W] or [H, W, C] samples; of 12 bits, packed. tags: further ones, one SHORT each."""
    height, width = samples.shape[:2]
    bands = samples.shape[2] if samples.ndim == 3 else 1
    if bits == 12:
        flat = samples.reshape(-1, 2).astype(np.uint16)
        data = np.stack(
            [flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], axis=1
        ).astype(np.uint8).tobytes()  # fmt: skip
    else:
        data = samples.astype(f"{order}{samples.dtype.kind}{bits // 8}").tobytes()
    short = {
        256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: bands, 278: height, 279: len(data),
        **(tags or {}),
    }  # fmt: skip
    extra = 8 + len(data)
    values, behind = b"", b""
    for tag, value in sorted(short.items()):
        if tag == 258 and bands > 2:
            values += struct.pack(f"{order}HHII", tag, 3, bands, extra + len(behind))
            behind += struct.pack(f"{order}{bands}H", *[bits] * bands)
        elif tag in (273, 279):
            values += struct.pack(f"{order}HHII", tag, 4, 1, value)
        elif tag == 258 and bands == 2:
            values += struct.pack(f"{order}HHIHH", tag, 3, 2, bits, bits)
        else:
            values += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    directory = struct.pack(f"{order}H", len(short)) + values + bytes(4)
    head = b"II" if order == "<" else b"MM"
    return head + struct.pack(f"{order}HI", 42, extra + len(behind)) + data + behind + directory


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
