"""What an image file is made of, read without decoding a pixel: the segments of a JPEG, the chunks of a PNG.

Decoders are lenient: libjpeg fills what is missing with grey, and Pillow stops where the data of a PNG end. So the
container is walked here first. What is cut short or of a size that nobody photographs is refused before a decoder sees
it; the decoder is then handed only what it needs for the pixels; and what we write ourselves is walked again, to prove
that nothing else is in it. From ITU-T T.81 (JPEG), the PNG specification (third edition), Exif 2.3 and CIPA DC-007.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["JPEG", "PNG", "TIFF"]

MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS: dict[bytes, Kind] = {
    b"\xff\xd8\xff": "JPEG", _PNG_SIGNATURE: "PNG",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
_OTHERS = {
    b"GIF8": "a GIF", b"BM": "a BMP", b"%PDF": "a PDF", b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive",
    b"\0\0\0\x0cjP": "a JPEG 2000", b"\xff\x4f\xff\x51": "a JPEG 2000", b"8BPS": "a Photoshop file",
}  # fmt: skip

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI, _DNL, _COM = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xDC, 0xFE
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # in coded data, 0 after FF is stuffing, and D0-D7 are restarts
_ABSENT = 99

_PNG_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")


class UnusableImageError(Exception):
    """Why an image cannot be used, in a few words."""


@dataclass(frozen=True)
class Header:
    """What the header of a JPEG or PNG says, and what is needed of the file to decode its pixels."""

    width: int
    height: int
    essence: bytes  # the file without all that is not needed for pixels
    orientation: int | None  # EXIF, else XMP; None where neither says one of 1-8
    surplus: int  # bytes after the end marker
    profile: bool  # a colour profile is there
    inner: int = 0  # JPEG: smaller pictures in it, beside the thumbnail of EXIF
    adobe: bool = False  # JPEG: Adobe's segment is there, so four components are stored inverted
    depth: int = 8  # bits per sample
    colours: int = 0  # PNG: entries of the palette


def kind_of(content: bytes) -> Kind:
    """JPEG, PNG or TIFF, by the first bytes. Raises UnusableImageError naming what it is instead."""
    for magic, kind in _KINDS.items():
        if content.startswith(magic):
            return kind
    raise UnusableImageError(f"it is {_other(content)}, not a JPEG, PNG or TIFF")


def _other(content: bytes) -> str:
    if not content:
        return "empty"
    for magic, name in _OTHERS.items():
        if content.startswith(magic):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "a WebP"
    if content[4:8] == b"ftyp":
        return "a HEIF, AVIF or video"
    if is_dicom(content):
        return "a DICOM file"
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<svg")):
        return "XML"
    if start and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return "text"
    return "something unknown" if any(content[:1024]) else "full of zeros"


def is_dicom(content: bytes) -> bool:
    """Whether the first bytes are those of a DICOM file: a preamble of 128 bytes, then DICM."""
    return content[128:132] == b"DICM"


def check_size(width: int, height: int) -> None:
    """Refuse a picture of no pixels, or of more than anybody photographs."""
    if not width or not height:
        raise UnusableImageError(f"its header says {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million pixels")
    if max(width, height) > MAX_SIDE:
        raise UnusableImageError(f"{width} x {height} pixels: a side is longer than {MAX_SIDE:,}")


def leftovers(content: bytes) -> list[str]:
    """All that a JPEG or PNG holds and pixels do not need, by name; empty for what we write.

    Reads the container itself, independently of the library that wrote it.
    """
    try:
        kind = kind_of(content)
        if kind == "JPEG":
            segments, end = jpeg_segments(content)
            found = [_segment_name(content, segment) for segment in segments if not _is_needed(content, segment)]
        elif kind == "PNG":
            chunks, end = png_chunks(content)
            found = [chunk.kind.decode() for chunk in chunks if chunk.kind not in _PNG_NEEDED]
            found += _hidden(content, chunks)
        else:
            return ["a container other than JPEG and PNG"]
    except UnusableImageError as error:
        return [f"a damaged container: {error}"]
    return found + ([f"{len(content) - end:,} bytes after the end marker"] if end < len(content) else [])


# ---- JPEG ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """A marker segment: [start, end) with marker and, after SOS, coded data; its parameters are [body, body_end)."""

    marker: int
    start: int
    body: int
    body_end: int
    end: int


def jpeg_segments(content: bytes) -> tuple[list[Segment], int]:
    """The segments of a JPEG between its start and its end marker, and where the end marker ends.

    Raises UnusableImageError if there is no end marker, or something that is no marker where one must be.
    """
    segments: list[Segment] = []
    position = 2
    while True:
        start = position
        while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] == b"\xff":
            position += 1  # fill bytes
        if position + 2 > len(content):
            raise UnusableImageError("it is cut short: there is no end marker")
        marker = content[position + 1]
        if content[position] != 0xFF or marker < 0xC0 or 0xD0 <= marker <= _SOI:
            raise UnusableImageError(f"it is damaged at byte {position:,}")
        if marker == _EOI:
            return segments, position + 2
        body = position + 4
        body_end = position + 2 + int.from_bytes(content[position + 2 : body], "big")
        if body_end > len(content) or body > len(content):
            raise UnusableImageError("it is cut short: there is no end marker")
        if body_end < body:
            raise UnusableImageError(f"it is damaged at byte {position:,}")
        position = body_end
        if marker == _SOS:
            following = _MARKER.search(content, body_end)
            if following is None:
                raise UnusableImageError("it is cut short: there is no end marker")
            position = following.start()
        segments.append(Segment(marker, start, body, body_end, position))


def jpeg_header(content: bytes) -> Header:
    """Read and check a JPEG without decoding it. Raises UnusableImageError for one that is not whole or has no rule."""
    segments, end = jpeg_segments(content)
    frames = [segment for segment in segments if segment.marker in _FRAMES or segment.marker in _OTHER_FRAMES]
    if len(frames) != 1:
        raise UnusableImageError(f"it is damaged: {len(frames)} frame headers instead of one")
    frame = frames[0]
    if frame.marker not in _FRAMES:
        raise UnusableImageError(f"it is a JPEG of kind SOF{frame.marker - 0xC0}, which is not read")
    body = content[frame.body : frame.body_end]
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise UnusableImageError("its frame header is damaged")
    depth, height, width, components = struct.unpack(">BHHB", body[:6])
    if depth != 8:
        raise UnusableImageError(f"it is a JPEG of {depth} bits per sample, which is not read")
    if components not in (1, 3, 4):
        raise UnusableImageError(f"it is a JPEG of {components} components, for which there is no rule")
    check_size(width, height)
    _check_scans(content, segments, [body[6 + 3 * index] for index in range(components)], frame.marker)
    kept = (content[segment.start : segment.end] for segment in segments if _is_for_decoder(content, segment))
    return Header(
        width=width,
        height=height,
        essence=b"".join((b"\xff\xd8", *kept, b"\xff\xd9")),
        orientation=_jpeg_orientation(content, segments),
        surplus=len(content) - end,
        profile=any(_starts(content, segment, _APP2, b"ICC_PROFILE\0") for segment in segments),
        inner=_inner_pictures(content, segments),
        adobe=any(_starts(content, segment, _APP14, b"Adobe") for segment in segments),
    )


def of_whole_blocks(header: Header) -> bytes:
    """The same JPEG with sides that are multiples of 8: the coded blocks are the same, and they are shown whole."""
    essence = header.essence
    segments, _ = jpeg_segments(essence)
    at = next(segment.body for segment in segments if segment.marker in _FRAMES)
    sides = struct.pack(">HH", -(-header.height // 8) * 8, -(-header.width // 8) * 8)
    return essence[: at + 1] + sides + essence[at + 5 :]


def _check_scans(content: bytes, segments: list[Segment], components: list[int], frame: int) -> None:
    """Every bit of every coefficient must be coded in some scan: a decoder takes what is missing for zero."""
    lowest = {component: [_ABSENT] * 64 for component in components}
    for segment in segments:
        if segment.marker != _SOS:
            continue
        body = content[segment.body : segment.body_end]
        if len(body) < 6 or len(body) != 4 + 2 * body[0] or segment.end == segment.body_end:
            raise UnusableImageError("it is damaged or cut short: a scan is empty")
        first, last, bits = body[-3], body[-2], body[-1] & 15
        if _FRAMES[frame] != "progressive":
            first, last, bits = 0, 63, 0
        for component in body[1:-3:2]:
            if component not in lowest or last > 63:
                raise UnusableImageError("it is damaged: a scan is of a component that it does not have")
            lowest[component][first : last + 1] = [bits] * (last + 1 - first)
    if any(bits for coefficients in lowest.values() for bits in coefficients):
        raise UnusableImageError("it is cut short: scans are missing")


def _starts(content: bytes, segment: Segment, marker: int, prefix: bytes) -> bool:
    return segment.marker == marker and content.startswith(prefix, segment.body, segment.body_end)


def _is_for_decoder(content: bytes, segment: Segment) -> bool:
    if _starts(content, segment, _APP0, b"JFIF\0") or _starts(content, segment, _APP14, b"Adobe"):
        return True  # they tell what the components mean
    return segment.marker in _FRAMES or segment.marker in (_DQT, _DHT, _DRI, _SOS, _DNL)


def _is_needed(content: bytes, segment: Segment) -> bool:
    """As for the decoder, but with no room for more: no thumbnail in JFIF, nothing behind Adobe's twelve bytes."""
    if segment.marker == _APP0:
        return segment.body_end - segment.body == 14 and content[segment.body_end - 2 : segment.body_end] == b"\0\0"
    if segment.marker == _APP14:
        return segment.body_end - segment.body == 12 and _is_for_decoder(content, segment)
    return _is_for_decoder(content, segment)


def _segment_name(content: bytes, segment: Segment) -> str:
    """A name for the report, without anything that the segment says."""
    known = {
        (_APP0, b"JFIF\0"): "JFIF thumbnail", (_APP0, b"JFXX\0"): "JFXX thumbnail", (_APP1, b"Exif\0"): "EXIF",
        (_APP1, b"http://ns.adobe.com/"): "XMP", (_APP2, b"ICC_PROFILE\0"): "ICC profile",
        (_APP2, b"MPF\0"): "further pictures", (0xED, b"Photoshop"): "IPTC", (_APP14, b"Adobe"): "more than colour",
    }  # fmt: skip
    if segment.marker == _COM:
        return "COM (comment)"
    if not _APP0 <= segment.marker <= 0xEF:
        return f"marker {segment.marker:02X}"
    what = [name for (marker, prefix), name in known.items() if _starts(content, segment, marker, prefix)]
    return f"APP{segment.marker - _APP0}" + (f" ({what[0]})" if what else "")


def _jpeg_orientation(content: bytes, segments: list[Segment]) -> int | None:
    exif = (content[s.body + 6 : s.body_end] for s in segments if _starts(content, s, _APP1, b"Exif\0"))
    xmp = (content[s.body : s.body_end] for s in segments if _starts(content, s, _APP1, _XMP))
    return _first_orientation(exif, xmp)


def _inner_pictures(content: bytes, segments: list[Segment]) -> int:
    """How many further pictures the Multi-Picture Format announces: previews. Raises where they are equals."""
    for segment in segments:
        if not _starts(content, segment, _APP2, b"MPF\0"):
            continue
        index = content[segment.body + 4 : segment.body_end]
        entries = next((value for tag, value in _tiff_tags(index) if tag == 0xB002), b"")
        attributes = [int.from_bytes(entries[at : at + 4], _order(index)) for at in range(0, len(entries) - 15, 16)]
        equals = sum(attribute >> 16 & 0xFF == 2 for attribute in attributes)  # panorama, stereo pair, angles
        if equals > 1:
            raise UnusableImageError(f"it holds {equals} pictures instead of one")
        return max(len(attributes) - 1, 0)
    return 0


# ---- EXIF ------------------------------------------------------------------------------------------------------------


def _order(tiff: bytes) -> Literal["little", "big"]:
    return "little" if tiff[:2] == b"II" else "big"


def _tiff_tags(tiff: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, value in the file's byte order) of the first directory. What leads out of the bytes is left out."""
    order = _order(tiff)
    if tiff[:2] not in (b"II", b"MM") or len(tiff) < 8:
        return
    start = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[start : start + 2], order)
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}
    for at in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = (int.from_bytes(tiff[at + i : at + i + 2], order) for i in (0, 2))
        length = sizes.get(kind, 0) * int.from_bytes(tiff[at + 4 : at + 8], order)
        where = at + 8 if length <= 4 else int.from_bytes(tiff[at + 8 : at + 12], order)
        if 0 < length <= len(tiff) - where:
            yield tag, tiff[where : where + length]


def _first_orientation(exif: Iterable[bytes], xmp: Iterable[bytes]) -> int | None:
    """The orientation that EXIF states, else XMP."""
    for block in exif:
        for tag, value in _tiff_tags(block):
            if tag == 0x0112:
                said = int.from_bytes(value[:4], _order(block))
                return said if 1 <= said <= 8 else None
    for block in xmp:
        if found := _XMP_ORIENTATION.search(block):
            return int(found[1])
    return None


# ---- PNG -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """A chunk of a PNG: [start, end) with length and checksum; its data are [start + 8, end - 4)."""

    kind: bytes
    start: int
    end: int


def png_chunks(content: bytes) -> tuple[list[Chunk], int]:
    """The chunks of a PNG up to its IEND, each checksum verified, and where IEND ends.

    Raises UnusableImageError if there is no IEND, or a checksum is wrong.
    """
    chunks = []
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        end = position + 12 + length
        if not kind.isalpha():
            raise UnusableImageError(f"it is damaged at byte {position:,}")
        if end > len(content):
            break
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise UnusableImageError(f"it is damaged: the checksum of a {kind.decode()} chunk is wrong")
        chunks.append(Chunk(kind, position, end))
        position = end
        if kind == b"IEND":
            return chunks, end
    raise UnusableImageError("it is cut short: there is no end marker")


def png_header(content: bytes) -> Header:
    """Read and check a PNG without decoding it. Raises UnusableImageError for one that is not whole or has no rule."""
    chunks, end = png_chunks(content)
    data = {chunk.kind: content[chunk.start + 8 : chunk.end - 4] for chunk in chunks if chunk.kind != b"IDAT"}
    if chunks[0].kind != b"IHDR" or len(data[b"IHDR"]) != 13:
        raise UnusableImageError("it is damaged: a PNG begins with its header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[b"IHDR"])
    if depth not in _PNG_DEPTHS.get(colour, ()) or interlaced > 1:
        raise UnusableImageError("its header says what no PNG has")
    check_size(width, height)
    frames = int.from_bytes(data.get(b"acTL", b"")[:4], "big")
    if frames > 1:
        raise UnusableImageError(f"it holds {frames} pictures instead of one")
    _check_pixel_bytes(content, chunks, _png_bytes(width, height, depth * _PNG_CHANNELS[colour], bool(interlaced)))
    kept = (content[chunk.start : chunk.end] for chunk in chunks if chunk.kind in _PNG_NEEDED)
    return Header(
        width=width,
        height=height,
        essence=b"".join((_PNG_SIGNATURE, *kept)),
        orientation=_png_orientation(content, chunks),
        surplus=len(content) - end,
        profile=b"iCCP" in data,
        depth=depth,
        colours=len(data.get(b"PLTE", b"")) // 3 if colour == 3 else 0,
    )


def _png_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """How many bytes the rows of a PNG take, each with its filter's."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


def _check_pixel_bytes(content: bytes, chunks: list[Chunk], wanted: int) -> None:
    """The compressed data must hold every row: Pillow leaves black what they do not hold."""
    try:
        found, _ = _inflate(content, chunks, wanted)
    except zlib.error:
        raise UnusableImageError("it is damaged: its pixels cannot be decompressed") from None
    if found < wanted:
        raise UnusableImageError(f"it is cut short: {found:,} bytes of pixels instead of {wanted:,}")


def _inflate(content: bytes, chunks: list[Chunk], enough: int) -> tuple[int, int]:
    """(bytes the pixel data inflate to, bytes that lie behind them); stops above `enough`, and keeps none of them."""
    inflated, found, behind = zlib.decompressobj(), 0, 0
    for chunk in chunks:
        if chunk.kind != b"IDAT":
            continue
        piece: bytes = content[chunk.start + 8 : chunk.end - 4]
        if inflated.eof:
            behind += len(piece)
        while not inflated.eof and found <= enough:
            size = len(inflated.decompress(piece, _PIECE))
            found += size
            piece = inflated.unconsumed_tail
            if not piece and size < _PIECE:
                break
    return found, behind + len(inflated.unused_data)


def _png_orientation(content: bytes, chunks: list[Chunk]) -> int | None:
    data = [(chunk.kind, content[chunk.start + 8 : chunk.end - 4]) for chunk in chunks if chunk.kind != b"IDAT"]
    return _first_orientation(
        [block for kind, block in data if kind == b"eXIf"] + [_raw_profile(kind, block) for kind, block in data],
        (block for kind, block in data if kind == b"iTXt" and block.startswith(b"XML:com.adobe.xmp\0")),
    )


def _raw_profile(kind: bytes, data: bytes) -> bytes:
    """The EXIF that ImageMagick wrote in hexadecimal digits, compressed or not, before PNG had a chunk for it."""
    keyword, _, text = data.partition(b"\0")
    if kind not in (b"tEXt", b"zTXt") or keyword not in (b"Raw profile type exif", b"Raw profile type APP1"):
        return b""
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], _PIECE)
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii")).removeprefix(b"Exif\0\0")
    except (ValueError, zlib.error):
        return b""


def _hidden(content: bytes, chunks: list[Chunk]) -> list[str]:
    """What hides within the chunks that pixels need: bytes behind the compressed data, or in the end chunk."""
    in_end = chunks[-1].end - chunks[-1].start - 12
    try:
        _, behind = _inflate(content, chunks, 8 * MAX_PIXELS)
    except zlib.error:
        return ["pixels that cannot be decompressed"]
    found = [f"{behind:,} bytes behind the pixels in IDAT"] if behind else []
    return found + ([f"{in_end:,} bytes in IEND"] if in_end else [])
