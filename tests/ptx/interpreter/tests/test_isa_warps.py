# ruff: noqa: E501 (PTX is not broken into lines)
"""Instructions by which the lanes of a warp see each other's values, and atomics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from small_kernels import LANES, aligned

VALUES = np.random.default_rng(0).integers(0, 2**32, 32, dtype=np.uint32)


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The pseudocode of shfl in the PTX ISA."""
    segmask, bval, cval = c >> 8 & 31, b & 31, c & 31
    max_lane = (lane & segmask) | (cval & ~segmask & 31)
    min_lane = lane & segmask
    j = {
        "up": lane - bval,
        "down": lane + bval,
        "bfly": lane ^ bval,
        "idx": min_lane | (bval & ~segmask & 31),
    }[mode]
    pval = j >= max_lane if mode == "up" else j <= max_lane
    return (j if pval else lane), pval


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("c", [0x1F, 0x00, 0x181F, 0x1800, 0x1C1F, 0x1001])
def test_shfl(ptx, mode, c):
    for b in (0, 1, 3, 8, 31):
        body = f"shfl.sync.{mode}.b32 {{d}}|%p1, {{0}}, {b}, {c}, -1;"
        expected = [shuffled(mode, lane, b, c) for lane in range(32)]
        if mode == "up" and c & 0x1F:
            continue  # up is used with a clamp of 0: others read lanes that are not there
        assert (ptx.lanes(body, VALUES) == VALUES[[j for j, _ in expected]]).all()
        found = ptx.lanes(
            body.format("{0}", d="%r1").replace("%r1", "%r1") + " selp.b32 {d}, 1, 0, %p1;", VALUES
        )
        assert found.tolist() == [p for _, p in expected]


def test_votes(ptx):
    some = "setp.lt.u32 %p2, {0}, 5; "
    lanes = LANES.astype(np.uint32)
    assert not ptx.lanes(some + "vote.sync.all.pred {d}, %p2, -1;", lanes, result=np.bool_).any()
    assert ptx.lanes(some + "vote.sync.any.pred {d}, %p2, -1;", lanes, result=np.bool_).all()
    assert not ptx.lanes(some + "vote.sync.any.pred {d}, !%p2, -1;", lanes * 0, result=np.bool_).any()
    assert not ptx.lanes(some + "vote.sync.uni.pred {d}, %p2, -1;", lanes, result=np.bool_).any()
    assert ptx.lanes(some + "vote.sync.uni.pred {d}, %p2, -1;", lanes + 5, result=np.bool_).all()
    assert (ptx.lanes(some + "vote.sync.ballot.b32 {d}, %p2, -1;", lanes) == 31).all()
    assert (ptx.lanes("activemask.b32 {d};") == 2**32 - 1).all()
    half = "setp.lt.u32 %p2, {0}, 16; mov.u32 {d}, 0; @%p2 activemask.b32 {d};"
    assert ptx.lanes(half, lanes).tolist() == [0xFFFF] * 16 + [0] * 16


def test_elect(ptx):
    assert (ptx.lanes("elect.sync {d}|%p1, -1;") == 0).all()
    assert ptx.lanes("elect.sync _|{d}, -1;", result=np.bool_).tolist() == [True] + [False] * 31


REDUCTIONS: dict[str, Callable[[np.ndarray], int]] = {
    "add.u32": lambda a: int(a.sum(dtype=np.uint64)), "add.s32": lambda a: int(a.sum(dtype=np.uint64)),
    "min.u32": lambda a: int(a.min()), "max.u32": lambda a: int(a.max()),
    "min.s32": lambda a: int(a.view(np.int32).min()), "max.s32": lambda a: int(a.view(np.int32).max()),
    "and.b32": np.bitwise_and.reduce, "or.b32": np.bitwise_or.reduce, "xor.b32": np.bitwise_xor.reduce,
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_redux(ptx, name):
    values = VALUES | np.uint32(1) if name == "and.b32" else VALUES
    assert (
        ptx.lanes(f"redux.sync.{name} {{d}}, {{0}}, -1;", values) == int(REDUCTIONS[name](values)) % 2**32
    ).all()


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_match(ptx, dtype):
    values = (LANES % 5).astype(dtype)
    bits = values.itemsize * 8
    expected = [sum(1 << j for j in range(32) if values[j] == values[lane]) for lane in range(32)]
    assert ptx.lanes(f"match.any.sync.b{bits} {{d}}, {{0}}, -1;", values).tolist() == expected


def step(name: str, old: int, b: int, bits: int) -> int:
    """The table of operations of atom in the PTX ISA."""
    table = {
        "add": old + b, "and": old & b, "or": old | b, "xor": old ^ b, "exch": b,
        "inc": 0 if old >= b else old + 1, "dec": b if old == 0 or old > b else old - 1,
        "min": min(old, b), "max": max(old, b),
    }  # fmt: skip
    return table[name] % (1 << bits)


@pytest.mark.parametrize(
    "form",
    [
        "add.u32",
        "add.u64",
        "and.b32",
        "or.b64",
        "xor.b32",
        "exch.b32",
        "inc.u32",
        "dec.u32",
        "min.u32",
        "max.u64",
    ],
)
def test_atomics(ptx, form):
    """32 lanes on one place: the last value, and what each lane found, whatever the order of lanes."""
    name, kind = form.split(".")
    bits, dtype = int(kind[1:]), np.dtype(f"u{int(kind[1:]) // 8}")
    place = aligned(np.array([7], dtype))
    values = aligned((LANES * 3 % 11 + 1).astype(dtype))
    old = aligned(np.zeros(32, dtype))
    r = "%r5" if bits == 32 else "%d5"
    index = f"mad.wide.u32 %d10, %r0, {bits // 8}, %d1; mad.wide.u32 %d11, %r0, {bits // 8}, %d2;"
    body = f"{index} ld.global.b{bits} {r}, [%d10]; atom.global.{form} {r}, [%d0], {r}; st.global.b{bits} [%d11], {r};"
    ptx.run(body, place, values, old)
    assert ptx.kinds() == []
    current = 7
    for b, found in zip(values, old):
        assert found == current
        current = step(name, current, int(b), bits)
    assert place[0] == current
    if name != "exch":
        again = aligned(np.array([7], dtype))
        ptx.run(f"{index} ld.global.b{bits} {r}, [%d10]; red.global.{form} [%d0], {r};", again, values, old)
        assert again[0] == current and ptx.kinds() == []


@pytest.mark.parametrize("signed", ["min.s32", "max.s32", "max.s64"])
def test_signed_atomics(ptx, signed):
    name, kind = signed.split(".")
    bits = int(kind[1:])
    place, values = aligned(np.array([-5], f"i{bits // 8}")), aligned((LANES - 16).astype(f"i{bits // 8}"))
    r = "%r5" if bits == 32 else "%d5"
    load = f"mad.wide.u32 %d10, %r0, {bits // 8}, %d1; ld.global.b{bits} {r}, [%d10];"
    ptx.run(
        f"{load} red.global.gpu.relaxed.{signed} [%d0], {r};", place, values
    )  # the order that Triton writes
    assert ptx.kinds() == [] and place[0] == (-16 if name == "min" else 15)


def test_compare_and_swap(ptx):
    place, old = aligned(np.array([3], np.uint32)), aligned(np.zeros(32, np.uint32))
    body = "add.u64 %d10, %d1, %d31; add.u32 %r2, %r0, 1; atom.global.cas.b32 %r3, [%d0], %r0, %r2; st.global.u32 [%d10], %r3;"
    ptx.run(body, place, old)
    expected, current = [], 3
    for lane in range(32):
        expected.append(current)
        current = lane + 1 if current == lane else current
    assert old.tolist() == expected and place[0] == current == 32


def test_atomic_sums_of_floats(ptx):
    single, vector = aligned(np.zeros(1, np.float32)), aligned(np.zeros(4, np.float32))
    ptx.run(
        "red.global.add.f32 [%d0], 0f3F800000; red.global.add.v4.f32 [%d1], {0f3F800000, 0f40000000, 0f40400000, 0f0};".replace(
            "0f0}", "0f00000000}"
        ),
        single,
        vector,
    )
    assert single.tolist() == [32] and vector.tolist() == [32, 64, 96, 0] and ptx.kinds() == []
    halves = aligned(np.zeros(2, np.float16))
    ptx.run("mov.b32 %r1, 0x40003C00; red.global.add.noftz.f16x2 [%d0], %r1;", halves)
    assert halves.tolist() == [32, 64]
    double = aligned(np.zeros(1))
    ptx.run("atom.global.add.f64 %d5, [%d0], 0d3FE0000000000000;", double)
    assert double.tolist() == [16]


def test_atomics_in_shared_memory(ptx):
    out = aligned(np.zeros(1, np.uint32))
    body = """
      mov.u32 %r1, s; setp.ne.u32 %p1, %r0, 0;
      @!%p1 st.shared.u32 [%r1], 5;
      bar.sync 0;
      red.shared.add.u32 [%r1], %r0;
      bar.sync 0;
      ld.shared.u32 %r2, [%r1];
      @!%p1 st.global.u32 [%d0], %r2;"""
    ptx.run(body, out, block=64, declarations=".shared .align 4 .b8 s[4];")
    assert ptx.kinds() == [] and out[0] == 5 + 63 * 32
