"""params.yaml: typed, strict, and its errors say which field, what was found and what to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dr_platform.config import load_params, parse_params
from dr_platform.errors import ConfigError

ROOT = Path(__file__).parents[1]
DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(DEFAULT)
    *sections, key = path.split(".")
    place = raw
    for section in sections:
        place = place[section]
    place[key] = value
    return raw


def test_the_default_parameters_are_valid():
    params = load_params(ROOT)
    assert params.profile == "demo"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prepare.resolution", 100, r"prepare.resolution: 100 is not a power of two"),
        ("prepare.resolution", 8, r"prepare.resolution: 8 is not a power of two from 16 to 4096"),
        ("prepare.grade", 7, r"prepare.grade is 7: .*less than or equal to 4"),
        ("prepare.held_out", 1.0, r"prepare.held_out is 1.0"),
        ("train.batch", 18, r"train: batch is 18, but .* groups of 4 \(mbstd_group\). Use a multiple of 4"),
        ("train.gamma", -1, r"train.gamma is -1"),
        ("train.gamma", float("nan"), r"train.gamma is nan"),
        ("train.gamma", None, r"train: gamma is None and r1_lambda is None, but exactly one"),
        ("train.r1_lambda", 0.001, r"train: gamma is 0.05 and r1_lambda is 0.001, but exactly one"),
        ("train.augment_p", 1.5, r"train.augment_p is 1.5"),
        ("train.augment", "ada", r"train.augment is 'ada'"),
        ("train.condition_on", [2, 2], r"train: condition_on names a grade twice"),
        ("train.condition_on", [1], r"train.condition_on names grade 1, which prepare.grade trains on already"),
        ("train.kimg", "long", r"train.kimg is 'long'"),
        ("train.kimg", 1e308, r"train.kimg is 1e\+308: .*less than or equal to 1000000000"),
        ("train.posthoc_kimg", 20, r"train: posthoc_kimg is 20, but the training ends after 10 kimg .* Use about"),
        ("train.learning_rate", 0.1, r"train.learning_rate is not a known parameter"),
        ("train.config", "stylegan2", r"train.config is 'stylegan2'"),
        ("phantom.images", {"public": 3}, r"phantom: images has no count for proprietary"),
        ("phantom.grade_weights", [0, 0, 0, 0, 0], r"phantom: grade_weights are all 0"),
        ("phantom.grade_weights", [1, 1], r"phantom.grade_weights"),
        ("sweep.sizes", [], r"sweep.sizes"),
        ("evaluate.kid_subset_size", 1, r"evaluate.kid_subset_size is 1"),
        ("promote.metric", "inception", r"promote.metric is 'inception'"),
        ("site.workers", 0, r"site.workers is 0"),
        ("site.tracking_uri", "", r"site.tracking_uri"),
        ("prepare.resolution", 2**40, r"prepare.resolution: .* from 16 to 4096"),
        ("prepare.grade", True, r"prepare.grade is True"),
        ("train.batch", 10**12, r"train.batch is 1000000000000"),
        ("train.lr_generator", 1e30, r"train.lr_generator is 1e\+30"),
        ("sweep.gammas", [float("inf")], r"sweep.gammas"),
        ("register.name", "a/b{grade}", r"register.name is 'a/b{grade}'"),
        ("register.name", "fundus", r"register.name is 'fundus'"),
    ],
)
def test_an_impossible_parameter_is_refused_by_name(path, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_params(changed(path, value), source="params.yaml")
    assert str(caught.value).startswith("params.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_missing_section_is_named():
    raw = {name: section for name, section in DEFAULT.items() if name != "train"}
    with pytest.raises(ConfigError, match=r"train is missing.*drp profile use demo"):
        parse_params(raw, source="params.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML in UTF-8 at line"),
        ("- a", "no mapping of sections"),
        ("\xff", "not valid YAML"),
        ("a: 1\na: 2", "line 2 .a stands twice"),
        ("[" * 3000, "not valid"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused(tmp_path, content, message):
    (tmp_path / "params.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        load_params(tmp_path)


def test_without_params_the_error_says_where_to_go(tmp_path):
    with pytest.raises(ConfigError, match=r"no params.yaml in .* Run drp in the project's root"):
        load_params(tmp_path)


def test_a_site_file_is_laid_over_the_site_section_alone(tmp_path, monkeypatch):
    site = tmp_path / "cluster.yaml"
    site.write_text("workers: 4\nray_address: 10.0.0.1:6379\n")
    monkeypatch.setenv("DRP_SITE", str(site))
    params = load_params(ROOT)
    assert (params.site.workers, params.site.ray_address) == (4, "10.0.0.1:6379")
    assert params.train == parse_params(DEFAULT, source="params.yaml").train


def test_a_missing_site_file_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("DRP_SITE", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match=r"nowhere.yaml cannot be read.*DRP_SITE"):
        load_params(ROOT)


def test_a_transfer_sees_its_grade_its_length_and_its_frozen_layers():
    params = parse_params(
        {**DEFAULT, "transfer": {"targets": [2], "parent": None, "kimg": 3, "freeze_discriminator": 4}}, source="-"
    )
    view = params.for_transfer(2)
    assert view.prepare.grade == 2
    assert (view.train.kimg, view.train.freeze_discriminator) == (3, 4)
    # As published for a start from trained weights: no blur, no growing average, and p that moves five times faster.
    assert (view.train.blur_start(), view.train.ema_rampup) == (0, None)
    changed = {"kimg", "freeze_discriminator", "subset", "blur_sigma", "ema_rampup", "ada_kimg", "condition_on"}
    assert view.train.model_dump(exclude=changed) == params.train.model_dump(exclude=changed)


def test_lambda_gives_the_published_gamma_at_512_pixels_and_batch_32():
    train = parse_params(DEFAULT, source="-").train.model_copy(update={"gamma": None, "r1_lambda": 0.001, "batch": 32})
    assert train.r1_gamma(512) == pytest.approx(8.2, abs=0.01)
    assert train.r1_gamma(256) == pytest.approx(8.2 / 4, abs=0.01)


def test_only_configuration_r_blurs_and_for_200_kimg_at_batch_32():
    train = parse_params(DEFAULT, source="-").train
    assert train.blur_start() == 0
    rotation = train.model_copy(update={"config": "stylegan3-r", "batch": 32})
    assert (rotation.blur_start(), rotation.blur_images()) == (10, 200_000)
    assert rotation.model_copy(update={"blur_sigma": 2.0, "blur_kimg": 5.0}).blur_start() == 2
