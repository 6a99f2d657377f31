"""Do docs/benchmarks.md and README's table say what the rows say, and are the committed ones those of the rows?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from motionrnn_ext.benchmarks import wording
from motionrnn_ext.benchmarks.report import measured, readme_table
from motionrnn_ext.benchmarks.report import pages as report

RESULTS = ROOT / "benchmarks" / "results"

# ---- Made-up runs


def row(comparison: int, implementation: str, us: float, **others: Any) -> dict[str, Any]:
    return {
        "comparison": comparison, "level": "op", "op": "offset_warp", "setting": None, "shape": "B8 C16 16x16",
        "dtype": "float32", "direction": "forward+backward", "offset_scale": 1.0, "implementation": implementation,
        "layout": "NCHW", "rounds": 7, "eager_us": us, "eager_p10_us": 0.9 * us, "eager_p90_us": 1.1 * us,
        "graph_us": None, "graph_p10_us": None, "graph_p90_us": None, "difference": 2e-7, "kept_bytes": None,
        "peak_bytes": None, "aten_ops": None, "work": None, "flops": None, "roofline": None, "bound": None,
    } | others  # fmt: skip


WORK = {"bytes": 2**20, "gather": 0, "scatter": 0, "matrix": 4_000_000, "vector": 500_000}
MODEL = {"level": "model", "op": "MotionRNN-PredRNN", "setting": "human36m", "shape": "B1 T8 3x128x128",
         "direction": "training step"}  # fmt: skip


def rows() -> list[dict[str, Any]]:
    cell = {"level": "cell", "op": "MotionGRUCell"}
    return [
        row(0, "ours", 1000.0, kept_bytes=0, peak_bytes=3 << 20, aten_ops=2, work=WORK, roofline=0.25, bound="matrix"),
        row(0, "reference", 8000.0, kept_bytes=5 << 20, aten_ops=170, work=WORK),
        row(0, "official", 7000.0, kept_bytes=6 << 20),
        row(0, "reference, compiled", 900.0),
        {k: v for k, v in row(0, "torchvision", 0.0).items() if "_us" not in k} | {"unavailable": "not installed"},
        row(1, "ours", 4000.0, kept_bytes=2 << 20, **cell),
        row(1, "plain", 3990.0, **cell),
        {k: v for k, v in row(1, "reference", 0.0, **cell).items() if "_us" not in k} | {"error": "KeyError: 'x'"},
        row(2, "ours", 3e6, flops=200, kept_bytes=40 << 20, **MODEL),
        row(2, "reference", 6e6, flops=200, **MODEL),
        row(2, "base predictor", 2e6, flops=160, **MODEL),
    ]  # fmt: skip


def run(**others: Any) -> dict[str, Any]:
    return {
        "kind": "bench", "date": "2026-01-02", "device": "cpu", "quick": False, "cpu": "Some CPU, 2 cores",
        "instruction_set": "x86_64_v4", "threads": 2, "malloc": "tuned", "python": "3.11.7", "torch": "2.13.0",
        "commit": "abc1234", "command": "motionrnn bench", "gpu": None,
        "ceilings": {"copy_bytes_per_s": 4e10, "copies": [{"bytes": 65536, "bytes_per_s": 9e10}], "matmul_flops": 1e11},
        "rows": rows(), "not_run": ["offset_warp forward B16 C16 64x64 float32"],
    } | others  # fmt: skip


def gpu_run() -> dict[str, Any]:
    """Return the same rows with device times, an eighth of the wall times, and a peer that cannot be captured."""
    gpu = {"name": "Some GPU", "capability": "9.0", "driver": "1", "nvcc": "13.0", "triton": "3.6"}
    rates = {"copy_bytes_per_s": 3e12, "mma_tf32_flops": 4e14, "mma_bf16_flops": 8e14, "ffma_flops": 6e13}
    made = run(device="cuda", gpu={**gpu, "torchvision": "0.26"}, ceilings=rates)
    for r in made["rows"]:
        if "eager_us" in r and r["implementation"] != "official":
            r.update(graph_us=r["eager_us"] / 8, graph_p10_us=1.0, graph_p90_us=2.0, nodes={"kernel": 3.0})
    return made


def results_of(folder: Path, **runs: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in runs.items():
        (folder / f"bench_{name}.json").write_text(json.dumps(content))
    return folder


def pages(tmp_path: Path, **runs: dict[str, Any]) -> tuple[str, str]:
    """Return docs/benchmarks.md and the text between README's markers."""
    results, readme = results_of(tmp_path / "results", **runs), tmp_path / "README.md"
    readme.write_text(f"before\n\n{readme_table.START}\nold\n{readme_table.END}\n\nafter\n")
    report.write(results, tmp_path / "docs", readme)
    page = readme.read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    table = page.partition(readme_table.START)[2].partition(readme_table.END)[0]
    return (tmp_path / "docs" / "benchmarks.md").read_text(), table


def lines_with(page: str, *texts: str) -> list[str]:
    return [line for line in page.splitlines() if all(text in line for text in texts)]


# ---- The report


def test_every_losing_row_is_marked_and_listed(tmp_path: Path):
    page, table = pages(tmp_path, cpu=run())
    (compiled,) = lines_with(page, "| reference, compiled | 900 µs")
    assert "**0.90x: we lose**" in compiled
    (plain,) = lines_with(page, "| plain | 3.99 ms")
    assert "**0.998x: we lose**" in plain  # never rounded up to 1
    short = page.partition("## Where we lose")[2].partition("\n## ")[0]
    assert len(lines_with(short, "- CPU")) == 2
    assert lines_with(short, "offset_warp against reference, compiled", "B8 C16 16x16", "0.90x")
    assert lines_with(short, "MotionGRUCell against plain", "within the spread")
    assert "900 µs, **0.90x: we lose**" in table and "3.99 ms, **0.998x: we lose**" in table
    assert lines_with(page, "| reference, compiled |", "**1 of 1 lost**")
    assert "**" not in "".join(lines_with(page, "| base predictor |"))  # no peer: nothing to lose against


def test_nothing_lost_is_said(tmp_path: Path):
    made = run(rows=rows()[:3])
    assert "## Where we lose\n\nNowhere in these rows." in pages(tmp_path, cpu=made)[0]


def test_figures_and_missing_ones(tmp_path: Path):
    page, table = pages(tmp_path, cpu=run())
    (ours,) = lines_with(page, "| ours | 1.00 ms")
    assert ours == (
        "| B8 C16 16x16 float32 forward+backward | ours | 1.00 ms | 900 µs to 1.10 ms | - | 1 | 0 B | 3.00 MiB | 2 | "
        "4.50 M | 1.00 MiB | 25% matrix | 2e-07 | - |"
    )
    (official,) = lines_with(page, "| official | 7.00 ms")
    assert official.endswith("| 7.00x | 6.00 MiB | - | - | - | - | - | 2e-07 | - |")
    _, _, warp, cell, model = [line for line in table.splitlines() if line.startswith("|")]
    assert "| 1.00 ms | 7.00 ms, 7.00x | 8.00 ms, 8.00x | 900 µs" in warp
    assert warp.endswith("| 0 B, official 6.00 MiB |")
    assert "| 4.00 ms | - | 3.99 ms, **0.998x: we lose** | - | 2.00 MiB |" in cell
    assert "| 3.00 s | - | 6.00 s, 2.00x | - |" in model
    assert lines_with(page, "human36m B1 T8", "| 3.00 s | 2.00 s | 1.50x | 1.25x |")  # the MotionGRUs' cost


def test_reasons_and_the_machine_are_on_the_page(tmp_path: Path):
    page, table = pages(tmp_path, cpu=run(quick=True))
    for text in ("not installed", "KeyError: 'x'", "offset_warp forward B16 C16 64x64 float32"):
        assert lines_with(page, f"- {text}")
    for text in ("Some CPU, 2 cores, x86_64_v4", "| tuned |", "| abc1234 |", "`motionrnn bench`", "2026-01-02",
                 "copy 40.0 GB/s", "matmul 100 GFLOP/s"):  # fmt: skip
        assert text in page
    sentence = " ".join(table.split("\n\n")[0].split())
    assert "2 threads, malloc tuned, torch 2.13.0, commit abc1234, 2026-01-02. A quick run" in sentence


def test_a_cpu_and_a_gpu_side_by_side(tmp_path: Path):
    page, table = pages(tmp_path, cpu=run(), cuda=gpu_run())
    assert "|  | CPU (Some CPU, 2 cores) | GPU (Some GPU) |" in page
    assert "| GPU | - | Some GPU, capability 9.0 |" in page
    assert "| op | peer | CPU (Some CPU, 2 cores) | GPU (Some GPU) |" in page
    assert page.index("\n## CPU (Some CPU") < page.index("\n## GPU (Some GPU")
    assert "| ours | 125 µs | 1.00 to 2.00 µs | 1.00 ms | - | 1 |" in page  # device, then wall
    assert lines_with(page, "| official | - | - | 7.00 ms | - | 7.00x (wall) |")  # wall over wall
    on_cpu, on_gpu = table.index("On a CPU: Some CPU"), table.index("On a GPU: Some GPU, driver 1")
    assert on_cpu < on_gpu
    (warp,) = lines_with(table[on_gpu:], "`offset_warp`")
    assert "| 125 µs, 1.00 ms wall | 7.00 ms wall, 7.00x | 1.00 ms, 8.00x | 112 µs" in warp


def test_of_each_machine_the_newest_full_run_is_in_the_readme():
    def named(name: str, **others: Any) -> measured.Run:
        return measured.Run(name, run(**{"not_run": []} | others))

    runs = [named("old", date="2025-01-01"), named("full"), named("quick", date="2027-01-01", quick=True),
            named("part", date="2027-01-01", only="gated_blend"), named("cut", date="2027-01-01", not_run=["rest"]),
            named("other", cpu="Other CPU", not_run=["rest"]), named("x", cpu="Other CPU", quick=True)]  # fmt: skip
    assert [r.name for r in measured.newest(runs)] == ["full", "other"]


def test_ratios_stay_within_comparison_and_layout():
    made = run(rows=[
        row(0, "ours", 10.0), row(0, "ours", 5.0, layout="channels_last"), row(0, "plain", 20.0),
        row(0, "plain", 20.0, layout="channels_last"), row(0, "torchvision", 9.0), row(1, "ours", 100.0),
        row(1, "plain", 50.0),
    ])  # fmt: skip
    found = measured.Run("made", made)
    assert [found.ratio(r) for r in found.rows] == [None, None, 2.0, 4.0, 0.9, None, 0.5]


def noisy(us: float) -> dict[str, float]:
    return {"eager_us": us, "eager_p10_us": 0.9 * us, "eager_p90_us": 1.5 * us}


def cpu(us: float, wide: float = 0.1) -> dict[str, float]:
    return {"cpu_us": us, "cpu_p10_us": us, "cpu_p90_us": (1 + wide) * us}


def test_times_that_spread_too_far_have_no_ratio(tmp_path: Path):
    cell, large = {"level": "cell", "op": "MotionGRUCell"}, {"shape": "B16 C16 64x64"}
    made = run(rows=[
        # Noisy wall times: CPU times are compared, if they spread less.
        row(0, "ours", 0, **noisy(900.0), **cpu(100.0)), row(0, "reference", 0, **noisy(90.0), **cpu(300.0)),
        row(0, "official", 0, **noisy(90.0), **cpu(50.0)), row(0, "plain", 0, **noisy(90.0), **cpu(50.0, wide=0.6)),
        # Ours alone is noisy, which makes every row of its comparison worthless.
        row(1, "ours", 0, **noisy(900.0), **cell), row(1, "reference", 100.0, **cell),
        row(1, "base predictor", 100.0, **cell),
        # Steady wall times are compared, whatever the CPU times.
        row(2, "ours", 100.0, **cpu(100.0, wide=0.6), **large), row(2, "reference", 200.0, **cpu(900.0), **large),
    ])  # fmt: skip
    found = measured.Run("made", made)
    assert [found.ratio(r) for r in found.rows] == [None, 3.0, 0.5, None, None, 2.0, None, None, None]
    assert [found.is_noisy(r) for r in found.rows] == [False] * 3 + [True] + [False] * 2 + [True] * 3
    page, table = pages(tmp_path, cpu=made)
    assert lines_with(page, "| reference | 90.0 µs | 81.0 to 135 µs | 300 µs | 3.00x (CPU) |")
    assert lines_with(page, "| official |", "| **0.50x (CPU): we lose** |")
    assert len(lines_with(page, "| too noisy |")) == 4
    short = page.partition("## Where we lose")[2].partition("\n## ")[0]
    assert len(lines_with(short, "- CPU")) == 1 and "offset_warp against official" in short
    assert "| 50.0 µs CPU, **0.50x: we lose** | 300 µs CPU, 3.00x |" in table
    assert "| 100 µs, too noisy |" in table


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    results = results_of(tmp_path / "results", cpu=run(), cuda=gpu_run())
    written = [report.write(results, tmp_path / name) for name in ("one", "two")]
    pictures = {f"bench_{name}.png" for name in ("speedup", "memory")}
    assert {path.name for path in written[0]} == {"benchmarks.md", *pictures}
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
    page = written[0][0].read_text()
    assert all(f"](images/{path.name})" in page for path in written[0][1:])


@pytest.mark.parametrize("readme", ["no markers", readme_table.START, readme_table.END + readme_table.START])
def test_a_readme_without_the_markers(tmp_path: Path, readme: str):
    path, results = tmp_path / "README.md", results_of(tmp_path / "results", cpu=run())
    path.write_text(readme)
    with pytest.raises(ValueError, match="README.md: should have the lines"):
        report.write(results, tmp_path / "docs", path)
    assert path.read_text() == readme and not (tmp_path / "docs").exists()


def test_no_runs_and_foreign_files(tmp_path: Path):
    with pytest.raises(ValueError, match="no bench_"):
        report.write(tmp_path, tmp_path / "docs")
    (tmp_path / "bench_other.json").write_text("[]")
    with pytest.raises(ValueError, match="bench_other.json: should be what"):
        report.write(tmp_path, tmp_path / "docs")


def test_committed_pages_are_those_of_the_committed_rows():
    if not list(RESULTS.glob("bench_*.json")):
        pytest.skip("no rows of `motionrnn bench` are committed yet")
    runs, readme = measured.read(RESULTS), ROOT / "README.md"
    advice = "run `motionrnn bench --report`"
    assert (ROOT / "docs" / "benchmarks.md").read_text() == report.page(runs), advice
    assert readme.read_text() == readme_table.page_with(readme.read_text(), runs, readme), advice


def test_figures_have_three_digits_and_a_unit_that_fits():
    durations = [wording.duration(us) for us in (0.5, 12.345, 999.7, 1234.0, 2.5e6, None)]
    assert durations == ["0.500 µs", "12.3 µs", "1.00 ms", "1.23 ms", "2.50 s", "-"]
    assert [wording.size(n) for n in (0, 36, 2048, 613 << 20)] == ["0 B", "36 B", "2.00 KiB", "613 MiB"]
    ratios = [wording.times(ratio) for ratio in (0.9999, 0.994, 1.0, 9.994, 12.34)]
    assert ratios == ["0.999x", "0.99x", "1.00x", "9.99x", "12.3x"]
