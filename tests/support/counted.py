"""Print what tests/bench/test_counts.py compares, as JSON: counts of the cell and of small models, both directions.

It runs in a process of its own, so that nothing counts that the machine decides about: one thread, the kernels of the
oldest instruction set, and convolutions without oneDNN and NNPACK, whose scratch memory follows the processor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from motionrnn_ext import MotionGRUCell, MotionRNN, backend
from motionrnn_ext.backends import triton
from motionrnn_ext.benchmarks import cases
from motionrnn_ext.benchmarks.measuring import counting

# It is read when PyTorch and the kernels are loaded.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MOTIONRNN_EXT_CPU_ISA": "baseline", "TRITON_INTERPRET": "1"}
Count = int | dict[str, int]


class Step(NamedTuple):
    forward: Callable[[], Tensor]
    known: list[Tensor]  # inputs and parameters: gradients by all that want one

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
        step()  # what is made once does not count
        found: dict[str, Count] = {
            "bytes kept for backward": counting.kept_bytes(step.forward, step.known),
            "bytes at the peak": counting.peak_bytes(step, "cpu"),
            "ops": in_order(counting.ops_by_name(step)),
        }
    if triton.unavailable_reason() is None:
        with backend("triton"):
            found["launches of Triton kernels"] = in_order(counting.triton_launches(step))
    return found


def in_order(found: Counter[str]) -> dict[str, int]:
    return dict(sorted(found.items()))


if __name__ == "__main__":
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    print(json.dumps({name: counts(step) for name, step in steps()}))
