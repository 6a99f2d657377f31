"""The commands of tests/ptx: wrong instructions are noticed by the case table, and launches are counted."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable

import native_build
import on_ptx
import pytest
from ptx_interpreter.mutants import draw_mutant
from ptx_runs import build, environment
from repository import TESTS

PTX = """
.visible .entry k(.param .u64 a) {
  .reg .f32 %f<4>;
  ld.param.u64 %rd1, [a];
  .loc 1 20 5
  ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+16];
  @%p1 bra $L;
  fma.rn.f32 %f1, %f2, %f3, %f4;
  bar.sync 0;
  shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;
  add.s32 %r1, %r2, 4;
  sub.f32 %f1, %f2, %f3;
  mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1,%f2,%f3,%f4},{%r1,%r2,%r3,%r4},{%r5,%r6},{%f1,%f2,%f3,%f4};
$L:
  st.global.f32 [%rd1], %f1;
  ret;
}
"""
NOTICED = 0.7  # of the sample; of a larger one 88 %, so that chance alone does not fail it
SAMPLE = 40


def test_mutants_change_one_instruction():
    draw, lines = random.Random(0), PTX.split("\n")
    found = [draw_mutant(PTX, draw) for _ in range(500)]
    kinds = ["operation", "dropped", "address", "registers", "operands", "number", "lane", "addend"]
    assert {mutant.kind for mutant in found} == set(kinds)
    for mutant in found:
        changed = mutant.apply(PTX).split("\n")
        assert [i for i, (a, b) in enumerate(zip(lines, changed)) if a != b] == [mutant.line]
    assert not {lines[m.line].split()[0] for m in found} & {
        "ld.param.u64",
        "@%p1",
        "ret;",
        "$L:",
        ".loc",
        "}",
    }
    (moved,) = {
        m.after.strip() for m in found if m.kind == "address" and m.before.strip().startswith("st")
    } - {"st.global.f32 [%rd1+-4], %f1;"}
    assert moved == "st.global.f32 [%rd1+4], %f1;"
    assert all(m.source == ".loc 1 20 5" for m in found)


def test_addends_that_are_0_are_not_drawn():
    """%f4 is 0 before the first sum alone, %f5 everywhere."""
    sums = [f"fma.rn.f32 %f6, %f2, %f3, %f{i};" for i in (4, 5)]
    ptx = "\n".join(["mov.f32 %f4, 0f00000000;", "mov.f32 %f5, 0f00000000;", *sums, "add.f32 %f4, %f6, %f4;"])
    draw = random.Random(0)
    found = [draw_mutant(ptx, draw) for _ in range(200)]
    assert {mutant.before for mutant in found if mutant.kind == "addend"} == {sums[0]}


def run(command: str, *options: str) -> str:
    folder = build(on_ptx.LIBRARY)
    done = native_build.run(
        sys.executable, TESTS / "ptx" / f"{command}.py", *options, **environment(folder, 90)
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.nightly
def test_most_mutants_are_noticed(record_property: Callable[[str, object], None]):
    said = run("mutate", str(SAMPLE), "--dtypes", "bfloat16")
    record_property("figure", f"Mutants: {said.splitlines()[-1]}")
    noticed, executed = map(int, re.findall(r"\d+", said.splitlines()[-1])[:2])
    assert executed >= SAMPLE / 2 and noticed >= NOTICED * executed, said


@pytest.mark.slow
def test_launches_are_counted():
    """A channels_last warp in bfloat16 multiplies on tensor cores, and touches no fewer sectors than it needs."""
    said = run("counts", "--shapes", "small", "--dtypes", "bfloat16", "--layouts", "channels_last")
    head, *rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| ")]
    kernels = {row[1].split("<")[0]: dict(zip(head, row)) for row in rows}
    assert set(kernels) == {"warp_forward", "warp_backward", "finish_backward"}
    # B H W pixels times 9 taps times C C' products, by 16 x 8 x 16 for each mma of a warp.
    assert float(kernels["warp_forward"]["mma"]) == 32 * 16 * 16 / (16 * 8 * 16)
    for kernel in kernels.values():
        touched, needed = map(float, re.findall(r"[\d.]+", kernel["sectors, loads"]))
        assert touched >= needed > 0


@pytest.mark.slow
def test_times_are_calculated():
    """The launches of a step, of which a larger batch takes no less time."""
    said = run("times", "--batches", "1", "9", "--channels", "32", "--size", "8", "--dtypes", "bfloat16")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines()[4:]]
    kernels = {
        variant: [row[1] for row in rows if row[0].startswith(variant)] for variant in ("official", "paper")
    }
    stems = {variant: {name.strip("`").split("<")[0] for name in names} for variant, names in kernels.items()}
    assert {"gates_forward", "candidate_forward", "packed_warp_forward", "finish_update"} <= stems["official"]
    assert stems["paper"] == {
        "gated_warp_forward",
        "decode_blend",
        "blend_backward",
        "warp_backward",
        "finish_gates",
    }
    for row in rows:
        small, large = map(float, row[2].split(" / "))
        assert 1.2 < small <= large
