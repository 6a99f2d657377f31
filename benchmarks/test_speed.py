"""Time ops and the cell with pytest-benchmark: `pytest benchmarks/ -m "not slow"`; without `-m`, whole models too.

No time is asserted. `motionrnn bench` measures more, and times in turns what it compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import motionrnn_ext
from motionrnn_ext import backends

from . import cases
from .measuring import rows
from .measuring.implementations import implementation
from .measuring.model_cases import INFERENCE, TRAINING, ModelCase, checked
from .measuring.op_cases import BOTH, FORWARD, Case, exact_results
from .measuring.roofline import POINTWISE

IMPLEMENTATIONS = ("ours", "reference")
OPS = ("MotionGRUCell", "offset_warp", *POINTWISE)


@pytest.fixture(autouse=True)
def ours() -> Iterator[None]:
    if why := backends.unavailable_reason("cpu"):
        pytest.skip(why)
    with motionrnn_ext.backend("cpu"):
        yield


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", cases.MAPS, ids=str)
@pytest.mark.parametrize("direction", (FORWARD, BOTH))
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark: Any, op: str, direction: str, shape: cases.MapShape, name: str) -> None:
    case = Case(op, shape, "float32", direction)
    benchmark.group = str(case)
    made, inputs = implementation(name, "NCHW", case, "cpu"), case.inputs("cpu", 0)
    call, leaves = made.call(case, inputs)
    difference = rows.deviation(case, made, made.results(case, call, leaves), exact_results(case, inputs))
    assert difference <= case.tolerance
    benchmark(call)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("ours", "ours, without MotionGRU", "base predictor", "reference"))
@pytest.mark.parametrize("direction", (TRAINING, INFERENCE))
@pytest.mark.parametrize("setting", (cases.HUMAN36M, cases.VMNIST), ids=lambda s: s.name)
def test_model(benchmark: Any, setting: cases.ModelSetting, direction: str, name: str) -> None:
    case = ModelCase(setting, "float32", direction)
    benchmark.group = str(case)
    _, call = checked(case, name, "NCHW", case.frames("cpu"), {}, {})
    benchmark(call)
