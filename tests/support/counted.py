"""Count what tests/bench/test_counts.py compares: bytes, ops and launches of the cell and of small models.

    python tests/support/counted.py             print the counts as JSON
    python tests/support/counted.py --update    record them in benchmarks/results/counts.json

The program restarts itself with ENVIRONMENT, so that nothing counts that the machine decides about: one thread, the
kernels of the oldest instruction set, and convolutions without oneDNN and NNPACK, whose scratch memory depends on the
processor.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from motionrnn_ext import MotionGRUCell, MotionRNN, backend
from motionrnn_ext.backends import triton
from motionrnn_ext.benchmarks import cases
from motionrnn_ext.benchmarks.measuring import counting

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "counts.json"
TORCH = torch.__version__.partition("+")[0]
LAUNCHES = "launches of Triton kernels"
# PyTorch and the kernels read these when they are loaded.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MOTIONRNN_EXT_CPU_ISA": "baseline", "TRITON_INTERPRET": "1"}
Count = int | dict[str, int]
Counts = dict[str, dict[str, Count]]  # by step, then by what is counted


class Step(NamedTuple):
    """A forward pass that can be differentiated, with its inputs and parameters."""

    forward: Callable[[], Tensor]
    known: list[Tensor]

    def __call__(self) -> Any:
        return torch.autograd.grad(self.forward(), [t for t in self.known if t.requires_grad])


def steps() -> Iterator[tuple[str, Step]]:
    yield f"MotionGRUCell {cases.COUNTED_MAP}", _cell_step(cases.COUNTED_MAP)
    setting = cases.DRY_RUN.of_batch(2)
    for predictor, name in (("predrnn", "MotionRNN-PredRNN"), ("convlstm", "MotionRNN-ConvLSTM")):
        yield f"{name} {setting}", _model_step(predictor, setting)


def _cell_step(shape: cases.MapShape) -> Step:
    cell = MotionGRUCell(shape.channels)
    x = torch.zeros(shape.batch, shape.channels, shape.size, shape.size, requires_grad=True)
    state = [t.requires_grad_() for t in map(torch.clone, cell.initial_state(x))]

    def forward() -> Tensor:
        return torch.stack([t.sum() for t in cell(x, *state)]).sum()

    return Step(forward, [x, *state, *cell.parameters()])


def _model_step(predictor: str, setting: cases.ModelSetting) -> Step:
    model = MotionRNN(
        predictor, setting.channels, setting.hidden, setting.patch, filter_size=setting.filter_size
    )
    frames = torch.zeros(setting.batch, setting.total, setting.channels, setting.size, setting.size)

    def forward() -> Tensor:
        return torch.nn.functional.mse_loss(model(frames, setting.given), frames[:, 1:])

    return Step(forward, [frames, *model.parameters()])


def counts(step: Step) -> dict[str, Count]:
    with backend("cpu"):
        step()  # the first call makes what later calls reuse
        found: dict[str, Count] = {
            "bytes kept for backward": counting.kept_bytes(step.forward, step.known),
            "bytes at the peak": counting.peak_bytes(step, "cpu"),
            "ops": _sorted(counting.ops_by_name(step)),
        }
    if triton.unavailable_reason() is None:
        with backend("triton"):
            found[LAUNCHES] = _sorted(counting.triton_launches(step))
    return found


def _sorted(found: Counter[str]) -> dict[str, int]:
    return dict(sorted(found.items()))


# ---- The record


def read() -> dict[str, Any]:
    return json.loads(TABLE.read_text())


def update(found: Counts) -> None:
    """Record the counts; a machine without Triton keeps the launches that are recorded."""
    before = read()["steps"]
    kept = {name: before.get(name, {}) | counts for name, counts in found.items()}
    TABLE.write_text(json.dumps({"torch": TORCH, "steps": kept}, indent=1) + "\n")


if __name__ == "__main__":
    if not os.environ.items() >= ENVIRONMENT.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ENVIRONMENT)
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    measured = {name: counts(step) for name, step in steps()}
    if sys.argv[1:] == ["--update"]:
        update(measured)
    else:
        print(json.dumps(measured))
