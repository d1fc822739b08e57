"""A training with ADA on two ranks, killed with SIGKILL at random moments, against the same training left alone.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0] > benchmarks/results/kill-resume.json

Both trainings run as two plain processes with gloo between them (no Ray, whose restart is tested elsewhere and would
only lengthen the wait). Every kill takes both ranks, or one of them, at a moment drawn uniformly from a span of a few
ticks; the same command then continues from the newest checkpoint that verifies. At the end every tensor, every counter
and ADA's p must be equal to the bit, p must not be 0, and R1 must have fired.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from dr_platform import checkpoint
from dr_platform.config import TrainConfig, load_params
from dr_platform.data.loader import ImageSet
from dr_platform.training import loop
from dr_platform.training.group import Group
from dr_platform.training.plan import CHECKPOINTS
from dr_platform.training.report import SilentReporter
from dr_platform.training.state import new_state

ROOT = Path(__file__).parents[1]
RESOLUTION, IMAGES, WORLD = 16, 24, 2


def configuration() -> TrainConfig:
    """A small network with all that moves: ADA that reacts at once, R1, averages of three kinds, style mixing."""
    base = load_params(ROOT).train.model_dump()
    small = {"z_dim": 16, "w_dim": 16, "num_layers": 4, "channel_base": 256, "channel_max": 16}
    small |= {"discriminator_channel_base": 256, "discriminator_channel_max": 16}
    moving = {"batch": 8, "augment": "bgc", "ada_kimg": 0.5, "ada_target": 0.0, "style_mixing": 0.5, "r1_interval": 4}
    lengths = {"kimg": 4.8, "tick_kimg": 0.04, "checkpoint_ticks": 1, "posthoc_kimg": 0.4}
    return TrainConfig.model_validate({**base, **small, **moving, **lengths, "gamma": 0.5, "r1_lambda": None})


def images() -> ImageSet:
    """The same noise for everybody: two kinds, so that D has something to learn."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 80, (IMAGES, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    pixels[::2, 4:12, 4:12, 0] += 150
    return ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public")


def _rank(rank: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    group, config = Group.current(torch.device("cpu")), configuration()
    state = new_state(config, RESOLUTION, group.device)
    found = checkpoint.newest(Path(root) / CHECKPOINTS)
    agreed = [found]
    dist.broadcast_object_list(agreed, src=0)
    if agreed[0] is not None:
        _, tensors, counters = checkpoint.read(agreed[0])
        state.load(tensors, counters)
    digest = "0" * 64
    describe = {
        "run": "kill-resume", "grade": 1, "resolution": RESOLUTION, "visibility": "public", "config_sha256": digest,
        "data_sha256": digest, "train_images": IMAGES, "parent": None,
    }  # fmt: skip
    loop.train(loop.Job(config, Path(root), describe), state, images(), group, SilentReporter())
    dist.destroy_process_group()


def start(root: Path) -> list[Any]:
    """Both ranks, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, port, str(root)), daemon=True) for rank in range(WORLD)]
    for rank in ranks:
        rank.start()
    return ranks


def final(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and counters of the finished run."""
    newest = checkpoint.newest(root / CHECKPOINTS)
    if newest is None or not checkpoint.verify(newest).complete:
        sys.exit("The training has no final checkpoint.")
    _, tensors, counters = checkpoint.read(newest)
    return {f"{file}/{name}": value for file, named in tensors.items() for name, value in named.items()}, counters


def main() -> None:
    """Train once undisturbed and once under fire; compare; print one JSON document; exit status 1 if a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as directory:
        quiet, disturbed = Path(directory) / "quiet", Path(directory) / "disturbed"
        begun = time.monotonic()
        for rank in start(quiet):
            rank.join()
        alone = time.monotonic() - begun
        kills = []
        while len(kills) < options.kills:
            ranks = start(disturbed)
            before = checkpoint.newest(disturbed / CHECKPOINTS)
            # The first seconds are imports; from then on a kill may fall anywhere, into a checkpoint too.
            deadline = time.monotonic() + 60
            while checkpoint.newest(disturbed / CHECKPOINTS) == before and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
            victims = ranks if chance.random() < 0.5 else [chance.choice(ranks)]
            for victim in victims:
                victim.kill()
            for rank in ranks:  # a survivor would wait for the dead
                rank.kill()
                rank.join()
            newest = checkpoint.newest(disturbed / CHECKPOINTS)
            record = checkpoint.verify(newest) if newest else None
            kills.append({"ranks": len(victims), "step": record.step if record else 0})
            print(
                f"kill {len(kills)} of {options.kills}: newest checkpoint of step {kills[-1]['step']}", file=sys.stderr
            )
            if record is not None and record.complete:
                break
        for rank in start(disturbed):
            rank.join()
        expected, counters = final(quiet)
        found, found_counters = final(disturbed)
    differing = [name for name in expected if not torch.equal(expected[name], found[name])]
    same = not differing and expected.keys() == found.keys() and counters == found_counters
    document = {
        "environment": {
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "command": f"python benchmarks/kill_resume.py --kills {options.kills} --seed {options.seed}",
        },
        "ranks": WORLD,
        "steps": counters["step"],
        "seconds_undisturbed": alone,
        "ada": counters["ada"],
        "tensors": len(expected),
        "kills": kills,
        "bitwise_equal": same,
        "differing": differing,
    }
    json.dump(document, sys.stdout, indent=2)
    print()
    if not same or counters["ada"]["p"] == 0 or len(kills) < options.kills:
        sys.exit(1)


if __name__ == "__main__":
    main()
