"""Which images of all collections are used: measurements and grades in, a reason for each one left out.

It looks at every grade and at both visibilities together, whatever grade is prepared: a copy under another grade or in
another collection would otherwise cross the split unseen. Nothing is opened; ingest has measured everything.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dr_platform.config import PrepareConfig
from dr_platform.data import collections, duplicates, quality, views
from dr_platform.data.collections import ImageRow
from dr_platform.data.manifest import patient_key
from dr_platform.data.measurements import Measurement
from dr_platform.records import Collection

Key = tuple[str, str, str]  # visibility, collection, image_id
Seen = tuple[ImageRow, Measurement]  # an image as its collection knows it

# Half the side of a fingerprint: smaller fields hold less than it can tell apart, so only equal files count there.
MIN_RADIUS = duplicates.SIDE / 2


@dataclass(frozen=True)
class Source:
    """A raw collection that is to be used: its record, its table and what was measured."""

    record: Collection
    rows: Sequence[ImageRow]
    measured: Mapping[str, Measurement]


@dataclass(frozen=True)
class Copies:
    """Two photographs that are one: their keys, how alike they are, and in which orientation."""

    first: Key
    second: Key
    similarity: float
    how: str


@dataclass
class Screening:
    """left_out: why an image is not used. grades: images that take another grade than their own, by the rule for
    conflicts. joined: patients (keys of the split) that share a photograph -> the one key under which they are split.
    """

    left_out: dict[Key, str] = field(default_factory=dict)
    grades: dict[Key, int] = field(default_factory=dict)
    joined: dict[str, str] = field(default_factory=dict)
    copies: list[Copies] = field(default_factory=list)


@dataclass(frozen=True)
class _Image:
    key: Key
    row: ImageRow
    patient: str
    measured: Measurement


def screen(sources: Sequence[Source], config: PrepareConfig) -> Screening:
    """Judge every image of the sources. Public images come first wherever one of several must be chosen."""
    images = [
        _Image(
            (source.record.visibility, source.record.name, row.image_id), row, patient, source.measured[row.image_id]
        )
        for source in sorted(sources, key=lambda s: (s.record.visibility != "public", s.record.name))
        for row in source.rows
        for patient in [patient_key(source.record.name, row)]
    ]
    result = Screening()
    for image in images:
        reasons = _faults(image, config)
        if reasons:
            result.left_out[image.key] = "; ".join(reasons)
    fine = [image for image in images if image.key not in result.left_out]
    result.copies = _copies(fine, config)
    _settle(fine, result, config)
    return result


def _faults(image: _Image, config: PrepareConfig) -> list[str]:
    measured, reasons = image.measured, []
    if config.quality.enabled:
        reasons = quality.judge(measured.quality, config.quality)
    if config.rim_text == "leave-out" and measured.text:
        reasons.append(f"what looks like writing at the rim ({measured.text} found); none is allowed")
    if (said := views.fault(image.row.eye, measured.disc, config)) is not None:
        reasons.append(said)
    return reasons


def _copies(images: Sequence[_Image], config: PrepareConfig) -> list[Copies]:
    """Pairs of equal files, and of fingerprints that are alike."""
    found: list[Copies] = []
    by_file: dict[str, _Image] = {}
    for image in images:
        for digest in {image.row.sha256, image.row.source_sha256}:
            earlier = by_file.setdefault(digest, image)
            if earlier is not image and not (found and found[-1].second == image.key):
                found.append(Copies(earlier.key, image.key, 1.0, "same"))
    if config.near_duplicates is not None:
        large = [image for image in images if _is_large(image.measured)]
        if len(large) > 1:
            prints = np.stack([image.measured.fingerprint for image in large])
            equal = {(copy.first, copy.second) for copy in found}
            for pair in duplicates.near_duplicates(prints, threshold=config.near_duplicates):
                first, second = large[pair.first].key, large[pair.second].key
                if (first, second) not in equal:
                    found.append(Copies(first, second, min(pair.similarity, 1.0), pair.how))
    return found


def seen(directory: Path) -> Iterator[Seen]:
    """The images of a raw collection. Raises DataError if any of it is damaged."""
    record, rows = collections.read_collection(directory)
    measured = collections.read_measurements(directory, record)
    yield from ((row, measured[row.image_id]) for row in rows)


def same_photographs(first: Sequence[Seen], second: Sequence[Seen]) -> list[tuple[int, int]]:
    """Pairs, one of either, that are the same photograph: by their files, by equal looks, or as near-copies."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for i, seen in enumerate(first):
        for name in _names(seen):
            by_digest[name].append(i)
    found = {(i, j) for j, seen in enumerate(second) for name in _names(seen) for i in by_digest.get(name, ())}
    here, there = ([i for i, (_, each) in enumerate(some) if _is_large(each)] for some in (first, second))
    if here and there:
        prints = [np.stack([some[i][1].fingerprint for i in large]) for some, large in ((first, here), (second, there))]
        found |= {(here[pair.first], there[pair.second]) for pair in duplicates.near_duplicates_between(*prints)}
    return sorted(found)


def _names(seen: Seen) -> set[str]:
    """By what two images are certainly one: digests of the file, as stored and as delivered, and of how it looks."""
    row, measured = seen
    names = {row.sha256, row.source_sha256}
    if measured.quality.field_found:
        names.add(hashlib.sha256(measured.fingerprint.tobytes()).hexdigest())
    return names


def _is_large(measured: Measurement) -> bool:
    return measured.quality.radius >= MIN_RADIUS


def _settle(images: Sequence[_Image], result: Screening, config: PrepareConfig) -> None:
    """Of each group of copies keep the first, unless their grades conflict; join the patients they were taken from.

    What becomes of a public image depends on public ones alone: else the public side would tell of proprietary copies.
    """
    public = [image for image in images if image.key[0] == "public"]
    known = {image.patient for image in public}
    for group in _groups(public, result.copies):
        _settle_group(group, result, config)
    for group in _groups(images, result.copies):
        mine = [image for image in group if image.key[0] != "public"]
        # One without a grade is used nowhere, so it stands in nobody's way.
        theirs = [image for image in group if image.key[0] == "public" and image.row.grade is not None]
        if mine and not theirs:
            _settle_group(mine, result, config)
        for image in mine if theirs else ():
            result.left_out[image.key] = f"a copy of a public photograph of grade {theirs[0].row.grade}"
            if _root(image.patient, result.joined) not in known:  # else public patients would be joined by it
                _join([theirs[0].patient, image.patient], result.joined)
    result.joined = {patient: _root(patient, result.joined) for patient in result.joined}


def _groups(images: Sequence[_Image], copies: Sequence[Copies]) -> list[list[_Image]]:
    """The images that copies join, each group in the order given."""
    place = {image.key: index for index, image in enumerate(images)}
    pairs = []
    for copy in copies:
        if copy.first in place and copy.second in place:
            first, second = sorted((place[copy.first], place[copy.second]))
            pairs.append(duplicates.Pair(first, second, copy.similarity, copy.how))
    return [[images[index] for index in group] for group in duplicates.groups(pairs, len(images))]


def _settle_group(group: Sequence[_Image], result: Screening, config: PrepareConfig) -> None:
    """Copies of one visibility."""
    _join([image.patient for image in group], result.joined)
    grades = {image.row.grade for image in group if image.row.grade is not None}
    if len(grades) > 1 and config.conflicting_grades == "leave-out":
        said = ", ".join(str(grade) for grade in sorted(grades))
        result.left_out.update({image.key: f"copies of it have different grades ({said})" for image in group})
        return
    kept, *others = group
    if grades:
        result.grades[kept.key] = max(grades) if config.conflicting_grades == "highest" else min(grades)
    result.left_out.update({image.key: "the same photograph as another image" for image in others})


def _join(patients: Sequence[str], joined: dict[str, str]) -> None:
    """Let all of them be split like the first."""
    first = _root(patients[0], joined)
    for patient in patients:
        joined[_root(patient, joined)] = first


def _root(patient: str, joined: Mapping[str, str]) -> str:
    while joined.get(patient, patient) != patient:
        patient = joined[patient]
    return patient


def with_grade(row: ImageRow, grade: int | None) -> ImageRow:
    """The row under another grade."""
    return row if grade is None else replace(row, grade=grade)
