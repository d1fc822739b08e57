"""Lineage on real DVC projects: what a result follows from, and no proprietary byte in the public remote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dr_platform import files, lineage
from dr_platform.errors import LineageError

SECRET = b"a-patient-whose-name-is-nobodys-business"
PIPELINE = """
stages:
  phantom:
    foreach: ${visibilities}
    do:
      cmd: python draw.py ${item}
      params: [images]
      outs:
        - data/raw/${item}/phantom:
            remote: ${item}
  prepare:
    cmd: python prepare.py
    deps: [data/raw/public, data/raw/proprietary]
    outs:
      - data/prepared/public: {remote: public}
      - data/prepared/proprietary: {remote: private}
  transfer:
    foreach: ${targets}
    do:
      cmd: echo ${item}
"""
DRAW = f"""
import pathlib, sys
visibility, bytes_ = sys.argv[1], {{"public": b"anyone may see this", "proprietary": {SECRET!r}}}
out = pathlib.Path("data/raw", visibility, "phantom")
out.mkdir(parents=True)
(out / "0.png").write_bytes(b"drawn " + bytes_[visibility])
"""
PREPARE = """
import pathlib
for visibility in ("public", "proprietary"):
    out = pathlib.Path("data/prepared", visibility)
    out.mkdir(parents=True)
    found = sorted(pathlib.Path("data/raw", visibility).glob("*/*.*g"))
    (out / "shard").write_bytes(b"".join(path.read_bytes() for path in found))
"""


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


def write_pipeline(root: Path) -> None:
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("images: 1\nvisibilities: [public, proprietary]\ntargets: []\n")
    (root / "draw.py").write_text(DRAW)
    (root / "prepare.py").write_text(PREPARE)
    for visibility in ("public", "proprietary"):
        (root / "data/raw" / visibility).mkdir(parents=True)


def add_collection(root: Path, visibility: str, content: bytes, name: str = "clinic") -> Path:
    collection = root / "data/raw" / visibility / name
    collection.mkdir()
    (collection / "eye.jpg").write_bytes(b"photographed " + content)
    return collection


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC project with both kinds of data, drawn and ingested, prepared and committed."""
    root = tmp_path_factory.mktemp("built")
    git(root, "init")
    lineage.init_project(root)
    write_pipeline(root)
    lineage.track(root, add_collection(root, "public", b"by a public clinic"), "public")
    lineage.track(root, add_collection(root, "proprietary", SECRET), "proprietary")
    assert lineage.repro(root)
    git(root, "add", "--all")
    git(root, "commit", "-m", "both kinds of data")
    return root


@pytest.fixture
def empty_remotes(built: Path) -> Path:
    """The built project, with nothing in its remotes and nothing remembered about them."""
    for name in ("public", "private"):
        subprocess.run(["rm", "-rf", str(built / lineage.REMOTES / name), str(built / ".dvc/tmp")], check=True)
    lineage.init_project(built)
    return built


def holding(directory: Path, content: bytes) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and content in path.read_bytes()]


# -- where code and data stand -----------------------------------------------------------------------------------------


def test_the_commit_is_gits_and_a_changed_file_makes_it_dirty(built: Path) -> None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=built, capture_output=True, text=True, check=True)
    assert lineage.git_commit(built) == done.stdout.strip()
    assert not lineage.is_dirty(built)
    script = built / "prepare.py"
    script.write_text(PREPARE + "\n")
    try:
        assert lineage.is_dirty(built)
    finally:
        script.write_text(PREPARE)


def test_a_directory_without_git_or_without_a_commit_has_none(tmp_path: Path) -> None:
    assert lineage.git_commit(tmp_path) is None
    assert not lineage.is_dirty(tmp_path)
    git(tmp_path, "init")
    assert lineage.git_commit(tmp_path) is None


def test_missing_git_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LineageError, match="git is not installed"):
        lineage.git_commit(tmp_path)


def test_each_collection_has_a_version_that_changes_with_its_bytes(built: Path) -> None:
    versions = lineage.data_versions(built)
    assert set(versions) == {"phantom/public", "phantom/proprietary", "clinic/public", "clinic/proprietary"}
    assert len(set(versions.values())) == 4
    outputs = lineage.stage_outputs(built)
    assert outputs["data/raw/public/clinic"] == versions["clinic/public"]
    assert "data/prepared/proprietary" in outputs


def test_the_lock_has_a_digest_once_a_stage_has_run(built: Path, tmp_path: Path) -> None:
    assert lineage.dvc_lock_sha256(built) == files.sha256_file(built / "dvc.lock")
    assert lineage.dvc_lock_sha256(tmp_path) is None


def test_a_damaged_lock_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("{")
    with pytest.raises(LineageError, match=r"dvc\.lock is damaged"):
        lineage.stage_outputs(tmp_path)


# -- the project -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_git", [True, False])
def test_a_new_project_verifies_both_remotes_and_prefers_the_private_one(tmp_path: Path, with_git: bool) -> None:
    if with_git:
        git(tmp_path, "init")
    lineage.init_project(tmp_path)
    remotes = {remote.name: remote for remote in lineage.remotes(tmp_path)}
    assert [name for name, remote in remotes.items() if remote.default] == ["private"]
    for name in ("public", "private"):
        assert remotes[name].verify
        assert Path(remotes[name].url).is_dir()
    config = (tmp_path / ".dvc/config").read_text()
    assert str(tmp_path) not in config
    dvc(tmp_path, "status")


def test_initialising_again_keeps_what_was_set_by_hand(tmp_path: Path) -> None:
    lineage.init_project(tmp_path)
    dvc(tmp_path, "remote", "modify", "public", "url", str(tmp_path / "elsewhere"))
    dvc(tmp_path, "remote", "modify", "--local", "private", "verify", "false")
    before = (tmp_path / ".dvc/config").read_bytes()
    lineage.init_project(tmp_path)
    assert (tmp_path / ".dvc/config").read_bytes() == before
    assert {r.name: r.verify for r in lineage.remotes(tmp_path)}["private"] is False


def test_a_project_copied_without_git_still_answers(built: Path, tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_bytes((built / ".dvc/config").read_bytes())
    lineage.init_project(tmp_path)
    dvc(tmp_path, "status")


def test_what_git_ignores_leaves_ingested_collections_to_dvc(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_bytes((Path(__file__).parents[1] / ".gitignore").read_bytes())
    lineage.init_project(tmp_path)
    (tmp_path / "data/raw/public").mkdir(parents=True)
    lineage.track(tmp_path, add_collection(tmp_path, "public", b"by a public clinic"), "public")
    lineage.push(tmp_path)
    assert holding(tmp_path / lineage.REMOTES / "public", b"by a public clinic")


def test_a_directory_that_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineageError, match="no DVC project"):
        lineage.remotes(tmp_path)


# -- running stages ----------------------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_a_changed_parameter_does(built: Path) -> None:
    assert not lineage.repro(built)
    parameters = built / "params.yaml"
    original = parameters.read_text()
    parameters.write_text(original.replace("images: 1", "images: 2"))
    try:
        assert lineage.repro(built, ["phantom@public"])
    finally:
        parameters.write_text(original)
        assert lineage.repro(built)


def test_a_failing_stage_is_one_line(tmp_path: Path) -> None:
    lineage.init_project(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages:\n  train:\n    cmd: exit 3\n")
    with pytest.raises(LineageError, match="dvc repro") as caught:
        lineage.repro(tmp_path)
    assert "\n" not in str(caught.value)


# -- data that travels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "push",
        "push -r public",
        "push -r public --all-commits",
        "push -r public --all-branches --all-tags --recursive .",
        "push --run-cache",
        "push -r public --run-cache",
        "push -r public data/raw/proprietary/clinic.dvc",
        "push -r public data/prepared/proprietary prepare phantom@proprietary",
    ],
)
def test_no_spelling_of_push_carries_proprietary_bytes_to_the_public_remote(empty_remotes: Path, spelling: str) -> None:
    dvc(empty_remotes, *spelling.split())
    assert holding(empty_remotes / ".dvc/cache", SECRET), "the secret must be there to leak"
    assert not holding(empty_remotes / lineage.REMOTES / "public", SECRET)


def test_everything_reaches_the_remote_it_names_and_comes_back(empty_remotes: Path, tmp_path: Path) -> None:
    assert lineage.misrouted(empty_remotes) == []
    lineage.push(empty_remotes)
    assert len(holding(empty_remotes / lineage.REMOTES / "private", SECRET)) == 3  # drawn, ingested, prepared
    assert holding(empty_remotes / lineage.REMOTES / "public", b"anyone may see this")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", str(empty_remotes), str(clone))
    for name in ("public", "private"):
        dvc(clone, "remote", "modify", "--local", name, "url", str(empty_remotes / lineage.REMOTES / name))
    dvc(clone, "pull")
    assert SECRET in (clone / "data/raw/proprietary/clinic/eye.jpg").read_bytes()
    assert not lineage.repro(clone)


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A DVC project without git or stages."""
    lineage.init_project(tmp_path)
    for visibility in ("public", "proprietary"):
        (tmp_path / "data/raw" / visibility).mkdir(parents=True)
    return tmp_path


def test_plain_dvc_add_would_leak_and_is_refused(loose: Path) -> None:
    dvc(loose, "add", str(add_collection(loose, "proprietary", SECRET)))
    with pytest.raises(LineageError, match="data/raw/proprietary/clinic names no remote"):
        lineage.push(loose)
    assert not holding(loose / lineage.REMOTES, SECRET)
    dvc(loose, "push", "-r", "public")  # what the guard is for
    assert holding(loose / lineage.REMOTES / "public", SECRET)


def test_proprietary_data_bound_to_the_public_remote_is_refused(loose: Path) -> None:
    pointer = lineage.track(loose, add_collection(loose, "proprietary", SECRET), "proprietary")
    pointer.write_text(pointer.read_text().replace("remote: private", "remote: public"))
    assert "is proprietary, but goes to the remote public" in lineage.misrouted(loose)[0]


def test_a_collection_that_calls_itself_proprietary_is_refused_among_public_data(loose: Path) -> None:
    collection = add_collection(loose, "public", SECRET)
    (collection / "collection.json").write_text(json.dumps({"visibility": "proprietary"}))
    lineage.track(loose, collection, "public")
    assert "calls itself proprietary" in lineage.misrouted(loose)[0]


def test_a_proprietary_picture_copied_among_public_data_is_named(loose: Path) -> None:
    lineage.track(loose, add_collection(loose, "proprietary", SECRET), "proprietary")
    lineage.track(loose, add_collection(loose, "public", SECRET, name="open"), "public")
    fault = lineage.misrouted(loose)[0]
    assert "data/raw/public/open/eye.jpg is public" in fault
    assert "data/raw/proprietary/clinic/eye.jpg" in fault


def test_tracking_refuses_a_directory_outside_its_visibility(loose: Path) -> None:
    with pytest.raises(LineageError, match="does not lie in"):
        lineage.track(loose, add_collection(loose, "public", SECRET), "proprietary")


def test_adding_data_again_keeps_its_remote(loose: Path) -> None:
    collection = add_collection(loose, "proprietary", SECRET)
    lineage.track(loose, collection, "proprietary")
    (collection / "other.jpg").write_bytes(os.urandom(8))
    dvc(loose, "add", str(collection))
    assert "remote: private" in collection.with_name("clinic.dvc").read_text()


def forget(root: Path, *outputs: Path) -> None:
    """As in a fresh checkout: neither cache nor outputs."""
    subprocess.run(["rm", "-rf", str(root / ".dvc/cache"), str(root / ".dvc/tmp"), *map(str, outputs)], check=True)


def stored(root: Path, remote: str, content: bytes) -> Path:
    (path,) = holding(root / lineage.REMOTES / remote, content)
    path.chmod(0o644)
    return path


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "word", "visibility"),
    [
        (change_a_byte, "damaged", "public"),
        (cut, "damaged", "proprietary"),
        (Path.unlink, "missing", "public"),
    ],
)
def test_a_harmed_object_of_a_remote_is_refused_by_name(loose: Path, harm, word: str, visibility) -> None:
    collection = add_collection(loose, visibility, b"sound")
    (collection / "other.jpg").write_bytes(b"another one")
    lineage.track(loose, collection, visibility)
    lineage.push(loose)
    remote = lineage.REMOTE_OF[visibility]
    path = stored(loose, remote, b"photographed sound")
    harm(path)
    forget(loose, collection)
    with pytest.raises(LineageError) as caught:
        lineage.pull(loose)
    message = str(caught.value)
    assert f"data/raw/{visibility}/clinic/eye.jpg is {word} in the remote {remote}" in message
    assert f"{path.parent.name}/{path.name}" in message
    assert "such faults" not in message
    assert not collection.exists()


def test_a_harmed_listing_is_refused_by_the_name_of_its_output(loose: Path) -> None:
    collection = add_collection(loose, "public", b"sound")
    lineage.track(loose, collection, "public")
    lineage.push(loose)
    change_a_byte(stored(loose, "public", b'"relpath": "eye.jpg"'))
    forget(loose, collection)
    with pytest.raises(LineageError, match=r"data/raw/public/clinic is damaged in the remote public .*\.dir\)"):
        lineage.pull(loose)
    assert not collection.exists()


def test_sound_objects_come_back_as_they_were(loose: Path) -> None:
    collection = add_collection(loose, "public", b"sound")
    lineage.track(loose, collection, "public")
    lineage.push(loose)
    before = {path.name: path.read_bytes() for path in collection.iterdir()}
    forget(loose, collection)
    lineage.pull(loose)
    assert {path.name: path.read_bytes() for path in collection.iterdir()} == before
    assert lineage.damaged(loose) == []


@pytest.mark.parametrize("name", ["public", "private"])
def test_a_remote_that_does_not_verify_is_refused_by_name(loose: Path, name: str) -> None:
    assert lineage.remote_faults(loose) == []
    dvc(loose, "remote", "modify", name, "verify", "false")
    for move in (lineage.push, lineage.pull):
        with pytest.raises(LineageError, match=f"dvc remote modify {name} verify true"):
            move(loose)


@pytest.mark.parametrize("url", ["../dvc-remotes/private", "../dvc-remotes/private/inside", "../dvc-remotes"])
def test_a_public_remote_in_the_place_of_the_private_one_is_refused(loose: Path, url: str) -> None:
    config = loose / ".dvc/config"
    config.write_text(config.read_text().replace("url = ../dvc-remotes/public", f"url = {url}"))
    with pytest.raises(LineageError, match=r"nothing was pushed: the remotes public and .* share a place"):
        lineage.push(loose)


def test_a_private_file_of_any_kind_below_the_public_data_is_refused_by_name(loose: Path) -> None:
    names = ("labels.csv", "notes", "shard-train-00000.parquet", "weights.safetensors")
    for visibility in ("public", "proprietary"):
        collection = add_collection(loose, visibility, visibility.encode())
        for name in names:
            (collection / name).write_bytes(b"id,patient\n1," + SECRET + name.encode())
        lineage.track(loose, collection, visibility)
    faults = sorted(lineage.misrouted(loose))
    assert len(faults) == len(names)
    for fault, name in zip(faults, names, strict=True):
        assert f"data/raw/public/clinic/{name} is public, but is the same file as" in fault
    with pytest.raises(LineageError, match=r"nothing was pushed: .*is the same file as"):
        lineage.push(loose)
    assert not holding(loose / lineage.REMOTES, SECRET)


def test_files_that_say_nothing_may_be_the_same_on_both_sides(loose: Path) -> None:
    for visibility in ("public", "proprietary"):
        collection = add_collection(loose, visibility, visibility.encode())
        (collection / "import-report.csv").write_text("file,image_id,reason\n")
        (collection / "empty").write_bytes(b"")
        pq.write_table(pa.table({"image_id": pa.array([], pa.string())}), collection / "manifest.parquet")
        lineage.track(loose, collection, visibility)
    lineage.push(loose)
    assert lineage.leaked(loose) == []
    lineage.push(loose)


def test_what_lies_in_the_public_remote_already_is_named_and_stops_a_push(loose: Path) -> None:
    dvc(loose, "add", str(add_collection(loose, "proprietary", SECRET)))
    dvc(loose, "push", "-r", "public")
    assert holding(loose / lineage.REMOTES / "public", SECRET)
    lineage.track(loose, loose / "data/raw/proprietary/clinic", "proprietary")
    assert lineage.misrouted(loose) == []
    listing, picture = sorted(lineage.leaked(loose))
    assert listing.startswith("data/raw/proprietary/clinic is private, but lies in the remote public")
    assert picture.startswith("data/raw/proprietary/clinic/eye.jpg is private, but lies in the remote public")
    with pytest.raises(LineageError, match=r"nothing was pushed: .* \(2 such faults\)"):
        lineage.push(loose)
    assert holding(loose / lineage.REMOTES / "public", SECRET), "a check deletes nothing"


def test_earlier_versions_of_a_directory_are_found_in_the_cache(loose: Path) -> None:
    collection = add_collection(loose, "public", b"first")
    for content in ("one", "two"):
        (collection / "manifest.json").write_text(content)
        lineage.track(loose, collection, "public")
    versions = lineage.versions_with(loose, {"manifest.json", "eye.jpg"})
    assert sorted(version["manifest.json"].read_text() for version in versions) == ["one", "two"]
    assert lineage.versions_with(loose, {"manifest.json", "absent"}) == []
