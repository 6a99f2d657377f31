"""Autocast: features in the dtype of the context, motion state and gradients of parameters in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from case import Case, generator
from cases import ALL_OPS, OPS, small_case
from checking import exactly, gradients
from comparing import TOLERANCE, assert_close
from features import feature
from half_precision import HALF, STATE_OUTPUTS, flat, small
from torch import Tensor, nn
from under_test import ALL, KERNELS, REFERENCE, UnderTest, on
from warp_cases import MOTION_CASES, WARP_CASES

from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN
from motionrnn_ext.layers.cells import CELLS

MODELS = [t for t in ALL if not t.is_slow]  # the interpreter takes a minute for a rollout
# Gradients by a parameter, in multiples of an op's tolerance. Rounded, an offset may lie on the other side of an
# integer, where the derivative of bilinear sampling jumps: measured up to 2.9 for a layer, 3.8 for a model in 4 steps.
GRADIENTS = 6
LOSS_SCALE = 2.0**14  # of a mean: without it float16 loses gradients that are not yet scaled


# ---- Ops

_NAMED = [c for c in (*WARP_CASES, *MOTION_CASES) if c.name in ("c16", "c16_channels_last", "exact")]
CASES = [*map(small_case, ALL_OPS), *_NAMED]


def rounded(case: Case, on: UnderTest, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """The case's inputs in float32, those that autocast casts with values of `dtype`."""
    inputs = case.inputs(dtype, on.device, grad=False)
    return {n: t if t is None else t.float().requires_grad_() for n, t in inputs.items()}


@feature("autocast")
@on(ALL)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_op(on: UnderTest, case: Case, dtype: torch.dtype):
    inputs = rounded(case, on, dtype)
    exact = exactly(inputs)
    with REFERENCE.chosen():
        shapes = [o.shape for o in case.run(exact)]
        cotangents = [torch.randn(s, generator=generator(1)).to(dtype).double() for s in shapes]
        expected, expected_gradients = gradients(case, exact, cotangents)
    with on.chosen(), torch.autocast(on.device, dtype):
        outputs = case.run(inputs)
        inside = torch.autograd.grad(outputs, wanted(inputs), like(outputs, cotangents), retain_graph=True)
    found = torch.autograd.grad(outputs, wanted(inputs), like(outputs, cotangents))
    for i, (a, e) in enumerate(zip(outputs, expected)):
        assert a.dtype == (torch.float32 if i in STATE_OUTPUTS.get(case.op, ()) else dtype)
        assert_close(a, e, TOLERANCE[dtype], f"output {i}")
    for a, b, (name, e) in zip(found, inside, expected_gradients.items()):
        assert a.dtype == b.dtype == torch.float32
        assert_close(a, e, TOLERANCE[dtype], f"gradient of {name}")
        # PyTorch's matrix products in the reference's backward obey autocast, too.
        assert_close(b, e, TOLERANCE[dtype]) if on is REFERENCE else assert_close(b, a, 1e-6)


def wanted(inputs: dict[str, Tensor | None]) -> list[Tensor]:
    return [t for t in inputs.values() if t is not None]


def like(outputs: tuple[Tensor, ...], cotangents: list[Tensor]) -> list[Tensor]:
    return [c.to(o) for c, o in zip(cotangents, outputs)]


@feature("autocast")
@on(ALL)
@pytest.mark.parametrize("op", ALL_OPS)
def test_an_op_is_that_of_half_inputs(op: str, on: UnderTest):
    """The arithmetic is float32, to the bit; half and float32 may be mixed, as layers and users mix them."""
    case = small_case(op)
    inputs = rounded(case, on, torch.bfloat16)
    features = [n for n in inputs if n not in ("offset", "trend", "memory")]
    half = {n: t.bfloat16() if n in features else t for n, t in inputs.items()}
    mixed = {n: half[n] if i % 2 else t for i, (n, t) in enumerate(inputs.items())}
    with on.chosen():
        expected = case.run(half)
        with torch.autocast(on.device, torch.bfloat16):
            for found in (case.run(inputs), case.run(mixed)):
                assert all(f.dtype == e.dtype and f.equal(e) for f, e in zip(found, expected, strict=True))


@feature("autocast")
@on([t for t in ALL if torch.float64 in t.dtypes])
@pytest.mark.parametrize("op", OPS)
def test_float64_is_left_as_it_is(op: str, on: UnderTest):
    case = small_case(op)
    inputs = case.inputs(torch.float64)
    with on.chosen():
        expected = case.run(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(a.dtype == torch.float64 and a.equal(e) for a, e in zip(case.run(inputs), expected))


# ---- Layers and models


def compare(on: UnderTest, module: nn.Module, dtype: torch.dtype, *inputs: Tensor) -> list[Tensor]:
    """Outputs of `module` under autocast; they and the gradients by its parameters against float64."""
    exact = copy.deepcopy(module).double().cpu()
    with REFERENCE.chosen():
        expected = flat(exact(*[t.double() for t in inputs]))
        mean(expected).backward()
    module, inputs = module.to(on.device), tuple(t.to(on.device) for t in inputs)
    with on.chosen(), torch.autocast(on.device, dtype):
        outputs = flat(module(*inputs))
    (mean(outputs) * LOSS_SCALE).backward()
    for i, (a, e) in enumerate(zip(outputs, expected)):
        assert_close(a, e, TOLERANCE[dtype], f"output {i}")
    for (name, p), e in zip(module.named_parameters(), exact.parameters()):
        assert (p.grad is None) == (e.grad is None), name
        if p.grad is not None and e.grad is not None:
            assert p.grad.dtype == torch.float32
            assert_close(p.grad / LOSS_SCALE, e.grad, GRADIENTS * TOLERANCE[dtype], f"gradient of {name}")
    return outputs


def mean(outputs: list[Tensor]) -> Tensor:
    wide = [o if o.dtype == torch.float64 else o.float() for o in outputs]
    return sum((o * o).mean() for o in wide)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


@feature("autocast")
@on(ALL)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_motion_gru_cell(on: UnderTest, dtype: torch.dtype):
    torch.manual_seed(0)
    cell = MotionGRUCell(8, zero_init=False)
    x, offset, trend = drawn(2, 8, 6, 5), drawn(2, 18, 6, 5, seed=2), drawn(2, 18, 6, 5, seed=3)
    out, *motion = compare(on, cell, dtype, x, offset, trend)
    assert out.dtype == dtype and all(t.dtype == torch.float32 for t in motion)


@feature("autocast")
@on(ALL)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("ablation", [{}, {"trend": False}, {"transient": False}], ids=str)
def test_motion_gru(on: UnderTest, dtype: torch.dtype, ablation: dict[str, bool]):
    torch.manual_seed(0)
    x, *motion = compare(on, MotionGRU(16, **ablation), dtype, drawn(2, 16, 8, 6))
    assert x.dtype == dtype and all(t.dtype == torch.float32 for t in motion)


class Rollout(nn.Module):
    """Predictions and motion of 5 frames, as a flat tuple of tensors."""

    def __init__(self, model: MotionRNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        predictions, motion = self.model(frames, 3, return_motion=True)
        return predictions, *flat(motion)


@feature("autocast")
@on(MODELS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("variant", ["paper", pytest.param("official", marks=pytest.mark.slow)])
@pytest.mark.parametrize("predictor", CELLS)
def test_motion_rnn(on: UnderTest, predictor: str, variant: str, dtype: torch.dtype):
    frames = torch.rand(2, 5, 1, 16, 12, generator=generator())
    predictions, *motion = compare(on, Rollout(small(predictor, variant)), dtype, frames)
    assert predictions.dtype == dtype and all(t.dtype == torch.float32 for t in motion)


@feature("autocast")
@on(MODELS)
@pytest.mark.parametrize("predictor", CELLS)
def test_memories_stay_in_float32(on: UnderTest, predictor: str):
    """A rollout adds to its memories at every step; hidden states are what a half layer gave."""
    model = small(predictor).to(on.device)
    frame, state = torch.rand(2, 1, 16, 12, device=on.device), None
    with on.chosen(), torch.autocast(on.device, torch.bfloat16):
        for _ in range(2):
            frame, state = model.step(frame, state)
    for layer in state.layers:
        assert layer.hidden.dtype == torch.bfloat16 and layer.cell.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in flat(state.motion))
    travelling = getattr(state.memory, "memory", state.memory)
    assert travelling is None or travelling.dtype == torch.float32


@feature("autocast")
@on(MODELS)
def test_disabled_inside_of_enabled_is_float32_to_the_bit(on: UnderTest):
    model, frames = small("predrnn").to(on.device), torch.rand(2, 4, 1, 16, 12, device=on.device)
    with on.chosen():
        plain = model(frames, 2)
        expected = torch.autograd.grad(plain.sum(), model.parameters())
        with torch.autocast(on.device, torch.bfloat16):
            assert model(frames, 2).dtype == torch.bfloat16
            with torch.autocast(on.device, enabled=False):
                inner = model(frames, 2)
    assert inner.equal(plain)
    found = torch.autograd.grad(inner.sum(), model.parameters())
    for a, e in zip(found, expected):  # CPU gradients are the same in every run; atomics' order is not
        assert_close(a, e, 1e-5)


@on(ALL)
@pytest.mark.parametrize("op", [op for op in OPS if op != "motion_reset"])  # which has one feature
def test_disabled_inside_of_enabled_mixes_no_dtypes(op: str, on: UnderTest):
    case = small_case(op)
    inputs = case.inputs(torch.float32, on.device, grad=False)
    last = [n for n in inputs if n not in ("offset", "trend", "memory")][-1]
    with on.chosen(), torch.autocast(on.device, torch.bfloat16):
        case.run({**inputs, last: inputs[last].bfloat16()})
        with torch.autocast(on.device, enabled=False), pytest.raises(TypeError, match=f"^{op}: .*dtype"):
            case.run({**inputs, last: inputs[last].bfloat16()})


@feature("autocast")
@on(ALL)
def test_a_compiled_op(on: UnderTest):
    torch._dynamo.reset()
    case = small_case("offset_warp")
    inputs = case.inputs(torch.float32, on.device)
    with on.chosen(), torch.autocast(on.device, torch.bfloat16):
        (expected,) = case.run(inputs)
        (compiled,) = torch.compile(case.run, fullgraph=True, backend="aot_eager")(inputs)
    assert compiled.dtype == torch.bfloat16 and compiled.equal(expected)
    for out in (expected, compiled):
        for name, g in zip(inputs, torch.autograd.grad(out.float().sum(), list(inputs.values()))):
            assert g.dtype == torch.float32 and g.shape == inputs[name].shape


@feature("autocast")
@on([t for t in KERNELS if not t.is_slow])
def test_a_compiled_layer(on: UnderTest):
    """The context is outside of the graph, as Lightning has it, and inside."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    gru, hidden = MotionGRU(8).to(on.device), torch.randn(2, 8, 8, 6, device=on.device)

    def outside(hidden: Tensor) -> list[Tensor]:
        return flat(gru(hidden))

    def inside(hidden: Tensor) -> list[Tensor]:
        with torch.autocast(on.device, torch.bfloat16):
            return flat(gru(hidden))

    with on.chosen():
        expected = inside(hidden)
        expected_gradients = torch.autograd.grad(mean(expected), gru.parameters())
        with torch.autocast(on.device, torch.bfloat16):
            compiled = [torch.compile(outside, fullgraph=True, backend="aot_eager")(hidden)]
        compiled.append(torch.compile(inside, fullgraph=True, backend="aot_eager")(hidden))
        for outputs in compiled:
            for a, e in zip(outputs, expected):
                assert a.dtype == e.dtype and assert_close(a, e, 1e-5) is None
            for a, e in zip(torch.autograd.grad(mean(outputs), gru.parameters()), expected_gradients):
                # Eagerly, what several uses of a weight contribute is added in bfloat16.
                assert a.dtype == e.dtype and assert_close(a, e, TOLERANCE[torch.bfloat16]) is None


# ---- Gradient scaling


@feature("autocast")
@on(MODELS)
def test_gradient_scaling(on: UnderTest):
    """float16 trains as float32 does; a step whose gradients overflow is left out, and the scale falls."""
    frames = torch.rand(4, 5, 1, 16, 12, generator=generator()).to(on.device)

    def train(enabled: bool) -> tuple[list[float], float]:
        model = small("predrnn").to(on.device)
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        scaler = torch.amp.GradScaler(on.device, init_scale=2.0**40, growth_interval=1000, enabled=enabled)
        losses, skipped = [], 0
        while len(losses) < 8:
            with torch.autocast(on.device, torch.float16, enabled=enabled):
                loss = (model(frames, 3).float() - frames[:, 1:]).square().mean()
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            before = [p.detach().clone() for p in model.parameters()]
            scale = scaler.get_scale()
            scaler.step(optimiser)
            scaler.update()
            if enabled and scaler.get_scale() < scale:
                assert all(p.equal(b) for p, b in zip(model.parameters(), before))
                skipped += 1
                assert skipped < 40
            else:
                losses.append(loss.item())
        return losses, skipped

    with on.chosen():
        (exact, _), (losses, skipped) = train(enabled=False), train(enabled=True)
    assert skipped >= 5  # from 2^40
    assert exact[-1] < 0.9 * exact[0]
    assert losses == pytest.approx(exact, rel=1e-2)  # measured 4e-4
