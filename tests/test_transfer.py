"""Transfer: what is copied, what starts fresh, what stays frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from dr_platform.build import build_networks
from dr_platform.config import Params, parse_params
from dr_platform.errors import ConfigError
from dr_platform.records import TransferPlan
from dr_platform.training.state import new_state
from dr_platform.transfer import PLAN_FILE, frozen_names, plan_transfer

ROOT = Path(__file__).parents[1]
SMALL = {"z_dim": 8, "w_dim": 8, "num_layers": 4, "channel_base": 128, "channel_max": 8}
SMALL |= {"discriminator_channel_base": 128, "discriminator_channel_max": 8}


def params(freeze: int = 0, **train: object) -> Params:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["train"] |= SMALL | train
    raw["prepare"]["resolution"] = 16
    raw["transfer"] |= {"targets": [2], "freeze_discriminator": freeze}
    return parse_params(raw, source="test").for_transfer(2)


def parent(seed: int = 7):
    config = params().train.model_copy(update={"seed": seed})
    generator, discriminator = build_networks(config, 16)
    return generator.state_dict(), discriminator.state_dict()


def transfer(directory: Path, wanted: Params, generator, discriminator) -> TransferPlan:
    return plan_transfer(
        wanted, directory, parent="fundus-dr1/3", source_grade=1, generator=generator, discriminator=discriminator
    )


def test_all_of_the_same_architecture_is_copied(tmp_path):
    generator, discriminator = parent()
    plan = transfer(tmp_path / "t", params(), generator, discriminator)
    assert plan.fresh == ()
    assert len(plan.copied) == len(generator) + len(discriminator)
    assert TransferPlan.read(tmp_path / "t" / PLAN_FILE) == plan
    state = new_state(params().train, 16, torch.device("cpu"))
    state.start_from(tmp_path / "t")
    for network, expected in (
        (state.generator, generator),
        (state.generator_ema, generator),
        (state.discriminator, discriminator),
    ):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_without_the_parents_discriminator_it_starts_fresh(tmp_path):
    generator, _ = parent()
    plan = transfer(tmp_path / "t", params(), generator, None)
    assert all(name.startswith("D.") for name in plan.fresh)
    state, untouched = (new_state(params().train, 16, torch.device("cpu")) for _ in range(2))
    state.start_from(tmp_path / "t")
    expected = untouched.discriminator.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.discriminator.state_dict().items())


def test_tensors_of_another_shape_start_fresh(tmp_path):
    generator, discriminator = parent()
    plan = transfer(tmp_path / "t", params(discriminator_channel_max=4), generator, discriminator)
    assert "D.b16.conv0.weight" in plan.fresh
    assert not any(name.startswith("G.") for name in plan.fresh)


def test_freezing_names_the_first_layers_and_needs_the_parents_discriminator(tmp_path):
    generator, discriminator = parent()
    plan = transfer(tmp_path / "t", params(freeze=2), generator, discriminator)
    assert set(plan.frozen) == {
        f"D.b16.{layer}.{kind}" for layer in ("fromrgb", "conv0") for kind in ("weight", "bias")
    }
    with pytest.raises(ConfigError, match=r"freeze_discriminator is 2, but fundus-dr1/3's discriminator is not here"):
        transfer(tmp_path / "u", params(freeze=2), generator, None)
    assert not (tmp_path / "u").exists()


def test_nothing_is_frozen_unless_asked():
    assert frozen_names(build_networks(params().train, 16)[1]) == []


def test_the_weights_digest_follows_the_weights(tmp_path):
    one = transfer(tmp_path / "a", params(), *parent(seed=1))
    same = transfer(tmp_path / "b", params(), *parent(seed=1))
    other = transfer(tmp_path / "c", params(), *parent(seed=2))
    assert one.parent_weights_sha256 == same.parent_weights_sha256 != other.parent_weights_sha256


def test_a_parent_of_another_architecture_is_refused(tmp_path):
    generator = {"something.else": torch.zeros(3)}
    with pytest.raises(ConfigError, match="shares no weights"):
        transfer(tmp_path / "t", params(), generator, None)
