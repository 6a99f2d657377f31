"""What must come out of a random case (fuzzing.py): the reference's results in float64, and how far from them is right.

Beside the stated tolerances (comparing.py) there are seven rules:

    cancelling   A sum may be much smaller than its terms, and these are rounded: 16 roundings of the terms are allowed,
                 in float32, or in float64 beside float64. Tensor cores first round the warp's samples to the features'
                 dtype: there one such rounding more.
    place        A tap's place between two pixels, from 0 to 1, is rounded: at an offset of -1e-9 it is 1, and the pixel
                 before has no weight instead of 1e-9. One rounding of all that the four pixels hold is allowed.
    one tensor   The gradient of one that is several inputs is a sum of gradients, each stored in its dtype: the
                 tolerance counts from the terms.
    overflow     Half dtypes end early: what lies beyond their last number must be that number or inf.
    not finite   must meet not finite. It is not compared which: inf * s is nan instead of inf where float32 has s = 0.
                 Where one coordinate of a tap is nan, the other's gradient is not compared at all: the reference gives
                 0 where that lies far outside, kernels give nan; nor, of one tensor, a sum that holds it.
    at a bound   Where a new offset is at max_offset in one of the two alone, by a rounding, gradients are not compared.
    motion_warp  The warp is compared at the offset that the op itself found, in float32: by one rounding of 1e7 a
                 sample moves by a pixel, and by one at an integer its derivative jumps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

import torch
from comparing import TOLERANCE
from fuzzing import Drawn, Inputs
from torch import Tensor
from under_test import REFERENCE, UnderTest

from motionrnn_ext.backends import reference


def exact_of(t: Tensor) -> Tensor:
    return t.detach().cpu().double()


class Results(NamedTuple):
    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]  # of the wanted inputs


def check(on: UnderTest, case: Drawn) -> None:
    inputs = case.inputs(on.device)
    before = {name: _storage(t).clone() for name, t in inputs.items() if t is not None}
    with on.chosen(), _deterministic(case.deterministic):
        outputs = case.run(inputs)
        cotangents = case.cotangents(outputs)
        actual = _differentiated(case, inputs, outputs, cotangents)
    for name, storage in before.items():
        assert storage.equal(_storage(inputs[name])), f"{name} was written to"

    cotangents = [exact_of(c) for c in cotangents]
    doubles = {  # an input that is there twice stays one
        id(t): exact_of(t).contiguous().requires_grad_(t.requires_grad)
        for t in inputs.values()
        if t is not None
    }
    exact = {name: None if t is None else doubles[id(t)] for name, t in inputs.items()}
    with REFERENCE.chosen():
        outputs = _motion_warp(case, exact, actual) if case.op == "motion_warp" else case.run(exact)
    expected = _differentiated(case, exact, outputs, cotangents)
    allowed = _allowed(_Limits(on, case), case, exact, expected, actual, cotangents)
    for i, e in enumerate(expected.outputs):
        _assert_within(actual.outputs[i], e, allowed.outputs[i], f"output {i}")
    for name, e in expected.gradients.items():
        assert actual.gradients[name].dtype == inputs[name].dtype, f"gradient of {name}"
        _assert_within(actual.gradients[name], e, allowed.gradients[name], f"gradient of {name}")


def _storage(t: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())


@contextmanager
def _deterministic(chosen: bool) -> Iterator[None]:
    """Besides, torch then fills fresh memory with nan."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(chosen)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _differentiated(
    case: Drawn, inputs: Inputs, outputs: tuple[Tensor, ...], cotangents: list[Tensor]
) -> Results:
    used = [(outputs[i], c) for i, c in zip(case.used, cotangents) if outputs[i].requires_grad]
    wanted = {name: inputs[name] for name in case.wanted}
    grads = [None] * len(wanted)
    if used and wanted:
        grads = torch.autograd.grad(
            [o for o, _ in used], list(wanted.values()), [c for _, c in used], allow_unused=True
        )
    return Results(
        outputs, {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), grads)}
    )


# ---- The reference


class _At(torch.autograd.Function):
    """The first with the second's values."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _motion_warp(case: Drawn, exact: Inputs, actual: Results) -> tuple[Tensor, ...]:
    x, update, candidate, offset, trend, mask, weight = exact.values()
    offset, trend = reference.motion_update(
        update,
        candidate,
        offset,
        trend,
        case.parameters.get("alpha", 0.5),
        case.parameters.get("max_offset") or inf,
    )
    moved = _At.apply(offset, exact_of(actual.outputs[1]))
    return reference.offset_warp(x, moved, mask, weight), offset, trend


# ---- What is allowed: |actual - expected|, by element or for all of a tensor


class _Limits:
    """The limits of one case's results."""

    def __init__(self, on: UnderTest, case: Drawn) -> None:
        self.dtype, is_double = case.dtype, case.dtype == torch.float64
        self.rounding = 16 * torch.finfo(torch.float64 if is_double else torch.float32).eps
        if case.same:
            self.rounding += TOLERANCE[case.dtype]
        self.in_warp = self.rounding
        self.place = torch.finfo(torch.float64 if is_double else torch.float32).eps
        if on.runs_gpu_kernels and case.dtype.itemsize == 2:
            self.in_warp += torch.finfo(case.dtype).eps

    def of_pointwise(self, expected: Tensor, dtype: torch.dtype, terms: Tensor) -> Tensor:
        return TOLERANCE[dtype] * expected.abs() + self.rounding * terms + _smallest(dtype)

    def of_warp(self, expected: Tensor, terms: float, at_corners: float) -> Tensor:
        rounded = self.in_warp * terms + self.place * at_corners
        limit = TOLERANCE[self.dtype] * _largest(expected) + rounded + _smallest(self.dtype)
        return torch.full_like(expected, limit)


def _allowed(
    limits: _Limits, case: Drawn, exact: Inputs, expected: Results, actual: Results, cotangents: list[Tensor]
) -> Results:
    exact = {name: t.detach() for name, t in exact.items() if t is not None}
    of_output = dict(zip(case.used, cotangents))
    given = [of_output.get(i, torch.zeros_like(o)).abs() for i, o in enumerate(expected.outputs)]
    outputs: list[Tensor] = []
    grads: dict[str, Tensor] = {}
    slack = torch.zeros(())  # what the gradients that arrive at the pointwise op may be off by

    if case.op.endswith("_warp"):
        moved = exact if case.op == "offset_warp" else {**exact, "offset": exact_of(actual.outputs[1])}
        warp = [moved[name] for name in ("x", "offset", "mask_logits", "weight")]
        terms, by_offset = _warp_terms(*warp, of_output.get(0, torch.zeros_like(expected.outputs[0])))
        of_offset = limits.of_warp(by_offset, *terms["offset"])
        lost = (
            sum(t.isnan() for t in warp[1].chunk(2, 1)).bool().repeat(1, 2, 1, 1)
        )  # coordinates of a tap at nan
        of_offset[lost] = float("inf")
        outputs.append(limits.of_warp(expected.outputs[0], *terms["out"]))
        for name, e in expected.gradients.items():
            if name in terms and not (name == "offset" and case.op == "motion_warp"):
                grads[name] = of_offset if name == "offset" else limits.of_warp(e, *terms[name])
                if case.same and e.shape == lost.shape:
                    grads[name] = grads[name].masked_fill(lost, inf)
        if case.op == "motion_warp":
            given, slack = [by_offset.abs().nan_to_num(0, 0, 0), *given[1:]], of_offset

    bound = case.parameters.get("max_offset")
    differs = None
    if bound is not None:
        found = actual.outputs[len(outputs)], expected.outputs[len(outputs)]
        at_bound = [exact_of(t).abs() >= bound for t in found]
        differs = at_bound[0] != at_bound[1]

    if case.op != "offset_warp":
        size, arriving = _pointwise_terms(exact), torch.stack(given).sum(0)
        for a, e in zip(actual.outputs[len(outputs) :], expected.outputs[len(outputs) :]):
            outputs.append(limits.of_pointwise(e, a.dtype, size))
        for name, e in expected.gradients.items():
            if name not in grads:
                factor = size if _is_squashed(name) else torch.ones_like(size)
                factor = factor.repeat(1, e.shape[1] // max(factor.shape[1], 1), *[1] * (e.dim() - 2))
                arrived = arriving.repeat(1, e.shape[1] // max(arriving.shape[1], 1), *[1] * (e.dim() - 2))
                grads[name] = (
                    limits.of_pointwise(e, actual.gradients[name].dtype, arrived * factor) + slack * factor
                )
                if differs is not None:
                    grads[name][differs] = inf
    return Results(tuple(outputs), grads)


def _pointwise_terms(exact: dict[str, Tensor]) -> Tensor:
    """Return by element the largest finite operand that enters linearly, or the 1 of a sigmoid or tanh."""
    names = [n for n in exact if not _is_squashed(n) and n not in ("x", "weight")]
    linear = [exact[n].abs().nan_to_num(0, 0, 0) for n in names]
    return torch.stack([torch.ones_like(linear[0] if linear else exact["content"]), *linear]).amax(0)


def _is_squashed(name: str) -> bool:
    """Whether the operand goes through a sigmoid or tanh; the others enter linearly."""
    return name.endswith("logits") or "gates" in name or name == "content"


def _warp_terms(
    x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor, grad: Tensor
) -> tuple[dict[str, tuple[float, float]], Tensor]:
    """The largest sums of absolute terms in the output and in each gradient: of these terms, and of those where all
    four pixels around a tap have weight 1; and the offset's gradient itself."""
    with torch.enable_grad():
        by = offset.clone().requires_grad_()
        (by_offset,) = torch.autograd.grad(reference.offset_warp(x, by, mask_logits, weight), by, grad)
    absolute = x.abs(), mask_logits.clamp(-5, 5), weight.abs(), grad.abs()
    terms = _largest_terms(offset, *absolute)
    between = _largest_terms(offset.floor() + 0.5, *absolute)  # where each of the four has a quarter
    return {name: (terms[name], 4 * between[name]) for name in terms}, by_offset


def _largest_terms(
    offset: Tensor, x: Tensor, mask_logits: Tensor, weight: Tensor, grad: Tensor
) -> dict[str, float]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (x, mask_logits, weight)]
        out = reference.offset_warp(leaves[0], offset, *leaves[1:])
        of_x, of_mask, of_weight = torch.autograd.grad(out, leaves, grad)
    samples = of_mask / (1 - leaves[1].detach().sigmoid())  # its derivative holds s (1 - s)
    terms = {
        "out": out.detach(),
        "x": of_x,
        "mask_logits": samples,
        "weight": of_weight,
        "offset": 4 * samples,
    }
    return {name: _largest(t) for name, t in terms.items()}


def _largest(t: Tensor) -> float:
    t = t[t.isfinite()]
    return t.abs().max().item() if t.numel() else 0.0


def _smallest(dtype: torch.dtype) -> float:
    """Half of the dtypes' steps have fewer digits below the smallest normal number."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def _assert_within(actual: Tensor, expected: Tensor, allowed: Tensor, what: str) -> None:
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} instead of {expected.shape}"
    tolerance, last = TOLERANCE[actual.dtype], torch.finfo(actual.dtype).max
    actual, expected = exact_of(actual), expected.detach()
    right = (actual - expected).abs() <= allowed
    right |= ~actual.isfinite() & ~expected.isfinite() | allowed.isinf()
    beyond = (expected.abs() >= last * (1 - tolerance)) & (actual.abs() >= last * (1 - 2 * tolerance))
    right |= beyond & (actual.sign() == expected.sign())
    if not bool(right.all()):
        at = tuple(int(i) for i in torch.unravel_index((~right).long().argmax(), right.shape))
        error, limit = (actual - expected).abs()[at].item(), allowed.expand_as(expected)[at].item()
        raise AssertionError(
            f"{what} at {at}: {actual[at].item()!r} instead of {expected[at].item()!r}: {error:.3g} apart, "
            f"{limit:.3g} allowed; {int((~right).sum())} of {right.numel()} are wrong"
        )
