"""The maps behind resampling: their matrices, their transposes, and the separable terms of a filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gan_golden import relative_error

from dr_platform.gan import fir
from dr_platform.gan.filters import lowpass_filter
from dr_platform.gan.schedule import layer_schedule


def radial_filters(resolution):
    for spec in layer_schedule(resolution, conv_kernel=1, use_radial_filters=True).layers:
        if spec.down_radial:
            design = spec.down_taps, spec.out_cutoff, spec.out_half_width * 2, spec.tmp_sampling_rate
            yield lowpass_filter(*design, radial=True)


def rows_of(filter):
    return tuple(map(tuple, filter.tolist()))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-7])
def test_separable_terms_sum_to_the_filter_within_the_tolerance(tolerance):
    for filter in radial_filters(512):
        terms = fir.separable_terms(rows_of(filter), tolerance)
        rest = filter.double().numpy() - sum(np.outer(rows, columns) for rows, columns in terms)
        assert np.linalg.norm(rest) <= tolerance * filter.double().norm()


def test_three_separable_terms_hold_a_radial_filter_to_1e_4():
    assert max(len(fir.separable_terms(rows_of(filter), 1e-4)) for filter in radial_filters(512)) == 3


def test_an_outer_product_is_one_term():
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    assert len(fir.separable_terms(rows_of(torch.outer(line, line)), 1e-7)) == 1


def drawn_case(seed):
    """A filter, factors, padding and image size at random; sides stay positive."""
    rng = np.random.default_rng(seed)
    shape = [(), (rng.integers(1, 13),), tuple(rng.integers(1, 7, 2))][seed % 3]
    filter = torch.tensor(rng.standard_normal(shape)) if shape else None
    up, down = ((1, 1) if seed % 2 else tuple(rng.integers(1, 5, 2).tolist())), tuple(rng.integers(1, 4, 2).tolist())
    size = tuple(rng.integers(16, 24, 2).tolist())
    return filter, up, down, rng.integers(-2, 10, 4).tolist(), size


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=["double", "single"])
@pytest.mark.parametrize("seed", range(30))
def test_resampling_and_its_transpose_are_the_matrix_of_the_definition(seed, dtype, bound):
    """The map as a matrix, by its images of all unit vectors, against one-dimensional definitions multiplied."""
    filter, up, down, padding, (height, width) = drawn_case(seed)
    resampler = fir.resampler_for((height, width), dtype, filter, up, down, padding, gain=1.7)
    units = torch.eye(height * width, dtype=dtype).view(-1, height, width)
    found = resampler(fir.gathered(units))[0].flatten(1).t()
    taps = torch.ones(1, 1) if filter is None else torch.outer(filter, filter) if filter.ndim == 1 else filter
    wanted = definition(taps.double(), up, down, padding, (height, width)) * 1.7
    assert resampler.size_in == (height, width)
    limit = bound * max(1.0, float(wanted.norm()))  # a map that meets inserted zeros only is zero
    assert float((found - wanted).norm()) < limit
    units = torch.eye(len(wanted), dtype=dtype).view(-1, *resampler.size_out)
    assert float((resampler.transposed(fir.gathered(units))[0].flatten(1) - wanted).norm()) < limit
    assert float(wanted.abs().sum(dim=1).max()) <= resampler.norm * (1 + 1e-6)


def definition(taps, up, down, padding, size):
    """The matrix [H' W', H W]: output (i, j) takes sample (k, l) by the tap that lies between them."""
    left, right, top, bottom = padding
    distances = []
    for length, factor, step, (before, after), num_taps in zip(
        size, up[::-1], down[::-1], ((top, bottom), (left, right)), taps.shape, strict=True
    ):
        out = torch.arange(fir.resampled_side(length, num_taps, factor, step, (before, after)))
        distances.append(out[:, None] * step + num_taps - 1 - before - torch.arange(length) * factor)
    rows, columns = distances
    y, x = rows[:, None, :, None], columns[None, :, None, :]
    inside = (y >= 0) & (y < taps.shape[0]) & (x >= 0) & (x < taps.shape[1])
    values = taps[y.clamp(0, taps.shape[0] - 1), x.clamp(0, taps.shape[1] - 1)] * inside
    return values.reshape(len(rows) * len(columns), -1)


def test_a_radial_filter_equals_the_sum_of_its_terms():
    filter = next(radial_filters(256))
    dense, terms = (fir.resampler_for((40, 40), torch.float32, filter, down=(2, 2), split=s) for s in (False, True))
    assert len(dense.chains) == 1 < len(terms.chains)
    x = fir.gathered(torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0)))
    assert relative_error(dense(x), terms(x)) < 1e-6
    assert relative_error(dense.transposed(dense(x)), terms.transposed(terms(x))) < 1e-6


def test_as_many_planes_as_come_are_cut_into_chunks(monkeypatch):
    monkeypatch.setattr(fir, "CHUNK_BYTES", 1)
    filter = lowpass_filter(12, 8.0, 20.0, 64.0)
    x = torch.randn(3, 13, 20, 20, generator=torch.Generator().manual_seed(0))
    parts = fir.resample(x, filter, up=2, down=1, padding=(6, 5, 6, 5))
    monkeypatch.undo()
    assert relative_error(parts, fir.resample(x, filter, up=2, down=1, padding=(6, 5, 6, 5))) < 1e-6
