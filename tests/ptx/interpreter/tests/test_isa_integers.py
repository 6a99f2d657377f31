"""Integer, logic and shift instructions, against the ISA's text in Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from small_kernels import LANES, Interpreter

SIZES = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64, "b16": 16, "b32": 32, "b64": 64}
TYPES = ("u16", "s16", "u32", "s32", "u64", "s64")


@cache
def samples(bits: int, seed: int) -> np.ndarray:
    """32 numbers, among them the ends of the range and small ones."""
    rng = np.random.default_rng(seed)
    top = 1 << (bits - 1)
    edges = [0, 1, 2 * top - 1, top, top - 1, 2, top + 1, 7]
    numbers = (
        [int(n) for n in rng.integers(0, 2 * top, 24, dtype=np.uint64, endpoint=False)]
        if bits < 64
        else [int.from_bytes(rng.bytes(8), "little") for _ in range(24)]
    )
    values = edges + [n >> int(rng.integers(0, bits - 1)) for n in numbers]
    return rng.permutation(np.array(values, f"u{bits // 8}"))


def number(value: int, kind: str) -> int:
    """The number that bits stand for in a type."""
    bits = SIZES[kind]
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def check(
    ptx: Interpreter,
    instruction: str,
    kind: str,
    function: Callable,
    operands: int,
    wide: bool = False,
    third: str = "",
):
    bits = SIZES[kind]
    inputs = [samples(bits, seed) for seed in range(operands)]
    if third:
        inputs[2] = samples(SIZES[third], 2)
    size = 2 * bits if wide else bits
    names = ", ".join(f"{{{i}}}" for i in range(operands))
    found = ptx.lanes(f"{instruction} {{d}}, {names};", *inputs, result=f"u{size // 8}")
    kinds = [kind, kind, third or kind]
    for lane in range(32):
        numbers = [number(int(x[lane]), k) for x, k in zip(inputs, kinds)]
        assert int(found[lane]) == function(*numbers) % (1 << size), (instruction, numbers)


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("kind", TYPES)
def test_arithmetic(ptx, kind):
    bits = SIZES[kind]
    for name, function in BINARY.items():
        check(ptx, f"{name}.{kind}", kind, function, 2)
    check(ptx, f"mul.hi.{kind}", kind, lambda a, b: a * b >> bits, 2)
    check(ptx, f"mad.lo.{kind}", kind, lambda a, b, c: a * b + c, 3)
    check(ptx, f"mad.hi.{kind}", kind, lambda a, b, c: (a * b >> bits) + c, 3)
    check(ptx, f"sad.{kind}", kind, lambda a, b, c: c + abs(a - b), 3)
    # of a divisor 0 the ISA leaves the result open
    check(ptx, f"div.{kind}", kind, lambda a, b: quotient(a, b) if b else -1, 2)
    check(ptx, f"rem.{kind}", kind, lambda a, b: a - b * quotient(a, b) if b else a, 2)
    if kind[0] == "s":
        check(ptx, f"neg.{kind}", kind, lambda a: -a, 1)
        check(ptx, f"abs.{kind}", kind, abs, 1)
    if bits < 64:
        check(ptx, f"mul.wide.{kind}", kind, lambda a, b: a * b, 2, wide=True)
        wider = kind[0] + str(2 * bits)
        check(ptx, f"mad.wide.{kind}", kind, lambda a, b, c: a * b + c, 3, wide=True, third=wider)


def test_saturation(ptx):
    clamp = lambda x: max(-(2**31), min(2**31 - 1, x))  # noqa: E731
    check(ptx, "add.sat.s32", "s32", lambda a, b: clamp(a + b), 2)
    check(ptx, "sub.sat.s32", "s32", lambda a, b: clamp(a - b), 2)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(ptx, kind):
    check(ptx, f"and.{kind}", kind, lambda a, b: a & b, 2)
    check(ptx, f"or.{kind}", kind, lambda a, b: a | b, 2)
    check(ptx, f"xor.{kind}", kind, lambda a, b: a ^ b, 2)
    check(ptx, f"not.{kind}", kind, lambda a: ~a, 1)
    check(ptx, f"cnot.{kind}", kind, lambda a: a == 0, 1)


AMOUNTS = np.array([0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 2**31, 2**32 - 1] * 2, np.uint32)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", *TYPES])
def test_shifts(ptx, kind):
    a, size = samples(SIZES[kind], 0), SIZES[kind]
    right = ptx.lanes(f"shr.{kind} {{d}}, {{0}}, {{1}};", a, AMOUNTS, result=a.dtype)
    for lane in range(32):  # amounts beyond the size count as the size
        amount = min(int(AMOUNTS[lane]), size)
        assert int(right[lane]) == (number(int(a[lane]), kind) >> amount) % (1 << size)
    if kind[0] == "b":
        left = ptx.lanes(f"shl.{kind} {{d}}, {{0}}, {{1}};", a, AMOUNTS, result=a.dtype)
        for lane in range(32):
            assert int(left[lane]) == (int(a[lane]) << min(int(AMOUNTS[lane]), size)) % (1 << size)


@pytest.mark.parametrize("side", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(ptx, side, mode):
    a, b = samples(32, 0), samples(32, 1)
    found = ptx.lanes(f"shf.{side}.{mode}.b32 {{d}}, {{0}}, {{1}}, {{2}};", a, b, AMOUNTS)
    for lane in range(32):
        both, amount = int(b[lane]) << 32 | int(a[lane]), int(AMOUNTS[lane])
        amount = min(amount, 32) if mode == "clamp" else amount % 32
        expected = both << amount >> 32 if side == "l" else both >> amount
        assert int(found[lane]) == expected % 2**32


@pytest.mark.parametrize("table", [0x00, 0x1B, 0x96, 0xE8, 0xCA, 0xFF])
def test_lop3(ptx, table):
    a, b, c = (samples(32, seed) for seed in range(3))
    found = ptx.lanes(f"lop3.b32 {{d}}, {{0}}, {{1}}, {{2}}, {table};", a, b, c)
    for lane in range(32):
        bits = zip(*(f"{int(x[lane]):032b}" for x in (a, b, c)))
        expected = "".join(str(table >> int("".join(three), 2) & 1) for three in bits)
        assert f"{int(found[lane]):032b}" == expected


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(ptx, bits):
    a = samples(bits, 0)
    strings = [f"{int(x):0{bits}b}" for x in a]
    assert ptx.lanes(f"popc.b{bits} {{d}}, {{0}};", a).tolist() == [s.count("1") for s in strings]
    assert ptx.lanes(f"clz.b{bits} {{d}}, {{0}};", a).tolist() == [(s + "1").index("1") for s in strings]
    assert ptx.lanes(f"brev.b{bits} {{d}}, {{0}};", a, result=a.dtype).tolist() == [
        int(s[::-1], 2) for s in strings
    ]
    highest = [bits - 1 - s.index("1") if "1" in s else 2**32 - 1 for s in strings]
    assert ptx.lanes(f"bfind.u{bits} {{d}}, {{0}};", a).tolist() == highest
    other = [s.find("0" if s[0] == "1" else "1") for s in strings]
    assert ptx.lanes(f"bfind.s{bits} {{d}}, {{0}};", a).tolist() == [
        bits - 1 - i if i >= 0 else 2**32 - 1 for i in other
    ]


FIELDS = [
    (0, 0),
    (0, 1),
    (5, 9),
    (31, 1),
    (31, 5),
    (30, 64),
    (63, 1),
    (40, 30),
    (0, 32),
    (0, 64),
    (64, 3),
    (255, 255),
]


@pytest.mark.parametrize(("position", "length"), FIELDS)
@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields(ptx, kind, position, length):
    """The pseudocode of bfe and bfi, bit by bit."""
    bits = SIZES[kind]
    a, b = samples(bits, 0), samples(bits, 1)
    found = ptx.lanes(f"bfe.{kind} {{d}}, {{0}}, {position}, {length};", a, result=a.dtype)
    for lane in range(32):
        value, last = int(a[lane]), bits - 1
        sign = 0 if kind[0] == "u" or length == 0 else value >> min(position + length - 1, last) & 1
        field = [
            value >> position + i & 1 if i < length and position + i <= last else sign for i in range(bits)
        ]
        assert int(found[lane]) == sum(bit << i for i, bit in enumerate(field))
    if kind[0] == "s":
        return
    found = ptx.lanes(f"bfi.b{bits} {{d}}, {{0}}, {{1}}, {position}, {length};", a, b, result=a.dtype)
    for lane in range(32):
        expected = int(b[lane])
        for i in range(length):
            if position + i < bits:
                expected = expected & ~(1 << position + i) | (int(a[lane]) >> i & 1) << position + i
        assert int(found[lane]) == expected


@pytest.mark.parametrize("selector", [0x3210, 0x5410, 0x7632, 0x0123, 0x8888, 0xFEDC, 0x4444, 0x19AF])
def test_prmt(ptx, selector):
    a, b = samples(32, 0), samples(32, 1)
    found = ptx.lanes(f"prmt.b32 {{d}}, {{0}}, {{1}}, {selector};", a, b)
    for lane in range(32):
        source = int(a[lane]).to_bytes(4, "little") + int(b[lane]).to_bytes(4, "little")
        picks = [selector >> 4 * i & 15 for i in range(4)]
        expected = bytes((255 if source[p & 7] >> 7 else 0) if p & 8 else source[p & 7] for p in picks)
        assert int(found[lane]).to_bytes(4, "little") == expected


@pytest.mark.parametrize("a_kind", ["u32", "s32"])
@pytest.mark.parametrize("b_kind", ["u32", "s32"])
def test_dp4a(ptx, a_kind, b_kind):
    a, b, c = (samples(32, seed) for seed in range(3))
    found = ptx.lanes(f"dp4a.{a_kind}.{b_kind} {{d}}, {{0}}, {{1}}, {{2}};", a, b, c)
    parts = [
        x.view(np.int8 if k == "s32" else np.uint8).reshape(32, 4).astype(np.int64)
        for x, k in ((a, a_kind), (b, b_kind))
    ]
    assert (found == ((parts[0] * parts[1]).sum(1) + c.astype(np.int64)).astype(np.uint32)).all()


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": int.__eq__, "ne": int.__ne__, "lt": int.__lt__, "le": int.__le__, "gt": int.__gt__, "ge": int.__ge__,
    "lo": int.__lt__, "ls": int.__le__, "hi": int.__gt__, "hs": int.__ge__,
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_comparisons(ptx, kind):
    a = samples(SIZES[kind], 0)
    b = np.where(LANES % 3 == 0, a, samples(SIZES[kind], 1))
    for name, function in COMPARISONS.items():
        if name in ("lo", "ls", "hi", "hs") and kind[0] == "s":
            continue
        found = ptx.lanes(f"setp.{name}.{kind} {{d}}, {{0}}, {{1}};", a, b, result=np.bool_)
        assert found.tolist() == [
            function(number(int(x), kind), number(int(y), kind)) for x, y in zip(a, b)
        ], name


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_comparison_with_a_predicate(ptx, name):
    a, b, c = samples(32, 0), samples(32, 1), LANES.astype(np.uint32) % 2
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name]
    for negation in ("", "!"):
        third = c == 0 if negation else c == 1
        body = f"setp.eq.u32 %p2, {{2}}, 1; setp.lt.{name}.u32 %p1|%p3, {{0}}, {{1}}, {negation}%p2;"
        assert (ptx.lanes(body, a, b, c, result=np.bool_) == combine(a < b, third)).all()
        body += " mov.pred %p1, %p3;"
        assert (ptx.lanes(body, a, b, c, result=np.bool_) == combine(a >= b, third)).all()


def test_predicates(ptx):
    a, b = LANES.astype(np.uint32) & 1, LANES.astype(np.uint32) & 2
    set_both = "setp.ne.u32 %p2, {0}, 0; setp.ne.u32 %p3, {1}, 0; "
    for instruction, expected in (
        ("and.pred %p1, %p2, %p3;", (a > 0) & (b > 0)),
        ("or.pred %p1, %p2, !%p3;", (a > 0) | (b == 0)),
        ("xor.pred %p1, %p2, %p3;", (a > 0) ^ (b > 0)),
        ("not.pred %p1, %p2;", a == 0),
        ("mov.pred %p1, -1;", a >= 0),
        ("mov.pred %p1, 0;", a < 0),
    ):
        assert (ptx.lanes(set_both + instruction, a, b, result=np.bool_) == expected).all(), instruction


def test_selection(ptx):
    a, b, c = samples(64, 0), samples(64, 1), LANES.astype(np.int32) - 16
    body = "setp.lt.s32 %p2, {2}, 0; selp.b64 {d}, {0}, {1}, %p2;"
    assert (ptx.lanes(body, a, b, c, result=np.uint64) == np.where(c < 0, a, b)).all()
    assert (
        ptx.lanes("slct.b64.s32 {d}, {0}, {1}, {2};", a, b, c, result=np.uint64) == np.where(c >= 0, a, b)
    ).all()


def test_moves(ptx):
    a, b = samples(16, 0), samples(16, 1)
    packed = a.astype(np.uint32) | b.astype(np.uint32) << 16
    assert (ptx.lanes("mov.b32 {d}, {{{0}, {1}}};", a, b) == packed).all()
    assert (ptx.lanes("mov.b32 {{%h1, {d}}}, {0};", packed, result=np.uint16) == b).all()
    assert (ptx.lanes("mov.b32 {{{d}, _}}, {0};", packed, result=np.uint16) == a).all()
    wide = ptx.lanes("mov.b64 {d}, {{{0}, {1}, {0}, {1}}};", a, b, result=np.uint64)
    assert (wide == packed.astype(np.uint64) * (1 + 2**32)).all()
    assert (ptx.lanes("mov.b32 {d}, 0f40490FDB;").view(np.float32) == np.float32(np.pi)).all()
    assert (ptx.lanes("mov.b32 {d}, -2;") == 2**32 - 2).all()
    assert (ptx.lanes("mov.b32 {d}, 0x1FU;") == 31).all()
    assert (ptx.lanes("mov.b32 {d}, 0b101;") == 5).all()
    assert (ptx.lanes("mov.b64 {d}, 0d3FF0000000000000;", result=np.float64) == 1).all()


SPECIALS = {
    "%laneid": LANES, "%tid.x": LANES, "%tid.y": 0, "%ntid.x": 32, "%ctaid.x": 0, "%nctaid.x": 1, "%warpid": 0,
    "%lanemask_eq": 1 << LANES, "%lanemask_lt": (1 << LANES) - 1, "%lanemask_le": (2 << LANES) - 1,
    "%lanemask_gt": 2**32 - (2 << LANES), "%lanemask_ge": 2**32 - (1 << LANES), "WARP_SZ": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIALS)
def test_special_registers(ptx, name):
    assert (ptx.lanes(f"mov.u32 {{d}}, {name};") == SPECIALS[name]).all()
