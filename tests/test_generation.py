"""Seeds as people write them, and models of the grade asked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch

from dr_platform import road
from dr_platform.config import load_params
from dr_platform.errors import ConfigError
from dr_platform.gan import Generator
from dr_platform.generation import parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("5,1-2, 9", [5, 1, 2, 9]),
        ("3,1-4", [3, 1, 2, 4]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_seeds_come_once_in_the_order_given(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,,2", "4294967296", "1.5", "0-99999999999"])
def test_what_is_no_seed_is_refused(text):
    with pytest.raises(ConfigError, match="--seeds is"):
        parse_seeds(text)


def test_a_million_and_one_images_are_refused():
    assert len(parse_seeds("0-999999")) == 1_000_000
    with pytest.raises(ConfigError, match="more than 1,000,000"):
        parse_seeds("0-1000000")


def test_a_registered_model_of_one_grade_is_not_drawn_as_another(tmp_path, monkeypatch):
    small = {"z_dim": 8, "w_dim": 8, "img_resolution": 16, "num_layers": 4, "channel_base": 128, "channel_max": 8}
    generator = Generator(**small)
    weights = tmp_path / "generator.safetensors"
    safetensors.torch.save_file(generator.state_dict(), weights)
    loaded = SimpleNamespace(
        init_kwargs=generator.init_kwargs, weights=weights, classes=(), grade=1, visibility="public", tags={}
    )
    tracker = SimpleNamespace(resolve=lambda name, wanted: 3, load_generator=lambda *arguments: loaded)
    monkeypatch.setattr(road.Project, "tracker", lambda project: tracker)
    project = road.Project(tmp_path, load_params(Path(__file__).parents[1]))
    for grade in (None, 1):
        found = road.read_registered(project, "model/3", grade)
        assert (found.name, found.generator.mapping.default_class) == ("model/3", None)
        assert (found.visibility, found.licence) == ("public", "not stated")
    with pytest.raises(ConfigError, match="draws grades 1, but grade 3 was asked for"):
        road.read_registered(project, "model/3", 3)
