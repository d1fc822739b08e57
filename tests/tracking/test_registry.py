"""The registry on a real store: one version per checkpoint, served without this package, never trusted blindly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from mlflow import MlflowClient
from tracking_samples import Trained, report_on

from dr_platform import files, tracking
from dr_platform.errors import RegistryError
from dr_platform.gan import Generator
from dr_platform.records import Registration
from dr_platform.sampling import sample_images
from dr_platform.tracking import Tracker
from dr_platform.tracking.package import DIGEST_TAGS

MODEL = "fundus-dr1-stylegan3"
Connect = Callable[[], Tracker]
Train = Callable[[int], Trained]


def register(tracker: Tracker, trained: Trained) -> Registration:
    lineage = {"data.phantom/public": "0ae3b0ac.dir", "git_commit": "c0ffee"}
    return tracker.register(
        MODEL, trained.record, trained.weights, trained.report, tags=lineage, run_name=trained.record.run
    )


def stored(project: Path, name: str) -> Path:
    (path,) = (project / "mlartifacts").rglob(name)
    return path


def flip_a_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(content)


# -- one version per checkpoint ----------------------------------------------------------------------------------------


def test_a_version_tells_by_its_tags_how_good_it_is_and_from_what_it_follows(
    tracker: Tracker, trained: Trained
) -> None:
    registration = register(tracker, trained)
    assert (registration.model, registration.model_version) == (MODEL, 1)
    assert tracker.report_of(MODEL, 1) == trained.report
    tags = tracker.version(MODEL, 1).tags
    assert tags["metric.fid__small"] == "41.5"
    assert tags["metric.fid__small.n"] == "500"
    assert tags["metric.fid__small.extractor"].startswith("small ")
    assert tags["checkpoint_sha256"] == trained.record.digest()
    assert tags["weights_sha256"] == files.sha256_file(trained.weights)
    assert tags["data.phantom/public"] == "0ae3b0ac.dir"
    assert tags["visibility"] == "proprietary"
    run = tracker._client.get_run(tracker.version(MODEL, 1).run_id)
    assert run.data.metrics["fid__small"] == 41.5
    assert run.data.tags["drp.run"] == trained.record.run


def test_registering_the_same_checkpoint_again_changes_nothing(connect: Connect, trained: Trained) -> None:
    first = register(connect(), trained)
    before = connect().versions(MODEL)
    assert register(connect(), trained) == first
    assert connect().versions(MODEL) == before


def test_another_checkpoint_is_another_version(tracker: Tracker, trained: Trained, train: Train) -> None:
    register(tracker, trained)
    assert register(tracker, train(1)).model_version == 2
    assert [version.number for version in tracker.versions(MODEL)] == [2, 1]


def test_trackers_that_register_one_checkpoint_at_once_agree_on_one_version(connect: Connect, trained: Trained) -> None:
    trackers = [connect() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        numbers = {r.model_version for r in pool.map(lambda tracker: register(tracker, trained), trackers)}
    assert numbers == {1}
    assert len(trackers[0].versions(MODEL)) == 1


@pytest.mark.parametrize(
    "step", ["create_logged_model", "log_model_artifacts", "finalize_logged_model", "create_model_version"]
)
def test_a_registration_cut_off_at_any_step_leaves_no_version_and_can_be_repeated(
    step: str, connect: Connect, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, cut)
        with pytest.raises(KeyboardInterrupt):
            register(connect(), trained)
    assert connect().versions(MODEL) == []
    assert register(connect(), trained).model_version == 1
    assert len(connect().versions(MODEL)) == 1


def test_a_registration_killed_after_the_version_was_made_is_found_again(
    project: Path, connect: Connect, trained: Trained
) -> None:
    script = f"""
import os, signal
from pathlib import Path
from mlflow import MlflowClient
from dr_platform import tracking
from dr_platform.records import Checkpoint, EvalReport
make = MlflowClient.create_model_version
def make_and_die(*args, **kwargs):
    make(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.create_model_version = make_and_die
record = Checkpoint.read(Path({str(trained.directory)!r}) / "checkpoint.json")
report = EvalReport.read(Path({str(project)!r}) / "report.json")
tracker = tracking.connect("sqlite:///mlflow.db", "mlartifacts", Path({str(project)!r}))
tracker.register({MODEL!r}, record, Path({str(trained.weights)!r}), report, tags={{}}, run_name=record.run)
"""
    trained.report.write(project / "report.json")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert register(connect(), trained).model_version == 1
    assert len(connect().versions(MODEL)) == 1
    assert connect().report_of(MODEL, 1) == trained.report


def test_a_newer_report_on_the_same_checkpoint_replaces_the_older_one(tracker: Tracker, trained: Trained) -> None:
    register(tracker, trained)
    newer = report_on(trained.record, value=39.0, seed=1)
    again = register(tracker, Trained(trained.directory, trained.record, newer))
    assert (again.model_version, again.report_sha256) == (1, newer.digest())
    assert tracker.report_of(MODEL, 1) == newer
    assert tracker.version(MODEL, 1).tags["metric.fid__small"] == "39"


def test_report_and_weights_of_another_checkpoint_are_refused(tracker: Tracker, trained: Trained, train: Train) -> None:
    other = train(2)
    with pytest.raises(RegistryError, match="another checkpoint"):
        register(tracker, Trained(trained.directory, trained.record, other.report))
    with pytest.raises(RegistryError, match=r"generator_ema\.safetensors is damaged or was altered"):
        register(tracker, Trained(other.directory, trained.record, trained.report))
    assert tracker.models() == []


# -- what a version holds ----------------------------------------------------------------------------------------------


def test_a_model_holds_no_path_no_pickle_and_no_discriminator(
    tracker: Tracker, project: Path, trained: Trained, tmp_path: Path
) -> None:
    register(tracker, trained)
    stored_files = [path for path in (project / "mlartifacts").rglob("*") if path.is_file()]
    assert not [path for path in stored_files if path.suffix in {".pkl", ".pickle", ".pt", ".pyc", ".pth", ".toml"}]
    here = (str(tmp_path), str(trained.directory), str(Path(tracking.__file__).parents[2]), "/tmp")
    for path in stored_files:
        content = path.read_bytes()
        assert b"knows_the_training_images" not in content
        assert not [place for place in here if place.encode() in content], path


def test_mlflow_serves_the_pictures_we_draw_without_our_package(
    tracker: Tracker, project: Path, trained: Trained, tmp_path: Path
) -> None:
    register(tracker, trained)
    script = """
import sys, numpy, pandas, mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
pictures = model.predict(pandas.DataFrame({"seed": [3, 1]}), params={"truncation_psi": 0.7})
numpy.save("pictures.npy", pictures)
assert "drp_generator" in sys.modules and "dr_platform" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": "", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    model = stored(project, "MLmodel").parent
    subprocess.run([sys.executable, "-c", script, str(model)], cwd=tmp_path, env=environment, check=True)
    generator = Generator(**trained.record.generator).eval()
    generator.load_state_dict(safetensors.torch.load_file(trained.weights))
    served = np.load(tmp_path / "pictures.npy")
    assert served.dtype == np.uint8
    assert np.array_equal(served, sample_images(generator, [3, 1], psi=0.7))


# -- nothing unverified is used ----------------------------------------------------------------------------------------


def test_loaded_weights_rebuild_the_generator(tracker: Tracker, trained: Trained, tmp_path: Path) -> None:
    register(tracker, trained)
    loaded = tracker.load_generator(MODEL, 1, tmp_path / "loaded")
    assert (loaded.grade, loaded.resolution, loaded.visibility) == (1, 16, "proprietary")
    assert loaded.checkpoint_sha256 == trained.record.digest()
    Generator(**loaded.init_kwargs).load_state_dict(safetensors.torch.load_file(loaded.weights))
    assert loaded.weights.read_bytes() == trained.weights.read_bytes()
    assert sorted(path.name for path in (tmp_path / "loaded").iterdir()) == ["generator.json", "generator.safetensors"]


def test_every_flipped_byte_of_weights_or_description_is_refused(
    tracker: Tracker, project: Path, trained: Trained, tmp_path: Path
) -> None:
    register(tracker, trained)
    target = tmp_path / "loaded"
    target.mkdir()
    (target / "earlier").write_text("kept")
    for name in ("generator.safetensors", "generator.json"):
        path = stored(project, name)
        sound = path.read_bytes()
        for number in range(8):
            flip_a_byte(path, 7919 * number)
            with pytest.raises(RegistryError, match=f"artifacts/{name} is damaged or was altered") as caught:
                tracker.load_generator(MODEL, 1, target)
            assert files.sha256_file(path) in str(caught.value)
            assert tracker.version(MODEL, 1).tags[DIGEST_TAGS[name]] in str(caught.value)
            path.write_bytes(sound)
    assert [path.name for path in target.iterdir()] == ["earlier"]
    tracker.load_generator(MODEL, 1, target)


def test_registering_again_restores_files_that_are_gone(tracker: Tracker, project: Path, trained: Trained) -> None:
    first = register(tracker, trained)
    stored(project, "generator.json").unlink()
    with pytest.raises(RegistryError, match="missing"):
        tracker.verify(first.model, first.model_version)
    assert register(tracker, trained) == first
    tracker.verify(first.model, first.model_version)


def test_an_altered_report_is_refused(tracker: Tracker, project: Path, trained: Trained) -> None:
    register(tracker, trained)
    path = stored(project, f"{trained.report.digest()}.json")
    better = json.loads(path.read_text())
    better["metrics"][0]["value"] = 1.0
    path.write_text(json.dumps(better))
    with pytest.raises(RegistryError, match="altered"):
        tracker.report_of(MODEL, 1)
    path.write_text("{")
    with pytest.raises(RegistryError, match="damaged"):
        tracker.report_of(MODEL, 1)


def test_the_champion_moves_only_to_a_version_that_is_whole(
    connect: Connect, project: Path, trained: Trained, train: Train
) -> None:
    tracker = connect()
    register(tracker, trained)
    assert tracker.champion(MODEL) is None
    tracker.set_champion(MODEL, 1)
    before = set((project / "mlartifacts").rglob("generator.safetensors"))
    register(tracker, train(3))
    (second,) = set((project / "mlartifacts").rglob("generator.safetensors")) - before
    second.unlink()
    with pytest.raises(RegistryError, match=r"/2: artifacts/generator\.safetensors is missing"):
        tracker.set_champion(MODEL, 2)
    assert connect().champion(MODEL) == 1
    assert [version.aliases for version in tracker.versions(MODEL)] == [(), ("champion",)]


def test_a_version_that_someone_else_made_is_not_trusted(tracker: Tracker, tmp_path: Path) -> None:
    tracker._client.create_registered_model(MODEL)
    tracker._client.create_model_version(MODEL, source=(tmp_path / "anything").as_uri())
    with pytest.raises(RegistryError, match="was not registered by drp"):
        tracker.load_generator(MODEL, 1, tmp_path / "loaded")
    with pytest.raises(RegistryError, match="was not registered by drp"):
        tracker.set_champion(MODEL, 1)


# -- what a user may call a version ------------------------------------------------------------------------------------


def test_versions_have_five_spellings(tracker: Tracker, trained: Trained, train: Train) -> None:
    register(tracker, trained)
    register(tracker, train(4))
    tracker.set_champion(MODEL, 1)
    spellings = (1, "1", f"{MODEL}/2", "latest", "champion")
    assert [tracker.resolve(MODEL, spelling) for spelling in spellings] == [1, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("9", "no version '9'; newest first it has 1"),
        ("champion", "no champion yet"),
        ("fundus-dr2-stylegan3/1", "of fundus-dr2-stylegan3, not of"),
    ],
)
def test_a_version_that_is_not_there_is_one_line(spelling: str, words: str, tracker: Tracker, trained: Trained) -> None:
    register(tracker, trained)
    with pytest.raises(RegistryError, match=words) as caught:
        tracker.resolve(MODEL, spelling)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_answered_with_the_known_ones(tracker: Tracker, trained: Trained) -> None:
    assert tracker.versions("fundus") == []
    assert tracker.champion("fundus") is None
    register(tracker, trained)
    with pytest.raises(RegistryError, match=f"no model fundus in the registry; there: {MODEL}"):
        tracker.resolve("fundus", "latest")
