"""The StyleGAN3 generator, configurations T (3x3 convolutions) and R (1x1 convolutions, radial filters).

Parameters and buffers bear the published names, so that published weights load by name. Constants take the dtype of the
parameters: `generator.double()` computes in float64 throughout. Half precision is used on CUDA only, in the layers that
the schedule marks (see precision.py).

Legend: z latent [N, z_dim], c label [N, c_dim], w mapped latent [N, w_dim], ws one w for each layer [N, num_ws, w_dim].
Karras et al. 2021, "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .filters import lowpass_filter
from .ops import (
    LRELU_GAIN,
    LRELU_SLOPE,
    FullyConnected,
    filtered_lrelu,
    normalize_second_moment,
    scaled_conv2d,
)
from .precision import Precision
from .schedule import InputSpec, LayerSpec, Schedule, layer_schedule


class Statistics:
    """Means of what the running averages follow (w, and the mean square of every layer's input), to be applied later.

    The published networks move their averages during each forward pass, so each rank of a data-parallel group and each
    micro-batch moves them in its own way, and the result depends on how the batch is split. Collected here they are
    means over the global batch: pass one object to every micro-batch's forward pass, average `flat()` over the ranks,
    and hand the result to `Generator.apply_statistics` once per step.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, mean: Tensor) -> None:
        """Take a micro-batch's mean of `name`, a vector or a number; micro-batches weigh the same."""
        value = mean.detach().flatten()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def flat(self) -> Tensor:
        """All means over the micro-batches in the order of the forward pass: w [w_dim], then one number per layer.

        Raises ValueError if no forward pass has been seen.
        """
        if not self._sums:
            raise ValueError("no forward pass has filled these statistics. Pass them to the generator first.")
        return torch.cat([total / self._counts[name] for name, total in self._sums.items()])


class MappingNetwork(nn.Module):
    """Latent and label to w, repeated for every layer, optionally pulled towards the average w (truncation).

    default_class: the label that latents without one get, so that whoever draws images of one class need not know of
    labels; None at first, which refuses them.
    """

    w_avg: Tensor
    default_class: int | None = None

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
    ) -> None:
        super().__init__()
        self.c_dim = c_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        self.embed = FullyConnected(c_dim, w_dim) if c_dim > 0 else None
        in_features = z_dim + (w_dim if c_dim > 0 else 0)
        for index in range(num_layers):
            layer = FullyConnected(in_features, w_dim, lrelu=True, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{index}", layer)
            in_features = w_dim
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        statistics: Statistics | None = None,
    ) -> Tensor:
        """ws [N, num_ws, w_dim] for z [N, z_dim] and c [N, c_dim] (may be None without labels).

        truncation_psi: 1 leaves w as it is, 0 gives the average; truncation_cutoff: for this many first layers only.
        update_emas moves w_avg now, before it is used; `statistics` collects instead and changes no buffer.
        """
        x = normalize_second_moment(z.to(self.w_avg.dtype))
        if self.embed is not None:
            if c is None:
                if self.default_class is None:
                    raise ValueError(
                        f"this generator was made for labels with {self.c_dim} entries, found none. Pass c."
                    )
                c = F.one_hot(torch.full((len(x),), self.default_class, device=x.device), self.c_dim)
            x = torch.cat([x, normalize_second_moment(self.embed(c.to(x.dtype)))], dim=1)
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        if update_emas:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if statistics is not None:
            statistics.add("w", x.detach().mean(dim=0))
        ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)


class FourierInput(nn.Module):
    """Fourier features of a plane that each w translates and rotates, mixed by a learned matrix.

    `transform` [3, 3] is a further transform for all samples: the inverse of the one the image shall undergo, in image
    widths. Write into it to move the image; the identity at start. `size` is in pixels, one or (width, height).
    """

    freqs: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(
        self, w_dim: int, channels: int, size: int | tuple[int, int], sampling_rate: float, bandwidth: float
    ) -> None:
        super().__init__()
        self.width, self.height = (size, size) if isinstance(size, int) else size
        self.sampling_rate = sampling_rate
        self.bandwidth = bandwidth
        # Uniform in the disc of radius `bandwidth`: the radius squared of a normal pair is exponentially distributed.
        normal = torch.randn(channels, 2)
        squared = normal.square().sum(dim=1, keepdim=True)
        freqs = normal / squared.sqrt() * torch.exp(-squared / 4) * bandwidth
        phases = torch.rand(channels) - 0.5
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = FullyConnected(w_dim, 4, weight_init=0.0, bias_init=(1.0, 0.0, 0.0, 0.0))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", phases)

    def forward(self, w: Tensor) -> Tensor:
        """Features [N, channels, height, width] in the dtype of the parameters for w [N, w_dim]."""
        t = self.affine(w.to(self.weight.dtype))
        cos, sin, shift_x, shift_y = (t / torch.linalg.vector_norm(t[:, :2], dim=1, keepdim=True)).unbind(dim=1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).unflatten(1, (3, 3))
        shift = torch.stack([one, zero, -shift_x, zero, one, -shift_y, zero, zero, one], dim=1).unflatten(1, (3, 3))
        total = rotation @ shift @ self.transform  # [N, 3, 3], acts on sampling points

        phases = self.phases + (self.freqs @ total[:, :2, 2:]).squeeze(2)  # [N, C], in turns
        freqs = self.freqs @ total[:, :2, :2]  # [N, C, 2], cycles per image width along x and y
        # A transform may push frequencies past what the grid can hold: fade them out over the free band.
        excess = (torch.linalg.vector_norm(freqs, dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        amplitudes = (1 - excess).clamp(0, 1)

        turns_x = freqs[:, :, 0, None] * self._positions(self.width)
        turns_y = freqs[:, :, 1, None] * self._positions(self.height) + phases[:, :, None]
        waves = torch.sin(2 * math.pi * (turns_x[:, :, None, :] + turns_y[:, :, :, None]))
        weight = self.weight / math.sqrt(self.weight.shape[1])
        return F.conv2d(waves * amplitudes[:, :, None, None], weight[:, :, None, None])

    def _positions(self, size: int) -> Tensor:
        """Pixel centres along one axis in image widths; the image proper spans [-0.5, 0.5], the margin lies outside."""
        index = torch.arange(size, dtype=self.phases.dtype, device=self.phases.device)
        return (index + (0.5 - size / 2)) / self.sampling_rate


class SynthesisLayer(nn.Module):
    """Modulated convolution followed by a leaky ReLU that is free of aliasing; the last layer ends in colours."""

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None
    precision = Precision()

    def __init__(
        self, spec: LayerSpec, w_dim: int, conv_clamp: float | None = 256.0, magnitude_ema_beta: float = 0.999
    ) -> None:
        super().__init__()
        self.spec = spec
        self.conv_clamp = conv_clamp
        self.magnitude_ema_beta = magnitude_ema_beta
        kernel = spec.conv_kernel
        self.affine = FullyConnected(w_dim, spec.in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(spec.out_channels, spec.in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(spec.out_channels))
        self.register_buffer("magnitude_ema", torch.ones([]))
        rate = spec.tmp_sampling_rate
        up_filter = lowpass_filter(spec.up_taps, spec.in_cutoff, spec.in_half_width * 2, rate)
        down_filter = lowpass_filter(
            spec.down_taps, spec.out_cutoff, spec.out_half_width * 2, rate, radial=spec.down_radial
        )
        self.register_buffer("up_filter", up_filter)
        self.register_buffer("down_filter", down_filter)

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        update_emas: bool = False,
        force_fp32: bool = False,
        statistics: Statistics | None = None,
        power: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """[N, O, out_size, out_size] for x [N, I, in_size, in_size] and w [N, w_dim]; and its mean square, or None.

        The mean square is given where the averages ask for it and it comes at no cost; `power` is that of x, if the
        layer before has measured it. The result may have zero channels at its end, and x too: tensor cores and the
        kernel want aligned pixels, which 483 or 215 channels are not.
        """
        spec = self.spec
        measure = update_emas or statistics is not None
        if measure:
            if power is None:
                power = x.detach().to(self.magnitude_ema.dtype).square().mean()
            power = power.to(self.magnitude_ema.dtype)
            if update_emas:
                self.magnitude_ema.copy_(power.lerp(self.magnitude_ema, self.magnitude_ema_beta))
            if statistics is not None:
                statistics.add(spec.name, power)
        styles = self.affine(w)
        if spec.is_torgb:
            styles = styles / math.sqrt(spec.in_channels)
        up, down, padding = spec.up_factor, spec.down_factor, spec.padding * 2
        fu, fd, clamp = self.up_filter, self.down_filter, self.conv_clamp
        gain, slope = (1.0, 1.0) if spec.is_torgb else (LRELU_GAIN, LRELU_SLOPE)
        x = x.to(self.precision.dtype(spec.use_fp16 and not force_fp32, x.device, self.weight.dtype))
        fused = fu is not None and fd is not None and kernels.applies(x, fu, fd, up, down)
        x, scale = scaled_conv2d(
            x,
            self.weight,
            styles,
            demodulate=not spec.is_torgb,
            padding=spec.conv_kernel - 1,
            input_gain=self.magnitude_ema.rsqrt(),
            align=kernels.CHANNEL_ALIGNMENT if fused else 1,
        )
        if fused and fu is not None and fd is not None:
            # The kernel also applies the demodulation and measures what the next layer asks for: two passes less.
            bias = F.pad(self.bias, (0, x.shape[1] - spec.out_channels))
            x, squares = kernels.filtered_lrelu(x, fu, fd, bias, scale, up, down, padding, gain, slope, clamp, measure)
            num_pixels = x[:, 0].numel()
            return x, squares.sum() / (num_pixels * spec.out_channels) if measure else None
        return filtered_lrelu(x, fu, fd, self.bias, up, down, padding, gain, slope, clamp, scale), None


class Synthesis(nn.Module):
    """ws to images: Fourier features, then the layers of a schedule, each under its name."""

    def __init__(
        self,
        schedule: Schedule,
        w_dim: int,
        output_scale: float = 0.25,
        conv_clamp: float | None = 256.0,
        magnitude_ema_beta: float = 0.999,
    ) -> None:
        super().__init__()
        fourier: InputSpec = schedule.input
        self.num_ws = schedule.num_ws
        self.output_scale = output_scale
        self.layer_names = [spec.name for spec in schedule.layers]
        self.input = FourierInput(w_dim, fourier.channels, fourier.size, fourier.sampling_rate, fourier.bandwidth)
        for spec in schedule.layers:
            setattr(self, spec.name, SynthesisLayer(spec, w_dim, conv_clamp, magnitude_ema_beta))

    @property
    def layers(self) -> list[SynthesisLayer]:
        """In the order of execution."""
        return [getattr(self, name) for name in self.layer_names]

    def forward(
        self,
        ws: Tensor,
        update_emas: bool = False,
        force_fp32: bool = False,
        statistics: Statistics | None = None,
    ) -> Tensor:
        """Images [N, img_channels, R, R] for ws [N, num_ws, w_dim], about [-1, 1] but not clipped to it."""
        dtype = self.input.weight.dtype
        first, *rest = ws.to(dtype).unbind(dim=1)
        x = kernels.channels_last(self.input(first))
        power = None
        for layer, w in zip(self.layers, rest, strict=True):
            x, power = layer(x, w, update_emas, force_fp32, statistics, power)
        return x.to(dtype) * self.output_scale


class Generator(nn.Module):
    """Mapping and synthesis. Arguments are the published ones; `Generator(**g.init_kwargs)` builds an equal network.

    Configuration T is the default; R is `conv_kernel=1, use_radial_filters=True` with channels doubled.
    channel_base, channel_max: layer channels are `channel_base / 2 / cutoff`, at most channel_max.
    conv_clamp: limit of activations, None for no limit.
    """

    def __init__(
        self,
        z_dim: int = 512,
        c_dim: int = 0,
        w_dim: int = 512,
        img_resolution: int = 512,
        img_channels: int = 3,
        mapping_layers: int = 2,
        mapping_lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_layers: int = 14,
        num_critical: int = 2,
        first_cutoff: float = 2.0,
        first_stopband: float = 2.0**2.1,
        last_stopband_rel: float = 2.0**0.3,
        margin_size: int = 10,
        output_scale: float = 0.25,
        num_fp16_res: int = 4,
        conv_kernel: int = 3,
        filter_size: int = 6,
        lrelu_upsampling: int = 2,
        use_radial_filters: bool = False,
        conv_clamp: float | None = 256.0,
        magnitude_ema_beta: float = 0.999,
    ) -> None:
        init_kwargs = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.init_kwargs = init_kwargs
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        schedule = layer_schedule(
            img_resolution=img_resolution,
            img_channels=img_channels,
            channel_base=channel_base,
            channel_max=channel_max,
            num_layers=num_layers,
            num_critical=num_critical,
            first_cutoff=first_cutoff,
            first_stopband=first_stopband,
            last_stopband_rel=last_stopband_rel,
            margin_size=margin_size,
            num_fp16_res=num_fp16_res,
            conv_kernel=conv_kernel,
            filter_size=filter_size,
            lrelu_upsampling=lrelu_upsampling,
            use_radial_filters=use_radial_filters,
        )
        self.synthesis = Synthesis(schedule, w_dim, output_scale, conv_clamp, magnitude_ema_beta)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(
            z_dim, c_dim, w_dim, self.num_ws, mapping_layers, mapping_lr_multiplier, w_avg_beta
        )

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        force_fp32: bool = False,
        statistics: Statistics | None = None,
        mixing: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Images [N, img_channels, R, R] in about [-1, 1] for z [N, z_dim] and c [N, c_dim], or None without labels.

        mixing: second latents [N, z_dim] and, for each sample, the first of the `num_ws` places in ws that follows them
        (`num_ws`: none does). Karras et al. 2019, "A Style-Based Generator Architecture", section 3.1.
        update_emas moves the running averages at once, and this very pass uses the new values (as published).
        `statistics` collects what they should follow and changes nothing: see `apply_statistics`.
        Raises ValueError if both are given.
        """
        if update_emas and statistics is not None:
            raise ValueError("update_emas moves the averages now and statistics later; choose one.")
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas, statistics)
        if mixing is not None:
            second, first_place = mixing
            others = self.mapping(second, c, truncation_psi, truncation_cutoff)
            places = torch.arange(self.num_ws, device=ws.device)
            ws = torch.where((places >= first_place[:, None])[:, :, None], others, ws)
        return self.synthesis(ws, update_emas, force_fp32, statistics)

    @torch.no_grad()
    def apply_statistics(self, means: Tensor) -> None:
        """Move w_avg and every magnitude_ema by one step towards means [w_dim + layers], as `Statistics.flat` gives.

        Raises ValueError if the number of means is another.
        """
        layers = self.synthesis.layers
        if means.shape != (self.w_dim + len(layers),):
            raise ValueError(
                f"found {tuple(means.shape)} means, but this generator has {self.w_dim} + {len(layers)} averages. "
                "Collect them with one call of the whole generator."
            )
        w_avg = self.mapping.w_avg
        means = means.to(w_avg)
        w_avg.copy_(means[: self.w_dim].lerp(w_avg, self.mapping.w_avg_beta))
        for layer, power in zip(layers, means[self.w_dim :], strict=True):
            layer.magnitude_ema.copy_(power.lerp(layer.magnitude_ema, layer.magnitude_ema_beta))
