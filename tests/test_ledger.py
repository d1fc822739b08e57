"""The ledger's file: every changed byte is found and its entry named, a torn line is cut off, writers take turns."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path

import pytest

from dr_platform import files, ledger
from dr_platform.errors import RegistryError
from dr_platform.ledger import Evidence, Ledger, examine, line_of, make_entry
from dr_platform.records import LedgerAction, LedgerEntry

MODEL, OTHER = "fundus-dr1-stylegan3", "fundus-dr2-stylegan3"
EVIDENCE = Evidence("ab" * 32, "cd" * 32, "ef" * 32)
SEED = 20


def following(entries: list[LedgerEntry], action: LedgerAction, model: str, before: int | None, to: int) -> LedgerEntry:
    return make_entry(
        entries, action=action, model=model, from_version=before, to_version=to, evidence=EVIDENCE,
        rules_sha256=None if action == "rollback" else "12" * 32, reason=f"Größe {to} “quoted”, \\ and more.",
    )  # fmt: skip


def chain(*moves: tuple[LedgerAction, str, int | None, int]) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    for move in moves:
        entries.append(following(entries, *move))
    return entries


TWELVE = chain(
    *((("hold", MODEL, None, 1), ("promote", MODEL, None, 2), ("force", OTHER, 3, 4), ("rollback", OTHER, 4, 3)) * 3)
)
BYTES = b"".join(map(line_of, TWELVE))
STARTS = [BYTES.index(line_of(entry)) for entry in TWELVE]


def entry_at(position: int) -> int:
    return max(index for index, start in enumerate(STARTS) if start <= position)


def append_ten(path: Path, number: int) -> None:
    book = Ledger(path)
    for _ in range(10):
        with book.locked():
            book.append(following(list(book.entries()), "hold", MODEL, None, number))


def test_what_was_written_is_read_back() -> None:
    assert examine(BYTES) == (tuple(TWELVE), None)


def test_each_of_200_changed_bytes_is_found_and_its_entry_named() -> None:
    chance = random.Random(SEED)
    positions = [*chance.sample(range(len(BYTES)), 199), len(BYTES) - 1]  # the newline at the very end too
    named = {}
    for position in positions:
        changed = bytearray(BYTES)
        changed[position] ^= 1 << chance.randrange(8)
        entries, problem = examine(bytes(changed))
        named[position] = problem.entry if problem else None
        assert list(entries) == TWELVE[: len(entries)]
    assert named == {position: entry_at(position) for position in positions}


@pytest.mark.parametrize("position", [STARTS[3] + 40, len(BYTES) - 1], ids=["inside", "last"])
def test_no_value_of_a_byte_but_its_own_is_accepted(position: int) -> None:
    changed = bytearray(BYTES)
    for value in set(range(256)) - {BYTES[position]}:
        changed[position] = value
        _, problem = examine(bytes(changed))
        assert problem is not None, value
        assert problem.entry == entry_at(position), value


def test_an_entry_written_anew_with_a_fresh_digest_breaks_the_chain() -> None:
    fields = TWELVE[4].model_dump(exclude={"sha256"}) | {"who": "someone else"}
    forged = LedgerEntry(**fields, sha256=files.sha256_json(fields))
    _, problem = examine(b"".join(map(line_of, [*TWELVE[:4], forged, *TWELVE[5:]])))
    assert problem is not None
    assert "Entry 5 does not follow on entry 4" in problem.said


def test_lines_taken_out_or_put_elsewhere_are_missed() -> None:
    lines = list(map(line_of, TWELVE))
    _, taken = examine(b"".join(lines[:3] + lines[4:]))
    _, swapped = examine(b"".join([*lines[:6], lines[7], lines[6], *lines[8:]]))
    assert taken is not None
    assert swapped is not None
    assert "Entry 3 is missing: entry 4 stands in its place" in taken.said
    assert "Entry 6 is missing: entry 7 stands in its place" in swapped.said


def test_a_line_torn_at_any_byte_is_cut_off_by_the_next_entry(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.jsonl")
    sound, torn = b"".join(map(line_of, TWELVE[:2])), line_of(TWELVE[2])
    for kept in range(len(torn)):
        book.path.write_bytes(sound + torn[:kept])
        assert list(book.entries()) == TWELVE[:2], kept
    book.append(TWELVE[2])
    assert book.path.read_bytes() == sound + torn


@pytest.mark.parametrize("tail", [b"x", b'{"action":"promote"} ', b'{"action":"promote","chec\xff', b"\n"])
def test_a_last_line_that_no_kill_leaves_is_a_change(tail: bytes) -> None:
    _, problem = examine(BYTES + tail)
    assert problem is not None
    assert problem.entry == len(TWELVE)


def test_a_changed_ledger_is_one_line_and_takes_no_entry(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.jsonl")
    changed = BYTES.replace(b'"to_version":4', b'"to_version":5', 1)
    book.path.write_bytes(changed)
    with pytest.raises(RegistryError, match="Entry 2 was changed: it does not match its own SHA-256") as caught:
        book.entries()
    assert "\n" not in str(caught.value)


def test_processes_that_write_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    started = [multiprocessing.get_context("fork").Process(target=append_ten, args=(path, n)) for n in (1, 2, 3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, 0]
    entries = Ledger(path).entries()
    assert sorted(entry.to_version for entry in entries) == [1] * 10 + [2] * 10 + [3] * 10


def test_a_directory_in_the_ledgers_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(RegistryError, match=r"ledger\.jsonl cannot be read: Is a directory"):
        Ledger(tmp_path / "ledger.jsonl").entries()


def test_a_second_rollback_goes_further_back_instead_of_to_and_fro() -> None:
    ups = [("promote", MODEL, None, 1), ("promote", MODEL, 1, 2), ("hold", MODEL, 2, 9), ("force", MODEL, 2, 3)]
    downs = [("rollback", MODEL, 3, 2), ("rollback", MODEL, 2, 1)]
    others = [("promote", OTHER, None, 7)]
    assert ledger.reigns(chain(*ups, *others), MODEL) == [1, 2, 3]  # type: ignore[arg-type]
    assert ledger.reigns(chain(*ups, *downs[:1]), MODEL) == [1, 2]  # type: ignore[arg-type]
    assert ledger.reigns(chain(*ups, *downs), MODEL) == [1]  # type: ignore[arg-type]
    assert ledger.champion(chain(*ups, *downs, *others), OTHER) == 7  # type: ignore[arg-type]
    assert ledger.champion(chain(ups[2]), MODEL) is None  # type: ignore[arg-type]


def test_a_champion_older_than_the_ledger_can_be_gone_back_to() -> None:
    assert ledger.reigns(chain(("promote", MODEL, 4, 5)), MODEL) == [4, 5]


def test_an_entry_says_who_acts_in_one_line_that_fits_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ledger.ACTOR_VARIABLE, "ann\n\x1b[31m of clinic A" + "x" * 500)
    entry = make_entry(
        [], action="force", model=MODEL, from_version=None, to_version=1, evidence=EVIDENCE, rules_sha256=None,
        reason="two\nlines \udcff " + "🩺" * 3000,
    )  # fmt: skip
    assert entry.who.startswith("ann [31m of clinic A")
    assert entry.reason.startswith("two lines 🩺")
    assert len(line_of(entry)) < 5000
    assert json.loads(line_of(entry))["reason"].endswith("🩺…")
    assert examine(line_of(entry)) == ((entry,), None)


def test_the_ledger_lies_beside_the_registry_of_the_project(tmp_path: Path) -> None:
    beside = ledger.ledger_of("sqlite:///stores/mlflow.db", tmp_path)
    assert beside.path == tmp_path / "stores" / "mlflow.db.ledger.jsonl"
    assert ledger.ledger_of("https://registry.example", tmp_path).path == tmp_path / "ledger.jsonl"
