"""How many graphs torch.compile makes, and why another: B, T, the backend, the deterministic flag; in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from comparing import assert_close
from compiling import (
    NEEDS_CPU,
    OLD_TORCH,
    SAME,
    check_step,
    frames,
    model_of,
    nothing_compiled,  # noqa: F401
    slow,
    tensors,
)
from features import feature
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from under_test import KERNELS, REFERENCE, TRITON, UnderTest, on
from warp_cases import warp_inputs

import motionrnn_ext
from motionrnn_ext import MotionRNN, backends, ops

pytestmark = pytest.mark.usefixtures("nothing_compiled")


# ---- Graphs over changing B and T


def test_forward_is_a_graph_per_length():
    """T unrolls the rollout. A second batch size makes one graph for all sizes, but torch's own for 1."""
    model, counter = model_of("convlstm"), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)

    def graphs_after(batch: int, total: int) -> int:
        clip = frames(batch, total, 1, 16, 16)
        assert_close(compiled(clip, 1), model(clip, 1), SAME)
        return counter.frame_count

    assert [graphs_after(batch, 2) for batch in (2, 3, 5, 2)] == [1, 2, 2, 2]
    assert graphs_after(1, 2) == 3
    assert [graphs_after(*size) for size in ((3, 3), (7, 3), (3, 2))] == [4, 4, 4]


def test_too_many_lengths_are_torchs_error():
    compiled = torch.compile(model_of("convlstm"), fullgraph=True, backend=CompileCounter())
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled(frames(2, 2, 1, 16, 16), 1)
        with pytest.raises(FailOnRecompileLimitHit):
            compiled(frames(2, 3, 1, 16, 16), 1)


def graphs_of_stream(model: MotionRNN, batches: Sequence[int], total: int) -> list[list[int]]:
    """How many graphs there are after each frame of streams of `step`, one after another."""
    counter = CompileCounter()
    compiled = torch.compile(model.step, fullgraph=True, backend=counter)
    graphs: list[list[int]] = []
    for batch in batches:
        graphs.append([])
        states = [None, None]
        for frame in frames(batch, total, 1, 16, 16).unbind(1):
            found, expected = (f(frame, s) for f, s in zip((compiled, model.step), states))
            states = [found[1], expected[1]]
            for a, e in zip(tensors(found), tensors(expected), strict=True):
                assert_close(a, e, SAME)
            graphs[-1].append(counter.frame_count)
    return graphs


@pytest.mark.parametrize(
    "predictor",
    ["convlstm", *(pytest.param(p, marks=slow) for p in ("mim", "e3d_lstm"))]
    + [pytest.param(p, marks=pytest.mark.nightly) for p in ("predrnn", "conv_tt_lstm")],
)
def test_a_stream_is_two_graphs(predictor: str):
    """One for the first frame, which has no state, one for all others; a second batch size makes them dynamic. The past
    of E3D-LSTM grows, which its second state shows."""
    with torch.no_grad():
        graphs = graphs_of_stream(model_of(predictor), batches=(2, 3, 5), total=5)
    if predictor == "e3d_lstm":
        assert graphs == [[1, 2, 3, 3, 3], [4, 5, 5, 5, 5], [5] * 5]
    else:
        assert graphs == [[1, 2, 2, 2, 2], [3, 4, 4, 4, 4], [4] * 5]


@pytest.mark.parametrize(
    "predictor, graphs",
    [
        ("convlstm", [1, 2, 2, 2, 2]),
        pytest.param("mim", [1, 2, 3, 3, 3], marks=slow),
        pytest.param("conv_tt_lstm", [1, 2, 3, 4, 4], marks=slow),
    ],
)
def test_a_stream_with_gradients(predictor: str, graphs: list[int]):
    """A graph more as long as a part of the state is still the initial one, and wants no gradient."""
    assert graphs_of_stream(model_of(predictor), batches=[2], total=5) == [graphs]


# ---- The choice of a backend, and the deterministic flag


class Graphs:
    """A compiler for torch.compile: notes the package's ops in every graph, and which thread runs them."""

    def __init__(self) -> None:
        self.forward: list[set[str]] = []  # a set of ops for each graph
        self.backward: list[set[str]] = []
        self.flags: list[bool] = []  # the deterministic one of every offset_warp_backward
        self.ran: set[tuple[str, frozenset[str]]] = set()  # thread, ops

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        compilers = (partial(self._note, graphs) for graphs in (self.forward, self.backward))
        return aot_autograd(**dict(zip(("fw_compiler", "bw_compiler"), compilers)))(module, inputs)

    def _note(self, graphs: list[set[str]], module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        calls = [
            n for n in module.graph.nodes if getattr(n.target, "namespace", "").startswith("motionrnn_ext")
        ]
        graphs.append({n.target._opname for n in calls})
        self.flags += [n.args[-1] for n in calls if n.target._opname == "offset_warp_backward"]

        def run(*arguments: Any) -> Any:
            self.ran.add((threading.current_thread().name, frozenset(n.target._opname for n in calls)))
            return module(*arguments)

        return make_boxed_func(run)


# On a GPU, Triton's kernels stand in the graph themselves.
VISIBLE = [t for t in KERNELS if t is not TRITON or t.is_slow]


@pytest.fixture
def warp() -> tuple[dict[str, Tensor], Graphs, Callable[..., Any]]:
    """Inputs, the compiler's notes, and a compiled offset_warp with its gradient for x."""
    inputs, graphs = warp_inputs(torch.Generator().manual_seed(0)), Graphs()
    inputs = {name: t.float().requires_grad_() for name, t in inputs.items()}
    compiled = torch.compile(ops.offset_warp, fullgraph=True, backend=graphs)
    return inputs, graphs, compiled


@pytest.fixture
def deterministic() -> Iterator[Callable[[bool], None]]:
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


@feature("compile")
@on(VISIBLE)
def test_another_backend_is_another_graph_and_the_first_is_kept(warp: Any, on: UnderTest):
    inputs, graphs, compiled = warp
    inputs = {name: t.detach().to(on.device).requires_grad_() for name, t in inputs.items()}
    counts = []
    for test in (REFERENCE, on, REFERENCE, on):
        with test.chosen():
            check_step(ops.offset_warp, compiled, list(inputs.values()), *inputs.values())
        counts.append((len(graphs.forward), len(graphs.backward)))
    assert counts == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert graphs.forward == [set(), {"offset_warp"}]
    assert graphs.backward == [set(), {"offset_warp_backward"}]


@NEEDS_CPU
@feature("compile", on=["cpu"])
def test_the_choice_of_all_threads_is_seen(warp: Any, monkeypatch: pytest.MonkeyPatch):
    inputs, graphs, compiled = warp
    monkeypatch.setattr(backends, "_chosen", "auto")
    for name in ("reference", "cpu", "auto", "reference"):
        motionrnn_ext.set_backend(name)
        compiled(*inputs.values())
    assert graphs.forward == [set(), {"offset_warp"}, {"offset_warp"}]


@feature("deterministic")
@on(VISIBLE)
def test_the_traced_backward_gets_the_deterministic_flag(
    warp: Any, deterministic: Callable[[bool], None], on: UnderTest
):
    inputs, graphs, compiled = warp
    inputs = {name: t.detach().to(on.device).requires_grad_() for name, t in inputs.items()}
    flags = []
    for flag in (False, True, False, True):
        deterministic(flag)
        with on.chosen():
            check_step(ops.offset_warp, compiled, list(inputs.values()), *inputs.values())
        flags.append(list(graphs.flags))
    assert flags == [[False], [False, True], [False, True], [False, True]]


@NEEDS_CPU
@feature("compile", on=["reference", "cpu"])
@pytest.mark.parametrize("flag", [False, True], ids=["", "deterministic"])
def test_threads_that_chose_different_backends_run_their_own_graphs(
    warp: Any, deterministic: Callable[[bool], None], flag: bool
):
    """Both compile at the same time, then call the one function by turns."""
    inputs, graphs, compiled = warp
    deterministic(flag)
    expected = ops.offset_warp(*inputs.values()).detach()
    both, errors = threading.Barrier(2), []
    one_at_a_time = threading.Lock() if OLD_TORCH else nullcontext()

    def work(name: str) -> None:
        leaves = [t.detach().requires_grad_() for t in inputs.values()]
        try:
            with motionrnn_ext.backend(name):
                both.wait(60)
                with one_at_a_time:
                    compiled(*leaves)
                for _ in range(20):
                    both.wait(60)
                    out = compiled(*leaves)
                    assert_close(out, expected, SAME)
                    torch.autograd.grad(out.sum(), leaves)
        except BaseException as error:
            errors.append(error)
            both.abort()

    threads = [threading.Thread(target=work, args=(name,), name=name) for name in ("reference", "cpu")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    kernels = frozenset({"offset_warp"}), frozenset({"offset_warp_backward"})
    assert graphs.ran == {("reference", frozenset()), *(("cpu", ops) for ops in kernels)}
    assert len(graphs.forward) == 2 and graphs.flags == [flag]
