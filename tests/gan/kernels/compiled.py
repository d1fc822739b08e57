"""Compiles the kernel for sm_90 and prints what each pass needs of an SM, as JSON. Argument: a list of passes.

A process of its own, because Triton must not be interpreting here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dr_platform.gan.kernels import operators
from dr_platform.gan.kernels.fir_kernel import filtered_lrelu_kernel

POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def usage(dtype: torch.dtype, up: int, down: int, up_rank: int, down_rank: int, backward: bool) -> dict[str, int]:
    """Registers, stack and shared memory in bytes, and tensor core instructions of a pass as launched."""
    shapes = ((up_rank, 2, 6 * up), (down_rank, 2, 6 * down))
    constants = operators.constants(dtype, up, down, *shapes, pad_y=28 if backward else 9)
    num_warps = constants.pop("num_warps")
    constants |= {"MODE": 2 if backward else 1, "SUMS": 2 if backward else 1, "HAS_CLAMP": not backward}
    constants |= {"HAS_BIAS": not backward, "HAS_SCALE": True, "HAS_SOURCE": backward}
    names = filtered_lrelu_kernel.arg_names
    element = POINTERS[dtype]
    types = {"x": element, "y": element, "source": element, "codes": "*u8", "slope": "fp32", "clamp": "fp32"}
    types |= dict.fromkeys(("up_taps", "down_taps", "bias", "scale", "sums"), "*fp32")
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name == "channels"]
    source = ASTSource(
        fn=filtered_lrelu_kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK"))
    instructions = len(re.findall(r"wgmma\.mma_async|mma\.sync", kernel.asm["ptx"]))
    return {
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "tensor core instructions": instructions,
    }


def main() -> None:
    passes = json.loads(sys.argv[1])
    results = {}
    with ThreadPoolExecutor(2) as pool:
        for index, (name, up, down, rank) in enumerate(passes):
            dtype = getattr(torch, name)
            results[f"{index} forward"] = pool.submit(usage, dtype, up, down, 1, rank, False)
            # The transpose: factors and filters change places.
            results[f"{index} backward"] = pool.submit(usage, dtype, down, up, rank, 1, True)
        json.dump({key: future.result() for key, future in results.items()}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
