"""Filters as sums of separable ones."""

from __future__ import annotations

import pytest
import torch

from dr_platform.gan.filters import lowpass_filter
from dr_platform.gan.kernels import factors
from dr_platform.gan.kernels.factors import TOLERANCE, separable_factors
from dr_platform.gan.schedule import layer_schedule


def assembled(terms: torch.Tensor) -> torch.Tensor:
    return torch.einsum("rt,rs->ts", terms[:, 0], terms[:, 1])


def test_a_line_is_its_own_outer_product():
    line = lowpass_filter(12, 2.0, 12.0, 32.0)
    terms = separable_factors(line)
    assert terms.shape == (1, 2, 12)
    assert torch.equal(assembled(terms), torch.outer(line, line))


def test_an_outer_product_has_rank_one():
    left, right = torch.rand(12), torch.rand(12)
    terms = separable_factors(torch.outer(left, right))
    assert len(terms) == 1
    torch.testing.assert_close(assembled(terms), torch.outer(left, right))


@pytest.mark.parametrize("resolution", [256, 512])
def test_every_radial_filter_is_of_low_rank_within_the_tolerance(resolution):
    wide = {"channel_base": 65536, "channel_max": 1024, "conv_kernel": 1, "use_radial_filters": True}
    layers = [spec for spec in layer_schedule(resolution, **wide).layers if spec.down_radial and not spec.is_torgb]
    assert len(layers) == 12
    ranks = []
    for spec in layers:
        filter = lowpass_filter(12, spec.out_cutoff, spec.out_half_width * 2, spec.tmp_sampling_rate, radial=True)
        terms = separable_factors(filter)
        # 2^-24 of float32 per entry comes on top of what the rank leaves out.
        assert (assembled(terms) - filter).norm() <= (TOLERANCE + 2e-7) * filter.norm(), spec.name
        ranks.append(len(terms))
    assert set(ranks) <= {2, 3, 4}  # a symmetric 12 x 12 filter may have 6
    assert ranks.count(4) <= 2


def test_a_tighter_tolerance_takes_more_terms():
    filter = lowpass_filter(12, 90.5, 75.0, 512.0, radial=True)
    exact = separable_factors(filter, tolerance=1e-7)
    assert len(exact) > len(separable_factors(filter))
    torch.testing.assert_close(assembled(exact), filter, rtol=0, atol=1e-7)


def test_factors_are_kept_until_the_filter_changes(monkeypatch):
    calls = []
    decompose = factors._decompose
    monkeypatch.setattr(factors, "_decompose", lambda *args: calls.append(1) or decompose(*args))
    filter = torch.rand(12)
    separable_factors(filter)
    separable_factors(filter)
    assert len(calls) == 1
    filter.mul_(2)  # as loading weights does
    assert torch.equal(separable_factors(filter)[0, 0], filter)
    assert len(calls) == 2


def test_factors_first_made_in_inference_mode_serve_training_later():
    filter = torch.rand(12)
    with torch.inference_mode():
        separable_factors(filter)
    assert not separable_factors(filter).is_inference()


def test_a_filter_made_in_inference_mode_has_factors_too():
    with torch.inference_mode():
        filter = torch.rand(12)
        assert torch.equal(separable_factors(filter)[0, 0], filter)
