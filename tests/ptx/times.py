"""Calculates the time of each launch of our kernels in a MotionGRU's step on an H200, by `python tests/ptx times`, and
with `--triton` of the Triton kernels.

Nothing is measured. A launch takes the gap to the one before in a CUDA graph, and then the largest of three times:

    issue    the instructions of the busiest multiprocessor, one per cycle in each of its four parts
    alone    the instructions of one warp, at the CYCLES of each where nothing hides its waits
    memory   the sectors that it touches, from the second-level cache

Instructions and sectors are those of PTX, as the interpreter counts them. Of a large launch a few blocks are run. What
cuDNN and PyTorch launch is not in the table.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from case import channels_last
from cuda_binary import short_names
from under_test import EMULATED, PTX, PTX_OF_TRITON, TRITON

from motionrnn_ext import MotionGRU
from motionrnn_ext.benchmarks.cases import VARIANTS
from motionrnn_ext.layers.rollout import rollout

# An H200 by its data sheet, but for the cache's bytes per second and the last two, which are assumptions.
MULTIPROCESSORS, PARTS, CLOCK, CACHE = 132, 4, 1.755e9, 6e12
CYCLES, GAP = 4, 1.2e-6
SECTOR, BLOCKS = 32, 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOT_COUNTED = ("mov", "param")  # instructions that ptxas leaves out


def run_step(batch: int, channels: int, size: int, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """One step, forward and backward, without the gradients of the weights."""
    torch.manual_seed(0)
    gru: Any = MotionGRU(channels, **options).to(dtype).requires_grad_(False)
    gru = gru.to(memory_format=torch.channels_last)
    hidden = channels_last(torch.randn(batch, channels, size, size, dtype=dtype)).requires_grad_()
    state = gru.initial_state(hidden)
    state = type(state)(*(t.clone().requires_grad_() for t in state))
    with (TRITON if PTX_OF_TRITON else EMULATED).chosen():
        with rollout(gru, 2, 2**16):
            x, _ = gru(hidden, state, gru.pack_ahead())
        x.backward(torch.ones_like(x))


def times(
    batch: int, channels: int, size: int, dtype: torch.dtype, options: dict[str, Any]
) -> dict[str, float]:
    """Return the calculated time of each launch in seconds, by the kernel's short name, in order."""
    PTX.counts(), PTX.launches()
    run_step(batch, channels, size, dtype, options)
    launches, counts = PTX.launches(), {c.kernel: c for c in PTX.counts()}
    names = short_names({launch.kernel for launch in launches})
    found = {}
    for launch in launches:
        if "_pack" in launch.kernel:
            continue
        c = counts[launch.kernel]
        kinds = {i.kind for i in c.instructions} - {*NOT_COUNTED}
        issued, sectors = c.total("issued", kinds) / c.blocks, c.total("sectors") / c.blocks
        of_one_part = -(-launch.blocks // MULTIPROCESSORS) * issued / PARTS
        alone = CYCLES * issued / (c.warps / c.blocks)
        memory = launch.blocks * sectors * SECTOR / CACHE
        found[names[launch.kernel]] = GAP + max(max(of_one_part, alone) / CLOCK, memory)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python tests/ptx times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--channels", type=int, default=64, help="those of the maps")
    parser.add_argument("--size", type=int, default=32, help="side of the maps, which the encoder halves")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    options = parser.parse_args()
    assert PTX, "start this with `python tests/ptx times`"
    PTX.set(check_races=0, check_global=0, max_blocks=BLOCKS)
    of = " / ".join(f"B{batch}" for batch in options.batches)
    print(f"Calculated, in microseconds: {of}, {options.channels} channels, {options.size}x{options.size}\n")
    print("| variant | launch | us |\n|---|---|---|")
    for variant, settings in VARIANTS.items():
        for dtype in options.dtypes:
            sizes = [(batch, options.channels, options.size) for batch in options.batches]
            found = [times(*size, DTYPES[dtype], settings) for size in sizes]
            for name in found[0]:
                us = " / ".join(f"{1e6 * each[name]:.1f}" for each in found)
                print(f"| {variant}, {dtype} | `{name}` | {us} |")


if __name__ == "__main__":
    main()
