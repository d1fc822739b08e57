"""Names become keyed hashes, and the key stays where only its owner reads it."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dr_platform.data import pseudonyms
from dr_platform.data.pseudonyms import KEY_BYTES, PUBLIC_KEY, Key, load_key, pseudonym
from dr_platform.errors import DataError

SECRET = Key(bytes(range(32)))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


# ---- pseudonyms ------------------------------------------------------------------------------------------------------


def test_a_pseudonym_is_the_first_half_of_a_keyed_hash() -> None:
    wanted = hmac.digest(SECRET.secret, b"patient\0MRN-1", hashlib.sha256).hex()[:16]
    assert pseudonym(SECRET, "patient", "MRN-1") == wanted


def test_key_kind_and_text_each_make_a_difference() -> None:
    texts = ["", "1", "01", "1 ", "MRN-1", "mrn-1", "Müller", "Mu\u0308ller", "patient\0" + "1", "\ud800"]
    made = {
        pseudonym(key, kind, text)  # type: ignore[arg-type]
        for key in (SECRET, PUBLIC_KEY) for kind in ("patient", "image") for text in texts
    }  # fmt: skip
    assert len(made) == 2 * 2 * len(texts)
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in made)


def test_other_kinds_have_none() -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        pseudonym(SECRET, "fingerprint", "")  # type: ignore[arg-type]


def test_the_public_key_gives_the_same_pseudonym_everywhere() -> None:
    """Published numbers: a change of them would give every public image another name."""
    assert pseudonym(PUBLIC_KEY, "image", "20051020_43808_0100_PP.tif") == "7c1c9f1415809a25"
    assert PUBLIC_KEY.fingerprint == "b5d8e2db"


def test_a_fingerprint_tells_keys_apart_and_gives_none_away() -> None:
    keys = [Key(bytes([number] * KEY_BYTES)) for number in range(100)]
    assert len({key.fingerprint for key in keys}) == 100
    assert re.fullmatch("[0-9a-f]{8}", SECRET.fingerprint)
    assert SECRET.fingerprint not in SECRET.secret.hex()
    # The fingerprint is of a kind of its own, so it is the beginning of no pseudonym.
    assert not pseudonym(SECRET, "patient", "").startswith(SECRET.fingerprint)


def test_a_key_does_not_show_itself() -> None:
    for text in (repr(SECRET), str(SECRET), f"{SECRET}", repr({"key": SECRET})):
        assert SECRET.fingerprint in text
        assert SECRET.secret.hex()[:8] not in text
        assert "\\x00\\x01" not in text
    assert pickle.loads(pickle.dumps(SECRET)) == SECRET


# ---- the key file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_key_is_made_once_for_its_owner_only(mask: int, tmp_path: Path, project: Path) -> None:
    path = tmp_path / "home" / "deep" / "a.key"
    before = os.umask(mask)
    try:
        made = load_key(path, project)
    finally:
        os.umask(before)
    assert len(made.secret) == KEY_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(parent.stat().st_mode) for parent in (path.parent, path.parent.parent)] == [0o700, 0o700]
    assert os.listdir(path.parent) == ["a.key"]
    assert load_key(path, project) == made
    assert load_key(tmp_path / "other.key", project) != made


def test_the_default_is_the_users_configuration_and_the_variable_overrides_it(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DRP_KEY_FILE", raising=False)
    first = load_key(None, project)
    assert (tmp_path / "home/.config/dr_platform/pseudonym.key").read_bytes() == first.secret
    monkeypatch.setenv("DRP_KEY_FILE", str(tmp_path / "mine.key"))
    assert load_key(None, project) != first
    assert (tmp_path / "mine.key").is_file()
    assert load_key(tmp_path / "home/.config/dr_platform/pseudonym.key", project) == first


def test_two_who_make_it_at_once_have_the_same(tmp_path: Path, project: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dr_platform.data.pseudonyms import load_key; "
        "input(); print(load_key(Path(sys.argv[1]), Path(sys.argv[2])).fingerprint)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "k" / "a.key"), str(project)]
    started = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]  # fmt: skip
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = {process.communicate()[0].strip() for process in started}
    assert len(found) == 1
    assert found == {load_key(tmp_path / "k" / "a.key", project).fingerprint}


@pytest.mark.parametrize("place", ["a.key", "deep/a.key", "../project/a.key"])
def test_a_key_within_the_project_is_refused_and_not_made(place: str, project: Path) -> None:
    with pytest.raises(DataError, match="lies in the project") as caught:
        load_key(project / place, project)
    assert "\n" not in str(caught.value)
    assert list(project.iterdir()) == []


def test_a_link_into_or_out_of_the_project_does_not_hide_it(tmp_path: Path, project: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "inward").symlink_to(project)
    (project / "outward").symlink_to(outside)
    for path in (outside / "inward" / "a.key", project / "outward" / "a.key"):
        with pytest.raises(DataError, match="lies in the project"):
            load_key(path, project)
    (tmp_path / "alias").symlink_to(project)
    with pytest.raises(DataError, match="lies in the project"):
        load_key(project / "a.key", tmp_path / "alias")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_use_is_refused(mode: int, tmp_path: Path, project: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(bytes(KEY_BYTES))
    path.chmod(mode)
    with pytest.raises(DataError, match=rf"mode {mode:04o}.*chmod 600"):
        load_key(path, project)


@pytest.mark.parametrize(("size", "said"), [(0, "0 bytes"), (31, "31 bytes"), (33, "more than 32"), (10**6, "more")])
def test_a_key_of_another_length_is_refused_and_kept(size: int, said: str, tmp_path: Path, project: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(DataError, match=said):
        load_key(path, project)
    assert path.stat().st_size == size


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, project: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_bytes(b"")
    for name, said in [
        ("fifo", "no regular file"), ("nowhere", "link to nothing"), ("file/a.key", "cannot be read or made"),
        ("", "no regular file|Is a directory"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=said) as caught:
            load_key(tmp_path / name, project)
        assert "\n" not in str(caught.value)
    assert pseudonyms.key_file(Path("~/x")) == Path.home() / "x"
