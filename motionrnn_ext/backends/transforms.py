"""Which of PyTorch's function transforms are in force: forward-mode differentiation, and those of torch.func."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import forward_ad


def _constant_in_a_trace(function: Callable[[], bool]) -> Callable[[], bool]:
    """torch.compiler.assume_constant_result, which imports Dynamo (1.3 s). Dynamo guards the stack of transforms."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_transformed() -> bool:
    """Inside of forward-mode differentiation, where a kernel would drop the tangent silently, or of a transform of
    torch.func other than vmap."""
    return forward_ad._current_level >= 0 or _has_more_than_vmap()  # Dynamo guards the first, as any global


@_constant_in_a_trace
def is_mapped() -> bool:
    """Inside of vmap: tensors do not tell their layout, and one that is not mapped takes nothing mapped in place."""
    return any(key == torch._C._functorch.TransformType.Vmap for key in _stack())


@_constant_in_a_trace
def _has_more_than_vmap() -> bool:
    return any(key != torch._C._functorch.TransformType.Vmap for key in _stack())


def is_wrapped(t: torch.Tensor) -> bool:
    """Whether t is one of torch.func's tensors, whose value is not its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(t)


def is_for_onnx() -> bool:
    """Inside of an export to ONNX, which has no such ops as the kernels."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def _stack() -> list[object]:
    if not torch._C._are_functorch_transforms_active():
        return []
    return [layer.key() for layer in torch._C._functorch.get_interpreter_stack()]
