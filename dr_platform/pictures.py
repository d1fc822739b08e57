"""Pictures with their labels, and the one way in which they become files that people look at.

Drawn pictures and photographs are of different types, and private photographs of another type than public ones. Whoever
makes a file says who will see it. A private photograph for everyone is refused: by the type checker where it reads the
code, by an error where it does not. What is made says in itself who may see it, and under which licences its images, or
those that its model was trained on, were given.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dr_platform import grid
from dr_platform.errors import DataError
from dr_platform.records import TrainedOn, Visibility, licences_in_words, stricter

Audience: TypeAlias = Literal["everyone", "site"]  # site: those who may see the raw data

_MOST_TEXT = 2000  # characters of what a label says
_THUMBNAIL_QUALITY = 82  # of JPEG


@dataclass(frozen=True, eq=False)
class _Pictures:
    pixels: NDArray[np.uint8]  # [n, H, W, 3]
    licenses: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Generated(_Pictures):
    """Drawn by a model. The labels are those of the images that it was trained on, the stricter one of two."""

    visibility: Visibility


@dataclass(frozen=True, eq=False)
class PublicPhotographs(_Pictures):
    """Photographs that anyone may see."""

    visibility: Literal["public"] = field(default="public", init=False)


@dataclass(frozen=True, eq=False)
class PrivatePhotographs(_Pictures):
    """Photographs that only those may see who may see the raw data."""

    visibility: Literal["proprietary"] = field(default="proprietary", init=False)


Shareable: TypeAlias = Generated | PublicPhotographs


def generated(
    pixels: NDArray[np.uint8], visibility: Visibility, sources: Iterable[TrainedOn | Mapping[str, Any]] = ()
) -> Generated:
    """Pictures, uint8 [n, H, W, 3], drawn by a model that was trained on images of that visibility, from `sources`."""
    known = [TrainedOn.model_validate(source) for source in sources]
    label = stricter(visibility, *(source.visibility for source in known))
    return Generated(pixels, tuple(source.license for source in known), label)


def photographs(
    pixels: NDArray[np.uint8], visibility: Visibility, licenses: Iterable[str] = ()
) -> PublicPhotographs | PrivatePhotographs:
    """Photographs, uint8 [n, H, W, 3], of a collection of that visibility."""
    kind = PublicPhotographs if visibility == "public" else PrivatePhotographs
    return kind(pixels, tuple(licenses))


@overload
def sheet_png(
    pictures: Shareable, audience: Audience, *, columns: int | None = ..., scale: int = ...,
    captions: Sequence[str] | None = ..., said: Mapping[str, str] = ...,
) -> bytes: ...  # fmt: skip
@overload
def sheet_png(
    pictures: PrivatePhotographs, audience: Literal["site"], *, columns: int | None = ..., scale: int = ...,
    captions: Sequence[str] | None = ..., said: Mapping[str, str] = ...,
) -> bytes: ...  # fmt: skip
def sheet_png(
    pictures: Shareable | PrivatePhotographs,
    audience: Audience,
    *,
    columns: int | None = None,
    scale: int = 1,
    captions: Sequence[str] | None = None,
    said: Mapping[str, str] | None = None,
) -> bytes:
    """A contact sheet as PNG; arguments as for `grid.contact_sheet`. said: what else its text chunks say, by keyword.

    Raises DataError for private photographs and everyone.
    """
    pixels = _shown_to(pictures, audience)
    return _png(grid.contact_sheet(pixels, columns, scale=scale, captions=captions), pictures, said or {})


@overload
def single_png(pictures: Shareable, audience: Audience, said: Mapping[str, str] = ...) -> bytes: ...
@overload
def single_png(pictures: PrivatePhotographs, audience: Literal["site"], said: Mapping[str, str] = ...) -> bytes: ...
def single_png(
    pictures: Shareable | PrivatePhotographs, audience: Audience, said: Mapping[str, str] | None = None
) -> bytes:
    """The only one of these pictures as PNG, with its labels. Raises DataError for a private one and everyone."""
    (pixels,) = _shown_to(pictures, audience)
    return _png(Image.fromarray(pixels), pictures, said or {})


@overload
def thumbnail_jpeg(pictures: Shareable, audience: Audience, side: int) -> tuple[tuple[int, int], bytes]: ...
@overload
def thumbnail_jpeg(
    pictures: PrivatePhotographs, audience: Literal["site"], side: int
) -> tuple[tuple[int, int], bytes]: ...
def thumbnail_jpeg(
    pictures: Shareable | PrivatePhotographs, audience: Audience, side: int
) -> tuple[tuple[int, int], bytes]:
    """The only one of these pictures, at most `side` pixels long: its width and height, and a JPEG of nothing else.

    Raises DataError for a private one and everyone.
    """
    (pixels,) = _shown_to(pictures, audience)
    small = Image.fromarray(pixels)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_THUMBNAIL_QUALITY, optimize=True)
    return small.size, stream.getvalue()


def for_everyone(pictures: Shareable | PrivatePhotographs) -> Shareable:
    """The pictures as they are. Raises DataError if they are not for everyone."""
    if not isinstance(pictures, Generated | PublicPhotographs):
        raise DataError(
            f"{len(pictures.pixels)} photographs of a proprietary collection were about to be shown to everyone; "
            f"drawn pictures and public photographs may be. Show them on this site alone, or leave them out."
        )
    return pictures


def _shown_to(pictures: Shareable | PrivatePhotographs, audience: Audience) -> NDArray[np.uint8]:
    """The pixels, if the audience may see them: the gate that every picture passes."""
    return pictures.pixels if audience == "site" else for_everyone(pictures).pixels


def _png(picture: Image.Image, pictures: Shareable | PrivatePhotographs, said: Mapping[str, str]) -> bytes:
    drawn = isinstance(pictures, Generated)
    labels = {
        **said,
        "Synthetic": "yes: drawn by a generative model, shows no person" if drawn else "no: photographs",
        "Visibility": pictures.visibility,
        "Licence": licences_in_words(pictures.licenses),
    }
    text = PngInfo()
    for keyword, value in labels.items():
        # A line of printable text; of what is beyond Latin-1 Pillow makes an international chunk.
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
        text.add_text(keyword.replace("_", "-"), line[:_MOST_TEXT])
    stream = io.BytesIO()
    picture.save(stream, format="PNG", pnginfo=text)
    return stream.getvalue()
