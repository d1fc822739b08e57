"""drp eval bootstrap: from kept features alone to the ten protocols, the one that was used, and the bias taken out."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from integration.small_project import make_project
from typer.testing import CliRunner

from dr_platform import records
from dr_platform.cli.main import app
from dr_platform.config import EvaluateConfig
from dr_platform.errors import DrpError, EvaluationError
from dr_platform.evaluation import evaluate, frechet, kept, protocols
from dr_platform.evaluation.features import SMALL, choose_extractor, extract
from dr_platform.evaluation.passes import image_seeds
from dr_platform.sampling import sample_images

REALS, FAKES, SEED = 60, 400, 3
DATA, STATE = "d" * 64, "c" * 64


def rows(count: int, seed: int, stretch: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 95)) / np.sqrt(np.arange(1, 96)) * stretch


def write_report(root: Path, grade: int, extractor: records.Extractor, **changes: object) -> records.EvalReport:
    metric = records.Metric(
        name=f"fid__{extractor.name}", value=1.0, spread=None, spread_kind=None, n_fake=FAKES, n_real=REALS,
        extractor=extractor, seed=SEED, higher_is_better=False,
    )  # fmt: skip
    values = {
        "checkpoint_sha256": STATE, "run": f"run-{grade}", "step": 1, "images_seen": 8, "grade": grade,
        "resolution": 16, "visibility": "public", "data_sha256": DATA, "reference": f"train, {REALS} images",
        "reference_sha256": DATA, "seed": SEED, "metrics": (metric,),
    }  # fmt: skip
    report = records.EvalReport(**{**values, **changes})
    report.write(root / f"results/dr{grade}/report.json")
    return report


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without images and without a model: a report, and the features behind it."""
    root = make_project(tmp_path / "project")
    write_report(root, 1, SMALL)
    kept.keep(root / "cache/features", kept.key_of_images(DATA, [REALS, 16, 16, 3], SMALL), rows(REALS, 1))
    kept.keep(root / "cache/features", kept.key_of_generated(STATE, SEED, FAKES, SMALL), rows(FAKES, 2, 1.3))
    monkeypatch.chdir(root)
    return root


def invoke(*arguments: str) -> dict:
    few = ("--repetitions", "40", "--exact-repetitions", "3")
    done = CliRunner().invoke(app, ["eval", "bootstrap", *few, *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_all_protocols_come_from_the_kept_features_alone(project: Path) -> None:
    told = invoke()
    expected = protocols.replicate(
        "ABCDEFGHIJ", rows(REALS, 1), rows(FAKES, 2, 1.3), repetitions=40, exact_repetitions=3
    )
    assert [row["protocol"] for row in told["protocols"]] == list("ABCDEFGHIJ")
    assert [row["mean"] for row in told["protocols"]] == [result.mean for result in expected]
    point = frechet.distance(frechet.reference(rows(REALS, 1)), rows(FAKES, 2, 1.3))
    assert told["protocols"][0]["point"] == point
    corrected = told["corrected"]
    assert corrected["value"] == pytest.approx(2 * point - expected[0].mean)
    assert corrected["low"] < corrected["value"] < corrected["high"]
    assert (told["real"], told["generated"], corrected["protocol"]) == (REALS, FAKES, "A")


@pytest.mark.parametrize("planted", ["A", "J"])
def test_a_published_pair_is_recognised(project: Path, planted: str) -> None:
    (truth,) = [row for row in invoke()["protocols"] if row["protocol"] == planted]
    told = invoke("--shift", str(3 * truth["shift"]), "--sd", str(3 * truth["sd"]))  # of a trace three times as large
    assert told["reproduced_by"][0] == planted
    row = told["protocols"]["ABCDEFGHIJ".index(planted)]
    assert row["trace_needed"] == pytest.approx(3 * row["trace"])
    assert row["sd_there"] == pytest.approx(3 * truth["sd"])


def test_a_pair_that_nothing_gives_is_said_to_be_none(project: Path) -> None:
    assert invoke("--shift", "3", "--sd", "1000")["reproduced_by"] == []
    shown = CliRunner().invoke(app, ["eval", "bootstrap", "--protocol", "h", "--exact-repetitions", "3", "--sd", "99"])
    assert "None of these reproduces a shift of +3.89 with SD 99" in shown.stdout
    assert "Bias taken out by protocol A" in shown.stdout
    rows_told = [line.split()[0] for line in shown.stdout.splitlines() if "all generated" in line]
    assert rows_told == ["H"]  # A was computed for the correction alone


def test_a_few_protocols_may_be_asked_for(project: Path) -> None:
    told = invoke("--protocol", "f,c", "--correct", "c")
    assert [row["protocol"] for row in told["protocols"]] == ["F", "C"]
    assert told["corrected"]["protocol"] == "C"


def test_the_newest_report_is_taken(project: Path) -> None:
    write_report(project, 2, SMALL)
    os.utime(project / "results/dr1/report.json", ns=(2**62, 2**62))
    assert invoke("--protocol", "B")["run"] == "run-1"
    os.utime(project / "results/dr2/report.json", ns=(2**62 + 10**9, 2**62 + 10**9))
    assert invoke("--protocol", "B")["run"] == "run-2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "K"], "no protocol 'K'"),
        (["--protocol", ","], "Name one or several of ABCDEFGHIJ"),
        (["--protocol", ""], "Name one or several of ABCDEFGHIJ"),
        (["--correct", "E"], "compares reals with reals"),
        (["--extractor", "inception"], "no FID of inception; it has: drp-small-v1"),
    ],
)
def test_unfit_requests_are_one_line(project: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as caught:
        invoke(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lost", "whose"), [("data", "real"), ("checkpoint", "generated")])
def test_features_that_are_not_kept_are_named(project: Path, lost: str, whose: str) -> None:
    for path in (project / "cache/features").iterdir():
        if lost in (kept.made_of(path) or {}):
            path.unlink()
    with pytest.raises(EvaluationError, match=f"no kept features of run-1's {whose} images .*: run dvc repro evaluate"):
        invoke()


def test_a_project_without_a_report_is_told_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_project(tmp_path / "project"))
    with pytest.raises(DrpError, match=r"no report under results/\. Run: dvc repro evaluate"):
        invoke()


@pytest.mark.parametrize("keep", [False, True])
def test_an_evaluation_keeps_the_features_of_what_it_drew(
    waves: torch.nn.Module,
    blobs: np.ndarray,
    config: EvaluateConfig,
    checkpoint: records.Checkpoint,
    tmp_path: Path,
    keep: bool,
) -> None:
    few = config.model_copy(update={"images": 40, "pictures": 0, "equivariance_images": 4})
    where, small = tmp_path / "features", choose_extractor("small")
    known = {"checkpoint": checkpoint, "checkpoint_sha256": STATE, "cache_dir": where}
    evaluate.evaluate(waves, blobs, DATA, few, **known, keep_generated=keep)
    found = kept.read(where, kept.key_of_generated(STATE, few.seed, 40, small.identity))
    if not keep:
        assert found is None
        return
    drawn = sample_images(waves, image_seeds(few.seed, 40), batch=few.batch)
    np.testing.assert_allclose(found, extract(drawn, small), rtol=0, atol=1e-9)
    assert stat.S_IMODE(where.stat().st_mode) == 0o700


def test_a_kept_file_says_what_it_was_made_of_only_if_it_bears_that_name(tmp_path: Path) -> None:
    key = kept.key_of_generated(STATE, 0, 5, SMALL)
    kept.keep(tmp_path, key, rows(5, 0), {"visibility": "proprietary"})
    (path,) = tmp_path.iterdir()
    assert kept.made_of(path) == key
    assert kept.made_of(path.rename(tmp_path / f"{'0' * 64}.safetensors")) is None
    (tmp_path / "note.safetensors").write_bytes(b"no such file")
    assert kept.made_of(tmp_path / "note.safetensors") is None


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_kept_rows_come_back_to_the_bit_and_take_no_more_room_than_they_need(tmp_path: Path, kind: type) -> None:
    key, values = kept.key_of_images(DATA, [200, 16, 16, 3], SMALL), rows(200, 4).astype(kind)
    kept.keep(tmp_path, key, values.astype(np.float64))
    found = kept.read(tmp_path, key)
    assert found.dtype == np.float64
    assert np.array_equal(found, values)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < values.nbytes + 1000
