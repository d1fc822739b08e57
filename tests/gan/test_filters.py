"""Low-pass filters: what any such filter must do, the textbook design, then the published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from gan_golden import golden
from shared_data import needs_golden

from dr_platform.gan.filters import binomial_filter, kaiser_attenuation, kaiser_beta, lowpass_filter

# (taps, cutoff, full transition width, rate) as they occur in networks
DESIGNS = [(12, 2.0, 12.0, 32.0), (24, 4.0, 12.0, 64.0), (12, 32.0, 64.0, 256.0), (12, 256.0, 118.3, 1024.0)]


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("design", DESIGNS)
def test_lowpass_has_unit_gain_at_dc(design, radial):
    taps = lowpass_filter(*design, radial=radial)
    assert taps.double().sum() == pytest.approx(1, abs=1e-6)  # 144 taps rounded to float32


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("design", DESIGNS)
def test_lowpass_is_symmetric_so_it_shifts_nothing(design, radial):
    taps = lowpass_filter(*design, radial=radial)
    torch.testing.assert_close(taps, taps.flip(tuple(range(taps.ndim))), rtol=0, atol=1e-8)


@pytest.mark.parametrize("design", [(12, 256.0, 118.3, 1024.0), (24, 8.0, 8.0, 64.0), (48, 16.0, 8.0, 128.0)])
def test_stop_band_is_attenuated_as_much_as_the_kaiser_formula_promises(design):
    num_taps, cutoff, width, rate = design
    taps = lowpass_filter(*design).double().numpy()
    freqs = np.linspace(cutoff + width / 2, rate / 2, 200)
    response = np.abs(np.exp(-2j * np.pi * np.outer(freqs / rate, np.arange(num_taps))) @ taps)
    promised = kaiser_attenuation(num_taps, width, rate)
    # Kaiser's formula is an empirical fit, good to about 1 dB where the transition band stays clear of DC.
    assert -20 * math.log10(response.max()) > promised - 2


def test_a_radial_filter_depends_on_the_distance_only_up_to_its_window():
    taps = lowpass_filter(12, 2.0, 12.0, 32.0, radial=True).double().numpy()
    line = np.kaiser(12, kaiser_beta(kaiser_attenuation(12, 12.0, 32.0)))
    jinc = taps / np.outer(line, line)
    # (0.5, 3.5) and (2.5, 2.5) taps from the centre are equally far: 12.5 each.
    assert jinc[6, 9] == pytest.approx(jinc[8, 8], rel=1e-5)


def test_separable_design_equals_the_windowed_design_of_scipy():
    for num_taps, cutoff, width, rate in DESIGNS:
        theirs = scipy.signal.firwin(num_taps, cutoff, width=width, fs=rate)
        np.testing.assert_allclose(lowpass_filter(num_taps, cutoff, width, rate).numpy(), theirs, rtol=0, atol=6e-8)


def test_one_tap_is_no_filter():
    assert lowpass_filter(1, 2.0, 4.0, 32.0) is None


def test_a_radial_filter_with_an_odd_number_of_taps_is_refused():
    with pytest.raises(ValueError, match=r"even number of taps, found 13\. Use 14"):
        lowpass_filter(13, 2.0, 12.0, 32.0, radial=True)


def test_binomial_filter_is_an_outer_product_of_unit_sum_below_8_taps():
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    torch.testing.assert_close(binomial_filter([1, 3, 3, 1]), torch.outer(line, line))
    assert binomial_filter([1, 2, 3, 4, 4, 3, 2, 1]).shape == (8,)


@needs_golden
def test_filters_equal_the_published_ones():
    case = golden("filters")
    for index, design in enumerate(case.meta["cases"]):
        ours = lowpass_filter(design["numtaps"], design["cutoff"], design["width"], design["fs"], design["radial"])
        theirs = case[f"{index:02d}/filter"]
        torch.testing.assert_close(torch.ones(1) if ours is None else ours, theirs, rtol=1e-6, atol=1e-9)
        if f"{index:02d}/kaiser_beta" in case:
            attenuation = kaiser_attenuation(design["numtaps"], design["width"], design["fs"])
            assert attenuation == pytest.approx(float(case[f"{index:02d}/kaiser_atten"]), rel=1e-12)
            assert kaiser_beta(attenuation) == pytest.approx(float(case[f"{index:02d}/kaiser_beta"]), rel=1e-12)


@needs_golden
def test_prepared_resampling_filters_equal_the_published_ones():
    case = golden("ops_upfirdn2d")
    for name in ("1331", "8taps_auto_separable"):
        ours = binomial_filter(case.meta["cases"][f"setup_filter/{name}"]["f"])
        torch.testing.assert_close(ours, case[f"setup_filter/{name}"])
