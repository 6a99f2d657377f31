"""CUDA graphs. Without a GPU: a step asks the host for nothing, so that it can be captured. With one: captured, it
gives what it gives eagerly, and follows its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import fake_cuda
import pytest
import torch
from comparing import assert_close
from features import feature
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from under_test import ALL, CPU, UnderTest, on

from motionrnn_ext import MotionGRU, MotionRNN, graphed, graphed_step, warmup
from motionrnn_ext.graphs import rollout, stream
from motionrnn_ext.layers.cells import CELLS

TOLERANCE = 1e-5  # of float32: atomics add in any order
ON_GPU = [t for t in ALL if t.device == "cuda"]


def small(predictor: str = "predrnn", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN(predictor, 1, (8, 8), 2, filter_size=3, image_size=(16, 12), **options)


# ---- Without a GPU

ASKS_THE_HOST = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique2"}


class Capturable(TorchDispatchMode):
    """Every tensor is on one type of device, and no op needs a value of one on the host."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.ops = device, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._opname not in ASKS_THE_HOST, func
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves((args, kwargs, out)):
            assert not isinstance(t, Tensor) or t.device.type == self.device, (func, t.device)
        self.ops.add(func._opname)
        return out


@pytest.mark.parametrize(
    "wrong",
    [lambda x: float(x.sum()), lambda x: x.nonzero(), lambda x: x * torch.ones(()), lambda x: torch.ones(2)],
    ids=["item", "nonzero", "a number of the host", "a tensor of the host"],
)
def test_what_cannot_be_captured_is_found(wrong: Callable[[Tensor], Any]):
    with fake_cuda.fake_cuda("reference"):
        x = torch.zeros(2, device="cuda")
        # Some of it does not even reach the mode on a PyTorch without CUDA.
        with pytest.raises((AssertionError, RuntimeError)), Capturable("cuda"):
            wrong(x)


@pytest.mark.parametrize("name", ["reference", "cuda", "triton"])
@pytest.mark.parametrize(
    "predictor, options",
    [*((name, {}) for name in CELLS), ("predrnn", {"variant": "official"}), ("predrnn", {"trend": False})],
    ids=str,
)
def test_a_step_stays_on_the_gpu(predictor: str, options: dict[str, Any], name: str):
    model, frame = small(predictor, **options), torch.rand(2, 1, 16, 12)
    with fake_cuda.fake_cuda(name):
        model, frame, state = fake_cuda.moved(model), fake_cuda.like(frame), None
        with Capturable("cuda") as watch:
            for _ in range(2):
                frame, state = model.step(frame, state)
            model(torch.zeros(2, 3, 1, 16, 12, device="cuda"), 2)
    assert name == "reference" or {"memory_update", "highway_output", "gated_blend"} <= watch.ops


@pytest.mark.parametrize("name", ["reference", "cuda", "triton"])
@pytest.mark.parametrize("predictor", CELLS)
def test_what_graphed_records_stays_on_the_gpu(predictor: str, name: str):
    """Rollouts with a mask and a state, and steps whose state comes in tensors."""
    model = small(predictor, variant="official")
    with fake_cuda.fake_cuda(name):
        fake_cuda.moved(model)
        frames, mask = (torch.zeros(2, n, 1, 16, 12, device="cuda") for n in (4, 1))
        _, state = model.step(frames[:, 0])
        tensors = [t for t in pytree.tree_leaves(state) if isinstance(t, Tensor)]
        with Capturable("cuda") as watch:
            rollout.Rollout(model, 2, False, True, state)(frames, mask, *tensors)
            stream.Step(model, state)(frames[:, 0], *tensors)
    assert "convolution" in watch.ops


@pytest.mark.parametrize("predictor", CELLS)
def test_a_training_step_asks_for_no_values(predictor: str):
    """Backward too, on tensors that have none."""
    model, frames = small(predictor).to("meta"), torch.empty(2, 3, 1, 16, 12, device="meta")
    with Capturable("meta"):
        (model(frames, 2) - frames[:, 1:]).square().mean().backward()


# The cells whose step is one node join the memory and the output in an op of their own.
IN_ONE_NODE = {
    "predrnn": {"st_lstm_update_backward", "highway_output_backward"},
    "mim": {"st_lstm_update_backward", "conv_lstm_update_backward", "highway_output_backward"},
    "convlstm": {"conv_lstm_update_backward"},
    "conv_tt_lstm": {"conv_lstm_update_backward"},
}


@on([t for t in ALL if t is CPU])
@pytest.mark.parametrize("predictor", CELLS)
def test_a_training_step_of_kernels_asks_for_no_values(on: UnderTest, predictor: str):
    """The CPU's, whose way from Python into the kernels and back is that of the CUDA kernels."""
    with on.chosen(), FakeTensorMode(), Capturable("cpu") as watch:
        model, frames = small(predictor), torch.rand(2, 3, 1, 16, 12)
        (model(frames, 2) - frames[:, 1:]).square().mean().backward()
    of_cell = IN_ONE_NODE.get(predictor, {"memory_update_backward", "highway_output_backward"})
    assert {*of_cell, "gated_blend_backward"} <= watch.ops


# ---- On a GPU


class Rollout(nn.Module):
    def __init__(self, predictor: str = "predrnn") -> None:
        super().__init__()
        self.model = small(predictor)

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames, 2)


class Step(nn.Module):
    """One step, its state in flat tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small()
        self.spec = pytree.tree_structure(self.model.initial_state(2, 16, 12))

    def initial(self) -> list[Tensor]:
        """Each in memory of its own: initial_state's may share it, and a graph would copy two inputs into one."""
        return [t.clone() for t in pytree.tree_leaves(self.model.initial_state(2, 16, 12))]

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        out, after = self.model.step(frame, pytree.tree_unflatten(state, self.spec))
        return out, *pytree.tree_leaves(after)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = MotionGRU(8)

    def forward(self, hidden: Tensor, *motion: Tensor) -> tuple[Tensor, ...]:
        x, state = self.gru(hidden, motion)
        return x, *state


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, device="cuda")


def inputs(module: nn.Module) -> list[Tensor]:
    if isinstance(module, Rollout):
        return [drawn(2, 4, 1, 16, 12)]
    if isinstance(module, Layer):
        return [drawn(2, 8, 8, 6), drawn(2, 18, 4, 3), drawn(2, 18, 4, 3)]
    return [drawn(2, 1, 16, 12), *(t + 0.1 * torch.rand_like(t) for t in module.initial())]


def results(module: nn.Module, call: Callable[..., Any], arguments: list[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of the sum of their squares by arguments and parameters."""
    arguments = [t.detach().clone().requires_grad_() for t in arguments]
    outputs = pytree.tree_leaves(call(*arguments))
    wanted = [*arguments, *module.parameters()]
    gradients = torch.autograd.grad(sum(o.square().sum() for o in outputs), wanted, allow_unused=True)
    return [t.detach().clone() for t in (*outputs, *gradients) if t is not None]


@feature("cuda_graphs")
@on(ON_GPU)
@pytest.mark.parametrize("make", [Layer, Step, Rollout])
def test_make_graphed_callables(on: UnderTest, make: Callable[[], nn.Module]):
    eager = make().cuda()
    module, sample = copy.deepcopy(eager), [t.requires_grad_() for t in inputs(eager)]
    with on.chosen():
        warmup(module, *sample)
        graphed = torch.cuda.make_graphed_callables(module, tuple(sample), allow_unused_input=True)
        for arguments in (inputs(eager), inputs(eager)):
            found = results(module, graphed, arguments)
            for a, e in zip(found, results(eager, eager, arguments), strict=True):
                assert_close(a, e, TOLERANCE)


@feature("cuda_graphs")
@on(ON_GPU)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("predictor", CELLS)
def test_graphed(on: UnderTest, predictor: str, half: bool):
    """Several training steps beside those of the model itself, with scheduled sampling, then without gradients."""
    model = small(predictor).cuda()
    if predictor != "e3d_lstm":
        model = model.to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    tolerance = 0.02 if half else TOLERANCE
    with on.chosen(), torch.autocast("cuda", torch.bfloat16, enabled=half):
        fast = graphed(model, drawn(2, 5, 1, 16, 12), 2, sampling=True)
        for _ in range(3):
            frames, mask = drawn(2, 5, 1, 16, 12), drawn(2, 2, 1, 1, 1).round()
            found, expected = fast(frames, mask), other(frames, 2, mask)
            assert_close(found, expected, tolerance)
            for m, out in ((model, found), (other, expected)):
                m.zero_grad()
                out.float().square().mean().backward()
                torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            for p, q in zip(model.parameters(), other.parameters()):
                assert (p.grad is None) == (q.grad is None)
                if p.grad is not None and q.grad is not None:
                    assert_close(p.grad, q.grad, tolerance)
            with torch.no_grad():
                for p, q in zip(model.parameters(), other.parameters()):
                    if q.grad is not None:
                        q.sub_(q.grad, alpha=0.1)
                    p.copy_(q)
        with torch.no_grad():
            assert_close(fast(frames), other(frames, 2), tolerance)


@feature("cuda_graphs")
@on(ON_GPU)
@pytest.mark.parametrize("predictor", CELLS)
def test_graphed_step(on: UnderTest, predictor: str):
    options = {"cell_options": {"history": 3}} if predictor == "e3d_lstm" else {}
    model, frames = small(predictor, **options).cuda(), drawn(6, 2, 1, 16, 12)
    with on.chosen(), torch.no_grad():
        stream = graphed_step(model, frames[0])
        for _ in range(2):
            state = None
            for frame in frames:
                expected, state = model.step(frame, state)
                assert_close(stream(frame), expected, TOLERANCE)
            stream.reset()


@feature("cuda_graphs")
@on(ON_GPU)
@pytest.mark.parametrize("make", [Layer, Rollout])
def test_reduce_overhead(on: UnderTest, make: Callable[[], nn.Module]):
    torch._dynamo.reset()
    module = make().cuda()
    with on.chosen():
        compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
        warmup(compiled, *(t.requires_grad_() for t in inputs(module)))
        for arguments in (inputs(module), inputs(module), inputs(module)):
            torch.compiler.cudagraph_mark_step_begin()
            found = results(module, compiled, arguments)
            for a, e in zip(found, results(module, module, arguments), strict=True):
                assert_close(a, e, TOLERANCE)


@feature("cuda_graphs")
@on(ON_GPU)
@pytest.mark.parametrize("tune", ["0", "1"])
def test_a_stream_of_frames(on: UnderTest, tune: str, monkeypatch: pytest.MonkeyPatch):
    """One graph, replayed for every frame; the state goes round in its own memory."""
    monkeypatch.setenv("MOTIONRNN_EXT_AUTOTUNE", tune)
    step = Step().cuda()
    frames = drawn(5, 2, 1, 16, 12)
    with on.chosen(), torch.no_grad():
        expected, state = [], step.initial()
        for frame in frames:
            out, *state = step(frame, *state)
            expected.append(out)

        frame, state = frames[0].clone(), step.initial()
        warmup(step, frame, *state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, *after = step(frame, *state)
            for static, new in zip(state, after):
                static.copy_(new)
        for static, start in zip(state, step.initial()):
            static.copy_(start)
        for next_frame, e in zip(frames, expected):
            frame.copy_(next_frame)
            graph.replay()
            assert_close(out, e, TOLERANCE)


@on(ON_GPU)
def test_warmup_leaves_no_trace(on: UnderTest):
    rollout, frames = Rollout().cuda(), drawn(2, 4, 1, 16, 12)
    before = torch.get_rng_state(), torch.cuda.get_rng_state(), torch.cuda.current_stream()
    with on.chosen():
        warmup(rollout, frames)
        warmup(rollout.model, frames, n_input=2)
    assert torch.get_rng_state().equal(before[0]) and torch.cuda.get_rng_state().equal(before[1])
    assert torch.cuda.current_stream() == before[2] and all(p.grad is None for p in rollout.parameters())
