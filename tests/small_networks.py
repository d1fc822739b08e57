"""Published arguments of small networks of every kind, and the labels they take."""

from __future__ import annotations

from typing import Any

_SMALL = {"z_dim": 8, "w_dim": 8, "img_resolution": 16, "img_channels": 3, "channel_base": 128, "channel_max": 8}
_ROTATING = {"conv_kernel": 1, "use_radial_filters": True}
_MAPPING = {"mapping_kwargs": {"num_layers": 2}, "num_layers": 4}

GENERATORS: dict[str, tuple[dict[str, Any], int]] = {
    "T": ({**_SMALL, **_MAPPING, "c_dim": 0}, 0),
    "R": ({**_SMALL, **_MAPPING, **_ROTATING, "c_dim": 0}, 0),
    "T-conditional": ({**_SMALL, **_MAPPING, "c_dim": 3}, 3),
    "R-conditional": ({**_SMALL, **_MAPPING, **_ROTATING, "c_dim": 3}, 3),
}
CRITIC: dict[str, Any] = {
    "c_dim": 0, "img_resolution": 16, "img_channels": 3, "channel_base": 128, "channel_max": 8,
    "block_kwargs": {"freeze_layers": 0}, "epilogue_kwargs": {"mbstd_group_size": 4}, "mapping_kwargs": {},
}  # fmt: skip
