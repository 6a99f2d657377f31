"""motion_gates on the CPU, where it is one kernel: sizes and layouts, what it keeps, what it makes, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import Calls
from case import Case, channels_last, generator
from checking import check, exactly
from comparing import TOLERANCE, assert_close
from gates_cases import gates_inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from under_test import ALL, CPU, DTYPES, NOT_TESTED, REFERENCE

import motionrnn_ext
from motionrnn_ext import MotionGRU, MotionGRUCell, ops
from motionrnn_ext.backends.registration.wanted import Wanted
from motionrnn_ext.benchmarks.gpu.motion_gru_sides import side
from motionrnn_ext.benchmarks.measuring import counting
from motionrnn_ext.layers.rollout import rollout

pytestmark = pytest.mark.skipif(
    CPU not in ALL, reason=f"the cpu backend is not tested: {NOT_TESTED.get('cpu')}"
)
# The gradients that each bit asks for: x; offset and trend; weights and bias.
WANTED = {Wanted.X: (0,), Wanted.MOTION: (1, 2), Wanted.WEIGHTS: (3, 4, 5, 6)}


@st.composite
def drawn(draw: Any) -> tuple[Case, torch.dtype]:
    size, taps = draw(st.sampled_from([1, 3, 3, 5])), draw(st.sampled_from([1, 9, 25]))
    options: dict[str, Any] = {
        "batch": draw(st.integers(0, 5)),
        "channels": draw(st.sampled_from([1, 2, 3, 8, 9, 16, 17])),
        "motion": 2 * taps,
        "masks": draw(st.sampled_from([taps, 0, 3])),
        "height": draw(st.integers(1, 20)),
        "width": draw(st.integers(1, 35)),
        "size": size,
        "layout": draw(st.sampled_from([lambda t: t, channels_last])),
        "layout_of_all": draw(st.sampled_from([lambda t: t, channels_last])),
    }
    case = Case(
        "motion_gates", "drawn", lambda g: gates_inputs(g, **options), {"alpha": draw(st.floats(0, 1))}
    )
    return case, draw(st.sampled_from(DTYPES))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn())
def test_any_sizes_layouts_and_dtypes(what: tuple[Case, torch.dtype]):
    case, dtype = what
    check(CPU, case, dtype)


def made(dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    return list(Case("motion_gates", "", lambda g: gates_inputs(g, **options)).inputs(dtype).values())


def backward_arguments(inputs: list[Tensor]) -> tuple[Any, ...]:
    with torch.no_grad():
        outputs = CPU.op("motion_gates")(*inputs, 0.5, 1e4)
    grads = [torch.randn(o.shape, generator=generator(i)).to(o) for i, o in enumerate(outputs[:3])]
    x, offset, _, *weights = inputs
    return (*grads, x, offset, *weights, *outputs[3:], outputs[0], 0.5, 1e4)


def test_it_keeps_three_logits_and_the_new_offset_beside_its_inputs():
    inputs = made(channels=16, height=16, width=16)
    outputs: list[Tensor] = []
    with CPU.chosen():
        kept = counting.kept_storages(lambda: outputs.extend(ops.motion_gates(*inputs)), inputs)
    assert len(outputs) == 3 and kept == [2 * 18 * 16 * 16 * 4] * 4


def test_it_makes_the_gradients_that_are_wanted():
    arguments = backward_arguments(made(torch.float64))
    backward = CPU.op("motion_gates_backward")
    every = backward(*arguments, 11)
    for wanted in (0, 1, 2, 3, 8, 9, 10):
        some = backward(*arguments, wanted)
        for bit, places in WANTED.items():
            for i in places:
                if wanted & bit:
                    assert_close(some[i], every[i], 1e-13, f"gradient {i}, wanted {wanted}")
                else:
                    assert some[i].numel() == 0, (i, wanted)


@pytest.mark.parametrize(
    "sizes", [{"batch": 3}, {"batch": 1, "height": 40, "width": 33}], ids=["images", "bands"]
)
def test_it_is_bitwise_repeatable_and_threads_change_little(sizes: dict[str, int]):
    arguments = backward_arguments(made(channels=16, **sizes))
    backward, before = CPU.op("motion_gates_backward"), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found = backward(*arguments, 11)
            assert all(a.equal(b) for a, b in zip(found, backward(*arguments, 11)))
            if threads == 1:
                first = found
            for a, b in zip(found, first):
                assert_close(a, b, 1e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
def test_it_keeps_the_memory_format(layout: torch.memory_format):
    inputs = [t.detach().contiguous(memory_format=layout) if t.dim() == 4 else t.detach() for t in made()]
    for t in inputs:
        t.requires_grad_()
    with CPU.chosen():
        outputs = ops.motion_gates(*inputs)
        found = torch.autograd.grad(sum(o.sum() for o in outputs), inputs[:3])
    assert all(t.is_contiguous(memory_format=layout) for t in (*outputs, *found))


def test_one_pixel_that_is_nan_stays_in_reach():
    x, offset, *rest = made(height=12, width=13)
    with torch.no_grad():
        x[:, :, 5, 6] = float("nan")
        with CPU.chosen():
            outputs = ops.motion_gates(x, offset, *rest)
    for o, radius in zip(
        outputs, (2, 0, 1)
    ):  # z reads s(r).F beside pixels whose r read it; D nothing; the mask x
        far = torch.ones(12, 13, dtype=torch.bool)
        far[5 - radius : 6 + radius, 6 - radius : 7 + radius] = False
        assert o[:, :, far].isfinite().all()
    assert outputs[2][:, :, 4:7, 5:8].isnan().all()


def test_unused_outputs_and_inputs_without_gradients():
    inputs = made(torch.float64)
    for i in (0, 3, 5):
        inputs[i] = inputs[i].detach()
    exact = list(exactly(dict(enumerate(inputs))).values())
    wanted = [1, 2, 4, 6]
    for used in range(3):
        options = {"allow_unused": True, "materialize_grads": True}
        with REFERENCE.chosen():
            out = ops.motion_gates(*exact)[used]
            expected = torch.autograd.grad(out.sum(), [exact[i] for i in wanted], **options)
        with CPU.chosen():
            found = torch.autograd.grad(
                ops.motion_gates(*inputs)[used].sum(), [inputs[i] for i in wanted], **options
            )
        for f, e in zip(found, expected):
            assert_close(f, e, 1e-12)


def test_its_logits_have_no_gradient():
    logits = CPU.op("motion_gates")(*made(), 0.5, 1e4)[3]
    with pytest.raises(RuntimeError, match="its logits have no gradient"):
        logits.sum().backward()


def test_the_cell_runs_two_ops():
    cell = MotionGRUCell(16)
    x, motion = torch.randn(2, 16, 8, 8), torch.randn(2, 18, 8, 8)
    packed = cell.pack()
    with motionrnn_ext.backend("cpu"), torch.no_grad(), Calls() as calls:
        cell(x, motion, motion, packed)
    assert calls.names == ["motion_gates", "offset_warp"]


def test_gates_by_convolutions_are_the_same():
    """The other side of the rule, for comparison: within a rollout as well, where no node of a step is made."""
    torch.manual_seed(0)
    gru, hidden = MotionGRU(16), torch.randn(2, 16, 8, 8)
    with motionrnn_ext.backend("cpu"), torch.no_grad():
        with rollout(gru, 2, 2**16), Calls("motionrnn_ext") as by_kernels:
            expected, state = gru(hidden, None, gru.pack_ahead())
        with rollout(gru, 2, 2**16), side("convolutions"), Calls("motionrnn_ext") as calls:
            found, other = gru(hidden, None, gru.pack_ahead())
    assert by_kernels.names == ["motion_step_pack", "motion_step", "gated_blend"]
    assert calls.names == ["motion_reset", "motion_update", "offset_warp", "gated_blend"]
    for f, e in zip((found, *other), (expected, *state)):
        assert_close(f, e, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cell_is_what_it_is_on_the_reference(dtype: torch.dtype):
    torch.manual_seed(0)
    cell = MotionGRUCell(8, zero_init=False).to(dtype)
    exact = MotionGRUCell(8).double()
    exact.load_state_dict(cell.state_dict())
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x, offset, trend = torch.randn(2, 8, 6, 7).to(dtype), *torch.randn(2, 2, 18, 6, 7).to(state)
    with CPU.chosen():
        found = cell(x, offset, trend)
    with REFERENCE.chosen():
        expected = exact(x.double(), offset.double(), trend.double())
    for f, e in zip(found, expected):
        assert_close(f, e, 3 * TOLERANCE[dtype])  # the warp by an offset that was rounded
