"""Ophthalmic photographs as DICOM: pixels and side come out, and nothing else that the file says."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from image_bytes import exif, flipped, picture, with_segment, written
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    OphthalmicTomographyImageStorage,
    RLELossless,
)

from dr_platform.data.dicom import decode_dicom
from dr_platform.data.pixels import UnusableImageError, encode, leftovers

RGB = picture(40, 60)
GREY = RGB[:, :, 0]
CANARY = "DOE^JANE"


def dicom(
    samples: np.ndarray, syntax: str = ExplicitVRLittleEndian, stream: bytes = b"", **attributes: object
) -> bytes:
    """A file of [H, W] or [H, W, 3] samples, full of a patient; an attribute of None is left out."""
    colour, wide = samples.ndim == 3, samples.dtype.itemsize == 2
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    said: dict[str, object] = {
        "SOPClassUID": OphthalmicPhotography16BitImageStorage if wide else OphthalmicPhotography8BitImageStorage,
        "SOPInstanceUID": "1.2.3.4",
        "Modality": "OP",
        "PatientName": CANARY,
        "PatientID": CANARY,
        "PatientBirthDate": "19500101",
        "ImageComments": CANARY,
        "BurnedInAnnotation": "NO",
        "ImageLaterality": "R",
        "Rows": samples.shape[0],
        "Columns": samples.shape[1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "BitsAllocated": 16 if wide else 8,
        "BitsStored": 16 if wide else 8,
        "PixelRepresentation": 0,
        **attributes,
    }
    said.setdefault("HighBit", int(said["BitsStored"]) - 1)  # type: ignore[call-overload]
    for keyword, value in said.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = said["SOPClassUID"]
    big = syntax == ExplicitVRBigEndian
    if stream:
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
    elif said.get("PixelData") is None and "PixelData" not in attributes:
        dataset.PixelData = samples.astype(f"{'>' if big else '<'}u{samples.dtype.itemsize}").tobytes()
        dataset["PixelData"].VR = "OW" if wide else "OB"
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless)
    dataset.preamble = CANARY.encode().ljust(128, b"\0")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


# ---- what goes right -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]
)  # fmt: skip
@pytest.mark.parametrize("samples", [RGB, GREY, GREY.astype(np.uint16) * 257], ids=["rgb", "grey", "grey16"])
def test_every_pixel_comes_out_and_nothing_else(syntax: str, samples: np.ndarray) -> None:
    content = dicom(samples, syntax)
    assert CANARY.encode() in content
    decoded, side = decode_dicom(content, "1.2.840.99.dcm")
    wanted = RGB if samples.ndim == 3 else np.repeat(GREY[:, :, None], 3, axis=2)
    assert np.array_equal(decoded.pixels, wanted)
    assert (decoded.lossless, decoded.orientation, side) == (True, 1, "right")
    assert decoded.notes == (("16 bits scaled to 8",) if samples.dtype == np.uint16 else ())
    again = encode(decoded.pixels, decoded.lossless)
    assert leftovers(again) == []
    assert CANARY.encode() not in again
    assert CANARY not in repr(decoded)


@pytest.mark.parametrize("stored", [10, 12, 16])
def test_stored_bits_are_scaled_over_the_whole_range(stored: int) -> None:
    ramp = np.arange(2**stored, dtype=np.uint16).reshape(-1, 32)
    noise = np.uint16(0) if stored == 16 else np.uint16(1 << 15)  # old files kept overlays in the bits above
    decoded, _ = decode_dicom(dicom(ramp | noise, BitsStored=stored), "a.dcm")
    wanted = np.rint(ramp * (255 / (2**stored - 1)))
    assert np.array_equal(decoded.pixels[:, :, 1], wanted)
    assert np.unique(decoded.pixels).size == 256
    assert decoded.notes == (f"{stored} bits scaled to 8",)


def test_monochrome1_is_inverted() -> None:
    decoded, _ = decode_dicom(dicom(255 - GREY, PhotometricInterpretation="MONOCHROME1"), "a.dcm")
    assert np.array_equal(decoded.pixels[:, :, 2], GREY)
    assert decoded.notes == ("inverted: MONOCHROME1",)


def test_planes_and_ybr_full_become_rgb() -> None:
    planes = dicom(RGB, PlanarConfiguration=1, PixelData=RGB.transpose(2, 0, 1).tobytes())
    assert np.array_equal(decode_dicom(planes, "a.dcm")[0].pixels, RGB)
    matrix = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    ycbcr = np.rint(RGB @ np.transpose(matrix) + [0, 128, 128]).astype(np.uint8)
    decoded, _ = decode_dicom(dicom(ycbcr, PhotometricInterpretation="YBR_FULL"), "a.dcm")
    # Y and Cb are rounded by a half each, blue by (1 + 1.772) / 2 for it, and once more by a half: less than 2.
    assert np.abs(decoded.pixels.astype(int) - RGB).max() < 2


def test_sixteen_bit_colour_is_scaled() -> None:
    decoded, _ = decode_dicom(dicom(RGB.astype(np.uint16) * 257), "a.dcm")
    assert np.array_equal(decoded.pixels, RGB)


JPEG = written(RGB, "JPEG", quality=95, subsampling=1)


def test_a_jpeg_inside_is_decoded_as_the_jpeg_it_is() -> None:
    content = dicom(RGB, JPEGBaseline8Bit, JPEG, PhotometricInterpretation="YBR_FULL_422")
    decoded, _ = decode_dicom(content, "a.dcm")
    assert not decoded.lossless
    assert np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(JPEG))))
    turned = with_segment(JPEG, 0xE1, b"Exif\0\0" + exif(3))
    content = dicom(RGB, JPEGBaseline8Bit, turned, PhotometricInterpretation="YBR_FULL_422")
    assert np.array_equal(decode_dicom(content, "a.dcm")[0].pixels, decoded.pixels)
    grey = written(GREY, "JPEG", quality=95)
    decoded, _ = decode_dicom(dicom(GREY, JPEGBaseline8Bit, grey), "a.dcm")
    assert np.array_equal(decoded.pixels[:, :, 0], np.asarray(Image.open(io.BytesIO(grey))))


def test_a_lossless_jpeg_2000_keeps_every_pixel() -> None:
    stream = written(RGB, "JPEG2000", irreversible=False, no_jp2=True, mct=1)
    for cut in (0, len(stream) // 2):
        content = dicom(RGB, JPEG2000Lossless, stream[: len(stream) - cut], PhotometricInterpretation="YBR_RCT")
        if cut:
            with pytest.raises(UnusableImageError, match="no end marker"):
                decode_dicom(content, "a.dcm")
        else:
            decoded, _ = decode_dicom(content, "a.dcm")
            assert np.array_equal(decoded.pixels, RGB)
            assert decoded.lossless


@pytest.mark.parametrize(
    ("image", "series", "side"),
    [("R", None, "right"), ("L", None, "left"), (None, "R", "right"), ("L", "R", "left"), ("B", None, None),
     (None, None, None)],
)  # fmt: skip
def test_the_side_of_the_image_precedes_that_of_the_series(
    image: str | None, series: str | None, side: str | None
) -> None:
    decoded, found = decode_dicom(dicom(GREY, ImageLaterality=image, Laterality=series), "a.dcm")
    assert found == side
    assert decoded.notes == (() if side else ("does not say which eye it shows",))


@pytest.mark.parametrize(
    ("attributes", "name", "note"),
    [
        ({"BurnedInAnnotation": None}, "a.dcm", "does not say whether text is burned in"),
        ({"BurnedInAnnotation": "MAYBE"}, "a.dcm", "does not say whether text is burned in"),
        ({"WindowCenter": 100, "WindowWidth": 50}, "a.dcm", "window and rescaling not applied"),
        ({}, "a.jpg", "named .jpg but is DICOM"),
    ],
)
def test_what_a_person_should_know_is_noted(attributes: dict[str, object], name: str, note: str) -> None:
    decoded, _ = decode_dicom(dicom(GREY, **attributes), name)
    assert decoded.notes == (note,)
    assert np.array_equal(decoded.pixels[:, :, 0], GREY)


# ---- what cannot be used ---------------------------------------------------------------------------------------------

WHOLE = dicom(RGB)
WIDE = GREY.astype(np.uint16)
UNUSABLE: dict[str, tuple[bytes, str]] = {
    "a jpeg": (JPEG, "not a DICOM file"),
    "no meta information": (bytes(128) + b"DICM" + bytes(99), "begins with its meta information"),
    "another class": (dicom(GREY, SOPClassUID=CTImageStorage), r"ophthalmic photograph \(OP\) but CT Image Storage"),
    "tomography": (dicom(GREY, SOPClassUID=OphthalmicTomographyImageStorage, Modality="OPT"), "not of an ophthalmic"),
    "a class of its own": (dicom(GREY, SOPClassUID="1.2.3.4.5"), r"ophthalmic photograph \(OP\)$"),
    "another modality": (dicom(GREY, Modality="XC"), "not of an ophthalmic photograph"),
    "burned in": (dicom(GREY, BurnedInAnnotation="YES"), "text is burned into its pixels"),
    "frames": (dicom(GREY, NumberOfFrames=7), "holds 7 pictures instead of one"),
    "deflated": (dicom(GREY, DeflatedExplicitVRLittleEndian), "deflated"),
    "jpeg-ls": (dicom(GREY, JPEGLSLossless, b"\xff\xd8"), "JPEG-LS Lossless Image Compression: no decoder"),
    "lossless jpeg": (dicom(GREY, JPEGLosslessSV1, b"\xff\xd8"), "JPEG Lossless.*: no decoder"),
    "a syntax of its own": (
        dicom(GREY, JPEGLSLossless, b"\xff\xd8").replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.99"),
        "nobody knows: no decoder"),
    "a bomb": (dicom(GREY, Rows=60_000, Columns=60_000), "60000 x 60000 pixels are more than 64 million"),
    "a palette": (dicom(GREY, PhotometricInterpretation="PALETTE COLOR"), "colours are of a kind"),
    "grey of three": (dicom(RGB, PhotometricInterpretation="MONOCHROME2"), "colours are of a kind"),
    "half chroma": (dicom(RGB, PhotometricInterpretation="YBR_FULL_422"), "colours are of a kind"),
    "16 bits as 8": (dicom(WIDE, SOPClassUID=OphthalmicPhotography8BitImageStorage), "of 16 bits in a way"),
    "shifted bits": (dicom(WIDE, BitsStored=12, HighBit=15), "of 12 bits in a way"),
    "signed": (dicom(WIDE, PixelRepresentation=1), "signed numbers"),
    "no pixels": (dicom(GREY, PixelData=None), "there are no pixels"),
    "few pixels": (dicom(GREY, Rows=41), "damaged DICOM"),
    "no rows": (dicom(GREY, Rows=None), "damaged DICOM"),
    "cut jpeg": (dicom(RGB, JPEGBaseline8Bit, JPEG[:-400], PhotometricInterpretation="YBR_FULL_422"), "cut short"),
    "filled jpeg": (
        dicom(RGB, JPEGBaseline8Bit, JPEG[:-400] + b"\xff\xd9", PhotometricInterpretation="YBR_FULL_422"), "fill in",
    ),
    "png as jpeg": (
        dicom(RGB, JPEGBaseline8Bit, written(RGB, "PNG"), PhotometricInterpretation="YBR_FULL_422"), "its JPEG is none",
    ),
    "jpeg of another size": (
        dicom(RGB[:8], JPEGBaseline8Bit, JPEG, PhotometricInterpretation="YBR_FULL_422"), "headers disagree",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_refused_in_few_words(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, reason = UNUSABLE[case]
    with pytest.raises(UnusableImageError, match=reason) as caught:
        decode_dicom(content, "a.dcm")
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)
    assert len(str(caught.value)) < 140
    assert capfd.readouterr() == ("", "")


def test_a_file_cut_anywhere_is_refused() -> None:
    for part in range(64):
        with pytest.raises(UnusableImageError):
            decode_dicom(WHOLE[: len(WHOLE) * part // 64], "a.dcm")


def test_damage_ends_in_pixels_or_a_reason_and_never_repeats_the_patient(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    decodable, said = 0, []
    header = len(WHOLE) - RGB.size
    for position in range(132, header):
        try:
            decoded, _ = decode_dicom(flipped(WHOLE, position, position % 8), "a.dcm")
            assert decoded.pixels.dtype == np.uint8
            decodable += 1
        except UnusableImageError as error:
            said.append(str(error))
    # Names and dates may change at will; what pixels depend on may not.
    assert decodable > 50
    assert len(said) > 50
    assert not any(CANARY[:3] in text for text in said)
    assert capfd.readouterr() == ("", "")
    assert CANARY not in caplog.text


def test_importing_the_module_spares_pydicom() -> None:
    script = "import sys, dr_platform.data.dicom; print('pydicom' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
