# ruff: noqa: E501 (PTX is not broken into lines)
"""Matrix instructions: fragments laid out as the ISA's figures, products against float64."""

from __future__ import annotations

import numpy as np
import pytest
from formats import BF16, F16, bits_of, exact, floats_of, round_to
from small_kernels import LANES, aligned

GROUP, MEMBER = LANES // 4, LANES % 4  # groupID and threadID_in_group of the ISA
SHARED = {"declarations": ".extern .shared .align 1024 .b8 s[];", "shared": 65536}


def halves(matrix: np.ndarray, kind: str) -> np.ndarray:
    form = F16 if kind == "f16" else BF16
    flat = [round_to(exact(v), form) for v in matrix.ravel()]
    return bits_of(np.array(flat), form).reshape(matrix.shape)


def values_of(bits: np.ndarray, kind: str) -> np.ndarray:
    return floats_of(bits.ravel(), F16 if kind == "f16" else BF16).reshape(bits.shape)


def pairs(matrix: np.ndarray, row: np.ndarray, column: np.ndarray, down: bool = False) -> np.ndarray:
    """Registers with the element at (row, column) below the next one, to the right or below."""
    first, second = matrix[row, column], matrix[row + down, column + (not down)]
    return first.astype(np.uint32) | second.astype(np.uint32) << 16


def accumulators(c: np.ndarray) -> list[np.ndarray]:
    return [c[GROUP + 8 * (i // 2), 2 * MEMBER + i % 2] for i in range(4)]


def fragments_of_halves(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    depth = a.shape[1]
    of_a = [pairs(a, GROUP + 8 * half, 2 * MEMBER + k) for k in range(0, depth, 8) for half in (0, 1)]
    return of_a, [pairs(b, 2 * MEMBER + k, GROUP, down=True) for k in range(0, depth, 8)]


def fragments_of_tf32(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    depth = a.shape[1]
    of_a = [a[GROUP + 8 * half, MEMBER + k] for k in range(0, depth, 4) for half in (0, 1)]
    return of_a, [b[MEMBER + k, GROUP] for k in range(0, depth, 4)]


def multiply(
    ptx, shape: str, kind: str, a: list[np.ndarray], b: list[np.ndarray], c: np.ndarray
) -> np.ndarray:
    registers = np.stack([*a, *b, *(x.view(np.uint32) for x in accumulators(c))], 1).astype(np.uint32)
    inputs, out = aligned(registers), aligned(np.zeros((32, 4), np.float32))
    count = registers.shape[1]
    body = f"mad.wide.u32 %d10, %r0, {4 * count}, %d0; mad.wide.u32 %d11, %r0, 16, %d1;"
    body += "".join(f"ld.global.b32 %r{i + 1}, [%d10+{4 * i}];" for i in range(count))
    names = [f"%r{i + 1}" for i in range(count)]
    groups = names[: len(a)], names[len(a) : len(a) + len(b)], names[-4:]
    sources = ", ".join("{" + ", ".join(g) + "}" for g in groups)
    # d is c in another order: every c has to be read before a d is written
    body += (
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{{', '.join(names[:-5:-1])}}}, {sources};"
    )
    body += f"st.global.v4.b32 [%d11], {{{', '.join(names[:-5:-1])}}};"
    ptx.run(body, inputs, out)
    assert ptx.kinds() == []
    d = np.zeros((16, 8), np.float32)
    for i in range(4):
        d[GROUP + 8 * (i // 2), 2 * MEMBER + i % 2] = out[:, i]
    return d


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("depth", [8, 16])
def test_mma_of_halves(ptx, kind, depth):
    rng = np.random.default_rng(depth)
    a, b = halves(rng.standard_normal((16, depth)), kind), halves(rng.standard_normal((depth, 8)), kind)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    d = multiply(ptx, f"m16n8k{depth}", kind, *fragments_of_halves(a, b), c)
    assert np.abs(d - (values_of(a, kind) @ values_of(b, kind) + c)).max() < 1e-6


@pytest.mark.parametrize("depth", [4, 8])
def test_mma_of_tf32(ptx, depth):
    """The last 13 bits of a register are ignored."""
    rng = np.random.default_rng(depth)
    a, b = (rng.standard_normal(s).astype(np.float32).view(np.uint32) for s in ((16, depth), (depth, 8)))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    cut = [(x & 0xFFFFE000).view(np.float32).astype(np.float64) for x in (a, b)]
    d = multiply(ptx, f"m16n8k{depth}", "tf32", *fragments_of_tf32(a, b), c)
    assert np.abs(d - (cut[0] @ cut[1] + c)).max() < 1e-6


def test_sums_are_exact_or_cut(ptx):
    """1 + 4 x 1.5 * 2^-25, exact in one rounding; as tensor cores cut it, with one bit more than float32 and without."""
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.ones((16, 8), np.float32)
    a[:, :4], b[:4] = 1.5 * 2.0**-13, 2.0**-12
    fragments = fragments_of_halves(halves(a, "bf16"), halves(b, "bf16"))
    run = lambda: multiply(ptx, "m16n8k16", "bf16", *fragments, c)  # noqa: E731
    assert (
        run() == np.float32(1 + 6 * 2.0**-25 + 2.0**-25)
    ).all()  # 1 + 2^-23 (3/2 ulp, halves to even: 2 ulp below)
    ptx.set(mma_mode=1, mma_extra_bits=2)
    assert (run() == np.float32(1 + 2.0**-23)).all()  # each product is cut to 2^-25: 4 x 2^-25 = 2^-23
    ptx.set(mma_extra_bits=1)
    assert (run() == 1).all()  # each is less than 2^-24 and cut to 0
    ptx.set(mma_group=1, mma_extra_bits=2)
    assert (run() == 1).all()  # each sum is cut to float32 before the next product


def test_products_that_are_not_finite(ptx):
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.ones((16, 8), np.float32)
    a[0, 0], a[1, 0] = np.inf, np.nan
    b[0] = 1
    for mode in (0, 1):
        ptx.set(mma_mode=mode)
        d = multiply(ptx, "m16n8k16", "f16", *fragments_of_halves(halves(a, "f16"), halves(b, "f16")), c)
        assert np.isposinf(d[0]).all() and (d[1].view(np.uint32) == 0x7FFFFFFF).all() and (d[2:] == 1).all()


# ---- Matrices of 8 x 8

FILL = "mad.wide.u32 %d10, %r0, 16, %d0; shl.b32 %r1, %r0, 4; mov.u32 %r2, s; add.u32 %r1, %r1, %r2;"
LOAD_ALL = (
    FILL
    + "ld.global.v4.b32 {%r3,%r4,%r5,%r6}, [%d10]; st.shared.v4.b32 [%r1], {%r3,%r4,%r5,%r6}; bar.warp.sync -1;"
)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_ldmatrix_and_stmatrix(ptx, count, transposed):
    """Matrix n's rows are at the addresses of lanes 8 n to 8 n + 7; lane l holds (l / 4, 2 (l % 4)) and its neighbour."""
    rows = aligned(np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8))
    out = aligned(np.zeros((4, 32), np.uint32))
    registers = [f"%r{i + 10}" for i in range(count)]
    name = "{" + ",".join(registers) + "}"
    body = LOAD_ALL + f"ldmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 {name}, [%r1];"
    body += "add.u64 %d11, %d1, %d31;" + "".join(
        f"st.global.u32 [%d11+{128 * i}], {r};" for i, r in enumerate(registers)
    )
    ptx.run(body, rows, out, **SHARED)
    assert ptx.kinds() == []
    for n in range(count):
        matrix = rows[n].T if transposed else rows[n]
        assert (out[n] == pairs(matrix, GROUP, 2 * MEMBER)).all()

    back = aligned(np.zeros((4, 8, 8), np.uint16))
    body = "add.u64 %d11, %d1, %d31;" + "".join(
        f"ld.global.u32 {r}, [%d11+{128 * i}];" for i, r in enumerate(registers)
    )
    body += (
        FILL + f"stmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 [%r1], {name}; bar.warp.sync -1;"
    )
    body += f"setp.lt.u32 %p1, %r0, {8 * count}; mad.wide.u32 %d12, %r0, 16, %d0;"
    body += "@%p1 ld.shared.v4.b32 {%r3,%r4,%r5,%r6}, [%r1]; @%p1 st.global.v4.b32 [%d12], {%r3,%r4,%r5,%r6};"
    ptx.run(body, back, out, **SHARED, target=90)
    assert ptx.kinds() == [] and (back[:count] == rows[:count]).all()


def test_movmatrix(ptx):
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8)
    found = ptx.lanes("movmatrix.sync.aligned.m8n8.trans.b16 {d}, {0};", pairs(matrix, GROUP, 2 * MEMBER))
    assert (found == pairs(matrix.T.copy(), GROUP, 2 * MEMBER)).all()


# ---- wgmma

SWIZZLES = {0: 0, 32: 3, 64: 2, 128: 1}  # bytes, and their code in a descriptor


def swizzled(line: int, chunk: int, swizzle: int) -> int:
    """The chunk of 16 bytes of a line of `swizzle` bytes where a chunk lies: xored with the number of 128 bytes."""
    return chunk ^ line * swizzle // 128 % (swizzle // 16) if swizzle else chunk


def place(matrix: np.ndarray, start: int, memory: np.ndarray, swizzle: int, k_major: bool) -> int:
    """Lay (rows, k) out in shared memory as the ISA's canonical layouts; return the descriptor."""
    size = matrix.itemsize
    chunk = 16 // size
    rows, depth = matrix.shape
    line = swizzle or 16  # bytes that lie together
    if k_major:
        leading, stride = (128 * (rows // 8), 128) if not swizzle else (16, 8 * line)
    else:
        across = rows * size // line  # lines of a row of k
        leading, stride = (128, 128 * depth // 8) if not swizzle else (8 * line * (depth // 8), 8 * line)
        assert across >= 1
    for r in range(rows):
        for k in range(depth):
            along, other = (k, r) if k_major else (r, k)  # along is contiguous
            outer, inner = divmod(along * size, line)
            c, byte = divmod(inner, 16)
            if k_major:
                at = other // 8 * stride + other % 8 * line + (outer * leading if not swizzle else 0)
                assert swizzle == 0 or outer == 0
            elif swizzle:
                at = outer * leading + other // 8 * stride + other % 8 * line
            else:
                at = outer * stride + other // 8 * leading + other % 8 * 16
            at += start + swizzled(other % 8, c, swizzle) * 16 + byte
            memory[at : at + size] = np.frombuffer(matrix[r, k].tobytes(), np.uint8)
    assert chunk * size == 16
    return start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | SWIZZLES[swizzle] << 62


def wgmma(
    ptx,
    kind: str,
    n: int,
    a,
    b,
    a_swizzle,
    b_swizzle,
    a_major,
    b_major,
    adds: bool,
    fence: str = "fence.proxy.async.shared::cta;",
):
    """d = a b (+ 1) of a warpgroup; a is None in shared memory, or the matrix whose fragments are in registers."""
    memory = np.zeros(65536, np.uint8)
    depth = b.shape[1]
    in_registers = a_swizzle is None
    of_b = place(b, 32768, memory, b_swizzle, b_major)
    of_a = 0 if in_registers else place(a, 0, memory, a_swizzle, a_major)
    image, out = aligned(memory.view(np.uint32)), aligned(np.zeros((128, n // 2), np.float32))
    body = "mov.u32 %r1, %r0; $L1: mul.wide.u32 %d10, %r1, 4; add.u64 %d10, %d10, %d0; ld.global.b32 %r2, [%d10];"
    body += "shl.b32 %r3, %r1, 2; mov.u32 %r4, s; add.u32 %r3, %r3, %r4; st.shared.b32 [%r3], %r2; add.u32 %r1, %r1, 128;"
    body += f"setp.lt.u32 %p1, %r1, 16384; @%p1 bra $L1; {fence} bar.sync 0;"
    arrays = [image, out]
    numbers = (of_b,) if in_registers else (of_b, of_a)
    source = "%d3"
    if in_registers:
        parts = []
        for warp in range(4):
            rows = a[16 * warp : 16 * warp + 16]
            of = fragments_of_tf32 if kind == "tf32" else fragments_of_halves
            parts.append(np.stack(of(rows, np.zeros((depth, 8), a.dtype))[0], 1))
        arrays = [image, out, aligned(np.concatenate(parts).astype(np.uint32))]
        body += "mad.wide.u32 %d11, %r0, 16, %d2; ld.global.v4.b32 {%r10,%r11,%r12,%r13}, [%d11];"
        source = "{%r10,%r11,%r12,%r13}"
    descriptor_b = "%d3" if in_registers else "%d2"
    d = "{" + ",".join(f"%f{i}" for i in range(n // 2)) + "}"
    body += "".join(f"mov.f32 %f{i}, 0f3F800000;" for i in range(n // 2))
    flags = (
        ""
        if kind == "tf32"
        else f", {int(not b_major)}"
        if in_registers
        else f", {int(not a_major)}, {int(not b_major)}"
    )
    body += f"setp.eq.u32 %p2, %r0, {'%r0' if adds else '1000'}; wgmma.fence.sync.aligned;"
    body += f"wgmma.mma_async.sync.aligned.m64n{n}k{depth}.f32.{kind}.{kind} {d}, {source}, {descriptor_b}, %p2, 1, 1{flags};"
    body += "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
    body += f"mad.wide.u32 %d12, %r0, {2 * n}, %d1;" + "".join(
        f"st.global.f32 [%d12+{4 * i}], %f{i};" for i in range(n // 2)
    )
    ptx.run(body, *arrays, block=128, **SHARED, target=90, numbers=numbers)
    found = np.zeros((64, n), np.float32)
    for i in range(n // 2):
        for warp in range(4):
            rows = 16 * warp + GROUP + 8 * (i // 2 % 2)
            found[rows, 8 * (i // 4) + 2 * MEMBER + i % 2] = out[32 * warp : 32 * warp + 32, i]
    return found


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("a_major", [True, False])
@pytest.mark.parametrize("b_major", [True, False])
def test_wgmma_of_halves(ptx, swizzle, a_major, b_major):
    rng = np.random.default_rng(swizzle)
    n = max(16, swizzle // 2)
    a, b = (halves(rng.standard_normal((rows, 16)), "bf16") for rows in (64, n))
    found = wgmma(ptx, "bf16", n, a, b, swizzle, swizzle, a_major, b_major, adds=True)
    assert ptx.kinds() == []
    assert np.abs(found - (values_of(a, "bf16") @ values_of(b, "bf16").T + 1)).max() < 1e-5


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("kind", ["f16", "tf32"])
@pytest.mark.parametrize("in_registers", [True, False])
def test_wgmma_kinds(ptx, swizzle, kind, in_registers):
    rng = np.random.default_rng(swizzle)
    if kind == "tf32":
        a, b = (
            (rng.standard_normal((rows, 8)).astype(np.float32).view(np.uint32) & 0xFFFFE000)
            for rows in (64, 24)
        )
        exact_values = [x.view(np.float32).astype(np.float64) for x in (a, b)]
    else:
        a, b = (halves(rng.standard_normal((rows, 16)), kind) for rows in (64, 24))
        exact_values = [values_of(x, kind) for x in (a, b)]
    found = wgmma(ptx, kind, 24, a, b, None if in_registers else swizzle, swizzle, True, True, adds=False)
    assert ptx.kinds() == []
    assert np.abs(found - exact_values[0] @ exact_values[1].T).max() < 1e-5


@pytest.mark.parametrize("n", [8, 136, 256])
def test_wgmma_columns(ptx, n):
    rng = np.random.default_rng(n)
    a, b = (halves(rng.standard_normal((rows, 16)), "f16") for rows in (64, n))
    found = wgmma(ptx, "f16", n, a, b, 32, 32, True, True, adds=True)
    assert ptx.kinds() == []
    assert np.abs(found - (values_of(a, "f16") @ values_of(b, "f16").T + 1)).max() < 1e-5


def test_wgmma_without_a_fence(ptx):
    a, b = (halves(np.ones((rows, 16)), "f16") for rows in (64, 8))
    wgmma(ptx, "f16", 8, a, b, 0, 0, True, True, adds=False, fence="")
    assert ptx.kinds() == ["async proxy reads what no fence.proxy.async followed"]
