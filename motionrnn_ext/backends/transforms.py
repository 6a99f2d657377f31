"""Predicates for the function transforms of PyTorch: forward-mode differentiation, and those of torch.func."""

from __future__ import annotations

import torch

from .torch_private import VMAP, constant_in_a_trace, is_differentiating_forward, transforms


def is_transformed() -> bool:
    """Return whether forward-mode differentiation, or a transform of torch.func other than vmap, is in force.

    A kernel would drop the tangents silently.
    """
    return is_differentiating_forward() or _has_more_than_vmap()


# Both are constants in a trace: Dynamo guards the stack of transforms.


@constant_in_a_trace
def is_mapped() -> bool:
    """Return whether vmap is in force: tensors do not tell their layout, and one that is not mapped cannot take
    anything mapped in place."""
    return VMAP in transforms()


@constant_in_a_trace
def _has_more_than_vmap() -> bool:
    found = transforms()
    return bool(found) and any(kind != VMAP for kind in found)


def is_for_onnx() -> bool:
    """Return whether an export to ONNX runs, which has no ops for the kernels."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
