"""torch.compile of whole training steps, of dynamic shapes, in its modes: one graph, and the results of eager."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from case import Case
from cases import ALL_OPS, POINTWISE, dense_case
from comparing import assert_close
from compiling import (
    BY_INDUCTOR,
    NEEDS_CPU,
    SAME,
    check_step,
    frames,
    model_of,
    nothing_compiled,  # noqa: F401
    on_slowly_on_reference,
    slow,
)
from features import feature
from gates_cases import gates_inputs
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from under_test import ALL, CUDA_KERNELS, KERNELS, REFERENCE, UnderTest, on
from warp_cases import motion_inputs, warp_inputs

import motionrnn_ext
from motionrnn_ext import MotionGRU
from motionrnn_ext.layers.cells import CELLS

pytestmark = pytest.mark.usefixtures("nothing_compiled")


# ---- A whole training step


def _steps(predictors: Sequence[str], compiler: str, *marks: Any) -> list[Any]:
    return [pytest.param(p, compiler, id=f"{p}-{compiler}", marks=marks) for p in predictors]


@feature("compile_model")
@on_slowly_on_reference(ALL)
@pytest.mark.parametrize(
    "predictor, compiler",
    [
        *_steps(["convlstm", "predrnn"], "aot_eager"),
        *_steps([p for p in CELLS if p not in ("convlstm", "predrnn")], "aot_eager", slow),
        # Each takes the C++ compiler about a minute. The ops of the others are compiled by themselves in tests/ops.
        *_steps(["convlstm"], "inductor", slow),
        *_steps([p for p in CELLS if p != "convlstm"], "inductor", pytest.mark.nightly),
    ],
)
def test_training_step_without_a_graph_break(predictor: str, compiler: str, on: UnderTest):
    if on is REFERENCE and (compiler == "inductor" or predictor != "convlstm"):
        pytest.skip("of the reference, the ops and one predictor show it")
    model = model_of(predictor, on.device)
    total = 2 if compiler == "inductor" else 3  # the C++ compiler takes a while

    def step(frames: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(frames, n_input=1), frames[:, 1:])

    clip, counter = frames(2, total, 1, 16, 16, device=on.device), CompileCounterWithBackend(compiler)
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    tolerance = BY_INDUCTOR if compiler == "inductor" else SAME
    with on.chosen():
        check_step(step, compiled, list(model.parameters()), clip, tolerance=tolerance)
    assert counter.frame_count == 1


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "official": ({"variant": "official", "init_state": "xavier"}, {}),
    "without_trend": ({"trend": False}, {"return_motion": True}),
    "without_transient": ({"transient": False}, {"return_motion": True}),
    "predictor_alone": ({"motion_gru": False, "highway": False}, {}),
    "sampling": ({"layer_norm": True}, {"sampling_mask": frames(2, 1, 1, 16, 16)}),
    "reverse_sampling": ({}, {"sampling_mask": torch.ones(2, 1, 1, 1, 1), "reverse_sampling": True}),
    "checkpoint": ({}, {"checkpoint": True}),
}


QUICK = ("official", "reverse_sampling")


@pytest.mark.parametrize("call", [pytest.param(c, marks=[slow] * (c not in QUICK)) for c in CALLS])
def test_every_way_to_call_the_model_is_one_graph(call: str):
    options, arguments = CALLS[call]
    model, counter = model_of("predrnn", **options), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)

    def step(function: Any, clip: Tensor) -> Any:
        torch.manual_seed(2)  # of the initial state
        return function(clip, 1, **arguments)

    clip = frames(2, 3, 1, 16, 16)
    check_step(partial(step, model), partial(step, compiled), list(model.parameters()), clip)
    assert counter.frame_count == 1


# ---- Dynamic shapes

SIZES = [(2, 6, 5), (3, 8, 7), (5, 4, 10)]  # B, H, W


def sized_case(op: str, batch: int, height: int, width: int) -> Case:
    if op in POINTWISE:
        return dense_case(op, (batch, 4, height, width))
    make = {"motion_warp": motion_inputs, "motion_gates": gates_inputs}.get(op, warp_inputs)
    return Case(op, "sized", partial(make, batch=batch, height=height, width=width))


@feature("dynamic")
@on_slowly_on_reference(ALL)
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_ops_take_any_size(op: str, dynamic: bool | None, on: UnderTest):
    """In one graph, or where the second size shows what changes, in two. (The first is traced twice where an op takes a
    number: torch tries to leave it open.)"""
    if op == "motion_warp" and on not in CUDA_KERNELS:
        pytest.skip("two ops here, which are tested by themselves")
    counter = CompileCounterWithBackend("aot_eager")

    def step(inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        return sized_case(op, 1, 1, 1).run(inputs)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for size in SIZES:
        inputs = sized_case(op, *size).inputs(torch.float32, on.device)
        with on.chosen():
            check_step(step, compiled, [t for t in inputs.values() if t is not None], inputs)
        counts.append(counter.frame_count)
    assert [count - counts[0] for count in counts] == ([0, 0, 0] if dynamic else [0, 1, 1])


@feature("dynamic")
@on_slowly_on_reference(ALL)
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
def test_motion_gru_takes_any_size(dynamic: bool | None, on: UnderTest):
    layer, counter = MotionGRU(8).to(on.device), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for batch, height, width in [(3, 12, 10), (2, 8, 6), (5, 4, 14)]:  # first, no two sizes are equal
        hidden = torch.randn(batch, 8, height, width, device=on.device, requires_grad=True)
        with on.chosen():
            check_step(layer, compiled, [hidden, *layer.parameters()], hidden)
        counts.append(counter.frame_count)
    assert [count - counts[0] for count in counts] == ([0, 0, 0] if dynamic else [0, 1, 1])


@NEEDS_CPU
@feature("dynamic", on=["cpu"])
def test_large_maps_need_no_graph_of_their_own():
    """The layout that a GPU likes for them is no question on a CPU."""
    layer, counter = MotionGRU(4), CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    with motionrnn_ext.backend("cpu"), torch.no_grad():
        graphs = []
        for batch, size in (
            (2, 8),
            (8, 128),
        ):  # 2^15 pixels at half size; from B = 16 on torch's convolutions differ
            hidden = torch.randn(batch, 4, size, size + 2)
            assert_close(compiled(hidden)[0], layer(hidden)[0], SAME)
            graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


@feature("dynamic")
@slow
@on(KERNELS)
def test_motion_rnn_takes_any_size(on: UnderTest):
    """A training step; T stays."""
    model, counter = model_of("convlstm", on.device), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    counts = []
    for batch, height, width in [(2, 16, 12), (3, 8, 20), (5, 12, 8)]:
        clip = frames(batch, 2, 1, height, width, device=on.device)
        with on.chosen():
            check_step(lambda x: model(x, 1), lambda x: compiled(x, 1), list(model.parameters()), clip)
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2]


# ---- Modes


@NEEDS_CPU
@feature("compile", on=["cpu"])
@slow
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_on_a_cpu(mode: str):
    layer = MotionGRU(8)
    hidden = torch.randn(2, 8, 8, 12, requires_grad=True)
    with motionrnn_ext.backend("cpu"):
        compiled = torch.compile(layer, fullgraph=True, mode=mode)
        check_step(layer, compiled, [hidden, *layer.parameters()], hidden, tolerance=BY_INDUCTOR)


@feature("cuda_graphs")
@on([t for t in KERNELS if t.device == "cuda"])
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"])
def test_modes_on_a_gpu(mode: str, on: UnderTest):
    """Several calls: the first warms up, the second records CUDA graphs, later ones replay them."""
    layer = MotionGRU(16).to(on.device)
    with on.chosen():
        compiled = torch.compile(layer, fullgraph=True, mode=mode)
        for _ in range(4):
            hidden = torch.randn(2, 16, 16, 12, device=on.device, requires_grad=True)
            torch.compiler.cudagraph_mark_step_begin()
            check_step(layer, compiled, [hidden, *layer.parameters()], hidden, tolerance=BY_INDUCTOR)
