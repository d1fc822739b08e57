"""Bad input: one clear line, exit status 1, and what was there before intact."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest
import yaml
from small_project import ROOT, assert_one_line_error, drp, make_project, prepared_project, run

from dr_platform import checkpoint, cluster, road
from dr_platform.config import load_params
from dr_platform.errors import TrainingError
from dr_platform.training.group import Group
from dr_platform.training.plan import make_plan
from dr_platform.training.report import SilentReporter
from dr_platform.training.worker import work

STAGE = {name: (sys.executable, "-m", f"pipelines.{name}") for name in ("prepare", "train", "evaluate", "register")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepared_project(tmp_path_factory.mktemp("bad") / "project", train={"kimg": 0.032})


@pytest.fixture
def project(prepared, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(prepared, root, symlinks=True)
    return root


def edit(root: Path, section: str, **values: object) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params[section].update(values)
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def plan_of(root: Path):
    project = road.Project(root, load_params(root))
    return make_plan(project.params, project.prepared, project.storage)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("prepare", {"resolution": 48}, ("prepare.resolution", "48 is not a power of two")),
        ("prepare", {"collections": ["messidor"]}, ("messidor", "drp data ingest")),
        ("prepare", {"grade": 4}, ("grade 4",)),
        ("train", {"colour": "red"}, ("train.colour is not a known parameter",)),
    ],
)
def test_prepare_refuses_what_it_cannot_do(project, section, values, words):
    before = sorted(path.name for path in (project / "data/prepared/public/grade-1").iterdir())
    edit(project, section, **values)
    assert_one_line_error(run(project, *STAGE["prepare"]), *words)
    assert sorted(path.name for path in (project / "data/prepared/public/grade-1").iterdir()) == before


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("train", {"subset": 5000}, ("5000",)),
        ("site", {"workers": 3}, ("train.batch is 8, but 3 workers", "site.workers")),
        ("site", {"ray_address": "127.0.0.1:9"}, ("No Ray head answers at 127.0.0.1:9", "site.ray_address")),
        ("site", {"ray_address": "nowhere"}, ("site.ray_address is 'nowhere'",)),
        ("site", {"use_gpu": True}, ("no CUDA device",)),
        ("site", {"tracking_uri": "http://127.0.0.1:9"}, ("127.0.0.1:9",)),
    ],
)
def test_train_refuses_what_it_cannot_do(project, section, values, words):
    edit(project, section, **values)
    assert_one_line_error(run(project, *STAGE["train"]), *words)
    assert not (project / "models").exists()


def test_shards_of_another_resolution_are_not_trained_on(project):
    edit(project, "prepare", resolution=32)
    assert_one_line_error(run(project, *STAGE["train"]), "were prepared with resolution 16", "dvc repro prepare")


def test_an_ingest_that_cannot_be_versioned_leaves_nothing(project):
    photographs = project / "photographs"
    photographs.mkdir()
    source = next((project / "data/raw/public/phantom/images").iterdir())
    shutil.copy(source, photographs / "a.jpg")
    (photographs / "labels.csv").write_text("file,grade\na.jpg,1\n")
    options = ("photographs", "--labels", "photographs/labels.csv", "--visibility", "proprietary", "--name")
    assert_one_line_error(drp(project, "data", "ingest", *options, "clinic"), "no DVC project")
    assert_one_line_error(drp(project, "data", "ingest", *options, "phantom"), "Choose another")
    assert [path.name for path in (project / "data/raw/proprietary").iterdir()] == ["phantom"]


def test_a_flipped_byte_in_a_shard_is_named(project):
    shard = next((project / "data/prepared/public/grade-1").glob("shard-train-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert_one_line_error(run(project, *STAGE["train"]), shard.name, "dvc repro prepare")


def test_without_prepared_images_training_says_how_to_get_them(project):
    shutil.rmtree(project / "data/prepared")
    assert_one_line_error(run(project, *STAGE["train"]), "dvc repro")


def test_a_checkpoint_of_another_config_is_refused(project):
    plan = plan_of(project)
    work(plan, Group(), SilentReporter())
    edit(project, "train", gamma=3.0)
    other = plan_of(project)
    assert other.run != plan.run
    shutil.copytree(plan.run_directory, other.run_directory)
    done = run(project, *STAGE["train"])
    assert_one_line_error(done, "belongs to another configuration", str(other.run_directory))


def test_a_damaged_model_is_never_evaluated(project):
    plan = plan_of(project)
    work(plan, Group(), SilentReporter())
    shutil.copytree(cluster.finished_checkpoint(plan.run_directory), project / "models/dr1")
    weights = project / "models/dr1" / checkpoint.GENERATOR_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert_one_line_error(run(project, *STAGE["evaluate"]), checkpoint.GENERATOR_FILE, "damaged")
    assert not (project / "results").exists()


def test_a_report_of_another_checkpoint_is_not_registered(project):
    assert_one_line_error(run(project, *STAGE["register"]), "checkpoint.json does not exist", "dvc repro train")


def test_a_full_disk_ends_training_with_one_line_and_the_earlier_checkpoint(project, monkeypatch):
    """A real tmpfs needs root; a limit on file size is the same error to whoever writes, in this very process."""
    import resource

    plan = plan_of(project)
    half = plan.config.model_copy(update={"kimg": 0.016})
    work(type(plan)(**{**plan.__dict__, "config": half}), Group(), SilentReporter())
    root = plan.run_directory / "checkpoints"
    before = checkpoint.newest(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(TrainingError, match=r"step-\d+ could not be written"):
            work(plan, Group(), SilentReporter())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.newest(root) == before
    assert [path.name for path in root.iterdir()] == [before.name]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("promote", "1"), ("no model fundus-dr1-stylegan3", "dvc repro register")),
        (("promote", "one"), ("no model",)),
        (("transfer", "--to", "1"), ("Grade 1 is the one",)),
        (("transfer", "--to", "2", "--parent", "nobody"), ("nobody",)),
        (("generate", "nobody"), ("no model nobody",)),
        (("generate", "nobody", "--seeds", "9-3"), ("--seeds is '9-3'",)),
        (("generate", "nobody", "--seeds", "a"), ("--seeds is 'a'",)),
        (("models", "show", "nobody/7"), ("no model nobody",)),
        (("models", "list", "nobody"), ("no model nobody",)),
        (("profile", "use", "nothing"), ("no profile 'nothing'",)),
        (("data", "use", "nothing"), ("no collection 'nothing'",)),
        (("data", "ingest", "nowhere", "--labels", "none.csv", "--name", "x", "--visibility", "public"), ("nowhere",)),
        (("data", "ingest", ".", "--labels", "none.csv", "--name", "x", "--visibility", "secret"), ("secret",)),
        (("data", "ingest", ".", "--labels", "none.csv", "--name", "../x", "--visibility", "public"), ("../x",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_commands_refuse_what_is_not_there(project, command, words):
    before = (project / "params.yaml").read_bytes()
    assert_one_line_error(drp(project, *command), *words)
    assert (project / "params.yaml").read_bytes() == before


def test_outside_of_a_project_every_command_says_where_to_go(tmp_path):
    for command in (("status",), ("train",), ("models", "list"), ("data", "list"), ("sweep",)):
        assert_one_line_error(drp(tmp_path, *command), "there is no params.yaml")


def test_a_port_in_use_is_said(project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = drp(project, "ui", "--port", str(taken.getsockname()[1]))
    assert_one_line_error(done, "port")


def test_a_missing_dvc_yaml_is_said(tmp_path):
    root = make_project(tmp_path / "project")
    (root / "dvc.yaml").unlink()
    done = drp(root, "demo")
    assert_one_line_error(done, "dvc")
    assert (ROOT / "dvc.yaml").is_file()
