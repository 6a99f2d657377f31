"""A MotionGRU step's gates and warp as one op on GPUs: values and gradients against the two ops of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from case import Case, channels_last, cut, like, misaligned, normal
from comparing import assert_close
from gates_cases import gates_inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from under_test import (
    CUDA_KERNELS,
    DTYPES,
    EMULATED,
    GPU_KERNELS,
    REFERENCE,
    TRITON,
    UnderTest,
    few_blocks,
    on,
)

from motionrnn_ext import ops
from motionrnn_ext.backends.registration.wanted import Wanted

ALPHA, MAX_OFFSET = 0.3, 1.5
WEIGHTS = ("x_weight", "x_bias", "state_weight", "candidate_weight", "warp_weight")
STATES = ("offset", "trend")
# Relative to the largest value. Measured: 1.2e-6 in float32, 1.1e-2 in bfloat16, 2e-3 in float16.
BOUNDS = {torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
ALL = int(Wanted.X | Wanted.MOTION | Wanted.WEIGHTS)


def inputs_of(
    g: torch.Generator,
    taps: int = 3,
    out_channels: int | None = None,
    layout_of_all: Callable[[Tensor], Tensor] = lambda t: t,
    **options: Any,
) -> dict[str, Tensor | None]:
    """Motion that rounding cannot move past a pixel, where gradients jump; every other channel of it goes back."""
    made = gates_inputs(g, motion=2 * taps**2, masks=taps**2, **options)
    for name in STATES:
        made[name] = 0.05 * made[name] + 0.3
        made[name][:, ::2] *= -1
    for name in WEIGHTS[:-1]:
        made[name] = 0.1 * made[name]
    channels = made["x"].shape[1]
    deviation = max(channels * taps**2, 1) ** -0.5
    out = channels if out_channels is None else out_channels
    made["warp_weight"] = normal(out, channels, taps, taps, scale=deviation)(g)
    return {name: t if name in WEIGHTS else layout_of_all(t) for name, t in made.items()}


def logits_of(
    x: Tensor,
    offset: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
) -> dict[str, Tensor]:
    """Return m, u, r and z by PyTorch's convolutions, in the order of the op's results."""
    motion, padding = offset.shape[1], x_weight.shape[-1] // 2
    by_x = F.conv2d(x, x_weight, x_bias, padding=padding)
    by_state = F.conv2d(offset, state_weight, padding=padding)
    update, reset = (by_x[:, : 2 * motion] + by_state).chunk(2, 1)
    by_candidate = F.conv2d(reset.sigmoid() * offset, candidate_weight, padding=padding)
    candidate = by_x[:, 2 * motion : 3 * motion] + by_candidate
    return {"m": by_x[:, 3 * motion :], "u": update, "r": reset, "z": candidate}


def check(
    on: UnderTest, dtype: torch.dtype, options: dict[str, Any], deterministic: bool = False, wanted: int = ALL
) -> None:
    made = inputs_of(torch.Generator().manual_seed(0), **options)
    inputs = {n: like(t, torch.float32 if n in STATES else dtype, on.device) for n, t in made.items()}
    exact = {n: t.cpu().double().requires_grad_() for n, t in inputs.items()}
    x, offset, trend, *gates, warp_weight = exact.values()
    with REFERENCE.chosen():
        new_offset, new_trend, mask = ops.motion_gates(x, offset, trend, *gates, ALPHA, MAX_OFFSET)
        expected = [ops.offset_warp(x, new_offset, mask, warp_weight), new_offset, new_trend]
    g = torch.Generator().manual_seed(1)
    states = dtype, torch.float32, torch.float32
    grads = [torch.randn(e.shape, generator=g).to(kind) for e, kind in zip(expected, states)]
    grads = [options.get("layout_of_all", lambda t: t)(t) for t in grads]
    found_exactly = torch.autograd.grad(expected, [*exact.values()], [t.double() for t in grads])
    to_exact = dict(zip(exact, found_exactly))
    with on.chosen(), torch.no_grad():
        for_forward, for_backward = on.op("motion_gates_pack")(*list(inputs.values())[3:8])
        numbers = ALPHA, MAX_OFFSET
        out, new_offset, new_trend, *logits = on.op("gated_warp")(*inputs.values(), for_forward, *numbers)
        given = [t.to(on.device) for t in grads]
        x, offset, _, *weights = inputs.values()
        arguments = (*given, x, offset, *weights, *logits, new_offset, for_backward, *numbers)
        found = on.op("gated_warp_backward")(*arguments, wanted, deterministic)
    with torch.no_grad():
        exact_logits = logits_of(exact["x"], exact["offset"], *gates)
    for (name, e), f in zip(exact_logits.items(), logits):
        assert_close(f, e, BOUNDS[dtype], name)
    for name, f, e in zip(("warped", "F'", "D'"), (out, new_offset, new_trend), expected):
        assert_close(f, e, BOUNDS[dtype], name)
    names = ["x", "offset", "trend"]
    bits = [Wanted.X, Wanted.MOTION, Wanted.MOTION]
    for name, bit, f in zip(names, bits, found):
        if wanted & bit:
            assert_close(f, to_exact[name], BOUNDS[dtype], f"gradient of {name}")
        else:
            assert f.numel() == 0, name
    to_logits, reset_offset, to_warp_weight = found[3:]
    if not wanted & Wanted.WEIGHTS:
        assert to_logits.numel() == reset_offset.numel() == to_warp_weight.numel() == 0
        return
    assert_close(to_warp_weight, to_exact["warp_weight"], BOUNDS[dtype], "gradient of warp_weight")
    # The factors of the other weights' gradients.
    motion = offset.shape[1]
    factors = {
        "x_weight": (to_logits, x),
        "state_weight": (to_logits[:, : 2 * motion], offset),
        "candidate_weight": (to_logits[:, 2 * motion : 3 * motion], reset_offset),
    }
    for name, (of_logits, of_input) in factors.items():
        weight = exact[name]
        product = torch.nn.grad.conv2d_weight(
            of_input.cpu().double(), weight.shape, of_logits.cpu().double(), padding=weight.shape[-1] // 2
        )
        assert_close(product, to_exact[name], BOUNDS[dtype], f"gradient of {name}")
    assert_close(
        to_logits.cpu().double().sum((0, 2, 3)), to_exact["x_bias"], BOUNDS[dtype], "gradient of x_bias"
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "c16": {"channels": 16, "height": 8, "width": 16},
    "c8": {"channels": 8, "batch": 3, "height": 5, "width": 5},
    "c32": {"channels": 32, "height": 4, "width": 9},
    "c1": {"channels": 1, "height": 5},
    "c33": {"channels": 33, "height": 3, "width": 4},
    "more_out": {"channels": 5, "out_channels": 18},
    "fewer_out": {"channels": 17, "out_channels": 3},
    "one_tap": {"taps": 1},
    **{f"one_tap_c{c}": {"taps": 1, "channels": c, "height": 3} for c in (16, 32)},
    **{
        f"one_tap_c{c}_channels_last": {"taps": 1, "channels": c, "layout_of_all": channels_last}
        for c in (16, 32)
    },
    "25_taps": {"taps": 5, "height": 3, "width": 4},
    "one_pixel": {"batch": 1, "height": 1, "width": 1},
    "column": {"height": 35, "width": 1},
    "no_entries": {"batch": 0},
    "cut": {"channels": 8, "layout_of_all": cut},
    "misaligned": {"channels": 8, "layout_of_all": misaligned},
    "channels_last": {"channels": 16, "layout_of_all": channels_last},
    "c32_channels_last": {"channels": 32, "height": 4, "width": 5, "layout_of_all": channels_last},
    "c6_channels_last": {"channels": 6, "layout_of_all": channels_last},
    "cut_of_channels_last": {"channels": 8, "layout_of_all": lambda t: cut(channels_last(t))},
}


@on(GPU_KERNELS, dtypes=DTYPES[1:])
@pytest.mark.parametrize("size", [1, 3], ids=["1x1", "3x3"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients(on: UnderTest, dtype: torch.dtype, size: int, variant: str) -> None:
    check(on, dtype, {**VARIANTS[variant], "size": size})


def check_large_maps(
    on: UnderTest, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], size: int = 1
) -> None:
    """Forward, of so many pixels that a block of CUDA takes a tile of each map; on PTX four of 512 blocks.

    With gates of 3x3 each warp takes all taps of its tile.
    """
    options = {"batch": 2, "channels": 32 if size == 1 else 8, "height": 64, "width": 128, "size": size}
    made = inputs_of(torch.Generator().manual_seed(0), **options, layout_of_all=layout)
    inputs = {n: like(t, torch.float32 if n in STATES else dtype, on.device) for n, t in made.items()}
    x, offset, trend, *gates, warp_weight = (t.cpu().double() for t in inputs.values())
    with REFERENCE.chosen():
        new_offset, new_trend, mask = ops.motion_gates(x, offset, trend, *gates, ALPHA, MAX_OFFSET)
        expected = ops.offset_warp(x, new_offset, mask, warp_weight), new_offset, new_trend, mask
    with on.chosen(), torch.no_grad():
        packed = on.op("motion_gates_pack")(*list(inputs.values())[3:8])[0]
        with few_blocks(4 if size == 1 else 0):
            found = on.op("gated_warp")(*inputs.values(), packed, ALPHA, MAX_OFFSET)
    for name, e, f in zip(("warped", "F'", "D'", "m"), expected, found):
        written = ~f.cpu().isnan()
        assert written.sum() == f.numel() // (128 if on is EMULATED and size == 1 else 1), name
        assert_close(f.cpu()[written], e[written], BOUNDS[dtype], name)


@on(CUDA_KERNELS, dtypes=DTYPES[1:])
@pytest.mark.parametrize("layout", [torch.clone, channels_last], ids=["", "channels_last"])
def test_more_tiles_than_blocks(
    on: UnderTest, layout: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    check_large_maps(on, dtype, layout)


@on(CUDA_KERNELS, dtypes=DTYPES[1:])
def test_warps_with_tiles_of_their_own(on: UnderTest, dtype: torch.dtype) -> None:
    check_large_maps(on, dtype, channels_last, size=3)


@on(GPU_KERNELS, dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3], ids=["1x1", "3x3"])
@pytest.mark.parametrize("channels", [4, 16, 19, 33])
def test_deterministic_sums(on: UnderTest, dtype: torch.dtype, size: int, channels: int) -> None:
    check(on, dtype, {"size": size, "channels": channels, "layout_of_all": channels_last}, deterministic=True)


@on([TRITON] if TRITON in GPU_KERNELS else [])
@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["", "channels_last"])
@pytest.mark.parametrize("size", [1, 3], ids=["1x1", "3x3"])
def test_triton_offsets_of_64_bits(
    on: UnderTest, size: int, layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Used where an element is farther from the first than 32 bits say; here always."""
    from motionrnn_ext.backends.triton import (
        gated_warp,
        motion_gates,
        offset_warp,
        offset_warp_backward,
        offset_warp_finish,
    )

    for module in (gated_warp, motion_gates, offset_warp, offset_warp_backward, offset_warp_finish):
        monkeypatch.setattr(module, "needs_64_bits", lambda *_: True)
    check(on, torch.float32, {"size": size, "channels": 6, "layout_of_all": layout}, deterministic=True)


@on(GPU_KERNELS)
@pytest.mark.parametrize("size", [1, 3], ids=["1x1", "3x3"])
def test_unwanted_gradients_come_back_empty(on: UnderTest, size: int) -> None:
    for wanted in range(16):
        if not wanted & Wanted.MASK:
            check(on, torch.float32, {"size": size}, wanted=wanted)


@st.composite
def drawn(draw: Any) -> tuple[dict[str, Any], torch.dtype]:
    options: dict[str, Any] = {
        "batch": draw(st.integers(0, 3)),
        "channels": draw(st.sampled_from([1, 2, 3, 8, 9, 16, 17, 32])),
        "out_channels": draw(st.sampled_from([None, None, 1, 12])),
        "taps": draw(st.sampled_from([1, 3, 3])),
        "height": draw(st.integers(1, 9)),
        "width": draw(st.integers(1, 19)),
        "size": draw(st.sampled_from([1, 1, 3])),
        "layout_of_all": draw(st.sampled_from([lambda t: t, channels_last])),
    }
    return options, draw(st.sampled_from([*BOUNDS]))


@on(CUDA_KERNELS)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(what=drawn())
def test_any_sizes_layouts_and_dtypes(on: UnderTest, what: tuple[dict[str, Any], torch.dtype]) -> None:
    options, dtype = what
    check(on, dtype, options)


@on(GPU_KERNELS)
def test_one_pixel_that_is_nan_stays_in_reach(on: UnderTest) -> None:
    """Gates of 1x1: the motion is nan at the pixel alone, the warped features where taps read it."""
    made = inputs_of(torch.Generator().manual_seed(0), size=1, height=9, width=10)
    made["x"][:, :, 4, 5] = float("nan")
    inputs = [t.float().to(on.device) for t in made.values()]
    with on.chosen():
        packed = on.op("motion_gates_pack")(*inputs[3:8])[0]
        out, new_offset, new_trend, *logits = on.op("gated_warp")(*inputs, packed, 0.5, 1e4)
    here = torch.zeros(9, 10, dtype=torch.bool)
    here[4, 5] = True
    for t in (new_offset, *logits):
        assert t.cpu()[:, :, here].isnan().all() and t.cpu()[:, :, ~here].isfinite().all()
    assert new_trend.isfinite().all()
    here[2:8, 3:9] = True
    assert out.cpu()[:, :, ~here].isfinite().all() and out.cpu()[:, :, 4, 5].isnan().all()


@on(CUDA_KERNELS)
def test_operands_that_do_not_fit(on: UnderTest) -> None:
    """Direct calls of torch.ops are guarded by checks in C++."""
    case = Case("", "", inputs_of)
    inputs = [t.detach().to(on.device) for t in case.inputs(torch.float32).values()]
    with on.chosen():
        packed = on.op("motion_gates_pack")(*inputs[3:8])[0]
        for place, change in {
            1: lambda t: t[:, 1:],
            2: lambda t: t[..., 1:],
            3: lambda t: t[1:],
            7: lambda t: t[:, 1:],
            8: lambda t: t[1:],
        }.items():
            wrong = [change(t) if i == place else t for i, t in enumerate([*inputs, packed])]
            with pytest.raises(RuntimeError, match="motionrnn_ext: "):
                on.op("gated_warp")(*wrong, ALPHA, MAX_OFFSET)
