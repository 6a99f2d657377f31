"""The LSTM cells' joints on every backend, against what they join: the public ops, and autograd, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from case import Case, generator, like
from cases import layout_cases
from comparing import TOLERANCE, assert_close
from torch import Tensor
from under_test import DTYPES, KERNELS, REFERENCE, UnderTest, on

from motionrnn_ext import ops

BIAS = 0.75
HALF = DTYPES[2:]
# Those that may be float32 beside half features.
STATES = {"cell", "memory", "new_cell", "grad_cell", "grad_memory"}
OPERANDS = {
    "st_lstm_update": ("cell_gates:3", "memory_gates:3", "cell", "memory"),
    "st_lstm_update_backward": (
        *("grad_memories:2", "grad_content:2", "grad_cell", "grad_memory", "grad_output"),
        *("cell_gates:3", "memory_gates:3", "cell", "memory"),
    ),
    "summed_output": ("output_o", "output_x", "content", "highway"),
    "conv_lstm_update": ("gates:4", "cell", "highway"),
    "conv_lstm_update_backward": ("grad_hidden", "grad_cell", "gates:4", "cell", "new_cell", "highway"),
}


def without_highway(case: Case) -> Case:
    return Case(case.op, f"no_highway_{case.name}", lambda g: {**case.make(g), "highway": None})


def cases() -> list[Case]:
    made = [case for op, names in OPERANDS.items() for case in layout_cases(op, names)]
    bare = [c for c in made if "highway" in OPERANDS[c.op] and c.name in ("plain", "channels_last_split_c3")]
    return made + [without_highway(case) for case in bare]


CASES = cases()


def inputs_of(case: Case, on: UnderTest, dtype: torch.dtype, state: torch.dtype) -> dict[str, Tensor | None]:
    made = case.make(generator())
    return {
        n: t if t is None else like(t, state if n in STATES else dtype, on.device) for n, t in made.items()
    }


def run(on: UnderTest, op: str, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    numbers: dict[str, Any] = {} if op == "summed_output" else {"forget_bias": BIAS}
    with torch.no_grad():
        return tuple(on.op(op)(**inputs, **numbers))


# ---- What the joints should compute, composed of public ops


def updated(gates, before):
    return ops.memory_update(gates, torch.zeros_like(gates), before, BIAS)


def st_lstm_update(cell_gates, memory_gates, cell, memory):
    new_cell, new_memory = updated(cell_gates, cell), updated(memory_gates, memory)
    return torch.cat([new_cell, new_memory], dim=1), new_cell, new_memory


def st_lstm_update_backward(
    grad_memories, grad_content, grad_cell, grad_memory, grad_output, cell_gates, memory_gates, cell, memory
):
    leaves = [t.clone().requires_grad_() for t in (cell_gates, memory_gates, cell, memory)]
    cotangents = (grad_memories + grad_content, grad_cell, grad_memory)
    grads = torch.autograd.grad(st_lstm_update(*leaves), leaves, cotangents)
    return torch.cat([grads[0], grad_output], dim=1), *grads[1:]


def summed_output(output_o, output_x, content, highway):
    output = output_o + output_x
    return ops.highway_output(output, content, highway), output


def conv_lstm_update(gates, cell, highway):
    c = cell.shape[1]
    new_cell = updated(gates[:, : 3 * c], cell)
    return ops.highway_output(gates[:, 3 * c :], new_cell, highway), new_cell


def conv_lstm_update_backward(grad_hidden, grad_cell, gates, cell, new_cell, highway):
    # The derivative by C' is taken at the C' that is given, which forward made of the same gates.
    c = cell.shape[1]
    leaves = [t.clone().requires_grad_() for t in (gates[:, 3 * c :], new_cell, highway) if t is not None]
    hidden = ops.highway_output(leaves[0], leaves[1], leaves[2] if highway is not None else None)
    grad_output, grad_new_cell, *grad_highway = torch.autograd.grad(hidden, leaves, grad_hidden)
    read = [gates[:, : 3 * c].clone().requires_grad_(), cell.clone().requires_grad_()]
    grad_gates, grad_old_cell = torch.autograd.grad(updated(*read), read, grad_cell + grad_new_cell)
    rest = grad_highway[0] if grad_highway else torch.empty(0)
    return torch.cat([grad_gates, grad_output], dim=1), grad_old_cell, rest


def expected_of(op: str, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    exact = {n: t if t is None else t.detach().cpu().double() for n, t in inputs.items()}
    with REFERENCE.chosen():
        return globals()[op](**exact)


# ---- Tests


@on(KERNELS, dtypes=DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(on: UnderTest, case: Case, dtype: torch.dtype) -> None:
    """Measured: up to 2e-15 in float64, which stands for 1e-12 here."""
    bound = {torch.float64: 1e-12, torch.float32: on.float32_bound}.get(dtype, TOLERANCE[dtype])
    for state in {dtype, torch.float32} if dtype in HALF else {dtype}:
        inputs = inputs_of(case, on, dtype, state)
        expected, found = expected_of(case.op, inputs), run(on, case.op, inputs)
        assert len(found) == len(expected)
        for i, (f, e) in enumerate(zip(found, expected)):
            assert_close(f, e, bound, f"result {i} with states in {state}")


# Layouts whose results differ in their strides, and a call without a highway.
OF_FAKES = ("plain", "empty", "flat", "channels_last_split_c3", "mixed_layouts", "no_highway_plain")


@on(KERNELS)
@pytest.mark.parametrize("case", [c for c in CASES if c.name in OF_FAKES], ids=str)
def test_fakes_and_schemas(on: UnderTest, case: Case) -> None:
    """Schemas and fakes tell the results' sizes, dtypes and strides, also with float32 states beside halves."""
    inputs = inputs_of(case, on, torch.bfloat16, torch.float32)
    numbers = () if case.op == "summed_output" else (BIAS,)
    arguments = (*inputs.values(), *numbers)
    torch.library.opcheck(on.op(case.op).default, arguments, test_utils=("test_schema", "test_faketensor"))
