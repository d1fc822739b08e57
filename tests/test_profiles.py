"""Profiles: the paper's numbers, comments kept, all or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from dr_platform import profiles
from dr_platform.config import load_params
from dr_platform.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path):
    """The checkout's params.yaml as it is before a demo has written its transfer there."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    profiles.edit(tmp_path, {"transfer": {"targets": [], "parent": None}})
    return tmp_path


def test_demo_is_the_default_params(project):
    assert profiles.use("demo", project) == []


def test_the_paper_profile_is_the_paper(project):
    profiles.use("paper-dr1-512", project)
    params = load_params(project)
    assert (params.prepare.resolution, params.prepare.grade) == (512, 1)
    train = params.train
    assert (train.config, train.subset, train.gamma, train.batch) == ("stylegan3-t", 2602, 8, 32)
    assert (train.mapping_layers, train.z_dim, train.w_dim, train.num_layers) == (2, 512, 512, 14)
    assert params.transfer.parent is None


def test_every_profile_gives_valid_parameters_and_comes_back(project):
    before = yaml.safe_load((project / "params.yaml").read_text())
    for name in profiles.names():
        profiles.use(name, project)
        load_params(project)
    profiles.use("demo", project)
    assert yaml.safe_load((project / "params.yaml").read_text()) == before


def test_public_only_changes_one_value_of_whatever_is_there(project):
    profiles.use("paper-dr1-512", project)
    changes = profiles.use("public-only", project)
    assert [(change.key, change.before, change.after) for change in changes] == [
        ("prepare.visibility", "all", "public-only")
    ]
    assert load_params(project).train.batch == 32


def test_comments_and_the_site_section_stay(project):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("workers: auto", "workers: 3   # mine"))
    comments = [line.partition("#")[2] for line in path.read_text().splitlines() if "#" in line]
    profiles.use("paper-dr1-512", project)
    text = path.read_text()
    assert [line.partition("#")[2] for line in text.splitlines() if "#" in line] == comments
    assert load_params(project).site.workers == 3


def test_an_unknown_profile_lists_the_known_ones(project):
    with pytest.raises(ConfigError, match="Known: demo, paper-dr1-512, public-only"):
        profiles.use("paper", project)


def test_an_edit_that_makes_no_sense_leaves_the_file(project):
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"train: batch is 3"):
        profiles.edit(project, {"train": {"batch": 3}})
    assert (project / "params.yaml").read_bytes() == before


def test_a_file_of_an_earlier_version_gets_what_dvc_reads_and_nothing_else(tmp_path):
    path = tmp_path / "params.yaml"
    text = (Path(__file__).parents[1] / "params.yaml").read_text()
    path.write_text("".join(line for line in text.splitlines(True) if "condition_on" not in line))
    before = load_params(tmp_path)
    (change,) = profiles.complete(tmp_path)
    assert (change.key, change.after) == ("train.condition_on", [])
    assert load_params(tmp_path) == before
    assert "condition_on: []" in path.read_text()
    assert path.read_text().count("#") == text.count("#") - 1  # the comments are kept
    assert profiles.complete(tmp_path) == []
