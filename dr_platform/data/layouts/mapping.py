"""Which column of a table holds what, and the small YAML file in which a hospital keeps that for its next delivery."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from dr_platform import files
from dr_platform.config import UniqueKeys
from dr_platform.errors import DataError

_MOST_BYTES = 65_536


@dataclass(frozen=True)
class ColumnMap:
    """Which column of the CSV holds what. `grade` must be there, and `image_id` or `file`; others may be absent."""

    image_id: str = "image_id"
    file: str = "file"
    grade: str = "grade"
    patient_id: str = "patient_id"
    eye: str = "eye"
    source: str = "source"
    license: str = "license"


def save_mapping(path: Path, columns: ColumnMap) -> None:
    """Write a mapping as YAML, one line per field, in place of what was there."""
    head = "# Which column of the table holds what; a line may be left out where field and column have one name.\n"
    files.write_text(path, head + yaml.safe_dump(asdict(columns), sort_keys=False, allow_unicode=True))


def read_mapping(path: Path) -> ColumnMap:
    """The mapping that a YAML file holds. Raises DataError naming the line, or the field and its value."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes; a mapping has a line per column. Give one.")
        values = UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give a saved column mapping.") from None
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        # yaml meets values that it takes for numbers or dates with exceptions of its own and of Python's.
        raise DataError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}. Correct it.") from None
    known = [entry.name for entry in fields(ColumnMap)]
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no mapping. Write lines such as `grade: level`; fields are {', '.join(known)}.")
    for name, column in values.items():
        if name not in known:
            raise DataError(f"{path}: {reprlib.repr(name)} is no field; accepted are {', '.join(known)}.")
        if not isinstance(column, str) or not column.strip():
            raise DataError(
                f"{path}: {name} is {reprlib.repr(column)}; accepted is the name of a column, quoted if it is a number."
            )
    return ColumnMap(**values)
