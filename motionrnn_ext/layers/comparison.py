"""Compare what a user's module computes with what the cell computes that would replace it."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import backends
from .motion_gru_cell import MotionGRUCell

# Tolerance relative to the largest value, or to 1 if that is larger. In float64 equal formulas differ by some 1e-15.
_TOLERANCE = 1e-5
# Tolerances of one step in other dtypes, which round the positions of the taps. The official layer differs by 5e-6,
# 6e-3 and 5e-2 (1 to 256 channels, k of 1 to 7); TF32 rounds float32 further.
_TOLERANCES = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# Sizes (B, H, W) of single steps: batches and maps of other sizes, square and large.
_SIZES = ((1, 1, 6), (3, 8, 8), (1, 64, 64))


class _Conditions(NamedTuple):
    """The conditions of a rollout."""

    randomised: bool  # whether random weights replace the module's own
    far: bool  # whether the offsets go to some 1e8 pixels, to find bounds of any size
    training: bool
    size: tuple[int, int, int]  # (B, H, W)


def difference(module: nn.Module, build: Callable[[nn.Module], MotionGRUCell]) -> str | None:
    """Return how a copy of the module differs from the cell that `build` makes of another copy, or None.

    Random rollouts are compared, forward and backward, in float64 on the module's device: with random weights (the
    official ones start at 0, which would hide much) and with the module's own, in both training modes, with offsets of
    a few pixels and of any size. Then single steps are compared at other sizes and in other dtypes. A module that
    keeps state between its calls, or depends on parameters that are not its own, differs.
    """
    device = next(module.parameters()).device
    device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    devices = [device.index or 0] if device.type == "cuda" else []
    rollouts = [
        _Conditions(True, False, True, (2, 5, 7)),
        _Conditions(True, False, False, (1, 6, 6)),
        _Conditions(True, True, False, (3, 4, 5)),
    ]
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
            inputs = _inputs(theirs, device, conditions.size, far=conditions.far)
            if reason := _compare(theirs, ours, inputs, _rollout):
                return f"{reason} ({'training' if conditions.training else 'eval'} mode)"
        return _other_calls(*_copies(module, build, device, rollouts[0]), device, _dtype(module))


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _copies(
    module: nn.Module,
    build: Callable[[nn.Module], MotionGRUCell],
    device: torch.device,
    conditions: _Conditions,
) -> tuple[nn.Module, MotionGRUCell]:
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
    module: nn.Module,
    device: torch.device,
    size: tuple[int, int, int],
    *,
    large: bool = False,
    far: bool = False,
) -> dict[str, Tensor]:
    """Return random x, offset and trend by name, in float64: `large` features to 1e3, `far` offsets to 1e8."""
    generator = torch.Generator().manual_seed(1)
    batch, height, width = size
    channels = cast(nn.Conv2d, module.get_submodule("warp.conv")).in_channels
    motion = cast(nn.Conv2d, module.get_submodule("update")).out_channels
    inputs = {}
    for name, n, std in (("x", channels, 1), ("offset", motion, 2), ("trend", motion, 1)):
        shape = (batch, n, height, width)
        inputs[name] = std * _normal(generator, shape, device)
        if decades := 3 * large if name == "x" else 8 * far:
            exponent = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
            inputs[name] *= (10 ** (decades * exponent)).to(device)
    return inputs


def _other_calls(
    theirs: nn.Module, ours: MotionGRUCell, device: torch.device, own_dtype: torch.dtype
) -> str | None:
    """Return how single steps differ without gradients, at other sizes and in other dtypes, or None if they agree.

    The module has to run in the dtype that it was given in, and may refuse others.
    """
    x, offset, trend = _inputs(theirs, device, (2, 5, 7)).values()
    for motion in ((None, None), (offset, None), (None, trend)):
        try:
            with torch.no_grad():
                theirs(x, *motion)
        except Exception:
            continue
        return "its forward takes None in place of the motion"
    for size in _SIZES:
        if reason := _compare(theirs, ours, _inputs(theirs, device, size, large=True), _step):
            batch, height, width = size
            return f"{reason} (a batch of {batch} at {height}x{width})"
    for dtype, mixed in (
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
        (torch.bfloat16, False),
    ):
        theirs.to(dtype)
        inputs = {name: value.to(dtype) for name, value in _inputs(theirs, device, (2, 5, 7)).items()}
        title = "autocast" if mixed else str(dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            try:
                _step(theirs, inputs)
            except Exception as error:
                if dtype == own_dtype and not mixed:
                    return f"it cannot be compared, its forward raised {_said(error)} ({title})"
                continue
            if reason := _compare(
                theirs, ours, inputs, _step, _TOLERANCES[torch.bfloat16 if mixed else dtype]
            ):
                return f"{reason} ({title})"
    return None


def _compare(
    theirs: nn.Module,
    ours: MotionGRUCell,
    inputs: dict[str, Tensor],
    run: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor] | str],
    tolerance: float = _TOLERANCE,
) -> str | None:
    """Return how what `run` gives of the module differs from what it gives of the cell, or None if they agree."""
    before = _state(theirs)
    try:
        found = run(theirs, inputs)
    except Exception as error:
        return f"it cannot be compared, its forward or backward raised {_said(error)}"
    if isinstance(found, str):
        return found
    if changed := _changes(before, _state(theirs)):
        return f"its forward keeps state between calls: it changes {', '.join(changed[:5])}"
    wanted = run(ours, {name: value.double() for name, value in inputs.items()})
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


def _rollout(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor] | str:
    """Return the results and gradients of a rollout by name, or a sentence if the module returns something else.

    The rollout has three steps. Gradients are those of the sum of all results times fixed random factors. One more step
    runs without gradients.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    x, offset, trend = leaves.values()
    generator = torch.Generator().manual_seed(2)
    results: dict[str, Tensor] = {}
    loss = x.new_zeros(())
    for step in range(3):
        outputs = module(x, offset, trend)
        if type(outputs) is not tuple or len(outputs) != 3:
            return f"its forward returns a {type(outputs).__name__}, not a tuple (out, offset, trend)"
        out, offset, trend = outputs
        for name, value in (("trend", trend), ("offset", offset), ("out", out)):
            results[f"{name} of step {step + 1}"] = value.detach()
            loss = loss + (_normal(generator, tuple(value.shape), value.device) * value).sum()
    leaves |= dict(module.named_parameters())
    if others := _leaves_of(loss) - set(leaves.values()):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in others)
        return f"its results depend on parameters that are not its own, of shape {shapes}"
    loss.backward()
    results |= {
        f"{name} under no_grad": value for name, value in _step(module, inputs, torch.no_grad).items()
    }
    for name, leaf in leaves.items():
        results[f"the gradient of {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return results


def _step(
    module: nn.Module, inputs: dict[str, Tensor], mode: Callable[[], object] = torch.inference_mode
) -> dict[str, Tensor]:
    """Return the results of one step without gradients by name."""
    with mode():  # type: ignore[attr-defined]
        outputs = module(*(value.clone() for value in inputs.values()))
    return dict(zip(("out", "offset", "trend"), outputs))


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


# ---- The state that a module keeps between its calls


def _state(module: nn.Module) -> dict[str, tuple[object, int | None]]:
    """Return every attribute that the module and its parts hold, also in containers and objects, by its path.

    A tensor has the number of its changes in place beside it, anything else None.
    """
    state: dict[str, tuple[object, int | None]] = {}
    seen: set[int] = set()
    todo: deque[tuple[str, object]] = deque()
    for name, part in module.named_modules():
        seen.add(id(part))
        of_classes: dict[str, object] = {}
        for kind in reversed(type(part).__mro__):
            of_classes.update((key, value) for key, value in vars(kind).items() if not callable(value))
        # Names with two underscores are Python's, and those under which torch.compile notes something.
        own = {key: value for key, value in {**of_classes, **vars(part)}.items() if not key.startswith("__")}
        todo.extend((f"{name}.{key}".lstrip("."), value) for key, value in own.items())
    while todo:
        path, value = todo.popleft()
        tracked = isinstance(value, Tensor) and not value.is_inference()
        state[path] = value, cast(Tensor, value)._version if tracked else None
        if id(value) in seen or isinstance(value, (Tensor, type)):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            todo.extend((f"{path}[{key!r}]", inner) for key, inner in value.items())
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            todo.extend((f"{path}[{i}]", inner) for i, inner in enumerate(value))
        elif hasattr(value, "__dict__") and (isinstance(value, nn.Module) or not callable(value)):
            todo.extend((f"{path}.{key}", inner) for key, inner in vars(value).items())
    return state


def _changes(
    before: dict[str, tuple[object, int | None]], after: dict[str, tuple[object, int | None]]
) -> list[str]:
    """Return the paths at which two states differ."""
    paths = {**before, **after}
    return [path for path in paths if not _same(before.get(path), after.get(path))]


def _same(before: tuple[object, int | None] | None, after: tuple[object, int | None] | None) -> bool:
    """Return whether two entries of a state are the same object, unchanged, or equal numbers or strings."""
    if before is None or after is None or before[1] != after[1]:
        return False
    plain = isinstance(after[0], (bool, int, float, complex, str, bytes))
    return before[0] is after[0] or (plain and before[0] == after[0])
