"""Published network pickles (StyleGAN3, StyleGAN2-ADA), read without running anything that is in them.

Such a file is a pickle that carries the source text of its own classes, and whoever loads it as its authors do runs
that text. Here the names in it are looked up in a table of inert stand-ins, and everything else is refused: nothing of
the file is imported, called or kept but numbers, texts and the arguments that the networks were made with. Two passes:
the first looks at the opcodes, the second unpickles. Storages are torch.save streams, read as weights only.

The layout (names of globals, where tensors lie) is a fact of the format; see gan/official.py for the networks' own.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from dr_platform import files
from dr_platform.errors import CheckpointError
from dr_platform.gan import Discriminator, Generator, discriminator_from_state, generator_from_state
from dr_platform.records import Imported, StoredFile

Network = TypeVar("Network", Generator, Discriminator)

RECORD_FILE = "imported.json"
GENERATOR_FILE = "generator_ema.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
LICENCE = (
    "Weights that NVIDIA published are under its Source Code License: non-commercial use only. "
    "Weights that you trained are yours."
)

# The largest published file has 360 MB, and a network of 1024 px about 30 million numbers.
_MOST_BYTES = 4 * 2**30
_MOST_NUMBERS = 2**30
_MOST_MODULES = 10_000
_DEPTH = 32
_NETWORKS = ("G_ema", "G", "D")
_MAPPINGS = {("collections", "OrderedDict"), ("dnnlib.util", "EasyDict")}
_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}

# What plain data, and the calls that the table below allows, are written with.
_OPCODES = frozenset(
    [
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
        *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ"),
    ]
)


@dataclass(frozen=True)
class Published:
    """One network of a file: its class, the arguments it was made with, and its tensors by published name."""

    class_name: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]


def import_file(path: Path, target: Path) -> Imported:
    """Write the networks of a published pickle into the directory `target`, and return the record.

    Raises CheckpointError, in one line and with nothing written, for a file that is no such pickle, that names anything
    else than such pickles need, or whose networks are not of a form that we have.
    """
    networks = read(path)
    written: dict[str, dict[str, Tensor]] = {}
    arguments: dict[str, dict[str, Any]] = {}
    generator = networks.get("G_ema") or networks.get("G")
    if generator is not None and _is_stylegan3(generator):
        network = _rebuilt(generator_from_state, generator, path)
        written[GENERATOR_FILE], arguments["generator"] = dict(network.state_dict()), network.init_kwargs
        if "G" in networks:
            written["generator.safetensors"] = dict(_rebuilt(generator_from_state, networks["G"], path).state_dict())
    elif generator is not None:
        written["stylegan2_generator.safetensors"] = generator.tensors
        arguments["stylegan2_generator"] = generator.arguments
    if "D" in networks:
        critic = _rebuilt(discriminator_from_state, networks["D"], path)
        written[DISCRIMINATOR_FILE], arguments["discriminator"] = dict(critic.state_dict()), critic.init_kwargs
    if not written:
        raise CheckpointError(f"{path} holds no G, G_ema or D. Pass a network pickle of StyleGAN3 or StyleGAN2-ADA.")
    with files.directory_aside(target, failure=CheckpointError) as aside:
        for name, tensors in written.items():
            safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, aside / name)
        stored = {
            name: StoredFile(bytes=(aside / name).stat().st_size, sha256=files.sha256_file(aside / name))
            for name in written
        }
        record = Imported(
            source=path.name,
            source_sha256=files.sha256_file(path),
            licence=LICENCE,
            generator=arguments.get("generator"),
            stylegan2_generator=_plain(arguments.get("stylegan2_generator")),
            discriminator=arguments.get("discriminator"),
            files=stored,
        )
        record.write(aside / RECORD_FILE)
    return record


def verify(directory: Path) -> Imported:
    """The record of an imported directory whose files are those recorded. Raises CheckpointError naming the first."""
    record = Imported.read(directory / RECORD_FILE)
    for name, stored in record.files.items():
        path = directory / name
        if not path.is_file() or files.sha256_file(path) != stored.sha256:
            raise CheckpointError(f"{path} is missing or damaged. {Imported.remedy}")
    return record


def read(path: Path) -> dict[str, Published]:
    """The networks in a published pickle, by their names there: some of G_ema, G, D. Raises CheckpointError."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            if not 0 < size <= _MOST_BYTES:
                raise CheckpointError(f"{path} has {size} bytes; a network pickle has some, and at most 4 GiB.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _look_at_opcodes(content)
                content.seek(0)
                tree = _Inert(content).load()  # type: ignore[arg-type]
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}. Pass a network pickle.") from None
    except Exception as error:
        # Whatever a broken or hostile file makes the parser raise is the file's fault.
        line = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path} is not a network pickle, or damaged: {line}. Nothing of it was run.") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds no networks by name. Pass a network pickle of StyleGAN3 or StyleGAN2-ADA.")
    try:
        return {name: _network(tree[name]) for name in _NETWORKS if isinstance(tree.get(name), _Object)}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


# -- first pass --------------------------------------------------------------------------------------------------------


def _look_at_opcodes(content: mmap.mmap) -> None:
    """Refuse a stream with opcodes that published files do without, or a memo with holes (a way to use up memory)."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):  # type: ignore[arg-type]
        if opcode.name not in _OPCODES:
            _refuse(f"the opcode {opcode.name}")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            _refuse(f"a memo with {argument} places after {count} steps")
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            _stand_in(module, name)


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(f"refused, for it holds {what}, which no published network needs. Nothing of it was run.")


# -- second pass -------------------------------------------------------------------------------------------------------


class _Inert(pickle.Unpickler):
    """An unpickler that knows stand-ins only."""

    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(module, name)

    def persistent_load(self, _: Any) -> NoReturn:
        _refuse("a persistent identifier")


class _Mapping(dict):
    """For every kind of dictionary; takes items and no attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        _refuse("a dictionary with attributes")


class _Function:
    """Something that may be called, and nothing else may be done with."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        _refuse("an assignment to a function")

    def __setstate__(self, state: Any) -> NoReturn:
        _refuse("a function with a state")


class _Object:
    """A network or a part of one: the name of its class and its attributes. The source text that came along is gone."""

    __slots__ = ("attributes", "class_name")

    def __init__(self, meta: Any) -> None:
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            _refuse("an object without a state")
        self.class_name = str(meta.get("class_name"))[:100]
        self.attributes: dict[Any, Any] = meta["state"]

    def __setstate__(self, state: Any) -> NoReturn:
        _refuse("a second state for an object")


class _Numbers:
    """A tensor or a storage, where nothing of the stream can reach its methods."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> NoReturn:
        _refuse("a second state for a tensor")


class _DType:
    """A plain number format of numpy's."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any) -> None:
        plain = str(name).lstrip("<|=")
        if plain not in _DTYPES:
            _refuse(f"an array of {str(name)[:20]!r}")
        self.dtype = np.dtype(plain)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
            _refuse("an array in another byte order")


class _Array:
    """An array whose bytes come with its state."""

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _DType) or not isinstance(content, bytes) or not _are_sizes(shape):
            _refuse("an array that is not of plain numbers")
        if math.prod(shape) * kind.dtype.itemsize != len(content):
            _refuse(f"an array of shape {shape} with {len(content)} bytes")
        self.value = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if fortran else "C").copy()


def _scalar(kind: Any, content: Any = None) -> Any:
    if not isinstance(kind, _DType) or not isinstance(content, bytes) or len(content) != kind.dtype.itemsize:
        _refuse("a number that is not plain")
    return np.frombuffer(content, kind.dtype)[0].item()


def _storage(content: Any) -> _Numbers:
    """A torch.save stream of one storage, as a flat tensor."""
    if not isinstance(content, bytes):
        _refuse("a storage that is not of bytes")
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        _refuse(f"a storage that is not one ({type(error).__name__})")
    if not isinstance(found, torch.storage.TypedStorage):
        _refuse(f"a storage that is a {type(found).__name__}")
    flat = torch.empty(0, dtype=found.dtype)
    numbers = found._untyped_storage.nbytes() // flat.itemsize
    if numbers > _MOST_NUMBERS:
        _refuse(f"a storage of {numbers} numbers")
    return _Numbers(flat.set_(found._untyped_storage, 0, (numbers,)))  # type: ignore[call-overload]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Numbers:
    if not isinstance(storage, _Numbers) or not _are_sizes(size) or not _are_sizes(stride) or not _are_sizes((offset,)):
        _refuse("a tensor that is not of plain numbers")
    if len(size) != len(stride):
        _refuse(f"a tensor of size {size} with strides {stride}")
    numbers = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    flat = storage.tensor
    if numbers > max(flat.numel(), 1) or (numbers and last >= flat.numel()):
        _refuse(f"a tensor of size {size} in a storage of {flat.numel()} numbers")
    return _Numbers(flat.as_strided(size, stride, offset).clone() if numbers else flat.new_empty(size))


def _parameter(data: Any, *_: Any) -> _Numbers:
    if not isinstance(data, _Numbers):
        _refuse("a parameter that is no tensor")
    return data


def _are_sizes(numbers: Any) -> bool:
    if not isinstance(numbers, tuple) or len(numbers) > 8:
        return False
    return all(isinstance(number, int) and 0 <= number <= _MOST_NUMBERS for number in numbers)


_TABLE: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_Object),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    ("_codecs", "encode"): _Function(lambda text, encoding="latin1": str(text).encode("latin1")),
    **{(module, "set"): _Function(lambda items=(): set(items)) for module in ("builtins", "__builtin__")},
    **dict.fromkeys(_MAPPINGS, _Mapping),
    **{(module, "dtype"): _Function(_DType) for module in _ARRAYS},
    **{(module, "ndarray"): _Function(_Array) for module in _ARRAYS},
    **{(module, "scalar"): _Function(_scalar) for module in _ARRAYS},
    **{(module, "_reconstruct"): _Function(_Array) for module in _ARRAYS},
}


def _stand_in(module: str, name: str) -> Any:
    if (module, name) not in _TABLE:
        _refuse(f"{f'{module}.{name}'[:100]!r}")
    return _TABLE[module, name]


# -- from objects to networks ------------------------------------------------------------------------------------------


def _network(tree: _Object) -> Published:
    tensors: dict[str, Tensor] = {}
    _collect(tree, "", tensors, 0)
    arguments = tree.attributes.get("_init_kwargs")
    if not isinstance(arguments, dict) or tree.attributes.get("_init_args"):
        raise CheckpointError("a network does not say by name what it was made with. Export it again.")
    return Published(tree.class_name, _plain(arguments), tensors)


def _collect(tree: Any, prefix: str, into: dict[str, Tensor], depth: int) -> None:
    """The tensors of a module and of all below it, by name."""
    if not isinstance(tree, _Object) or depth > _DEPTH or len(into) > _MOST_MODULES:
        _refuse("modules that are none, or too many of them")
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(tree, kind):
            if value is None:
                continue
            if not isinstance(value, _Numbers):
                _refuse(f"a {type(value).__name__} among the tensors")
            into[f"{prefix}{name}"] = value.tensor
    for name, below in _items(tree, "_modules"):
        if below is not None:
            _collect(below, f"{prefix}{name}.", into, depth + 1)


def _items(tree: _Object, kind: str) -> Sequence[tuple[str, Any]]:
    found = tree.attributes.get(kind, {})
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        _refuse(f"{kind} that are not by name")
    return list(found.items())


def _plain(value: Any, depth: int = 0) -> Any:
    """Arguments as JSON-able values."""
    if depth > _DEPTH:
        _refuse("arguments that have no end")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"a network was made with a {type(value).__name__}, which is no plain value. Export it again."
    )


def _is_stylegan3(network: Published) -> bool:
    return "synthesis.input.freqs" in network.tensors


def _rebuilt(
    build: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], Network], found: Published, path: Path
) -> Network:
    state = {name: tensor.float().numpy() for name, tensor in found.tensors.items()}
    try:
        return build(found.arguments, state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:300]}") from None
