"""The ledger by the commands a user types: promote by force, log, verify, rollback, restore, doctor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_project import make_project
from typer.testing import CliRunner, Result

from dr_platform import checkpoint, profiles, tracking
from dr_platform.cli.console import one_line_errors
from dr_platform.cli.main import app
from dr_platform.gan import Generator
from dr_platform.records import EvalReport, Extractor, Metric

MODEL, SHA = "fundus-dr1-stylegan3", "ab" * 32
TINY = {
    "z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 16, "img_channels": 3,
    "num_layers": 4, "channel_base": 128, "channel_max": 8,
}  # fmt: skip


def register(root: Path, seed: int, fid: float) -> None:
    """A version of a generator that was never trained, with a report made by hand."""
    torch.manual_seed(seed)
    generator = Generator(**TINY)
    run = root / "runs" / f"dr1-{seed}"
    run.mkdir(parents=True)
    record = checkpoint.write(
        run,
        {checkpoint.GENERATOR_FILE: generator.state_dict()},
        {"step": 10},
        {
            "run": run.name, "step": 10, "images_seen": 160, "complete": True, "grade": 1, "resolution": 16,
            "visibility": "public", "config_sha256": SHA, "data_sha256": SHA, "train_images": 480, "parent": None,
            "generator": generator.init_kwargs, "discriminator": {},
        },
    )  # fmt: skip
    extractor = Extractor(name="small", weights_sha256=SHA, input_size=64, features=96)
    metric = Metric(
        name="fid__small", value=fid, spread=None, spread_kind=None, n_fake=500, n_real=480, extractor=extractor,
        seed=0, higher_is_better=False,
    )  # fmt: skip
    report = EvalReport(
        checkpoint_sha256=record.digest(), run=run.name, step=10, images_seen=160, grade=1, resolution=16,
        visibility="public", data_sha256=SHA, reference="train, 480 images", reference_sha256=SHA, seed=0,
        metrics=(metric,),
    )  # fmt: skip
    (directory,) = checkpoint.committed(run)
    tracker = tracking.connect("sqlite:///mlflow.db", "mlartifacts", root)
    weights = directory / checkpoint.GENERATOR_FILE
    tracker.register(MODEL, record, weights, report, tags={}, run_name=run.name)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("audit") / "project")
    for seed, fid in ((1, 40.0), (2, 50.0)):
        register(root, seed, fid)
    return root


@pytest.fixture(autouse=True)
def there(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(project)
    monkeypatch.setenv("DRP_ACTOR", "ann")
    return


def drp(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of error of a command that ends with status 1."""
    with pytest.raises(SystemExit) as ended, one_line_errors():
        app(arguments, standalone_mode=False)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_model_without_a_champion_has_no_way_back_and_an_empty_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no earlier champion" in error_of(capsys, "rollback")
    assert "There is no model fundus" in error_of(capsys, "rollback", "--model", "fundus")
    assert json.loads(drp("audit", "log", "--json").stdout) == []
    verified = json.loads(drp("audit", "verify", "--json").stdout)
    assert (verified["well"], verified["entries"], verified["head"]) == (True, 0, None)


def test_promotions_holds_overrides_and_rollbacks_are_listed_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    assert drp("promote", "1").exit_code == 0
    assert drp("promote", "2").exit_code == 3
    assert "Give --reason TEXT with --force" in error_of(capsys, "promote", "2", "--force")
    forced = drp("promote", "2", "--force", "--reason", "clinic A asked", "--json")
    assert forced.exit_code == 0
    assert (json.loads(forced.stdout)["forced"], json.loads(forced.stdout)["entry"]) == (True, 2)
    back = drp("rollback", "--reason", "striped vessels")
    assert back.exit_code == 0, back.output
    assert "version 1: champion again, before it version 2 (entry 3 of the ledger)" in back.stdout
    entries = json.loads(drp("audit", "log", "--json").stdout)
    assert [(e["action"], e["from_version"], e["to_version"], e["who"]) for e in entries] == [
        ("promote", None, 1, "ann"), ("hold", 1, 2, "ann"), ("force", 1, 2, "ann"), ("rollback", 2, 1, "ann"),
    ]  # fmt: skip
    shown = drp("audit", "log", "--model", MODEL).stdout
    for words in ("– → 1", "2 → 1", "clinic A asked", "striped vessels", "force"):
        assert words in shown
    verified = drp("audit", "verify")
    assert verified.exit_code == 0
    assert f"ledger as written: 4 entries, head {entries[-1]['sha256']}" in verified.stdout


def test_drift_and_damage_are_reported_by_verify_and_doctor_and_restored(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.connect("sqlite:///mlflow.db", "mlartifacts", project).set_champion(MODEL, 2)
    path = project / "mlflow.db.ledger.jsonl"
    assert drp("audit", "verify").exit_code == 1
    (finding,) = (f for f in json.loads(drp("doctor", "--json").stdout) if f["what"] == "ledger")
    assert not finding["well"]
    assert "someone moved the alias" in finding["found"]
    path.write_bytes(path.read_bytes().replace(b"clinic A", b"clinic B"))
    verified = drp("audit", "verify", "--json")
    assert verified.exit_code == 1
    assert [problem["entry"] for problem in json.loads(verified.stdout)["problems"]] == [2]
    assert "Entry 2 was changed" in error_of(capsys, "promote", "2")
    assert "Entry 2 was changed" in error_of(capsys, "audit", "log")
    restored = drp("audit", "restore")
    assert restored.exit_code == 0, restored.output
    assert f"{MODEL}: champion moved from version 2 to version 1" in restored.stdout
    assert drp("audit", "verify").exit_code == 0
    (finding,) = (f for f in json.loads(drp("doctor", "--json").stdout) if f["what"] == "ledger")
    assert finding["well"]


def test_a_decision_is_shown_rule_by_rule_with_its_place_in_the_ledger(project: Path) -> None:
    profiles.edit(project, {"promote": {"visibility": "public", "max_kid": 0.1}})
    dry = drp("promote", "2", "--dry-run")
    assert dry.exit_code == 3
    assert "of the ledger" not in dry.stdout
    done = drp("promote", "2")
    (entry,) = json.loads(drp("audit", "log", "--json").stdout)[-1:]
    assert f"entry {entry['index']} of the ledger" in done.stdout
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert rows.index("visibility – – – pass") < rows.index("KID – 0.1 – missing")
