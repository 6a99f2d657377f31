"""A wrong argument is named, with what it is and what it should be."""

from __future__ import annotations

import re

import pytest
import torch
from cases import OPS, small_case

import motionrnn_ext
from motionrnn_ext import ops


def good(op: str) -> dict:
    return small_case(op).inputs(torch.float32, grad=False)


def meta(t: torch.Tensor) -> torch.Tensor:
    return t.to("meta")


WRONG = [
    # op, argument, change, error, words of the message
    ("offset_warp", "x", lambda t: t[0], ValueError, ["x has rank 3", "rank 4", "(B, C, H, W)"]),
    (
        "offset_warp",
        "offset",
        lambda t: t[:, :17],
        ValueError,
        ["offset has shape (2, 17, 3, 4)", "(2, 18, 3, 4)", "K = 9"],
    ),
    (
        "offset_warp",
        "offset",
        lambda t: t[:1],
        ValueError,
        ["offset has shape (1, 18, 3, 4)", "(2, 18, 3, 4)"],
    ),
    (
        "offset_warp",
        "mask_logits",
        lambda t: t[:, :8],
        ValueError,
        ["mask_logits has shape (2, 8, 3, 4)", "(2, 9, 3, 4)"],
    ),
    (
        "offset_warp",
        "weight",
        lambda t: t[:, :1],
        ValueError,
        ["weight takes 1 channels", "2, the channels of x"],
    ),
    (
        "offset_warp",
        "weight",
        lambda t: t[..., :2],
        ValueError,
        ["weight has a 3x2 neighbourhood", "k x k with k odd"],
    ),
    ("offset_warp", "weight", lambda t: t[..., :2, :2], ValueError, ["2x2 neighbourhood", "k odd"]),
    ("offset_warp", "weight", lambda t: t.flatten(2), ValueError, ["weight has rank 3", "(C_out, C, k, k)"]),
    (
        "offset_warp",
        "offset",
        torch.Tensor.double,
        TypeError,
        ["offset has dtype torch.float64", "torch.float32"],
    ),
    (
        "offset_warp",
        "offset",
        torch.Tensor.half,
        TypeError,
        ["offset has dtype torch.float16", "should be torch.float32"],
    ),
    (
        "offset_warp",
        "weight",
        torch.Tensor.half,
        TypeError,
        ["weight has dtype torch.float16", "torch.float32, the dtype of x"],
    ),
    (
        "offset_warp",
        "x",
        torch.Tensor.int,
        TypeError,
        ["x has dtype torch.int32", "float32, bfloat16, float16 or float64"],
    ),
    ("offset_warp", "x", lambda t: [1.0], TypeError, ["list", "Tensor"]),
    ("offset_warp", "mask_logits", meta, ValueError, ["mask_logits is on meta", "cpu, the device of x"]),
    (
        "motion_reset",
        "reset_logits",
        lambda t: t[0, 0, 0],
        ValueError,
        ["reset_logits has rank 1", "rank 2 or more"],
    ),
    (
        "motion_reset",
        "offset",
        lambda t: t[:, :1],
        ValueError,
        ["offset has shape (2, 1, 2, 3)", "(2, 2, 2, 3)"],
    ),
    (
        "motion_update",
        "trend",
        lambda t: t[..., :2],
        ValueError,
        ["trend has shape (2, 2, 2, 2)", "update_logits"],
    ),
    (
        "motion_update",
        "candidate_logits",
        torch.Tensor.bfloat16,
        TypeError,
        ["candidate_logits has dtype torch.bfloat16"],
    ),
    ("motion_update", "offset", meta, ValueError, ["offset is on meta", "cpu"]),
    (
        "memory_update",
        "gates_x",
        lambda t: t[:, :4],
        ValueError,
        ["gates_x has 4 channels", "3C, packed (i, f, g)"],
    ),
    (
        "memory_update",
        "memory",
        lambda t: t[:, :1],
        ValueError,
        ["memory has shape (2, 1, 2, 3)", "(2, 2, 2, 3)"],
    ),
    (
        "memory_update",
        "memory",
        torch.Tensor.double,
        TypeError,
        ["memory has dtype torch.float64", "torch.float32"],
    ),
    (
        "highway_output",
        "highway",
        lambda t: t[:1],
        ValueError,
        ["highway has shape (1, 2, 2, 3)", "(2, 2, 2, 3)"],
    ),
    ("highway_output", "content", torch.Tensor.long, TypeError, ["content has dtype torch.int64"]),
    ("gated_blend", "gate_logits", lambda t: None, TypeError, ["gate_logits is a NoneType", "torch.Tensor"]),
    ("gated_blend", "a", lambda t: None, TypeError, ["a is a NoneType", "torch.Tensor"]),
    ("highway_output", "content", lambda t: None, TypeError, ["content is a NoneType", "torch.Tensor"]),
    ("offset_warp", "weight", lambda t: None, TypeError, ["weight is a NoneType", "torch.Tensor"]),
    ("gated_blend", "b", lambda t: t.mT, ValueError, ["b has shape (2, 2, 3, 2)", "(2, 2, 2, 3)"]),
]


@pytest.mark.parametrize(
    "op, argument, change, error, words", WRONG, ids=[f"{w[0]}-{w[1]}-{i}" for i, w in enumerate(WRONG)]
)
def test_message(op, argument, change, error, words):
    arguments = good(op)
    arguments[argument] = change(arguments[argument])
    with pytest.raises(error) as raised:
        getattr(ops, op)(**arguments)
    message = str(raised.value)
    assert message.startswith(f"{op}: ") and "\n" not in message
    for word in words:
        assert re.search(re.escape(word), message), message


@pytest.mark.parametrize("op", OPS)
def test_what_is_no_tensor_is_named_under_autocast_too(op: str):
    arguments = good(op)
    last = list(arguments)[-1]
    arguments[last] = [1.0]
    with torch.autocast("cpu"), pytest.raises(TypeError, match=f"{op}: {last} is a list"):
        getattr(ops, op)(**arguments)


@pytest.mark.skipif(
    "cpu" not in motionrnn_ext.available_backends(), reason="the cpu backend is not available"
)
def test_kernels_called_directly_refuse_what_they_would_read_beyond():
    def last(t: torch.Tensor) -> torch.Tensor:
        return t.to(memory_format=torch.channels_last)

    native = torch.ops.motionrnn_ext
    x, offset, mask, weight = good("offset_warp").values()
    wrong = [
        lambda: native.offset_warp(x, offset, mask, weight[..., :2]),
        lambda: native.offset_warp(x, offset, mask, weight.flatten(2)),
        lambda: native.offset_warp(*[t.bfloat16() for t in (x, offset, mask, weight)]),
        lambda: native.gated_blend(*[torch.ones(())] * 3),
        lambda: native.gated_blend(torch.ones(8, 2), torch.ones(1, 999)[:, :16], torch.ones(8, 2)),
        lambda: native.gated_blend(
            *[torch.ones(size) for size in ((1, 4, 2, 2), (1, 4, 1, 4), (1, 4, 2, 2))]
        ),
        lambda: native.gated_blend(*[last(torch.ones(1, c, 2, 8 // c)) for c in (4, 8, 4)]),
    ]
    for call in wrong:
        with pytest.raises(RuntimeError, match="mismatched sizes|mixed dtypes"):
            call()


@pytest.mark.parametrize("op", OPS)
def test_mixed_half_dtypes(op: str):
    arguments = small_case(op).inputs(torch.bfloat16, grad=False)
    last = [n for n in arguments if n not in ("offset", "trend", "memory")][-1]
    if len([n for n in arguments if n not in ("offset", "trend", "memory")]) == 1:
        arguments["offset"] = arguments["offset"].half()
        last = "offset"
    else:
        arguments[last] = arguments[last].half()
    with pytest.raises(TypeError, match=last):
        getattr(ops, op)(**arguments)


def test_unknown_backend():
    with pytest.raises(
        ValueError, match="unknown backend 'gpu'; known are: auto, reference, cpu, cuda, triton"
    ):
        motionrnn_ext.set_backend("gpu")
