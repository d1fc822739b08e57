"""Checkpoints: all there or refused by name, and the one before is found."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dr_platform import checkpoint
from dr_platform.errors import CheckpointError, TrainingError
from dr_platform.files import sha256_json

DESCRIBE = {
    "run": "dr1-test",
    "images_seen": 64,
    "complete": False,
    "grade": 1,
    "resolution": 16,
    "visibility": "public",
    "config_sha256": "1" * 64,
    "data_sha256": "2" * 64,
    "train_images": 11,
    "parent": None,
    "generator": {"z_dim": 8},
    "discriminator": {},
}


def write(root: Path, step: int) -> Path:
    source = torch.Generator().manual_seed(step)
    tensors = {
        checkpoint.GENERATOR_FILE: {"weight": torch.randn(64, generator=source), "scalar": torch.tensor(float(step))},
        "discriminator.safetensors": {"weight": torch.randn(8, 8, generator=source)},
    }
    checkpoint.write(root, tensors, {"step": step}, {**DESCRIBE, "step": step})
    return root / checkpoint.directory_name(step)


def test_what_was_written_is_read(tmp_path):
    directory = write(tmp_path, 7)
    record, tensors, state = checkpoint.read(directory)
    assert (record.step, state) == (7, {"step": 7})
    expected = torch.randn(64, generator=torch.Generator().manual_seed(7))
    assert torch.equal(tensors[checkpoint.GENERATOR_FILE]["weight"], expected)
    assert torch.equal(checkpoint.read_generator(directory)[1]["weight"], expected)


def test_a_flipped_bit_in_any_of_200_places_is_refused_by_name_and_the_previous_checkpoint_used(tmp_path, caplog):
    previous, directory = write(tmp_path, 1), write(tmp_path, 2)
    chance = random.Random(0)
    files = sorted(directory.iterdir())
    assert {path.name for path in files} >= {checkpoint.RECORD_FILE, "state.json", checkpoint.GENERATOR_FILE}
    for _ in range(200):
        path = chance.choice(files)
        content = path.read_bytes()
        bit = chance.randrange(len(content) * 8)
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(path.name)):
            checkpoint.read(directory)
        caplog.clear()
        assert checkpoint.newest(tmp_path) == previous
        assert path.name in caplog.text
        path.write_bytes(content)
    assert checkpoint.newest(tmp_path) == directory


@pytest.mark.parametrize("damage", ["truncate", "remove", "record"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage, caplog):
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    victim = newer / (checkpoint.RECORD_FILE if damage == "record" else checkpoint.GENERATOR_FILE)
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-9])
    assert checkpoint.newest(tmp_path) == older
    assert victim.name in caplog.text


def test_half_a_checkpoint_is_never_seen(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(TypeError):
        checkpoint.write(tmp_path, {}, {"unwritable": object()}, {**DESCRIBE, "step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_pruning_keeps_the_newest_and_clears_what_a_crash_left(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / ".step-00000004.999.partial").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_whose_record_was_edited_is_refused(tmp_path):
    directory = write(tmp_path, 1)
    path = directory / checkpoint.RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 4}))
    with pytest.raises(CheckpointError, match=r"checkpoint.json is damaged"):
        checkpoint.verify(directory)


def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoint(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    write(tmp_path, 1)
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_checkpoint
from pathlib import Path
from dr_platform.errors import TrainingError
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    test_checkpoint.write(Path({str(tmp_path)!r}), 2)
except TrainingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "step-00000002 could not be written" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    target = tmp_path / "file-in-the-way"
    target.write_text("")
    with pytest.raises(TrainingError, match="file-in-the-way"):
        write(target, 1)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    path = write(tmp_path, 1) / checkpoint.RECORD_FILE
    content = {**json.loads(path.read_text()), "version": 4}
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": sha256_json(content)}))
    with pytest.raises(CheckpointError, match="not a Checkpoint of version 3"):
        checkpoint.verify(path.parent)
