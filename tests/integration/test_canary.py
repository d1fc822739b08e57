"""Canaries: a hospital's images carry marks through the whole road, and no mark may come out where others can look.

Marked are pixels, names of files, EXIF and JPEG comments, patients, sources and licences. Searched are all bytes of
the public remote, of the tracking store, of what git carries, of logs, console and exports, also within PNG, zip, npz,
Parquet, safetensors and SQLite; and every picture found for the pixels' mark. The same search must find planted marks.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.signal import fftconvolve
from small_project import ROOT, environment, make_project, run

from dr_platform import grid, road
from dr_platform.config import load_params
from dr_platform.data.fundus import standardise
from dr_platform.data.loader import select_images

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("canary")]

MAGIC = "xq7canary"  # in every mark that is text
IMAGES, SIDE, RESOLUTION = 16, 128, 16
COLLECTION = "xq7hidden"  # the very name of the collection stays out of what is public
MODEL = "fundus-dr1-stylegan3"
# Where two pictures of one mark correlate by 0.9, unrelated ones of 25 cells do so once in 10^8.
ALIKE = 0.9


# -- the marks ---------------------------------------------------------------------------------------------------------


def marked_photograph(number: int) -> Image.Image:
    """A disc of bright and dark cells, an eighth of its width each, with noise and a brightness of its own."""
    rng = np.random.default_rng(number)
    cells = np.random.default_rng(4711).permutation(np.repeat([0.45, 1.0], 32)).reshape(8, 8)
    pattern = np.kron(cells, np.ones((SIDE // 8, SIDE // 8)))
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    disc = np.hypot(y, x) < 0.48 * SIDE
    colour = np.array([210.0, 130.0, 70.0]) * rng.uniform(0.85, 1.0)
    pixels = (pattern * disc)[..., None] * colour + rng.normal(0, 3, (SIDE, SIDE, 3)) * disc[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_delivery(directory: Path) -> None:
    """Photographs with every kind of mark, their table, and one file that cannot be used."""
    directory.mkdir()
    with open(directory / "labels.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "grade", "patient_id", "source", "license"])
        for number in range(IMAGES):
            file = f"{MAGIC}-file-{number:02}.jpg"
            exif = Image.Exif()
            exif[0x010E] = f"{MAGIC}-exif-{number:02}"
            comment = f"{MAGIC}-comment-{number:02}".encode()
            marked_photograph(number).save(directory / file, quality=95, exif=exif, comment=comment)
            names = (f"{MAGIC}-{kind}-{number // 2:02}" for kind in ("patient", "source", "licence"))
            table.writerow([file, 1, *names])
        table.writerow([f"{MAGIC}-broken.jpg", 1, f"{MAGIC}-patient-99", "", ""])
    (directory / f"{MAGIC}-broken.jpg").write_bytes(f"{MAGIC} is no picture".encode())


# -- the search --------------------------------------------------------------------------------------------------------


def spellings(text: str) -> list[bytes]:
    """A text as it may stand in a file: plain, as UTF-16, as hexadecimal digits, and within a base64 text."""
    plain = text.encode()
    shifted = [base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4] for shift in range(3)]
    return [plain, text.encode("utf-16-le"), plain.hex().encode(), *shifted]


@dataclass(frozen=True)
class Search:
    """What is looked for: texts in some spelling, bytes, and a mark within pictures."""

    needles: tuple[bytes, ...]
    mark: np.ndarray  # [n, n] grey, of the middle of a prepared image

    def hits(self, name: str, content: bytes) -> Iterator[str]:
        """A sentence for each needle in a file or in what it packs, and for each picture in it that bears the mark."""
        for where, part in unpacked(name, content):
            if isinstance(part, bytes):
                lower = part.lower()
                yield from (f"{where}: {needle!r}" for needle in self.needles if needle in part or needle in lower)
            elif self.bears_mark(part):
                yield f"{where}: the mark"

    def bears_mark(self, picture: np.ndarray) -> bool:
        """Whether any window of a grey picture, made smaller by any whole factor, correlates with the mark."""
        return any(
            highest_correlation(smaller(picture, factor), self.mark) >= ALIKE
            for factor in range(1, min(picture.shape) // RESOLUTION + 1)
            if factor <= 8 or factor == min(picture.shape) // RESOLUTION
        )

    def below(self, *paths: Path) -> list[str]:
        """All hits in files and below directories, their names included."""
        found = []
        for path in paths:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and not file.is_symlink():
                    found += self.hits(str(file), file.read_bytes())
                    found += self.hits(f"the name of {file}", file.name.encode())
        return found


def unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes | np.ndarray]]:
    """The bytes, whatever they pack, at any depth, and every picture among it as grey [H, W]. Kinds go by content."""
    yield name, content
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for member in packed.namelist():
                yield from unpacked(f"{name}/{member}", packed.read(member))
    elif content.startswith(b"\x1f\x8b"):
        yield from unpacked(f"{name}/gzip", gzip.decompress(content))
    elif content.startswith(b"\x89PNG"):
        yield f"{name} chunks", b"".join(png_chunks(content))
        yield name, grey(content)
    elif content.startswith((b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")):
        yield name, grey(content)
    elif content.startswith(b"PAR1"):
        for row in pq.read_table(io.BytesIO(content)).to_pylist():
            yield f"{name} row", json.dumps(row, default=lambda value: "").encode()
            for value in row.values():
                if isinstance(value, bytes):
                    yield f"{name} column", value
                    if (side := int((len(value) / 3) ** 0.5)) and side * side * 3 == len(value):
                        yield f"{name} pixels", np.frombuffer(value, np.uint8).reshape(side, side, 3).mean(2)
    elif content.startswith(b"\x93NUMPY"):
        array = np.load(io.BytesIO(content))
        if array.ndim >= 3 and array.shape[-1] == 3:
            yield from ((f"{name} pixels", image.mean(2)) for image in array.reshape(-1, *array.shape[-3:]))
    elif content.startswith(b"SQLite format 3\0"):
        database = sqlite3.connect(":memory:")
        database.deserialize(content)
        yield f"{name} dump", "\n".join(database.iterdump()).encode()
        database.close()


def png_chunks(content: bytes) -> Iterator[bytes]:
    """What a PNG says besides pixels, decompressed where it is compressed."""
    place = 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        yield body
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            for start in (at for at in range(len(body)) if body[at] == 0x78):
                try:
                    yield zlib.decompress(body[start:])
                    break
                except zlib.error:
                    continue
        place += 12 + length


def grey(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=np.float64)


def smaller(picture: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor x factor pixels."""
    height, width = (side // factor for side in picture.shape)
    cut = picture[: height * factor, : width * factor]
    return cut.reshape(height, factor, width, factor).mean((1, 3))


def highest_correlation(picture: np.ndarray, mark: np.ndarray) -> float:
    """Normalised cross-correlation of the mark with every window of its size, the highest."""
    if picture.shape[0] < mark.shape[0] or picture.shape[1] < mark.shape[1]:
        return 0.0
    ones, wanted, centred = np.ones(mark.shape), mark - mark.mean(), picture - picture.mean()
    dots = fftconvolve(centred, wanted[::-1, ::-1], "valid")
    sums, squares = fftconvolve(centred, ones, "valid"), fftconvolve(centred**2, ones, "valid")
    # A window whose grey levels differ by less than one shows nothing.
    norms = np.sqrt(np.maximum(squares - sums**2 / mark.size, mark.size)) * np.linalg.norm(wanted)
    return float((dots / norms).max())


# -- the road ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walked:
    """A project at the end of its road, and the search for its marks."""

    root: Path
    search: Search

    @property
    def open_places(self) -> list[Path]:
        """Whatever others may look into: what git carries, the tracking store, the public remote, logs, exports."""
        names = ("dvc-remotes/public", "mlflow.db", "mlartifacts", "results", "runs", "console", "exported", "dvc.lock")
        return [self.root / name for name in (*names, "dvc.yaml", f"data/raw/proprietary/{COLLECTION}.dvc")]


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Walked:
    root = make_project(
        tmp_path_factory.mktemp("canary") / "project",
        phantom={"visibilities": ["public"]},
        prepare={"collections": ["phantom", COLLECTION]},
        train={"kimg": 0.096, "tick_kimg": 0.048},
    )
    delivery = root.parent / "delivery"
    write_delivery(delivery)
    (root / "console").mkdir()
    commands = {
        "git": ("git", "init", "-q"),
        "init": drp_command("init"),
        "ingest": drp_command(
            "data", "ingest", str(delivery), "--labels", str(delivery / "labels.csv"), "--name", COLLECTION,
            "--visibility", "proprietary",
        ),
        "repro": (sys.executable, "-m", "dvc", "repro"),
        "promote": drp_command("promote", "1"),
        "generate": drp_command("generate", MODEL, "--seeds", "0-7", "--out", "exported/drawn"),
        "export": drp_command("export", MODEL, "--onnx", "exported/generator.onnx"),
        "show": drp_command("models", "show", f"{MODEL}/1"),
        "push": drp_command("data", "push"),
    }  # fmt: skip
    for name, command in commands.items():
        done = run(root, *command, timeout=400)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        (root / "console" / name).write_text(done.stdout + done.stderr)
    prepared = standardise(np.asarray(marked_photograph(0)), RESOLUTION).mean(2)
    return Walked(root, Search((*spellings(MAGIC), *pixels_of(root)), prepared[3:13, 3:13]))


def drp_command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "dr_platform.cli.main", *arguments)


def private_pixels(root: Path) -> list[np.ndarray]:
    """The prepared images of the marked collection, from its shards."""
    tables = [pq.read_table(path) for path in (root / "data/prepared/proprietary/grade-1").glob("shard-*.parquet")]
    found = [value for table in tables for value in table.column("image").to_pylist()]
    return [np.frombuffer(value, np.uint8).reshape(RESOLUTION, RESOLUTION, 3) for value in found]


def pixels_of(root: Path) -> list[bytes]:
    """A stretch of the middle of each marked image, as prepared and as stored."""
    stored = [path.read_bytes() for path in (root / f"data/raw/proprietary/{COLLECTION}/images").iterdir()]
    whole = [*stored, *(image.tobytes() for image in private_pixels(root))]
    return [content[len(content) // 2 :][:48] for content in whole]


# -- what is found -----------------------------------------------------------------------------------------------------


def test_the_marks_are_in_the_training_images_and_only_there(walked):
    """Else there would be nothing to find, or it would be everywhere."""
    private = private_pixels(walked.root)
    assert len(private) == IMAGES
    assert all(walked.search.bears_mark(image.mean(2)) for image in private)
    project = road.Project(walked.root, load_params(walked.root))
    assert {row.visibility for row in select_images(project.prepared, 1).rows} == {"public", "proprietary"}
    assert walked.search.hits("name", f"{MAGIC}-file-00".encode())


def test_no_mark_comes_out_where_others_can_look(walked):
    assert [path for path in walked.open_places if not path.exists()] == []
    assert walked.search.below(*walked.open_places) == []


def test_the_name_of_a_private_collection_is_not_in_the_public_remote(walked):
    search = Search(tuple(spellings(COLLECTION)), walked.search.mark)
    assert search.below(walked.root / "dvc-remotes/public") == []
    assert search.below(walked.root / "dvc-remotes/private")


def test_the_private_remote_holds_what_the_public_one_does_not(walked):
    found = walked.search.below(walked.root / "dvc-remotes/private")
    assert any("the mark" in hit for hit in found)
    assert any(MAGIC in hit for hit in found)
    assert any("pixels: the mark" in hit for hit in found)


# -- what must be found ------------------------------------------------------------------------------------------------


def test_a_grid_of_real_images_logged_as_an_artifact_is_found(walked, tmp_path):
    private = np.stack(private_pixels(walked.root))
    path = tmp_path / "reals.png"
    grid.contact_sheet(private, columns=4, scale=6).save(path)
    project = road.Project(walked.root, load_params(walked.root))
    tracker = project.tracker()
    before = walked.search.below(walked.root / "mlartifacts")
    tracker.log_samples(tracker.run_for("careless", {}), path, 0)  # the one line that breaks the rule
    (planted,) = (walked.root / "mlartifacts").rglob("000000000.png")
    try:
        after = walked.search.below(walked.root / "mlartifacts")
        assert before == []
        assert after == [f"{planted}: the mark"]
    finally:
        planted.unlink()


HONEST_LINE = "    drawn = pictures.generated(images, "
CARELESS_LINE = "    drawn = pictures.generated(monitor._images[:64], "


def test_one_line_that_logs_a_real_grid_is_found(walked, tmp_path):
    """The search is red if a single line of the training passes off real images as drawn ones."""
    root = tmp_path / "careless"
    shutil.copytree(walked.root, root, symlinks=True)
    for name in ("dr_platform", "pipelines"):
        (root / name).unlink()
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    loop = root / "dr_platform/training/loop.py"
    assert loop.read_text().count(HONEST_LINE) == 1
    loop.write_text(loop.read_text().replace(HONEST_LINE, CARELESS_LINE))
    for name in ("models/dr1", "runs", "mlartifacts"):
        shutil.rmtree(root / name)
    (root / "mlflow.db").unlink()  # it knows where the first project's artifacts lie
    command = (sys.executable, "-m", "pipelines.train")
    run_of_it = {**environment(), "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=run_of_it, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = walked.search.below(root / "mlartifacts")
    assert found
    assert all(hit.endswith("png: the mark") for hit in found)


def plant_zip(path: Path, image: np.ndarray) -> None:
    inner = io.BytesIO()
    np.savez_compressed(inner, reals=image[None])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("features.npz", inner.getvalue())


def plant_parquet(path: Path, image: np.ndarray) -> None:
    pq.write_table(pa.table({"patient": [f"{MAGIC}-patient-00"]}), path, compression="zstd")


def plant_png_text(path: Path, image: np.ndarray) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Source", f"{MAGIC}-file-00", zip=True)
    Image.new("RGB", (8, 8)).save(path, "PNG", pnginfo=info)


def plant_jpeg(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC).save(path, "JPEG", quality=75)


def plant_safetensors(path: Path, image: np.ndarray) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file({"a": np.zeros(2)}, path, metadata={"dataset": f"{MAGIC}-file-00"})


def plant_sqlite(path: Path, image: np.ndarray) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute("create table tags (value text)")
        database.execute("insert into tags values (?)", (f"{MAGIC}-patient-00",))
    database.close()


def plant_base64(path: Path, image: np.ndarray) -> None:
    path.write_bytes(base64.b64encode(f"a name: {MAGIC}-file-00.jpg, and more".encode()))


def plant_pixels(path: Path, image: np.ndarray) -> None:
    path.write_bytes(b"spilled " + image.tobytes())


@pytest.mark.parametrize(
    "plant",
    [
        plant_zip, plant_parquet, plant_png_text, plant_jpeg, plant_safetensors, plant_sqlite, plant_base64,
        plant_pixels,
    ],
)  # fmt: skip
def test_a_planted_mark_of_any_kind_is_found(walked, tmp_path, plant):
    plant(tmp_path / "planted", private_pixels(walked.root)[0])
    assert walked.search.below(tmp_path)
