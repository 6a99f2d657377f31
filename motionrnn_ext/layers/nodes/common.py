"""What the nodes of all cells share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...backends.reference import state_dtype
from ...backends.registration.second import alias
from ..plain import keeps_parameters
from ..rollout import Geometry, Rollout


def same(weight: Tensor) -> Geometry:
    """Return the geometry of the convolution by that weight that keeps the size of maps."""
    return Geometry((1, 1), (weight.shape[-1] // 2, weight.shape[-1] // 2))


def joined(dtype: torch.dtype, *maps: Tensor) -> Tensor:
    """Return maps of one size as one, in `dtype`."""
    return torch.cat([part.to(dtype) for part in maps], dim=1)


def are_maps(
    cell: Any, dtype: torch.dtype, x: Tensor, features: Sequence[Tensor | None], states: Sequence[Tensor]
) -> bool:
    """Return whether a node takes these maps: x (B, C_in, h, w) and others (B, C, h, w), of dtypes that fit.

    Others are left to the composed cell, which knows what is wrong with them.
    """
    maps = [*(t for t in features if t is not None), *states]
    shape = (x.shape[0], cell.hidden_channels, *x.shape[2:])
    return (
        x.dim() == 4
        and x.shape[1] == cell.in_channels
        and all(t.shape == shape and t.device == x.device and t.is_floating_point() for t in maps)
        and len({t.dtype for t in states}) == 1
        and states[0].dtype in (dtype, state_dtype(dtype))
        and (torch.is_autocast_enabled(x.device.type) or all(t.dtype == dtype for t in maps[: -len(states)]))
    )


def plain_convs(active: Rollout, *modules: tuple[nn.Module, int, int]) -> list[Tensor] | None:
    """Return the weights of convolutions given as (module, in_channels, out_channels), or None if one is to be called.

    They should be square and odd, keep the size of maps, have no bias, and share one dtype and device.
    """
    weights = []
    for module, in_channels, out_channels in modules:
        if isinstance(module, nn.Sequential):
            if not active.has(module) or len(module) != 1:
                return None
            module = module[0]
        if type(module) is not nn.Conv2d or not (active.has(module) and keeps_parameters(module)):
            return None
        rows, columns = module.kernel_size
        fits = (
            (module.in_channels, module.out_channels, module.groups) == (in_channels, out_channels, 1)
            and rows == columns
            and rows % 2 == 1
            and (module.stride, module.padding, module.dilation) == ((1, 1), (rows // 2, rows // 2), (1, 1))
            and module.padding_mode == "zeros"
            and module.bias is None
        )
        if not fits:
            return None
        weights.append(module.weight)
    return weights if len({(w.dtype, w.device) for w in weights}) == 1 else None


def differentiable_gradients(
    step: Callable[..., Any], inputs: Sequence[Tensor | None], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of step(*inputs), which are differentiable themselves, for backward under create_graph."""
    with torch.enable_grad():
        inputs = [None if t is None else alias(t, keep_history=True) for t in inputs]
        outputs = step(*inputs)
    wanted = [t for t in inputs if t is not None]
    pairs = [(out, grad) for out, grad in zip(outputs, grads) if out.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
        )
    )
    return [None if t is None else next(found) for t in inputs]
