"""The whole road at 16 px, by the commands a user types: data, training, evaluation, registry, promotion, transfer."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image
from small_project import assert_one_line_error, drp, make_project, run, start, wait_for

from dr_platform.records import Checkpoint, EvalReport, Registration, TransferPlan

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("road")]

MODEL = "fundus-dr1-stylegan3"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which `dvc repro` has run once."""
    root = make_project(tmp_path_factory.mktemp("road") / "project", train={"kimg": 0.32})
    for command in (("git", "init", "-q"), ("git", "add", "params.yaml", "dvc.yaml")):
        assert run(root, *command).returncode == 0
    assert drp(root, "init").returncode == 0
    done = run(root, sys.executable, "-m", "dvc", "repro", timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_dvc_repro_registers_what_it_trained_and_measured(project):
    registered = Registration.read(project / "results/dr1/registration.json")
    report = EvalReport.read(project / "results/dr1/report.json")
    record = Checkpoint.read(project / "models/dr1/checkpoint.json")
    assert (registered.model, registered.model_version) == (MODEL, 1)
    assert registered.checkpoint_sha256 == report.checkpoint_sha256 == record.digest()
    assert (record.images_seen, record.complete, record.visibility) == (320, True, "proprietary")
    for stem in ("fid", "kid", "eq_t_int_db", "eq_t_frac_db", "eq_r_db"):
        assert report.metric(stem) is not None
    assert all("__drp-small-v1" in metric.name for metric in report.metrics if metric.extractor)
    assert Image.open(project / "results/dr1/samples.png").size[0] > 400


def test_a_second_repro_changes_nothing(project):
    lock = (project / "dvc.lock").read_bytes()
    done = run(project, sys.executable, "-m", "dvc", "repro")
    assert "Data and pipelines are up to date." in done.stdout
    assert (project / "dvc.lock").read_bytes() == lock


def test_registering_again_changes_nothing(project):
    before = (project / "results/dr1/registration.json").read_bytes()
    assert run(project, sys.executable, "-m", "pipelines.register").returncode == 0
    assert (project / "results/dr1/registration.json").read_bytes() == before
    versions = json.loads(drp(project, "models", "list", MODEL, "--json").stdout)
    assert [version["version"] for version in versions] == [1]
    tags = versions[0]["tags"]
    assert {"git_commit", "dvc_lock_sha256", "checkpoint_sha256", "weights_sha256", "config_sha256"} <= tags.keys()
    assert {"data.phantom/public", "data.phantom/proprietary"} <= tags.keys()


def test_nothing_of_a_proprietary_image_is_in_the_tracking_store(project):
    """Neither pixels as stored, nor names, nor patients; and no discriminator."""
    names = [path.name for path in (project / "data/raw/proprietary/phantom/images").iterdir()]
    heads = [path.read_bytes()[-64:] for path in (project / "data/raw/proprietary/phantom/images").iterdir()]
    stored = [path for path in (project / "mlartifacts").rglob("*") if path.is_file()] + [project / "mlflow.db"]
    assert len(stored) > 5
    for path in stored:
        content = path.read_bytes()
        assert not any(name.encode() in content for name in names), path
        assert not any(head in content for head in heads), path
        assert b"b16.conv0" not in content, path
        assert str(project).encode() not in content or path.suffix == ".db", path


def test_promote_transfer_and_generate(project):
    missing = drp(project, "transfer", "--to", "2")
    assert_one_line_error(missing, "has no champion to start from", "drp promote latest")

    dry = drp(project, "promote", "latest", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["promote"] is True
    assert drp(project, "promote", "1").returncode == 0
    again = drp(project, "promote", f"{MODEL}/1")
    assert again.returncode == 3
    assert "champion already" in again.stdout

    done = drp(project, "transfer", "--to", "2", timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"from {MODEL}/1" in done.stdout
    params = yaml.safe_load((project / "params.yaml").read_text())
    assert params["transfer"]["targets"] == [2]
    assert params["transfer"]["parent"] == f"{MODEL}/1"
    child = Registration.read(project / "results/dr2/registration.json")
    assert (child.model, child.model_version, child.parent) == ("fundus-dr2-stylegan3", 1, f"{MODEL}/1")
    plan = TransferPlan.read(project / "models/dr2/transfer.json")
    assert (plan.source_grade, plan.target_grade, plan.fresh, plan.frozen) == (1, 2, (), ())
    assert any(name.startswith("D.") for name in plan.copied)

    compared = json.loads(drp(project, "models", "compare", MODEL, "fundus-dr2-stylegan3/1", "--json").stdout)
    assert {row["metric"] for row in compared["metrics"]} >= {"fid__drp-small-v1", "eq_r_db"}

    drawn = drp(project, "generate", MODEL, "--seeds", "3,5-6", "--psi", "0.7", "--out", "drawn")
    assert drawn.returncode == 0, drawn.stderr
    assert sorted(path.name for path in (project / "drawn").iterdir()) == [
        "contact-sheet.png", "seed0000000003.png", "seed0000000005.png", "seed0000000006.png",
    ]  # fmt: skip
    text = Image.open(project / "drawn/seed0000000005.png").text
    assert (text["Model"], text["seed"], text["psi"]) == (f"{MODEL}/1", "5", "0.7")
    assert text["Synthetic"].startswith("yes")


def test_a_changed_gamma_is_another_run_and_another_version(project):
    path = project / "params.yaml"
    before = path.read_text()
    runs = {entry.name for entry in (project / "runs").iterdir()}
    path.write_text(before.replace("gamma: 0.05", "gamma: 0.7"))
    # Killed in the middle, DVC and all: the same command continues from the checkpoint.
    killed = start(project, sys.executable, "-m", "dvc", "repro", "register")
    wait_for(lambda: any((project / "runs").glob("*-g0.7-*/checkpoints/step-*")), killed)
    family = psutil.Process(killed.pid).children(recursive=True)
    for process in (psutil.Process(killed.pid), *family):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    killed.wait()
    psutil.wait_procs(family, timeout=30)
    done = run(project, sys.executable, "-m", "dvc", "repro", "register", timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (new,) = {entry.name for entry in (project / "runs").iterdir()} - runs
    assert "-g0.7-" in new
    assert Registration.read(project / "results/dr1/registration.json").model_version == 2
    path.write_text(before)
    done = run(project, sys.executable, "-m", "dvc", "repro", "register")
    assert Registration.read(project / "results/dr1/registration.json").model_version == 1


def test_doctor_finds_all_well_and_says_what_is_amiss(project, tmp_path):
    well = json.loads(drp(project, "doctor", "--json").stdout)
    assert [finding for finding in well if not finding["well"]] == []
    (tmp_path / "params.yaml").write_text("profile: 3")
    amiss = drp(tmp_path, "doctor")
    assert amiss.returncode == 1
    assert "drp profile use demo" in amiss.stdout


def test_the_pushed_public_remote_holds_no_proprietary_byte(project):
    for arguments in (("push",), ("push", "-r", "public"), ("push", "-r", "public", "--all-commits")):
        run(project, sys.executable, "-m", "dvc", *arguments)
    public, private = project / "dvc-remotes/public", project / "dvc-remotes/private"
    stored = {path.read_bytes() for path in public.rglob("*") if path.is_file()}
    assert len(stored) > 60

    def contents(directory: Path) -> list[bytes]:
        return [path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.stat().st_size > 100]

    for directory in ("data/raw/proprietary/phantom", "data/prepared/proprietary", "models"):
        assert contents(project / directory)
        assert not stored & set(contents(project / directory)), directory
    assert set(contents(project / "data/raw/proprietary/phantom/images")) <= {
        path.read_bytes() for path in private.rglob("*") if path.is_file()
    }
