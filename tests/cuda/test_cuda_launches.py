"""The number of kernels that a MotionGRU's step launches on CUDA, within a rollout.

Our own launches are those that the stand-in CUDA runtime of tests/ptx sees; the warp's backward counts 1 more for the
memory that it clears, unless sums are deterministic.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launches import Launches, made, of_a_step, of_steps
from under_test import EMULATED, PTX, UnderTest, on

# The launches of a step, forward and backward, by variant.
LAUNCHES = {"official": (8, 12), "paper": (3, 7)}

pytestmark = pytest.mark.skipif(
    not PTX, reason="launches are counted by the stand-in CUDA runtime of tests/ptx"
)


class CudaLaunches(Launches):
    def __enter__(self) -> CudaLaunches:
        PTX.launches()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        for launch in PTX.launches():
            self.found[launch.kernel] += 1
            if "warp_backward" in launch.kernel:
                self.found["cudaMemsetAsync"] += 1


@on([EMULATED] if PTX else [], dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", LAUNCHES)
def test_a_step_launches_few_kernels(on: UnderTest, dtype: torch.dtype, variant: str) -> None:
    with on.chosen():
        found = of_a_step(made(variant, dtype), dtype, CudaLaunches)
    assert tuple(way.total() for way in found) == LAUNCHES[variant], found


@on([EMULATED] if PTX else [])
@pytest.mark.parametrize("variant", LAUNCHES)
def test_our_ops_copy_nothing(on: UnderTest, variant: str) -> None:
    """Inside of them no operation of PyTorch launches a kernel, but where weights are packed."""
    gru = made(variant, torch.float32)
    with on.chosen(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        of_steps(2, gru, torch.float32, CudaLaunches)
    launching = ("aten::copy_", "aten::zero_", "aten::fill_", "aten::add_")
    inside = [e.cpu_parent for e in profile.events() if e.name in launching]
    owners = set()
    for event in inside:
        while event is not None and not event.name.startswith("motionrnn_ext"):
            event = event.cpu_parent
        owners |= set() if event is None else {event.name.partition("::")[2]}
    assert owners <= {"motion_gates_pack", "decode_blend_pack"}
