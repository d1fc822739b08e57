"""What a data version holds, for an auditor and a researcher: counts, the split, what was left out, and how it looks.

`collect` reads what ingest and prepare left behind and judges it again by `screening`, so that the report cannot differ
from what is trained on. Of proprietary collections nothing but totals is collected unless that is asked for: what is
not in a `Report` cannot be shown by mistake. The same data gives the same report.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dr_platform import files
from dr_platform.config import PrepareConfig
from dr_platform.data import collections, manifest, prepare, screening, views
from dr_platform.data.collections import VISIBILITIES, Progress
from dr_platform.data.manifest import ManifestRow
from dr_platform.data.reasons import read_reason
from dr_platform.data.report.facts import (
    BINS,
    GRADES,
    CollectionCount,
    Examples,
    LeftOut,
    LicenceCount,
    Measure,
    Pair,
    Reason,
    Report,
    SplitCount,
    Spread,
    Version,
    Withheld,
)
from dr_platform.data.report.gallery import Gallery, keyed, pseudonym
from dr_platform.data.screening import Copies, Key, Screening, Source
from dr_platform.errors import DataError
from dr_platform.records import Manifest, Visibility

EXAMPLES = 8  # pictures of a collection and grade, and of a reason
PAIRS = 12  # pairs of near-duplicates that are shown, the least alike first


def collect(
    raw_root: Path,
    prepared_roots: Sequence[Path],
    config: PrepareConfig,
    *,
    project: str,
    date: str | None = None,
    include_proprietary: bool = False,
    progress: Progress = collections.silent,
) -> Report:
    """Everything the report says of the collections in `config`, and of the grades prepared below `prepared_roots`.

    date: of the data version. Raises DataError if a collection is missing or damaged; so if nothing was ingested.
    """
    sources = _sources(raw_root, config)
    screened = screening.screen(sources, config)
    prepared = _prepared(prepared_roots)
    _add_skipped(screened.left_out, sources, prepared_roots)
    labels = set(VISIBILITIES if include_proprietary else VISIBILITIES[:1])
    shown = [source for source in sources if source.record.visibility in labels]
    mine = [(record, rows) for record, rows in prepared if record.visibility in labels]
    gallery = Gallery(raw_root, shown, "site" if include_proprietary else "everyone", progress)
    left_out = _left_out(shown, screened, bare=len(shown) < len(sources))
    every_pair = _distinct(screened.copies)
    copies = [copy for copy in every_pair if {copy.first[0], copy.second[0]} <= labels]
    wanted = _wanted_examples(shown, screened, config)
    reasons = _reason_groups(left_out)
    least_alike = sorted(copies, key=lambda copy: (copy.similarity, copy.first, copy.second))[:PAIRS]
    gallery.total = 2 * len(least_alike) + sum(
        min(len(keys), EXAMPLES) for groups in (wanted, reasons) for keys in groups.values()
    )
    return Report(
        project=project,
        date=date,
        digest=files.sha256_json([*(s.record.digest() for s in sources), *(record.digest() for record, _ in prepared)]),
        grades=tuple(sorted({record.grade for record, _ in prepared})) or (config.grade,),
        resolution=config.resolution,
        seed=config.seed,
        held_out=config.held_out,
        proprietary=include_proprietary,
        versions=_versions(shown, [record for record, _ in mine]),
        notes=_notes(shown, sources, prepared, config),
        collections=tuple(_count(source, screened) for source in shown),
        licences=_licences(shown),
        split=_split([row for _, rows in mine for row in rows]),
        left_out=tuple(entry for _, entry in left_out),
        reasons=tuple(_reason(first, entries, gallery) for first, entries in reasons.items()),
        measures=_measures(shown, config),
        pairs=tuple(_pair(copy, screened, gallery) for copy in least_alike),
        similarities=tuple(sorted(_similarity(copy) for copy in copies)),
        equal_files=_equal_files(copies, shown),
        examples=tuple(
            Examples(name, label, grade, len(keys), tuple(gallery.standard(key) for key in keys[:EXAMPLES]))
            for (label, name, grade), keys in wanted.items()
        ),
        withheld=_withheld(sources, labels, screened, prepared, len(every_pair) - len(copies)),
    )


def numbers(report: Report) -> dict[str, Any]:
    """The report without its pictures, as plain values for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items() if name != "jpeg"}
        return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

    return plain(asdict(report))


# ---- what there is ---------------------------------------------------------------------------------------------------


def _sources(raw_root: Path, config: PrepareConfig) -> list[Source]:
    """The collections that prepare would use, public ones first."""
    used: tuple[Visibility, ...] = VISIBILITIES if config.visibility == "all" else ("public",)
    found, missing = [], []
    for name in sorted(set(config.collections)):
        directories = [collections.collection_directory(raw_root, label, name) for label in used]
        present = [each for each in directories if (each / collections.COLLECTION_FILE).is_file()]
        found += [prepare.read_source(directory) for directory in present]
        if not present:
            missing.append(name)
    if missing:
        raise DataError(
            f"There is no collection {missing[0]} to report on ({config.visibility}), though prepare.collections names "
            f"it. Run: drp data ingest, or dvc repro phantom for synthetic photographs"
        )
    return sorted(found, key=lambda source: (source.record.visibility != "public", source.record.name))


def _prepared(roots: Sequence[Path]) -> list[tuple[Manifest, list[ManifestRow]]]:
    """Every prepared grade of both visibilities; none if nothing has been prepared."""
    places = [path.parent for root in roots for label in VISIBILITIES for path in _records(root, label)]
    return [manifest.read_manifest(place) for place in places]


def _records(root: Path, label: Visibility) -> list[Path]:
    return sorted((root / label).glob(f"grade-*/{manifest.RECORD_FILE}"))


def _add_skipped(left_out: dict[Key, str], sources: Sequence[Source], roots: Sequence[Path]) -> None:
    """What prepare found only when it opened the images."""
    known = {key for source in sources for key, _ in keyed(source)}
    for label in VISIBILITIES:
        for root in roots:
            for record in _records(root, label):
                for row in prepare.read_skipped(record.parent):
                    key = (str(label), row["collection"], row["image_id"])
                    if key in known:
                        left_out.setdefault(key, row["reason"])


def _versions(shown: Sequence[Source], manifests: Sequence[Manifest]) -> tuple[Version, ...]:
    raw = [Version(f"{s.record.name}, {s.record.visibility}", s.record.digest()) for s in shown]
    return (*raw, *(Version(f"prepared grade {each.grade}, {each.visibility}", each.digest()) for each in manifests))


def _notes(
    shown: Sequence[Source],
    sources: Sequence[Source],
    prepared: Sequence[tuple[Manifest, list[ManifestRow]]],
    config: PrepareConfig,
) -> tuple[str, ...]:
    notes = []
    if not prepared:
        notes.append("Nothing has been prepared yet, so there is no split to show. Run: dvc repro prepare")
    elif not _is_current(sources, prepared, config):
        notes.append(
            "What was prepared follows from other data or settings than those here, and so do the split and the "
            "numbers of images to train on and held out; what is left out is counted by those here. "
            "Run: dvc repro prepare"
        )
    facing = [(row.eye, source.measured[row.image_id].disc) for source in shown for row in source.rows]
    wrong = sum(views.is_inverted(eye, disc) for eye, disc in facing)
    if wrong:
        known = sum(eye is not None for eye, _ in facing)
        notes.append(
            f"In {wrong} of {known} images of a known eye the disc lies where that of the other eye does: a view "
            "upside down, a mirrored one, or an eye named wrongly. "
            f"See prepare.inverted_views ({config.inverted_views})."
        )
    unknown = sum(row.patient_id is None for source in shown for row in source.rows)
    if unknown:
        total = sum(len(source.rows) for source in shown)
        notes.append(f"{unknown} of {total} images name no patient; each is split as a patient of its own.")
    return tuple(notes)


def _is_current(
    sources: Sequence[Source], prepared: Sequence[tuple[Manifest, list[ManifestRow]]], config: PrepareConfig
) -> bool:
    """Whether `dvc repro prepare` would prepare the same again, as far as records tell."""
    settings = manifest.settings_sha256(config)
    names = {(source.record.visibility, source.record.name) for source in sources}
    searched = {(record.visibility, name) for record, _ in prepared for name in record.collections}
    raw = {row.sha256 for source in sources for row in source.rows}
    return (
        config.grade in {record.grade for record, _ in prepared}
        and all(record.settings_sha256 == settings for record, _ in prepared)
        and names == searched
        and all(row.raw_sha256 in raw for _, rows in prepared for row in rows)
    )


def _count(source: Source, screened: Screening) -> CollectionCount:
    record, rows = source.record, source.rows
    grades = Counter(row.grade for row in rows)
    return CollectionCount(
        name=record.name,
        visibility=record.visibility,
        layout=record.layout,
        images=len(rows),
        patients=len({row.patient_id for row in rows if row.patient_id}),
        without_patient=sum(row.patient_id is None for row in rows),
        grades=tuple(grades[grade] for grade in GRADES),
        left_out=sum(key in screened.left_out for key, _ in keyed(source)),
        unusable=record.rejected,
    )


def _licences(shown: Sequence[Source]) -> tuple[LicenceCount, ...]:
    counts = Counter(row.license for source in shown for row in source.rows)
    names: dict[str, set[str]] = defaultdict(set)
    for source in shown:
        for row in source.rows:
            names[row.license].add(source.record.name)
    ordered = sorted(counts, key=lambda licence: (-counts[licence], licence))
    return tuple(LicenceCount(each, counts[each], tuple(sorted(names[each]))) for each in ordered)


def _split(rows: Sequence[ManifestRow]) -> tuple[SplitCount, ...]:
    places: dict[tuple[str, Visibility, int], list[ManifestRow]] = defaultdict(list)
    for row in rows:
        places[row.collection, row.visibility, row.grade].append(row)
    found = []
    for (name, label, grade), images in sorted(places.items(), key=lambda place: (place[0][1] != "public", place[0])):
        there, apart = ([row for row in images if row.split == split] for split in manifest.SPLITS)
        patients = [len({row.patient for row in side}) for side in (there, apart)]
        found.append(SplitCount(name, label, grade, len(there), len(apart), *patients))
    return tuple(found)


def _withheld(
    sources: Sequence[Source],
    labels: set[Visibility],
    screened: Screening,
    prepared: Sequence[tuple[Manifest, list[ManifestRow]]],
    pairs: int,
) -> Withheld:
    apart = [source for source in sources if source.record.visibility not in labels]
    manifests = [record for record, _ in prepared if record.visibility not in labels]
    return Withheld(
        collections=len(apart),
        images=sum(len(source.rows) for source in apart),
        left_out=sum(key in screened.left_out for source in apart for key, _ in keyed(source)),
        train=sum(record.train for record in manifests),
        held_out=sum(record.held_out_images for record in manifests),
        pairs=pairs,
    )


# ---- what was left out -----------------------------------------------------------------------------------------------


def _left_out(shown: Sequence[Source], screened: Screening, *, bare: bool) -> list[tuple[Key, LeftOut]]:
    """Every image of these that is not used. bare: without the grades of its copies, which may be proprietary."""
    found = []
    for source in shown:
        for key, row in keyed(source):
            reason = screened.left_out.get(key)
            if reason is not None:
                reason = re.sub(r" \([\d, ]+\)$", "", reason) if bare else reason
                name, label = source.record.name, source.record.visibility
                found.append((key, LeftOut(pseudonym(key), name, label, row.grade, reason)))
    return found


def _reason_groups(left_out: Sequence[tuple[Key, LeftOut]]) -> dict[tuple[str, str], list[tuple[Key, str]]]:
    """(what, needed) of the first reason -> the images, each with what was found; the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[Key, str]]] = defaultdict(list)
    for key, entry in left_out:
        what, found, needed = read_reason(entry.reason)
        groups[what, needed].append((key, found))
    ordered = sorted(groups, key=lambda first: (-len(groups[first]), first))
    return {first: sorted(groups[first], key=lambda entry: pseudonym(entry[0])) for first in ordered}


def _reason(first: tuple[str, str], entries: Sequence[tuple[Key, str]], gallery: Gallery) -> Reason:
    pictures = tuple((gallery.whole(key), found) for key, found in entries[:EXAMPLES])
    return Reason(*first, len(entries), pictures)


# ---- how they look ---------------------------------------------------------------------------------------------------


def _measures(shown: Sequence[Source], config: PrepareConfig) -> tuple[Measure, ...]:
    limits = config.quality
    demanded: Mapping[str, tuple[float, ...]] = {
        "exposure": (limits.min_exposure, limits.max_exposure),
        "focus": (limits.min_focus,),
        "coverage": (limits.min_coverage,),
    }
    values = [(source.record.name, source.record.visibility, _values(source)) for source in shown]
    measures: list[Measure] = []
    if not values:
        return ()
    for name in ("size", "red", "green", "blue", "exposure", "focus", "radius", "coverage"):
        everything = np.concatenate([measured[name] for _, _, measured in values])
        wanted = demanded.get(name, ()) if limits.enabled else ()
        start, end = (0.0, 255.0) if name in ("red", "green", "blue") else _range(everything, wanted)
        spreads = tuple(_spread(each, label, measured[name], start, end) for each, label, measured in values)
        measures.append(Measure(name, start, end, wanted, spreads))
    return tuple(measures)


def _values(source: Source) -> dict[str, np.ndarray]:
    """Measurements of a collection; all but the size are of the images whose field was found.

    radius: the field's diameter over the picture's shorter side.
    """
    images = [(row, source.measured[row.image_id].quality) for row in source.rows]
    fields = [(row, q) for row, q in images if q.field_found]
    found = {name: np.array([getattr(q, name) for _, q in fields], np.float64) for name in _MEASURED}
    found["size"] = np.array([max(row.width, row.height) for row, _ in images], np.float64)
    found["radius"] = np.array([2 * q.radius / min(row.width, row.height) for row, q in fields], np.float64)
    return found


_MEASURED = ("red", "green", "blue", "exposure", "focus", "coverage")


def _range(values: np.ndarray, limits: Sequence[float]) -> tuple[float, float]:
    """What 99 % of the values and the limits span, a little wider; a width of at least a tenth of their size."""
    if not len(values):
        return 0.0, 1.0
    low, high = (float(v) for v in np.quantile(values, (0.005, 0.995)))
    low, high = min(low, *limits, high), max(high, *limits, low)
    margin = max(0.05 * (high - low), 0.05 * max(abs(high), 0.01))
    return max(low - margin, 0.0), high + margin


def _spread(name: str, label: Visibility, values: np.ndarray, start: float, end: float) -> Spread:
    if not len(values):
        return Spread(name, label, 0, 0.0, 0.0, 0.0, (0,) * BINS)
    bins, _ = np.histogram(np.clip(values, start, end), BINS, (start, end))
    low, median, high = (round(float(v), 4) for v in np.quantile(values, (0.05, 0.5, 0.95)))
    return Spread(name, label, len(values), low, median, high, tuple(int(n) for n in bins))


def _wanted_examples(
    shown: Sequence[Source], screened: Screening, config: PrepareConfig
) -> dict[tuple[Visibility, str, int | None], list[Key]]:
    """The images in use of each collection and grade, in the order of subsets."""
    found: dict[tuple[Visibility, str, int | None], list[Key]] = {}
    for source in shown:
        for grade in GRADES:
            rows = [(key, row) for key, row in keyed(source) if row.grade == grade and key not in screened.left_out]
            rows.sort(key=lambda entry: manifest.rank_key(entry[1].sha256, config.seed))
            if rows:
                found[source.record.visibility, source.record.name, grade] = [key for key, _ in rows]
    return found


def _distinct(copies: Sequence[Copies]) -> list[Copies]:
    """Each pair once: equal files are found by their digests and by their fingerprints."""
    return list({frozenset((copy.first, copy.second)): copy for copy in reversed(copies)}.values())


def _similarity(copy: Copies) -> float:
    return round(min(copy.similarity, 1.0), 4)


def _equal_files(copies: Sequence[Copies], shown: Sequence[Source]) -> int:
    """How many pairs are of one file, as stored or as delivered."""
    digests = {key: {row.sha256, row.source_sha256} for source in shown for key, row in keyed(source)}
    return sum(bool(digests[copy.first] & digests[copy.second]) for copy in copies)


def _pair(copy: Copies, screened: Screening, gallery: Gallery) -> Pair:
    used = (copy.first not in screened.left_out, copy.second not in screened.left_out)
    return Pair(gallery.whole(copy.first), gallery.whole(copy.second), _similarity(copy), copy.how, used)
