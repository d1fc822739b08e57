"""Ophthalmic photographs as DICOM: of all that such a file says of a patient, the pixels and the side are read.

Only attributes that pixels and side depend on are parsed, and no text of the file appears in a note or an error, since
even a damaged attribute can be a name. DICOM PS3.3, A.41 and A.42 (the two kinds of ophthalmic photographs), C.7.6.3
(pixels), C.8.17 (ophthalmic photography). Windows are not applied: they would clip what the camera saw.
"""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dr_platform.data import containers, pixels
from dr_platform.data.containers import UnusableImageError, is_dicom
from dr_platform.data.listing import Eye
from dr_platform.data.pixels import Decoded, Pixels

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = (".dcm", ".dicom", ".ima", ".img", "")

_CLASSES = {"1.2.840.10008.5.1.4.1.1.77.1.5.1": 8, "1.2.840.10008.5.1.4.1.1.77.1.5.2": 16}  # and their bits
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BASELINE_JPEG = "1.2.840.10008.1.2.4.50"
_JPEG_2000_LOSSLESS, _JPEG_2000 = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
# Where syntaxes without a loss leave colours as they are; those of JPEG are RGB once they are decoded.
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5")
_READ = (*_NATIVE, _BASELINE_JPEG, _JPEG_2000_LOSSLESS, _JPEG_2000)
_COLOURS = {
    **dict.fromkeys(_NATIVE, ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL")),
    _BASELINE_JPEG: ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422"),
    _JPEG_2000_LOSSLESS: ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_RCT"),
    _JPEG_2000: ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_RCT", "YBR_ICT"),
}
_ATTRIBUTES = [
    "SOPClassUID", "Modality", "BurnedInAnnotation", "NumberOfFrames", "Laterality", "ImageLaterality", "Rows",
    "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "WindowCenter", "RescaleSlope", "ModalityLUTSequence", "PixelData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip
_META_START = 132
_SIDES: dict[str, Eye] = {"R": "right", "L": "left"}


def decode_dicom(content: bytes, name: str) -> tuple[Decoded, Eye | None]:
    """The pixels of an ophthalmic photograph, and which eye it says it shows.

    `name` is only compared with what the content is. Raises UnusableImageError if it is no DICOM file of one whole
    ophthalmic photograph, if text is burned into it, or if there is no decoder or no rule for its pixels.
    """
    if not is_dicom(content):
        raise UnusableImageError("it is not a DICOM file")
    if _DEFLATED.encode() in _meta(content):  # it would be inflated whole before anything of it could be checked
        raise UnusableImageError("it is DICOM compressed as a whole (deflated), which is not read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom repeats in a warning what an attribute says
            dataset = _read(content)
            notes = _check(dataset)
            samples, notes_of_pixels = _samples(dataset)
            side, note = _laterality(dataset)
            lossless = str(dataset.file_meta.TransferSyntaxUID) in (*_NATIVE, _JPEG_2000_LOSSLESS)
    except UnusableImageError:
        raise
    except Exception:  # damaged input meets exceptions of every kind, whose text may be the patient's
        raise UnusableImageError("it is damaged DICOM, or of a kind that is not read") from None
    if (ending := PurePosixPath(name).suffix.lower()) not in ENDINGS and not ending[1:].isdigit():
        notes.insert(0, f"{pixels.named(ending)} but is DICOM")
    return Decoded(np.ascontiguousarray(samples), lossless, 1, (*notes, *notes_of_pixels, *note)), side


def _meta(content: bytes) -> bytes:
    """The file meta information: its first element is the length of the others (PS3.10, 7.1)."""
    if content[_META_START : _META_START + 8] != b"\x02\0\0\0UL\x04\0":
        raise UnusableImageError("it is damaged: a DICOM file begins with its meta information")
    start = _META_START + 12
    return content[start : start + int.from_bytes(content[start - 4 : start], "little")]


def _read(content: bytes) -> Dataset:
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # as for warnings
    tags: list[Any] = [*_ATTRIBUTES]
    return pydicom.dcmread(io.BytesIO(content), specific_tags=tags)


def _check(dataset: Dataset) -> list[str]:
    """Refuse before decoding what is no photograph of an eye, or not for us to keep. Returns notes."""
    from pydicom.uid import UID

    bits = _CLASSES.get(str(dataset.get("SOPClassUID", "")))
    if bits is None or dataset.get("Modality") != "OP":
        known = UID(str(dataset.get("SOPClassUID", ""))).name
        kind = f" but {known}" if known.endswith("Storage") else ""  # a name of the standard, not of the file
        raise UnusableImageError(f"it is DICOM, not of an ophthalmic photograph (OP){kind}")
    burned = dataset.get("BurnedInAnnotation")
    if burned == "YES":
        raise UnusableImageError("it says that text is burned into its pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UnusableImageError(f"it holds {frames} pictures instead of one")
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax not in _READ:
        known = UID(syntax).name
        raise UnusableImageError(f"it is compressed as {known if known != syntax else 'nobody knows'}: no decoder")
    containers.check_size(int(dataset.Columns), int(dataset.Rows))
    colours = dataset.PhotometricInterpretation
    if colours not in _COLOURS[syntax] or dataset.SamplesPerPixel != (1 if colours.startswith("MONO") else 3):
        raise UnusableImageError("its colours are of a kind for which there is no rule")
    stored = int(dataset.BitsStored)
    if dataset.BitsAllocated != bits or not 8 <= stored <= bits or dataset.HighBit != stored - 1:
        raise UnusableImageError(f"its samples are of {stored} bits in a way for which there is no rule")
    if dataset.PixelRepresentation != 0:
        raise UnusableImageError("its samples are signed numbers, for which there is no rule")
    if "PixelData" not in dataset:
        raise UnusableImageError("it is cut short: there are no pixels")
    notes = [] if burned == "NO" else ["does not say whether text is burned in"]
    if {"WindowCenter", "RescaleSlope", "ModalityLUTSequence"} & set(dataset.dir()):
        notes.append("window and rescaling not applied")
    return notes


def _samples(dataset: Dataset) -> tuple[Pixels, list[str]]:
    """8-bit RGB of the pixel data, and notes."""
    syntax, colours = str(dataset.file_meta.TransferSyntaxUID), str(dataset.PhotometricInterpretation)
    shape = (int(dataset.Rows), int(dataset.Columns))
    stored = int(dataset.BitsStored)
    maximum = 2**stored - 1
    found = _array(dataset) if syntax in _NATIVE else _unpacked(dataset, syntax, colours)
    if stored < int(dataset.BitsAllocated):
        found = found & np.uint16(maximum)  # the bits above may hold an overlay
    if found.shape[:2] != shape:
        raise UnusableImageError("its headers disagree on its size")
    notes = [f"{stored} bits scaled to 8"] if stored > 8 else []
    if colours == "MONOCHROME1":
        found, notes = maximum - found, [*notes, "inverted: MONOCHROME1"]
    rgb = pixels.to_rgb(found, maximum)
    if syntax in _NATIVE and colours == "YBR_FULL":
        rgb = pixels.from_ycbcr(rgb)
    return rgb, notes


def _array(dataset: Dataset) -> NDArray[Any]:
    """[H, W] or [H, W, 3] as stored: grey, RGB or YCbCr."""
    from pydicom.pixels.utils import pixel_array

    array = pixel_array(dataset, raw=True)
    return array.astype(np.uint16 if dataset.BitsAllocated == 16 else np.uint8, copy=False)


def _unpacked(dataset: Dataset, syntax: str, colours: str) -> NDArray[Any]:
    """The samples of a compressed stream, which must be whole: pydicom's decoders fill in what is missing.

    A JPEG says itself how its colours are coded, unless the file knows better and calls them RGB.
    """
    from pydicom.encaps import generate_frames

    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    stream = frames[0] if len(frames) == 1 else b""
    if syntax == _BASELINE_JPEG:
        if containers.kind_of(stream) != "JPEG":
            raise UnusableImageError("its JPEG is none")
        # Without EXIF: in DICOM, rows and columns are as the file says, whatever the camera wrote into the stream.
        decoded = pixels.decode(containers.jpeg_header(stream).essence, ".jpg").pixels
        if colours != "RGB":
            return decoded[:, :, 0] if colours.startswith("MONO") else decoded
    elif not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise UnusableImageError("it is cut short: its JPEG 2000 has no end marker")
    return _array(dataset)


def _laterality(dataset: Dataset) -> tuple[Eye | None, list[str]]:
    """ImageLaterality, else the Laterality of the series."""
    said = dataset.get("ImageLaterality") or dataset.get("Laterality") or ""
    return _SIDES.get(said), [] if said in _SIDES else ["does not say which eye it shows"]
