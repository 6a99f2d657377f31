"""The end of a MotionGRU step as one op of GPUs: values and gradients against PyTorch's convolutions in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from case import channels_last, cut, like, misaligned, normal
from comparing import assert_close
from torch import Tensor
from torch.nn import functional as F
from under_test import CUDA_KERNELS, DTYPES, GPU_KERNELS, UnderTest, on

# Relative to the largest value. Measured: 8e-7 in float32, 8e-3 in bfloat16, 1e-3 in float16, 1e-15 in float64, which
# Triton's interpreter has.
BOUNDS = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def inputs_of(
    g: torch.Generator,
    batch: int = 2,
    channels: int = 8,
    encoded: int | None = None,
    height: int = 3,
    width: int = 5,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, Tensor]:
    encoded = max(channels // 4, 1) if encoded is None else encoded
    return {
        "warped": layout(normal(batch, encoded, height, width)(g)),
        "maps": layout(normal(batch, channels, 2 * height, 2 * width)(g)),
        "decoder_weight": normal(encoded, channels, 4, 4, scale=(4 * encoded) ** -0.5)(g),
        "decoder_bias": normal(channels)(g),
        "gate_weight": normal(channels, 2 * channels, 1, 1, scale=(2 * channels) ** -0.5)(g),
        "gate_bias": normal(channels)(g),
    }


def composed(
    warped: Tensor,
    maps: Tensor,
    decoder: Tensor,
    decoder_bias: Tensor,
    gate: Tensor,
    gate_bias: Tensor,
    side: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return X, Q and g."""
    decoded = F.conv_transpose2d(warped, decoder, decoder_bias, stride=2, padding=1)
    logits = F.conv2d(torch.cat([decoded, maps], 1), gate, gate_bias)
    first, second = (maps, decoded) if side else (decoded, maps)
    share = logits.sigmoid()
    return share * first + (1 - share) * second, decoded, logits


def check(on: UnderTest, dtype: torch.dtype, options: dict[str, Any], gates_maps: bool) -> None:
    made = inputs_of(torch.Generator().manual_seed(0), **options)
    inputs = {n: like(t, dtype, on.device) for n, t in made.items()}
    exact = {n: t.cpu().double().requires_grad_() for n, t in inputs.items()}
    out, decoded, logits = composed(*exact.values(), gates_maps)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grad = options.get("layout", lambda t: t)(grad).to(on.device)
    expected = torch.autograd.grad(out, [exact["maps"], decoded, logits], grad.cpu().double())
    maps, decoder, gate = (inputs[name] for name in ("maps", "decoder_weight", "gate_weight"))
    with on.chosen():
        forward, backward = on.op("decode_blend_pack")(decoder, gate)
        found = on.op("decode_blend")(*inputs.values(), forward, gates_maps)
        for name, f, e in zip(("X", "Q", "g"), found, (out, decoded, logits)):
            assert_close(f, e, BOUNDS[dtype], name)
        grads = on.op("decode_blend_backward")(grad, maps, *found[1:], decoder, gate, backward, gates_maps)
    for name, f, e in zip(("maps", "Q", "g"), grads, expected):
        assert_close(f, e, BOUNDS[dtype], f"gradient of {name}")


VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "c64": {"channels": 64, "height": 2, "width": 9},
    "c17": {"channels": 17},
    "c4": {"channels": 4, "height": 5, "width": 4},
    "c1": {"channels": 1},
    "c256": {"channels": 256, "batch": 1, "height": 1, "width": 2},
    "more_encoded": {"channels": 6, "encoded": 11},
    "one_pixel": {"batch": 1, "height": 1, "width": 1},
    "row": {"height": 1, "width": 21},
    "column": {"height": 21, "width": 1},
    "no_entries": {"batch": 0},
    "cut": {"layout": cut},
    "misaligned": {"layout": misaligned},
    "channels_last": {"channels": 32, "layout": channels_last},
    "c18_channels_last": {"channels": 18, "layout": channels_last},
    "cut_of_channels_last": {"layout": lambda t: cut(channels_last(t))},
}


@on(GPU_KERNELS, dtypes=DTYPES)
@pytest.mark.parametrize("gates_maps", [True, False], ids=["hidden", "decoded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients(on: UnderTest, dtype: torch.dtype, variant: str, gates_maps: bool) -> None:
    if variant == "c256" and not on.runs_cuda_kernels:
        pytest.skip("the kernels take 64 channels")
    check(on, dtype, VARIANTS[variant], gates_maps)


@on(GPU_KERNELS)
def test_results_keep_the_memory_format(on: UnderTest) -> None:
    made = inputs_of(torch.Generator(), layout=channels_last)
    inputs = [like(t, torch.float32, on.device) for t in made.values()]
    with on.chosen():
        packed = on.op("decode_blend_pack")(inputs[2], inputs[4])
        found = on.op("decode_blend")(*inputs, packed[0], True)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in found)


@on(CUDA_KERNELS)
def test_operands_that_do_not_fit(on: UnderTest) -> None:
    """Direct calls of torch.ops are guarded by checks in C++."""
    inputs = [like(t, torch.float32, on.device) for t in inputs_of(torch.Generator()).values()]
    with on.chosen():
        packed = on.op("decode_blend_pack")(inputs[2], inputs[4])[0]
        for place, change in {
            0: lambda t: t[:, 1:],
            1: lambda t: t[..., 1:],
            2: lambda t: t[..., :2],
            3: lambda t: t[1:],
            4: lambda t: t.double(),
            5: lambda t: t[:, None],
            6: lambda t: t[1:],
        }.items():
            wrong = [change(t) if i == place else t for i, t in enumerate([*inputs, packed])]
            with pytest.raises(RuntimeError, match="motionrnn_ext: "):
                on.op("decode_blend")(*wrong, True)
        many = torch.zeros(65, 260, 4, 4, device=on.device), torch.zeros(260, 520, 1, 1, device=on.device)
        with pytest.raises(RuntimeError, match="more channels than the kernels"):
            on.op("decode_blend_pack")(*many)
