"""The discriminator: minibatch deviation, frozen layers, construction, and the published layers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from gan_golden import golden, relative_error, table
from shared_data import needs_golden

from dr_platform.gan import Discriminator
from dr_platform.gan.discriminator import ConvLayer, minibatch_std

SMALL = {"img_resolution": 32, "channel_base": 256, "channel_max": 16}


def small_discriminator(**changes) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(**{**SMALL, **changes})


def test_minibatch_deviation_of_equal_images_is_the_root_of_epsilon():
    x = torch.randn(1, 4, 4, 4).repeat(4, 1, 1, 1)
    torch.testing.assert_close(minibatch_std(x, 4)[:, 4], torch.full((4, 4, 4), 1e-4))


def test_minibatch_deviation_of_two_images_is_half_their_distance():
    x = torch.stack([torch.zeros(2, 4, 4), torch.full((2, 4, 4), 6.0)])
    torch.testing.assert_close(minibatch_std(x, None)[:, 2], torch.full((2, 4, 4), 3.0))


def test_groups_are_interleaved_and_do_not_see_each_other():
    x = torch.randn(8, 4, 4, 4)
    whole = minibatch_std(x, 4)
    torch.testing.assert_close(whole[::2], minibatch_std(x[::2], 4))
    torch.testing.assert_close(whole[1::2], minibatch_std(x[1::2], 4))


def test_a_batch_that_is_no_multiple_of_the_group_is_refused():
    with pytest.raises(ValueError, match=r"batch of 6 .* groups of 4\. Use a multiple of 4"):
        minibatch_std(torch.zeros(6, 2, 4, 4), 4)


def test_logits_of_one_group_do_not_depend_on_another():
    D = small_discriminator(mbstd_group_size=2).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(D(images)[0::2], D(images[0::2]))


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 2), (4, 7), (7, 12), (10, 17), (99, 17)])
def test_frozen_layers_are_counted_from_the_image_on_and_the_epilogue_is_never_frozen(count, expected):
    # 32 px: fromRGB, conv0, conv1, skip of the first block, then three layers for each of two; skips have no bias.
    D = small_discriminator(freeze_layers=count)
    free = small_discriminator()
    names = {name for name, _ in free.named_parameters()} - {name for name, _ in D.named_parameters()}
    assert len(names) == expected
    assert not any(name.startswith("b4") for name in names)
    assert D.state_dict().keys() == free.state_dict().keys()


def test_init_kwargs_survive_json_and_rebuild_the_network():
    D = small_discriminator(c_dim=3, freeze_layers=2, mbstd_group_size=None, img_channels=1, cmap_dim=8)
    twin = Discriminator(**json.loads(json.dumps(D.init_kwargs)))
    twin.load_state_dict(D.state_dict())
    images, c = torch.randn(3, 1, 32, 32), torch.eye(3)
    assert torch.equal(twin(images, c), D(images, c))


def test_a_conditional_discriminator_needs_a_label_and_heeds_it():
    D = small_discriminator(c_dim=2)
    images = torch.randn(1, 3, 32, 32).repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="labels with 2 entries"):
        D(images)
    first, second = D(images, torch.eye(2))
    assert first != second


def test_second_derivatives_of_the_logits_are_correct():
    # 8 px, so that numerical differentiation stays cheap; two samples, one group.
    D = small_discriminator(img_resolution=8, channel_base=16, channel_max=2, img_channels=1).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(D, (images,), atol=1e-6)
    assert torch.autograd.gradgradcheck(D, (images,), atol=1e-5)


def test_a_resolution_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="img_resolution is 48"):
        small_discriminator(img_resolution=48)


# --- Published numbers ------------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("c_dim", [0, 5])
@pytest.mark.parametrize(("resolution", "channel_base"), [(256, 32768), (256, 16384), (512, 32768)])
def test_names_and_shapes_equal_the_published_ones(resolution, channel_base, c_dim):
    theirs = table("state_dict_shapes")[f"D_{resolution}_cbase{channel_base}_c{c_dim}"]
    D = Discriminator(c_dim=c_dim, img_resolution=resolution, channel_base=channel_base)
    assert {key: list(value.shape) for key, value in D.state_dict().items()} == theirs["shapes"]


@needs_golden
def test_minibatch_deviation_and_its_gradient_equal_the_published_ones():
    case = golden("ops_mbstd")
    for name, options in case.meta["cases"].items():
        x = case[f"{name}/x"].double().requires_grad_()
        y = minibatch_std(x, options["group"], options["F"])
        assert relative_error(y, case[f"{name}/y"]) < 1e-10
        (dx,) = torch.autograd.grad((y * case[f"{name}/dy"]).sum(), x)
        assert relative_error(dx, case[f"{name}/dx"]) < 1e-10


@needs_golden
def test_convolution_layers_equal_the_published_ones():
    case = golden("ops_layers")
    for name, layer, gain in (
        ("conv_lrelu_down_gain", ConvLayer(3, 5, 3, down=2, conv_clamp=0.6), math.sqrt(0.5)),
        ("conv_skip", ConvLayer(3, 5, 1, lrelu=False, down=2), math.sqrt(0.5)),
        ("fromrgb", ConvLayer(3, 6, 1), 1.0),
    ):
        layer.load_state_dict({key: torch.tensor(value) for key, value in case.below(f"{name}/sd/").items()})
        assert relative_error(layer(case[f"{name}/x"], gain=gain), case[f"{name}/y"]) < 1e-6, name


@needs_golden
def test_convolutions_behind_a_filter_and_their_gradients_equal_the_published_ones():
    case = golden("ops_conv2d_resample")
    for name, options in case.meta["cases"].items():
        if options["up"] > 1:
            continue  # the discriminator never upsamples
        kernel = options["k"]
        layer = ConvLayer(options["cin"], options["cout"], kernel, lrelu=False, down=options["down"]).double()
        layer.resample_filter.copy_(case["f"])
        # The layer divides by the root of its fan-in.
        weight = case[f"{name}/w"].double() * math.sqrt(options["cin"] * kernel**2)
        layer.weight = torch.nn.Parameter(weight)
        x = case[f"{name}/x"].double().requires_grad_()
        y = layer(x)
        assert relative_error(y, case[f"{name}/y"]) < 1e-10
        (dx,) = torch.autograd.grad((y * case[f"{name}/dy"]).sum(), x)
        assert relative_error(dx, case[f"{name}/dx"]) < 1e-10
