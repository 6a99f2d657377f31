"""The parts that the nodes of all cells share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...backends.convolution import Convolution
from ...backends.reference import state_dtype
from ...backends.registration.second import alias
from ...backends.torch_private import is_batched_gradient
from ..plain import is_plain_conv
from ..rollout import Rollout
from ..states import under_autocast


def side_by_side(*weights: Tensor) -> Tensor:
    """Return the weight by which joined maps come to the sum of what each comes to by its own weight."""
    return torch.cat(weights, dim=1)


def joined(dtype: torch.dtype, *maps: Tensor) -> Tensor:
    """Return maps of one size as one, in `dtype`."""
    return torch.cat([part.to(dtype) for part in maps], dim=1)


def gradients_of_joined(
    conv: Convolution,
    grad: Tensor,
    maps: Tensor,
    weight: Tensor,
    channels: Sequence[int],
    needs: Sequence[bool],
) -> Sequence[Tensor | None]:
    """Return the gradients of the parts of joined maps, by a convolution of them; None for a part that needs none.

    True frames and zeros to start from need none, which saves that share of the convolution; Winograd's weights are
    packed for all parts.
    """
    if all(needs) or conv.is_winograd(maps, weight):
        return conv.data_gradient(grad, maps, weight).split(channels, dim=1)
    parts = zip(maps.split(channels, dim=1), weight.split(channels, dim=1), needs)
    return [conv.data_gradient(grad, part, of_part) if need else None for part, of_part, need in parts]


def present(grads: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients of `outputs`, zeros in their memory format for those that autograd has not."""
    if all(grad is not None for grad in grads):
        return list(cast("Sequence[Tensor]", grads))
    # Zeros are as many as the other gradients, where `is_grads_batched` maps them: later gradients are added in place.
    batched = next((grad for grad in grads if grad is not None and is_batched_gradient(grad)), None)
    found = [torch.zeros_like(out) if grad is None else grad for grad, out in zip(grads, outputs)]
    return found if batched is None else [grad + batched.new_zeros(()) for grad in found]


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
        and (under_autocast(x) or all(t.dtype == dtype for t in maps[: -len(states)]))
    )


def the_conv(module: nn.Module) -> Any:
    """Return the convolution that a module is, or that a sequence holds alone."""
    return module[0] if isinstance(module, nn.Sequential) else module


def plain_convs(
    active: Rollout, x: Tensor, *modules: tuple[nn.Module, int, int], bias: bool = False
) -> list[Tensor] | None:
    """Return the weights of convolutions given as (module, in_channels, out_channels), or None if one is to be called.

    They should be square and odd, keep the size of maps such as x, have a bias or none, and share one dtype and device.
    """
    weights = []
    for module, in_channels, out_channels in modules:
        if isinstance(module, nn.Sequential):
            if not active.has(module) or len(module) != 1:
                return None
            module = the_conv(module)
        if not (active.has_conv(module, x) and is_plain_conv(module, in_channels, out_channels, bias=bias)):
            return None
        weights.append(cast(nn.Conv2d, module).weight)
    return weights if len({(w.dtype, w.device) for w in weights}) == 1 else None


def step_of_node(
    arguments: tuple[Any, ...],
    weights: Callable[..., tuple[Any, Sequence[Tensor]] | None],
    apply: Callable[..., Any],
    forward: Callable[..., Any],
    *inputs: Tensor | None,
) -> Any:
    """Return the results of one step by a node, or None where a part of the cell has to be called.

    Args:
        arguments: those of `weights`: the rollout, the cell, its input, the dtype of its convolutions, and others.
        weights: returns what all steps have in common, and the laid-out weights; None if a part has to be called.
        apply: that of the node.
        forward: that of the node, which returns what backward reads as well.
        inputs: the maps of this step.
    """
    active, cell, _, dtype, *_ = arguments
    shared = active.share((cell, dtype), lambda: weights(*arguments))
    if shared is None:
        return None
    common, laid = shared
    if torch.is_grad_enabled():
        return apply(common, *inputs, *laid)
    return forward(common, *inputs, *laid)[0]


def run_step(ctx: Any, step: Callable[..., Any], common: Any, inputs: Sequence[Any]) -> Any:
    """Return the results of a node's step, and save what backward reads: what the step keeps, then its inputs."""
    out, kept = step(common, *inputs)
    ctx.common = common
    ctx.set_materialize_grads(False)
    # The inputs come last: by them backward is differentiated.
    ctx.save_for_backward(*kept, *inputs)
    return out


def differentiable_gradients(
    step: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    convolutions: Sequence[Convolution] = (),
) -> list[Tensor | None]:
    """Return the gradients of step(*inputs), which are differentiable themselves, for backward under create_graph.

    The last inputs are the weights of `convolutions`, as laid out.
    """
    with torch.enable_grad():
        inputs = [None if t is None else alias(t, keep_history=True) for t in inputs]
        maps, laid = inputs[: len(inputs) - len(convolutions)], inputs[len(inputs) - len(convolutions) :]
        outputs = step(*maps, *(conv.read(cast(Tensor, w)) for conv, w in zip(convolutions, laid)))
    wanted = [t for t in inputs if t is not None]
    pairs = [(out, grad) for out, grad in zip(outputs, grads) if out.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
        )
    )
    return [None if t is None else next(found) for t in inputs]
