"""A generator as an ONNX file: for programs that draw images without this platform, or without Python.

The graph has fixed shapes, computes in float32, and takes latents, the truncation and, of a conditional generator, the
labels. Its filters are depthwise convolutions, because the tiles that are faster on a CPU here are calls of their own.
A file is written only after onnxruntime has drawn from it what torch draws, and says in its metadata what it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dr_platform import files, sampling
from dr_platform.errors import CheckpointError
from dr_platform.gan import Generator

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20  # the newest that torch's exporter writes without converting versions
MOST_ERROR = 1e-4
_PSIS = (1.0, 0.7)
_SYNTHETIC = "Images from this model are synthetic: drawn by a generative model, they show no person."


class Drawing(nn.Module):
    """What the file computes: images of latents z [N, z_dim], truncation psi [] and one-hot labels c [N, c_dim].

    Returns [N, 3, R, R], about [-1, 1] but not clipped to it.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, psi: Tensor, c: Tensor | None = None) -> Tensor:
        """Truncation in the open: the mapping's own looks at the value of psi, which a graph cannot."""
        ws = self.generator.mapping(z, c)
        average = self.generator.mapping.w_avg
        return self.generator.synthesis(average + psi * (ws - average), force_fp32=True)


def write(
    generator: Generator, path: Path, metadata: Mapping[str, str], batch: int = 1, seeds: Sequence[int] = range(4)
) -> float:
    """Write `generator` as ONNX to `path`, atomically, and return the largest error found.

    metadata: goes into the file, with a note that images are synthetic and the figures of the check. batch: latents per
    call. seeds: latents of the check, which also goes through all labels and, from call to call, two truncations.
    The error is max|onnxruntime - torch| / max|torch| over all of these. Raises CheckpointError if it is larger than
    MOST_ERROR, in which case nothing is written.
    """
    generator = generator.cpu().float().eval()
    content = _graph(generator, batch)
    error = _largest_error(generator, content.SerializeToString(), batch, seeds)
    if not error <= MOST_ERROR:
        raise CheckpointError(
            f"{path} is not written: onnxruntime's images differ from torch's by {error:.2g} of the largest value, "
            f"more than {MOST_ERROR:g}. Report it with the versions that drp doctor prints."
        )
    notes = {
        **metadata,
        "Synthetic": _SYNTHETIC,
        "Pixels": "x * 127.5 + 128, clamped to 0..255 and truncated, for x in about [-1, 1]; [N, channels, H, W], RGB",
        "Checked": f"onnxruntime against torch {torch.__version__}: largest relative error {error:.2g}",
    }
    for key, value in notes.items():
        content.metadata_props.add(key=key, value=value)
    files.write_bytes(path, content.SerializeToString())
    return error


def _inputs(generator: Generator, batch: int) -> dict[str, Tensor]:
    inputs = {"z": torch.zeros(batch, generator.z_dim), "psi": torch.tensor(1.0)}
    return inputs | ({"c": torch.eye(generator.c_dim)[:1].repeat(batch, 1)} if generator.c_dim else {})


def _graph(generator: Generator, batch: int) -> ModelProto:
    inputs = _inputs(generator, batch)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            Drawing(generator).eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["images"],
            verbose=False,
        )
    content = program.model_proto  # type: ignore[union-attr]
    graph = content.graph
    # The exporter notes for every node which line of which file on this machine it comes from.
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return content


def _largest_error(generator: Generator, content: bytes, batch: int, seeds: Sequence[int]) -> float:
    """Over all seeds and labels, each call with the other truncation; NaN counts as infinite."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    count = max(len(seeds), generator.c_dim, len(_PSIS) * batch)
    errors = []
    for call in range(math.ceil(count / batch)):
        drawn = range(call * batch, (call + 1) * batch)
        inputs = {
            "z": sampling.latents([seeds[k % len(seeds)] for k in drawn], generator.z_dim),
            "psi": torch.tensor(_PSIS[call % len(_PSIS)]),
        }
        if generator.c_dim:
            inputs["c"] = torch.eye(generator.c_dim)[[k % generator.c_dim for k in drawn]]
        with torch.no_grad():
            expected = generator(inputs["z"], inputs.get("c"), truncation_psi=float(inputs["psi"])).numpy()
        (found,) = session.run(["images"], {name: value.numpy() for name, value in inputs.items()})
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        errors.append(math.inf if math.isnan(error) else error)
    return max(errors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its steps on stdout, and warns of its own future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
