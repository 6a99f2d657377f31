"""Does `motionrnn bench` at tiny shapes write complete rows, refuse mistakes, plan and compare rightly?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repository import ROOT

pytest.importorskip("rich", reason="the console's package is not installed")

from official_program import CHECKOUT, OPENSTL, needs_checkout, needs_openstl
from under_test import CPU, NOT_TESTED

from motionrnn_ext import MotionGRU, backends, cli
from motionrnn_ext.benchmarks import bench, cases
from motionrnn_ext.benchmarks.measuring import cpu_ceilings, machine, model_cases, plan, rows, timing
from motionrnn_ext.benchmarks.measuring.implementations import Implementation
from motionrnn_ext.benchmarks.measuring.model_cases import INFERENCE, TRAINING, ModelCase
from motionrnn_ext.benchmarks.measuring.official import Program
from motionrnn_ext.benchmarks.measuring.op_cases import BOTH, Case
from motionrnn_ext.benchmarks.measuring.openstl import OpenSTL
from motionrnn_ext.benchmarks.measuring.subjects import Programs

SMALL = cases.DRY_RUN_MAPS.small
COLUMNS = {
    "comparison", "level", "op", "setting", "shape", "dtype", "direction", "offset_scale", "implementation", "layout",
    "rounds", "eager_us", "eager_p10_us", "eager_p90_us", "cpu_us", "cpu_p10_us", "cpu_p90_us", "graph_us",
    "graph_p10_us", "graph_p90_us", "difference", "kept_bytes", "peak_bytes", "aten_ops", "work", "flops", "roofline",
    "bound", "first_call_s",
}  # fmt: skip
needs_kernels = pytest.mark.skipif(CPU.name in NOT_TESTED, reason=f"no kernels: {NOT_TESTED.get('cpu')}")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch):
    """Restore the number of threads, which the command sets, and shorten the ceilings."""
    before, threads = backends.current_backend(), torch.get_num_threads()
    monkeypatch.setattr(cpu_ceilings, "SECONDS", 0.001)
    monkeypatch.setattr(cpu_ceilings, "COPIES", (1 << 16, 1 << 20))
    yield
    assert backends.current_backend() == before  # chosen for the command alone
    torch.set_num_threads(threads)


def run(*command: object) -> int:
    return cli.main(["bench", *map(str, command)])


# ---- The whole command


@needs_kernels
def test_a_run_of_tiny_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "bench_cpu_tiny.json"
    assert run("--quick", "--dry-run", "--threads", 1, "--json", path) == 0
    report = json.loads(path.read_text())
    assert (report["kind"], report["device"], report["quick"], report["threads"]) == ("bench", "cpu", True, 1)
    assert {"date", "cpu", "instruction_set", "malloc", "python", "torch", "commit", "gpu", "not_run"} <= set(
        report
    )
    assert report["command"] == "motionrnn bench --quick --dry-run --threads 1 --json bench_cpu_tiny.json"
    assert {"copy_bytes_per_s", "matmul_flops"} <= set(report["ceilings"])
    timed = [row for row in report["rows"] if "unavailable" not in row]
    assert {row["level"] for row in timed} == {"op", "cell", "model"}
    for row in timed:
        assert set(row) >= COLUMNS, row
        assert 0 < row["eager_p10_us"] <= row["eager_us"] <= row["eager_p90_us"] and row["graph_us"] is None
        assert (
            row["peak_bytes"] > 0 and row["aten_ops"] > 0 and row["roofline"] > 0 and row["difference"] < 2e-2
        )
        assert (row["kept_bytes"] is None) == (row["direction"] == INFERENCE)
        assert (row["flops"] is None) == (row["level"] != "model")
    models = {row["implementation"] for row in timed if row["level"] == "model"}
    assert models == {"ours", "ours, without MotionGRU", "base predictor", "reference"}
    said = capsys.readouterr().out
    assert "malloc default" in said and "1 threads" in said and "--official PATH adds" in said
    assert "--openstl PATH adds" in said
    assert "MotionGRUCell forward+backward B1 C4 6x6 float32" in said and f"rows: {path}" in said.replace(
        "\n", ""
    )


@needs_kernels
def test_only_what_is_named(capsys: pytest.CaptureFixture[str]):
    assert run("--quick", "--dry-run", "--only", "gated_blend") == 0
    said = capsys.readouterr().out
    assert "1 comparisons" in said and "gated_blend forward+backward" in said and "MotionGRUCell" not in said


@needs_kernels
def test_no_comparison_starts_after_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rows.json"
    assert run("--quick", "--dry-run", "--seconds", -1, "--json", path) == 0
    report = json.loads(path.read_text())
    assert report["rows"] == [] and len(report["not_run"]) == len(plan.quick_plan(dry_run=True))
    assert "not run for lack of time" in capsys.readouterr().out


@needs_kernels
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--official", "no/checkout"), "--official: no/checkout holds no core/layers/MotionGRU.py; it should be a"),
        (("--openstl", "no/checkout"), "--openstl: no/checkout holds no openstl/models/predrnn_model.py; it should"),
        (("--only", "nothing"), "--only 'nothing': no comparison has this in its name"),
        (("--json", "no/folder/rows.json"), "--json: no/folder is no folder"),
        (("--report",), "--report measures nothing and takes no other option: leave --quick out"),
        pytest.param(("--device", "cuda"), "--device cuda: PyTorch finds no GPU",
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ],
)  # fmt: skip
def test_mistakes_in_one_line(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]):
    assert run("--quick", "--dry-run", *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"motionrnn bench: error: {message}")


@needs_kernels
@pytest.mark.parametrize("start", ["module", "program"])
def test_the_program_starts_again_with_a_tuned_malloc(start: str, tmp_path: Path):
    """A program that calls `main` is not restarted, as the tests above show."""
    program = Path(sys.executable).parent / "motionrnn"
    if start == "program" and not program.is_file():
        pytest.skip("the package is not installed")
    words = [sys.executable, "-m", "motionrnn_ext.cli"] if start == "module" else [program]
    words += ["bench", "--quick", "--dry-run", "--only", "gated_blend", "--json", "rows.json"]
    env = {name: value for name, value in os.environ.items() if name not in machine.TUNED_MALLOC}
    made = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert json.loads((tmp_path / "rows.json").read_text())["malloc"] == "tuned"


# ---- The rows


def test_a_row_that_loses_is_kept(monkeypatch: pytest.MonkeyPatch):
    def slow(*inputs: torch.Tensor) -> torch.Tensor:
        for _ in range(200):
            inputs[0].exp()
        gate, a, b = inputs
        return gate.sigmoid() * a + (1 - gate.sigmoid()) * b

    made = {"ours": Implementation("ours", "NCHW", slow),
            "reference": Implementation("reference", "NCHW", lambda g, a, b: b + g.sigmoid() * (a - b))}  # fmt: skip
    monkeypatch.setattr(rows, "implementation", lambda name, *_: made[name])
    case = Case("gated_blend", SMALL, "float32", BOTH)
    report = rows.empty_report("cpu", None)
    comparison = plan.Comparison(case, (("ours", "NCHW"), ("reference", "NCHW")))
    shown = []
    rows.measure([comparison], report, timing.DRY_RUN, None, 1, shown.extend)
    assert shown == report["rows"] and [row["implementation"] for row in shown] == ["ours", "reference"]
    assert shown[1]["eager_us"] < shown[0]["eager_us"]
    table = bench.table(shown, "cpu")
    ratios = next(list(column.cells) for column in table.columns if column.header == "ratio")
    assert str(ratios[0]) == "1" and str(ratios[1]).startswith("0.") and str(ratios[1]).endswith("we lose")


def test_a_model_with_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    case = ModelCase(cases.DRY_RUN, "float32", TRAINING)
    monkeypatch.setattr(model_cases, "_on", lambda _, call: call() * 1.1)
    (row,) = rows.compared(plan.Comparison(case, (("ours", "NCHW"),)), "cpu", timing.DRY_RUN)
    assert "differs from float64" in row["error"] and "eager_us" not in row


@needs_kernels
def test_cells_and_what_they_replace_compute_the_same():
    wanted = ("LSTMCell", "lstm_update", "summed_output", "without highway")
    every = [c for c in plan.cpu_plan(dry_run=True) if "float32" in str(c)]
    planned = [c for c in every if any(name in str(c) for name in wanted)]
    # In two directions: 4 cells and the output without a highway at one shape, 4 joints at three.
    assert len(planned) == 2 * (4 + 1 + 4 * 3)
    for comparison in planned:
        for row in rows.compared(comparison, "cpu", timing.DRY_RUN):
            assert "error" not in row and row["difference"] < 2e-6, row


def test_what_a_training_step_and_a_prediction_return():
    setting = cases.DRY_RUN
    training, inference = (ModelCase(setting, "float32", direction) for direction in (TRAINING, INFERENCE))
    frames, model = training.frames("cpu"), training.model("ours")
    net = model_cases._ours(training, "ours", model, frames)
    predictions, gradients = net.call(TRAINING)()
    assert predictions.shape == (1, setting.total - 1, 1, 16, 16) and len(gradients) == len(net.parameters)
    predicted = model_cases._ours(inference, "ours", model, frames).call(INFERENCE)()
    assert predicted.shape == (1, setting.predicted, 1, 16, 16) and not predicted.requires_grad
    assert any(isinstance(module, MotionGRU) for module in model.modules())
    without = training.model("ours, without MotionGRU")
    assert without.highway and without.conv_first is not None and not without.interfaces
    base = training.model("base predictor")
    assert base.conv_first is None and not base.interfaces


@needs_checkout
def test_the_official_program_computes_the_same(tmp_path: Path):
    """Rows of its Warp, MotionGRU and network get an error where they differ from float64."""
    programs = Programs(official=Program(Path(CHECKOUT or "")))
    planned = [c for c in plan.quick_plan(official=True, dry_run=True) if "official" in str(c)]
    assert [c.identity()["level"] for c in planned] == ["cell", "op", "model", "model"]
    for comparison in planned:
        only = replace(comparison, implementations=(("official", "NCHW"),))
        (row,) = rows.compared(only, "cpu", timing.DRY_RUN, programs=programs)
        assert "error" not in row and row["difference"] < 1e-5, row


@needs_openstl
def test_openstls_networks_compute_the_same():
    """Predictions and all gradients of a training step of every base predictor; a second call repeats the first."""
    programs = Programs(openstl=OpenSTL(Path(OPENSTL or "")))
    planned = [c for c in plan.quick_plan(openstl=True, dry_run=True) if "openstl" in str(c)]
    assert [c.identity()["op"] for c in planned[::2]] == ["ConvLSTM", "PredRNN", "MIM", "E3D-LSTM"]
    for comparison in planned:
        for row in rows.compared(comparison, "cpu", timing.DRY_RUN, programs=programs):
            assert "error" not in row and row["difference"] < 1e-5, row
    case = planned[4].case
    # MIM's blocks keep a memory between calls.
    assert isinstance(case, ModelCase) and case.base == "mim"
    for name in ("ours", "openstl"):
        net, call = model_cases.checked(case, name, "NCHW", case.frames("cpu"), {}, {}, programs)
        assert torch.equal(call()[0], call()[0]) and len(net.parameters) == len(net.restore(list(call()[1])))


def test_the_plans():
    quick, full = plan.quick_plan(official=True), plan.cpu_plan(official=True)
    for planned in (quick, full, plan.gpu_plan(official=True)):
        assert len({str(c) for c in planned}) == len(planned)
        assert all(c.implementations[0] == ("ours", "NCHW") for c in planned)
    cells = [c for c in full if c.identity()["op"] == "MotionGRUCell"]
    peers = {name for c in cells for name, _ in c.implementations}
    assert peers == {"ours", "plain", "plain, compiled", "reference", "reference, compiled", "official"}
    assert {c.identity()["shape"] for c in cells} == {str(shape) for shape in cases.MAPS}
    assert {c.identity()["setting"] for c in full} == {None, "human36m", "vmnist"}
    assert not any("official" in str(c) for c in plan.cpu_plan())
    assert any("CUDA graphs" in str(c) for c in plan.gpu_plan())
    steps = {c.identity()["op"] for c in full if c.identity()["shape"] == "B4 C128 16x16"}
    assert steps == {f"{op}{end}" for op in ("ConvLSTMCell", "SpatioTemporalLSTMCell", "highway_output")
                     for end in ("", " without highway")} | {"memory_update", "gated_blend"}  # fmt: skip
    bases = [c.identity() for c in plan.cpu_plan(openstl=True) if "openstl" in str(c)]
    assert {row["op"] for row in bases} == {"ConvLSTM", "PredRNN", "MIM", "E3D-LSTM"}
    assert {row["shape"] for row in bases} == {"B1 T8 1x64x64", "B4 T8 1x64x64"} and len(bases) == 16
    assert not any("openstl" in str(c) for c in plan.cpu_plan(official=True))


def test_cpu_time_leaves_out_the_wait_for_a_core():
    subject = timing.Subject([lambda: time.sleep(0.01)], on_gpu=False)
    subject.round()
    result = subject.result()
    assert result["eager_us"] >= 1e4 and 0 < result["cpu_us"] < 5e3


def test_quantiles():
    found = [timing.quantile([4.0, 1.0, 3.0, 2.0, 5.0], share) for share in (0, 0.1, 0.5, 0.9, 1)]
    assert found == pytest.approx([1, 1.4, 3, 4.6, 5])
    assert timing.quantile([2.0], 0.9) == 2.0


# ---- The installation


def test_the_benchmarks_are_part_of_the_package(tmp_path: Path):
    """`pip install` packs the sources, not the results."""
    build = ["build_py", "--build-lib", tmp_path / "lib", "egg_info", "--egg-base", tmp_path]
    env = {**os.environ, "MOTIONRNN_EXT_NATIVE": "0"}
    command = [sys.executable, "setup.py", "-q", *build]
    made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    lib = tmp_path / "lib" / "motionrnn_ext" / "benchmarks"
    packed = {path.relative_to(lib) for path in lib.rglob("*") if path.is_file()}
    sources = {
        path.relative_to(ROOT / "benchmarks")
        for pattern in ("*.py", "*.cpp", "*.cu", "*.sh")
        for path in (ROOT / "benchmarks").rglob(pattern)
    }
    assert packed == sources and (tmp_path / "lib" / "motionrnn_ext" / "py.typed").is_file()
