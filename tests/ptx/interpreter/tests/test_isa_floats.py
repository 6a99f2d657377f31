# ruff: noqa: E501 (PTX is not broken into lines)
"""Floating-point instructions and cvt, against exact arithmetic on fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from formats import (
    BF16,
    F16,
    F32,
    TF32,
    Format,
    Number,
    bits_of,
    exact,
    floats_of,
    round_to,
    same,
    to_integer,
)

FORMATS = {"f16": F16, "bf16": BF16, "f32": F32}
SMALLEST = 2.0**-126  # normal float32
EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.5,
    math.inf,
    -math.inf,
    math.nan,
    65504.0,
    65520.0,
    3e38,
    1e-40,
    -1e-40,
    1e-45,
    2.0**-14,
]


def samples(seed: int, form: Format = F32, spread: float = 8.0) -> np.ndarray:
    """Encodings of 32 numbers, among them what is special."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(32) * 2.0 ** rng.uniform(-spread, spread, 32)
    places = rng.permutation(32)[: len(EDGES)]
    values[places] = EDGES
    return bits_of(np.array([round_to(exact(v), form) for v in values]), form)


def arithmetic(operation: str, *numbers: float) -> Number:
    """The exact result; zeros and what is not finite as IEEE 754 has it, by float64."""
    with np.errstate(all="ignore"):
        a, b, c = (*map(np.float64, numbers), *[np.float64(0)] * 3)[:3]
        rough = {"add": a + b, "sub": a - b, "mul": a * b, "fma": a * b + c, "div": a / b}[operation]
    x, y, z = (*map(exact, numbers), *[0.0] * 3)[:3]
    if not all(np.isfinite(numbers)) or (operation == "div" and numbers[1] == 0):
        return float(rough)
    x, y, z = Fraction(x), Fraction(y), Fraction(z)
    value = {"add": x + y, "sub": x - y, "mul": x * y, "fma": x * y + z}.get(operation)
    value = x / y if operation == "div" else value
    return value if value else float(rough)


def check(ptx, instruction: str, form: Format, inputs: list[np.ndarray], expected: list[float]):
    names = ", ".join(f"{{{i}}}" for i in range(len(inputs)))
    result = np.uint16 if form.bits == 16 else np.uint32
    found = floats_of(ptx.lanes(f"{instruction} {{d}}, {names};", *inputs, result=result), form)
    assert same(found, np.array(expected)), (instruction, found, expected)


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma", "div"])
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_float32_rounding(ptx, operation, mode):
    if operation == "div" and mode != "rn":
        return
    for spread in (2.0, 30.0, 100.0):
        inputs = [samples(seed, spread=spread) for seed in range(3 if operation == "fma" else 2)]
        numbers = list(zip(*(floats_of(x, F32) for x in inputs)))
        expected = []
        for row in numbers:
            value = arithmetic(operation, *row)
            if (
                isinstance(value, float)
                and value == 0
                and operation != "mul"
                and any(row[:2])
                and mode == "rm"
            ):
                value = -0.0  # an exact cancellation
            expected.append(round_to(value, F32, mode))
        found = floats_of(
            ptx.lanes(
                f"{operation}.{mode}.f32 {{d}}, " + ", ".join(f"{{{i}}}" for i in range(len(inputs))) + ";",
                *inputs,
            ),
            F32,
        )
        signless = mode == "rm"  # signs of zeros that are exact sums are checked in the other modes
        assert same(
            np.abs(found) if signless else found, np.abs(expected) if signless else np.array(expected)
        )


@pytest.mark.parametrize("instruction", ["add.f32", "sub.f32", "mul.f32", "div.rn.f32", "add.rz.f32"])
def test_a_nan_of_single_precision_is_the_canonical_one(ptx, instruction: str):
    """Whatever the operands' signs and payloads are: lanes that compute the same hold the same bits."""
    nans = np.array([0x7FC00001, 0xFFC00000, 0x7F800001, 0xFF812345], np.uint32)
    a, b = np.resize(nans, 32), np.resize(nans[::-1], 32)
    for first, second in ((a, b), (b, a), (a, np.uint32(0x3F800000))):
        assert (ptx.lanes(f"{instruction} {{d}}, {{0}}, {{1}};", first, second) == 0x7FFFFFFF).all()


def flush(value: float) -> float:
    return math.copysign(0.0, value) if abs(value) < SMALLEST else value


@pytest.mark.parametrize("operation", ["add", "mul", "fma"])
def test_flush_and_saturation(ptx, operation):
    inputs = [samples(seed, spread=60.0) for seed in range(3 if operation == "fma" else 2)]
    rows = list(zip(*(floats_of(x, F32) for x in inputs)))
    name = "fma.rn" if operation == "fma" else operation
    flushed = [flush(round_to(arithmetic(operation, *map(flush, row)), F32)) for row in rows]
    check(ptx, f"{name}.ftz.f32", F32, inputs, flushed)
    plain = [round_to(arithmetic(operation, *row), F32) for row in rows]
    check(ptx, f"{name}.sat.f32", F32, inputs, [min(max(v, 0.0), 1.0) if v > 0 else 0.0 for v in plain])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "fma"])
def test_half_precision(ptx, kind, operation):
    form, name = FORMATS[kind], f"{operation}.rn"
    for spread in (1.0, 6.0):
        inputs = [samples(seed, form, spread) for seed in range(3 if operation == "fma" else 2)]
        rows = zip(*(floats_of(x, form) for x in inputs))
        expected = [round_to(arithmetic(operation, *row), form) for row in rows]
        check(ptx, f"{name}.{kind}", form, inputs, expected)
        pairs = [x.astype(np.uint32) | np.roll(x, 1).astype(np.uint32) << 16 for x in inputs]
        operands = ", ".join(f"{{{i}}}" for i in range(len(inputs)))
        found = ptx.lanes(f"{name}.{kind}x2 {{d}}, {operands};", *pairs)
        assert same(floats_of(found.astype(np.uint16), form), np.array(expected))
        assert same(floats_of((found >> 16).astype(np.uint16), form), np.roll(expected, 1))


def lesser(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return min((a, b), key=lambda v: (v, math.copysign(1, v)))


def greater(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return max((a, b), key=lambda v: (v, math.copysign(1, v)))


@pytest.mark.parametrize("kind", FORMATS)
def test_minimum_and_maximum(ptx, kind):
    form = FORMATS[kind]
    a, b = samples(0, form), samples(1, form)
    a[:6], b[:6] = (
        bits_of(np.array([0.0, -0.0, math.nan, 1, math.nan, 0]), form),
        bits_of(np.array([-0.0, 0.0, 1, math.nan, math.nan, 0]), form),
    )
    x, y = floats_of(a, form), floats_of(b, form)
    nan = np.isnan(x) | np.isnan(y)
    for name, function in (("min", lesser), ("max", greater)):
        expected = np.array([function(*pair) for pair in zip(x, y)])
        check(ptx, f"{name}.{kind}", form, [a, b], list(expected))
        check(ptx, f"{name}.NaN.{kind}", form, [a, b], list(np.where(nan, math.nan, expected)))
    check(ptx, f"neg.{kind}", form, [a], list(-x))
    check(ptx, f"abs.{kind}", form, [a], list(np.abs(x)))


def test_float64(ptx):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(32) * 10.0 ** rng.integers(-20, 20, 32) for _ in range(3))

    def run(text: str, *inputs: np.ndarray) -> np.ndarray:
        operands = ", ".join(f"{{{i}}}" for i in range(len(inputs)))
        return ptx.lanes(f"{text} {{d}}, {operands};", *inputs, result=np.float64)

    assert same(run("add.f64", a, b), a + b)
    assert same(run("sub.rn.f64", a, b), a - b)
    assert same(run("mul.f64", a, b), a * b)
    assert same(run("div.rn.f64", a, b), a / b)
    assert same(run("min.f64", a, b), np.minimum(a, b))
    assert same(run("max.f64", a, b), np.maximum(a, b))
    assert same(run("neg.f64", a), -a)
    assert same(run("abs.f64", a), np.abs(a))
    assert same(run("sqrt.rn.f64", np.abs(a)), np.sqrt(np.abs(a)))
    assert same(run("rcp.rn.f64", a), 1 / a)
    assert same(run("copysign.f64", a, b), np.copysign(b, a))
    fused = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c)]
    assert same(run("fma.rn.f64", a, b, c), np.array(fused))


def test_copysign(ptx):
    """PTX copies the sign of the first operand to the second."""
    a, b = samples(0), samples(1)
    found = ptx.lanes("copysign.f32 {d}, {0}, {1};", a, b)
    assert (found == (b & 0x7FFFFFFF | a & 0x80000000)).all()


# ---- Approximations

APPROXIMATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ex2.approx": np.exp2, "rcp.approx": lambda x: 1 / x, "sqrt.approx": np.sqrt, "rsqrt.approx": lambda x: 1 / np.sqrt(x),
    "lg2.approx": np.log2, "sin.approx": np.sin, "cos.approx": np.cos, "sqrt.rn": np.sqrt, "rcp.rn": lambda x: 1 / x,
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_functions(ptx, name):
    x = np.random.default_rng(0).uniform(0.1, 4, 32).astype(np.float32)
    expected = APPROXIMATIONS[name](x.astype(np.float64)).astype(np.float32)
    found = ptx.lanes(f"{name}.f32 {{d}}, {{0}};", x, result=np.float32)
    assert (found == expected).all()
    ptx.set(noise=3)
    off = np.abs(ptx.lanes(f"{name}.f32 {{d}}, {{0}};", x).astype(np.int64) - expected.view(np.uint32))
    assert off.max() == 0 if name.endswith("rn") else 0 < off.max() <= 3


def test_functions_of_special_values(ptx):
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40] + [1.0] * 26, np.float32)

    def run(text: str, *inputs: np.ndarray) -> list[float]:
        operands = ", ".join(f"{{{i}}}" for i in range(len(inputs)))
        return ptx.lanes(f"{text} {{d}}, {operands};", *inputs, result=np.float32)[:6]

    inf, nan = math.inf, math.nan
    # the tables of PTX ISA, 9.7.3
    assert same(run("ex2.approx.ftz.f32", x), [1, 1, inf, 0, nan, 1])
    assert same(run("rcp.approx.ftz.f32", x), [inf, -inf, 0, -0.0, nan, inf])
    assert same(run("rsqrt.approx.ftz.f32", x), [inf, -inf, 0, nan, nan, inf])
    assert same(run("sqrt.approx.ftz.f32", x), [0, -0.0, inf, nan, nan, 0])
    assert same(run("lg2.approx.ftz.f32", x), [-inf, -inf, inf, nan, nan, -inf])
    assert same(run("tanh.approx.f32", x)[:5], [0, -0.0, 1, -1, nan])
    big = np.full(32, 1.5 * 2.0**126, np.float32)
    assert same(run("div.approx.f32", x, big), [0, -0.0, nan, nan, nan, 0])
    assert same(run("div.full.f32", x, big)[:2], [0, -0.0])


# ---- Comparisons

ORDERED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "ne": lambda a, b: (a < b) | (a > b),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_comparisons(ptx, kind):
    if kind == "f64":
        a, b = (floats_of(samples(seed), F32) for seed in range(2))
        x, y = a, b = a.copy(), np.where(np.arange(32) % 3 == 0, a, b)
    else:
        form = FORMATS[kind]
        a = samples(0, form)
        b = np.where(np.arange(32) % 3 == 0, a, samples(1, form)).astype(a.dtype)
        x, y = floats_of(a, form), floats_of(b, form)
    unordered = np.isnan(x) | np.isnan(y)
    for name, function in ORDERED.items():
        expected = function(x, y) & ~unordered
        assert (
            ptx.lanes(f"setp.{name}.{kind} {{d}}, {{0}}, {{1}};", a, b, result=np.bool_) == expected
        ).all(), name
        found = ptx.lanes(f"setp.{name}u.{kind} {{d}}, {{0}}, {{1}};", a, b, result=np.bool_)
        assert (found == expected | unordered).all(), name
    assert (ptx.lanes(f"setp.num.{kind} {{d}}, {{0}}, {{1}};", a, b, result=np.bool_) == ~unordered).all()
    assert (ptx.lanes(f"setp.nan.{kind} {{d}}, {{0}}, {{1}};", a, b, result=np.bool_) == unordered).all()


def test_flushed_comparison(ptx):
    tiny = np.full(32, 1e-40, np.float32)
    assert ptx.lanes("setp.gt.f32 {d}, {0}, 0f00000000;", tiny, result=np.bool_).all()
    assert ptx.lanes("setp.eq.ftz.f32 {d}, {0}, 0f00000000;", tiny, result=np.bool_).all()


# ---- Conversions

INTEGERS = {"u8": 8, "s8": 8, "u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64}


def limits(kind: str) -> tuple[int, int]:
    bits = INTEGERS[kind]
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def numbers(kind: str) -> list[int]:
    low, high = limits(kind)
    rng = np.random.default_rng(0)
    spread = [int(high * 2.0 ** -rng.uniform(0, INTEGERS[kind])) for _ in range(20)]
    values = [
        low,
        high,
        0,
        1,
        high // 2,
        high // 3,
        max(low, -1),
        low // 2,
        high - 1,
        high - 2**7 if high > 255 else 3,
    ]
    return (values + spread + [-v if low else v for v in spread])[:32]


def as_bits(values: list[int], kind: str) -> np.ndarray:
    """In registers of 16 bits at least, extended by their sign."""
    bits = max(INTEGERS[kind], 16)
    return np.array([v % (1 << bits) for v in values], f"u{bits // 8}")


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", INTEGERS)
def test_integers_to_integers(ptx, source, target):
    values = numbers(source)
    size = max(INTEGERS[target], 16)
    low, high = limits(target)
    for saturates in ("", ".sat"):
        found = ptx.lanes(
            f"cvt{saturates}.{target}.{source} {{d}}, {{0}};", as_bits(values, source), result=f"u{size // 8}"
        )
        for value, out in zip(values, found):
            kept = min(max(value, low), high) if saturates else value % (1 << INTEGERS[target])
            if not saturates and target[0] == "s" and kept > high:
                kept -= 1 << INTEGERS[target]
            assert int(out) == kept % (1 << size), value


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_integers_to_floats(ptx, source, target, mode):
    values, form = numbers(source), FORMATS[target]
    result = np.uint16 if form.bits == 16 else np.uint32
    found = ptx.lanes(f"cvt.{mode}.{target}.{source} {{d}}, {{0}};", as_bits(values, source), result=result)
    expected = [round_to(Fraction(v), form, mode) for v in values]
    assert same(floats_of(found, form), np.array(expected))


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers(ptx, source, target, mode):
    form, (low, high) = FORMATS[source], limits(target)
    a = samples(3, form)
    a[:8] = bits_of(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1000.0, -1000.0]), form)
    size = max(INTEGERS[target], 16)
    found = ptx.lanes(f"cvt.{mode}.{target}.{source} {{d}}, {{0}};", a, result=f"u{size // 8}")
    for value, out in zip(floats_of(a, form), found):
        if math.isnan(value):  # PTX ISA, cvt: 0, or the highest bit where a type has 64 bits
            expected = -(1 << 63) if target == "s64" else 1 << 63 if target == "u64" else 0
        elif math.isinf(value):
            expected = high if value > 0 else low
        else:
            expected = min(max(to_integer(Fraction(value), mode[:2]), low), high)
        assert int(out) == expected % (1 << size), value


@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("target", ["f16", "bf16", "tf32"])
def test_narrowing(ptx, mode, target):
    form = {**FORMATS, "tf32": TF32}[target]
    result = np.uint16 if form.bits == 16 else np.uint32
    for spread in (3.0, 20.0, 120.0):
        a = samples(int(spread), spread=spread)
        a[:4] = bits_of(np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8]), F32)
        values = floats_of(a, F32)
        expected = np.array([round_to(exact(v), form, mode) for v in values])
        assert same(
            floats_of(ptx.lanes(f"cvt.{mode}.{target}.f32 {{d}}, {{0}};", a, result=result), form), expected
        )
        positive = np.where(values <= 0, 0.0, expected)
        assert same(
            floats_of(ptx.lanes(f"cvt.{mode}.relu.{target}.f32 {{d}}, {{0}};", a, result=result), form),
            positive,
        )
        if target == "tf32":
            away = [round_to(exact(v), TF32, "rna") for v in values]
            assert same(floats_of(ptx.lanes("cvt.rna.tf32.f32 {d}, {0};", a), form), np.array(away))
        elif mode == "rn":
            b = samples(7, spread=spread)
            found = ptx.lanes(
                f"cvt.rn.{target}x2.f32 {{d}}, {{0}}, {{1}};", a, b
            )  # the first into the upper half
            second = [round_to(exact(v), form) for v in floats_of(b, F32)]
            assert same(floats_of((found >> 16).astype(np.uint16), form), expected)
            assert same(floats_of(found.astype(np.uint16), form), np.array(second))


def test_widening(ptx):
    for kind in ("f16", "bf16"):
        a = samples(0, FORMATS[kind])
        assert same(
            floats_of(ptx.lanes(f"cvt.f32.{kind} {{d}}, {{0}};", a), F32), floats_of(a, FORMATS[kind])
        )
    a = samples(0)
    assert same(ptx.lanes("cvt.f64.f32 {d}, {0};", a, result=np.float64), floats_of(a, F32))
    b = np.random.default_rng(0).standard_normal(32)
    for mode in ("rn", "rz", "rm", "rp"):
        found = floats_of(ptx.lanes(f"cvt.{mode}.f32.f64 {{d}}, {{0}};", b), F32)
        assert same(found, np.array([round_to(exact(v), F32, mode) for v in b]))


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_whole_floats(ptx, mode):
    a = samples(5, spread=4.0)
    values = floats_of(a, F32)
    whole = np.array(
        [
            v if not np.isfinite(v) or v == 0 else math.copysign(to_integer(Fraction(v), mode[:2]), v)
            for v in values
        ]
    )
    assert same(floats_of(ptx.lanes(f"cvt.{mode}.f32.f32 {{d}}, {{0}};", a), F32), whole)


def test_saturation_of_floats(ptx):
    a = samples(6, spread=2.0)
    values = floats_of(a, F32)
    expected = np.where(values > 0, np.minimum(values, 1), 0.0)
    assert same(floats_of(ptx.lanes("cvt.sat.f32.f32 {d}, {0};", a), F32), expected)


def test_registers_wider_than_the_type(ptx):
    """Results are extended by their sign (PTX ISA, 9.4.1)."""
    a = np.array([5, -5] * 16, np.int32)
    found = ptx.lanes("cvt.s8.s32 %r1, {0}; cvt.s64.s8 {d}, %r1;", a, result=np.int64)
    assert (found == a).all()
    assert (ptx.lanes("cvt.s16.s32 {d}, {0};", a, result=np.int64) == a).all()
    assert (ptx.lanes("cvt.u16.s32 {d}, {0};", a, result=np.int64) == a % 2**16).all()
