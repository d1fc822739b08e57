"""Network pickles of StyleGAN3 and StyleGAN2-ADA (PyTorch), read without running anything that is in them.

Such a file is a pickle of modules that carry the source text of their own classes, and whoever loads it as its authors
do runs that text. Here no unpickler is at work. A machine of our own steps through the opcodes and builds numbers,
texts, lists, sets and dictionaries; it knows a handful of names and calls, all of them functions below, and refuses
every other opcode and name. Nothing is imported, no attribute is looked up, and source text is dropped unread.

A hostile file can still try to be expensive. Against that: the file is at most MOST_BYTES long and MOST_OPCODES steps;
a number must be in the file to be in the result, and calls together may take no more than MOST_TAKEN times the file, so
that memory and time follow the file's size; keys are texts and integers; nothing but a text is ever shown as text; and
what contains itself, or appears in two places, is refused before anything follows it twice.

The layout (names of globals, where tensors lie) is a fact of the format; gan/official.py knows the networks' own.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch

from dr_platform.errors import CheckpointError

# The largest published file has 360 MB and fewer than 30,000 opcodes.
MOST_BYTES = 4 * 2**30
MOST_OPCODES = 2_000_000
# A call costs what it is given, and one argument can be given to many calls at two bytes each. Where every argument is
# given once, all of them together are in the file, save short texts that are recalled, such as a number's format.
MOST_TAKEN = 4
_ITEM_BYTES = 64  # of a set of numbers
MOST_MODULES = 10_000
MOST_ARGUMENTS = 1_000
MOST_DEPTH = 32
MOST_AXES = 8

NETWORKS = ("G", "G_ema", "D")

# Storage classes, as torch writes their names, and the type of their numbers.
_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class PublishedNetwork:
    """One network of a file: the arguments it was made with, and its tensors by published name, in float32."""

    class_name: str
    arguments: dict[str, Any]
    tensors: dict[str, np.ndarray]


@dataclass(frozen=True)
class Snapshot:
    """A file's networks by name (some of G, G_ema, D), and the names of what else was in it."""

    networks: dict[str, PublishedNetwork]
    dropped: tuple[str, ...]


def read_snapshot(path: Path) -> Snapshot:
    """The networks in a published pickle. Raises CheckpointError, in one line, if it is none or holds anything else.

    Nothing of the file is run, whether it is refused or not.
    """
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            if not 0 < size <= MOST_BYTES:
                _refuse(f"it has {size} bytes, but a network pickle has some, and at most {MOST_BYTES}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _snapshot(_Machine(content, _CALLS, room=MOST_TAKEN * size).run(), size)  # type: ignore[arg-type]
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is refused: {error}. Nothing of it was run. "
            "Pass a network pickle of StyleGAN3 or StyleGAN2-ADA (PyTorch) as its authors published it."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}. Pass a network pickle.") from None


def _refuse(why: str) -> NoReturn:
    raise CheckpointError(why)


# -- the machine -------------------------------------------------------------------------------------------------------


class _Mark:
    """Where the items of a list, tuple or dictionary begin on the stack."""


@dataclass(frozen=True, eq=False)
class _Name:
    """A name of the table that stands on the stack; it leads to nothing but its row of the table."""

    dotted: str


_MARK = _Mark()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_ARGUMENTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

Calls = Mapping[str, Callable[..., Any] | None]  # by dotted name; None: a name that may stand, and not be called


class _Machine:
    """Steps through one pickle of a stream and leaves the stream behind it."""

    def __init__(
        self, stream: BinaryIO, calls: Calls, persistent: Callable[[Any], Any] | None = None, room: int = 0
    ) -> None:
        """room: how many bytes and letters all calls together may be given; an item of a list counts as many bytes."""
        self._stream = stream
        self._calls = calls
        self._room = room
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle stands for."""
        for count, (name, argument) in enumerate(self._opcodes()):
            if count >= MOST_OPCODES:
                _refuse(f"it has more than {MOST_OPCODES} opcodes")
            if name == "STOP":
                break
            self._step(name, argument)
        if len(self._stack) != 1:
            _refuse("its stack is out of order at the end")
        return self._pop()

    def _opcodes(self) -> Iterator[tuple[str, Any]]:
        try:
            for opcode, argument, _ in pickletools.genops(self._stream):  # type: ignore[arg-type]
                yield opcode.name, argument
        except CheckpointError:
            raise
        except Exception:
            # The library reports broken streams by several kinds of error, and their texts quote the stream.
            _refuse("it is truncated, damaged or no pickle")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                _refuse("it recalls what it has not stored")
            stack.append(self._memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in _SHORT_TUPLES:
            stack.append(tuple(reversed([self._pop() for _ in range(_SHORT_TUPLES[name])])))
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._pop_to_mark()
            self._target(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = list(reversed([self._pop(), self._pop()])) if name == "SETITEM" else self._pop_to_mark()
            self._set_items(items)
        elif name == "ADDITEMS":
            items = self._pop_to_mark()
            self._target(set).update(_key(item) for item in items)
        elif name == "GLOBAL":
            self._push_name(*str(argument).split(" ", 1))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            self._push_name(module, attribute)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = self._pop(), self._pop()
            stack.append(self._call(called, arguments))
        elif name == "BUILD":
            state, built = self._pop(), self._top()
            if not isinstance(built, _Array | _DType):
                _refuse(f"it sets the state of {_kind(built)}")
            try:
                built.set_state(state)
            except ValueError:
                _refuse(f"it gives {_kind(built)} a state that it cannot have")
        elif name == "BINPERSID" and self._persistent is not None:
            stack.append(self._persistent(self._pop()))
        else:
            _refuse(f"it uses the opcode {name}, which no network pickle needs")

    def _push_name(self, module: Any, attribute: Any = "") -> None:
        if type(module) is not str or type(attribute) is not str:
            _refuse("it looks up a name that is no text")
        dotted = f"{module}.{attribute}"
        if dotted not in self._calls:
            _refuse(f"it names {_shown(dotted)}, which no network pickle needs")
        self._stack.append(_Name(dotted))

    def _call(self, called: Any, arguments: Any) -> Any:
        function = self._calls[called.dotted] if isinstance(called, _Name) else None
        if function is None or type(arguments) is not tuple:
            _refuse(f"it calls {_kind(called)}")
        self._room -= sum(len(each) for each in arguments if isinstance(each, bytes | str))
        self._room -= sum(len(each) * _ITEM_BYTES for each in arguments if isinstance(each, list))
        if self._room < 0:
            _refuse("its calls take more than is in it")
        try:
            return function(*arguments)
        except (TypeError, ValueError):
            _refuse(f"it calls {_kind(called)} with arguments of another number or kind")

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            _refuse("a dictionary has a key without a value")
        self._target(dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _target(self, kind: type) -> Any:
        target = self._top()
        if type(target) is not kind:
            _refuse(f"it fills {_kind(target)} like a {kind.__name__}")
        return target

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            _refuse("its stack is out of order")
        return self._stack[-1]

    def _pop(self) -> Any:
        top = self._top()
        self._stack.pop()
        return top

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        _refuse("its stack is out of order")


def _key(value: Any) -> str | int:
    """A key of a dictionary or member of a set. Tuples within tuples would make the hash recurse without end."""
    if not isinstance(value, str | int):
        _refuse(f"it takes {_kind(value)} for a key")
    return value


def _shown(text: str) -> str:
    """A name as it may stand in a line of error."""
    return text[:100] if text.isprintable() else ascii(text)[:100]


def _kind(value: Any) -> str:
    return _shown(value.dotted) if isinstance(value, _Name) else f"an object of kind {type(value).__name__}"


# -- what may be called ------------------------------------------------------------------------------------------------


class _Object:
    """A module: the name of its class and its attributes. The source text that came along is gone."""

    def __init__(self, meta: Any) -> None:
        if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("state")) is not dict:
            _refuse("a module has no state by name")
        if type(meta.get("class_name")) is not str:
            _refuse(f"a module's class has {_kind(meta.get('class_name'))} for a name")
        self.class_name = _shown(meta["class_name"])
        self.attributes: dict[Any, Any] = meta["state"]


class _Tensor:
    """Numbers of a module."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class _Storage:
    """The numbers that tensors look at, in a row."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class _DType:
    """A plain number format of numpy's."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if type(code) is not str or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            shown = repr(_shown(code)) if type(code) is str else _kind(code)
            _refuse(f"an array's items are {shown} instead of plain numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "=", ">"):
            _refuse("an array has items of an unknown form")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A numpy array, which gets its content with its state."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if not isinstance(kind, _Name) or kind.dotted != "numpy.ndarray":
            _refuse(f"it makes an array of {_kind(kind)}")
        self.array = np.zeros(0)

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            _refuse("an array has no content")
        _, shape, kind, fortran, content = state
        sizes = _sizes(shape)
        if not isinstance(kind, _DType) or type(content) is not bytes:
            _refuse("an array has items that are no plain numbers")
        if math.prod(sizes) * kind.dtype.itemsize != len(content):
            _refuse(f"an array of shape {sizes} comes with {len(content)} bytes")
        self.array = np.frombuffer(content, kind.dtype).reshape(sizes, order="F" if fortran is True else "C")


def _sizes(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or len(shape) > MOST_AXES:
        _refuse("a shape is no short tuple")
    if not all(type(size) is int and 0 <= size <= MOST_BYTES for size in shape):
        _refuse("a shape, stride or offset is negative, huge or no number")
    return shape


def _mapping() -> dict[Any, Any]:
    return {}


def _set(items: Any) -> set[str | int]:
    if type(items) is not list:
        _refuse("a set is made of something else than a list")
    return {_key(item) for item in items}


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        _refuse("it encodes something else than a text")
    return text.encode("latin1")


def _scalar(kind: Any, content: Any) -> bool | int | float:
    if not isinstance(kind, _DType) or type(content) is not bytes or len(content) != kind.dtype.itemsize:
        _refuse("a number is not of a plain kind")
    return np.frombuffer(content, kind.dtype)[0].item()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    """A view of a storage, no larger than it."""
    if not isinstance(storage, _Storage):
        _refuse("a tensor has no storage")
    (start,), sizes, strides = _sizes((offset,)), _sizes(size), _sizes(stride)
    if len(sizes) != len(strides):
        _refuse(f"a tensor of shape {sizes} has {len(strides)} strides")
    flat = storage.array
    last = start + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
    numbers = math.prod(sizes)
    if numbers > flat.size or (numbers and last >= flat.size):
        _refuse(f"a tensor of shape {sizes} is larger than its storage of {flat.size} numbers")
    if not numbers:
        return _Tensor(np.zeros(sizes, flat.dtype))
    steps = [step * flat.itemsize for step in strides]
    return _Tensor(np.lib.stride_tricks.as_strided(flat[start:], sizes, steps, writeable=False))


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        _refuse("a parameter is no tensor")
    return data


def _storage(content: Any) -> _Storage:
    """The numbers of a torch.save stream of one storage.

    The stream is itself five pickles and then the numbers. Our machine looks at the pickles first, since torch makes
    room for as many numbers as they claim; then torch reads it, as weights only.
    """
    if type(content) is not bytes:
        _refuse("a storage is not made of bytes")
    stream = io.BytesIO(content)
    magic, protocol, system = (_Machine(stream, {}).run() for _ in range(3))
    little = type(system) is dict and system.get("little_endian") is True
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not little:
        _refuse("a storage is not of the kind that network pickles hold")
    claim = _Machine(stream, dict.fromkeys(f"torch.{name}" for name in _STORAGES), persistent=_claim).run()
    keys = _Machine(stream, {}).run()
    if not isinstance(claim, _Claim) or keys != [claim.key]:
        _refuse("a storage holds something else than numbers")
    dtype = np.dtype(_STORAGES[claim.kind])
    if len(content) - stream.tell() != 8 + claim.numbers * dtype.itemsize:
        _refuse(f"a storage of {claim.numbers} numbers comes with {len(content) - stream.tell()} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that this kind of storage has had its day
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True).untyped()
    except Exception as error:
        _refuse(f"a storage cannot be read as weights ({type(error).__name__})")
    return _Storage(torch.empty(0, dtype=torch.uint8).set_(found).numpy().view(dtype))


@dataclass(frozen=True)
class _Claim:
    """What a storage says of itself before its numbers come."""

    kind: str
    key: str
    numbers: int


def _claim(identifier: Any) -> _Claim:
    if type(identifier) is not tuple or len(identifier) != 6 or identifier[0] != "storage":
        _refuse("a storage does not say what it is")
    _, kind, key, _, numbers, view = identifier
    if not isinstance(kind, _Name) or type(key) is not str or view is not None:
        _refuse("a storage does not say what it is")
    (count,) = _sizes((numbers,))
    return _Claim(kind.dotted.removeprefix("torch."), key, count)


_CALLS: dict[str, Callable[..., Any] | None] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _Object,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "dnnlib.util.EasyDict": _mapping,
    "collections.OrderedDict": _mapping,
    # The older protocols write sets and bytes as calls.
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _encode,
    "numpy.dtype": _DType,
    "numpy.ndarray": None,
    # numpy 2 has moved the module.
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}


# -- from objects to networks ------------------------------------------------------------------------------------------


def _snapshot(tree: Any, size: int) -> Snapshot:
    if type(tree) is not dict:
        _refuse(f"it holds {_kind(tree)} instead of networks by name")
    networks = {}
    for name in NETWORKS:
        if tree.get(name) is not None:
            networks[name] = _network(name, tree[name], size)
    if not networks:
        _refuse(f"it holds none of {', '.join(NETWORKS)}")
    dropped = [_shown(str(name)) for name, value in tree.items() if name not in NETWORKS and value is not None]
    return Snapshot(networks, tuple(sorted(dropped)))


def _network(name: str, tree: Any, size: int) -> PublishedNetwork:
    if not isinstance(tree, _Object):
        _refuse(f"{name} is {_kind(tree)} instead of a network")
    arguments = tree.attributes.get("_init_kwargs")
    if type(arguments) is not dict or tree.attributes.get("_init_args") not in (None, (), []):
        _refuse(f"{name} does not say by name what it was made with")
    tensors = dict(_tensors(tree, f"{name}.", seen=set(), depth=0))
    if sum(array.nbytes for array in tensors.values()) > size:
        _refuse(f"{name} has more numbers than the file")
    # Only now is any number looked at: many tensors may share one storage.
    for path, array in tensors.items():
        if not np.isfinite(array).all():
            _refuse(f"{path} has values that are not finite")
    return PublishedNetwork(
        tree.class_name,
        _Plain(name).mapping(arguments, 0),
        {path.removeprefix(f"{name}."): array.copy() for path, array in tensors.items()},
    )


def _tensors(tree: _Object, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a module and of all below it, by dotted name."""
    seen.add(id(tree))
    if len(seen) > MOST_MODULES or depth > MOST_DEPTH:
        _refuse(f"{prefix[:-1]} has too many modules, or too many within each other")
    for kind in ("_parameters", "_buffers"):
        for name, value in _named(tree, kind, prefix):
            if value is None:
                continue
            if not isinstance(value, _Tensor) or value.array.dtype != np.float32:
                found = value.array.dtype if isinstance(value, _Tensor) else _kind(value)
                _refuse(f"{prefix}{name} is {found} instead of a tensor of float32")
            yield f"{prefix}{name}", value.array
    for name, below in _named(tree, "_modules", prefix):
        if below is None:
            continue
        if not isinstance(below, _Object) or id(below) in seen:
            _refuse(f"{prefix}{name} is no module of its own")
        yield from _tensors(below, f"{prefix}{name}.", seen, depth + 1)


def _named(tree: _Object, kind: str, prefix: str) -> list[tuple[str, Any]]:
    found = tree.attributes.get(kind)
    if type(found) is not dict or not all(type(name) is str and re.fullmatch(r"\w{1,64}", name) for name in found):
        _refuse(f"{prefix}{kind} are missing, or not by name")
    return list(found.items())


class _Plain:
    """Arguments as values that JSON knows, at most MOST_ARGUMENTS of them."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._left = MOST_ARGUMENTS

    def mapping(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        return {str(name)[:100]: self.value(item, depth + 1) for name, item in value.items()}

    def value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > MOST_DEPTH or self._left < 0:
            _refuse(f"{self._network} was made with too many arguments, or with arguments without end")
        if type(value) is dict:
            return self.mapping(value, depth)
        if type(value) in (list, tuple):
            return [self.value(item, depth + 1) for item in value]
        if isinstance(value, _Array):
            if value.array.size > MOST_ARGUMENTS:
                _refuse(f"{self._network} was made with an array of {value.array.size} numbers")
            return self.value(value.array.tolist(), depth)
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(f"{self._network} was made with an argument that is not finite")
        if isinstance(value, str) and len(value) > 1000:
            _refuse(f"{self._network} was made with a text of {len(value)} letters")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        _refuse(f"{self._network} was made with {_kind(value)}, which is no plain value")
