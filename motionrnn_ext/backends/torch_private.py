"""The private names of PyTorch that the package uses, each with its purpose.

PyTorch may change a private name in any release. They are used here and nowhere else, so that there is one place to
mend, and tests/pytorch/test_torch_private.py checks that each is there and does what is said of it. All of them have
been tried with torch 2.10, 2.11 and 2.13.

The dictionaries of every `nn.Module` (`_parameters`, `_buffers`, `_modules`, `_forward_hooks` and its kin) are not
listed: a pickled module consists of them, so that PyTorch cannot rename them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn, overrides
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import Function, forward_ad
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree
from torch.utils._device import DeviceContext

# ---- Function transforms


# The kind of `transforms()` that torch.vmap is.
VMAP = torch._C._functorch.TransformType.Vmap


def transforms() -> list[Any]:
    """Return the kinds of torch.func's transforms that are in force, the outermost first."""
    if not torch._C._are_functorch_transforms_active():
        return []
    return [layer.key() for layer in torch._C._functorch.get_interpreter_stack()]


def is_wrapped(t: Tensor) -> bool:
    """Return whether t is a wrapper of torch.func, whose elements cannot be read."""
    return torch._C._functorch.is_functorch_wrapped_tensor(t)


def is_batched_gradient(t: Tensor) -> bool:
    """Return whether t stands for many gradients in a backward pass that `is_grads_batched` maps.

    This map is older than torch.func's, and no transform. An op that takes a list of tensors has no rule in it.
    """
    return torch._C._functorch.is_legacy_batchedtensor(t)


def is_differentiating_forward() -> bool:
    """Return whether a level of forward-mode differentiation is open. Dynamo guards it as any global."""
    return forward_ad._current_level >= 0


def has_dispatch_modes() -> bool:
    """Return whether a TorchDispatchMode watches the ops that run, such as selective checkpointing or a counter."""
    return torch._C._len_torch_dispatch_stack() > 0


def has_function_modes() -> bool:
    """Return whether a TorchFunctionMode watches the functions that are called; a default device does not count."""
    return any(type(mode) is not DeviceContext for mode in overrides._get_current_function_mode_stack())


# ---- Autograd


# Adds to each tensor of a list that of another list, in place, in one call.
foreach_add = torch._foreach_add_

# A context in which ops run without being recorded by autograd, and without the time that recording takes.
below_autograd = torch._C._AutoDispatchBelowAutograd


def plain_apply(function: type[Function]) -> Callable[..., Any]:
    """Return `function.apply` without its search for torch.func's transforms and wrappers, a tenth of an op's time on
    the host. There should be none in force where it is called."""
    # PyTorch's stubs leave out the base class that has this method.
    return cast("Callable[..., Any]", super(Function, function).apply)  # type: ignore[misc]


def current_backward() -> int:
    """Return the number of the backward pass that calls this function, or -1 outside of one."""
    return torch._C._current_graph_task_id()


def has_saved_tensor_hooks() -> bool:
    """Return whether hooks pack what autograd saves, as those of activation checkpointing do."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def will_run(node: Any) -> bool:
    """Return whether the backward pass that calls this function will also run that node of the graph."""
    return torch._C._will_engine_execute_node(node)


# ---- The machine


def has_matrix_unit() -> bool:
    """Return whether the CPU has a unit for matrix products (AMX), which PyTorch uses in bfloat16."""
    return torch.cpu._is_amx_tile_supported()


# ---- torch.compile


def constant_in_a_trace(function: Callable[[], bool]) -> Callable[[], bool]:
    """Make Dynamo call `function` when it traces, and take the result for a constant.

    `torch.compiler.assume_constant_result` does the same, but imports Dynamo, which takes 1.3 s.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_traced(t: Tensor) -> bool:
    """Return whether t has no elements and stands for a tensor in a trace of torch.compile."""
    return isinstance(t, (FakeTensor, FunctionalTensor))


def uncompiled(function: Any) -> Any:
    """Return the function or bound method that torch.compile made `function` of; `function` itself if it made none."""
    return getattr(function, "_torchdynamo_orig_callable", function)


# ---- Schemas of ops


def argument_names(op: Any) -> tuple[str, ...]:
    """Return the names of an op's arguments in the order of its schema; `op` is `torch.ops.<namespace>.<name>`."""
    return tuple(argument.name for argument in op.default._schema.arguments)


def count_tensor_arguments(op: Any) -> int:
    """Return how many of an op's arguments are tensors, those that may be None included."""
    kinds = [str(argument.type) for argument in op.default._schema.arguments]
    return kinds.count("Tensor") + kinds.count("Optional[Tensor]")


# ---- Tensors and modules


def version(t: Tensor) -> int:
    """Return how often t was written in place."""
    return t._version


def runs_forward(module: nn.Module) -> bool:
    """Return whether calling `module` runs its hooks and its forward: no other call, and not compiled in place."""
    cls = type(module)
    is_own = cls.__call__ is nn.Module.__call__ and cls._call_impl is nn.Module._call_impl
    return is_own and module._compiled_call_impl is None


@constant_in_a_trace
def has_hooks_on_all_modules() -> bool:
    """Return whether hooks that run with the call or the backward of every module are registered."""
    return bool(_has_any_global_hook())


# The base of all convolutions, which defines their `reset_parameters`.
ConvNd = _ConvNd

# Functions on the leaves of nested tuples, lists and dicts. States are named tuples: torch.export saves a program that
# has one only if it is registered under a name.
tree_leaves = _pytree.tree_leaves
tree_map = _pytree.tree_map
tree_map_only = _pytree.tree_map_only
register_namedtuple = _pytree._register_namedtuple
