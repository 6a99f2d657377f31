"""Compare what a user's module computes with what the cell computes that would replace it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import backends
from .module_state import changes, state_of
from .plain import number_or_type

# Tolerance relative to the largest value, or to 1 if that is larger. In float64 equal formulas differ by some 1e-15.
_TOLERANCE = 1e-5
# Tolerances of one step in other dtypes, which round the positions of the taps. The official layer differs by 5e-6,
# 6e-3 and 5e-2 (1 to 256 channels, k of 1 to 7); TF32 rounds float32 further.
_TOLERANCES = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# Sizes (B, H, W) of single steps: batches and maps of other sizes, square and large.
SIZES = ((1, 1, 6), (3, 8, 8), (1, 64, 64))


class Call(NamedTuple):
    """The way a layer is called, step after step.

    Attributes:
        inputs: the channels and the standard deviation of each argument, by its name; the first is x.
        outputs: the names of the results. Those that are names of inputs are the inputs of the next step.
        carried: what the inputs beside x are, for a message.
        sizes: (B, H, W) of single steps.
    """

    inputs: dict[str, tuple[int, float]]
    outputs: tuple[str, ...]
    carried: str
    sizes: tuple[tuple[int, int, int], ...] = SIZES


class _Conditions(NamedTuple):
    """The conditions of a rollout."""

    randomised: bool  # whether random weights replace the module's own
    far: bool  # whether the inputs beside x go to some 1e8, to find bounds of any size
    training: bool
    size: tuple[int, int, int]  # (B, H, W)


def difference(
    module: nn.Module,
    build: Callable[[nn.Module], nn.Module],
    call: Call,
    *,
    own_weights_alone: bool = False,
) -> str | None:
    """Return how a copy of the module differs from the cell that `build` makes of another copy, or None.

    Random rollouts are compared, forward and backward, in float64 on the module's device: with random weights (the
    official ones start at 0, which would hide much) and with the module's own, in both training modes, with inputs
    beside x of usual and of any size. Then single steps are compared at other sizes and in other dtypes. A module that
    keeps state between its calls, or depends on parameters that are not its own, differs.

    With `own_weights_alone`, a module of the same class, structure and attributes has passed: one rollout is compared,
    with the module's own weights.
    """
    device = next(module.parameters()).device
    device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    devices = [device.index or 0] if device.type == "cuda" else []
    rollouts = [
        _Conditions(True, False, True, (2, 5, 7)),
        _Conditions(True, False, False, (1, 6, 6)),
        _Conditions(True, True, False, (3, 4, 5)),
    ]
    usual = rollouts[0]
    if own_weights_alone:
        rollouts = []
    if all(bool(p.detach().isfinite().all()) for p in module.parameters()):
        rollouts.append(_Conditions(False, False, module.training, (2, 7, 5)))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices),
        torch.device(device),
        torch.autocast(device.type, enabled=False),
        backends.backend("reference"),
        # A forward under torch.compile is not compiled anew for each size, which would use up its limit.
        torch.compiler.set_stance("force_eager"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for conditions in rollouts:
            try:
                theirs, ours = _copies(module, build, device, conditions)
            except Exception as error:
                return f"it cannot be copied to be compared: {_said(error)}"
            inputs = _inputs(call, device, conditions.size, far=conditions.far)
            if reason := _compare(theirs, ours, inputs, call, _rollout):
                return f"{reason} ({'training' if conditions.training else 'eval'} mode)"
        if own_weights_alone:
            return None
        return _other_calls(*_copies(module, build, device, usual), call, device, _dtype(module))


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _copies(
    module: nn.Module,
    build: Callable[[nn.Module], nn.Module],
    device: torch.device,
    conditions: _Conditions,
) -> tuple[nn.Module, nn.Module]:
    """Return a copy of the module in float64, and the cell that `build` makes of another copy."""
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, object] = {}  # deepcopy puts these in place of the module's parameters
    for p in module.parameters():
        if conditions.randomised:
            value = 0.2 * _normal(generator, tuple(p.shape), device)
        else:
            value = p.detach().to(device, torch.float64, copy=True)
        memo[id(p)] = nn.Parameter(value)
    theirs = copy.deepcopy(module, memo).train(conditions.training)
    return theirs, build(copy.deepcopy(theirs))


def _normal(generator: torch.Generator, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)


def _inputs(
    call: Call,
    device: torch.device,
    size: tuple[int, int, int],
    *,
    large: bool = False,
    far: bool = False,
) -> dict[str, Tensor]:
    """Return random inputs by name, in float64: `large` x to 1e3, the `far` others to 1e8."""
    generator = torch.Generator().manual_seed(1)
    batch, height, width = size
    inputs = {}
    for name, (n, std) in call.inputs.items():
        shape = (batch, n, height, width)
        inputs[name] = std * _normal(generator, shape, device)
        if decades := 3 * large if name == "x" else 8 * far:
            exponent = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
            inputs[name] *= (10 ** (decades * exponent)).to(device)
    return inputs


def _other_calls(
    theirs: nn.Module, ours: nn.Module, call: Call, device: torch.device, own_dtype: torch.dtype
) -> str | None:
    """Return how single steps differ without gradients, at other sizes and in other dtypes, or None if they agree.

    The module has to run in the dtype that it was given in, and may refuse others.
    """
    x, *others = _inputs(call, device, (2, 5, 7)).values()
    absent: list[list[Tensor | None]] = [[None] * len(others)]
    absent += ([None if i == left else t for i, t in enumerate(others)] for left in range(len(others)))
    for states in absent:
        try:
            with torch.no_grad():
                theirs(x, *states)
        except Exception:
            continue
        return f"its forward takes None in place of {call.carried}"
    for size in call.sizes:
        if reason := _compare(theirs, ours, _inputs(call, device, size, large=True), call, _step):
            batch, height, width = size
            return f"{reason} (a batch of {batch} at {height}x{width})"
    for dtype, mixed in (
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
        (torch.bfloat16, False),
    ):
        theirs.to(dtype)
        inputs = {name: value.to(dtype) for name, value in _inputs(call, device, (2, 5, 7)).items()}
        title = "autocast" if mixed else str(dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            try:
                _step(theirs, inputs, call)
            except Exception as error:
                if dtype == own_dtype and not mixed:
                    return f"it cannot be compared, its forward raised {_said(error)} ({title})"
                continue
            if reason := _compare(
                theirs, ours, inputs, call, _step, _TOLERANCES[torch.bfloat16 if mixed else dtype]
            ):
                return f"{reason} ({title})"
    return None


def _compare(
    theirs: nn.Module,
    ours: nn.Module,
    inputs: dict[str, Tensor],
    call: Call,
    run: Callable[[nn.Module, dict[str, Tensor], Call], dict[str, Tensor] | str],
    tolerance: float = _TOLERANCE,
) -> str | None:
    """Return how what `run` gives of the module differs from what it gives of the cell, or None if they agree."""
    before = state_of(theirs)
    try:
        found = run(theirs, inputs, call)
    except Exception as error:
        return f"it cannot be compared, its forward or backward raised {_said(error)}"
    if isinstance(found, str):
        return found
    if changed := changes(before, state_of(theirs)):
        return f"its forward keeps state between calls: it changes {', '.join(changed[:5])}"
    wanted = run(ours, {name: value.double() for name, value in inputs.items()}, call)
    for name, expected in cast("dict[str, Tensor]", wanted).items():
        if found[name].shape != expected.shape:
            shapes = f"{tuple(found[name].shape)}, not {tuple(expected.shape)}"
            return f"it computes something else: {name} has shape {shapes}"
        gap = float((found[name] - expected).abs().max())
        if not gap <= tolerance * max(1.0, float(expected.abs().max())):
            return f"it computes something else: {name} differs by {gap:.2g} on random numbers"
    return None


def _said(error: Exception) -> str:
    """Return an error's class and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---- Runs of the module, and of the cell


def _rollout(module: nn.Module, inputs: dict[str, Tensor], call: Call) -> dict[str, Tensor] | str:
    """Return the results and gradients of a rollout by name, or a sentence if the module returns something else.

    The rollout has three steps. Gradients are those of the sum of all results times fixed random factors. One more step
    runs without gradients.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    now = dict(leaves)
    generator = torch.Generator().manual_seed(2)
    results: dict[str, Tensor] = {}
    loss = now["x"].new_zeros(())
    for step in range(3):
        outputs = module(*now.values())
        if type(outputs) is not tuple or len(outputs) != len(call.outputs):
            wanted = f"a tuple ({', '.join(call.outputs)})"
            found = number_or_type(outputs) if type(outputs) is tuple else f"a {type(outputs).__name__}"
            return f"its forward returns {found}, not {wanted}"
        named = dict(zip(call.outputs, outputs))
        now |= {name: value for name, value in named.items() if name in now}
        for name, value in reversed(named.items()):
            results[f"{name} of step {step + 1}"] = value.detach()
            loss = loss + (_normal(generator, tuple(value.shape), value.device) * value).sum()
    leaves |= dict(module.named_parameters())
    if others := _leaves_of(loss) - set(leaves.values()):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in others)
        return f"its results depend on parameters that are not its own, of shape {shapes}"
    loss.backward()
    results |= {
        f"{name} under no_grad": value for name, value in _step(module, inputs, call, torch.no_grad).items()
    }
    for name, leaf in leaves.items():
        results[f"the gradient of {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return results


def _step(
    module: nn.Module,
    inputs: dict[str, Tensor],
    call: Call,
    mode: Callable[[], object] = torch.inference_mode,
) -> dict[str, Tensor]:
    """Return the results of one step without gradients by name."""
    with mode():  # type: ignore[attr-defined]
        outputs = module(*(value.clone() for value in inputs.values()))
    return dict(zip(call.outputs, outputs))


def _leaves_of(result: Tensor) -> set[Tensor]:
    """Return the tensors whose gradients the backward of `result` would accumulate."""
    todo, seen, leaves = [result.grad_fn], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.add(leaf)
        todo += [following for following, _ in node.next_functions]
    return leaves
