"""Numbers of the ops and layers that are given as tensors: their gradients, and what is no number."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from case import MAX_OFFSET, generator
from cases import POINTWISE, small_case
from comparing import TOLERANCE, assert_close
from compiling import nothing_compiled  # noqa: F401
from torch import Tensor, nn
from torch.nn.utils import parametrize
from under_test import AUTO, CPU, KERNELS, REFERENCE, UnderTest, on

from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN, backend, ops
from motionrnn_ext.models.variants import variant_options

OF = {
    "motion_update": "alpha",
    "motion_warp": "alpha",
    "motion_gates": "alpha",
    "memory_update": "forget_bias",
}


def learned(value: float = 0.3, *shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, value, dtype=dtype))


def run(op: str, inputs: dict[str, Any], number: Any) -> tuple[Tensor, ...]:
    case = small_case(op)
    out = getattr(ops, op)(**inputs, **case.parameters, **{OF[op]: number})
    return out if isinstance(out, tuple) else (out,)


# ---- Gradients of the ops' numbers


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("op", OF)
@pytest.mark.parametrize("test", [AUTO, REFERENCE], ids=str)
def test_gradcheck_by_the_number(test: UnderTest, op: str, shape: tuple[int, ...]):
    inputs = small_case(op).inputs(torch.float64)

    def function(number: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return run(op, dict(zip(inputs, tensors)), number)

    if (
        op == "motion_warp"
    ):  # away from the kinks of bilinear sampling, and of no other bound than the far one
        inputs = {name: t.detach() for name, t in inputs.items()}
    with test.chosen():
        assert torch.autograd.gradcheck(function, (learned(0.3, *shape), *inputs.values()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("op", OF)
def test_the_gradient_in_every_dtype(op: str, dtype: torch.dtype):
    """The parameter has the features' dtype, as under `.half()`; its value, 0.25, is exact in all of them."""
    inputs = small_case(op).inputs(dtype)
    number = learned(0.25, dtype=dtype)
    sum(o.double().square().sum() for o in run(op, inputs, number)).backward()
    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = learned(0.25)
    sum(o.square().sum() for o in run(op, exact, expected)).backward()
    assert number.grad.dtype == dtype and number.grad.abs() > 0
    assert_close(number.grad, expected.grad, TOLERANCE[dtype])
    for name, t in inputs.items():
        assert_close(t.grad, exact[name].grad, TOLERANCE[dtype], name)


@pytest.mark.parametrize("op", ["motion_update", "memory_update"])
def test_autocast_transforms_and_forward_mode(op: str):
    inputs = {name: t.detach() for name, t in small_case(op).inputs(torch.float64).items()}
    number = learned()

    def total(number: Tensor) -> Tensor:
        return sum(o.square().sum() for o in run(op, inputs, number))

    (expected,) = torch.autograd.grad(total(number), number)
    fixed = number.detach()
    assert_close(torch.func.grad(total)(fixed), expected, 1e-12)
    assert_close(torch.func.jvp(total, (fixed,), (torch.ones_like(fixed),))[1], expected, 1e-12)
    values = torch.tensor([0.3, 0.6], dtype=torch.float64)
    assert_close(torch.vmap(total)(values), torch.stack([total(v) for v in values]), 1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = {name: t.float() for name, t in inputs.items()}
        first = run(op, halves, learned(dtype=torch.float32))[0]
    assert first.dtype == torch.float32 and first.requires_grad


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("wants_gradient", [True, False])
@pytest.mark.parametrize("op", OF)
def test_a_compiled_step_takes_a_tensor_without_a_graph_break(op: str, wants_gradient: bool):
    inputs = small_case(op).inputs(torch.float32)
    number = torch.tensor(0.3, requires_grad=wants_gradient)
    compiled = torch.compile(lambda n: run(op, inputs, n), fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(number), run(op, inputs, number)):
        assert_close(found, expected, 1e-6)
    if wants_gradient:
        (found,), (expected,) = (
            torch.autograd.grad(sum(o.sum() for o in f(number)), number)
            for f in (compiled, lambda n: run(op, inputs, n))
        )
        assert_close(found, expected, 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_traced_op_takes_other_numbers_than_that_of_its_trace():
    inputs = {name: t.detach() for name, t in small_case("motion_update").inputs(torch.float32).items()}
    traced = torch.jit.trace(lambda number: run("motion_update", inputs, number)[1], torch.tensor(0.1))
    assert_close(traced(torch.tensor(0.9)), run("motion_update", inputs, 0.9)[1], 1e-6)


@on(KERNELS)
@pytest.mark.parametrize("op", OF)
def test_a_kernel_by_name_says_what_to_do(on: UnderTest, op: str):
    inputs = small_case(op).inputs(torch.float32, on.device)
    number = torch.tensor(0.5, device=on.device, requires_grad=True)
    with on.chosen(), pytest.raises(TypeError, match="choose 'auto' or 'reference'"):
        run(op, inputs, number)


@on(KERNELS)
@pytest.mark.parametrize("op", OF)
@pytest.mark.parametrize("number", [torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5), np.float64(0.5)])
def test_what_asks_for_no_gradient_is_its_number(on: UnderTest, op: str, number: Any):
    inputs = {name: t.detach() for name, t in small_case(op).inputs(torch.float32, on.device).items()}
    with on.chosen():
        for found, expected in zip(run(op, inputs, number), run(op, inputs, 0.5)):
            assert found.equal(expected)


def test_whole_numbers_are_numbers():
    inputs = small_case("motion_update").inputs(torch.float32)
    for one in (1, torch.tensor(1), np.int64(1)):
        assert run("motion_update", inputs, one)[0].equal(run("motion_update", inputs, 1.0)[0])


# ---- What is no number

NOT_NUMBERS: dict[str, tuple[Any, type[Exception], str]] = {
    "string": ("0.5", TypeError, "is '0.5'; it should be a number"),
    "bool": (True, TypeError, "is True; it should be a number"),
    "none": (None, TypeError, "is None; it should be a number"),
    "list": ([0.5], TypeError, r"is \[0.5\]; it should be a number"),
    "complex": (0.5j, TypeError, "is 0.5j; it should be a number"),
    "nan": (float("nan"), ValueError, "is nan; it should be a number"),
    "nan tensor": (torch.tensor(float("nan")), ValueError, "is nan; it should be a number"),
    "two": (torch.ones(2), TypeError, r"shape \(2,\) and dtype torch.float32; it should be one real"),
    "nothing": (torch.ones(0), TypeError, r"shape \(0,\) and dtype torch.float32; it should be one real"),
    "complex tensor": (torch.tensor(0.5j), TypeError, "dtype torch.complex64; it should be one real"),
    "bool tensor": (torch.tensor(True), TypeError, "dtype torch.bool; it should be one real"),
}


@pytest.mark.parametrize("name", NOT_NUMBERS)
@pytest.mark.parametrize("op", OF)
def test_what_is_no_number_is_named(op: str, name: str):
    value, error, message = NOT_NUMBERS[name]
    with pytest.raises(error, match=f"{op}: {OF[op]}.*{message}"):
        run(op, small_case(op).inputs(torch.float32), value)


@pytest.mark.parametrize("name", NOT_NUMBERS)
@pytest.mark.parametrize(
    "make",
    [lambda a: MotionGRUCell(4, alpha=a), lambda a: MotionGRU(8, alpha=a), lambda a: rnn(alpha=a),
     lambda a: variant_options("paper", 5, alpha=a)],
    ids=["MotionGRUCell", "MotionGRU", "MotionRNN", "variant_options"],
)  # fmt: skip
def test_layers_name_what_is_no_number(make: Callable[[Any], Any], name: str):
    value, error, message = NOT_NUMBERS[name]
    with pytest.raises(error, match=f"alpha.*{message}"):
        make(value)


@pytest.mark.parametrize("alpha", [-0.1, 1.001, 2, float("inf"), nn.Parameter(torch.tensor(1.5))], ids=str)
def test_alpha_is_within_0_and_1(alpha: Any):
    with pytest.raises(ValueError, match=r"alpha is .*; it should be in \[0, 1\]"):
        MotionGRUCell(4, alpha=alpha)
    if not isinstance(alpha, Tensor):
        with pytest.raises(ValueError, match=r"motion_update: alpha is .*; it should be in \[0, 1\]"):
            run("motion_update", small_case("motion_update").inputs(torch.float32), alpha)


NO_BOUNDS = [
    0,
    -1,
    1e39,
    10**400,
    -float("inf"),
    float("nan"),
    "1e4",
    True,
    [3.0],
    torch.tensor(3.0),
    learned(3.0),
]


@pytest.mark.parametrize("value", NO_BOUNDS, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("op", [op for op in OF if op != "memory_update"])
def test_what_is_no_bound_is_named(op: str, value: Any):
    inputs = small_case(op).inputs(torch.float32)
    for call in (
        lambda: getattr(ops, op)(**inputs, max_offset=value),
        lambda: MotionGRUCell(4, max_offset=value),
        lambda: rnn(max_offset=value),
    ):
        with pytest.raises((TypeError, ValueError), match="max_offset is .*; it should be"):
            call()


def test_numbers_of_numpy_and_infinity_are_bounds():
    inputs = small_case("motion_update").inputs(torch.float32)
    bounded = [ops.motion_update(**inputs, max_offset=b)[0] for b in (MAX_OFFSET, np.float32(MAX_OFFSET))]
    assert bounded[0].equal(bounded[1])
    free = [ops.motion_update(**inputs, max_offset=b)[0] for b in (None, float("inf"))]
    assert free[0].equal(free[1]) and not free[0].equal(bounded[0])


def test_a_number_on_another_device_is_named():
    inputs = small_case("motion_update").inputs(torch.float32)
    with pytest.raises(ValueError, match="alpha is on meta; it should be on cpu"):
        run("motion_update", inputs, torch.tensor(0.5, device="meta"))


# ---- Layers and models


def rnn(**options: Any) -> MotionRNN:
    return MotionRNN("convlstm", 1, (8, 8, 8), 2, filter_size=3, **options)


def x(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator())


def slope(function: Callable[[float], float], at: float, step: float = 1e-4) -> float:
    return (function(at + step) - function(at - step)) / (2 * step)


@pytest.mark.parametrize("options", [{}, {"gate_kernel_size": 3}, {"transient": False}], ids=str)
def test_a_layer_learns_alpha(options: dict[str, Any]):
    hidden = x(1, 16, 8, 8).double()

    def layer(alpha: Any) -> MotionGRU:
        torch.manual_seed(0)
        return MotionGRU(16, alpha=alpha, **options).double()

    def total(layer: MotionGRU) -> Tensor:
        state = None
        for _ in range(3):
            _, state = layer(hidden, state)
        return state.offset.square().sum()

    made = layer(learned())
    assert "cell.alpha" in dict(made.named_parameters()) and "alpha=learned" in repr(made)
    total(made).backward()
    expected = slope(lambda a: total(layer(a)).item(), 0.3)
    assert abs(made.cell.alpha.grad.item() - expected) < 1e-6 * abs(expected) and expected != 0

    again = layer(learned(0.9))
    again.load_state_dict(made.state_dict())
    for other in (again, copy.deepcopy(made)):
        assert total(other).equal(total(made))
        assert other.cell.alpha is not made.cell.alpha
    assert made.half().cell.alpha.dtype == torch.float16


def test_a_learned_alpha_is_taken_without_a_warning():
    torch.set_warn_always(True)  # PyTorch gives this one once per process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            MotionGRU(16, alpha=learned())
    finally:
        torch.set_warn_always(False)


def test_a_model_has_one_alpha_and_learns_it():
    frames = x(1, 4, 1, 8, 8)

    def model(alpha: Any) -> MotionRNN:
        torch.manual_seed(0)
        return rnn(alpha=alpha).double()

    made = model(learned())
    assert sum(p is made.options.alpha for p in made.parameters()) == 1
    assert "tensor" not in repr(made) and "Parameter" not in repr(made)
    for checkpoint in (False, True):
        made.zero_grad()
        made(frames.double(), 2, checkpoint=checkpoint).square().sum().backward()
        expected = slope(lambda a: model(a)(frames.double(), 2).square().sum().item(), 0.3)
        assert abs(made.options.alpha.grad.item() - expected) < 1e-5 * abs(expected)
    twin = copy.deepcopy(made)
    assert twin.options.alpha is twin.interfaces[0].cell.alpha is twin.interfaces[1].cell.alpha
    assert twin.options.alpha is not made.options.alpha
    assert twin.predict(frames.double(), 2).equal(made.predict(frames.double(), 2))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_an_alpha_without_gradient_takes_the_kernels(is_frozen: bool):
    """It is frozen, or gradients are off, as in `MotionRNN.predict`."""
    alpha = learned(dtype=torch.float32).requires_grad_(not is_frozen)
    cell, plain = MotionGRUCell(4, alpha=alpha), MotionGRUCell(4, alpha=0.3)
    plain.load_state_dict({k: v for k, v in cell.state_dict().items() if k != "alpha"})
    features = x(1, 4, 6, 6)
    state = cell.initial_state(features)
    with torch.set_grad_enabled(is_frozen), backend(CPU.name) if CPU in KERNELS else backend("auto"):
        for found, expected in zip(cell(features, *state), plain(features, *state)):
            assert found.equal(expected)
    assert MotionGRUCell(4, alpha=torch.tensor(0.25)).alpha == 0.25


def test_a_frozen_alpha_keeps_what_it_learned():
    """Training may lead beyond [0, 1]; freezing is no reason to refuse it then."""
    cell = MotionGRUCell(4, alpha=learned(dtype=torch.float32))
    nn.init.constant_(cell.alpha, 1.25)
    features = x(1, 4, 6, 6)
    state = [torch.randn(1, 18, 6, 6, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    expected = cell(features, *state)
    for found, wanted in zip(cell.requires_grad_(False)(features, *state), expected):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


def test_a_learned_value_beyond_1_is_taken_without_gradient_as_well():
    """As by an average of weights in `functional_call`, or by a parametrisation under no_grad."""
    cell, hidden = MotionGRUCell(4, alpha=learned(dtype=torch.float32)), x(1, 4, 6, 6)
    nn.init.constant_(cell.alpha, 1.25)
    state = [torch.randn(1, 18, 6, 6, generator=generator()) for _ in range(2)]
    expected = [t.detach() for t in cell(hidden, *state)]
    averaged = {name: p.detach() for name, p in cell.named_parameters()}
    found = [torch.func.functional_call(cell, averaged, (hidden, *state))]
    nn.init.constant_(cell.alpha, 0.625)
    parametrize.register_parametrization(cell, "alpha", Doubled())
    with torch.no_grad():
        found.append(cell(hidden, *state))
        with backend("reference"):
            found.append(cell(hidden, *state))
    for outputs in found:
        for f, e in zip(outputs, expected):
            torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: MotionGRUCell(4, alpha=a, trend=False),
        lambda a: MotionGRU(8, alpha=a, trend=False),
        lambda a: rnn(alpha=a, trend=False),
        lambda a: rnn(alpha=a, motion_gru=False),
        lambda a: MotionRNN("convlstm", 1, (8,), 2, alpha=a),
    ],
)
def test_an_alpha_that_nothing_reads_is_refused(make: Callable[[Any], Any]):
    for alpha in (learned(), torch.tensor(0.5, requires_grad=True)):
        with pytest.raises(
            TypeError, match="alpha asks for a gradient; it should be a number, as .* leaves it out"
        ):
            make(alpha)
    make(learned().requires_grad_(False))
    make(torch.tensor(0.5))


def test_every_number_of_the_ops_is_tried_here():
    """A new number that an op takes needs its line in `OF`, unless it is a bound."""
    import inspect

    for op in [*POINTWISE, "motion_warp", "motion_gates", "offset_warp"]:
        numbers = [
            n for n, p in inspect.signature(getattr(ops, op)).parameters.items() if "float" in p.annotation
        ]
        assert numbers == ([OF[op]] if op in OF else []) + (
            ["max_offset"] if re.match("motion_(?!reset)", op) else []
        )
