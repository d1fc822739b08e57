"""Published weights in our networks: every golden case, and what happens to states and arguments that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gan_golden import DISCRIMINATORS, GENERATORS, golden, relative_error
from shared_data import needs_golden
from slopes import nearest_gradient, recorded_activations

from dr_platform.gan import Discriminator, Generator, discriminator_from_state, generator_from_state, r1_penalty

SMALL_G = {"z_dim": 8, "w_dim": 8, "img_resolution": 16, "channel_base": 64, "channel_max": 4, "num_layers": 4}
SMALL_D = {"img_resolution": 16, "channel_base": 64, "channel_max": 4}


def arrays(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in network.state_dict().items()}


def load_generator(name: str) -> Generator:
    return generator_from_state(golden(name).meta["cfg"], golden(name).below("sd/"))


def load_discriminator(name: str) -> Discriminator:
    return discriminator_from_state(golden(name).meta["cfg"], golden(name).below("sd/"))


# --- States and arguments ---------------------------------------------------------------------------------------------


def test_a_state_goes_round_unchanged():
    G = Generator(**SMALL_G, conv_kernel=1, use_radial_filters=True)
    state = arrays(G)
    name = f"synthesis.{G.synthesis.layer_names[0]}.down_filter"
    state[name] = state[name] * 2  # filters are taken as given
    twin = generator_from_state({**SMALL_G, "conv_kernel": 1, "use_radial_filters": True}, state)
    for name, value in arrays(twin).items():
        np.testing.assert_array_equal(value, state[name])


def test_nested_published_arguments_reach_the_network():
    nested = {
        **SMALL_G,
        "mapping_kwargs": {"num_layers": 3, "lr_multiplier": 0.02, "w_avg_beta": 0.9},
        "synthesis_kwargs": {"num_critical": 1, "margin_size": 6, "conv_clamp": None, "magnitude_ema_beta": 0.5},
    }
    ours = {"mapping_layers": 3, "mapping_lr_multiplier": 0.02, "w_avg_beta": 0.9, **nested["synthesis_kwargs"]}
    G = Generator(**SMALL_G, **ours)
    assert generator_from_state(nested, arrays(G)).init_kwargs == G.init_kwargs

    nested = {
        **SMALL_D,
        "c_dim": 3,
        "architecture": "resnet",
        "block_kwargs": {"freeze_layers": 2, "fp16_channels_last": False},
        "mapping_kwargs": {"num_layers": 2, "embed_features": 5, "layer_features": 6},
        "epilogue_kwargs": {"mbstd_group_size": None, "mbstd_num_channels": 2},
    }
    ours = {"freeze_layers": 2, "mapping_layers": 2, "mapping_embed_features": 5, "mapping_layer_features": 6}
    D = Discriminator(**SMALL_D, c_dim=3, mbstd_group_size=None, mbstd_num_channels=2, **ours)
    assert discriminator_from_state(nested, arrays(D)).init_kwargs == D.init_kwargs


def test_states_that_do_not_fit_are_refused_in_one_line_naming_each_array():
    state = arrays(Generator(**SMALL_G))
    state["surplus"] = state.pop("mapping.w_avg")
    state["mapping.fc0.bias"] = np.zeros(3)
    with pytest.raises(ValueError) as caught:
        generator_from_state(SMALL_G, state)
    message = str(caught.value)
    for part in ("missing mapping.w_avg", "extra surplus", "mapping.fc0.bias has shape (3,) instead of (8,)"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"architecture": "skip"}, "architecture is 'skip'"), ({"cbase": 3}, "no argument cbase = 3")],
)
def test_arguments_we_have_no_form_of_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        discriminator_from_state({**SMALL_D, **arguments}, {})


def test_float64_arrays_give_float32_networks_that_can_be_trained():
    state = {name: value.astype(np.float64) for name, value in arrays(Discriminator(**SMALL_D)).items()}
    D = discriminator_from_state(SMALL_D, state)
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in D.parameters())


# --- Published numbers ------------------------------------------------------------------------------------------------


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_equals_the_published_one(name):
    case, G = golden(name), load_generator(name)
    z, c = case["in/z"], case["in/c"]
    assert relative_error(G.mapping(z, c), case["ws"]) < 1e-6
    assert relative_error(G(z, c), case["img"]) < 1e-5
    for key, options in {"psi0.7": (0.7, None), "psi0.5_cut3": (0.5, 3)}.items():
        assert relative_error(G.mapping(z, c, *options), case[f"ws_{key}"]) < 1e-6
        assert relative_error(G(z, c, *options), case[f"img_{key}"]) < 1e-5
    ws = case["ws"][:1].clone()
    ws[:, G.num_ws // 2 :] = case["ws"][1, G.num_ws // 2 :]
    assert relative_error(G.synthesis(ws), case["img_mix01_half"]) < 1e-5
    for index in (1, 2, 3):
        G.synthesis.input.transform.copy_(case["in/transforms"][index])
        assert relative_error(G(z[:1], c[:1]), case[f"img_transform{index}"]) < 1e-5, index


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_in_double_precision_equals_the_published_one(name):
    case, G = golden(name), load_generator(name).double()
    z, c = case["in/z"], case["in/c"]
    assert relative_error(G.mapping(z, c), case["f64/ws"]) < 1e-12
    assert relative_error(G(z, c), case["f64/img"]) < 1e-12
    assert relative_error(G(z, c, truncation_psi=0.7), case["f64/img_psi0.7"]) < 1e-12


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
def test_activations_of_every_layer_equal_the_published_ones(name):
    case, G = golden(name), load_generator(name)
    first, *rest = case["ws"].unbind(dim=1)
    x = G.synthesis.input(first)
    outputs = {"input": x}
    for layer, w in zip(G.synthesis.layers, rest, strict=True):
        x, _ = layer(x, w)
        outputs[layer.spec.name] = x
    for layer_name, y in outputs.items():
        # Means cancel to a small rest of the values they are taken of, so rounding weighs more.
        assert relative_error(y.mean(dim=(2, 3)), case[f"act/{layer_name}/mean_nc"]) < 1e-4, layer_name
        assert relative_error(y.std(dim=(2, 3), correction=0), case[f"act/{layer_name}/std_nc"]) < 1e-5, layer_name
        assert relative_error(y[0, :2], case[f"act/{layer_name}/n0_c01"]) < 1e-5, layer_name


@needs_golden
@pytest.mark.parametrize("name", GENERATORS)
def test_gradients_of_the_generator_equal_the_published_ones_up_to_slopes_at_zero(name):
    case, G = golden(name), load_generator(name)
    z = case["in/z"].requires_grad_()
    ws = G.mapping(z, case["in/c"])
    with recorded_activations() as activations:
        value = (G.synthesis(ws) * case["in/noise_img"]).sum()
    leaves = {"dz": z, "dws": ws, **{f"dparam/{key}": value for key, value in G.named_parameters()}}

    def gradient():
        found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)
        return torch.cat([part.double().flatten() for part in found])

    published = {key: case[f"gradtest/{key}"].double().flatten() for key in leaves}
    ours, _ = nearest_gradient(gradient, activations, torch.cat(list(published.values())))
    parts = dict(zip(leaves, ours.split([len(part) for part in published.values()]), strict=True))
    assert relative_error(ours, torch.cat(list(published.values()))) < 1e-5
    for key, theirs in published.items():
        assert relative_error(parts[key], theirs) < 1e-5, key


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
def test_running_averages_after_one_pass_equal_the_published_ones(name):
    case, G = golden(name), load_generator(name)
    assert relative_error(G(case["in/z"], case["in/c"], update_emas=True), case["emaupd/img"]) < 1e-5
    state = G.state_dict()
    for key, value in case.below("emaupd/").items():
        if key != "img":
            assert relative_error(state[key], value) < 1e-6, key


@needs_golden
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_and_its_penalty_equal_the_published_ones(name):
    case, D = golden(name), load_discriminator(name)
    images = case["in/img"].requires_grad_()
    logits = D(images, case["in/c"])
    assert relative_error(logits, case["logits"]) < 1e-5
    (gradient,) = torch.autograd.grad(logits.sum(), images, retain_graph=True)
    assert relative_error(gradient, case["r1/dimg"]) < 1e-5
    penalty = r1_penalty(logits, images)
    assert relative_error(penalty, case["r1/penalty"]) < 1e-5
    penalty.mean().backward()
    for key, parameter in D.named_parameters():
        theirs = case[f"r1/dparam/{key}"]
        if theirs.any():
            assert relative_error(parameter.grad, theirs) < 1e-4, key
        else:  # a published zero may be an absent gradient
            assert parameter.grad is None or not parameter.grad.any(), key


@needs_golden
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_in_double_precision_equals_the_published_one(name):
    case, D = golden(name), load_discriminator(name).double()
    images = case["in/img"].double().requires_grad_()
    logits = D(images, case["in/c"])
    assert relative_error(logits, case["f64/logits"]) < 1e-12
    assert relative_error(r1_penalty(logits, images), case["f64/r1/penalty"]) < 1e-12


@needs_golden
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_gradients_of_the_logits_equal_the_published_ones(name):
    case, D = golden(name), load_discriminator(name)
    D(case["in/img"], case["in/c"]).mean().backward()
    for key, parameter in D.named_parameters():
        assert relative_error(parameter.grad, case[f"gradtest/dparam/{key}"]) < 1e-4, key
