"""Claims about pictures that leave: private photographs are shown to nobody but the site, and labels go along."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dr_platform import pictures
from dr_platform.errors import DataError
from dr_platform.records import TrainedOn

ROOT = Path(__file__).parents[1]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
CLINIC = TrainedOn(collection="clinic", visibility="proprietary", license="proprietary", images=3)
MESSIDOR = TrainedOn(collection="messidor", visibility="public", license="Messidor terms", images=9)

EVERY_WRITER = [pictures.sheet_png, pictures.single_png, lambda shown, to: pictures.thumbnail_jpeg(shown, to, 8)[1]]


def text_of(content: bytes) -> dict[str, str]:
    return dict(Image.open(io.BytesIO(content)).text)


@pytest.mark.parametrize("write", EVERY_WRITER)
def test_private_photographs_are_for_the_site_alone(write):
    private = pictures.photographs(PIXELS[:1], "proprietary")
    with pytest.raises(DataError, match="1 photographs of a proprietary collection were about to be shown to everyone"):
        write(private, "everyone")
    public = pictures.photographs(PIXELS[:1], "public")
    for shown, audience in ((private, "site"), (public, "site"), (public, "everyone")):
        assert Image.open(io.BytesIO(write(shown, audience))).format in ("PNG", "JPEG")


def test_the_type_checker_refuses_private_photographs_for_everyone(tmp_path):
    """Three calls that are right and three that are not, in a file that mypy reads."""
    names = ("sheet_png", "single_png", "thumbnail_jpeg")
    rest = {"thumbnail_jpeg": ", 8"}
    lines = ["from dr_platform import pictures", "def f(p: pictures.PrivatePhotographs) -> None:"]
    lines += [f'    pictures.{name}(p, "site"{rest.get(name, "")})' for name in names]
    lines += [f'    pictures.{name}(p, "everyone"{rest.get(name, "")})' for name in names]
    path = tmp_path / "careless.py"
    path.write_text("\n".join(lines) + "\n")
    command = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", str(path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert sorted({int(line) for line in re.findall(r"careless.py:(\d+): error", done.stdout)}) == [6, 7, 8]


def test_labels_go_along_the_stricter_one_and_every_licence():
    drawn = pictures.generated(PIXELS, "public", [CLINIC, MESSIDOR])
    said = text_of(pictures.sheet_png(drawn, "everyone", said={"Run": "r1"}))
    assert said["Synthetic"].startswith("yes")
    assert (said["Visibility"], said["Licence"], said["Run"]) == ("proprietary", "Messidor terms; proprietary", "r1")
    bare = text_of(pictures.sheet_png(pictures.generated(PIXELS, "public"), "everyone"))
    assert (bare["Visibility"], bare["Licence"]) == ("public", "not stated")
    taken = text_of(pictures.sheet_png(pictures.photographs(PIXELS, "public", ["CC BY 4.0"]), "everyone"))
    assert (taken["Synthetic"], taken["Licence"]) == ("no: photographs", "CC BY 4.0")


def test_a_label_in_another_script_is_kept():
    taken = pictures.photographs(PIXELS[:1], "public", ["利用許諾"])
    assert text_of(pictures.single_png(taken, "everyone"))["Licence"] == "利用許諾"


def test_pixels_of_a_single_picture_are_what_was_given():
    content = pictures.single_png(pictures.generated(PIXELS[:1], "public"), "everyone")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), PIXELS[0])


def test_only_this_module_and_what_fills_the_data_directories_make_picture_files():
    writers = {"dr_platform/pictures.py", "dr_platform/data/pixels.py", "dr_platform/data/phantom.py"}
    sources = [*(ROOT / "dr_platform").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
    pattern = re.compile(r"\.save\([^)]*(PNG|JPEG|format)|imsave|imwrite|to_png|plt\.savefig")
    found = {path.relative_to(ROOT).as_posix() for path in sources if pattern.search(path.read_text())}
    assert found == writers
    grid = re.compile(r"import grid|from dr_platform\.grid")
    assert {path.name for path in sources if grid.search(path.read_text())} == {"pictures.py"}
