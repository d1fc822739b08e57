"""Champions by the ledger: killed between any two writes, moved by hand, rolled back, forced, put back."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tracking_samples import Trained, report_on

from dr_platform import road, tracking
from dr_platform.config import load_params
from dr_platform.errors import ConfigError, RegistryError
from dr_platform.files import sha256_file
from dr_platform.ledger import Ledger
from dr_platform.records import LedgerEntry
from dr_platform.road import Project
from dr_platform.tracking import Tracker
from dr_platform.tracking.champions import audit, restore

ROOT = Path(__file__).parents[2]
MODEL = "fundus-dr1-stylegan3"
VALUES = {1: 41.5, 2: 30.0, 3: 50.0}  # FID of each version: 2 is better than 1, and 3 is worse than either

# Every write of a decision, in order; a promotion and a rollback do all four, a hold does not move the alias.
WRITES = ((os, "write"), *((MlflowClient, name) for name in (
    "set_registered_model_alias", "set_model_version_tag", "set_registered_model_tag",
)))  # fmt: skip


@pytest.fixture(scope="session")
def registered(migrated: Path, train: Callable[[int], Trained], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store of three versions; made once and copied."""
    root = tmp_path_factory.mktemp("registered")
    shutil.copyfile(migrated, root / "mlflow.db")
    move_artifacts(root)
    tracker = tracking.connect("sqlite:///mlflow.db", "mlartifacts", root)
    for number, value in VALUES.items():
        made = train(10 + number)
        report = report_on(made.record, value=value)
        tracker.register(MODEL, made.record, made.weights, report, tags={}, run_name=made.record.run)
    return root


def move_artifacts(root: Path, before: Path | None = None) -> None:
    with sqlite3.connect(root / "mlflow.db") as store:
        location = (root / "mlartifacts").as_uri()
        store.execute("update experiments set artifact_location = ? where name = 'dr-platform'", (location,))
        if before is not None:
            store.execute(
                "update logged_models set artifact_location = replace(artifact_location, ?, ?)",
                (before.as_uri(), location),
            )


@pytest.fixture
def here(registered: Path, tmp_path: Path) -> Project:
    """A project with versions 1 to 3 and no champion."""
    return copied(registered, tmp_path / "project")


def copied(root: Path, target: Path) -> Project:
    """A project with the same registry and ledger in another place."""
    shutil.copytree(root, target)
    move_artifacts(target, root / "mlartifacts")
    return opened(target)


def opened(root: Path) -> Project:
    params = load_params(ROOT)
    # Their reports have FID alone.
    asked = {"metric": "fid", "min_images": 100, "min_eq_t_db": None, "memorisation": "ignore"}
    policy = params.promote.model_copy(update=asked)
    return Project(root, params.model_copy(update={"promote": policy}))


def entries_of(project: Project) -> tuple[LedgerEntry, ...]:
    return project.ledger().entries()


def problems(project: Project) -> list[str]:
    return [problem.said for problem in audit(project.ledger(), project.tracker()).problems]


def alias(project: Project) -> int | None:
    return project.tracker().champion(MODEL)


def promote(project: Project, version: int, **options: Any) -> Any:
    return road.promote(project, str(version), dry_run=False, model=MODEL, **options)


# -- commands that a kill may cut off: what went before, the command, the champion before and after --------------------

COMMANDS: dict[str, tuple[tuple[int, ...], Callable[[Project], Any], tuple[int | None, int], int]] = {
    "first": ((), lambda project: promote(project, 1), (None, 1), 4),
    "promote": ((1,), lambda project: promote(project, 2), (1, 2), 4),
    "force": ((1,), lambda project: promote(project, 3, force=True, reason="a test"), (1, 3), 4),
    "rollback": ((1, 2), lambda project: road.rollback(project, model=MODEL), (2, 1), 4),
    "hold": ((1,), lambda project: promote(project, 3), (1, 1), 3),
}


def run_and_die(root: Path, command: str, write: int, when: str) -> None:
    """Run a command in this process and kill it before, in the middle of, or after its n-th write."""
    count = 0

    def dying(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if plain is os_write and (not isinstance(args[1], bytes) or b'{"action":' not in args[1]):
                return plain(*args, **kwargs)
            count += 1
            if count == write and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if count == write and when == "within":
                plain(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            done = plain(*args, **kwargs)
            if count == write and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return call

    os_write = os.write
    for owner, name in WRITES:
        setattr(owner, name, dying(getattr(owner, name)))
    COMMANDS[command][1](opened(root))
    os._exit(count)


def in_a_process(*arguments: Any) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_champions", "dr_platform.tracking"])
    process = context.Process(target=run_and_die, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_at_any_write_leaves_the_old_state_or_the_new_and_the_same_command_completes_it(
    command: str, here: Project
) -> None:
    earlier, act, (before, after), writes = COMMANDS[command]
    for version in earlier:
        promote(here, version)
    points = [(1, "before"), (1, "within"), *((write, "after") for write in range(1, writes))]
    for write, when in points:
        project = copied(here.root, here.root.with_name(f"{when}-{write}"))
        assert in_a_process(project.root, command, write, when) == -signal.SIGKILL, (write, when)
        assert alias(project) in (before, after)
        act(project)
        assert alias(project) == after, (write, when)
        assert len(entries_of(project)) == len(earlier) + 1, (write, when)
        assert problems(project) == [], (write, when)
    assert in_a_process(here.root, command, 0, "never") == writes  # no write that was not tried


def test_the_doctor_or_an_audit_completes_what_a_kill_cut_off(here: Project) -> None:
    promote(here, 1)
    assert in_a_process(here.root, "promote", 1, "after") == -signal.SIGKILL
    assert alias(here) == 1
    found = audit(here.ledger(), here.tracker())
    assert ([entry.index for entry in found.completed], found.problems) == ([1], ())
    assert alias(here) == 2


# -- what an entry says ------------------------------------------------------------------------------------------------


def test_an_entry_and_its_copies_tell_who_what_why_and_on_what_evidence(
    here: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRP_ACTOR", "ann")
    promote(here, 1)
    decision = promote(here, 3)
    assert (decision.promote, decision.entry) == (False, 1)
    forced = promote(here, 3, force=True, reason="clinic A asked for it")
    assert (forced.promote, forced.forced, forced.champion) == (True, True, 1)
    first, held, force = entries_of(here)
    assert [(e.action, e.from_version, e.to_version) for e in (first, held, force)] == [
        ("promote", None, 1), ("hold", 1, 3), ("force", 1, 3),
    ]  # fmt: skip
    assert "clinic A asked for it" in force.reason
    assert force.who == "ann"
    tracker = here.tracker()
    tags = tracker.version(MODEL, 3).tags
    assert {name: getattr(force, name) for name in ("checkpoint_sha256", "report_sha256", "weights_sha256")} == {
        name: tags[name] for name in ("checkpoint_sha256", "report_sha256", "weights_sha256")
    }
    assert "clinic A asked for it" in tags["decision.000002"]
    assert [json.loads(tracker.model_tags(MODEL)[f"ledger.00000{e.index}"]) for e in (first, held, force)] == [
        e.model_dump() for e in (first, held, force)
    ]


def test_a_dry_run_writes_nothing(here: Project) -> None:
    assert road.promote(here, "1", dry_run=True, model=MODEL).promote
    assert not here.ledger().path.exists()
    assert alias(here) is None


@pytest.mark.parametrize(
    "options", [{"force": True}, {"force": True, "reason": " "}, {"reason": "because"}], ids=["bare", "blank", "idle"]
)
def test_an_override_needs_a_reason_and_a_reason_an_override(options: dict[str, Any], here: Project) -> None:
    with pytest.raises(ConfigError, match="An override needs a reason"):
        promote(here, 1, **options)
    assert not here.ledger().path.exists()


def test_force_where_the_policy_agrees_is_a_promotion(here: Project) -> None:
    assert not promote(here, 1, force=True, reason="to be sure").forced
    assert entries_of(here)[0].action == "promote"


# -- the way back ------------------------------------------------------------------------------------------------------


def test_rollbacks_go_back_through_the_ledger_until_there_is_nothing(here: Project) -> None:
    with pytest.raises(RegistryError, match="no earlier champion"):
        road.rollback(here, model=MODEL)
    promote(here, 1)
    promote(here, 2)
    promote(here, 3, force=True, reason="a test")
    assert [road.rollback(here, model=MODEL, reason="striped").to_version for _ in range(2)] == [2, 1]
    assert alias(here) == 1
    with pytest.raises(RegistryError, match="no earlier champion"):
        road.rollback(here, model=MODEL)
    assert [entry.action for entry in entries_of(here)] == ["promote", "promote", "force", "rollback", "rollback"]
    assert problems(here) == []


def weights_of(project: Project, number: int) -> Path:
    digest = project.tracker().version(MODEL, number).tags["weights_sha256"]
    (path,) = (p for p in (project.root / "mlartifacts").rglob("generator.safetensors") if sha256_file(p) == digest)
    return path


@pytest.mark.parametrize("how", ["missing", "altered"])
def test_nobody_becomes_champion_whose_weights_are_missing_or_altered(how: str, here: Project) -> None:
    promote(here, 1)
    promote(here, 2)
    path = weights_of(here, 1)
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-1] + b"?!")
    for act in (
        lambda: road.rollback(here, model=MODEL),
        lambda: promote(here, 1, force=True, reason="a test"),
    ):
        with pytest.raises(RegistryError, match=r"/1: artifacts/generator\.safetensors is (missing|damaged)"):
            act()
    assert (alias(here), len(entries_of(here))) == (2, 2)


def test_weights_exchanged_with_their_digest_are_not_what_the_ledger_saw(here: Project) -> None:
    """Whoever can write the store can make its tags match other weights; the ledger knows the former ones."""
    promote(here, 1)
    promote(here, 2)
    weights = weights_of(here, 1)
    weights.write_bytes(weights_of(here, 3).read_bytes())
    tags = here.tracker().version(MODEL, 3).tags
    here.tracker().tag_version(MODEL, 1, "weights_sha256", tags["weights_sha256"])
    with pytest.raises(RegistryError, match="/1 is not what it was when entry 0 was written: its weights_sha256"):
        road.rollback(here, model=MODEL)
    assert alias(here) == 2


def test_a_champion_lost_between_entry_and_alias_is_given_up_by_a_rollback(here: Project) -> None:
    promote(here, 1)
    promote(here, 2)
    assert in_a_process(here.root, "force", 1, "after") == -signal.SIGKILL
    weights_of(here, 3).unlink()
    with pytest.raises(RegistryError, match=r"Entry 2 cannot be completed: .* is missing .* Or: drp rollback"):
        promote(here, 3, force=True, reason="a test")
    assert alias(here) == 2
    assert road.rollback(here, model=MODEL).to_version == 2
    assert (alias(here), problems(here)) == (2, [])


# -- drift and tampering -----------------------------------------------------------------------------------------------


def spoil_nothing(ledger: Ledger, tracker: Tracker) -> None:
    pass


def move_alias(ledger: Ledger, tracker: Tracker) -> None:
    tracker.set_champion(MODEL, 3)


def take_alias_away(ledger: Ledger, tracker: Tracker) -> None:
    tracker.unset_champion(MODEL)


def cut_off_the_last(ledger: Ledger, tracker: Tracker) -> None:
    ledger.path.write_bytes(ledger.path.read_bytes().splitlines(keepends=True)[0])


def remove_the_file(ledger: Ledger, tracker: Tracker) -> None:
    ledger.path.unlink()


def change_a_byte(ledger: Ledger, tracker: Tracker) -> None:
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"to_version":2', b'"to_version":3'))


def lose_a_copy(ledger: Ledger, tracker: Tracker) -> None:
    tracker._client.delete_registered_model_tag(MODEL, "ledger.000000")


@pytest.mark.parametrize(
    ("spoil", "entry", "words"),
    [
        (move_alias, 1, "is version 3, but by entry 1 it is version 2: someone moved the alias"),
        (take_alias_away, 1, "is none, but by entry 1 it is version 2"),
        (cut_off_the_last, 1, "Entry 1 is missing in the ledger, but the tags"),
        (remove_the_file, 0, "Entry 0 is missing in the ledger, but the tags"),
        (change_a_byte, 1, "Entry 1 was changed: it does not match its own SHA-256"),
        (lose_a_copy, 0, "The copy of entry 0 in the tags of fundus-dr1-stylegan3 is gone"),
    ],
)
def test_what_someone_changed_is_found_refused_and_put_back(
    spoil: Callable[[Ledger, Tracker], None], entry: int, words: str, here: Project
) -> None:
    promote(here, 1)
    promote(here, 2)
    sound = here.ledger().path.read_bytes()
    spoil(here.ledger(), here.tracker())
    found = audit(here.ledger(), here.tracker()).problems
    assert found[0].entry == entry
    assert words in found[0].said
    spoilt, moved = here.ledger().content(), alias(here)
    for act in (lambda: promote(here, 3), lambda: road.rollback(here, model=MODEL)):
        with pytest.raises(RegistryError, match=r"drp audit verify"):
            act()
    assert (here.ledger().content(), alias(here)) == (spoilt, moved)
    assert restore(here.ledger(), here.tracker())
    assert (here.ledger().content(), alias(here), problems(here)) == (sound, 2, [])
    assert restore(here.ledger(), here.tracker()) == []
    kept = [path.read_bytes() for path in here.root.glob("*.damaged-*")]
    assert kept == ([spoilt] if spoilt not in (sound, b"") else [])


def test_a_ledger_written_anew_from_end_to_end_is_told_by_its_copies_and_not_put_back_blindly(here: Project) -> None:
    promote(here, 1)
    promote(here, 2)
    other = here.root.with_name("other")
    shutil.copytree(here.root, other)
    here.ledger().path.unlink()
    for number in (0, 1):
        here.tracker()._client.delete_registered_model_tag(MODEL, f"ledger.{number:06d}")
    here.tracker().unset_champion(MODEL)
    promote(here, 3)
    shutil.copyfile(here.ledger().path, opened(other).ledger().path)
    (first, *_) = problems(opened(other))
    assert first == f"Entry 0 and its copy in the tags of {MODEL} differ."
    with pytest.raises(RegistryError, match="Entry 0 is sound but different"):
        restore(opened(other).ledger(), opened(other).tracker())


def test_a_champion_older_than_the_ledger_is_reported_and_can_be_taken_in(here: Project) -> None:
    here.tracker().set_champion(MODEL, 1)
    assert problems(here) == [
        f"The champion of {MODEL} is version 1, and no entry of the ledger says so. If it should be: "
        f"drp promote {MODEL}/1 --force --reason TEXT."
    ]
    assert promote(here, 1, force=True, reason="was champion before there was a ledger").forced
    assert (alias(here), problems(here)) == (1, [])
    assert promote(here, 2).champion == 1
    assert road.rollback(here, model=MODEL).to_version == 1
