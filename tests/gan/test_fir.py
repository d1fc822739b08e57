"""The maps behind resampling: separable terms of a filter, transposes, and the dense form that radial filters keep."""

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


@pytest.mark.parametrize("radial", [False, True], ids=["bands", "dense"])
def test_the_transposed_map_is_the_adjoint(radial):
    filter = lowpass_filter(12, 8.0, 20.0, 64.0, radial=radial)
    resampler = fir.resampler_for((31, 28), torch.float32, filter, down=(2, 2))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(31, 4, 28, generator=generator), torch.randn(10, 4, 9, generator=generator)
    forward, backward = (resampler(x) * y).sum(), (x * resampler.transposed(y)).sum()
    # <Ax, y> = <x, A'y>, up to the rounding of products as large as their norms.
    scale = float(resampler(x).norm() * y.norm())
    assert float((forward - backward).abs()) < 1e-6 * scale


def test_a_dense_filter_equals_the_sum_of_its_terms():
    filter = next(radial_filters(256))
    dense = fir.resampler_for((40, 40), torch.float32, filter, down=(2, 2))
    terms = fir.Resampler(dense.axes, torch.float32)
    x = torch.randn(40, 3, 40, generator=torch.Generator().manual_seed(0))
    assert relative_error(dense(x), terms(x)) < 1e-6
    assert relative_error(dense.transposed(dense(x)), terms.transposed(terms(x))) < 1e-6


def test_every_tile_together_is_the_matrix():
    axis = fir.Axis((1.0, 2.0, 3.0, 4.0), size=40, up=2, down=1, pad=(2, -3))
    for transposed in (False, True):
        band = fir.Band(axis._replace(transposed=transposed), torch.float64)
        columns = torch.eye(band.size_in, dtype=torch.float64)
        whole = torch.empty(band.size_out, band.size_in, dtype=torch.float64)
        band.along_rows(columns, whole, add=False)
        from_right = torch.empty(band.size_in, band.size_out, dtype=torch.float64)
        band.along_columns(columns, from_right, add=False)
        assert torch.equal(whole, from_right.t())
        assert set(whole.unique().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
