"""Plants wrong instructions into the CUDA kernels' PTX, one by one, and counts what the case table notices:
`python tests/ptx mutate 100`

A mutant is noticed by a wrong value or gradient, an exception, or a report of the interpreter. A survivor is a weakness
of the cases, or an instruction whose change makes no difference.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from case import channels_last
from cases import CASES
from checking import check
from cuda_binary import short_names
from ptx_interpreter import Kernel
from ptx_interpreter.mutants import Mutant, draw_mutant
from under_test import EMULATED, PTX

# The joined ops have cases of their own.
sys.path.append(str(Path(__file__).resolve().parents[1] / "ops"))
import test_decode_blend
import test_gated_warp
import test_ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ENDLESS = 3_000_000  # instructions of a warp


@dataclass
class Judge:
    """A case in a dtype, which notices or does not notice that a kernel is wrong."""

    name: str
    check: Callable[[], None]
    deterministic: bool = False
    seconds: float = 0.0
    kernels: set[str] = field(default_factory=set)  # that it launches

    def verdict(self) -> str:
        """Return how it notices a mistake: "value", "exception" or "report", or "" if it notices none."""
        begin = time.process_time()
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            self.check()
            found = "report" if PTX.reports() else ""
        except AssertionError:
            found = "value"
        except Exception:
            found = "exception"
        finally:
            torch.use_deterministic_algorithms(False)
        PTX.reports()
        self.kernels = {launch.kernel for launch in PTX.launches()} or self.kernels
        self.seconds = time.process_time() - begin
        return found


def judges(dtypes: list[str]) -> list[Judge]:
    """Return the cases of the tables, in each dtype, the quickest first."""
    found = [judge for dtype in dtypes for judge in judges_of(DTYPES[dtype])]
    for judge in found:
        assert not judge.verdict(), f"{judge.name} fails without a mutant"
    return sorted(found, key=lambda judge: judge.seconds)


def judges_of(dtype: torch.dtype) -> Iterator[Judge]:
    for case in CASES:
        for way in (False, True) if "warp" in case.op else (False,):
            yield Judge(str(case), partial(check, EMULATED, case, dtype), way)
    for channels in test_ops.LARGE_CHANNELS:
        for layout in (torch.clone, channels_last):
            run = partial(test_ops.check_large_map, EMULATED, dtype, channels, layout)
            yield Judge(f"large map of {channels} channels, {layout.__name__}", run)
    for name, options in test_gated_warp.VARIANTS.items():
        for size in (1, 3):
            run = partial(test_gated_warp.check, EMULATED, dtype, {**options, "size": size})
            yield Judge(f"gated_warp {name} {size}x{size}", run)
    for layout in (torch.clone, channels_last):
        run = partial(test_gated_warp.check_large_maps, EMULATED, dtype, layout)
        yield Judge(f"gated_warp of large maps, {layout.__name__}", run)
    for name, options in test_decode_blend.VARIANTS.items():
        for side in (False, True):
            run = partial(test_decode_blend.check, EMULATED, dtype, options, side)
            yield Judge(f"decode_blend {name}", run)


def is_executed(instruction: str, kernel: Kernel) -> bool:
    """Whether an instruction has been executed: whether none with its text has been missed."""
    text = " ".join(instruction.strip().rstrip(";").split())[:80]
    return not any(" ".join(other.split()).startswith(text) for other in kernel.missed.values())


def outcome(kernel: str, mutant: Mutant, chosen: list[Judge]) -> str:
    """Return how the cases notice a mutant, or "survived"."""
    ptx = PTX.text(kernel)
    PTX.replace(kernel, mutant.apply(ptx))
    try:
        return next((verdict for judge in chosen if (verdict := judge.verdict())), "survived")
    finally:
        PTX.replace(kernel, ptx)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/ptx mutate", description=__doc__)
    parser.add_argument("count", type=int, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES], help="whose kernels are changed"
    )
    options = parser.parse_args()
    assert PTX, "start this with `python tests/ptx mutate`"
    PTX.set(max_warp_insts=ENDLESS)
    every = judges(options.dtypes)
    uses = {k: [j for j in every if k in j.kernels] for k in sorted({k for j in every for k in j.kernels})}
    print(f"{len(every)} cases launch {len(uses)} kernels", flush=True)

    executed = PTX.coverage().kernels
    draw = random.Random(options.seed)
    outcomes: collections.Counter[str] = collections.Counter()
    names = short_names(set(uses))
    for _ in range(options.count):
        kernel = draw.choice([*uses])
        mutant = draw_mutant(PTX.text(kernel), draw)
        found = "not executed"
        if is_executed(mutant.before, executed[kernel]):
            found = outcome(kernel, mutant, uses[kernel])
        outcomes[found] += 1
        if found == "survived":
            print(f"survived: {names[kernel]} | {mutant}", flush=True)
    ran = options.count - outcomes["not executed"]
    print(f"{ran - outcomes['survived']} of {ran} executed mutants were noticed: {dict(outcomes)}")


if __name__ == "__main__":
    main()
