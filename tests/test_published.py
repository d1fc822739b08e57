"""Published pickles: read to the last weight, and hostile ones refused in one line with nothing run or written."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_networks import CRITIC, GENERATORS
from torch import nn

from dr_platform import published
from dr_platform.errors import CheckpointError, ConfigError
from dr_platform.gan import Discriminator, Generator
from dr_platform.official_pickles import read_snapshot

SOURCE = "import os\nos.makedirs({canary!r})\nraise SystemExit('the source ran')\n"


class Persistent:
    """What the published persistence layer makes of a module: source text, class, state."""

    def __init__(self, module: nn.Module, kwargs: dict[str, Any] | None, class_name: str, source: str) -> None:
        buffers = {name: value for name, value in module._buffers.items() if value is not None}
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": {
                "training": False,
                "_parameters": collections.OrderedDict(module._parameters),
                "_buffers": collections.OrderedDict(buffers),
                "_non_persistent_buffers_set": set(),
                "_modules": collections.OrderedDict(
                    (name, Persistent(below, None, type(below).__name__, source))
                    for name, below in module._modules.items()
                    if below is not None
                ),
                "cutoff": np.float64(2.5),
                "sizes": np.arange(4),
                **({} if kwargs is None else {"_init_args": (), "_init_kwargs": easy(kwargs)}),
            },
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def easy(values: dict[str, Any]) -> Any:
    return sys.modules["dnnlib.util"].EasyDict(
        {name: easy(value) if isinstance(value, dict) else value for name, value in values.items()}
    )


@pytest.fixture
def modules(monkeypatch):
    """The names that published pickles carry, as far as pickling needs them."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the pickle's own code must never run")

    class EasyDict(dict):
        pass

    for module, member in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        member.__module__, member.__qualname__ = module, member.__name__
        parent = types.ModuleType(module.partition(".")[0])
        inner = types.ModuleType(module)
        setattr(inner, member.__name__, member)
        monkeypatch.setitem(sys.modules, parent.__name__, parent)
        monkeypatch.setitem(sys.modules, module, inner)


def randomised(network: nn.Module) -> Any:
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.1)
    return network.eval()


def pickled(tmp_path: Path, protocol: int = 4, generator: dict[str, Any] | None = None, **extra: Any) -> Path:
    """A snapshot as the published loop writes it."""
    canary = str(tmp_path / "canary")
    source = SOURCE.format(canary=canary)
    kwargs = generator or GENERATORS["T"][0]
    ours = generator_arguments(kwargs)
    torch.manual_seed(0)
    G, D = randomised(Generator(**ours)), randomised(Discriminator(**critic_arguments(CRITIC)))
    snapshot = {
        "G": Persistent(Generator(**ours), kwargs, "Generator", source),
        "D": Persistent(D, CRITIC, "Discriminator", source),
        "G_ema": Persistent(G, kwargs, "Generator", source),
        "augment_pipe": None,
        "training_set_kwargs": easy(
            {"class_name": "training.dataset.ImageFolderDataset", "path": "/secret/images.zip"}
        ),
        **extra,
    }
    path = tmp_path / "network-snapshot-000100.pkl"
    path.write_bytes(pickle.dumps(snapshot, protocol=protocol))
    pickled.networks = (G, D)
    return path


def generator_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    from dr_platform.gan import official

    return official._translate(kwargs, Generator, official._GENERATOR_RENAMED, official._GENERATOR_FIXED)


def critic_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    from dr_platform.gan import official

    return official._translate(kwargs, Discriminator, official._DISCRIMINATOR_RENAMED, official._DISCRIMINATOR_FIXED)


def contents(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", GENERATORS)
def test_every_weight_arrives(modules, tmp_path, protocol, name):
    kwargs, c_dim = GENERATORS[name]
    path = pickled(tmp_path, protocol, kwargs)
    record = published.import_file(path, tmp_path / "out")
    G, D = pickled.networks
    again = Generator(**record.generator)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / published.GENERATOR_FILE))
    z = torch.randn(2, G.z_dim)
    c = torch.eye(c_dim)[:2] if c_dim else None
    assert torch.equal(again(z, c), G(z, c))
    critic = Discriminator(**record.discriminator)
    critic.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / published.DISCRIMINATOR_FILE))
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(critic(images), D(images))
    for network, file in ((G, published.GENERATOR_FILE), (D, published.DISCRIMINATOR_FILE)):
        stored = safetensors.torch.load_file(tmp_path / "out" / file)
        assert {key: value.shape for key, value in stored.items()} == {
            key: value.shape for key, value in network.state_dict().items()
        }
    assert published.verify(tmp_path / "out") == record
    assert not (tmp_path / "canary").exists()


def test_nothing_but_networks_is_kept(modules, tmp_path):
    path = pickled(tmp_path)
    published.import_file(path, tmp_path / "out")
    kept = b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())
    assert b"secret" not in kept
    assert b"the source ran" not in kept
    assert b"non-commercial" in kept


def test_a_stylegan2_generator_is_kept_as_tensors_and_its_critic_serves(modules, tmp_path):
    other = nn.Module()
    other.const = nn.Parameter(torch.ones(4, 4))
    kwargs = {"z_dim": 512, "synthesis_kwargs": {"channel_base": 16384}}
    path = pickled(
        tmp_path, G_ema=Persistent(other, kwargs, "Generator", ""), G=Persistent(other, kwargs, "Generator", "")
    )
    record = published.import_file(path, tmp_path / "out")
    assert record.generator is None
    assert record.stylegan2_generator == kwargs
    assert record.discriminator["img_resolution"] == 16
    assert torch.equal(
        safetensors.torch.load_file(tmp_path / "out" / "stylegan2_generator.safetensors")["const"], torch.ones(4, 4)
    )


def test_a_changed_weight_of_an_import_is_noticed(modules, tmp_path):
    published.import_file(pickled(tmp_path), tmp_path / "out")
    victim = tmp_path / "out" / published.GENERATOR_FILE
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"generator_ema.safetensors is missing or damaged"):
        published.verify(tmp_path / "out")


# --- What is refused --------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def inner_stream(canary: str) -> bytes:
    stream = io.BytesIO()
    torch.save(Calls(eval, f"__import__('os').makedirs({canary!r})"), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def persistent(state: Any) -> bytes:
    """A call of the reconstruction with any state."""
    return pickle.dumps({"type": "class", "class_name": "G", "module_src": "", "state": state}, protocol=2)[2:-1]


def reconstructing(meta: bytes) -> bytes:
    """{"G_ema": <network of this meta>} written by hand."""
    return b"\x80\x02}X\x05\x00\x00\x00G_emactorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85Rs."


def tensor_of(size: tuple[Any, ...], stride: tuple[Any, ...], offset: Any = 0, numbers: int = 4) -> Any:
    return Calls(
        torch._utils._rebuild_tensor_v2,
        torch.storage.TypedStorage(
            wrap_storage=torch.zeros(numbers).untyped_storage(), dtype=torch.float32, _internal=True
        ),
        offset, size, stride, False, collections.OrderedDict(),
    )  # fmt: skip


def network_with(value: Any) -> bytes:
    """A network whose one parameter is `value`."""
    state = {"_parameters": {"weight": value}, "_buffers": {}, "_modules": {}, "_init_kwargs": {}, "_init_args": ()}
    return reconstructing(persistent(state))


def storage_stream(tensor: torch.Tensor, zipped: bool = False) -> bytes:
    stream = io.BytesIO()
    storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    torch.save(storage, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def network_of(stream: bytes) -> bytes:
    """A network whose one parameter looks at this stream of a storage."""
    return network_with(
        Calls(
            torch._utils._rebuild_tensor_v2,
            Calls(torch.storage._load_from_bytes, stream), 0, (2,), (1,), False, collections.OrderedDict(),
        )
    )  # fmt: skip


def hostile(canary: str) -> dict[str, bytes]:
    run = f"__import__('os').makedirs({canary!r})"
    text = b"X" + struct.pack("<I", len(run)) + run.encode()
    directory = b"X" + struct.pack("<I", len(canary)) + canary.encode()
    stream = storage_stream(torch.zeros(4))
    deep_key = b"}N" + b"\x85" * 1_000_000 + b"K\x01s"
    return {
        "key-of-a-million-tuples": b"\x80\x02" + deep_key + b".",
        "set-of-a-million-tuples": b"\x80\x04\x8f(N" + b"\x85" * 1_000_000 + b"\x90.",
        "list-in-itself": b"\x80\x02]q\x00h\x00a.",
        "storage-that-claims-more": network_of(stream.replace(b"K\x04Nt", b"J\xff\xff\xff\x7fNt")),
        "storage-that-claims-less": network_of(stream.replace(b"K\x04Nt", b"K\x03Nt")),
        "storage-of-another-kind": network_of(stream.replace(b"torch\nFloatStorage", b"torch\nLoadStorage")),
        "storage-cut-short": network_of(stream[:-1]),
        "storage-that-goes-on": network_of(stream + b"\0"),
        "storage-in-a-zip": network_of(storage_stream(torch.zeros(4), zipped=True)),
        "storage-of-big-endians": network_of(stream.replace(b"endianq\x02\x88", b"endianq\x02\x89")),
        "storage-that-is-empty": network_of(b""),
        "storage-that-names-os": network_of(stream.replace(b"ctorch\nFloatStorage\n", b"cos\nsystem\n")),
        "doubles": network_with(torch.zeros(2, dtype=torch.float64)),
        "halves": network_with(torch.zeros(2, dtype=torch.float16)),
        "whole-numbers": network_with(torch.zeros(2, dtype=torch.int64)),
        "not-a-number": network_with(torch.tensor([1.0, float("nan")])),
        "infinity": network_with(torch.tensor([1.0, float("inf")])),
        "two-for-one": b"\x80\x02K\x01K\x02.",
        "nothing-on-the-stack": b"\x80\x02.",
        "mark-at-the-end": b"\x80\x02}(.",
        "tuple-past-the-mark": b"\x80\x02K\x01(K\x02\x87.",
        "memo-never-filled": b"\x80\x02h\x07.",
        "text-that-promises-4-gib": b"\x80\x02X\xff\xff\xff\xff.",
        "bytes-that-promise-more": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "frame-that-promises-more": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        "buffer": b"\x80\x05\x97.",
        "duplicate": b"\x80\x02N2\x86.",
        "dictionary-without-a-value": b"\x80\x02}(K\x01u.",
        "name-that-is-no-text": b"\x80\x04K\x01K\x02\x93.",
        "call-of-a-number": b"\x80\x02K\x01)R.",
        "call-of-a-table-row-that-is-a-class": b"\x80\x02cnumpy\nndarray\n)R.",
        "call-without-arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        "global": b"cos\nmakedirs\n(" + directory + b"tR.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x08makedirs\x93" + directory + b"\x85R.",
        "inst": b"(" + directory + b"ios\nmakedirs\n.",
        "obj": b"(cos\nmakedirs\n" + directory + b"o.",
        "newobj": b"\x80\x02cbuiltins\neval\n" + text + b"\x85\x81.",
        "newobj-ex": b"\x80\x04cbuiltins\neval\n" + text + b"\x85}\x92.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pwhatever\n.",
        "eval": pickle.dumps(Calls(eval, run)),
        "getattr": b"cbuiltins\ngetattr\n(cos\nmakedirs\nX\x04\x00\x00\x00__call__tR.",
        "attribute-of-an-allowed-one": b"\x80\x04\x8c\x17torch_utils.persistence"
        b"\x8c\x1c_reconstruct_persistent_obj.x\x93.",
        "torch-load": b"ctorch\nload\n(" + directory + b"tR.",
        "nested-stream": b"ctorch.storage\n_load_from_bytes\n(B"
        + struct.pack("<I", len(inner_stream(canary))) + inner_stream(canary) + b"tR.",
        "state-on-a-function": b"ctorch._utils\n_rebuild_parameter\n}X\x08\x00\x00\x00__code__K\x01sb.",
        "slots-on-a-function": b"ctorch._utils\n_rebuild_parameter\nN}X\x05\x00\x00\x00_callK\x01s\x86b.",
        "state-on-a-class": b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        "state-on-a-network": reconstructing(persistent({}))[:-2] + b"}bs.",
        "memo-with-holes": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "no-state": reconstructing(pickle.dumps({"type": "class"}, protocol=2)[2:-1]),
        "state-is-a-list": reconstructing(persistent([1])),
        "modules-that-are-none": reconstructing(persistent({"_modules": {"a": 3}, "_init_kwargs": {}})),
        "no-arguments": reconstructing(persistent({"_parameters": {}})),
        "names-that-are-none": reconstructing(persistent({"_parameters": {3: 4}, "_init_kwargs": {}})),
        "stride-beyond-storage": network_with(tensor_of((2, 2), (1000, 1))),
        "offset-beyond-storage": network_with(tensor_of((2,), (1,), 3)),
        "negative-offset": network_with(tensor_of((2,), (1,), -1)),
        "negative-size": network_with(tensor_of((-2,), (1,))),
        "huge-size": network_with(tensor_of((2**40,), (1,))),
        "huge-by-stride-0": network_with(tensor_of((2**15, 2**14), (0, 0))),
        "size-and-stride-differ": network_with(tensor_of((2, 2), (1,))),
        "size-of-floats": network_with(tensor_of((2.0,), (1,))),
        "parameter-that-is-a-text": network_with("text"),
        "array-of-objects": pickle.dumps({"x": np.array([object(), None], dtype=object)[1:]}, protocol=2),
        "array-of-texts": pickle.dumps({"x": np.array(["a"])}, protocol=2),
        "array-with-too-few-bytes": pickle.dumps(np.arange(4.0), protocol=2).replace(b"K\x04\x85", b"K\x09\x85"),
        "truncated": pickle.dumps({"G": 1, "long": "x" * 100})[:-30],
        "empty": b"",
        "text": b"not a pickle at all",
        "a-list": pickle.dumps([1, 2, 3]),
        "no-networks": pickle.dumps({"weights": 1}),
        "zip": b"PK\x03\x04" + b"\0" * 40,
    }  # fmt: skip


NAMES = sorted(hostile("x"))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_or_broken_pickle_is_refused_in_one_line_and_runs_nothing(tmp_path, name):
    path = tmp_path / f"{name}.pkl"
    path.write_bytes(hostile(str(tmp_path / "canary"))[name])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        published.import_file(path, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert contents(tmp_path) == before


def test_the_hostile_ones_would_run_if_they_were_loaded(tmp_path):
    """The test above is worth something only if they do: the plain loader falls for these."""
    for name in ("global", "stack-global", "inst", "obj", "eval"):
        canary = tmp_path / name
        pickle.loads(hostile(str(canary))[name])
        assert canary.is_dir(), name
    canary = tmp_path / "nested"
    torch.load(io.BytesIO(inner_stream(str(canary))), weights_only=False)
    assert canary.is_dir()


def test_endless_arguments_are_refused(modules, tmp_path):
    endless: dict[str, Any] = {}
    endless["self"] = endless
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_kwargs": endless, "_init_args": ()}
    path = tmp_path / "endless.pkl"
    path.write_bytes(reconstructing(persistent(state)))
    with pytest.raises(CheckpointError, match="arguments without end"):
        published.import_file(path, tmp_path / "out")


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def module_named(class_name: bytes, state: bytes = b"}") -> bytes:
    """A module by hand; the arguments are opcodes."""
    meta = word("type") + word("class") + word("class_name") + class_name + word("state") + state
    return b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(" + meta + b"u\x85R"


def laughs(levels: int) -> bytes:
    """Lists of two references to the one before, on the stack; the last is number `levels` of the memo."""
    stream = b"]q\x00"
    for level in range(levels):
        stream += b"]q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * 2 + b"e"
    return stream


@pytest.mark.parametrize("named", [b")" + b"\x85" * 100_000, b"h\x28"], ids=["deep", "laughing"])
@pytest.mark.parametrize("place", ["class", "format"])
def test_what_is_no_text_is_never_shown_as_one(tmp_path, place, named):
    """As text a deep object ends in a recursion, and a list of two lists of two, forty times, has 2^40 letters."""
    call = module_named(named) if place == "class" else b"cnumpy\ndtype\n" + named + b"\x85R"
    path = tmp_path / "shown.pkl"
    path.write_bytes(b"\x80\x02(" + laughs(40) + call + b"t.")
    with pytest.raises(CheckpointError, match=r"object of kind (tuple|list)"):
        read_snapshot(path)


REPEATED = {
    "storage": b"ctorch.storage\n_load_from_bytes\nq\x00" + pickle.dumps(storage_stream(torch.zeros(1000)), 3)[2:-1],
    "text": b"c_codecs\nencode\nq\x00" + word("x" * 10_000) + word("latin1") + b"\x86q\x01",
    "set": b"cbuiltins\nset\nq\x00](K\x01e\x85q\x01",
}
REPEATED["storage"] = REPEATED["storage"].removesuffix(b"q\x00") + b"\x85q\x01"


@pytest.mark.parametrize("kind", REPEATED)
def test_an_argument_of_many_calls_is_paid_for_by_each(tmp_path, kind):
    """Else ten megabytes, given to two thousand calls of five bytes each, would make twenty gigabytes."""
    path = tmp_path / "repeated.pkl"
    once, again = b"\x80\x03(" + REPEATED[kind], b"h\x00h\x01R"
    path.write_bytes(once + again * 100 + b"t.")
    with pytest.raises(CheckpointError, match="its calls take more than is in it"):
        read_snapshot(path)
    path.write_bytes(once + again + b"t.")
    with pytest.raises(CheckpointError, match="instead of networks by name"):
        read_snapshot(path)


def test_tensors_that_share_a_storage_are_counted_before_they_are_looked_at(tmp_path, monkeypatch):
    """Else a hundred thousand names of one tensor of a gigabyte would be a day's work."""
    tensor = pickle.dumps(tensor_of((4000,), (1,), numbers=4000), protocol=2)[2:-1]
    named = b"".join(word(f"w{index}") + b"h\xff" for index in range(900))
    state = b"}(" + word("_parameters") + b"}(" + named + b"u" + word("_buffers") + b"}" + word("_modules") + b"}"
    state += word("_init_kwargs") + b"}u"
    path = tmp_path / "shared.pkl"
    content = word("other") + tensor + b"q\xff" + word("G_ema") + module_named(word("Generator"), state)
    path.write_bytes(b"\x80\x02}(" + content + b"u.")

    def looked(*_: Any) -> None:
        raise AssertionError("a number was looked at")

    monkeypatch.setattr(np, "isfinite", looked)
    with pytest.raises(CheckpointError, match="G_ema has more numbers than the file"):
        read_snapshot(path)


def test_a_billion_laughs_take_no_memory(tmp_path):
    """Nine lists of ten references to the one before: a thousand million items for whoever walks them."""
    stream = b"\x80\x02(]q\x00X\x02\x00\x00\x00haa"
    for level in range(9):
        stream += b"]" + b"q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * 10 + b"e"
    path = tmp_path / "laughs.pkl"
    path.write_bytes(stream + b"t.")
    assert max(position for _, _, position in pickletools.genops(path.read_bytes())) < 500
    with pytest.raises(CheckpointError, match="instead of networks by name"):
        read_snapshot(path)


def test_modules_that_share_one_below_are_refused_before_anybody_walks_them(modules, tmp_path):
    """Thirty levels of two references to the level below: a thousand million modules for whoever walks them."""
    below = nn.Module()
    for _ in range(30):
        above = nn.Module()
        above.left = above.right = below
        below = above
    # One Persistent for each module, so that pickling refers to it twice as well.
    known: dict[int, Persistent] = {}

    def shared(module: nn.Module) -> Persistent:
        if id(module) not in known:
            known[id(module)] = Persistent(nn.Module(), {} if module is below else None, "Twice", "")
            state = known[id(module)].meta["state"]
            state["_modules"] = {name: shared(child) for name, child in module._modules.items()}
        return known[id(module)]

    path = tmp_path / "shared.pkl"
    path.write_bytes(pickle.dumps({"G_ema": shared(below)}, protocol=4))
    with pytest.raises(CheckpointError, match=r"right is no module of its own"):
        read_snapshot(path)


@pytest.mark.parametrize("length", [1, 2, 100, 1000, 5000, -1000, -3, -1])
def test_a_file_cut_short_is_refused_wherever_it_ends(modules, tmp_path, length):
    path = pickled(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"is refused: it is truncated, damaged or no pickle"):
        published.import_file(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"img_resolution": 2**20}, "img_resolution is 1.04858e\\+06, but must be from 4 to 4096"),
        ({"filter_size": 10**5}, "filter_size is 100000, but must be from 1 to 32"),
        ({"first_cutoff": 1e-9}, "first_cutoff is 1e-09"),
        ({"channel_base": 2**20, "channel_max": 2**20}, "do not fit a Generator"),
        ({"mapping_kwargs": {"num_layers": 10**9}}, "num_layers is 1e\\+09"),
        ({"z_dim": -5}, "is refused"),
        ({"w_dim": "8"}, "is refused"),
        ({"c_dim": None}, "is refused"),
        ({"backdoor": 1}, "no argument backdoor"),
    ],
)
def test_arguments_that_ask_for_too_much_are_refused_before_they_get_it(modules, tmp_path, changed, message):
    kwargs = GENERATORS["T"][0]
    G = Generator(**generator_arguments(kwargs))
    path = pickled(tmp_path, G_ema=Persistent(G, {**kwargs, **changed}, "Generator", ""))
    with pytest.raises(CheckpointError, match=message):
        published.import_file(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_missing_is_named(modules, tmp_path):
    G = Generator(**generator_arguments(GENERATORS["T"][0]))
    del G.mapping.fc1._parameters["bias"]
    path = pickled(tmp_path, G_ema=Persistent(G, GENERATORS["T"][0], "Generator", ""))
    with pytest.raises(CheckpointError, match=r"missing mapping.fc1.bias"):
        published.import_file(path, tmp_path / "out")


def test_what_is_dropped_is_in_the_record(modules, tmp_path):
    assert published.import_file(pickled(tmp_path), tmp_path / "out").dropped == ("training_set_kwargs",)


def test_weights_of_another_shape_are_named(modules, tmp_path):
    kwargs = {**GENERATORS["T"][0], "w_dim": 16}
    source = Persistent(Generator(**generator_arguments(GENERATORS["T"][0])), kwargs, "Generator", "")
    path = pickled(tmp_path, G_ema=source)
    with pytest.raises(
        CheckpointError, match=r"the weights do not fit a Generator.*L0_36_8.affine.weight has shape \(8, 8\)"
    ):
        published.import_file(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.pkl cannot be read: No such file"):
        published.import_file(tmp_path / "absent.pkl", tmp_path / "out")


def test_an_import_replaces_nothing_but_itself(modules, tmp_path):
    path, target = pickled(tmp_path), tmp_path / "imported" / "net"
    published.require_free(target, path)
    record = published.import_file(path, target)
    published.require_free(target, path)
    other = tmp_path / "other.pkl"
    other.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=rf"is an import of another file \({record.source}\). Choose another --name"):
        published.require_free(target, other)
    (target / published.RECORD_FILE).write_text("{}")
    published.require_free(target, other)  # what is damaged may be made anew
    for kind in ("file", "directory"):
        (tmp_path / kind).mkdir() if kind == "directory" else (tmp_path / kind).write_text("mine")
        with pytest.raises(ConfigError, match="exists and is no import"):
            published.require_free(tmp_path / kind, path)


def test_a_file_name_that_is_not_utf8_is_recorded_in_escapes(modules, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.pkl"))
    odd.write_bytes(pickled(tmp_path).read_bytes())
    assert published.import_file(odd, tmp_path / "net").source == "caf\\udce9.pkl"
    assert published.verify(tmp_path / "net").source == "caf\\udce9.pkl"


def test_a_record_of_brackets_without_end_is_damaged(tmp_path):
    (tmp_path / published.RECORD_FILE).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"imported\.json is damaged"):
        published.verify(tmp_path)
