"""The compiled CUDA kernels against what is promised of them and against the committed table; no GPU is needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cuda_binary
import pytest
import static_report as report
from cuda_binary import Kernel, Row, Table, ToolMissing

# ---- the built library -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> tuple[str, Table]:
    """The nvcc and the rows of the installed library."""
    if not report.LIBRARY.is_file():
        pytest.skip(f"{report.LIBRARY.name} is not built")
    try:
        return cuda_binary.read_library(report.LIBRARY)
    except ToolMissing as missing:
        pytest.skip(str(missing))


def test_library(built) -> None:
    nvcc, table = built
    assert report.problems(nvcc, table, report.read_table()) == []
    if nvcc not in report.read_table():
        pytest.skip(f"promises are kept; the committed table has no rows of nvcc {nvcc} to compare with")


def test_every_kernel_is_recognised(built) -> None:
    """A renamed kernel would slip through the rules."""
    stems = {Kernel.parse(name).stem for name in built[1]}
    assert {"pointwise_kernel", "warp_forward", "warp_backward"} <= stems
    for name in built[1]:
        kernel = Kernel.parse(name)
        if kernel.stem in ("warp_forward", "warp_backward"):
            assert kernel.arguments[0] in ("float", "bf16", "half")
            assert int(kernel.arguments[1]) in (8, 16, 32, 64) and kernel.arguments[2] in ("true", "false")
        assert all(row["instructions"] > 10 for row in built[1][name].values())


def test_every_architecture_has_every_kernel(built) -> None:
    architectures = {frozenset(rows) for rows in built[1].values()}
    assert len(architectures) == 1


def test_page_shows_the_committed_table() -> None:
    page = report.PAGE.read_text()
    assert report.page_with(report.markdown(report.read_table()), page) == page


# ---- the report itself -------------------------------------------------------------------------------------

NAMES = {
    "void motionrnn_ext::cuda::(anonymous namespace)::pointwise_kernel<motionrnn_ext::math::GatedBlend, __half, "
    "float, 8>(motionrnn_ext::math::PointwiseArguments, motionrnn_ext::cuda::DivisionOf<std::conditional<(8)==(1), "
    "unsigned long, unsigned int>::type>)": Kernel("pointwise_kernel", ("GatedBlend", "half", "float", "8")),
    "void motionrnn_ext::cuda::(anonymous namespace)::warp_forward<__nv_bfloat16, 16, true>"
    "(motionrnn_ext::cuda::WarpArguments, int)": Kernel("warp_forward", ("bf16", "16", "true")),
    "motionrnn_ext::cuda::clear(float*)": Kernel("clear", ()),
}


@pytest.mark.parametrize("demangled", NAMES)
def test_names(demangled: str) -> None:
    assert Kernel.parse(cuda_binary.shorten(demangled)) == NAMES[demangled]


GOOD = {
    "pointwise_kernel<GatedBlend, half, half, 8>": {"LDG": 3, "LDG.128": 3, "STG": 1, "STG.128": 1},
    "pointwise_kernel<GatedBlend, half, half, 1>": {"LDG": 3, "STG": 1},
    "warp_forward<float, 16, true>": {"HMMA": 12, "LDG": 31, "LDG.128": 8},
    "warp_forward<bf16, 16, true>": {"HMMA": 2, "LDG": 35, "LDG.64": 8},
    "warp_forward<bf16, 32, false>": {"HMMA": 8, "LDG": 91},
    "warp_forward<bf16, 64, true>": {"HMMA": 8, "LDG": 91, "LDG.128": 8, "LDL/STL": 5},
    "warp_backward<half, 32, true, false, true>": {"HMMA": 8, "LDG": 91, "LDG.128": 8},
    "warp_backward<half, 32, true, true, false>": {"HMMA": 8, "LDG": 91, "LDG.128": 8, "LDL/STL": 5},
}


@pytest.mark.parametrize("name", GOOD)
def test_promises_kept(name: str) -> None:
    assert report.broken_promises(name, GOOD[name]) == []


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        ("pointwise_kernel<GatedBlend, half, half, 8>", {"LDG.128": 2}, "3 LDG, 2 of them of 16 bytes"),
        (
            "pointwise_kernel<GatedBlend, half, half, 8>",
            {"STG": 4, "STG.128": 0},
            "4 STG, 0 of them of 16 bytes",
        ),
        (
            "pointwise_kernel<GatedBlend, half, half, 8>",
            {"LDG": 0, "LDG.128": 0},
            "0 LDG, 0 of them of 16 bytes",
        ),
        (
            "pointwise_kernel<GatedBlend, half, half, 1>",
            {"LDL/STL": 1},
            "1 accesses of local memory (spills)",
        ),
        ("warp_forward<float, 16, true>", {"HMMA": 0}, "no HMMA"),
        ("warp_forward<float, 16, true>", {"LDG.128": 0}, "no global load of 16 bytes"),
        ("warp_forward<bf16, 32, false>", {"LDL/STL": 2}, "2 accesses of local memory (spills)"),
        ("warp_backward<half, 32, true, false, true>", {"LDL/STL": 2}, "2 accesses of local memory (spills)"),
        ("warp_backward<half, 32, true, false, true>", {"LDG.128": 0}, "no global load of 16 bytes"),
    ],
)
def test_promises_broken(name: str, change: Row, complaint: str) -> None:
    assert report.broken_promises(name, GOOD[name] | change) == [complaint]


def test_a_worse_figure_is_found() -> None:
    name = "warp_forward<bf16, 64, true>"
    before = {"registers": 96, "stack": 8, "occupancy": 0.25, "limit": "registers", **GOOD[name]}
    committed = {"13.0.88": {name: {"80": before, "90": before}}}
    better = before | {"registers": 80, "stack": 0, "occupancy": 0.375, "LDL/STL": 0, "instructions": 9999}
    assert report.problems("13.0.88", {name: {"80": before, "90": better}}, committed) == []

    worse = before | {"registers": 97, "stack": 16, "occupancy": 0.188, "LDL/STL": 6}
    assert report.problems("13.0.88", {name: {"80": before, "90": worse}}, committed) == [
        f"{name} on sm_90: {complaint}"
        for complaint in (
            "registers 96 -> 97",
            "stack 8 -> 16",
            "LDL/STL 5 -> 6",
            "occupancy 0.25 -> 0.188, limited by registers",
        )
    ]
    assert report.problems("13.1.10", {name: {"80": before, "90": worse}}, committed) == []


def test_the_table_has_the_kernels_of_the_library() -> None:
    names = [name for name in GOOD if name.startswith("warp_forward")]
    row = {"registers": 96, "stack": 0, "occupancy": 0.25, "limit": "registers"}
    rows = {name: {"80": row | GOOD[name]} for name in names}
    new, *known = names
    assert report.problems("13.0.88", rows, {"13.0.88": {name: rows[name] for name in known}}) == [
        f"{new} on sm_80: not in the committed table (--update)"
    ]
    gone, *left = names
    committed = {
        "13.0.88": rows | {gone: {"80": row, "100": row}}
    }  # sm_100 was not built now: nothing to say
    assert report.problems("13.0.88", {name: rows[name] for name in left}, committed) == [
        f"{gone} on sm_80: in the committed table, not in the library (--update)"
    ]


def tool(name: str) -> str:
    try:
        return cuda_binary.find_tool(name)
    except ToolMissing as missing:
        pytest.skip(str(missing))


SPILLING = """
namespace motionrnn_ext::cuda {
template <class T, int N, bool vectors>
__global__ void __launch_bounds__(128) warp_forward(const T* in, T* out, int n) {
  extern __shared__ float shared[];
  T local[N] = {};
  for (int i = 0; i < n; ++i) local[int(in[i])] += 1;  // indices that are not known: an array in memory
  shared[threadIdx.x] = local[threadIdx.x % N];
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}
template __global__ void warp_forward<float, 16, true>(const float*, float*, int);
}
"""


def test_a_kernel_that_breaks_every_promise(tmp_path: Path) -> None:
    """Compiled, not made up: the reader sees what is there."""
    nvcc = tool("nvcc")
    tool("nvdisasm")
    (tmp_path / "bad.cu").write_text(SPILLING)
    library = tmp_path / "bad.so"
    flags = ("-std=c++20", "-arch=sm_80", "-shared", "-Xcompiler", "-fPIC")
    subprocess.run([nvcc, *flags, "-o", str(library), str(tmp_path / "bad.cu")], check=True)
    version, table = cuda_binary.read_library(library)
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    assert f"V{version}" in said
    ((name, rows),) = table.items()
    row = rows["80"]
    assert name == "warp_forward<float, 16, true>"
    assert row["block"] == 128 and row["stack"] == 64 and row["BAR"] == 1 and row["LDS"] == 1
    launch = cuda_binary.launch_shapes()["warp_forward<float, 16"]
    assert row["LDG"] > 0 and row["shared"] == launch.dynamic_shared > 0
    broken = report.broken_promises(name, row)
    assert [complaint.lstrip("0123456789 ") for complaint in broken] == [
        "accesses of local memory (spills)",
        "no HMMA",
        "no global load of 16 bytes",
    ]


CALCULATOR = """
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int major, minor, warps, all_shared, block, registers, shared;
  while (scanf("%d %d %d %d %d %d %d", &major, &minor, &warps, &all_shared, &block, &registers, &shared) == 7) {
    cudaOccDeviceProp card;
    card.computeMajor = major, card.computeMinor = minor, card.warpSize = 32, card.numSms = 100;
    card.maxThreadsPerBlock = 1024, card.maxThreadsPerMultiprocessor = 32 * warps;
    card.regsPerBlock = card.regsPerMultiprocessor = 65536;
    card.sharedMemPerBlock = 48 * 1024, card.sharedMemPerMultiprocessor = all_shared;
    card.reservedSharedMemPerBlock = 1024, card.sharedMemPerBlockOptin = all_shared - 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = block, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared, kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    cudaOccMaxActiveBlocksPerMultiprocessor(&result, &card, &kernel, &state, block, shared);
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def test_occupancy_is_what_the_cuda_toolkit_calculates(tmp_path: Path) -> None:
    nvcc = tool("nvcc")
    (tmp_path / "calculator.cu").write_text(CALCULATOR)
    subprocess.run([nvcc, "-o", str(tmp_path / "calculator"), str(tmp_path / "calculator.cu")], check=True)
    cases = [
        (architecture, block, registers, shared)
        for architecture in (80, 86, 89, 90, 100, 120)
        for block in (32, 128, 160, 256, 288, 1024)
        for registers in (16, 40, 64, 96, 97, 130, 168, 255)
        for shared in (0, 1000, 15360, 29696, 57344, 94208)
    ]
    lines = []
    for architecture, *rest in cases:
        has = cuda_binary.MULTIPROCESSORS[architecture]
        lines.append(" ".join(map(str, (*divmod(architecture, 10), has.warps, has.shared, *rest))))
    printed = cuda_binary.run(str(tmp_path / "calculator"), feed="\n".join(lines))
    for case, blocks in zip(cases, printed.split(), strict=True):
        architecture, block, *_ = case
        share = int(blocks) * (block // 32) / cuda_binary.MULTIPROCESSORS[architecture].warps
        assert cuda_binary.occupancy(*case)[0] == pytest.approx(share), case


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(cuda_binary.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ToolMissing, match="cuobjdump is neither on PATH nor in CUDA_HOME nor in an installed triton"
    ):
        cuda_binary.find_tool("cuobjdump")
    program = tmp_path / "cuobjdump"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert cuda_binary.find_tool("cuobjdump") == str(program) == shutil.which("cuobjdump")


def test_update_keeps_the_rows_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "TABLE", tmp_path / "table.json")
    assert report.read_table() == {}
    old = {"12.8.93": {"k<1>": {"80": {"registers": 1}}}}
    new = report.updated(old, "13.0.88", {"k<1>": {"90": {"registers": 2}}})
    new = report.updated(new, "13.0.88", {"k<1>": {"80": {"registers": 3}}, "l<1>": {"80": {"registers": 4}}})
    new = report.updated(new, "13.0.88", {"k<1>": {"80": {"registers": 5}}})
    assert new == old | {"13.0.88": {"k<1>": {"80": {"registers": 5}, "90": {"registers": 2}}}}
    report.write_table(new)
    assert report.read_table() == new
