"""A step is the same whoever shares it out: gradients, statistics, and the R1 phase's missing bias."""

from __future__ import annotations

import dataclasses
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tiny_training import tiny_batches, tiny_config, tiny_images, tiny_state

from dr_platform.data.partition import Stream
from dr_platform.errors import TrainingError
from dr_platform.training import loop
from dr_platform.training.group import Group
from dr_platform.training.step import FakePass, Players, RealPass, Scalars, View, gradient_norm

BATCH, GROUP = 16, 4


FAKES = (Stream.GENERATOR_LATENTS, Stream.GENERATOR_LABELS, Stream.GENERATOR_MIXING, Stream.AUGMENT_GENERATOR)


def in_double(item: FakePass | RealPass) -> FakePass | RealPass:
    values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if values.get("mixing"):
        values["mixing"] = (values["mixing"][0].double(), values["mixing"][1])
    return type(item)(**{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in values.items()})


def phase_gradients(group: Group, size: int) -> dict[str, torch.Tensor]:
    """Gradients of the three phases in float64 and G's statistics, on the same global batch.

    With all that could tell workers apart: labels, mixed styles, the published augmentations, blur.
    """
    images = dataclasses.replace(tiny_images(12), class_sizes=(3, 9))
    config = tiny_config(batch=BATCH, augment="bgc", style_mixing=0.5)
    state = tiny_state(config, num_classes=2)
    state.generator.double()
    state.discriminator.double()
    players = Players(state.generator, state.discriminator, group)
    batches = tiny_batches(config, state, group, size, images)
    fakes = [in_double(item) for item in batches.fake(3, *FAKES)]
    reals = [in_double(item) for item in batches.real(3, Stream.AUGMENT_REAL)]
    view = View(0.7, batches.augmentation, 0.8)
    found: dict[str, torch.Tensor] = {}

    def keep(phase: str, network: torch.nn.Module) -> None:
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                found[f"{phase}/{name}"] = parameter.grad.clone()

    scalars = Scalars()
    players.generator_phase(fakes, view, scalars)
    keep("generator", state.generator)
    found["statistics"] = players.discriminator_phase(reals, fakes, view, scalars).clone()
    keep("discriminator", state.discriminator)
    players.r1_phase(reals, view, 8.0, scalars)
    keep("r1", state.discriminator)
    return found


def _rank(rank: int, world: int, port: int, size: int, results: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = phase_gradients(Group.current(torch.device("cpu")), size)
    if rank == 0:
        results.update({name: tensor.numpy() for name, tensor in found.items()})
    dist.destroy_process_group()


def on_workers(world: int, size: int) -> dict[str, torch.Tensor]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_rank, args=(world, port, size, results), nprocs=world)
        return {name: torch.from_numpy(array) for name, array in dict(results).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Up to rounding in float64. That of a sum is 1e-16 of its terms; but the margin around augmented images follows
    their pass, so places up to 100 pixels from the origin are rounded differently, by 1e-14 pixels, and a gradient's
    terms cancel to a thousandth. 1e-9 leaves room for that, and is a hundredth of what float32 can tell.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = torch.linalg.vector_norm(found[name] - tensor)
        assert error <= 1e-9 * max(1e-3, float(torch.linalg.vector_norm(tensor))), name


@pytest.mark.parametrize(("world", "size"), [(2, 8), (2, 4), (4, 4)])
def test_any_number_of_workers_gives_the_gradients_of_one(world, size):
    assert_same(on_workers(world, size), phase_gradients(Group(), BATCH))


def test_accumulated_passes_give_the_gradient_of_one_large_pass():
    assert_same(phase_gradients(Group(), GROUP), phase_gradients(Group(), BATCH))


def test_r1_leaves_the_output_bias_without_a_gradient():
    found = phase_gradients(Group(), BATCH)
    assert "discriminator/b4.out.bias" in found
    assert "r1/b4.out.bias" not in found


def test_r1_fires_in_the_first_step_and_then_every_interval(alone):
    config = tiny_config()
    state, images = tiny_state(config), tiny_images()
    players = Players(state.generator, state.discriminator, alone)
    batches = tiny_batches(config, state, alone, config.batch, images)
    fired = ["r1/penalty" in loop.take_step(state, players, batches).sums for _ in range(9)]
    assert [step for step, yes in enumerate(fired) if yes] == [0, 4, 8]


@pytest.mark.parametrize("phase", ["generator", "discriminator"])
def test_a_nan_stops_the_run_and_names_step_and_phase(phase, alone):
    config = tiny_config()
    state, images = tiny_state(config), tiny_images()
    players = Players(state.generator, state.discriminator, alone)
    batches = tiny_batches(config, state, alone, config.batch, images)
    loop.take_step(state, players, batches)
    if phase == "generator":
        state.generator.synthesis.input.weight.data[0, 0] = float("nan")
    else:
        images.images[:] = 0
        state.optimizer_g.step = lambda: state.discriminator.b4.out.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=f"the {phase} phase is nan at step 2 "):
        loop.take_step(state, players, batches)


def test_frozen_layers_stay_bitwise(alone):
    config = tiny_config(freeze_discriminator=3)
    state, images = tiny_state(config), tiny_images()
    before = {name: tensor.clone() for name, tensor in state.discriminator.state_dict().items()}
    players = Players(state.generator, state.discriminator, alone)
    batches = tiny_batches(config, state, alone, config.batch, images)
    for _ in range(2):
        loop.take_step(state, players, batches)
    after = state.discriminator.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {"b16.fromrgb.weight", "b16.conv0.weight", "b16.conv1.weight"} <= same
    assert "b16.skip.weight" not in same


def test_the_norm_of_gradients_is_that_of_the_flat_vector():
    network = torch.nn.Linear(3, 2)
    network(torch.randn(4, 3)).square().sum().backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    torch.testing.assert_close(gradient_norm(network), flat.norm())
