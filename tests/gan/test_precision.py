"""Which layers compute in half precision, and how far that moves their results."""

from __future__ import annotations

import copy

import pytest
import torch
from gan_golden import relative_error

from dr_platform.gan import Discriminator, Generator, Precision, set_precision

SMALL = {"img_resolution": 32, "channel_base": 256, "channel_max": 8}


def networks() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    # Half precision above 8 pixels only, so that both kinds of layers occur.
    return [
        Generator(z_dim=8, w_dim=8, num_layers=6, num_fp16_res=1, **SMALL),
        Discriminator(num_fp16_res=1, mbstd_group_size=2, **SMALL),
    ]


def inputs(network: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 8) if isinstance(network, Generator) else (2, 3, 32, 32)
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("index", [0, 1], ids=["G", "D"])
def test_a_cpu_computes_in_full_precision_unless_asked(index):
    network = networks()[index]
    other = copy.deepcopy(network)
    set_precision(other, Precision(torch.bfloat16))
    assert torch.equal(network(inputs(network)), other(inputs(network)))


@pytest.mark.parametrize("index", [0, 1], ids=["G", "D"])
def test_bfloat16_moves_the_result_by_its_rounding(index):
    network = networks()[index]
    full = network(inputs(network))
    set_precision(network, Precision(torch.bfloat16, on_cpu=True))
    low = network(inputs(network))
    assert low.dtype == torch.float32
    assert low.detach().isfinite().all()
    # A unit roundoff of 2^-8 for every one of a few dozen roundings, at random; and it must have had an effect.
    assert 1e-5 < relative_error(low, full.detach()) < 2**-8 * 8


@pytest.mark.parametrize("index", [0, 1], ids=["G", "D"])
def test_no_layer_in_half_precision_is_full_precision(index):
    network = networks()[index]
    set_precision(network, Precision(torch.bfloat16, on_cpu=True))
    forced = network(inputs(network), force_fp32=True)
    set_precision(network, Precision(None, on_cpu=True))
    assert torch.equal(network(inputs(network)), forced)


def test_precision_is_no_argument_of_a_network():
    for network in networks():
        before = dict(network.init_kwargs)
        set_precision(network, Precision(torch.bfloat16))
        assert network.init_kwargs == before
        assert copy.deepcopy(network).init_kwargs == before


def test_a_copy_keeps_the_precision():
    network = networks()[0]
    set_precision(network, Precision(torch.bfloat16, on_cpu=True))
    assert torch.equal(copy.deepcopy(network)(inputs(network)), network(inputs(network)))


def test_a_gpu_computes_marked_layers_in_half_precision():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert Precision().dtype(True, cuda, torch.float32) == torch.float16
    assert Precision().dtype(False, cuda, torch.float32) == torch.float32
    assert Precision().dtype(True, cpu, torch.float32) == torch.float32


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"float8_e4m3fn, but must be"):
        set_precision(networks()[0], Precision(torch.float8_e4m3fn))
