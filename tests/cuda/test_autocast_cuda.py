"""Autocast on a GPU that is not there: the dtypes and devices of what ops and models give."""

from __future__ import annotations

import fake_cuda
import pytest
import torch
from cases import ALL_OPS, small_case
from half_precision import HALF, STATE_OUTPUTS, flat, small

from motionrnn_ext.layers.cells import CELLS


@pytest.mark.parametrize("name", ["reference", "cuda", "triton"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("op", ALL_OPS)
def test_dtypes_of_an_op_on_cuda(op: str, dtype: torch.dtype, name: str):
    case = small_case(op)
    inputs = case.inputs(torch.float32, grad=False)
    with fake_cuda.fake_cuda(name), fake_cuda.autocast(dtype):
        outputs = case.run({n: fake_cuda.like(t) for n, t in inputs.items()})
    for i, o in enumerate(outputs):
        assert o.device.type == "cuda"
        assert o.dtype == (torch.float32 if i in STATE_OUTPUTS.get(op, ()) else dtype)


@pytest.mark.parametrize("name", ["reference", "cuda", "triton"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("predictor", CELLS)
def test_dtypes_of_a_model_on_cuda(predictor: str, dtype: torch.dtype, name: str):
    model, frame, state = small(predictor), torch.rand(2, 1, 16, 12), None
    with fake_cuda.fake_cuda(name), fake_cuda.autocast(dtype):
        model, frame = fake_cuda.moved(model), fake_cuda.like(frame)
        for _ in range(3):
            frame, state = model.step(frame, state)
    assert frame.dtype == dtype and frame.device.type == "cuda"
    assert all(layer.hidden.dtype == dtype and layer.cell.dtype == torch.float32 for layer in state.layers)
    assert all(t.dtype == torch.float32 for t in flat(state.motion))
