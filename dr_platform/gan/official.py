"""Published StyleGAN3 networks as ours: their constructor arguments translated, their weights loaded by name.

States are mappings from published names to arrays. Nothing here reads a pickle.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from .discriminator import Discriminator
from .generator import Generator

Network = TypeVar("Network", Generator, Discriminator)

# Arguments whose published name or nesting is another than ours: {published path: our name}.
_GENERATOR_RENAMED = {
    "mapping_kwargs.num_layers": "mapping_layers",
    "mapping_kwargs.lr_multiplier": "mapping_lr_multiplier",
    "mapping_kwargs.w_avg_beta": "w_avg_beta",
}
_DISCRIMINATOR_RENAMED = {
    "block_kwargs.freeze_layers": "freeze_layers",
    "block_kwargs.resample_filter": "resample_filter",
    "epilogue_kwargs.mbstd_group_size": "mbstd_group_size",
    "epilogue_kwargs.mbstd_num_channels": "mbstd_num_channels",
    "mapping_kwargs.num_layers": "mapping_layers",
    "mapping_kwargs.embed_features": "mapping_embed_features",
    "mapping_kwargs.layer_features": "mapping_layer_features",
    "mapping_kwargs.lr_multiplier": "mapping_lr_multiplier",
}
# Published arguments that select among forms of which we have one: {published path: the values we have}.
_GENERATOR_FIXED: dict[str, tuple[Any, ...]] = {}
_DISCRIMINATOR_FIXED: dict[str, tuple[Any, ...]] = {
    "architecture": ("resnet",),
    "block_kwargs.activation": ("lrelu",),
    "block_kwargs.fp16_channels_last": (False, True),  # memory layout only
    "epilogue_kwargs.activation": ("lrelu",),
    "mapping_kwargs.activation": ("lrelu",),
}


def generator_from_state(init_kwargs: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Generator:
    """A generator with published weights, in float32 and evaluation mode.

    init_kwargs: published constructor arguments; state: published name to array, filters included.
    Raises ValueError, in one line, for an argument we have no form of, and for missing, extra or misshapen arrays.
    """
    arguments = _translate(init_kwargs, Generator, _GENERATOR_RENAMED, _GENERATOR_FIXED)
    return _load(Generator, arguments, state)


def discriminator_from_state(init_kwargs: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Discriminator:
    """A residual discriminator with published weights, in float32 and evaluation mode. Otherwise as the generator."""
    arguments = _translate(init_kwargs, Discriminator, _DISCRIMINATOR_RENAMED, _DISCRIMINATOR_FIXED)
    return _load(Discriminator, arguments, state)


def _translate(
    init_kwargs: Mapping[str, Any],
    network: type[nn.Module],
    renamed: Mapping[str, str],
    fixed: Mapping[str, tuple[Any, ...]],
) -> dict[str, Any]:
    """Our constructor's arguments for the published ones."""
    known = set(inspect.signature(network).parameters) - set(renamed.values())
    arguments = {}
    for path, value in _flatten(init_kwargs):
        if path in renamed:
            arguments[renamed[path]] = value
        elif path in known:
            arguments[path] = value
        elif path not in fixed:
            choices = ", ".join(sorted({*known, *renamed}))
            raise ValueError(f"{network.__name__} has no argument {path} = {value!r}. It has: {choices}.")
        elif value not in fixed[path]:
            raise ValueError(f"{path} is {value!r}, but must be one of {fixed[path]}. Use a network of that form.")
    return arguments


def _flatten(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, value) of every argument; what a published generator hands to its synthesis network counts as its own."""
    for name, value in arguments.items():
        if not isinstance(value, Mapping):
            yield name, value
        elif name == "synthesis_kwargs":
            yield from _flatten(value)
        else:
            yield from ((f"{name}.{inner}", inner_value) for inner, inner_value in value.items())


def _load(kind: type[Network], arguments: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Network:
    """A network of these arguments with every parameter and buffer taken from `state`."""
    # First without memory: arguments may ask for far more weights than there are.
    with torch.device("meta"):
        own = kind(**arguments).state_dict()
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"extra {name}" for name in state if name not in own]
    faults += [
        f"{name} has shape {tuple(np.shape(state[name]))} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and np.shape(state[name]) != tuple(value.shape)
    ]
    if faults:
        raise ValueError(
            f"the weights do not fit a {kind.__name__} of these arguments: {'; '.join(faults)}. "
            "Pass the arguments they were made with."
        )
    network = kind(**arguments)
    network.load_state_dict({name: torch.from_numpy(np.array(state[name], dtype=np.float32)) for name in own})
    return network.eval()
