# ruff: noqa: E501 (PTX is not broken into lines)
"""Loads, stores and copies; and mistakes that have to be reported, each beside the same kernel without it."""

from __future__ import annotations

import numpy as np
import pytest
from small_kernels import LANES, Interpreter, aligned

SHARED = ".shared .align 16 .b8 s[1024];"
PLACE = "add.u64 %d10, %d0, %d31; "  # of the thread, in the first array
SLOT = "mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r2, %r1, %r2; "  # in shared memory: %r1 begins it, %r2 is the thread's
STORE = SLOT + "st.shared.u32 [%r2], %r0; "


def read(offset: int) -> str:
    return (
        f"xor.b32 %r3, %r0, {offset}; shl.b32 %r3, %r3, 2; add.u32 %r3, %r1, %r3; ld.shared.u32 %r4, [%r3]; "
    )


ONE_THREAD = "setp.eq.u32 %p1, %r0, {}; @%p1 "
UPPER_HALF = "setp.lt.u32 %p1, %r0, 16; @%p1 bra $L1; {} $L1: "
BLOCKS = "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; "
TWO_WARPS = {"block": 64, "declarations": SHARED}
TWO_BLOCKS = {"block": 1, "grid": 2}

# name: what is reported, the kernel with the mistake and without it, how it is launched
MISTAKES: dict[str, tuple[str, str, str, dict]] = {
    "store behind the array": ("out of range", PLACE + "st.global.u32 [%d10+132], %r0;", PLACE + "st.global.u32 [%d10+128], %r0;", {}),
    "load before the array": ("out of range", "ld.global.u32 %r1, [%d0-4];", "ld.global.u32 %r1, [%d0];", {}),
    "vector over the end": ("out of range", "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%d0+256];", "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%d0+240];", {}),
    "atomic behind the array": ("out of range", "red.global.add.u32 [%d0+256], 1;", "red.global.add.u32 [%d0+252], 1;", {}),
    "generic address": ("out of range", "st.u32 [%d0+256], 1;", "st.u32 [%d0+252], 1;", {"block": 1}),
    "shared memory behind the block's": ("out of range", SLOT + "st.shared.u32 [%r2+1000], %r0;", SLOT + "st.shared.u32 [%r2+896], %r0;", {"declarations": SHARED}),
    "parameter behind the last": ("out of range", "ld.param.u64 %d1, [a0+8];", "ld.param.u64 %d1, [a0];", {}),
    "misaligned vector": ("misaligned", "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%d0+4];", "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%d0+16];", {}),
    "misaligned shared vector": ("misaligned", "mov.u32 %r1, s; st.shared.v2.u32 [%r1+4], {%r0, %r0};", "mov.u32 %r1, s; st.shared.v2.u32 [%r1+8], {%r0, %r0};", {"declarations": SHARED, "block": 1}),
    "misaligned copy": ("misaligned", "mov.u32 %r1, s; cp.async.ca.shared.global [%r1+4], [%d0], 16; cp.async.wait_all;", "mov.u32 %r1, s; cp.async.ca.shared.global [%r1+16], [%d0], 16; cp.async.wait_all;", {"declarations": SHARED, "block": 1}),
    "uninitialised": ("uninitialised shared memory", SLOT + "ld.shared.u32 %r4, [%r2];", STORE + "ld.shared.u32 %r4, [%r2];", {"declarations": SHARED}),
    "one uninitialised byte": ("uninitialised shared memory", "mov.u32 %r1, s; st.shared.u8 [%r1], %r0; ld.shared.u16 %h1, [%r1];", "mov.u32 %r1, s; st.shared.u16 [%r1], %h1; ld.shared.u16 %h1, [%r1];", {"declarations": SHARED, "block": 1}),
    "missing barrier": ("race in a block (read after write)", STORE + read(32), STORE + "bar.sync 0; " + read(32), TWO_WARPS),
    "missing barrier of the warp": ("race in a warp (read after write)", STORE + read(1), STORE + "bar.warp.sync -1; " + read(1), {"declarations": SHARED}),
    "write before all have read": (
        "race in a block (write after read)",
        STORE + "bar.sync 0; ld.shared.u32 %r4, [%r1]; " + ONE_THREAD.format(63) + "st.shared.u32 [%r1], 5;",
        STORE + "bar.sync 0; ld.shared.u32 %r4, [%r1]; bar.sync 0; " + ONE_THREAD.format(63) + "st.shared.u32 [%r1], 5;",
        TWO_WARPS,
    ),
    "two write one place": ("race in a block (write after write)", "mov.u32 %r1, s; st.shared.u32 [%r1], %r0;", "mov.u32 %r1, s; st.shared.u32 [%r1], 7;", TWO_WARPS),
    "atomic after a store": (
        "race in a warp (read after write)",
        "mov.u32 %r1, s; " + ONE_THREAD.format(0) + "st.shared.u32 [%r1], 1; red.shared.add.u32 [%r1], 1;",
        "mov.u32 %r1, s; " + ONE_THREAD.format(0) + "st.shared.u32 [%r1], 1; bar.sync 0; red.shared.add.u32 [%r1], 1;",
        TWO_WARPS,
    ),
    "read of what others add to": (
        "race in a warp (read after write)",
        "mov.u32 %r1, s; " + ONE_THREAD.format(0) + "st.shared.u32 [%r1], 1; bar.sync 0; red.shared.add.u32 [%r1], 1; ld.shared.u32 %r2, [%r1];",
        "mov.u32 %r1, s; " + ONE_THREAD.format(0) + "st.shared.u32 [%r1], 1; bar.sync 0; red.shared.add.u32 [%r1], 1; bar.sync 0; ld.shared.u32 %r2, [%r1];",
        TWO_WARPS,
    ),
    "copy that nobody waits for": (
        "uninitialised shared memory",
        SLOT + PLACE + "cp.async.ca.shared.global [%r2], [%d10], 4; cp.async.commit_group; ld.shared.u32 %r3, [%r2];",
        SLOT + PLACE + "cp.async.ca.shared.global [%r2], [%d10], 4; cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %r3, [%r2];",
        {"declarations": SHARED},
    ),
    "copy without a commit": (
        "uninitialised shared memory",
        SLOT + PLACE + "cp.async.ca.shared.global [%r2], [%d10], 4; cp.async.wait_group 0; ld.shared.u32 %r3, [%r2];",
        SLOT + PLACE + "cp.async.ca.shared.global [%r2], [%d10], 4; cp.async.wait_all; ld.shared.u32 %r3, [%r2];",
        {"declarations": SHARED},
    ),
    "blocks write one place": ("global race (write after write)", "mov.u32 %r1, %ctaid.x; st.global.u32 [%d0], %r1;", "mov.u32 %r1, %ctaid.x; mul.wide.u32 %d1, %r1, 4; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r1;", TWO_BLOCKS),
    "threads write one place": ("global race (write after write)", "st.global.u32 [%d0], %r0;", PLACE + "st.global.u32 [%d10], %r0;", {}),
    "a block reads what another writes": ("global race (read after write)", BLOCKS + "@%p1 st.global.u32 [%d0], 1; @!%p1 ld.global.u32 %r2, [%d0];", BLOCKS + "@%p1 st.global.u32 [%d0], 1; @!%p1 ld.global.u32 %r2, [%d0+4];", TWO_BLOCKS),
    "barrier between threads and global memory": ("global race (read after write)", ONE_THREAD.format(0) + "st.global.u32 [%d0], 1; ld.global.u32 %r2, [%d0];", ONE_THREAD.format(0) + "st.global.u32 [%d0], 1; bar.sync 0; ld.global.u32 %r2, [%d0];", {}),
    "nc load of what is written": ("ld.global.nc of what this launch writes", PLACE + "st.global.u32 [%d10], 1; ld.global.nc.u32 %r1, [%d10];", PLACE + "st.global.u32 [%d10], 1; ld.global.u32 %r1, [%d10];", {}),
    "write of what was loaded by nc": ("write of what this launch reads by ld.global.nc", PLACE + "ld.global.nc.u32 %r1, [%d10]; st.global.u32 [%d10], %r1;", PLACE + "ld.global.u32 %r1, [%d10]; st.global.u32 [%d10], %r1;", {}),
    "atomic on what was loaded by nc": ("atomic on what this launch reads by ld.global.nc", "ld.global.nc.u32 %r1, [%d0]; red.global.add.u32 [%d0], 1;", "ld.global.nc.u32 %r1, [%d0]; red.global.add.u32 [%d0+4], 1;", {}),
    "read of what is added to": ("global read of what this launch adds to", "red.global.add.u32 [%d0], 1; ld.global.u32 %r2, [%d0];", "atom.global.add.u32 %r2, [%d0], 1;", {}),
    "write of what is added to": ("write of what this launch adds to", "red.global.add.u32 [%d0], 1; " + ONE_THREAD.format(0) + "st.global.u32 [%d0], 1;", "red.global.add.u32 [%d0], 1; " + ONE_THREAD.format(0) + "st.global.u32 [%d0+4], 1;", {}),
    "shuffle in a branch": ("divergence", UPPER_HALF.format("shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;"), UPPER_HALF.format("shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffff0000;"), {}),
    "vote in a branch": ("divergence", UPPER_HALF.format("vote.sync.any.pred %p2, %p1, -1;"), UPPER_HALF.format("vote.sync.any.pred %p2, %p1, 0xffff0000;"), {}),
    "barrier of a warp in a branch": ("divergence", UPPER_HALF.format("bar.warp.sync -1;"), UPPER_HALF.format("bar.warp.sync 0xffff0000;"), {}),
    "aligned instruction in a branch": ("divergence", UPPER_HALF.format("movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0;"), "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0;", {}),
    "barrier in a branch": ("divergence", UPPER_HALF.format("bar.sync 0;"), UPPER_HALF.format("") + "bar.sync 0;", {}),
    "barrier that a warp leaves out": ("barrier", "setp.lt.u32 %p1, %r0, 32; @%p1 bra $L1; bar.sync 0; $L1: ", "bar.sync 0;", {"block": 64}),
    "two barriers at once": ("barrier", "setp.lt.u32 %p1, %r0, 32; @%p1 bra $L1; bar.sync 1; bra $L2; $L1: bar.sync 2; $L2: ", "bar.sync 1; bar.sync 2;", {"block": 64}),
    "lane that is not in its mask": ("member mask", "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0x0000ffff;", "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;", {}),
    "shuffle from a lane that left": ("shfl", "setp.ge.u32 %p1, %r0, 16; @%p1 exit; shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1;", "setp.ge.u32 %p1, %r0, 16; @%p1 exit; shfl.sync.bfly.b32 %r1, %r0, 8, 31, -1;", {}),
    "unknown instruction": ("unsupported", "frobnicate.b32 %r1, %r0;", "not.b32 %r1, %r0;", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported(ptx: Interpreter, name: str):
    kind, wrong, right, launched = MISTAKES[name]
    for body, expected in ((wrong, True), (right, False)):
        ptx.run(body, aligned(np.zeros(64, np.uint32)), **launched)
        kinds = ptx.kinds()
        assert kind in kinds if expected else kinds == [], (body, kinds)


def test_a_report_says_where(ptx):
    out = aligned(np.zeros(4, np.uint32))
    body = f".loc 1 42 7\n{PLACE} st.global.u32 [%d10], %r0;"
    kernel = ptx.run(body, out, declarations='.file 1 "a/kernel.cu"\n')
    (report,) = ptx.reports()
    assert (report["kernel"], report["file"], report["line"]) == (kernel, "a/kernel.cu", 42)
    assert report["inst"] == "st.global.u32 [%d10], %r0;"[:-1] and report["count"] == 28
    assert "lane 4; nearest below: array of 16 bytes, 0 past its end" in report["detail"]
    assert (out == np.arange(4)).all()  # what is in range is done


def test_checks_may_be_left_out(ptx):
    ptx.set(check_races=0, check_global=0)
    ptx.run(STORE + read(32), aligned(np.zeros(1)), **TWO_WARPS)
    ptx.run("st.global.u32 [%d0], %r0;", aligned(np.zeros(1)))
    assert ptx.kinds() == []


def test_fresh_memory_is_not_a_number(ptx):
    out = aligned(np.zeros(32, np.float32))
    ptx.set(check_races=0)
    ptx.run(SLOT + PLACE + "ld.shared.f32 %f1, [%r2]; st.global.f32 [%d10], %f1;", out, declarations=SHARED)
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("u8", "u1"), ("s8", "i1"), ("u16", "u2"), ("s16", "i2"), ("s32", "i4"), ("u64", "u8")],
)
def test_loads_extend(ptx, kind, dtype):
    """Loads into wider registers extend by the sign of the type (PTX ISA, 9.4.1)."""
    values = aligned(np.arange(-16, 16).astype(dtype))
    out = aligned(np.zeros(32, np.int64))
    for space, setup in (
        ("global", f"mad.wide.u32 %d10, %r0, {values.itemsize}, %d0;"),
        ("", f"mad.wide.u32 %d10, %r0, {values.itemsize}, %d0;"),
    ):
        load = f"ld{'.' + space if space else ''}.{kind} %d12, [%d10];"
        ptx.run(setup + load + "mad.wide.u32 %d11, %r0, 8, %d1; st.global.u64 [%d11], %d12;", values, out)
        assert ptx.kinds() == [] and (out == values.astype(np.int64)).all()


@pytest.mark.parametrize("vector", [1, 2, 4])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_vectors(ptx, vector, bits):
    """Through global and shared memory."""
    size = vector * bits // 8
    values = aligned(np.random.default_rng(0).integers(0, 256, 32 * size, dtype=np.uint8))
    out = aligned(np.zeros_like(values))
    registers = [f"%h{i}" if bits < 32 else f"%r{i + 10}" for i in range(vector)]
    name = "{" + ",".join(registers) + "}" if vector > 1 else registers[0]
    suffix = f"{f'.v{vector}' if vector > 1 else ''}.b{bits}"
    body = f"mad.wide.u32 %d10, %r0, {size}, %d0; mad.wide.u32 %d11, %r0, {size}, %d1; mad.lo.u32 %r1, %r0, {size}, 0;"
    body += f"mov.u32 %r2, s; add.u32 %r1, %r1, %r2; ld.global{suffix} {name}, [%d10]; st.shared{suffix} [%r1], {name};"
    body += f"ld.shared{suffix} {name}, [%r1]; st.global{suffix} [%d11], {name};"
    ptx.run(body, values, out, declarations=SHARED)
    assert ptx.kinds() == [] and (out == values).all()


def test_generic_addresses_of_shared_memory(ptx):
    out = aligned(np.zeros(32, np.uint32))
    body = "mov.u64 %d5, s; cvta.shared.u64 %d6, %d5; add.u64 %d6, %d6, %d31; st.u32 [%d6], %r0;"
    body += "cvta.to.shared.u64 %d7, %d6; ld.shared.u32 %r3, [%d7]; cvta.to.global.u64 %d8, %d0; add.u64 %d8, %d8, %d31;"
    ptx.run(body + "st.global.u32 [%d8], %r3;", out, declarations=SHARED)
    assert ptx.kinds() == [] and (out == LANES).all()


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies(ptx, size):
    """Bytes beyond the source's size become 0."""
    values, out = (
        aligned(np.arange(1, 32 * size + 1).astype(np.uint8)),
        aligned(np.zeros(32 * size, np.uint8)),
    )
    body = f"mad.wide.u32 %d10, %r0, {size}, %d0; mad.wide.u32 %d11, %r0, {size}, %d1; mad.lo.u32 %r1, %r0, {size}, 0;"
    body += "mov.u32 %r2, s; add.u32 %r1, %r1, %r2; and.b32 %r5, %r0, 3;"
    body += f"cp.async.{'cg' if size == 16 else 'ca'}.shared.global [%r1], [%d10], {size}, %r5; cp.async.commit_group;"
    body += "cp.async.wait_group 0;" + "".join(
        f"ld.shared.u32 %r{i + 10}, [%r1+{4 * i}]; st.global.u32 [%d11+{4 * i}], %r{i + 10};"
        for i in range(size // 4)
    )
    ptx.run(body, values, out, declarations=SHARED)
    kept = np.arange(size)[None] < (LANES % 4)[:, None]
    assert ptx.kinds() == [] and (out.reshape(32, size) == np.where(kept, values.reshape(32, size), 0)).all()


def test_copies_arrive_by_groups(ptx):
    out = aligned(np.zeros(2, np.uint32))
    body = "mov.u32 %r1, s; cp.async.ca.shared.global [%r1], [%d0], 4; cp.async.commit_group;"
    body += "cp.async.ca.shared.global [%r1+4], [%d0+4], 4; cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r2, [%r1];"
    ptx.run(body, out, declarations=SHARED, block=1)
    assert ptx.kinds() == []
    ptx.run(body.replace("[%r1];", "[%r1+4];"), out, declarations=SHARED, block=1)
    assert ptx.kinds() == ["uninitialised shared memory"]


def test_traffic(ptx):
    """Sectors of 32 bytes, and banks of 4 bytes."""
    array = aligned(np.zeros(32 * 32, np.uint32))

    def sectors(stride: int, access: str = "ld.global.u32 %r1, [%d10];") -> tuple[int, int, int]:
        kernel = ptx.run(f"mad.wide.u32 %d10, %r0, {stride}, %d0; {access}", array)
        (row,) = [r for r in ptx.counts(kernel) if r["class"] == "ldg"]
        return row["sectors"], row["ideal_sectors"], row["lines"]

    assert sectors(4) == (4, 4, 1)
    assert sectors(0) == (1, 4, 1)
    assert sectors(32) == (32, 4, 8)
    assert sectors(128) == (32, 4, 32)
    assert sectors(16, "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%d10];") == (16, 16, 4)

    def wavefronts(stride: int, store: str) -> tuple[int, int]:
        body = f"mov.u32 %r1, s; mad.lo.u32 %r2, %r0, {stride}, %r1; {store}"
        kernel = ptx.run(body, array, declarations=".shared .align 16 .b8 s[8192];")
        (row,) = [r for r in ptx.counts(kernel) if r["class"] == "sts"]
        return row["wavefronts"], row["ideal"]

    assert wavefronts(4, "st.shared.u32 [%r2], 0;") == (1, 1)
    assert wavefronts(8, "st.shared.u32 [%r2], 0;") == (2, 1)
    assert wavefronts(128, "st.shared.u32 [%r2], 0;") == (32, 1)
    assert wavefronts(132, "st.shared.u32 [%r2], 0;") == (1, 1)
    assert wavefronts(16, "st.shared.v4.u32 [%r2], {0,0,0,0};") == (4, 4)
    assert wavefronts(144, "st.shared.v4.u32 [%r2], {0,0,0,0};") == (4, 4)
    assert wavefronts(128, "st.shared.v4.u32 [%r2], {0,0,0,0};") == (32, 4)
    assert ptx.kinds() == []
