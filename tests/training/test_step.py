"""A step is the same whoever shares it out: gradients, statistics, and the R1 phase's missing bias."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tiny_training import tiny_config, tiny_images, tiny_state

from dr_platform.data import partition
from dr_platform.errors import TrainingError
from dr_platform.training import loop
from dr_platform.training.group import Group
from dr_platform.training.step import Players, Scalars, gradient_norm

BATCH, GROUP = 16, 4


def phase_gradients(group: Group, size: int) -> dict[str, torch.Tensor]:
    """Gradients of the three phases in float64, G's statistics, and D's logits, on the same global batch."""
    config = tiny_config(batch=BATCH)
    state = tiny_state(config)
    state.generator.double()
    state.discriminator.double()
    players = Players(state.generator, state.discriminator, group)
    mine = partition.micro_batches(BATCH, group.world, group.rank, GROUP, size)
    real = loop._real_images(config, 0, tiny_images(), mine).double()
    latents = loop._latents(config, 0, partition.Stream.GENERATOR_LATENTS, mine).double()
    found: dict[str, torch.Tensor] = {}

    def keep(phase: str, network: torch.nn.Module) -> None:
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                found[f"{phase}/{name}"] = parameter.grad.clone()

    scalars = Scalars()
    players.generator_phase(latents, scalars)
    keep("generator", state.generator)
    found["statistics"] = players.discriminator_phase(real, latents, scalars).clone()
    keep("discriminator", state.discriminator)
    players.r1_phase(real, 8.0, scalars)
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


@pytest.mark.parametrize(("world", "size"), [(2, 8), (2, 4), (4, 4)])
def test_any_number_of_workers_gives_the_gradients_of_one(world, size):
    """In float64, so that only the order of sums differs: 1e-10 is a million times that."""
    alone, together = phase_gradients(Group(), BATCH), on_workers(world, size)
    assert alone.keys() == together.keys()
    for name, expected in alone.items():
        error = torch.linalg.vector_norm(together[name] - expected)
        assert error <= 1e-10 * max(1e-3, float(torch.linalg.vector_norm(expected))), name


def test_accumulated_passes_give_the_gradient_of_one_large_pass():
    once, in_parts = phase_gradients(Group(), BATCH), phase_gradients(Group(), GROUP)
    assert once.keys() == in_parts.keys()
    for name, expected in once.items():
        torch.testing.assert_close(in_parts[name], expected, rtol=1e-9, atol=1e-13, msg=name)


def test_r1_leaves_the_output_bias_without_a_gradient():
    found = phase_gradients(Group(), BATCH)
    assert "discriminator/b4.out.bias" in found
    assert "r1/b4.out.bias" not in found


def test_r1_fires_in_the_first_step_and_then_every_interval(alone):
    config = tiny_config()
    state, images = tiny_state(config), tiny_images()
    players = Players(state.generator, state.discriminator, alone)
    mine = partition.micro_batches(config.batch, 1, 0, GROUP, config.batch)
    fired = ["r1/penalty" in loop.take_step(config, state, players, images, mine).sums for _ in range(9)]
    assert [step for step, yes in enumerate(fired) if yes] == [0, 4, 8]


@pytest.mark.parametrize("phase", ["generator", "discriminator"])
def test_a_nan_stops_the_run_and_names_step_and_phase(phase, alone):
    config = tiny_config()
    state, images = tiny_state(config), tiny_images()
    players = Players(state.generator, state.discriminator, alone)
    mine = partition.micro_batches(config.batch, 1, 0, GROUP, config.batch)
    loop.take_step(config, state, players, images, mine)
    if phase == "generator":
        state.generator.synthesis.input.weight.data[0, 0] = float("nan")
    else:
        images.images[:] = 0
        state.optimizer_g.step = lambda: state.discriminator.b4.out.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=f"the {phase} phase is nan at step 2 "):
        loop.take_step(config, state, players, images, mine)


def test_frozen_layers_stay_bitwise(alone):
    config = tiny_config(freeze_discriminator=3)
    state, images = tiny_state(config), tiny_images()
    before = {name: tensor.clone() for name, tensor in state.discriminator.state_dict().items()}
    players = Players(state.generator, state.discriminator, alone)
    mine = partition.micro_batches(config.batch, 1, 0, GROUP, config.batch)
    for _ in range(2):
        loop.take_step(config, state, players, images, mine)
    after = state.discriminator.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {"b16.fromrgb.weight", "b16.conv0.weight", "b16.conv1.weight"} <= same
    assert "b16.skip.weight" not in same


def test_the_norm_of_gradients_is_that_of_the_flat_vector():
    network = torch.nn.Linear(3, 2)
    network(torch.randn(4, 3)).square().sum().backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    torch.testing.assert_close(gradient_norm(network), flat.norm())
