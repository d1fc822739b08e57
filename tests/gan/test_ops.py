"""Operators: against their definitions, against closed forms, then against the published numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import reference_ops
import torch
import torch.nn.functional as F
from gan_golden import golden, relative_error
from shared_data import needs_golden

from dr_platform.gan import fir, ops
from dr_platform.gan.filters import lowpass_filter
from dr_platform.gan.generator import SynthesisLayer
from dr_platform.gan.ops import FullyConnected, filtered_lrelu, leaky_clamp, modulated_conv2d, resample
from dr_platform.gan.schedule import layer_schedule

# Rounding of float64 through a few hundred products.
EXACT = 1e-12

PADDINGS = [(0, 0, 0, 0), (9, 8, 9, 8), (-3, -6, 2, -5), (1, -9, -8, 3), (14, 3, 0, 11)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form", [resample, fir.convolve], ids=["in chunks", "at once"])
@pytest.mark.parametrize("taps", [None, 5, (3, 4), (5, 6)], ids=str)
@pytest.mark.parametrize("up", [(1, 1), (2, 2), (3, 2), (4, 5)])
@pytest.mark.parametrize("down", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_resampling_equals_inserting_zeros_filtering_and_dropping(form, taps, up, down, padding):
    x = normal(2, 3, 20, 19)
    filter = None if taps is None else normal(*([taps] if isinstance(taps, int) else taps), seed=1)
    theirs = reference_ops.upfirdn(x, filter, up, down, padding, gain=1.7)
    ours = form(x, filter, up, down, padding, gain=1.7)
    torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("taps", [5, (5, 6)], ids=str)
def test_resampling_has_correct_second_derivatives(taps):
    x = normal(1, 2, 7, 6).requires_grad_()
    filter = normal(*([taps] if isinstance(taps, int) else taps), seed=1)
    assert torch.autograd.gradgradcheck(lambda x: resample(x, filter, (2, 3), (1, 2), (3, 2, -1, 4)).pow(3), x)


def test_the_number_of_planes_in_work_at_a_time_changes_no_value(monkeypatch):
    x, filter = normal(3, 5, 20, 20), lowpass_filter(12, 2.0, 12.0, 32.0)
    whole = filtered_lrelu(x, filter, filter, None, 2, 2, (9, 8, 9, 8))
    monkeypatch.setattr(fir, "CHUNK_BYTES", 4 * 46**2 * 8)  # 4 of the 15 planes at the raised rate
    torch.testing.assert_close(filtered_lrelu(x, filter, filter, None, 2, 2, (9, 8, 9, 8)), whole, rtol=0, atol=1e-15)


def test_a_constant_stays_constant_away_from_the_border():
    filter = lowpass_filter(12, 2.0, 12.0, 32.0)
    y = resample(torch.full((1, 1, 30, 30), 3.0), filter, up=2, padding=(6, 5, 6, 5), gain=4)
    # Each phase of an upsampling filter sums to 1/2 only up to its stop-band gain, 2e-3 for these 12 taps.
    torch.testing.assert_close(y[:, :, 12:-12, 12:-12], torch.full((1, 1, 36, 36), 3.0), rtol=5e-3, atol=0)
    assert y.mean() <= 3.01


def test_a_map_first_made_in_inference_mode_serves_training_later():
    fir._resampler.cache_clear()
    filter = lowpass_filter(24, 4.0, 12.0, 64.0)
    with torch.inference_mode():
        resample(torch.ones(1, 1, 8, 8), filter, up=4)
    x = torch.ones(1, 1, 8, 8, requires_grad=True)
    resample(x, filter, up=4).sum().backward()
    assert x.grad is not None


def test_changing_a_filter_in_place_changes_the_result():
    x, filter = normal(1, 1, 8, 8), normal(6, seed=1)
    before = resample(x, filter, up=2)
    torch.testing.assert_close(resample(x, filter.mul_(2), up=2), before * 4)


LRELU_CASES = [(2, 2, (9, 8, 9, 8), False), (4, 2, (-6, -9, -6, -9), False), (2, 2, (11, 10, 11, 10), True)]


@pytest.mark.parametrize(("up", "down", "padding", "radial"), LRELU_CASES, ids=["up2", "up4", "radial"])
@pytest.mark.parametrize("clamp", [None, 0.5, 256.0])
def test_filtered_lrelu_equals_its_definition(up, down, padding, radial, clamp):
    rate = 32.0 * up / 2
    x, bias = normal(2, 3, 14, 14), normal(3, seed=1)
    up_filter = lowpass_filter(6 * up, 2.0, 12.0, rate).double()
    down_filter = lowpass_filter(12, 4.0, 12.0, rate, radial=radial).double()
    arguments = (up_filter, down_filter, bias, up, down, padding, math.sqrt(2), 0.2, clamp)
    theirs = reference_ops.filtered_lrelu(x, *arguments)
    torch.testing.assert_close(filtered_lrelu(x, *arguments), theirs, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("up", "down", "padding", "radial"), LRELU_CASES, ids=["up2", "up4", "radial"])
def test_filtered_lrelu_has_correct_second_derivatives(up, down, padding, radial):
    x, bias, scale = (normal(*s, seed=k).requires_grad_() for k, s in enumerate([(1, 1, 13, 13), (1,), (1, 1)]))
    up_filter = lowpass_filter(6 * up, 2.0, 12.0, 32.0).double()
    down_filter = lowpass_filter(12, 4.0, 12.0, 32.0, radial=radial).double()

    def apply(x, bias, scale):
        y = filtered_lrelu(x, up_filter, down_filter, bias, up, down, padding, clamp=0.9, scale=scale)
        return y[:, :, ::3, ::3].square()  # squared: the operator alone has no second derivative

    assert torch.autograd.gradcheck(apply, (x, bias, scale), atol=1e-6)
    assert torch.autograd.gradgradcheck(apply, (x, bias, scale), atol=1e-6)


def test_the_scale_is_applied_before_the_bias_and_counts_towards_the_clamp():
    x, bias, scale = normal(2, 3, 14, 14), normal(3, seed=1), 100 * normal(2, 3, seed=2)
    filter = lowpass_filter(12, 2.0, 12.0, 32.0).double()
    ours = filtered_lrelu(x, filter, filter, bias, 2, 2, (9, 8, 9, 8), clamp=9.0, scale=scale)
    theirs = filtered_lrelu(x * scale[:, :, None, None], filter, filter, bias, 2, 2, (9, 8, 9, 8), clamp=9.0)
    torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("limit", [0.05, 0.5, 256.0])
def test_filtered_lrelu_has_the_gradients_of_its_definition(limit):
    x, bias = normal(2, 3, 14, 14).requires_grad_(), normal(3, seed=1).requires_grad_()
    filter = lowpass_filter(12, 2.0, 12.0, 32.0).double()
    arguments = (filter, filter, bias, 2, 2, (9, 8, 9, 8), math.sqrt(2), 0.2, limit)
    theirs, ours = reference_ops.filtered_lrelu(x, *arguments), filtered_lrelu(x, *arguments)
    dy = normal(*ours.shape, seed=2)
    for mine, published in zip(gradients(ours, dy, x, bias), gradients(theirs, dy, x, bias), strict=True):
        torch.testing.assert_close(mine, published, rtol=EXACT, atol=EXACT)


def away_from_zero(x, spec, layer, bias):
    """1 for every output that no activation within rounding of zero reaches, else 0: [1, C, H, W].

    Such an activation may fall on either side and take either slope, so no two forms need agree on its gradient.
    """
    raised = reference_ops.upfirdn(
        x + bias[:, None, None],
        layer.up_filter,
        (spec.up_factor,) * 2,
        padding=spec.padding * 2,
        gain=spec.up_factor**2,
    )
    near = (raised.abs() < 1e-5 * raised.abs().mean()).float()
    return 1 - F.max_pool2d(near, spec.down_taps, stride=spec.down_factor)


@pytest.mark.parametrize("radial", [False, True], ids=["T", "R"])
@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_every_layer_of_every_schedule_equals_its_definition_in_single_precision(resolution, radial):
    kernel = 1 if radial else 3
    schedule = layer_schedule(resolution, conv_kernel=kernel, use_radial_filters=radial)
    for spec in schedule.layers[:-1]:  # the last one, to colours, has no filter
        layer = SynthesisLayer(dataclasses.replace(spec, in_channels=1, out_channels=1), w_dim=1)
        x = normal(1, 2, spec.in_size + kernel - 1, spec.in_size + kernel - 1).float().requires_grad_()
        bias = normal(2, seed=1).float().requires_grad_()
        arguments = (spec.up_factor, spec.down_factor, spec.padding * 2, math.sqrt(2), 0.2, 256.0)
        ours = filtered_lrelu(x, layer.up_filter, layer.down_filter, bias, *arguments)
        theirs = reference_ops.filtered_lrelu(x, layer.up_filter, layer.down_filter, bias, *arguments)
        assert relative_error(ours, theirs.detach()) < 1e-6, spec.name
        dy = normal(*ours.shape, seed=2).float() * away_from_zero(x.detach(), spec, layer, bias.detach())
        (mine, my_bias), (reference, their_bias) = (gradients(y, dy, x, bias) for y in (ours, theirs))
        assert relative_error(mine, reference) < 1e-6, spec.name
        # A sum over a plane, which may cancel: its error is at most that of the terms, by Cauchy-Schwarz.
        bound = 1e-6 * float(reference.norm()) * math.sqrt(x[0, 0].numel())
        assert float((my_bias - their_bias).abs().max()) < bound, spec.name


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clamping_has_the_gradient_of_clamping_whether_or_not_a_value_reaches_the_limit(limit):
    x = normal(50).requires_grad_()
    (ours,) = torch.autograd.grad(leaky_clamp(x, clamp=limit).sum(), x)
    slope = 0.2 + 0.8 * (x > 0).double()
    torch.testing.assert_close(ours, (slope * ((x * slope).abs() < limit)).detach())


def test_clamping_lets_no_value_hide_behind_a_nan():
    y = leaky_clamp(torch.tensor([float("nan"), 1e9]), clamp=256.0)
    assert y[1] == 256


@pytest.mark.parametrize("demodulate", [True, False])
def test_aligned_channels_are_the_same_channels_and_zeros(demodulate):
    x, weight, styles = normal(2, 3, 6, 5), normal(5, 3, 3, 3, seed=1), normal(2, 3, seed=2)
    exact, scale = ops.scaled_conv2d(x, weight, styles, demodulate, padding=2)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 4))
    wide, wide_scale = ops.scaled_conv2d(padded, weight, styles, demodulate, padding=2, align=8)
    torch.testing.assert_close(wide[:, :5], exact, rtol=EXACT, atol=EXACT)
    assert wide.shape[1] == 8
    assert not wide[:, 5:].any()
    if demodulate:
        assert torch.equal(wide_scale, torch.nn.functional.pad(scale, (0, 3)))


# Styles scale whichever is smaller: the activations of a small image, the weights of a filter under a large one.
@pytest.mark.parametrize("side", [4, 40], ids=["few pixels", "few weights"])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution_equals_one_weight_per_sample(demodulate, kernel, side):
    x, weight, styles = normal(3, 4, side, side - 1), normal(15, 4, kernel, kernel, seed=1), normal(3, 4, seed=2)
    theirs = reference_ops.modulated_conv2d(x, weight, styles, demodulate, padding=kernel - 1)
    ours = modulated_conv2d(x, weight, styles, demodulate, padding=kernel - 1)
    assert relative_error(ours, theirs) < 1e-8  # the epsilon of the demodulation


def test_demodulation_makes_the_scale_of_styles_and_weights_irrelevant():
    x, weight, styles = normal(2, 4, 5, 5), normal(3, 4, 3, 3, seed=1), normal(2, 4, seed=2)
    scaled = modulated_conv2d(x, weight * 1e3, styles * 1e-3)
    torch.testing.assert_close(scaled, modulated_conv2d(x, weight, styles))


@pytest.mark.parametrize("side", [4, 5], ids=["few pixels", "few weights"])
def test_modulated_convolution_has_correct_second_derivatives(side):
    inputs = (normal(2, 2, side, side), normal(2, 2, 3, 3, seed=1), normal(2, 2, seed=2))
    inputs = tuple(value.requires_grad_() for value in inputs)
    assert torch.autograd.gradgradcheck(lambda x, w, s: modulated_conv2d(x, w, s, padding=1), inputs)


def test_equalised_learning_rate_leaves_the_output_at_unit_scale():
    torch.manual_seed(0)
    y = FullyConnected(512, 512, lr_multiplier=0.01)(torch.randn(64, 512))
    assert float(y.detach().std()) == pytest.approx(1, abs=0.03)  # 32768 values: 5 sigma


# --- Published numbers ----------------------------------------------------------------------------------------------


def gradients(y, dy, *inputs):
    return torch.autograd.grad((y * dy.double()).sum(), inputs)


@needs_golden
def test_filtered_lrelu_and_its_gradients_equal_the_published_ones():
    case = golden("ops_filtered_lrelu")
    for name, options in case.meta["cases"].items():
        x = case[f"{name}/x"].double().requires_grad_()
        bias = case[f"{name}/b"].double().requires_grad_() if options["bias"] else None
        y = filtered_lrelu(
            x,
            case.get(f"{name}/fu"),
            case.get(f"{name}/fd"),
            bias,
            options["up"],
            options["down"],
            options["padding"],
            options["gain"],
            options["slope"],
            options["clamp"],
        )
        assert relative_error(y, case[f"{name}/y"]) < 1e-10, name
        inputs = [x] if bias is None else [x, bias]
        for ours, key in zip(gradients(y, case[f"{name}/dy"], *inputs), ("dx", "db"), strict=False):
            assert relative_error(ours, case[f"{name}/{key}"]) < 1e-10, (name, key)


@needs_golden
def test_modulated_convolution_and_its_gradients_equal_the_published_ones():
    case = golden("ops_modconv")
    for name, options in case.meta["cases"].items():
        x, weight, styles = (case[f"{name}/{key}"].double().requires_grad_() for key in "xws")
        gain = case.get(f"{name}/input_gain")
        y = modulated_conv2d(
            x, weight, styles, options["demodulate"], options["padding"], None if gain is None else gain.double()
        )
        assert relative_error(y, case[f"{name}/y"]) < 1e-10, name
        for ours, key in zip(gradients(y, case[f"{name}/dy"], x, weight, styles), ("dx", "dw", "ds"), strict=True):
            assert relative_error(ours, case[f"{name}/{key}"]) < 1e-9, (name, key)


@needs_golden
def test_resampling_and_its_gradient_equal_the_published_ones():
    case = golden("ops_upfirdn2d")
    for name, options in case.meta["cases"].items():
        if not name.isdigit():
            continue
        x, filter = case[f"{name}/x"].double().requires_grad_(), case.get(f"{name}/f")
        if filter is not None and options["flip_filter"]:
            filter = filter.flip(tuple(range(filter.ndim)))
        up, down = (tuple(v) if isinstance(v, list) else v for v in (options["up"], options["down"]))
        y = resample(x, filter, up, down, options["padding"], options["gain"])
        # The published code rounds filter times gain to float32, which shows where the gain is no power of two.
        tolerance = 1e-10 if options["gain"] in (1, 4) else 1e-7
        assert relative_error(y, case[f"{name}/y"]) < tolerance, name
        (dx,) = gradients(y, case[f"{name}/dy"], x)
        assert relative_error(dx, case[f"{name}/dx"]) < tolerance, name


@needs_golden
def test_activations_equal_the_published_ones():
    case = golden("ops_bias_act")
    slopes = {"linear": 1.0, "relu": 0.0, "lrelu": 0.2}
    for name, options in case.meta["cases"].items():
        if options["act"] == "lrelu" and options["alpha"] is not None:
            slopes = {**slopes, "lrelu": options["alpha"]}
        gain = options["gain"] or (1.0 if options["act"] == "linear" else math.sqrt(2))
        x = case[f"{name}/x"].double()
        if options["bias"]:
            shape = [1] * x.ndim
            shape[options["dim"]] = -1
            x = x + case[f"{name}/b"].double().reshape(shape)
        ours = leaky_clamp(x * gain, slopes[options["act"]], options["clamp"])
        assert relative_error(ours, case[f"{name}/y"]) < 1e-10, name
        slopes["lrelu"] = 0.2


@needs_golden
def test_fully_connected_layers_equal_the_published_ones():
    case = golden("ops_layers")
    for name, layer in (
        ("fc_lrelu", FullyConnected(7, 5, lrelu=True, lr_multiplier=0.01)),
        ("fc_linear_bias1", FullyConnected(6, 4, bias_init=1.0)),
    ):
        layer.load_state_dict({key: torch.tensor(value) for key, value in case.below(f"{name}/sd/").items()})
        assert relative_error(layer(case[f"{name}/x"]), case[f"{name}/y"]) < 1e-6
