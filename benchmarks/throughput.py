"""Training throughput by resolution and number of workers: images per second of whole steps, R1 and averaging included.

    python benchmarks/throughput.py [--resolutions 32 64 128] [--workers 1 2] > benchmarks/results/throughput-cpu.json

Each row trains a StyleGAN3-T of one width in plain processes (gloo between them, one thread each; no Ray, whose start
is not the subject), warms up for two steps, and times the next ones by the wall, two R1 intervals where that fits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from dr_platform.config import TrainConfig, load_params
from dr_platform.data import partition
from dr_platform.data.loader import ImageSet
from dr_platform.training import loop
from dr_platform.training.batches import Batches
from dr_platform.training.group import Group
from dr_platform.training.state import new_state
from dr_platform.training.step import Players

ROOT = Path(__file__).parents[1]
WARM_UP_STEPS = 2
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**26)}


def configuration(resolution: int) -> TrainConfig:
    """The published depth (14 layers), 64 channels at most in G and D, batch 8, gamma by resolution."""
    base = load_params(ROOT).train.model_dump()
    width = {"channel_base": 64 * resolution // 2, "channel_max": 64}
    width |= {"discriminator_channel_base": 64 * resolution // 2, "discriminator_channel_max": 64}
    depth = {"z_dim": 512, "w_dim": 512, "num_layers": 14, "mapping_layers": 2}
    gamma = 8 * (resolution / 512) ** 2
    plain = {"batch": 8, "gamma": gamma, "r1_lambda": None, "r1_interval": 16, "augment": "none"}
    return TrainConfig.model_validate({**base, **width, **depth, **plain})


def measure(config: TrainConfig, resolution: int, group: Group, seconds: float) -> dict[str, float]:
    """Steps until `seconds` have passed, at least one R1 interval; images per second."""
    torch.set_num_threads(1)
    state = new_state(config, resolution, group.device)
    pixels = np.random.default_rng(0).integers(0, 256, (64, resolution, resolution, 3), dtype=np.uint8)
    images = ImageSet(images=pixels, rows=(), sha256="0" * 64, visibility="public")
    players = Players(state.generator, state.discriminator, group)
    size = partition.micro_batch_size(config.batch, group.world, config.mbstd_group, None)
    mine = partition.micro_batches(config.batch, group.world, group.rank, config.mbstd_group, size)
    batches = Batches(config, images, state.generator.num_ws, mine, group.device)
    for _ in range(WARM_UP_STEPS):
        loop.take_step(state, players, batches)
    start, steps, over = time.perf_counter(), 0, False
    while not over or steps % config.r1_interval:
        loop.take_step(state, players, batches)
        steps += 1
        over = group.any(group.is_first and time.perf_counter() - start > seconds)
    wall = time.perf_counter() - start
    return {
        "images_per_second": steps * config.batch / wall,
        "steps": steps,
        "seconds": wall,
        "parameters_g": sum(parameter.numel() for parameter in state.generator.parameters()),
        "parameters_d": sum(parameter.numel() for parameter in state.discriminator.parameters()),
    }


def _rank(rank: int, world: int, port: int, resolution: int, seconds: float, results: Any) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    row = measure(configuration(resolution), resolution, Group.current(torch.device("cpu")), seconds)
    if rank == 0:
        results.update(row)
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    """Measure every combination and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    os.environ.update(MALLOC)
    rows = []
    for resolution in options.resolutions:
        for world in options.workers:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            with multiprocessing.get_context("spawn").Manager() as manager:
                results = manager.dict()
                arguments = (world, port, resolution, options.seconds, results)
                multiprocessing.spawn(_rank, args=arguments, nprocs=world)
                rows.append({"resolution": resolution, "workers": world, **dict(results)})
            print(rows[-1], file=sys.stderr)
    environment = {
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": os.getloadavg()[0],
        "command": "python benchmarks/throughput.py",
        "network": "stylegan3-t, 14 layers, at most 64 channels, batch 8, R1 every 16 steps, one thread a worker",
    }
    json.dump({"environment": environment, "rows": rows}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
