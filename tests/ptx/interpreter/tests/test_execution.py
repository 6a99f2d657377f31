# ruff: noqa: E501 (PTX is not broken into lines)
"""Control flow, launches, modules, and what is counted."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_kernels import HEAD, Interpreter, aligned

WRITE = "add.u64 %d10, %d0, %d31; st.global.u32 [%d10], %r1;"


def computed(ptx: Interpreter, body: str, threads: int = 32, **launched) -> list[int]:
    """What each thread leaves in %r1."""
    out = aligned(np.zeros(threads, np.uint32))
    ptx.run(body + WRITE, out, block=threads, **launched)
    assert ptx.kinds() == []
    return out.tolist()


# ---- Control flow


def test_paths_meet_again(ptx):
    """Behind a branch in a branch all lanes run together: a shuffle of all is converged."""
    body = """
      mov.u32 %r1, 0; setp.lt.u32 %p1, %r0, 16; @%p1 bra $A;
      and.b32 %r2, %r0, 1; setp.eq.u32 %p2, %r2, 1; @!%p2 bra $B; add.u32 %r1, %r1, 1;
      $B: shfl.sync.bfly.b32 %r3, %r0, 1, 31, 0xffff0000; add.u32 %r1, %r1, 10; bra.uni $C;
      $A: add.u32 %r1, %r1, 100;
      $C: shfl.sync.bfly.b32 %r1, %r1, 16, 31, -1;"""
    upper = [10 + lane % 2 for lane in range(16, 32)]
    assert computed(ptx, body) == upper + [100] * 16


def test_loops_of_different_lengths(ptx):
    body = """
      mov.u32 %r1, 0; mov.u32 %r2, 0;
      $L: setp.gt.u32 %p1, %r2, %r0; @%p1 bra $E; add.u32 %r1, %r1, %r2; add.u32 %r2, %r2, 1; bra $L;
      $E: bar.warp.sync -1;"""
    assert computed(ptx, body) == [lane * (lane + 1) // 2 for lane in range(32)]


def test_lanes_that_exit(ptx):
    """Others go on, and are not waited for."""
    body = (
        "mov.u32 %r1, 1; " + WRITE + "setp.lt.u32 %p1, %r0, 20; @%p1 ret; bar.warp.sync -1; mov.u32 %r1, 2;"
    )
    assert computed(ptx, body) == [1] * 20 + [2] * 12


def test_guards(ptx):
    body = "mov.u32 %r1, 5; setp.lt.u32 %p1, %r0, 3; @%p1 add.u32 %r1, %r1, 1; @!%p1 mov.u32 %r1, %r0;"
    assert computed(ptx, body) == [6, 6, 6, *range(3, 32)]


def test_a_label_at_the_end(ptx):
    out = aligned(np.zeros(32, np.uint32))
    ptx.run("setp.lt.u32 %p1, %r0, 4; @%p1 bra $E; mov.u32 %r1, 1; " + WRITE + " $E:", out)
    assert out.tolist() == [0] * 4 + [1] * 28 and ptx.kinds() == []


@pytest.mark.parametrize(
    "body", ["$L1: bra $L1;", "$L1: setp.lt.u32 %p1, %r0, 64; @%p1 bra $L1;", "$L1: bar.sync 0; bra $L1;"]
)
def test_endless_loops(ptx, body):
    ptx.set(max_warp_insts=10_000)
    ptx.run(body)
    assert ptx.kinds() == ["does not end"]


def test_scopes(ptx):
    """A register of an inner scope hides one of the same name."""
    body = "mov.u32 %r1, 3; { .reg .b32 %r1; mov.u32 %r1, 9; { .reg .b32 t; mov.b32 t, 4; add.u32 %r2, %r1, t; } } add.u32 %r1, %r1, %r2;"
    assert computed(ptx, body) == [16] * 32


# ---- Launches


def test_blocks_and_threads(ptx):
    """%tid and %ctaid in three dimensions, and warps that are not full."""
    text = (
        HEAD.format(target=80)
        + """
    .visible .entry k(.param .u64 a) {
      .reg .b32 %r<16>; .reg .b64 %d<4>;
      ld.param.u64 %d1, [a];
      mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
      mov.u32 %r4, %ctaid.x; mov.u32 %r5, %ctaid.y; mov.u32 %r6, %ctaid.z;
      mov.u32 %r7, %nctaid.x; mov.u32 %r8, %nctaid.y;
      mad.lo.u32 %r6, %r6, %r8, %r5; mad.lo.u32 %r6, %r6, %r7, %r4;
      mad.lo.u32 %r3, %r3, 3, %r2; mad.lo.u32 %r3, %r3, 5, %r1;
      mad.lo.u32 %r9, %r6, 60, %r3; mul.wide.u32 %d2, %r9, 4; add.u64 %d1, %d1, %d2;
      st.global.u32 [%d1], %r9; ret;
    }"""
    )
    out = aligned(np.full(24 * 60, -1, np.int32))
    module = ptx.load(text)
    ptx.register(out)
    assert ptx.launch(module, "k", (2, 3, 4), (5, 3, 4), 0, [out.ctypes.data.to_bytes(8, "little")]) == 0
    ptx.unregister(out)
    assert ptx.kinds() == [] and (out == np.arange(24 * 60)).all()
    assert json.loads(ptx.library.ptxsim_launches()) == [
        {"kernel": "k", "grid": [2, 3, 4], "block": [5, 3, 4], "shared": 0}
    ]


LIMITS = {
    "empty grid": ({"grid": 0}, "grid or block out of range"),
    "block of 1,056 threads": ({"block": 1056}, "grid or block out of range"),
    "more threads than .maxntid": ({"block": 64, "directives": ".maxntid 32, 1, 1"}, "more than the 32 of .maxntid"),
    "other threads than .reqntid": ({"block": 32, "directives": ".reqntid 64"}, "not the 64 of .reqntid"),
    "shared memory, sm_80": ({"shared": 163 * 1024 + 16}, "more shared memory than there is"),
    "shared memory, sm_90": ({"shared": 227 * 1024 + 16, "target": 90}, "more shared memory than there is"),
    "static shared memory": ({"declarations": ".shared .align 4 .b8 s[49156];"}, "more than 48 KB"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_limits(ptx, name):
    options, message = LIMITS[name]
    ptx.run("", **options)
    (report,) = ptx.reports()
    assert report["kind"] == "launch" and message in report["detail"]


def test_what_is_within_the_limits(ptx):
    ptx.run("", block=1024, shared=163 * 1024)
    ptx.run("", block=64, directives=".maxntid 8, 8, 1", shared=227 * 1024, target=90)
    assert ptx.kinds() == []


def order_of_blocks(ptx: Interpreter) -> list[int]:
    """In which order blocks add themselves to a list."""
    next_place, out = aligned(np.zeros(1, np.uint32)), aligned(np.zeros(40, np.uint32))
    body = "atom.global.add.u32 %r1, [%d0], 1; mov.u32 %r2, %ctaid.x; mul.wide.u32 %d3, %r1, 4; add.u64 %d3, %d1, %d3; st.global.u32 [%d3], %r2;"
    ptx.run(body, next_place, out, block=1, grid=40)
    assert ptx.kinds() == []
    return out.tolist()


def test_order_of_blocks(ptx):
    assert order_of_blocks(ptx) == [*range(40)]
    orders = []
    for seed in (1, 2, 1):
        ptx.set(seed=seed)
        orders.append(order_of_blocks(ptx))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == [*range(40)] != orders[0]


def test_order_of_warps(ptx):
    orders = set()
    for seed in range(8):
        ptx.set(seed=seed)
        next_place, out = aligned(np.zeros(1, np.uint32)), aligned(np.zeros(4, np.uint32))
        body = "and.b32 %r3, %r0, 31; setp.ne.u32 %p1, %r3, 0; @%p1 exit; atom.global.add.u32 %r1, [%d0], 1;"
        body += "mul.wide.u32 %d3, %r1, 4; add.u64 %d3, %d1, %d3; st.global.u32 [%d3], %r0;"
        ptx.run(body, next_place, out, block=128)
        orders.add(tuple(out.tolist()))
    assert len(orders) > 3


def test_some_blocks(ptx):
    ptx.set(max_blocks=4)
    out = aligned(np.zeros(40, np.uint32))
    kernel = ptx.run(
        "mov.u32 %r2, %ctaid.x; mul.wide.u32 %d3, %r2, 4; add.u64 %d3, %d0, %d3; st.global.u32 [%d3], 1;",
        out,
        block=1,
        grid=40,
    )
    assert np.flatnonzero(out).tolist() == [0, 10, 20, 30]
    (row,) = [row for row in json.loads(ptx.library.ptxsim_stats()) if row["kernel"] == kernel]
    assert (row["launches"], row["blocks"], row["warps"]) == (1, 4, 4)


# ---- Modules


def test_shared_variables_do_not_overlap(ptx):
    """Variables of the module and the kernel, then dynamic shared memory."""
    declarations = ".shared .align 4 .b8 first[12];\n.extern .shared .align 16 .b8 dynamic[];\n"
    body = ".shared .align 8 .b64 second[2];\n mov.u32 %r1, first; mov.u32 %r2, second; mov.u32 %r3, dynamic; shl.b32 %r2, %r2, 8; shl.b32 %r3, %r3, 16;"
    body += "or.b32 %r1, %r1, %r2; or.b32 %r1, %r1, %r3;"
    assert set(computed(ptx, body, declarations=declarations, shared=64)) == {0 | 16 << 8 | 32 << 16}


def test_constants_and_globals(ptx):
    declarations = ".const .align 4 .b32 c[4] = {1, 2, 3, 4};\n.global .align 4 .b32 g = 7;\n"
    body = "ld.const.u32 %r1, [c+8]; ld.global.u32 %r2, [g]; add.u32 %r1, %r1, %r2; mov.u64 %d5, c; ld.const.u32 %r2, [%d5+4]; add.u32 %r1, %r1, %r2;"
    assert set(computed(ptx, body, declarations=declarations)) == {3 + 7 + 2}


def test_parameters(ptx):
    text = (
        HEAD.format(target=80)
        + """
    .visible .entry k(.param .u64 .ptr .global .align 1 a, .param .u8 b, .param .align 8 .b8 c[24], .param .f32 d) {
      .reg .b16 %h<4>; .reg .b32 %r<4>; .reg .b64 %d<4>; .reg .f32 %f<2>;
      ld.param.u64 %d1, [a]; ld.param.s8 %h1, [b]; mov.b64 %d2, c; ld.param.v2.u32 {%r1, %r2}, [%d2+8]; ld.param.f32 %f1, [d];
      cvt.s32.s16 %r3, %h1;
      st.global.v4.b32 [%d1], {%r1, %r2, %r3, %f1}; ret;
    }"""
    )
    out = aligned(np.zeros(4, np.int32))
    module = ptx.load(text)
    assert ptx.library.ptxsim_param_count(module, b"k") == 4
    assert [ptx.library.ptxsim_param_size(module, b"k", i) for i in range(4)] == [8, 1, 24, 4]
    ptx.register(out)
    values = [
        out.ctypes.data.to_bytes(8, "little"),
        b"\xfb",
        np.arange(6, dtype=np.int32).tobytes(),
        np.float32(1).tobytes(),
    ]
    ptx.launch(module, "k", (1, 1, 1), (1, 1, 1), 0, values)
    ptx.unregister(out)
    assert ptx.kinds() == [] and out.tolist() == [2, 3, -5, 0x3F800000]


@pytest.mark.parametrize(
    "text", [".entry k() { .reg .b32 %r<2>; bra $nowhere; }", ".entry k() { .local .b8 x[4]; ret; }"]
)
def test_text_that_is_no_kernel(ptx, text, capfd):
    module = ptx.load(HEAD.format(target=80) + text)
    assert ptx.launch(module, "k", (1, 1, 1), (1, 1, 1), 0, []) == 1
    assert "ptx interpreter: " in capfd.readouterr().err


UNSUPPORTED = [
    "add.cc.u32 %r1, %r1, %r2;", "add.f16.frob %h1, %h1, %h2;", "mul.f32.ftz %f1, %f1, %f2;", "mul24.lo.u32 %r1, %r1, %r2;",
    "add.u32 %d1, %d1, %d2;", "add.f32 %f1, %f2;", "add.f32 %f1, %f2, %f3, %f4;", "add.f32 %f1, %p1, %f3;",
    "min.xorsign.abs.f32 %f1, %f1, %f2;", "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2;", "cvt.f32.s32 %f1, %r1;",
    "cvt.s32.f32 %r1, %f1;", "cvt.rn.f16.bf16 %h1, %h2;", "ld.shared::cluster.u32 %r1, [%r2];", "ld.global.nc.u32 %r1, [%undeclared];",
    "ld.relaxed.gpu.global.u32 %r1, [%d0];", "ld.global.v2.u32 {%r1}, [%d0];", "ld.global.u64 %r1, [%d0];", "st.async.u32 [%r1], %r2;",
    "atom.global.add.b32 %r1, [%d0], %r2;", "red.global.exch.b32 [%d0], %r2;", "atom.global.add.f32 %f1, [%d0], %f2, %f3;",
    "bar.sync 0, 64;", "bar.arrive 0, 64;", "bar.red.popc.u32 %r1, 0, %p1;", "shfl.bfly.b32 %r1, %r1, 1, 31;", "vote.all.pred %p1, %p2;",
    "match.all.sync.b32 %r1, %r2, -1;", "redux.sync.max.f32 %f1, %f2, -1;", "ldmatrix.sync.aligned.m16n16.x1.shared.b8 {%r1}, [%r2];",
    "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1}, [%r2];", "call.uni f, ();", "setp.lo.s32 %p1, %r1, %r2;", "setp.num.s32 %p1, %r1, %r2;",
    "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1,%r2},{%r3,%r4,%r5,%r6},{%r7,%r8},{%r1,%r2};",
    "mma.sync.aligned.m16n8k8.row.row.f32.tf32.tf32.f32 {%f1,%f2,%f3,%f4},{%r1,%r2,%r3,%r4},{%r5,%r6},{%f1,%f2,%f3,%f4};",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1,%f2,%f3,%f4}, %d1, %d2, %p1, -1, 1, 0, 0;",
    "cp.async.bulk.commit_group;", "mbarrier.init.shared.b64 [%r1], 1;", "tex.2d.v4.f32.f32 {%f1,%f2,%f3,%f4}, [t, {%f1,%f2}];", "mov.u32 %r1, %cluster_ctaid.x;",
]  # fmt: skip


@pytest.mark.parametrize("instruction", UNSUPPORTED)
def test_what_is_not_implemented_is_reported(ptx, instruction):
    kernel = ptx.run(instruction)
    assert ptx.kinds() == ["unsupported"]
    lines = ptx.library.ptxsim_unsupported().decode().splitlines()
    assert any(line.startswith(f"{kernel}: {instruction[:-1]}") for line in lines)


def test_a_modifier_too_many_is_unsupported(ptx):
    """Of every opcode: none ignores a modifier that its rows do not name."""
    names = ptx.library.ptxsim_opcodes().decode().split()
    assert {"add", "mma", "wgmma", "cp", "shfl"} < set(names)
    for name in names:
        ptx.run(f"{name}.frob.b32 %r1, %r2, %r3;")
        assert ptx.kinds() == ["unsupported"], name


# ---- Counts, coverage, mutation


def test_counts_and_coverage(ptx):
    out = aligned(np.zeros(32, np.uint32))
    body = (
        ".loc 1 5 0\nsetp.lt.u32 %p1, %r0, 8; @!%p1 bra $L;\n.loc 1 6 0\nmov.u32 %r1, 1;\n"
        + WRITE
        + "\n$L: setp.gt.u32 %p2, %r0, 40; @%p2 add.u32 %r2, %r2, 1;"
    )
    kernel = ptx.run(body, out, declarations='.file 1 "a.cu"\n', block=32, grid=1)
    rows = {row["text"]: row for row in ptx.counts(kernel)}
    assert (
        rows["mov.u32 %r1, 1"]["issued"],
        rows["mov.u32 %r1, 1"]["lanes"],
        rows["mov.u32 %r1, 1"]["line"],
    ) == (1, 8, 6)
    assert rows["@!%p1 bra $L"]["lanes"] == 24 and rows["@!%p1 bra $L"]["class"] == "branch"
    launched, size, rest = ptx.coverage(kernel)
    assert launched and size == len(rows) and [text for *_, text in rest] == ["@%p2 add.u32 %r2, %r2, 1"]
    ptx.library.ptxsim_clear_stats()
    assert ptx.counts(kernel) == [] and ptx.coverage(kernel)[0] is False


def test_mutation(ptx):
    text = (
        HEAD.format(target=80)
        + """.entry mutated(.param .u64 a) {
      .reg .b64 %d<2>; .reg .b32 %r<2>;
      ld.param.u64 %d1, [a]; // add.u32 in a comment
      mov.u32 %r1, 5; add.u32 %r1, %r1, 2; st.global.u32 [%d1], %r1; ret; }"""
    )
    out = aligned(np.zeros(1, np.uint32))
    module = ptx.load(text)
    ptx.register(out)
    found = []
    original = ptx.library.ptxsim_text(b"mutated")
    assert b"comment" not in original
    for text in (original, original.replace(b"add", b"sub"), original):
        assert ptx.library.ptxsim_replace(b"mutated", text) == 0
        ptx.launch(module, "mutated", (1, 1, 1), (1, 1, 1), 0, [out.ctypes.data.to_bytes(8, "little")])
        found.append(int(out[0]))
    ptx.unregister(out)
    assert found == [7, 3, 7]


# ---- The stand-in CUDA runtime, and extents of allocations


class Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


def test_the_runtime_launches(ptx):
    """As nvcc's host code calls it: a kernel is registered under the address of a host function."""
    cuda, pointer = ptx.library, ctypes.c_void_p
    cuda.cudaLaunchKernel.argtypes = [pointer, Dim3, Dim3, pointer, ctypes.c_size_t, pointer]
    cuda.cudaGetErrorString.restype = ctypes.c_char_p
    ptx.load(
        HEAD.format(target=80)
        + ".extern .shared .align 16 .b8 s[];\n.entry by_runtime(.param .u64 a, .param .u32 b) { .reg .b64 %d<2>; .reg .b32 %r<2>; ld.param.u64 %d1, [a]; ld.param.u32 %r1, [b]; st.global.u32 [%d1], %r1; ret; }"
    )
    host = ctypes.create_string_buffer(8)
    none = pointer(None)
    cuda.__getattr__("__cudaRegisterFunction")(
        none, host, none, b"by_runtime", -1, none, none, none, none, none
    )
    memory = pointer()
    assert cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(4)) == 0
    number = ctypes.c_uint(42)
    arguments = (pointer * 2)(ctypes.addressof(memory), ctypes.addressof(number))

    def launch(shared=0, blocks=1):
        return cuda.cudaLaunchKernel(
            ctypes.addressof(host), Dim3(blocks, 1, 1), Dim3(1, 1, 1), arguments, shared, None
        )

    assert launch() == 0 and ptx.kinds() == []
    assert ctypes.c_uint.from_address(memory.value).value == 42
    launch(shared=50_000)
    (report,) = ptx.reports()
    assert report["kind"] == "launch" and "have to be asked for" in report["detail"]
    assert (
        cuda.cudaFuncSetAttribute(host, 8, 50_000) == 0 and launch(shared=50_000) == 0 and ptx.kinds() == []
    )
    assert cuda.cudaFuncSetAttribute(host, 8, 300_000) == 1
    assert (
        launch(blocks=0) != 0
        and ptx.kinds() == ["launch"]
        and cuda.cudaGetLastError() != 0
        and cuda.cudaGetLastError() == 0
    )
    assert cuda.cudaMemsetAsync(memory, 0, ctypes.c_size_t(8), none) == 0 and ptx.kinds() == ["out of range"]
    assert cuda.cudaFree(memory) == 0
    assert cuda.ptxsim_missing_call(b"cudaMallocPitch") == 801 and ptx.kinds() == [
        "unimplemented runtime call"
    ]


PRELOADED = """
import ctypes, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from small_kernels import Interpreter
import numpy as np
ptx = Interpreter(Path(sys.argv[1]) / "libptx_interpreter.so")
process = ctypes.CDLL(None)
process.ptxsim_hook(*(ctypes.cast(f, ctypes.c_void_p) for f in (ptx.library.ptxsim_register, ptx.library.ptxsim_unregister)))
process.free.argtypes = [ctypes.c_void_p]
at = ctypes.c_void_p()
assert process.posix_memalign(ctypes.byref(at), ctypes.c_size_t(64), ctypes.c_size_t(100)) == 0
assert ctypes.string_at(at.value - 1024, 1024 + 100 + 1024) == b"\\xff" * 2148
for offset in (0, 96, 100, -4):
    ptx.run(f"st.global.u32 [%d0+{offset}], 1;", numbers=(at.value,), block=1)
    print(ptx.kinds())
address = at.value
process.free(at)
ptx.run("st.global.u32 [%d0], 1;", numbers=(address,), block=1)
print(ptx.kinds())
"""


def test_extents_of_allocations(libraries):
    environment = {**os.environ, "LD_PRELOAD": str(libraries / "libptx_preload.so")}
    command = [sys.executable, "-c", PRELOADED, str(libraries), str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "[]",
        "['out of range']",
        "['out of range']",
        "['out of range']",
    ]
