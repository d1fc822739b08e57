"""From the bytes of a photograph to its pixels, and back: nothing lost that was seen, nothing kept that was written.

A file is checked from its header first (`containers`), then its decoder gets only what pixels need, then every kind of
pixel becomes 8-bit RGB by a rule of its own; one without a rule is refused. Pillow has no 16-bit colour: it keeps the
high byte of each sample. So such files are decoded twice, once as if the byte order were the other one, and the two
halves are put together and scaled, not clipped. Colour profiles are not applied.

| found                            | becomes                                                            |
| -------------------------------- | ------------------------------------------------------------------ |
| 1, 2, 4, 8 bits of grey          | grey from 0 to 255, thrice; white-is-zero is inverted              |
| 12, 16 bits                      | value / maximum * 255, rounded                                     |
| palette                          | its colours                                                        |
| alpha, or a transparent colour   | laid on black: transparent is what lies outside the field of view  |
| CMYK, YCCK                       | (255 - ink)(255 - black) / 255; inverted first where Adobe says so |
| YCbCr                            | RGB by BT.601, full range, as JFIF has it                          |
| float, signed, 32 bits, Lab      | refused                                                            |
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from dr_platform.data import containers
from dr_platform.data.containers import MAX_PIXELS as MAX_PIXELS
from dr_platform.data.containers import MAX_SIDE as MAX_SIDE
from dr_platform.data.containers import UnusableImageError as UnusableImageError
from dr_platform.data.containers import leftovers as leftovers

MAX_FILE_BYTES = 640 * 2**20  # 64 million pixels of four 16-bit samples, and some metadata
JPEG_QUALITY = 95
ENDINGS: dict[containers.Kind, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "TIFF": (".tif", ".tiff"),
}  # fmt: skip

_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_SAMPLE_FORMAT, _TILE_WIDTH, _TILE_LENGTH, _ORIENTATION, _PHOTOMETRIC, _BITS, _PLANAR = (
    339,
    322,
    323,
    274,
    262,
    258,
    284,
)
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles

_FILLED = "it is cut short: its end is the grey that decoders fill in"

Pixels = NDArray[np.uint8]
Samples = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Decoded:
    """An image's pixels and what happened on the way to them."""

    pixels: Pixels  # [H, W, 3], upright
    lossless: bool  # the file kept every pixel
    orientation: int  # of EXIF, 1-8, applied already
    notes: tuple[str, ...]  # what a person should know; holds no text of the file


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises UnusableImageError for anything else, and waits for nothing.
    Symbolic links are followed: whoever calls knows where they may lead.
    """
    try:
        _check_regular(path.stat(), limit)
        # What is no regular file by now, being swapped meanwhile, must not be waited for either.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            _check_regular(os.fstat(stream.fileno()), limit)
            return stream.read(limit)
    except FileNotFoundError:
        raise UnusableImageError("there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnusableImageError(f"it cannot be read ({said})") from None


def _check_regular(found: os.stat_result, limit: int) -> None:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(found.st_mode):
        raise UnusableImageError(f"it is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file")
    if found.st_size > limit:
        raise UnusableImageError(f"it has {found.st_size:,} bytes, more than {limit:,}")


def decode(content: bytes, name: str, draft: int | None = None) -> Decoded:
    """The upright pixels of a JPEG, PNG or TIFF. `name` is only compared with what the content is.

    draft: the shorter side that is enough. A JPEG much larger is decoded at 1/2, 1/4 or 1/8 of its size, no smaller.
    Raises UnusableImageError if it is not one whole picture of at most 64 Mpx, of a kind of pixels that has a rule.
    """
    kind = containers.kind_of(content)
    ending = PurePosixPath(name).suffix.lower()
    notes = [] if ending in ENDINGS[kind] else [f"{named(ending)} but is a {kind}"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow only warns of what is refused here
            if kind == "TIFF":
                with _muted():
                    pixels, lossless, orientation = _tiff(content, notes)
            else:
                pixels, orientation = _jpeg(content, draft, notes) if kind == "JPEG" else _png(content, notes)
                pixels, lossless = upright(pixels, orientation), kind == "PNG"
    except UnusableImageError:
        raise
    except Image.DecompressionBombError:  # a TIFF, whose size Pillow looks at before we do
        raise UnusableImageError(f"it has more than {MAX_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        raise UnusableImageError(f"it is a damaged {kind}, or one whose pixels have no rule") from None
    except Exception as error:  # decoders meet damaged input with exceptions of every kind
        said = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImageError(f"it cannot be decoded ({said})") from None
    return Decoded(np.ascontiguousarray(pixels), lossless, orientation, tuple(notes))


def encode(pixels: Pixels, lossless: bool) -> bytes:
    """A PNG, or JPEG of quality 95 without chroma subsampling, of nothing but [H, W, 3]; the same bytes each time."""
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if lossless:
        image.save(stream, "PNG")
    else:
        image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """[H, W, 3] turned and mirrored as EXIF's orientation, 1-8, asks for."""
    if orientation in (5, 6, 7, 8):  # the first row of the file is a side of the picture
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def to_rgb(samples: Samples, maximum: int) -> Pixels:
    """8-bit RGB of samples from 0 to `maximum`: [H, W] of grey; [H, W, C] of grey and alpha, RGB, or RGB and alpha."""
    scaled = to_8_bits(samples, maximum)
    if scaled.ndim == 2:
        scaled = scaled[:, :, None]
    if scaled.shape[2] in (2, 4):
        scaled = _on_black(scaled[:, :, :-1], scaled[:, :, -1])
    return scaled if scaled.shape[2] == 3 else np.repeat(scaled, 3, axis=2)


def to_8_bits(samples: Samples, maximum: int) -> Pixels:
    """Samples from 0 to `maximum` (at most 65,535) spread over 0 to 255, rounded to the nearest."""
    if maximum == 255:
        return samples.astype(np.uint8, copy=False)
    # A table of at most 65,536 entries is faster than arithmetic on each sample.
    table = ((2 * 255 * np.arange(maximum + 1, dtype=np.int64) + maximum) // (2 * maximum)).astype(np.uint8)
    return table[np.minimum(samples, maximum)]


def _on_black(colour: Pixels, alpha: Pixels) -> Pixels:
    if alpha.min() == 255:
        return colour
    return ((colour.astype(np.uint16) * alpha[:, :, None] + 127) // 255).astype(np.uint8)


def _from_inks(inks: Pixels) -> Pixels:
    """RGB of CMYK, where 255 is full ink."""
    light = 255 - inks.astype(np.uint16)
    return ((light[:, :, :3] * light[:, :, 3:] + 127) // 255).astype(np.uint8)


def from_ycbcr(samples: Pixels) -> Pixels:
    """RGB of [H, W, 3] YCbCr, BT.601 over the full range (ITU-T T.871; YBR_FULL of DICOM), rounded to the nearest."""
    light = samples[:, :, 0].astype(np.float32)
    blue, red = (samples[:, :, band].astype(np.float32) - 128 for band in (1, 2))
    rgb = np.stack([light + 1.402 * red, light - 0.344136 * blue - 0.714136 * red, light + 1.772 * blue], axis=2)
    return np.rint(rgb.clip(0, 255)).astype(np.uint8)


def named(ending: str) -> str:
    """The ending may be the tail of a person's name, so it is repeated only where it looks like one of a format."""
    if not ending:
        return "named without an ending"
    return f"named {ending}" if re.fullmatch(r"\.[a-z0-9]{1,4}", ending) else "named otherwise"


@contextmanager
def _muted() -> Iterator[None]:
    """libtiff writes its complaints straight to the error stream; whoever reads that wants one line, not twenty."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _note_container(header: containers.Header, notes: list[str]) -> None:
    if header.surplus:
        notes.append(f"{header.surplus:,} bytes after the end marker dropped")
    if header.inner:
        notes.append(f"{header.inner} inner pictures dropped")
    if header.profile:
        notes.append("colour profile dropped, not applied")


# ---- JPEG ------------------------------------------------------------------------------------------------------------


def _jpeg(content: bytes, draft: int | None, notes: list[str]) -> tuple[Pixels, int]:
    header = containers.jpeg_header(content)
    _note_container(header, notes)
    with Image.open(io.BytesIO(header.essence), formats=("JPEG",)) as image:
        if image.size != (header.width, header.height):
            raise UnusableImageError("its headers disagree on its size")
        if draft is not None and min(image.size) >= 2 * draft:
            image.draft(None, (draft, draft))
            notes.append(f"decoded at 1/{round(header.width / image.width)} of its size")
        image.load()
        samples = np.asarray(image)
    if _may_be_filled(samples) and _is_filled(header):
        raise UnusableImageError(_FILLED)
    if image.mode == "CMYK":
        # Pillow takes Adobe's inversion for granted. Without Adobe's segment, T.81 leaves inks as they are.
        notes.append("four inks (CMYK) made RGB" + ("" if header.adobe else ", not inverted: no Adobe segment"))
        return _from_inks(samples if header.adobe else 255 - samples), header.orientation or 1
    return to_rgb(samples, 255), header.orientation or 1


def _may_be_filled(samples: Samples) -> bool:
    """Whether the last pixel is about the grey that libjpeg puts where coded data end too early.

    It warns of that, but Pillow does not hear it. A picture that is grey also where it begins is grey by itself.
    """
    last_is_grey = (np.abs(samples[-1, -1].astype(np.int16) - 128) <= 64).all()
    return bool(last_is_grey and not (samples[:8, :8] == 128).all())


def _is_filled(header: containers.Header) -> bool:
    """Whether the last block of 8 x 8 is that grey. It may reach over the margin, so the margin is moved to show it.

    Left out is where upsampled chroma mixes with the blocks before.
    """
    with Image.open(io.BytesIO(containers.of_whole_blocks(header)), formats=("JPEG",)) as image:
        return bool((np.asarray(image)[-6:, -6:] == 128).all())


# ---- PNG -------------------------------------------------------------------------------------------------------------


def _png(content: bytes, notes: list[str]) -> tuple[Pixels, int]:
    header = containers.png_header(content)
    _note_container(header, notes)
    image = _load(header.essence, "PNG")
    transparent = image.info.get("transparency")
    if image.mode == "P":
        if int(np.asarray(image).max()) >= header.colours:
            raise UnusableImageError("it is damaged: a pixel's colour is not in its palette")
        samples, maximum = np.asarray(image.convert("RGB" if transparent is None else "RGBA")), 255
    elif header.depth == 16 and image.mode != "I;16":
        samples, maximum = _png_16_bits(header.essence), 65535
    else:
        maximum = 65535 if header.depth == 16 else 255
        samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    if transparent is not None and image.mode != "P":
        # Pillow has spread the pixels of 2 and 4 bits over 0 to 255 by now; of 1 bit, the transparent value as well.
        scale = 255 // (2**header.depth - 1) if header.depth in (2, 4) else 1
        samples = _with_alpha(samples, np.atleast_1d(np.asarray(transparent)) * scale, maximum)
    if maximum == 65535:
        notes.append("16 bits scaled to 8")
    return _noting_alpha(samples, maximum, notes), header.orientation or 1


def _with_alpha(samples: Samples, colour: NDArray[np.int64], maximum: int) -> Samples:
    """Samples with an alpha that is 0 where they have the transparent colour, given as they are."""
    bands = samples.reshape(*samples.shape[:2], -1)
    alpha = np.where((bands == colour).all(axis=2), 0, maximum).astype(samples.dtype)
    return np.concatenate([bands, alpha[:, :, None]], axis=2)


def _noting_alpha(samples: Samples, maximum: int, notes: list[str]) -> Pixels:
    if samples.ndim == 3 and samples.shape[2] in (2, 4) and int(samples[:, :, -1].min()) < maximum:
        notes.append("alpha laid on black")
    return to_rgb(samples, maximum)


def _load(content: bytes, kind: containers.Kind, mode: str | None = None, raw: str | None = None) -> Image.Image:
    """Decode with Pillow; with `raw`, its rows are unpacked as if they were of that raw mode, into `mode`."""
    with Image.open(io.BytesIO(content), formats=(kind,)) as image:
        if mode is not None and raw is not None and isinstance(image, ImageFile.ImageFile):
            image._mode = mode
            image.tile = [tile._replace(args=_with_raw(tile.args, raw)) for tile in image.tile]
        image.load()
        return image


def _raw_mode(image: ImageFile.ImageFile) -> str:
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def _with_raw(args: object, raw: str) -> str | tuple[object, ...]:
    return (raw, *args[1:]) if isinstance(args, tuple) else raw


def _png_16_bits(content: bytes) -> NDArray[np.uint16]:
    """[H, W, 2, 3 or 4]: a PNG's samples are big-endian, so the two raw modes give their high and their low bytes."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        raw = _raw_mode(image)
    if raw == "LA;16B":  # grey and alpha are four bytes, which are taken as they come
        four = np.asarray(_load(content, "PNG", "RGBA", "RGBA"))
        return _joined(four[:, :, 0::2], four[:, :, 1::2])
    mode = raw.removesuffix(";16B")
    return _joined(_load(content, "PNG", mode, f"{mode};16B"), _load(content, "PNG", mode, f"{mode};16L"))


def _joined(high: Image.Image | Pixels, low: Image.Image | Pixels) -> NDArray[np.uint16]:
    return np.asarray(high).astype(np.uint16) * np.uint16(256) + np.asarray(low).astype(np.uint16)


# ---- TIFF ------------------------------------------------------------------------------------------------------------


def _tiff(content: bytes, notes: list[str]) -> tuple[Pixels, bool, int]:
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        _check_tiff(image, len(content))
        tags, mode = image.tag_v2, image.mode
        lossy = image.info.get("compression") in _LOSSY_TIFF
        raw = _raw_mode(image)
        bits = max(np.atleast_1d(tags.get(_BITS, 1)))
        orientation = image.getexif().get(_ORIENTATION, 1)  # or that of XMP: the one that Pillow is going to apply
        if ";16" not in raw or mode.startswith("I"):
            image.load()  # Pillow turns a TIFF upright as it loads it
    if bits in (12, 16):
        notes.append(f"{bits} bits scaled to 8")
    if 34675 in tags:
        notes.append("colour profile dropped, not applied")
    if mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        maximum = 2 ** int(bits) - 1
        pixels = to_rgb(maximum - grey if tags.get(_PHOTOMETRIC) == 0 else grey, maximum)
    elif ";16" in raw:
        pixels = _tiff_16_bits(content, raw, notes)
    else:
        pixels = _tiff_8_bits(image, notes)
    if lossy and (pixels[-6:, -6:] == 128).all() and not (pixels[:6, :6] == 128).all():
        raise UnusableImageError(_FILLED)
    return pixels, not lossy, orientation if orientation in range(1, 9) else 1


def _check_tiff(image: TiffImagePlugin.TiffImageFile, size: int) -> None:
    """Refuse before decoding what is too large, not whole, more than one picture, or would be misread."""
    tags = image.tag_v2
    containers.check_size(*image.size)
    if image.n_frames > 1:
        raise UnusableImageError(f"it holds {image.n_frames} pictures instead of one")
    if tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_LENGTH, 1) > containers.MAX_PIXELS:
        raise UnusableImageError(f"its tiles are of more than {containers.MAX_PIXELS // 10**6} million pixels")
    for offsets, lengths in _PLACES:
        places = zip(np.atleast_1d(tags.get(offsets, 0)), np.atleast_1d(tags.get(lengths, 0)), strict=False)
        if any(int(start) + int(length) > size for start, length in places):
            raise UnusableImageError("it is cut short: its pixels lie behind its end")
    formats = {2: "signed", 3: "floating point"}
    for sample in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)):
        if sample != 1:
            kind = formats.get(int(sample), "unknown")
            raise UnusableImageError(f"its samples are {kind} numbers, for which there is no rule")
    bits = int(max(np.atleast_1d(tags.get(_BITS, 1))))
    if bits > 16 or (bits > 8 and tags.get(_PLANAR, 1) != 1):  # Pillow would read separate planes as 8-bit ones
        layout = "in separate planes" if bits <= 16 else "each"
        raise UnusableImageError(f"its samples are of {bits} bits {layout}, for which there is no rule")


def _tiff_8_bits(image: Image.Image, notes: list[str]) -> Pixels:
    if image.mode == "CMYK":
        notes.append("four inks (CMYK) made RGB")
        return _from_inks(np.asarray(image))
    if image.mode == "YCbCr":
        return from_ycbcr(np.asarray(image))
    if image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    elif image.mode == "PA":
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnusableImageError(f"its pixels are of mode {image.mode}, for which there is no rule")
    return _noting_alpha(np.asarray(image), 255, notes)


def _tiff_16_bits(content: bytes, raw: str, notes: list[str]) -> Pixels:
    """libtiff gives samples in the order of this machine (N), an uncompressed file in its own (L or B)."""
    bands, _, order = raw.partition(";16")
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    mode = {"RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA", "RGBa": "RGBA", "CMYK": "CMYK"}.get(bands)
    if mode is None:
        raise UnusableImageError(f"its pixels are of mode {raw}, for which there is no rule")
    packed = bands if bands == "RGBX" else mode  # colour that alpha is in already (RGBa) is read as it is
    high, low = (_load(content, "TIFF", mode, f"{packed};16{order}") for order in ("BL" if big else "LB"))
    samples = _joined(high, low)
    if mode == "CMYK":
        notes.append("four inks (CMYK) made RGB")
        return _from_inks(to_8_bits(samples, 65535))
    if bands == "RGBa":
        if int(samples[:, :, 3].min()) < 65535:
            notes.append("alpha laid on black")
        samples = samples[:, :, :3]
    return _noting_alpha(samples, 65535, notes)
