"""Imported networks on the command line: drawn from, and the start of a transfer."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from PIL import Image
from small_networks import GENERATORS
from small_project import assert_one_line_error, drp, make_project
from test_published import hostile, modules, pickled  # noqa: F401  the fixture and the pickles

from dr_platform import published, road
from dr_platform.config import load_params
from dr_platform.errors import ConfigError
from dr_platform.generation import generate
from dr_platform.records import TransferPlan
from dr_platform.sampling import sample_images


@pytest.fixture
def project(tmp_path, modules):  # noqa: F811
    root = make_project(tmp_path / "project", transfer={"targets": [2], "parent": "imported/snapshot"})
    path = pickled(tmp_path)
    done = drp(root, "import", str(path), "--name", "snapshot")
    assert done.returncode == 0, done.stderr
    assert "generator, 16 px, 0 labels" in done.stdout
    assert "non-commercial use only" in done.stderr
    return root


def test_images_of_an_imported_generator_are_those_of_the_original(project):
    done = drp(project, "generate", "imported/snapshot", "--seeds", "0-3", "--out", "samples")
    assert done.returncode == 0, done.stderr
    expected = sample_images(pickled.networks[0], range(4))
    found = [Image.open(project / "samples" / f"seed{seed:010d}.png") for seed in range(4)]
    assert np.array_equal(np.stack([np.array(image) for image in found]), expected)
    assert "non-commercial" in found[0].text["Licence"]


def test_an_imported_generator_can_be_exported_with_its_licence(project):
    done = drp(project, "export", "imported/snapshot", "--onnx", "out/snapshot.onnx", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out/snapshot.onnx: 2 x 16 px, opset 20\n"
    assert "largest relative error" in done.stderr
    assert "non-commercial" in done.stderr
    notes = {entry.key: entry.value for entry in onnx.load(project / "out" / "snapshot.onnx").metadata_props}
    assert notes["Model"] == "imported/snapshot"
    assert "non-commercial" in notes["Licence"]
    assert_one_line_error(drp(project, "export", "absent/1", "--onnx", "absent.onnx"), "absent")


def test_labels_of_an_imported_conditional_generator_are_chosen_like_grades(tmp_path, modules):  # noqa: F811
    root = make_project(tmp_path / "project")
    path = pickled(tmp_path, generator=GENERATORS["T-conditional"][0])
    published.import_file(path, root / "imported" / "labelled")
    here = road.Project(root, load_params(root))
    for grade in (None, 0, 2):
        out = tmp_path / f"label-{grade}"
        generate(here, "imported/labelled", [5], 1.0, out, lambda done, total: None, grade)
        labels = np.eye(3, dtype=np.float32)[[grade or 0]]
        expected = sample_images(pickled.networks[0], [5], labels=labels)[0]
        assert np.array_equal(np.array(Image.open(out / "seed0000000005.png")), expected)
    with pytest.raises(ConfigError, match=r"draws 3 labels, but label 4 was asked for"):
        generate(here, "imported/labelled", [5], 1.0, tmp_path / "none", lambda done, total: None, 4)


def test_a_transfer_starts_from_both_networks(project):
    here = road.Project(project, load_params(project)).for_grade(2)
    initial = road._initial_weights(here, here.tracker())
    plan = TransferPlan.read(initial.directory / "transfer.json")
    assert (plan.parent, plan.source_grade, plan.target_grade, plan.fresh) == ("imported/snapshot", None, 2, ())
    G, D = pickled.networks

    weights = safetensors.torch.load_file(initial.directory / "generator.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in G.state_dict().items())
    weights = safetensors.torch.load_file(initial.directory / "discriminator.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in D.state_dict().items())


@pytest.mark.parametrize("name", ["global", "nested-stream", "truncated", "memo-with-holes"])
def test_a_hostile_pickle_is_one_line_and_leaves_nothing(tmp_path, name):
    root = make_project(tmp_path / "project")
    path = Path(tmp_path / "network.pkl")
    path.write_bytes(hostile(str(tmp_path / "canary"))[name])
    done = drp(root, "import", str(path))
    assert_one_line_error(done, "network.pkl")
    assert not (tmp_path / "canary").exists()
    assert not (root / "imported").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "two\nlines", "\x1b[31mred", "-option", "x" * 300])
def test_a_name_that_leads_elsewhere_or_is_not_plain_is_refused(tmp_path, name):
    root = make_project(tmp_path / "project")
    assert_one_line_error(drp(root, "import", sys.executable, "--name", name), "Give a plain name")


def test_no_path_of_this_machine_gets_into_images_or_parents(project, tmp_path):
    here = road.Project(project, load_params(project))
    for typed in (str(project / "imported" / "snapshot"), "imported/snapshot/", "./imported//snapshot"):
        generate(here, typed, [0], 1.0, tmp_path / "drawn", lambda done, total: None)
        assert Image.open(tmp_path / "drawn" / "seed0000000000.png").text["Model"] == "imported/snapshot"
        assert road.import_name(here, typed) == "imported/snapshot"
    shutil.copytree(project / "imported" / "snapshot", tmp_path / "private" / "snapshot")
    generate(here, str(tmp_path / "private" / "snapshot"), [0], 1.0, tmp_path / "drawn", lambda done, total: None)
    assert Image.open(tmp_path / "drawn" / "seed0000000000.png").text["Model"] == "imported/snapshot"
    with pytest.raises(ConfigError, match=r"does not lie directly in .*imported, where a transfer takes its parent"):
        road.import_name(here, str(tmp_path / "private" / "snapshot"))


def test_an_export_replaces_no_pipe_or_device(project):
    os.mkfifo(project / "pipe")
    done = drp(project, "export", "imported/snapshot", "--onnx", "pipe")
    assert_one_line_error(done, "--onnx pipe is a device or pipe. Give the name of a file.")
    assert (project / "pipe").is_fifo()
