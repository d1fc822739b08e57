"""The StyleGAN2 residual discriminator, as StyleGAN3 uses it: blocks that halve the resolution, then a 4x4 epilogue.

Parameters and buffers bear the published names. Frozen layers hold their weights as buffers under the same names, so
that an optimiser never sees them and a checkpoint looks the same. Every layer carries a `resample_filter` buffer, used
or not, because published weights do. Half precision is used on CUDA only, in the highest resolutions.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", figure 7 and appendix B.
Frozen layers: Mo et al. 2020, "Freeze the Discriminator".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .filters import binomial_filter
from .ops import EPSILON, FullyConnected, biased_lrelu, normalize_second_moment, resample
from .precision import Precision

BINOMIAL = (1.0, 3.0, 3.0, 1.0)


class ConvLayer(nn.Module):
    """Same-size convolution with equalised learning rate, optionally behind a low-pass filter and with stride `down`.

    A layer with `lrelu` has a bias and clamps its result; one without is linear and has neither.
    """

    weight: Tensor
    bias: Tensor | None
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        lrelu: bool = True,
        down: int = 1,
        conv_clamp: float | None = None,
        resample_filter: Sequence[float] = BINOMIAL,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.down = down
        self.conv_clamp = conv_clamp
        self.register_buffer("resample_filter", binomial_filter(tuple(resample_filter)))
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        bias = torch.zeros(out_channels) if lrelu else None
        for name, value in (("weight", weight), ("bias", bias)):
            if trainable:
                self.register_parameter(name, None if value is None else nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """[N, O, H / down, W / down] for x [N, I, H, W]; `gain` scales the result and its limit."""
        kernel = self.weight.shape[-1]
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        padding, stride = kernel // 2, 1
        if self.down > 1:
            taps = self.resample_filter.shape[-1]
            before = padding + (taps - self.down + 1) // 2
            after = padding + (taps - self.down) // 2
            # A 1x1 convolution commutes with decimation, so decimate first.
            stride = self.down if kernel > 1 else 1
            x = resample(x, self.resample_filter, down=self.down // stride, padding=(before, after, before, after))
            padding = 0
        x = F.conv2d(x, weight.to(x.dtype), stride=stride, padding=padding)
        if self.bias is None:
            return x * gain
        # Moving the gain into the weights, or the bias into the convolution, would round otherwise: harmless for
        # logits, but it moves R1 gradients of biases, ill-conditioned by the minibatch deviation, by 1e-4.
        limit = None if self.conv_clamp is None else self.conv_clamp * gain
        return biased_lrelu(x, self.bias, gain, limit)


class Block(nn.Module):
    """Residual block: [N, I, R, R] to [N, O, R/2, R/2]; the first block takes images and turns them into features."""

    precision = Precision()

    def __init__(
        self,
        image_channels: int | None,
        in_channels: int,
        out_channels: int,
        use_fp16: bool,
        conv_clamp: float | None,
        resample_filter: Sequence[float],
        num_frozen: int,
    ) -> None:
        super().__init__()
        self.use_fp16 = use_fp16
        self.register_buffer("resample_filter", binomial_filter(tuple(resample_filter)))
        # Layers count as frozen in this order, the first block's from its conversion of colours on.
        frozen = iter(index < num_frozen for index in range(4))
        if image_channels is not None:
            self.fromrgb: ConvLayer | None = ConvLayer(
                image_channels, in_channels, 1, conv_clamp=conv_clamp, trainable=not next(frozen)
            )
        else:
            self.fromrgb = None
        self.conv0 = ConvLayer(in_channels, in_channels, 3, conv_clamp=conv_clamp, trainable=not next(frozen))
        self.conv1 = ConvLayer(
            in_channels,
            out_channels,
            3,
            down=2,
            conv_clamp=conv_clamp,
            resample_filter=resample_filter,
            trainable=not next(frozen),
        )
        self.skip = ConvLayer(
            in_channels,
            out_channels,
            1,
            lrelu=False,
            down=2,
            resample_filter=resample_filter,
            trainable=not next(frozen),
        )

    @property
    def num_layers(self) -> int:
        """Layers that count towards `freeze_layers`."""
        return 3 if self.fromrgb is None else 4

    def forward(self, x: Tensor, force_fp32: bool = False) -> Tensor:
        """Features at half the side; x are the images in the first block and features in all others."""
        marked = self.use_fp16 and not force_fp32
        x = kernels.channels_last(x.to(self.precision.dtype(marked, x.device, self.conv0.weight.dtype)))
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        gain = math.sqrt(0.5)
        shortcut = self.skip(x, gain=gain)
        return shortcut + self.conv1(self.conv0(x), gain=gain)


def minibatch_std(x: Tensor, group_size: int | None, num_channels: int = 1) -> Tensor:
    """`x` with `num_channels` channels appended: how much the samples of a group differ, the same for all its pixels.

    x: [N, C, H, W]. group_size: samples compared with each other (None: all), or N if that is smaller; groups are
    interleaved: sample n is in group n mod (N / group_size). Returns [N, C + num_channels, H, W].
    Raises ValueError if N is no multiple of the group size.

    Karras et al. 2018, "Progressive Growing of GANs", section 3.
    """
    n, c, h, w = x.shape
    group = n if group_size is None else min(group_size, n)
    if n % group:
        raise ValueError(
            f"a batch of {n} has no whole number of minibatch-std groups of {group}. Use a multiple of {group}."
        )
    groups = x.reshape(group, n // group, num_channels, c // num_channels, h, w)
    deviation = (groups - groups.mean(dim=0)).square().mean(dim=0).add(EPSILON).sqrt()
    per_group = deviation.mean(dim=(2, 3, 4))  # [N / group, F]
    return torch.cat([x, per_group.repeat(group, 1)[:, :, None, None].expand(n, num_channels, h, w)], dim=1)


class Epilogue(nn.Module):
    """4x4 features to one logit, or to cmap_dim numbers that the mapped label turns into one. Never half precision."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        conv_clamp: float | None,
        mbstd_group_size: int | None,
        mbstd_num_channels: int,
    ) -> None:
        super().__init__()
        self.mbstd_group_size = mbstd_group_size
        self.mbstd_num_channels = mbstd_num_channels
        self.conv = ConvLayer(in_channels + mbstd_num_channels, in_channels, 3, conv_clamp=conv_clamp)
        self.fc = FullyConnected(in_channels * 16, in_channels, lrelu=True)
        self.out = FullyConnected(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(self, x: Tensor, cmap: Tensor | None) -> Tensor:
        """Logits [N, 1] for x [N, C, 4, 4] and the mapped labels cmap [N, cmap_dim]."""
        x = x.to(self.conv.weight.dtype)
        if self.mbstd_num_channels > 0:
            x = minibatch_std(x, self.mbstd_group_size, self.mbstd_num_channels)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        return x if cmap is None else (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(cmap.shape[1])


class LabelMapping(nn.Module):
    """Label to the direction in which the epilogue's features must point."""

    def __init__(
        self,
        c_dim: int,
        cmap_dim: int,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        embedded = cmap_dim if embed_features is None else embed_features
        hidden = cmap_dim if layer_features is None else layer_features
        sizes = [embedded, *[hidden] * (num_layers - 1), cmap_dim]
        self.embed = FullyConnected(c_dim, embedded)
        for index in range(num_layers):
            layer = FullyConnected(sizes[index], sizes[index + 1], lrelu=True, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{index}", layer)

    def forward(self, c: Tensor) -> Tensor:
        """[N, cmap_dim] for c [N, c_dim]."""
        x = normalize_second_moment(self.embed(c.to(self.embed.weight.dtype)))
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        return x


class Discriminator(nn.Module):
    """Critic of images. Arguments are the published ones; `Discriminator(**d.init_kwargs)` builds an equal network.

    channel_base, channel_max: a block at resolution r has `channel_base / r` channels, at most channel_max.
    freeze_layers: this many first layers are not trained. cmap_dim: length of a mapped label (None: channels at 4x4).
    mbstd_group_size: see `minibatch_std`.
    """

    def __init__(
        self,
        c_dim: int = 0,
        img_resolution: int = 512,
        img_channels: int = 3,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 4,
        conv_clamp: float | None = 256.0,
        cmap_dim: int | None = None,
        freeze_layers: int = 0,
        resample_filter: Sequence[float] = BINOMIAL,
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        mapping_layers: int = 8,
        mapping_embed_features: int | None = None,
        mapping_layer_features: int | None = None,
        mapping_lr_multiplier: float = 0.01,
    ) -> None:
        resample_filter = list(resample_filter)
        init_kwargs = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if img_resolution < 8 or img_resolution & (img_resolution - 1):
            raise ValueError(f"img_resolution is {img_resolution}, but must be a power of two of at least 8.")
        self.init_kwargs = init_kwargs
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.block_resolutions = [2**k for k in range(img_resolution.bit_length() - 1, 2, -1)]
        channels = {res: min(channel_base // res, channel_max) for res in [*self.block_resolutions, 4]}
        first_half_resolution = max(img_resolution * 2 >> num_fp16_res, 8)
        num_counted = 0
        for res in self.block_resolutions:
            block = Block(
                img_channels if res == img_resolution else None,
                channels[res],
                channels[res // 2],
                use_fp16=res >= first_half_resolution and num_fp16_res > 0,
                conv_clamp=conv_clamp,
                resample_filter=resample_filter,
                num_frozen=freeze_layers - num_counted,
            )
            num_counted += block.num_layers
            setattr(self, f"b{res}", block)
        label_features = 0 if c_dim == 0 else channels[4] if cmap_dim is None else cmap_dim
        self.mapping = (
            LabelMapping(
                c_dim,
                label_features,
                mapping_layers,
                mapping_embed_features,
                mapping_layer_features,
                mapping_lr_multiplier,
            )
            if c_dim > 0
            else None
        )
        self.b4 = Epilogue(channels[4], label_features, conv_clamp, mbstd_group_size, mbstd_num_channels)

    def forward(self, images: Tensor, c: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        """Logits [N, 1] of images [N, img_channels, R, R] in [-1, 1] under labels c [N, c_dim], or None without labels.

        Positive: real. N must be a multiple of the minibatch-std group, or smaller than it.
        """
        x = images
        for res in self.block_resolutions:
            x = getattr(self, f"b{res}")(x, force_fp32)
        if self.mapping is None:
            return self.b4(x, None)
        if c is None:
            raise ValueError(f"this discriminator was made for labels with {self.c_dim} entries, found none. Pass c.")
        return self.b4(x, self.mapping(c))
