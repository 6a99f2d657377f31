"""Do the GPU benchmarks count, compare and decide rightly? The tests need no GPU and depend on no time."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from calls import Calls
from comparing import assert_close
from repository import ROOT

import motionrnn_ext
from motionrnn_ext import backends
from motionrnn_ext.benchmarks import cases
from motionrnn_ext.benchmarks.gpu import ceilings, on_gpu, rollouts, sanitizer_set, steps
from motionrnn_ext.benchmarks.gpu import targets as gpu_targets
from motionrnn_ext.benchmarks.measuring import (
    implementations,
    op_cases,
    plain_cell,
    plan,
    roofline,
    rows,
    timing,
)

BENCHMARKS = ROOT / "benchmarks"


# ---- What is counted


@pytest.mark.parametrize("op, dtype, direction, expected", [
    ("motion_reset", "float32", "forward", 4 * 18 * (4 + 4 + 4)),  # r, F, out
    ("motion_reset", "bfloat16", "backward", 4 * 18 * (3 * 2 + 2 * 4)),  # grad, r, grad_r; F, grad_F
    ("motion_update", "bfloat16", "forward", 4 * 18 * (2 * 2 + 4 * 4)),  # u, z; F, D in and out
    ("motion_update", "float32", "backward", 4 * 18 * 10 * 4),  # u, z, F, F_t; two gradients in, four out
    ("memory_update", "float32", "forward", 4 * 2 * (3 + 3 + 1 + 1) * 4),
    ("memory_update", "float32", "backward", 4 * 2 * (1 + 3 + 3 + 1 + 3 + 1) * 4),  # one gradient for both addends
    ("highway_output", "bfloat16", "forward+backward", 4 * 2 * (4 + 7) * 2),
    ("gated_blend", "float32", "forward", 4 * 2 * 4 * 4),
    # (i,f,g), (i',f',g'), C, M; [C', M'], C', M'. The logits of o pass by.
    ("st_lstm_update", "float32", "forward", 4 * 2 * (3 + 3 + 2 + 2 + 2) * 4),
    # gradients of [C', M'] twice, C', M', o; gates, C, M; gradients of (i,f,g,o), (i',f',g'), C, M
    ("st_lstm_update", "float32", "backward", 4 * 2 * (2 + 2 + 3 + 3 + 3 + 2 + 4 + 3 + 2) * 4),
    ("summed_output", "float32", "forward", 4 * 2 * (4 + 2) * 4),
    ("conv_lstm_update", "bfloat16", "forward", 4 * 2 * (4 + 1 + 1 + 2) * 2),
    # gradients of H', C'; gates, C, C', highway; gradients of gates, C, highway
    ("conv_lstm_update", "bfloat16", "backward", 4 * 2 * (2 + 4 + 3 + 4 + 2) * 2),
    ("conv_lstm_update without highway", "bfloat16", "backward", 4 * 2 * (2 + 4 + 2 + 4 + 1) * 2),
])  # fmt: skip
def test_bytes_of_pointwise_ops(op: str, dtype: str, direction: str, expected: int):
    assert roofline.work(op, cases.MapShape(1, 2, 2), dtype, direction).bytes == expected


def test_work_of_the_warp_at_one_pixel():
    shape, weight = cases.MapShape(1, 16, 1), 16 * 16 * 9
    forward = roofline.work("offset_warp", shape, "float32", "forward")
    assert forward.bytes == 16 * 4 + 18 * 4 + 9 * 4 + 16 * 4 + 4 * weight
    assert forward.gather == 9 * 4 * 16 * 4
    assert (forward.matrix, forward.vector) == (2 * weight, 9 * 16 * 4 * 2)
    half = roofline.work("offset_warp", shape, "bfloat16", "forward")
    assert half.bytes == 16 * 2 + 18 * 4 + 9 * 2 + 16 * 2 + 2 * weight
    backward = roofline.work("offset_warp", shape, "float32", "backward")
    assert backward.bytes == 2 * (16 * 4 + 18 * 4 + 9 * 4 + 4 * weight) + 16 * 4
    assert backward.scatter == 9 * 4 * 16 * 4 and backward.matrix == 2 * forward.matrix
    both = roofline.work("offset_warp", shape, "float32", "forward+backward")
    assert both == forward + backward


def test_work_of_the_fused_pair_and_the_cell():
    shape, weight = cases.MapShape(1, 16, 1), 16 * 16 * 9
    pair = roofline.work("motion_warp", shape, "float32", "forward")
    inputs = 16 + 18 + 18 + 18 + 18 + 9 + weight  # x, u, z, F, D, m, W
    assert pair.bytes == 4 * (inputs + 16 + 18 + 18)
    backward = roofline.work("motion_warp", shape, "float32", "backward")
    read = (16 + 18 + 18) + (16 + 18 + 18 + 18 + 18 + 9 + weight)  # gradients; x, u, z, F, new F, m, W
    assert backward.bytes == 4 * (read + inputs)
    multiply_adds = 9 * (16 + 18) * 3 * 18 + 9 * 16 * 9 + weight
    assert (
        roofline.work("MotionGRUCell", shape, "float32", "forward").matrix == 2 * multiply_adds == 2 * 20124
    )


def test_share_of_the_roofline():
    rates = {"copy_bytes_per_s": 1e12, "gather_l1_8_bytes_per_s": 8e12, "ffma_flops": 1e12, "mma_bf16_flops": 1e14,
             "mma_tf32_flops": 6e12, "red_float4_bytes_per_s": 1e10}  # fmt: skip
    counted = roofline.Work(bytes=2_000_000, gather=8_000_000, scatter=10**6, matrix=10**8, vector=500_000)
    half = roofline.floors(counted, rates, "bfloat16", 8)
    assert half == pytest.approx({"memory": 2, "gather": 1, "matrix": 1, "vector": 0.5, "scatter": 100})
    assert roofline.share(half, 8.0) == (0.25, "memory")  # scatter is no part of the roofline
    single = roofline.floors(counted, rates, "float32", 8)  # three tf32 products beat FFMA here
    assert roofline.share(single, 100.0) == (0.5, "matrix")


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_corners_inside(scale: float):
    offset = scale * torch.randn(2, 18, 3, 4, generator=torch.Generator().manual_seed(0))
    count = 0
    for b, tap, row, col, i, j in torch.cartesian_prod(*map(torch.arange, (2, 9, 3, 4, 2, 2))).tolist():
        r = row + tap // 3 - 1 + int(offset[b, tap, row, col].floor()) + i
        c = col + tap % 3 - 1 + int(offset[b, 9 + tap, row, col].floor()) + j
        count += 0 <= r < 3 and 0 <= c < 4
    assert ceilings.corners_inside(offset) == count


# ---- What is compared


def test_the_plain_cell_is_the_cell():
    torch.manual_seed(0)
    plain, ours = plain_cell.PlainCell(3).double(), motionrnn_ext.MotionGRUCell(3).double()
    ours.load_state_dict(plain.state_dict(), strict=True)
    inputs = [torch.randn(2, c, 5, 6, dtype=torch.float64).mul_(2).requires_grad_() for c in (3, 18, 18)]
    results = []
    for cell in (plain, ours):
        outputs = cell(*inputs)
        parameters = [p for _, p in sorted(cell.named_parameters())]
        grads = [torch.randn(o.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
                 for i, o in enumerate(outputs)]  # fmt: skip
        results.append([*outputs, *torch.autograd.grad(outputs, [*inputs, *parameters], grads)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-10)


def test_torchvision_gets_its_own_order_and_gives_back_ours(monkeypatch: pytest.MonkeyPatch):
    """A fake deform_conv2d takes, as documented, (row, column) pairs tap by tap and a mask that multiplies."""

    def deform_conv2d(x, pairs, weight, padding, mask):
        assert padding == 1
        offset = torch.cat([pairs[:, ::2], pairs[:, 1::2]], dim=1)
        with motionrnn_ext.backend("reference"):
            return motionrnn_ext.ops.offset_warp(x, offset, mask.logit(), weight)

    fake = types.ModuleType("torchvision.ops")
    fake.deform_conv2d = deform_conv2d
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.ops", fake)
    case = op_cases.Case("offset_warp", cases.DRY_RUN_MAPS.full, "float32", op_cases.BOTH)
    inputs = case.inputs("cpu", 0)
    made = implementations.implementation("torchvision", "NCHW", case, "cpu")
    call, leaves = made.call(case, inputs)
    results = made.results(case, call, leaves)
    off = rows.deviation(case, made, results, op_cases.exact_results(case, inputs))
    assert off < 1e-5


@pytest.mark.parametrize("name", ["ours", "reference"])
def test_the_convolution_row_has_all_gradients(name: str):
    case = op_cases.Case("convolution", cases.DRY_RUN_CONVOLVED_MAPS[0], "float32", op_cases.BOTH)
    inputs = case.inputs("cpu", 0)
    made = implementations.implementation(name, "NCHW", case, "cpu")
    results = made.results(case, *made.call(case, inputs))
    assert [len(part) for part in results] == [1, 2]
    # The norm of the difference. Measured: 9.4e-7 by Winograd's algorithm.
    assert rows.deviation(case, made, results, op_cases.exact_results(case, inputs)) < 5e-6


@pytest.mark.parametrize("name", ["ours", "reference"])
@pytest.mark.parametrize("op", roofline.MOTION_GRUS)
def test_the_motion_gru_rows_are_whole_steps(op: str, name: str):
    """Forward and backward with all gradients, by the joined ops of a rollout."""
    case = op_cases.Case(op, cases.DRY_RUN_MAPS.small, "float32", op_cases.BOTH)
    inputs = case.inputs("cpu", 0)
    assert [tuple(t.shape) for t in inputs] == [(1, 16, 12, 12), (1, 18, 6, 6), (1, 18, 6, 6)]
    made = implementations.implementation(name, "channels_last", case, "cpu")
    with Calls("motionrnn_ext") as calls:
        call, leaves = made.call(case, inputs)
        results = made.results(case, call, leaves)
    assert ("motion_step" in calls.names) == (name == "ours" and not backends.unavailable_reason("cpu"))
    assert [len(part) for part in results] == [3, 3 + len(made.parameters)]
    # Measured: at most 9e-7, as no tap of these maps lies at an integer.
    assert rows.deviation(case, made, results, op_cases.exact_results(case, inputs)) < 1e-5


def test_a_motion_gru_without_a_gpu_has_rows_that_say_so():
    (comparison,) = [
        c
        for c in plan.gpu_plan(dry_run=True)
        if c.case == op_cases.Case(roofline.MOTION_GRUS[0], cases.DRY_RUN_MAPS.small, "float32", "forward")
    ]
    made = {row["implementation"]: row for row in rows.compared(comparison, "cpu", timing.DRY_RUN)}
    assert set(made) == {"ours", "triton", "reference"}
    if why := backends.unavailable_reason("triton"):
        assert made["triton"]["unavailable"] == why
    assert not any("error" in row for row in made.values())


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    case = op_cases.Case("gated_blend", cases.DRY_RUN_MAPS.small, "float32", op_cases.FORWARD)
    wrong = implementations.Implementation("ours", "NCHW", lambda g, a, b: g.sigmoid() * a)
    monkeypatch.setattr(rows, "implementation", lambda *_: wrong)
    (row,) = rows.compared(plan.Comparison(case, (("ours", "NCHW"),)), "cpu", timing.DRY_RUN)
    assert "differs from float64" in row["error"] and "eager_us" not in row


def test_the_plan_has_every_row():
    shapes, dtypes, directions = cases.GPU_MAPS, ("float32", "bfloat16"), ("forward", "forward+backward")
    planned = {}
    for comparison in plan.gpu_plan():
        planned.setdefault(comparison.case, set()).update(comparison.implementations)
    for op in roofline.MOTION_GRUS:  # on the CUDA and the Triton kernels
        for case in (op_cases.Case(op, *rest) for rest in itertools.product(shapes[:3], dtypes, directions)):
            assert planned[case] == {("ours", "NCHW"), ("ours", "channels_last"), ("triton", "NCHW"),
                                     ("triton", "channels_last"), ("reference", "NCHW")}  # fmt: skip
    for op in (*roofline.OPS, "MotionGRUCell"):
        for shape in shapes:
            for dtype in dtypes:
                for direction in directions:
                    names = planned[op_cases.Case(op, shape, dtype, direction)]
                    assert {("ours", "NCHW"), ("ours", "channels_last"), ("reference", "NCHW"),
                            ("triton", "NCHW"), ("triton", "channels_last"),
                            ("reference, compiled", "NCHW")} <= names  # fmt: skip
                    assert op != "MotionGRUCell" or {("plain", "NCHW"), ("plain, compiled", "NCHW")} <= names
                    assert (op, dtype) != ("offset_warp", "float32") or ("torchvision", "NCHW") in names


# ---- What is decided and printed


def _report(ours_us: float, peer_us: float) -> dict:
    """Return all rows of the plan, with one time for ours and one for every peer."""
    per_second = ("copy", "gather_l1_8", "gather_l1_16", "red_float4")
    rates = dict.fromkeys([f"{name}_bytes_per_s" for name in per_second], 1e12)
    rates |= dict.fromkeys(("ffma_flops", "mma_bf16_flops", "mma_tf32_flops"), 1e12)
    rows = []
    for i, comparison in enumerate(plan.gpu_plan()):
        case = comparison.case
        of_op = isinstance(case, op_cases.Case)
        work = vars(roofline.work(case.op, case.shape, case.dtype, case.direction)) if of_op else None
        for name, layout in comparison.implementations:
            mine = name.startswith(("ours", "triton"))
            rows.append({
                "comparison": i, **comparison.identity(), "implementation": name, "layout": layout, "sets": 2,
                "cold": True, "lane_bytes": 16, "work": work, "nodes": {"kernel": 1.0},
                "graph_us": ours_us if mine else peer_us, "eager_us": ours_us if mine else peer_us,
                "kept_bytes": 10 if mine else 1000, "peak_bytes": 2**20, "difference": 0.0,
            })  # fmt: skip
    gpu = {"name": "A card", "driver": "1", "nvcc": "13.0", "triton": "3.6", "torchvision": "0.26"}
    return {"gpu": gpu, "torch": "2.11", "commit": "abc", "ceilings": {**rates, "empty_kernel_us": 1.0},
            "rows": rows, "not_run": ["something slow"]}  # fmt: skip


def test_the_plan_measures_what_the_targets_need():
    found = gpu_targets.targets(gpu_targets.Rows(_report(1.0, 10.0)), cases.GPU_MAPS)
    assert len(found) == 23 and [t.what for t in found if t.met is None] == []


def test_targets_are_met_and_missed():
    fast = {t.what: t for t in gpu_targets.targets(gpu_targets.Rows(_report(1.0, 10.0)), cases.GPU_MAPS)}
    slow = {t.what: t for t in gpu_targets.targets(gpu_targets.Rows(_report(1e9, 1.1e9)), cases.GPU_MAPS)}
    # Ratios of ours to ours, bytes, and a limit below 1 are met by both.
    same = ("deterministic", "keeps", "the time of the CUDA kernels", "0.95x")
    for what, target in fast.items():
        is_same = any(part in what for part in same)
        assert (target.verdict, slow[what].verdict) == ("met", "met" if is_same else "MISSED"), what
    (missed,) = [t for what, t in slow.items() if "float32, in a graph: at least 4x plain" in what]
    assert missed.measured.startswith("1.10x")


def test_the_summary_has_the_steps_and_the_targets(tmp_path: Path):
    runner, path = steps.Runner(tmp_path, tmp_path, seconds=60), tmp_path / "rows.json"
    runner.record("build", "ok", 61)
    measured = tmp_path / "rollouts.json"
    assert on_gpu.summary(runner, path, measured).count("A GPU is needed") == 2
    path.write_text(json.dumps(_report(2.0, 6.0)))
    row = {"what": "pass", "predicted": "about 3 ms", "measured": "4 ms"}
    measured.write_text(json.dumps({"dry_run": False, "experiments": [row]}))
    page = on_gpu.summary(runner, path, measured)
    assert "| pass | about 3 ms | 4 ms |" in page
    assert "| build | ok | 61 |" in page and "MISSED |" in page and "| met |" in page


# ---- The programs


def _run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def test_a_step_is_limited_recorded_and_followed_by_the_next(tmp_path: Path):
    runner = steps.Runner(tmp_path, tmp_path, seconds=60)
    python = [sys.executable, "-c"]
    assert not runner.step("slow", ["bash", "-c", "echo begun; sleep 50"], 2)
    assert not runner.step("wrong", [*python, "raise SystemExit(7)"], 20)
    assert not runner.step("absent", [tmp_path / "no_such_program"], 20)
    assert runner.step("right 1/2", [*python, "import os; print(os.environ['WORD'])"], 20, WORD="given")
    runner.started -= 100
    assert not runner.step("late", [*python, "print('too late')"], 20)
    outcomes = {name: outcome for name, outcome, _ in runner.outcomes}
    assert list(outcomes) == ["slow", "wrong", "absent", "right 1/2", "late"]
    assert outcomes["slow"].startswith("stopped after 2 s") and outcomes["wrong"].startswith("failed with 7")
    assert "no_such_program" in outcomes["absent"] and outcomes["late"] == "no time left"
    assert "begun" in (tmp_path / "slow.log").read_text() and not (tmp_path / "late.log").exists()
    assert "given" in (tmp_path / "right-1-of-2.log").read_text() and not runner.passed()


def test_the_script_is_bash_and_says_that_there_is_no_gpu(tmp_path: Path):
    script = BENCHMARKS / "on_gpu.sh"
    assert _run("bash", "-n", script).returncode == 0
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    made = _run("bash", script, tmp_path / "out", env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"})
    assert made.returncode == 2 and "PyTorch finds no GPU" in made.stderr and "--dry-run" in made.stderr
    assert not (tmp_path / "out").exists()


def test_rows_of_tiny_shapes_on_the_cpu(tmp_path: Path):
    """The measuring part of a dry run, cut short: it starts with the cell and with what the targets need."""
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", f"{on_gpu.PROGRAMS}.measure", path, "--dry-run", "--seconds", "8"]
    made = _run(*command, cwd=tmp_path, timeout=240)
    assert made.returncode == 0, f"{made.stdout[-2000:]}{made.stderr[-2000:]}"
    report = json.loads(path.read_text())
    assert report["rows"] and {"torch", "commit", "command", "threads"} <= set(report)
    timed = [row for row in report["rows"] if "unavailable" not in row]
    assert {row["implementation"] for row in timed} >= {"ours", "plain"}
    for row in timed:
        assert row["eager_us"] > 0 and row["graph_us"] is None and row["difference"] < 0.15, row


@pytest.mark.slow
def test_the_rollouts_of_a_dry_run(tmp_path: Path):
    path = tmp_path / "rollouts.json"
    command = [sys.executable, "-m", f"{on_gpu.PROGRAMS}.rollouts", path, "--dry-run"]
    made = _run(*command, cwd=tmp_path, timeout=240)
    assert made.returncode == 0, f"{made.stdout[-2000:]}{made.stderr[-2000:]}"
    report = json.loads(path.read_text())
    assert [e["what"] for e in report["experiments"]] == [e[0] for e in rollouts.EXPERIMENTS]
    unmeasured = [e["what"] for e in report["experiments"] if "not measured" in e["measured"]]
    assert unmeasured == ["inference step, B1, with side streams", "warp backward in blocks of 3 warps"]


def test_the_calls_for_the_sanitizers_are_finite():
    calls = sanitizer_set.check(
        op_cases.Case("offset_warp", cases.DRY_RUN_MAPS.small, "float32", op_cases.BOTH), "NCHW", "cpu"
    )
    assert calls == 2


def test_the_ceilings_compile(tmp_path: Path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    for architecture in ("sm_80", "sm_90"):  # without and with four-float adds
        made = _run(nvcc, "-std=c++20", f"-arch={architecture}", "-Werror", "all-warnings", "-c", "-o",
                    tmp_path / "ceilings.o", BENCHMARKS / "gpu" / "ceilings.cu")  # fmt: skip
        assert made.returncode == 0, made.stderr
