"""The compiled CUDA kernels keep what is promised of them; no GPU is needed."""

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
    assert report.problems(built[1]) == []


def test_every_kernel_is_recognised(built) -> None:
    """A renamed kernel would slip through the rules."""
    stems = {Kernel.parse(name).stem for name in built[1]}
    assert {"pointwise_kernel", *report.TENSOR_CORES} <= stems
    for name in built[1]:
        kernel = Kernel.parse(name)
        if kernel.stem in ("warp_forward", "warp_backward"):
            assert kernel.arguments[0] in ("float", "bf16", "half")
            assert int(kernel.arguments[1]) in (8, 16, 32, 64) and kernel.arguments[2] in ("true", "false")
        assert all(row["instructions"] > 10 for row in built[1][name].values())


def test_every_architecture_has_every_kernel(built) -> None:
    architectures = {frozenset(rows) for rows in built[1].values()}
    assert len(architectures) == 1


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
    "warp_forward<float, 16, true, false>": {"HMMA": 12, "LDG": 31, "LDG.128": 8},
    "warp_forward<bf16, 16, true, false>": {"HMMA": 2, "LDG": 35, "LDG.64": 8},
    "warp_forward<bf16, 32, false, false>": {"HMMA": 8, "LDG": 91},
    "gates_forward<bf16>": {"HMMA": 12, "LDG": 24, "registers": 64},
    "gated_warp_forward<bf16, 16, true>": {"HMMA": 26, "LDG": 60, "registers": 64},
    "warp_backward<half, 32, true, false, true>": {"HMMA": 8, "LDG": 91, "LDG.128": 10},
    "warp_backward<float, 32, false, true, false>": {"HMMA": 8, "LDG": 91, "LDL/STL": 8, "stack": 16},
}
POINTWISE, SCALAR, FLOAT, GENERAL, GATES, GATED_WARP, BACKWARD, SPILLING_A_LITTLE = (
    list(GOOD)[i] for i in (0, 1, 2, 4, 5, 6, 7, 8)
)


@pytest.mark.parametrize("name", GOOD)
def test_promises_kept(name: str) -> None:
    assert report.broken_promises(name, GOOD[name]) == []


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        (POINTWISE, {"LDG.128": 2}, "3 LDG, 2 of them of 16 bytes"),
        (POINTWISE, {"STG": 4, "STG.128": 0}, "4 STG, 0 of them of 16 bytes"),
        (POINTWISE, {"LDG": 0, "LDG.128": 0}, "0 LDG, 0 of them of 16 bytes"),
        (SCALAR, {"LDL/STL": 1}, "1 accesses of local memory (spills)"),
        (SCALAR, {"stack": 8}, "a stack frame of 8 bytes"),
        (FLOAT, {"HMMA": 0}, "no HMMA"),
        (FLOAT, {"LDG.128": 7}, "7 global loads of 16 bytes instead of 8"),
        (GATES, {"registers": 65}, "65 registers instead of at most 64"),
        (GATES, {"HMMA": 0}, "no HMMA"),
        (GATED_WARP, {"registers": 65}, "65 registers instead of at most 64"),
        (GATES, {"divided": 2}, "2 instructions of a whole warp where its lanes may be apart"),
        (GENERAL, {"LDL/STL": 2}, "2 accesses of local memory (spills)"),
        (BACKWARD, {"LDL/STL": 2}, "2 accesses of local memory (spills)"),
        (BACKWARD, {"LDG.128": 0}, "0 global loads of 16 bytes instead of 2"),
        (SPILLING_A_LITTLE, {"LDL/STL": 12}, "12 accesses of local memory (spills)"),
    ],
)
def test_promises_broken(name: str, change: Row, complaint: str) -> None:
    assert report.broken_promises(name, GOOD[name] | change) == [complaint]


# Both branches meet at 0060. The second product is reached by part of the lanes, unless these were brought together.
APART = """
        /*0000*/                   BSSY B0, 0x60 ;
        /*0010*/              @!P0 BRA 0x50 ;
        /*0020*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0050*/                   BSYNC B0 ;
        /*0060*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
"""


@pytest.mark.parametrize("together", ["", "        /*0018*/                   WARPSYNC 0xffffffff ;\n"])
def test_a_product_that_lanes_reach_apart(together: str) -> None:
    regions, lines = cuda_binary.Convergence(), APART.splitlines(keepends=True)
    lines.insert(3, together)
    divided = [line for line in lines if regions.is_divided(line)]
    assert divided == ([] if together else [lines[4]])


def test_lanes_are_together_before_the_first_branch() -> None:
    """Scheduling may put BSSY, which itself parts no lanes, before a product."""
    lines = APART.splitlines(keepends=True)
    lines[2], lines[3] = lines[3].replace("0020", "0010"), lines[2].replace("0010", "0020")
    regions = cuda_binary.Convergence()
    assert not any(regions.is_divided(line) for line in lines)


def tool(name: str) -> str:
    try:
        return cuda_binary.find_tool(name)
    except ToolMissing as missing:
        pytest.skip(str(missing))


SPILLING = """
namespace motionrnn_ext::cuda {
template <class T, int N, bool vectors, bool chunks>
__global__ void __launch_bounds__(128) warp_forward(const T* in, T* out, int n) {
  extern __shared__ float shared[];
  T local[N] = {};
  for (int i = 0; i < n; ++i) local[int(in[i])] += 1;  // indices that are not known: an array in memory
  shared[threadIdx.x] = local[threadIdx.x % N];
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}
template __global__ void warp_forward<float, 16, true, false>(const float*, float*, int);
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
    assert name == "warp_forward<float, 16, true, false>"
    assert row["block"] == 128 and row["stack"] == 64 and row["BAR"] == 1 and row["LDS"] == 1
    launch = cuda_binary.launch_shapes()["warp_forward<float, 16"]
    assert row["LDG"] > 0 and row["shared"] == launch.dynamic_shared > 0
    broken = report.broken_promises(name, row)
    assert [complaint.lstrip("0123456789 ") for complaint in broken] == [
        "accesses of local memory (spills)",
        "a stack frame of 64 bytes",
        "no HMMA",
        "global loads of 16 bytes instead of 8",
    ]


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
