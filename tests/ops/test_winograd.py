"""Convolutions by Winograd's algorithm: values, gradients, layouts, threads, instruction sets, nan and inf."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from repository import ROOT
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from under_test import ALL, CPU, NOT_TESTED

from motionrnn_ext import backend, backends
from motionrnn_ext.backends import convolution
from motionrnn_ext.backends.torch_private import has_matrix_unit

pytestmark = pytest.mark.skipif(
    CPU not in ALL, reason=f"the cpu backend is not tested: {NOT_TESTED.get('cpu')}"
)
OPS = torch.ops.motionrnn_ext
# The largest error, relative to the largest value. Measured for 5x5, with every instruction set: 1.1e-6 forward, 1.9e-6
# for the gradient of x, 2.9e-6 for that of the weight; for 3x3 1.8e-6, 1.9e-6 and
# 1.5e-6.
BOUND = 5e-6
# For maps in bfloat16, before the results are rounded to it. Measured, with every instruction set: 5.2e-6 forward and
# for the gradient of x, 9.9e-6 for that of the weight, which is in float32.
BOUND_BFLOAT16 = 2e-5
# The largest relative error of rounding to bfloat16.
ROUNDING = 2**-8
# Relative to the largest result for inputs and weights without signs, which bounds every partial sum. Measured:
# 2.4e-15.
BOUND_FLOAT64 = 1e-14
# batch, channels, output channels, height, width
ODD_SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 7, 9),
    (3, 17, 29, 1, 5),
    (2, 8, 13, 2, 2),
    (2, 65, 70, 33, 31),
    (1, 5, 14, 3, 200),
    (1, 5, 15, 140, 3),
    (5, 16, 16, 8, 8),
    (2, 33, 20, 9, 40),
    (1, 70, 64, 12, 12),
]
PREDICTOR_SIZES = [(1, 64, 448, 16, 16), (2, 128, 64, 16, 16), (1, 64, 192, 32, 32)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other frame": lambda t: torch.stack([t, t], 1)[:, 1],
    "split from channels_last": lambda t: (
        torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last).chunk(2, 1)[1]
    ),
    "every other column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
}


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return OPS.winograd_conv(x, OPS.winograd_pack(weight, False), weight.shape[2], weight.shape[0], bias)


def data_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    return OPS.winograd_conv(grad, OPS.winograd_pack(weight, True), weight.shape[2], weight.shape[1], None)


def all_three(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution, the gradient of x and that of the weight."""
    to_weight = OPS.winograd_weight_gradient([grad], [x], weight.shape[2])
    return conv(x, weight, bias), data_gradient(grad, weight), to_weight


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution, the gradient of x and that of the weight, in float64."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    out = F.conv2d(x, weight, None if bias is None else bias.double(), padding=weight.shape[2] // 2)
    return (out, *torch.autograd.grad(out, (x, weight), grad.double()))


def made(
    size: Sequence[int], dtype: torch.dtype = torch.float32, uniform: bool = False, k: int = 5
) -> tuple[Tensor, ...]:
    """Return x, normal or in [0, 1], a weight, a bias and a gradient."""
    batch, channels, outs, height, width = size
    g = torch.Generator().manual_seed(sum(size))
    x = (torch.rand if uniform else torch.randn)(batch, channels, height, width, generator=g, dtype=dtype)
    weight = torch.randn(outs, channels, k, k, generator=g, dtype=dtype) / (k * k * channels) ** 0.5
    bias = torch.randn(outs, generator=g, dtype=dtype)
    return x, weight, bias, torch.randn(batch, outs, height, width, generator=g, dtype=dtype)


def assert_near(found: Tensor, expected: Tensor, scale: Tensor, bound: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= bound * scale.abs().max().item()


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("uniform", [False, True], ids=["normal", "in [0, 1]"])
@pytest.mark.parametrize("size", PREDICTOR_SIZES, ids=str)
def test_float32_is_near_float64(size: tuple[int, ...], uniform: bool, k: int):
    x, weight, bias, grad = made(size, uniform=uniform, k=k)
    expected = exact(x, weight, bias, grad)
    found = all_three(x, weight, bias, grad)
    for f, e in zip(found, expected):
        assert_near(f, e, e, BOUND)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize(
    ("size", "layout"),
    [(size, "contiguous") for size in PREDICTOR_SIZES]
    + [(size, layout) for size in ODD_SIZES for layout in LAYOUTS],
    ids=str,
)
def test_bfloat16_is_rounded_at_both_ends_alone(size: tuple[int, ...], layout: str, k: int):
    x, weight, bias, grad = made(size, k=k)
    x, weight, grad = (LAYOUTS[layout](x).bfloat16(), weight.bfloat16(), LAYOUTS[layout](grad).bfloat16())
    found = all_three(x, weight, bias, grad)
    assert [f.dtype for f in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for f, e in zip(found, exact(x, weight, bias, grad)):
        rounding = ROUNDING * e.abs() if f.dtype == torch.bfloat16 else 0
        assert ((f - e).abs() - rounding).max() <= BOUND_BFLOAT16 * e.abs().max()


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_float64_is_exact_at_any_size_and_layout(size: tuple[int, ...], layout: str, k: int):
    x, weight, bias, grad = made(size, torch.float64, k=k)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](grad)
    expected = exact(x, weight, bias, grad)
    bounds = exact(x.abs(), weight.abs(), bias.abs(), grad.abs())
    found = all_three(x, weight, bias, grad)
    for f, e, b in zip(found, expected, bounds):
        assert_near(f, e, b, BOUND_FLOAT64)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_follow_the_memory_format_and_fakes_know_it(layout: str, dtype: torch.dtype, k: int):
    x, weight, bias, grad = made((2, 4, 6, 8, 10), k=k)
    x, weight, grad = LAYOUTS[layout](x.to(dtype)), weight.to(dtype), LAYOUTS[layout](grad.to(dtype))
    is_last = layout == "channels_last"
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    assert conv(x, weight).is_contiguous(memory_format=memory_format)
    packed = OPS.winograd_pack(weight, False)
    for op, arguments in (
        (OPS.winograd_pack, (weight, True)),
        (OPS.winograd_conv, (x, packed, k, 6, bias)),
        (OPS.winograd_weight_gradient, ([grad, grad], [x, x], k)),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_an_empty_batch():
    x, weight, bias, grad = made((0, 4, 6, 8, 8))
    assert conv(x, weight, bias).shape == (0, 6, 8, 8)
    assert data_gradient(grad, weight).shape == x.shape
    assert OPS.winograd_weight_gradient([grad], [x], 5).equal(torch.zeros_like(weight))


@pytest.mark.parametrize("k", [3, 5])
def test_weight_gradients_are_summed_over_the_steps(k: int):
    steps = [made((2, 17, 20, 9, 13), torch.float64)[0::3] for _ in range(3)]
    steps = [(x * (i + 1), grad) for i, (x, grad) in enumerate(steps)]
    layouts = list(LAYOUTS.values())
    found = OPS.winograd_weight_gradient(
        [layouts[i](grad) for i, (_, grad) in enumerate(steps)],
        [layouts[-i](x) for i, (x, _) in enumerate(steps)],
        k,
    )
    each = [OPS.winograd_weight_gradient([grad], [x], k) for x, grad in steps]
    torch.testing.assert_close(found, sum(each), rtol=0, atol=1e-12 * found.abs().max().item())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("dtype", "k", "rows", "columns"),
    # The tiles whose pixels hold row 5 and column 6: for 5x5, from two before the tile on, 6x6 pixels of a tile of 2x2
    # results, 8x8 of one of 4x4; for 3x3, from one before the tile on, 6x6 pixels of one of 4x4.
    [
        (torch.float32, 5, slice(2, 8), slice(4, 10)),
        (torch.bfloat16, 5, slice(0, 8), slice(4, 12)),
        (torch.float32, 3, slice(4, 8), slice(4, 8)),
        (torch.bfloat16, 3, slice(4, 8), slice(4, 8)),
    ],
)
def test_a_value_that_is_not_finite_stays_in_the_tiles_that_read_it(
    value: float, dtype: torch.dtype, k: int, rows: slice, columns: slice
):
    x, weight = (t.to(dtype) for t in made((1, 3, 4, 12, 12), k=k)[:2])
    clean = conv(x, weight)
    x[0, 1, 5, 6] = value
    found = conv(x, weight)
    reached = torch.zeros(12, 12, dtype=torch.bool)
    reached[rows, columns] = True
    assert (found.isfinite() | reached).all()
    assert found[found.isfinite()].equal(clean[found.isfinite()])
    assert not found[~F.conv2d(x, weight, padding=k // 2).isfinite()].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("size", [(3, 40, 100, 20, 12), (1, 70, 40, 16, 16)], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(size: tuple[int, ...], dtype: torch.dtype, k: int):
    threads = torch.get_num_threads()
    x, weight, bias, grad = made(size, k=k)
    x, weight, grad = x.to(dtype), weight.to(dtype), grad.to(dtype)
    results = []
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(all_three(x, weight, bias, grad))
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], others))


@pytest.mark.parametrize("isa", ["baseline", "x86_64_v3"])
def test_kernels_for_older_processors_give_these_results(isa: str):
    tests = "float32_is_near or bfloat16_is_rounded or (float64_is_exact and contiguous) or steps"
    environment = {**os.environ, "MOTIONRNN_EXT_CPU_ISA": isa}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("k", [3, 5])
def test_its_flops_are_those_of_the_convolution(k: int):
    x, weight, _, grad = made((2, 4, 6, 8, 10), k=k)
    packed = OPS.winograd_pack(weight, False)
    with FlopCounterMode(display=False) as direct:
        F.conv2d(x, weight, padding=k // 2)
    with FlopCounterMode(display=False) as counted:
        OPS.winograd_conv(x, packed, k, 6, None)
    with FlopCounterMode(display=False) as of_weight:
        OPS.winograd_weight_gradient([grad, grad], [x, x], k)
    assert counted.get_total_flops() == direct.get_total_flops() == of_weight.get_total_flops() / 2 > 0


# ---- The convolution that a rollout prepares


@pytest.mark.parametrize(
    ("size", "k", "padding", "is_winograd"),
    [
        ((2, 32, 40, 9, 8), 5, (2, 2), True),
        ((2, 32, 40, 9, 8), 5, (0, 0), False),
        ((2, 32, 40, 17, 16), 3, (1, 1), True),
        ((2, 32, 40, 17, 15), 3, (1, 1), False),
        ((2, 32, 40, 17, 16), 3, (2, 2), False),
        ((2, 32, 40, 9, 8), 1, (0, 0), False),
        ((2, 31, 40, 9, 8), 5, (2, 2), False),
        ((2, 32, 40, 7, 8), 5, (2, 2), False),
    ],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_convolution_of_many_calls(
    size: tuple[int, ...], k: int, padding: tuple[int, int], is_winograd: bool, has_bias: bool
):
    x, weight, bias, _ = made(size)
    weight = torch.nn.Parameter(weight[..., :k, :k].contiguous())
    bias = torch.nn.Parameter(bias) if has_bias else None
    xs = [x, 2 * x]
    exacts = [t.double().requires_grad_() for t in (weight, *([bias] if has_bias else []))]
    doubles = [t.double().requires_grad_() for t in xs]
    expected = [F.conv2d(t, *exacts, padding=padding) for t in doubles]
    grads = [torch.randn(e.shape, generator=torch.Generator().manual_seed(i)) for i, e in enumerate(expected)]
    found = torch.autograd.grad(expected, [*doubles, *exacts], [g.double() for g in grads])
    conv = convolution.Convolution(convolution.Geometry((1, 1), padding))
    assert conv.is_winograd(x, weight) == is_winograd
    with torch.no_grad():
        for t, e, grad, to_x in zip(xs, expected, grads, found):
            assert_near(conv.run(t, weight, bias), e, e, BOUND)
            assert_near(conv.data_gradient(grad, t, weight), to_x, to_x, BOUND)
        to_weight, to_bias = conv.weight_gradients(grads, xs, weight, (True, has_bias))
    assert_near(to_weight, found[2], found[2], BOUND)
    assert (to_bias is None) == (not has_bias)
    if to_bias is not None:
        assert_near(to_bias, found[3], found[3], BOUND)


def test_a_weight_is_packed_once_and_only_for_what_is_called(monkeypatch: pytest.MonkeyPatch):
    packs: list[bool] = []
    run = convolution.native.run

    def spy(op: str, *arguments: object) -> object:
        if op == "winograd_pack":
            packs.append(bool(arguments[1]))
        return run(op, *arguments)

    monkeypatch.setattr(convolution.native, "run", spy)
    x, weight, _, grad = made((1, 32, 32, 8, 8))
    same = convolution.Convolution(convolution.Geometry((1, 1), (2, 2)))
    with torch.no_grad():
        for _ in range(3):
            same.run(x, weight)
            same.weight_gradients([grad], [x], weight, (True, False))
        assert packs == [False]
        for _ in range(2):
            same.data_gradient(grad, x, weight)
    assert packs == [False, True]


def test_it_runs_where_the_cpu_kernels_do():
    x, weight, _, _ = made((1, 32, 32, 8, 8))
    assert convolution.fits_winograd(weight, x)
    assert not convolution.fits_winograd(weight.double(), x.double())
    assert convolution.fits_winograd(weight.bfloat16(), x.bfloat16()) is not has_matrix_unit()
    assert not convolution.fits_winograd(weight.half(), x.half())
    assert not convolution.fits_winograd(weight.to("meta"), x.to("meta"))
    with backend("reference"):
        assert not convolution.fits_winograd(weight, x)


@pytest.mark.parametrize(("value", "is_wanted"), [(" \t", True), (" 0 ", False)])
def test_the_variable(value: str, is_wanted: bool):
    code = (
        "import torch; from motionrnn_ext.backends import convolution\n"
        "t = torch.zeros(32, 32, 5, 5)\nprint(convolution.fits_winograd(t, t.new_zeros(1, 32, 8, 8)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MOTIONRNN_EXT_WINOGRAD": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{is_wanted}\n", done


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(convolution, "_named", "yes")
    with pytest.raises(ValueError, match="MOTIONRNN_EXT_WINOGRAD is 'yes'; it should be 0 or 1"):
        backends.check_variables()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPS.winograd_pack(torch.zeros(1, 1, 3, 5), False), "mismatched sizes"),
        (lambda: OPS.winograd_pack(torch.zeros(1, 1, 4, 4), False), "kernel_size should be 3 or 5"),
        (lambda: OPS.winograd_pack(torch.zeros(1, 1, 5, 5).half(), False), "no kernel for these dtypes"),
        (lambda: conv(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 5, 5)), "mismatched packed weight"),
        (lambda: OPS.winograd_conv(torch.zeros(1, 0, 8, 8), torch.zeros(0), 3, 4, None), "no input channels"),
        (lambda: conv(torch.zeros(1, 1, 8, 8).double(), torch.zeros(1, 1, 5, 5)), "mixed dtypes"),
        (lambda: conv(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 5, 5), torch.zeros(2)), "mismatched bias"),
        (
            lambda: OPS.winograd_weight_gradient([torch.zeros(1, 1, 8, 8)], [], 5),
            "mismatched numbers of tensors",
        ),
        (
            lambda: OPS.winograd_weight_gradient([torch.zeros(1, 1, 8, 8)], [torch.zeros(1, 1, 8, 9)], 5),
            "mismatched sizes",
        ),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(RuntimeError, match=message):
        call()
