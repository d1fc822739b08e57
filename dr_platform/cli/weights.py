"""drp import, export: networks from elsewhere, and for elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from dr_platform.cli.console import Console

# The name goes into paths, params.yaml, tags of the registry and the metadata of images.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}", re.ASCII)


def import_networks(
    file: Annotated[Path, typer.Argument(help="A network pickle of StyleGAN3 or StyleGAN2-ADA (PyTorch).")],
    name: Annotated[str | None, typer.Option(help="Directory under imported/; default: the file's name.")] = None,
) -> None:
    """Import published networks from a pickle, without running the code that it carries.

    Writes their weights as safetensors into imported/NAME, to draw from and to start a transfer. A pickle that asks for
    anything but networks is refused. Published weights keep their licence, which the record names.

    Examples:
      drp import stylegan3-t-ffhqu-256x256.pkl
      drp generate imported/stylegan3-t-ffhqu-256x256 --seeds 0-15
      drp transfer --to 2 --parent imported/stylegan3-t-ffhqu-256x256
    """
    from dr_platform import published
    from dr_platform.errors import ConfigError
    from dr_platform.road import Project

    console, project = Console(), Project.here()
    name = file.stem if name is None else name
    if not _PLAIN_NAME.fullmatch(name):
        raise ConfigError(
            f"--name is {name!r}. Give a plain name for the directory under imported/: letters, digits, spaces and "
            "._- only, the first a letter or digit, at most 100."
        )
    target = project.root / published.IMPORTS / name
    published.require_free(target, file)
    record = published.import_file(file, target)
    for kind, found in (("generator", record.generator), ("discriminator", record.discriminator)):
        if found:
            console.result(f"imported/{name}: {kind}, {found['img_resolution']} px, {found['c_dim']} labels")
    if record.stylegan2_generator is not None:
        console.result(f"imported/{name}: a StyleGAN2 generator, kept as tensors; this platform cannot draw from it")
    console.say(record.licence)


def export_onnx(
    model: Annotated[
        str, typer.Argument(help="NAME (its champion), NAME/VERSION, or the directory of a checkpoint or import.")
    ],
    onnx: Annotated[Path, typer.Option("--onnx", help="File to write.")],
    batch: Annotated[int, typer.Option(min=1, max=64, help="Images per call; the file knows no other number.")] = 1,
) -> None:
    """Write a model's generator as an ONNX file, once onnxruntime has drawn from it what torch draws.

    Inputs: latents z, truncation psi (1 none), and one-hot labels c if the model is conditional. The file says that its
    images are synthetic, from which weights they come, and which licence these carry.

    Examples:
      drp export fundus-dr1-stylegan3 --onnx fundus.onnx
      drp export imported/stylegan3-t-ffhqu-256x256 --onnx ffhqu.onnx --batch 4
    """
    from dr_platform import generation, onnx_model
    from dr_platform.errors import ConfigError
    from dr_platform.road import Project

    if onnx.exists() and not onnx.is_file():
        kind = "directory" if onnx.is_dir() else "device or pipe"
        raise ConfigError(f"--onnx {onnx} is a {kind}. Give the name of a file.")
    console = Console()
    generator, provenance = generation.load(Project.here(), model)
    error = onnx_model.write(generator, onnx, provenance, batch)
    console.result(f"{onnx}: {batch} x {generator.img_resolution} px, opset {onnx_model.OPSET}")
    console.say(f"onnxruntime against torch: largest relative error {error:.1e}, at most {onnx_model.MOST_ERROR:g}")
    console.say(f"Trained on {provenance['Visibility']} images; licence: {provenance['Licence']}")
