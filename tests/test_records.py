"""Records keep their digests when fields are added to their classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_promotion import metric, report

from dr_platform import files
from dr_platform.records import EvalReport, Manifest, Record, digest_of


def test_a_report_of_before_has_the_digest_of_what_it_says(tmp_path: Path) -> None:
    """Fields that came later, also within its metrics, are at their defaults when it is read."""
    before = json.loads(report(metric(1.0)).model_dump_json(exclude={"notes": True, "figures": True}))
    for each in before["metrics"]:
        del each["extractor"]["resize"], each["definition"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(before, indent=2))
    assert EvalReport.read(path) == report(metric(1.0))
    assert digest_of(path) == files.sha256_json(before) != EvalReport.read(path).digest()
    report(metric(1.0)).write(path)
    assert digest_of(path) == report(metric(1.0)).digest()


def test_a_manifest_of_before_keeps_its_digest_and_what_came_later_counts_once_it_is_there() -> None:
    plain = Manifest(
        visibility="public", grade=1, resolution=32, seed=0, held_out=0.2, collections=(), shares=(),
        patients_train=1, patients_held_out=0, skipped=0, rows_sha256="ab" * 32,
    )  # fmt: skip
    before = plain.model_dump(mode="json", exclude={"settings_sha256"})
    assert plain.digest() == files.sha256_json(before)
    assert plain.model_copy(update={"settings_sha256": "cd" * 32}).digest() != plain.digest()


@pytest.mark.parametrize("kind", [each for each in Record.__subclasses__() if each.later])
def test_a_later_field_has_a_default(kind: type[Record]) -> None:
    assert not [name for name in kind.later if kind.model_fields[name].is_required()]
