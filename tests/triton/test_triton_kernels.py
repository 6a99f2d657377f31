"""The Triton kernels alone have blocks of any size, 64-bit offsets and tuning; their helpers are tried, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from case import Case, channels_last, generator
from cases import CASES
from checking import check
from comparing import assert_close
from gates_cases import gates_inputs
from under_test import KERNELS, REFERENCE, TRITON, UnderTest, on
from warp_cases import warp_inputs

from motionrnn_ext import ops

ONLY_TRITON = [TRITON] if TRITON in KERNELS else []
if ONLY_TRITON:
    import triton
    import triton.language as tl
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from motionrnn_ext.backends.triton import launch, motion_gates, offset_warp, offset_warp_backward, scalar
    from motionrnn_ext.backends.triton.launch import BLOCKS, MANY, Block

    @triton.jit
    def unary_kernel(x, sigmoid_out, tanh_out, COUNT: tl.constexpr):
        i = tl.arange(0, COUNT)
        value = tl.load(x + i)
        tl.store(sigmoid_out + i, scalar.sigmoid(value))
        tl.store(tanh_out + i, scalar.tanh(value))


# ---- Blocks


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table of blocks may be changed within a test."""
    for op in BLOCKS:
        monkeypatch.setitem(BLOCKS, op, BLOCKS[op])
    yield


LAYOUTS = {"": lambda t: t, "channels_last": channels_last}


@on(ONLY_TRITON)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size, parts", [(16, 256), (32, 1), (64, 2), (512, 256)])
def test_a_warp_in_blocks_of_any_size(
    on: UnderTest, size: int, parts: int, layout: str, blocks: None, monkeypatch: pytest.MonkeyPatch
):
    """Several tiles to a program, and the last ones empty, where there are few parts of grad_weight."""
    for op in ("offset_warp", "offset_warp_backward"):
        BLOCKS[op] = [(MANY, Block(size, 4), Block(size, 4))]
    monkeypatch.setattr(offset_warp_backward, "MAX_PARTS", parts)
    options = {"channels": 33, "out_channels": 20, "k": 1, "height": 8, "width": 9, "layout": LAYOUTS[layout]}
    check(on, Case("offset_warp", "", partial(warp_inputs, **options)), torch.float32)


@on(ONLY_TRITON)
def test_little_work_is_spread_over_the_multiprocessors(on: UnderTest, blocks: None):
    block = Block(64, 4, least=16)
    assert [block.spread(work).size for work in (64 * 128, 64 * 128 - 1, 32 * 128 - 1, 1)] == [64, 32, 16, 16]
    assert Block(64, 4).spread(1) == Block(64, 4)
    of_unknown_size = ShapeEnv().create_unbacked_symint()
    assert block.spread(of_unknown_size) == block
    BLOCKS["offset_warp"] = [(MANY, block, block)]
    used = []
    launch.in_blocks("offset_warp", 16, torch.ones(1, device=on.device), 8 * 16 * 16, used.append)
    assert used == [Block(16, 4, least=16)]


@on(ONLY_TRITON)
@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 7)])
@pytest.mark.parametrize("size", [16, 128])
def test_a_pointwise_op_in_blocks_of_any_size(on: UnderTest, size: int, shape: tuple[int, ...], blocks: None):
    BLOCKS["pointwise"] = [(MANY, Block(size, 4), Block(size, 4))]

    def make(g: torch.Generator) -> dict[str, torch.Tensor]:
        joined = torch.randn(shape[0], 3 * shape[1], *shape[2:], generator=g, dtype=torch.float64)
        return dict(zip(("gate_logits", "a", "b"), joined.chunk(3, 1)))

    check(on, Case("gated_blend", "", make), torch.float32)


@on(ONLY_TRITON)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_offsets_of_64_bits(on: UnderTest, layout: str, monkeypatch: pytest.MonkeyPatch):
    """Used where an element is farther from the first than 32 bits say; here always."""
    for module in (offset_warp, offset_warp_backward):
        monkeypatch.setattr(module, "needs_64_bits", lambda *_: True)
    options = {"channels": 5, "k": 1, "layout": LAYOUTS[layout]}
    check(on, Case("offset_warp", "", partial(warp_inputs, **options)), torch.float32)


@on(ONLY_TRITON)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 3])
def test_gates_with_offsets_of_64_bits(
    on: UnderTest, size: int, layout: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(motion_gates, "needs_64_bits", lambda *_: True)
    options = {"size": size, "motion": 2, "masks": 1, "layout_of_all": LAYOUTS[layout]}
    check(on, Case("motion_gates", "", partial(gates_inputs, **options)), torch.float32)


# ---- Gates


@on(ONLY_TRITON)
@pytest.mark.parametrize("size", [1, 3])
def test_an_infinite_number_makes_gates_no_less_finite(on: UnderTest, size: int):
    """Tiles are wider than the gates: what they hold beside them takes no part in a sum, where it would be nan."""
    case = Case("motion_gates", "", partial(gates_inputs, size=size))
    inputs = list(case.inputs(torch.float32, on.device, grad=False).values())
    inputs[0][0, 1, 2, 3] = float("inf")
    outputs = on.op("motion_gates")(*inputs, 0.5, 1e4)
    with REFERENCE.chosen():
        expected = ops.motion_gates(*(t.double() for t in inputs), 0.5, 1e4)
    for found, exact in zip(outputs[:3], expected):
        assert torch.equal(found.isfinite(), exact.isfinite())


@on(ONLY_TRITON)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["gated_blend", "offset_warp"])
def test_no_sum_of_32_bits_overflows(on: UnderTest, op: str, layout: str, monkeypatch: pytest.MonkeyPatch):
    """Far offsets do not bring addresses out of range, either, though nothing is read there."""
    if not on.is_slow:
        pytest.skip("Triton's interpreter finds that")
    builder = triton.runtime.interpreter.interpreter_builder
    # Without `debug`, the interpreter looks for overflows and does not tell.
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=True, debug=True))
    names = {"gated_blend": ("plain", "channels_last_c3"), "offset_warp": ("absurd", "absurd_channels_last")}[
        op
    ]
    (case,) = [c for c in CASES if (c.op, c.name) == (op, names[layout != ""])]
    check(on, case, torch.float32)


@on(ONLY_TRITON)
def test_offsets_of_64_bits_are_used_where_they_are_needed(on: UnderTest):
    """A view reaches beyond 2^31 elements, on tensors without memory."""
    from motionrnn_ext.backends.triton.images import Image, needs_64_bits

    near, far = (
        torch.empty_strided((2, 4, 8, 8), (stride, 64, 8, 1), device="meta") for stride in (256, 2**31 - 256)
    )
    assert not needs_64_bits(Image.of(near)) and needs_64_bits(Image.of(near), Image.of(far))


@on(ONLY_TRITON)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with 20 GB")
@pytest.mark.parametrize("op", ["gated_blend", "offset_warp"])
def test_large_tensors(on: UnderTest, op: str):
    """More than 2^31 elements: the last ones are those of a small call."""
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("less than 20 GB of memory are free")
    g = torch.Generator("cuda").manual_seed(0)

    def made(batch: int, channels: int) -> torch.Tensor:
        return torch.randn(batch, channels, 256, 256, generator=g, device="cuda", dtype=torch.bfloat16)

    with on.chosen():
        if op == "gated_blend":
            inputs = [made(1, 2**15 + 1)] * 3
            assert ops.gated_blend(*inputs)[:, -1].equal(ops.gated_blend(*[t[:, -1:] for t in inputs])[:, 0])
        else:
            x, mask, weight = (
                made(2**11 + 1, 16),
                made(2**11 + 1, 1),
                made(1, 1)[:, :, :16, :16].reshape(16, 16, 1, 1),
            )
            offset = torch.randn(2**11 + 1, 2, 256, 256, generator=g, device="cuda")
            last = [t[-1:].contiguous() for t in (x, offset, mask)]
            assert ops.offset_warp(x, offset, mask, weight)[-1:].equal(ops.offset_warp(*last, weight))


# ---- Tuning


@on(ONLY_TRITON)
def test_tuning_runs_whole_ops_once_per_channels_and_dtype(on: UnderTest, monkeypatch: pytest.MonkeyPatch):
    """MOTIONRNN_EXT_AUTOTUNE=1 takes the fastest candidate; a capture or a trace is not the time for it."""
    milliseconds = {block: float(block.size + block.warps) for block in launch.CANDIDATES["offset_warp"]}
    fastest = min(milliseconds, key=milliseconds.get)
    timed, ran = [], []

    def run(block):
        ran.append(block)
        return block

    def do_bench(call, **_):
        timed.append(call())
        return milliseconds[timed[-1]]

    monkeypatch.setattr(launch, "_tuned", {})
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x = torch.ones(1)
    capturing = False
    table = launch.block("offset_warp", 16, x.dtype)
    assert launch.in_blocks("offset_warp", 16, x, MANY, run) == table and timed == []  # not asked for
    monkeypatch.setenv("MOTIONRNN_EXT_AUTOTUNE", "1")
    capturing = True
    assert launch.in_blocks("offset_warp", 16, x, MANY, run) == table and timed == []
    capturing = False
    assert launch.in_blocks("offset_warp", 16, x, MANY, run) == fastest
    assert timed == launch.CANDIDATES["offset_warp"]
    assert launch.in_blocks("offset_warp", 16, x, MANY, run) == fastest and len(timed) == len(milliseconds)
    launch.in_blocks("offset_warp", 32, x, MANY, run)
    launch.in_blocks("offset_warp", 16, x.bfloat16(), MANY, run)
    assert len(timed) == 3 * len(milliseconds)
    capturing = True  # what is tuned stays so
    assert launch.in_blocks("offset_warp", 16, x, MANY, run) == fastest


@on(ONLY_TRITON)
def test_a_candidate_that_does_not_fit_is_passed_over(on: UnderTest, monkeypatch: pytest.MonkeyPatch):
    def do_bench(call, **_):
        raise triton.runtime.errors.OutOfResources(2, 1, "shared memory")

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    assert launch._time(lambda: None) == float("inf")


# ---- Scalar functions


@on(ONLY_TRITON)
def test_sigmoid_and_tanh_near_and_far(on: UnderTest):
    """Relative to each value, not to the largest: also the small ones have all their digits.

    The interpreter is within 4e-7. A GPU rounds x / ln 2 before it takes the power of 2, and its instructions are
    within 2 ulp: calculated, not measured.
    """
    near = torch.logspace(-30, 0, 400)
    values = torch.cat([near, -near, torch.linspace(-110, 110, 200), torch.tensor([0.0, 0.25, -0.25, 1e30])])
    values = torch.cat([values, torch.tensor([float("inf"), -float("inf"), float("nan")])])
    x = torch.zeros(1024)
    x[: values.numel()] = values
    found = [torch.empty(1024, device=on.device) for _ in range(2)]
    unary_kernel[(1,)](x.to(on.device), *found, COUNT=1024)
    exact = x.double()
    for f, e in zip(found, (exact.sigmoid(), exact.tanh())):
        f = f.cpu().double()
        bound = 4e-7 if on.device == "cpu" else 8e-7 + 8e-8 * exact.abs().clamp(max=120)
        is_close = (f - e).abs() < bound * e.abs() + 2**-126  # subnormal numbers may be 0
        assert f[e.isnan()].isnan().all() and is_close[~e.isnan()].all()


@on(ONLY_TRITON)
def test_a_gradient_of_a_broadcast_sum(on: UnderTest):
    """A gradient of stride 0, as out.sum() makes it, is read as any other."""
    inputs = [t.float().to(on.device).requires_grad_() for t in warp_inputs(generator()).values()]
    with on.chosen():
        out = ops.offset_warp(*inputs)
        found = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
        expected = torch.autograd.grad(out, inputs, torch.ones_like(out))
    for f, e in zip(found, expected):
        assert_close(f, e, 1e-6)
