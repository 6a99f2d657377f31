"""torch.compile sees the Triton kernels: traced for a GPU that need not be there, as on one with sm_90."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from case import channels_last, generator
from cases import OPS, PARAMETERS, small_case
from gates_cases import gates_inputs
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses import FakeTensorMode

from motionrnn_ext.backends.triton import INTERPRETED

if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)
if INTERPRETED:
    pytest.skip("under Triton's interpreter the ops are opaque to torch.compile", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget

import motionrnn_ext.backends.triton.ops  # noqa: F401  # registers them, on a machine without a GPU as well
from motionrnn_ext.backends.triton import launch

KERNEL = "triton_kernel_wrapper_functional"


class Driver:
    """The driver of a GPU that kernels are looked at for, and never launched on."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture(autouse=True)
def driver() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    triton.runtime.driver.set_active(Driver())
    yield
    triton.runtime.driver.set_active(None)


def traced(op: str, inputs: list[torch.Tensor]) -> Counter[str]:
    """The calls in the graph of an op and its gradients."""
    mode = FakeTensorMode()

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = getattr(torch.ops.motionrnn_ext_triton, op)(*tensors, *PARAMETERS.get(op, ()))
        return out if isinstance(out, tuple) else (out,)

    fakes = [mode.from_tensor(t.detach()).requires_grad_() for t in inputs]
    graph = aot_export_joint_simple(function, fakes, trace_joint=True).graph
    return Counter(str(n.target) for n in graph.nodes if n.op == "call_function")


def test_what_has_elements_is_launched_and_what_is_traced_is_noted(monkeypatch: pytest.MonkeyPatch):
    class Subclass(torch.Tensor):
        pass

    class Parameter(torch.nn.Parameter):
        pass

    seen: list[tuple[str, dict[str, object]]] = []

    def recorder(way: str) -> Callable[[str], dict[tuple[int], Callable[..., None]]]:
        return lambda kernel: {(3,): lambda *tensors, **options: seen.append((way, options))}

    monkeypatch.setattr(launch, "_launchable", recorder("launched"))
    monkeypatch.setattr(launch, "wrap_triton", recorder("noted"))
    real = torch.zeros(2)
    for t in (real, torch.nn.Parameter(real), Parameter(real), real.as_subclass(Subclass)):
        launch.launch("kernel", 3, t, 1)
    launch.launch("kernel", 3, real, FakeTensorMode().from_tensor(real))
    assert seen == [("launched", {"enable_fp_fusion": True})] * 4 + [("noted", {})]


@pytest.mark.parametrize("layout", ["", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_kernels_are_visible_and_overwrite_nothing_but_their_outputs(op: str, layout: str):
    """Tracing fails, or copies, where an input counts as overwritten. Backward takes four launches at most."""
    inputs = list(small_case(op).inputs(torch.float32).values())
    if layout:
        inputs = [channels_last(t) if t.shape[2:] != (3, 3) else t for t in inputs]
    calls = traced(op, inputs)
    assert not any(name.startswith(("aten.copy", "aten.clone")) for name in calls)
    assert not any("motionrnn_ext" in name for name in calls)
    kernels, cleared = calls[KERNEL], calls["aten.zeros.default"] + calls["aten.zero.default"]
    if op == "offset_warp":  # forward; prepare, main, finish
        assert (kernels, cleared) == ((3, 1) if layout else (4, 1))
    else:
        assert (kernels, cleared) == (2, 0)


@pytest.mark.parametrize("layout", ["", "channels_last"])
@pytest.mark.parametrize("size, forward, backward", [(1, 1, 2), (3, 3, 4)])
def test_gates_and_warp_are_visible_and_overwrite_nothing(
    size: int, forward: int, backward: int, layout: str
):
    """The joined kernel reads what it has written, which does not count as an input that is overwritten.

    In backward the sums are cleared, and contiguous maps are copied to channels_last first.
    """
    made = gates_inputs(generator(), size=size, motion=18, masks=9)
    (*maps, x_weight, x_bias, state_weight, candidate_weight), channels = made.values(), made["x"].shape[1]
    maps = [(channels_last(t) if layout else t).float() for t in maps]
    weights = [x_weight, x_bias, state_weight, candidate_weight, torch.zeros(channels, channels, 3, 3)]
    ops = torch.ops.motionrnn_ext_triton

    def both_ways(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        packed = tensors[0].new_empty(0)
        out, *maps = ops.gated_warp(*tensors, packed, 0.5, 1e4)
        (x, offset, _, *weights), (new_offset, new_trend, *logits) = tensors, maps
        given = (out, new_offset, new_trend, x, offset, *weights, *logits, new_offset, packed, 0.5, 1e4)
        return out, *ops.gated_warp_backward(*given, 11, False)

    mode = FakeTensorMode()
    fakes = [mode.from_tensor(t.float()) for t in (*maps, *weights)]
    graph = aot_export_joint_simple(both_ways, fakes, trace_joint=False).graph
    calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_function")
    assert not any(name.startswith(("aten.copy", "aten.clone")) for name in calls), calls
    assert not any("motionrnn_ext" in name for name in calls)
    assert calls[KERNEL] == forward + backward + (not layout) and calls["aten.zeros.default"] == 1, calls
