"""Losses: closed forms, then gradients of every training phase against the published ones."""

from __future__ import annotations

import math

import pytest
import torch
from gan_golden import golden, relative_error
from shared_data import needs_golden
from slopes import nearest_gradient, recorded_activations
from torch import Tensor, nn

from dr_platform.gan import (
    blur,
    blur_sigma,
    discriminator_fake_loss,
    discriminator_from_state,
    discriminator_real_loss,
    generator_from_state,
    generator_loss,
    r1_penalty,
)


def test_an_undecided_critic_costs_log_2():
    logits = torch.zeros(3, 1)
    for loss in (generator_loss, discriminator_fake_loss, discriminator_real_loss):
        torch.testing.assert_close(loss(logits), torch.full((3,), math.log(2)))


def test_losses_fall_for_whom_the_critic_favours():
    logits = torch.tensor([[-2.0], [2.0]])
    assert generator_loss(logits)[1] < generator_loss(logits)[0]
    assert discriminator_real_loss(logits)[1] < discriminator_real_loss(logits)[0]
    assert discriminator_fake_loss(logits)[0] < discriminator_fake_loss(logits)[1]


def test_the_generator_keeps_its_gradient_when_the_critic_is_sure():
    logits = torch.tensor([[-50.0]], requires_grad=True)
    generator_loss(logits).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0]]))


def test_r1_of_a_linear_critic_is_its_squared_weight_norm():
    weight = torch.randn(3 * 8 * 8, 1, dtype=torch.float64)
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images.flatten(1) @ weight, images)
    torch.testing.assert_close(penalty, weight.square().sum().expand(5))


def test_r1_can_be_descended():
    weight = torch.randn(3 * 4 * 4, 1, requires_grad=True)
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    r1_penalty(images.flatten(1) @ weight, images).mean().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_r1_of_half_precision_images_is_float32():
    images = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    assert r1_penalty(images.square().sum(dim=(1, 2, 3)), images).dtype == torch.float32


def test_blur_fades_linearly_and_ends():
    assert blur_sigma(0, 10, 200_000) == 10
    assert blur_sigma(100_000, 10, 200_000) == 5
    assert blur_sigma(300_000, 10, 200_000) == 0
    images = torch.randn(1, 3, 8, 8)
    assert blur(images, 0) is images


def test_blur_keeps_the_mean_of_what_it_spreads():
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 16] = 1
    torch.testing.assert_close(blur(image, 2.0).sum(), torch.tensor(1.0))


# --- Published numbers ------------------------------------------------------------------------------------------------

PAIRS = ("loss_t32__d32", "loss_r32__d32", "loss_t64_cond5__d64_cond5")


def networks(case, dtype: torch.dtype):
    generator, critic = (golden(case.meta[key].removesuffix(".npz")) for key in "GD")
    G = generator_from_state(generator.meta["cfg"], generator.below("sd/")).to(dtype)
    D = discriminator_from_state(critic.meta["cfg"], critic.below("sd/")).to(dtype)
    return G, D


def phase_loss(phase: str, case, G: nn.Module, D: nn.Module, dtype: torch.dtype) -> Tensor:
    """Mean loss of a training phase with its interval, as the published loop accumulates it."""
    options = case.meta["loss_kwargs"]
    sigma = blur_sigma(
        case.meta["cur_nimg"], options.get("blur_init_sigma", 0), options.get("blur_fade_kimg", 0) * 1000
    )
    z, c = case["in/gen_z"].to(dtype), case["in/gen_c"].to(dtype)
    real, real_c = case["in/real_img"].to(dtype).requires_grad_(), case["in/real_c"].to(dtype)
    if phase == "Gmain":
        return generator_loss(D(blur(G(z, c), sigma), c)).mean()
    if phase == "Dmain":
        with torch.no_grad():
            fake = G(z, c, update_emas=True)
        fake_loss = discriminator_fake_loss(D(blur(fake, sigma), c)).mean()
        return fake_loss + discriminator_real_loss(D(blur(real, sigma), real_c)).mean()
    penalty = r1_penalty(D(blur(real, sigma), real_c), real)
    return penalty.mean() * (options["r1_gamma"] / 2 * case.meta["gains"]["Dreg"])


def phase_gradients(phase: str, case, dtype: torch.dtype) -> dict[str, Tensor]:
    G, D = networks(case, dtype)
    module = G if phase == "Gmain" else D
    parameters = dict(module.named_parameters())
    loss = phase_loss(phase, case, G, D, dtype)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), gradients, strict=True)
    return {name: torch.zeros_like(value) if gradient is None else gradient for (name, value), gradient in pairs}


@needs_golden
@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dreg"])
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_of_each_phase_equal_the_published_ones(name, phase):
    case = golden(name)
    G, D = networks(case, torch.float32)
    parameters = dict((G if phase == "Gmain" else D).named_parameters())
    with recorded_activations() as activations:
        loss = phase_loss(phase, case, G, D, torch.float32)
    published = {key: torch.as_tensor(value) for key, value in case.below(f"{phase}/grad/").items()}
    assert parameters.keys() == published.keys()

    def gradient() -> Tensor:
        leaves = [parameters[key] for key in published]
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([part.double().flatten() for part in found])

    # The minibatch deviation makes the gradient ill-conditioned: the published float32 differs from its own float64
    # by up to 1e-4 in norm. So 1e-4 for the whole, and more room for single tensors.
    whole = torch.cat([value.double().flatten() for value in published.values()])
    ours, _ = nearest_gradient(gradient, activations, whole, enough=1e-4)
    assert relative_error(ours, whole) < 1e-4
    sizes = [value.numel() for value in published.values()]
    for (key, value), mine in zip(published.items(), ours.split(sizes), strict=True):
        if value.any():
            assert relative_error(mine, value.flatten()) < 1e-3, key
        else:
            assert not mine.any(), key


@needs_golden
@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dreg"])
@pytest.mark.parametrize("name", PAIRS)
def test_gradient_norms_in_double_precision_equal_the_published_ones(name, phase):
    case = golden(name)
    ours = phase_gradients(phase, case, torch.float64)
    names = case.arrays[f"{phase}/grad_norm_names"]
    norms = torch.stack([ours[key].norm() for key in names])
    assert relative_error(norms, case[f"f64/{phase}/grad_norm"]) < 1e-9


@needs_golden
@pytest.mark.parametrize("name", PAIRS)
def test_averages_after_the_critics_phase_equal_the_published_ones(name):
    case = golden(name)
    G, D = networks(case, torch.float32)
    phase_loss("Dmain", case, G, D, torch.float32)
    for key, value in case.below("after/G/").items():
        assert relative_error(G.state_dict()[key], value) < 1e-6, key


@needs_golden
def test_blurred_images_equal_the_published_ones():
    case = golden("loss_r32__d32")
    assert relative_error(blur(case["in/real_img"], case.meta["blur_sigma"]), case["blur/real_img_blurred"]) < 1e-6
