"""Records keep their digests when fields are added to their classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_promotion import metric, report

from dr_platform import files
from dr_platform.records import EvalReport, Record


def test_a_report_of_before_keeps_its_digest_and_what_came_later_counts_once_it_is_there(tmp_path: Path) -> None:
    written = json.loads(report(metric(1.0)).model_dump_json())
    before = {name: value for name, value in written.items() if name not in EvalReport.later}
    assert EvalReport.later
    assert set(before) != set(written)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(before))
    assert EvalReport.read(path).digest() == files.sha256_json(before) == report(metric(1.0)).digest()
    assert report(metric(1.0), notes=("a note",)).digest() != files.sha256_json(before)


@pytest.mark.parametrize("kind", [each for each in Record.__subclasses__() if each.later])
def test_a_later_field_has_a_default(kind: type[Record]) -> None:
    assert not [name for name in kind.later if kind.model_fields[name].is_required()]
