"""Profiles: ready-made values for params.yaml, laid over it with its comments kept.

`demo` and `paper-dr1-512` set every section but `site`; `public-only` sets the one parameter that leaves proprietary
images out, on top of whatever is there.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from dr_platform import files
from dr_platform.config import PARAMS_FILE, parse_params
from dr_platform.errors import ConfigError

_WIDTH = 120
_READ_BY_DVC: dict[str, dict[str, Any]] = {"train": {"condition_on": []}}


@dataclass(frozen=True)
class Change:
    """One value of params.yaml that differs from what it was."""

    key: str
    before: Any
    after: Any


def names() -> dict[str, str]:
    """Profile name -> the sentence it opens with, in alphabetical order."""
    found = {}
    for entry in sorted(_directory().iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").splitlines()[0]
            found[entry.name.removesuffix(".yaml")] = first.removeprefix("# ")
    return found


def read(name: str) -> dict[str, Any]:
    """The sections and values a profile sets. Raises ConfigError listing the known ones."""
    if name not in names():
        raise ConfigError(f"There is no profile {name!r}. Known: {', '.join(names())}.")
    return yaml.safe_load((_directory() / f"{name}.yaml").read_text(encoding="utf-8"))


def use(name: str, root: Path) -> list[Change]:
    """Lay a profile over params.yaml, comments kept, and return what changed. All or nothing."""
    values = read(name)
    if name != "public-only":
        values = {"profile": name, **values}
    return edit(root, values)


def complete(root: Path) -> list[Change]:
    """Add what dvc.yaml reads and a params.yaml of an earlier version lacks, at the value that changes nothing.

    `drp` itself takes absent keys for their defaults, but DVC reads no stage of a dvc.yaml whose foreach finds nothing.
    """
    missing = {
        section: lacking
        for section, needed in _READ_BY_DVC.items()
        if (lacking := {key: value for key, value in needed.items() if key not in _section(root, section)})
    }
    return edit(root, missing) if missing else []


def _section(root: Path, name: str) -> dict[str, Any]:
    """A section as it stands in the file; load_params has found it valid."""
    return yaml.safe_load((root / PARAMS_FILE).read_text(encoding="utf-8"))[name]


def edit(root: Path, values: dict[str, Any]) -> list[Change]:
    """Set values, nested by section, in params.yaml; comments are kept. Returns what changed.

    Raises ConfigError, with the file untouched, if the result would not be valid.
    """
    path = root / PARAMS_FILE
    round_trip = YAML()
    round_trip.width = _WIDTH
    round_trip.preserve_quotes = True
    round_trip.representer.add_representer(type(None), _write_null)
    try:
        document = round_trip.load(path.read_text(encoding="utf-8")) if path.is_file() else CommentedMap()
    except YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())[:120]}. Correct it.") from None
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"{path} holds no mapping of sections. Correct it.")
    changes: list[Change] = []
    _merge(document, values, "", changes)
    buffer = io.StringIO()
    round_trip.dump(document, buffer)
    parse_params(yaml.safe_load(buffer.getvalue()), source=PARAMS_FILE)
    if changes:
        files.write_text(path, buffer.getvalue())
    return changes


def _merge(into: CommentedMap, values: dict[str, Any], prefix: str, changes: list[Change]) -> None:
    for key, value in values.items():
        before = into.get(key)
        if isinstance(value, dict) and isinstance(before, CommentedMap) and prefix == "":
            _merge(before, value, f"{key}.", changes)
        elif key not in into or _plain(before) != value:
            changes.append(Change(prefix + key, _plain(before), value))
            into[key] = _flow(value)


def _write_null(representer: Any, _: None) -> Any:
    # ruamel writes nothing at all, which reads like a forgotten value.
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _flow(value: Any) -> Any:
    """Lists and mappings inside a section are written on one line, as in the profiles."""
    if isinstance(value, list):
        sequence = CommentedSeq(value)
        sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, dict):
        mapping = CommentedMap(value)
        mapping.fa.set_flow_style()
        return mapping
    return value


def _directory() -> Any:
    return resources.files("dr_platform") / "profile_values"
