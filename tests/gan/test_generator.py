"""The generator: symmetries that alias-free synthesis promises, its running averages, and the published numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from gan_golden import golden, relative_error, table
from shared_data import needs_golden

from dr_platform.gan import Generator, Statistics
from dr_platform.gan.generator import FourierInput, MappingNetwork
from dr_platform.gan.schedule import layer_schedule

SMALL = {"z_dim": 16, "w_dim": 16, "img_resolution": 32, "channel_base": 512, "channel_max": 16, "num_layers": 6}
RADIAL = {"conv_kernel": 1, "use_radial_filters": True}


def small_generator(**changes) -> Generator:
    torch.manual_seed(0)
    return Generator(**{**SMALL, **changes}).eval()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """In dB, relative to the power of `b`."""
    return float(10 * torch.log10(b.var() / (a - b).square().mean()))


# --- Symmetries -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, RADIAL], ids=["T", "R"])
def test_a_translated_input_shifts_the_image(changes):
    G = small_generator(**changes).double()
    z = torch.randn(2, 16, dtype=torch.float64)
    still = G(z)
    # An eighth of the width is a whole number of samples in every layer, so only the borders can differ:
    # convolutions and filters see the end of the margin, whose influence fades over a few pixels.
    G.synthesis.input.transform[0, 2] = -4 / 32
    G.synthesis.input.transform[1, 2] = 4 / 32
    moved = G(z)
    assert psnr(moved[:, :, 8:20, 12:24], still[:, :, 12:24, 8:20]) > 50
    assert psnr(moved[:, :, 8:20, 12:24], still[:, :, 8:20, 12:24]) < 20


@torch.no_grad()
def test_a_quarter_turn_of_the_input_turns_the_image_of_configuration_r():
    G = small_generator(**RADIAL).double()
    z = torch.randn(2, 16, dtype=torch.float64)
    still = G(z)
    # Rows point down, so this turns sampling points clockwise and the image counter-clockwise.
    G.synthesis.input.transform[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turned = G(z)
    torch.testing.assert_close(turned, torch.rot90(still, 1, dims=(2, 3)), rtol=0, atol=1e-10)


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other():
    G = small_generator().double()
    z = torch.randn(3, 16, dtype=torch.float64)
    alone = torch.cat([G(one[None]) for one in z])
    assert relative_error(G(z), alone) < 1e-7  # only the epsilon of the demodulation couples them


def test_fourier_frequencies_fill_the_disc_of_the_bandwidth_evenly():
    torch.manual_seed(0)
    freqs = FourierInput(4, 4096, 36, 16, 2.0).freqs
    radius = freqs.norm(dim=1)
    assert radius.max() <= 2
    # In an even disc the squared radius is uniform: mean 1/2, standard error sqrt(1/12/4096) = 0.0045.
    assert float((radius / 2).square().mean()) == pytest.approx(0.5, abs=0.02)


def test_frequencies_beyond_the_sampling_rate_fade_out():
    layer = FourierInput(4, 8, 36, 16, 2.0)
    layer.transform.mul_(torch.tensor([[20.0], [20.0], [1.0]]))
    layer.freqs.copy_(layer.freqs / layer.freqs.norm(dim=1, keepdim=True))
    assert layer(torch.zeros(1, 4)).abs().max() == 0


# --- Mapping ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_truncation_moves_w_between_the_average_and_itself():
    G = small_generator()
    G.mapping.w_avg.normal_()
    z = torch.randn(2, 16)
    ws = G.mapping(z)
    half = G.mapping(z, truncation_psi=0.5)
    torch.testing.assert_close(half, (ws + G.mapping.w_avg) / 2)
    torch.testing.assert_close(G.mapping(z, truncation_psi=0.0), G.mapping.w_avg.expand_as(ws))
    cut = G.mapping(z, truncation_psi=0.5, truncation_cutoff=3)
    torch.testing.assert_close(cut, torch.cat([half[:, :3], ws[:, 3:]], dim=1))


def test_a_conditional_generator_needs_a_label():
    G = small_generator(c_dim=4)
    with pytest.raises(ValueError, match="labels with 4 entries"):
        G(torch.randn(1, 16))


def test_the_label_changes_the_image():
    G = small_generator(c_dim=2)
    z = torch.randn(1, 16).repeat(2, 1)
    first, second = G(z, torch.eye(2))
    assert (first - second).abs().max() > 1e-3


# --- Running averages -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_collected_statistics_do_not_depend_on_how_the_batch_is_split():
    z = torch.randn(8, 16, dtype=torch.float64)
    whole, halves = Statistics(), Statistics()
    G = small_generator().double()
    before = {name: value.clone() for name, value in G.state_dict().items()}
    G(z, statistics=whole)
    for part in z.split(4):
        G(part, statistics=halves)
    torch.testing.assert_close(whole.flat(), halves.flat(), rtol=1e-7, atol=1e-9)
    for name, value in G.state_dict().items():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_applying_statistics_moves_each_average_by_its_beta():
    G = small_generator(magnitude_ema_beta=0.9, w_avg_beta=0.5)
    num_layers = len(G.synthesis.layers)
    G.apply_statistics(torch.cat([torch.full((16,), 4.0), torch.arange(num_layers) + 1.0]))
    torch.testing.assert_close(G.mapping.w_avg, torch.full((16,), 2.0))
    ours = torch.stack([layer.magnitude_ema for layer in G.synthesis.layers])
    torch.testing.assert_close(ours, 0.9 + 0.1 * (torch.arange(num_layers) + 1.0))


@torch.no_grad()
def test_statistics_moved_at_once_are_used_in_the_same_pass():
    G = small_generator(magnitude_ema_beta=0.0)  # the average is the last batch's value
    image = G(torch.randn(2, 16), update_emas=True)
    again = G(torch.randn(2, 16), update_emas=False)
    assert all(layer.magnitude_ema != 1 for layer in G.synthesis.layers)
    assert image.shape == again.shape == (2, 3, 32, 32)


@torch.no_grad()
def test_one_deferred_step_equals_one_immediate_step_where_nothing_feeds_back():
    # w and the first layer's input depend on no other average, so both forms must move their averages alike.
    z = torch.randn(4, 16)
    at_once, deferred = small_generator(magnitude_ema_beta=0.9), small_generator(magnitude_ema_beta=0.9)
    at_once(z, update_emas=True)
    statistics = Statistics()
    deferred(z, statistics=statistics)
    deferred.apply_statistics(statistics.flat())
    torch.testing.assert_close(deferred.mapping.w_avg, at_once.mapping.w_avg)
    first = at_once.synthesis.layer_names[0]
    ours, theirs = (getattr(G.synthesis, first).magnitude_ema for G in (deferred, at_once))
    torch.testing.assert_close(ours, theirs)


def test_statistics_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"found \(3,\) means"):
        small_generator().apply_statistics(torch.zeros(3))
    with pytest.raises(ValueError, match="no forward pass"):
        Statistics().flat()
    with pytest.raises(ValueError, match="choose one"):
        small_generator()(torch.randn(1, 16), update_emas=True, statistics=Statistics())


# --- Construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {**RADIAL, "c_dim": 3, "img_channels": 1, "conv_clamp": None}], ids=["T", "R"])
def test_init_kwargs_survive_json_and_rebuild_the_network(changes):
    G = small_generator(**changes)
    twin = Generator(**json.loads(json.dumps(G.init_kwargs)))
    twin.load_state_dict(G.state_dict())
    z, c = torch.randn(2, 16), torch.eye(3)[:2]
    assert torch.equal(twin.eval()(z, c), G(z, c))


@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_images_have_the_resolution_asked_for(resolution):
    images = small_generator(img_resolution=resolution)(torch.randn(1, 16))
    assert images.shape == (1, 3, resolution, resolution)


def test_double_reaches_every_constant():
    images = small_generator().double()(torch.randn(1, 16, dtype=torch.float64))
    assert images.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"), [({"img_resolution": 48}, "power of two"), ({"num_critical": 6}, "num_critical is 6")]
)
def test_impossible_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_generator(**changes)


def test_every_layer_gets_the_side_its_schedule_promises():
    for changes in ({}, RADIAL, {"margin_size": 7}, {"num_critical": 0}, {"num_critical": 4}, {"filter_size": 4}):
        G = small_generator(**changes)
        x = G.synthesis.input(torch.zeros(1, 16))
        for layer in G.synthesis.layers:
            x, _ = layer(x, torch.zeros(1, 16))
            assert x.shape[2:] == (layer.spec.out_size, layer.spec.out_size), layer.spec


# --- Published numbers ------------------------------------------------------------------------------------------------


def published_arguments(entry: dict) -> dict:
    radial = entry["config"] == "stylegan3-r"
    return {
        "img_resolution": entry["img_resolution"],
        "channel_base": entry["channel_base"],
        "channel_max": entry["channel_max"],
        **({"conv_kernel": 1, "use_radial_filters": True} if radial else {}),
    }


@needs_golden
@pytest.mark.parametrize("name", ["t256", "t256_cbase16384", "t512", "r256", "r256_cbase16384", "r512"])
def test_layer_schedules_equal_the_published_tables(name):
    entry = table("layer_tables")[name]
    schedule = layer_schedule(**published_arguments(entry))
    assert schedule.num_ws == entry["num_ws"]
    first, *layers = entry["layers"]
    assert first["size"] == [schedule.input.size] * 2
    assert (first["channels"], first["sampling_rate"]) == (schedule.input.channels, schedule.input.sampling_rate)
    assert first["bandwidth"] == pytest.approx(schedule.input.bandwidth, rel=1e-14)
    for theirs, ours in zip(layers, schedule.layers, strict=True):
        sides = {"in_size": [ours.in_size] * 2, "out_size": [ours.out_size] * 2, "padding_lrtb": list(ours.padding * 2)}
        for key, value in theirs.items():
            mine = sides[key] if key in sides else getattr(ours, key)
            if key == "down_radial" and ours.down_taps == 1:
                continue  # no filter, so nothing to be radial
            assert mine == (pytest.approx(value, rel=1e-14) if isinstance(value, float) else value), (ours.name, key)


@needs_golden
@pytest.mark.parametrize("name", ["t256", "t256_cbase16384", "t512", "r256", "r256_cbase16384", "r512"])
def test_names_and_shapes_equal_the_published_ones(name):
    entry = table("layer_tables")[name]
    theirs = table("state_dict_shapes")[f"G_{name}"]
    with torch.device("cpu"):
        G = Generator(**published_arguments(entry))
    assert {key: list(value.shape) for key, value in G.state_dict().items()} == theirs["shapes"]
    assert sum(parameter.numel() for parameter in G.parameters()) == entry["num_params"]


@needs_golden
@pytest.mark.parametrize("name", ["map_uncond", "map_cond"])
def test_mapping_equals_the_published_one(name):
    case = golden("mapping_input")
    network = MappingNetwork(**{"c_dim": 0, **case.meta[name]})
    network.load_state_dict({key: torch.tensor(value) for key, value in case.below(f"{name}/sd/").items()})
    z, c = case[f"{name}/z"], case[f"{name}/c"]
    assert relative_error(network(z, c), case[f"{name}/ws"]) < 1e-6
    assert relative_error(network(z, c, truncation_psi=0.7), case[f"{name}/ws_psi0.7"]) < 1e-6
    cut = network(z, c, truncation_psi=-0.5, truncation_cutoff=2)
    assert relative_error(cut, case[f"{name}/ws_psi-0.5_cut2"]) < 1e-6
    network(z, c, update_emas=True)
    assert relative_error(network.w_avg, case[f"{name}/w_avg_after"]) < 1e-6


@needs_golden
@pytest.mark.parametrize("name", ["in36", "in_rect"])
def test_fourier_input_equals_the_published_one(name):
    case = golden("mapping_input")
    options = case.meta[name]
    size = options["size"] if isinstance(options["size"], int) else tuple(options["size"])
    layer = FourierInput(options["w_dim"], options["channels"], size, options["sampling_rate"], options["bandwidth"])
    layer.load_state_dict({key: torch.tensor(value) for key, value in case.below(f"{name}/sd/").items()})
    assert relative_error(layer(case[f"{name}/w"]), case[f"{name}/y"]) < 1e-5
    layer.transform.copy_(case[f"{name}/transform"])
    assert relative_error(layer(case[f"{name}/w"]), case[f"{name}/y_transform"]) < 1e-5


@needs_golden
def test_initial_frequencies_are_distributed_like_the_published_ones():
    torch.manual_seed(1)
    layer = FourierInput(4, 4096, 36, 16, 2.0)
    quantiles = layer.freqs.norm(dim=1).double().quantile(torch.linspace(0, 1, 21, dtype=torch.float64))
    theirs = golden("mapping_input")["freq_init/radius_quantiles_0_to_1_step_0.05"]
    # Both are samples of 4096: a quantile's standard error is at most 0.5 / sqrt(4096) / density, the density r / 2.
    assert (quantiles - theirs)[1:].abs().max() < 0.1
    assert layer.phases.min() >= -0.5
    assert layer.phases.max() < 0.5
    assert math.isclose(float(layer.phases.std()), 12**-0.5, rel_tol=0.05)
