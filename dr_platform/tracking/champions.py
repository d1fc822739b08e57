"""The champion alias as a view of the ledger, and the ledger's copy in the registry's tags.

A decision is written in this order: the entry into the ledger, the alias, a sentence among the version's tags, and last
the entry's copy among the model's tags. Whatever has no copy yet is unfinished, and every command that comes next
completes it first. So a kill between any two of these leaves the old champion or the new one, never a third state, and
an alias that differs although all copies are there was moved by someone else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dr_platform import files
from dr_platform.errors import RegistryError
from dr_platform.ledger import (
    Evidence,
    Ledger,
    Problem,
    champion,
    examine,
    last_move,
    line_of,
    make_entry,
)
from dr_platform.records import LedgerAction, LedgerEntry
from dr_platform.tracking.registry import CHAMPION, Tracker
from dr_platform.tracking.words import clean

_COPY = re.compile(r"ledger\.(\d{6,})")
_KEPT = ("checkpoint_sha256", "weights_sha256")  # what of a version never changes; its report may be renewed


@dataclass(frozen=True)
class Audit:
    """What the ledger holds, what is amiss, and what a kill had left undone and is done now."""

    entries: tuple[LedgerEntry, ...]
    problems: tuple[Problem, ...]
    completed: tuple[LedgerEntry, ...]


def decided(
    ledger: Ledger,
    tracker: Tracker,
    *,
    action: LedgerAction,
    model: str,
    from_version: int | None,
    to_version: int,
    rules_sha256: str | None,
    reason: str,
) -> LedgerEntry:
    """Write a decision into the ledger, then move the alias and copy the entry into the tags; returns the entry.

    The caller holds the ledger's lock and has called `settle`. Raises RegistryError, with nothing written, if the
    version's weights, description or report are missing or not those of its digests.
    """
    tracker.verify(model, to_version)
    entry = make_entry(
        ledger.entries(),
        action=action,
        model=model,
        from_version=from_version,
        to_version=to_version,
        evidence=evidence(tracker, model, to_version),
        rules_sha256=rules_sha256,
        reason=clean(reason),
    )
    ledger.append(entry)
    settle(ledger, tracker, model)
    return entry


def evidence(tracker: Tracker, model: str, number: int) -> Evidence:
    """The digests that a version's tags give. Raises RegistryError for a version that drp did not register."""
    version = tracker.version(model, number)
    return Evidence(*(version.tag(name) for name in ("checkpoint_sha256", "report_sha256", "weights_sha256")))


def settle(ledger: Ledger, tracker: Tracker, model: str, then: int | None = None) -> LedgerEntry | None:
    """Complete what a kill left undone of a model's last decision; returns its entry, None where nothing was.

    then: the version that will be decided about next. A champion that is missing or altered since its entry was written
    cannot take its place; a decision about another version is then the way out, and the alias waits for that one.
    The caller holds the ledger's lock. Raises RegistryError, with nothing moved, if ledger, alias and tags disagree in
    a way that no kill explains, or if the version to become champion is missing or altered.
    """
    entries = ledger.entries()
    copies, alias = _copies(tracker, model), tracker.champion(model)
    known = copies or last_move(entries, model)  # else the alias is older than the ledger
    for problem in _differences(entries, model, copies, alias) if known else ():
        raise RegistryError(f"{problem.said} Run: drp audit verify")
    undone = _undone(entries, model, copies)
    if not undone:
        return None
    move, wanted = last_move(entries, model), champion(entries, model)
    if move is not None and wanted is not None and alias != wanted:
        try:
            require_unchanged(tracker, move)
            tracker.set_champion(model, wanted)
        except RegistryError as error:
            if then not in (None, move.to_version):
                return None
            raise RegistryError(f"Entry {move.index} cannot be completed: {error} Or: drp rollback") from None
    for entry in undone:
        tracker.tag_version(model, entry.to_version, f"decision.{entry.index:06d}", _sentence(entry))
        tracker.tag_model(model, f"ledger.{entry.index:06d}", _text(entry))
    return undone[-1]


def require_unchanged(tracker: Tracker, entry: LedgerEntry) -> None:
    """Raise RegistryError if the version an entry is about is not the one it was about when it was written."""
    tags = tracker.version(entry.model, entry.to_version).tags
    for name in _KEPT:
        if tags.get(name) != getattr(entry, name):
            raise RegistryError(
                f"{entry.model}/{entry.to_version} is not what it was when entry {entry.index} was written: its {name} "
                f"is {tags.get(name)}, recorded is {getattr(entry, name)}. Promote another version."
            )


def audit(ledger: Ledger, tracker: Tracker, *, artifacts: bool = True) -> Audit:
    """Hold ledger, alias and tags of every model against each other; completes first what a kill left undone.

    artifacts: fetch the champions' files too and hold them against their digests.
    """
    with ledger.locked():
        entries, damage = examine(ledger.content())
        problems = [damage] if damage else []
        completed = []
        names = tracker.models()
        for model in sorted({*names, *(entry.model for entry in entries)}):
            if model not in names:
                problems.append(Problem(None, model, f"The registry has no model {model}, but the ledger has."))
                continue
            copies, alias = _copies(tracker, model), tracker.champion(model)
            if damage:
                # Of what comes after the damage nothing can be said.
                copies = {index: text for index, text in copies.items() if index < len(entries)}
                problems.extend(_strange_copies(entries, model, copies))
                continue
            found = list(_differences(entries, model, copies, alias))
            problems.extend(found)
            try:
                if not found and (done := settle(ledger, tracker, model)):
                    completed.append(done)
                move = last_move(entries, model)
                if move is not None and not found:
                    require_unchanged(tracker, move)
                    if artifacts:
                        tracker.verify(model, move.to_version)
            except RegistryError as error:
                problems.append(Problem(None, model, str(error)))
    return Audit(entries, tuple(problems), tuple(completed))


def restore(ledger: Ledger, tracker: Tracker) -> list[str]:
    """Put alias and tags back to what the ledger says, and a damaged ledger to what the tags say; one line per deed.

    A damaged file is kept beside the new one. Raises RegistryError, with the file as it was, if an entry is sound
    neither in the file nor among the tags, or sound but different in both: which is right a person has to say.
    """
    with ledger.locked():
        said = list(_restore_file(ledger, tracker))
        entries = ledger.entries()
        for model in sorted({entry.model for entry in entries} & set(tracker.models())):
            wanted, alias = champion(entries, model), tracker.champion(model)
            if alias != wanted:
                if wanted is None:
                    tracker.unset_champion(model)
                else:
                    tracker.set_champion(model, wanted)
                said.append(f"{model}: {CHAMPION} moved from {_or_none(alias)} to {_or_none(wanted)}")
            copies = _copies(tracker, model)
            for entry in entries:
                if entry.model == model and entry.index not in copies:
                    tracker.tag_version(model, entry.to_version, f"decision.{entry.index:06d}", _sentence(entry))
                    tracker.tag_model(model, f"ledger.{entry.index:06d}", _text(entry))
                    said.append(f"{model}: entry {entry.index} copied into the tags")
    return said


def _restore_file(ledger: Ledger, tracker: Tracker) -> Iterator[str]:
    content = ledger.content()
    entries, damage = examine(content)
    copies = {index: text for model in tracker.models() for index, text in _copies(tracker, model).items()}
    for entry in entries:
        if copies.get(entry.index, _text(entry)) != _text(entry):
            raise RegistryError(
                f"Entry {entry.index} is sound but different in {ledger.path.name} and in the tags of {entry.model}. "
                "Ask who wrote it; then restore the file, or the tag, from a copy of yours."
            )
    if damage is None and all(index < len(entries) for index in copies):
        return
    texts = {entry.index: _text(entry) for entry in entries} | copies
    rebuilt = b"".join(texts[index].encode() + b"\n" for index in sorted(texts))
    sound, wrong = examine(rebuilt)
    if wrong or (damage and damage.entry not in copies):
        index = wrong.entry if wrong else damage and damage.entry
        raise RegistryError(
            f"Entry {index} is sound neither in {ledger.path.name} nor in the registry's tags. Restore the file from "
            "a backup."
        )
    if content:
        kept = ledger.path.with_name(f"{ledger.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        files.write_bytes(kept, content)
        yield f"the damaged ledger is kept as {kept.name}"
    files.write_bytes(ledger.path, rebuilt)
    yield f"{ledger.path.name}: {len(sound)} entries written from the registry's tags"


def _undone(entries: Sequence[LedgerEntry], model: str, copies: Mapping[int, str]) -> list[LedgerEntry]:
    newest = max(copies, default=-1)
    return [entry for entry in entries if entry.model == model and entry.index > newest]


def _differences(
    entries: Sequence[LedgerEntry], model: str, copies: Mapping[int, str], alias: int | None
) -> Iterator[Problem]:
    """Where alias and tags of a model are not what the ledger says and no kill explains it."""
    yield from _strange_copies(entries, model, copies)
    undone = _undone(entries, model, copies)
    move, wanted = last_move(entries, model), champion(entries, model)
    if move is None:
        if alias is not None:
            yield Problem(
                None,
                model,
                f"The champion of {model} is version {alias}, and no entry of the ledger says so. If it should be: "
                f"drp promote {model}/{alias} --force --reason TEXT.",
            )
        return
    possible = {wanted}
    if undone:
        before = entries[: undone[0].index]
        possible.add(champion(before, model) if last_move(before, model) else undone[0].from_version)
    if alias not in possible:
        yield Problem(
            move.index,
            model,
            f"The champion of {model} is {_or_none(alias)}, but by entry {move.index} it is version {wanted}: someone "
            "moved the alias. To put it back: drp audit restore.",
        )


def _strange_copies(entries: Sequence[LedgerEntry], model: str, copies: Mapping[int, str]) -> Iterator[Problem]:
    """Copies in the tags that are not copies of the ledger, and entries whose copy is gone."""
    texts = {entry.index: _text(entry) for entry in entries if entry.model == model}
    for index, text in sorted(copies.items()):
        if index not in texts:
            yield Problem(
                index, model, f"Entry {index} is missing in the ledger, but the tags of {model} have a copy of it."
            )
        elif text != texts[index]:
            yield Problem(index, model, f"Entry {index} and its copy in the tags of {model} differ.")
    newest = max(copies, default=-1)
    for index in sorted(texts.keys() - copies.keys()):
        if index < newest:
            yield Problem(index, model, f"The copy of entry {index} in the tags of {model} is gone.")


def _copies(tracker: Tracker, model: str) -> dict[int, str]:
    """The entries' copies among a model's tags, by index."""
    found = ((_COPY.fullmatch(name), value) for name, value in tracker.model_tags(model).items())
    return {int(match[1]): value for match, value in found if match}


def _text(entry: LedgerEntry) -> str:
    return line_of(entry).decode().rstrip("\n")


def _sentence(entry: LedgerEntry) -> str:
    """A decision as the registry's pages show it beside the version."""
    return (
        f"{entry.action} {_or_none(entry.from_version)} -> version {entry.to_version}, {entry.time}, {entry.who}: "
        f"{entry.reason} (entry {entry.index}, {entry.sha256})"
    )


def _or_none(number: int | None) -> str:
    return "none" if number is None else f"version {number}"
