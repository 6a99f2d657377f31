"""Counts what the warp's kernels do, by pixel and tap: `python tests/ptx [--triton] counts`

The counts are of PTX, before ptxas. Of a large map a few blocks are run, and what they did stands for all.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

import torch
from case import channels_last, generator
from cuda_binary import short_names
from ptx_interpreter import KernelCounts
from under_test import EMULATED, PTX, PTX_OF_TRITON, TRITON

from motionrnn_ext import ops

SHAPES = {"small": (8, 16, 16, 16), "large": (32, 32, 128, 128)}  # (B, C, H, W)
# The number of blocks that are run of a launch; 0 is all of them.
BLOCKS = {"small": 0, "large": 6}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"channels_last": channels_last, "contiguous": torch.Tensor.contiguous}
K, WARP = 3, 32
GLOBAL = {"loads": "ldg", "stores": "stg", "reductions": "red"}
SHARED = ("lds", "sts", "ldsm")
ARITHMETIC = ("fp32", "int", "int64", "idiv", "mufu", "cvt", "pred", "mma", "movm", "shfl", "branch")
# Instructions that ptxas leaves out.
NOT_COUNTED = ("mov", "param")


def run_warp(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """One forward and backward pass of the offset warp."""
    batch, channels, height, width = shape
    g = generator()

    def normal(count: int, kind: torch.dtype) -> torch.Tensor:
        made = torch.randn(batch, count, height, width, generator=g).to(kind)
        return LAYOUTS[layout](made).requires_grad_()

    x, grad, mask = normal(channels, dtype), normal(channels, dtype), normal(K * K, dtype)
    offset = normal(2 * K * K, torch.float32)
    weight = torch.randn(channels, channels, K, K, generator=g).to(dtype).requires_grad_()
    with (TRITON if PTX_OF_TRITON else EMULATED).chosen():
        out = ops.offset_warp(x, offset, mask, weight)
        torch.autograd.grad(out, (x, offset, mask, weight), grad.detach())


def row(counts: KernelCounts, scale: float) -> list[str]:
    """Return the cells of a kernel; `scale` is the share of a pixel and tap in what was counted."""
    kinds = {i.kind for i in counts.instructions} - {*NOT_COUNTED}

    def per_thread(what: str, of: object) -> float:
        return WARP * scale * counts.total(what, of)

    cells = [f"{per_thread('issued', kinds):.1f}"]
    cells += [f"{per_thread('issued', (kind,)):.1f}" for kind in ARITHMETIC]
    for kind in GLOBAL.values():
        sectors, ideal = (scale * counts.total(what, (kind,)) for what in ("sectors", "ideal_sectors"))
        cells.append(f"{sectors:.2f} ({ideal:.2f})")
    used, ideal = (per_thread(what, SHARED) for what in ("wavefronts", "ideal_wavefronts"))
    return [*cells, f"{used:.1f} ({ideal:.1f})"]


def lines(counts: KernelCounts, scale: float) -> list[tuple[float, str]]:
    """Return the sectors and wavefronts by line of source, the most first."""
    found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for i in counts.instructions:
        place = f"{Path(i.file).name}:{i.line} {i.kind}"
        if i.kind in GLOBAL.values():
            added = i.sectors * scale, i.ideal_sectors * scale
        elif i.kind in SHARED:
            added = WARP * i.wavefronts * scale, WARP * i.ideal_wavefronts * scale
        else:
            continue
        found[place] = [have + more for have, more in zip(found[place], added)]
    rows = [(used, f"{place}: {used:.2f} ({ideal:.2f})") for place, (used, ideal) in found.items()]
    return sorted(rows, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/ptx counts", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=[*LAYOUTS])
    parser.add_argument("--deterministic", action="store_true", help="deterministic sums")
    parser.add_argument("--lines", action="store_true", help="the lines of source of sectors and wavefronts")
    options = parser.parse_args()
    assert PTX, "start this with `python tests/ptx counts`"
    torch.use_deterministic_algorithms(options.deterministic)
    PTX.set(check_races=0, check_global=0)

    print(
        "By pixel and tap: instructions of a thread; sectors of 32 bytes in global memory; wavefronts of shared"
    )
    print("memory, times 32. In brackets: what dense accesses without bank conflicts would take.\n")
    head = [
        "inputs",
        "kernel",
        "instructions",
        *ARITHMETIC,
        *(f"sectors, {name}" for name in GLOBAL),
        "wavefronts",
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name in options.shapes:
        PTX.set(max_blocks=BLOCKS[name])
        for dtype in options.dtypes:
            for layout in options.layouts:
                PTX.counts(), PTX.launches()
                run_warp(SHAPES[name], DTYPES[dtype], layout)
                blocks: collections.Counter[str] = collections.Counter()
                for launch in PTX.launches():
                    blocks[launch.kernel] += launch.blocks
                batch, _, height, width = SHAPES[name]
                found = PTX.counts()
                names = short_names({counts.kernel for counts in found})
                for counts in found:
                    scale = blocks[counts.kernel] / counts.blocks / (batch * height * width * K * K)
                    inputs = f"{dtype} {'x'.join(map(str, SHAPES[name]))} {layout}"
                    print(f"| {' | '.join([inputs, names[counts.kernel], *row(counts, scale)])} |")
                    if options.lines:
                        print(*(f"    {text}" for _, text in lines(counts, scale)[:12]), sep="\n")


if __name__ == "__main__":
    main()
