"""The generator's layer schedule: which layer runs at which sampling rate, with which filters, sizes and channels.

Pure numbers, so that every table of the paper can be compared without building a network. Cut-off and stop-band grow
geometrically over the layers and stay constant over the last ones, which are critically sampled; everything else
follows. Frequencies are in cycles per image width.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks", section 3.2 and appendix C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InputSpec:
    """What the Fourier features deliver to the first layer."""

    channels: int
    size: int  # pixels per side, margin included
    sampling_rate: int  # pixels per image width
    bandwidth: float


@dataclass(frozen=True)
class LayerSpec:
    """One synthesis layer: convolution, then leaky ReLU between an up- and a down-sampling filter."""

    name: str
    is_torgb: bool
    is_critically_sampled: bool
    use_fp16: bool
    in_channels: int
    out_channels: int
    in_size: int  # pixels per side, margin included
    out_size: int
    in_sampling_rate: int
    out_sampling_rate: int
    tmp_sampling_rate: int  # at which the leaky ReLU acts
    in_cutoff: float
    out_cutoff: float
    in_half_width: float  # half the transition band
    out_half_width: float
    conv_kernel: int
    up_factor: int
    down_factor: int
    up_taps: int  # 1: no filter
    down_taps: int
    down_radial: bool
    padding: tuple[int, int]  # before and after, both axes, at tmp_sampling_rate


@dataclass(frozen=True)
class Schedule:
    """Input and layers in the order of execution."""

    input: InputSpec
    layers: tuple[LayerSpec, ...]

    @property
    def num_ws(self) -> int:
        """Latents the synthesis network takes: one for the input, one per layer."""
        return len(self.layers) + 1


def layer_schedule(
    img_resolution: int,
    img_channels: int = 3,
    channel_base: int = 32768,
    channel_max: int = 512,
    num_layers: int = 14,
    num_critical: int = 2,
    first_cutoff: float = 2.0,
    first_stopband: float = 2.0**2.1,
    last_stopband_rel: float = 2.0**0.3,
    margin_size: int = 10,
    num_fp16_res: int = 4,
    conv_kernel: int = 3,
    filter_size: int = 6,
    lrelu_upsampling: int = 2,
    use_radial_filters: bool = False,
) -> Schedule:
    """Specification of every layer of a generator; `num_layers` of them and one that turns features into colours.

    filter_size: taps per resampling factor. num_fp16_res: highest resolutions that run in half precision on a GPU.
    Raises ValueError for an impossible combination.
    """
    if img_resolution < 4 or img_resolution & (img_resolution - 1):
        raise ValueError(f"img_resolution is {img_resolution}, but must be a power of two, at least 4. Use 32 or 512.")
    if not 0 <= num_critical < num_layers:
        raise ValueError(f"num_critical is {num_critical}, but must be from 0 to num_layers - 1 = {num_layers - 1}.")

    # Geometric progressions, one entry per layer 0..num_layers.
    last_cutoff = img_resolution / 2
    last_stopband = last_cutoff * last_stopband_rel
    exponents = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
    cutoffs = first_cutoff * (last_cutoff / first_cutoff) ** exponents
    stopbands = first_stopband * (last_stopband / first_stopband) ** exponents
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, img_resolution))))
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = rates + margin_size * 2
    sizes[-2:] = img_resolution
    channels = np.rint(np.minimum((channel_base / 2) / cutoffs, channel_max))
    channels[-1] = img_channels

    def spec(index: int) -> LayerSpec:
        before = max(index - 1, 0)
        is_torgb = index == num_layers
        is_critical = index >= num_layers - num_critical
        rate_in, rate_out = int(rates[before]), int(rates[index])
        rate = max(rate_in, rate_out) * (1 if is_torgb else lrelu_upsampling)
        up, down = rate // rate_in, rate // rate_out
        up_taps = filter_size * up if up > 1 and not is_torgb else 1
        down_taps = filter_size * down if down > 1 and not is_torgb else 1
        kernel = 1 if is_torgb else conv_kernel
        size_in, size_out = int(sizes[before]), int(sizes[index])
        # Samples that the down filter needs, less those there are after convolution, upsampling and the up filter.
        total = (size_out - 1) * down + 1 - (size_in + kernel - 1) * up + up_taps + down_taps - 2
        pad_before = (total + up) // 2
        return LayerSpec(
            name=f"L{index}_{size_out}_{int(channels[index])}",
            is_torgb=is_torgb,
            is_critically_sampled=is_critical,
            use_fp16=bool(rates[index] * 2**num_fp16_res > img_resolution),
            in_channels=int(channels[before]),
            out_channels=int(channels[index]),
            in_size=size_in,
            out_size=size_out,
            in_sampling_rate=rate_in,
            out_sampling_rate=rate_out,
            tmp_sampling_rate=rate,
            in_cutoff=float(cutoffs[before]),
            out_cutoff=float(cutoffs[index]),
            in_half_width=float(half_widths[before]),
            out_half_width=float(half_widths[index]),
            conv_kernel=kernel,
            up_factor=up,
            down_factor=down,
            up_taps=up_taps,
            down_taps=down_taps,
            down_radial=use_radial_filters and not is_critical,
            padding=(pad_before, total - pad_before),
        )

    fourier = InputSpec(int(channels[0]), int(sizes[0]), int(rates[0]), float(cutoffs[0]))
    return Schedule(fourier, tuple(spec(index) for index in range(num_layers + 1)))
