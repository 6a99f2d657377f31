"""The built CUDA library without a GPU: it loads, its ops are registered, it uses PyTorch's stable ABI alone."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_binary
import pytest
import torch
from cuda_binary import ToolMissing
from torch._subclasses.fake_tensor import FakeTensorMode

import motionrnn_ext
from motionrnn_ext.backends import native

PACKAGE = Path(motionrnn_ext.__file__).resolve().parent
OPS_SOURCE = PACKAGE.parent / "csrc" / "ops.cpp"

# What libtorch_cuda.so would give; a PyTorch without CUDA gets it from this stub.
STUB = """
#include <stdint.h>
int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) { *stream = 0; return 0; }
"""
STUB_SYMBOLS = {"aoti_torch_get_current_cuda_stream"}


@pytest.fixture(scope="module")
def library() -> Path:
    path = PACKAGE / "lib" / "libmotionrnn_ext_cuda.so"
    if not path.is_file():
        pytest.skip(
            f"{path.name} is not built: {native.build_info().get('cuda_left_out') or 'no native library'}"
        )
    return path


def tool(name: str) -> str:
    try:
        return cuda_binary.find_tool(name)
    except ToolMissing as missing:
        pytest.skip(str(missing))


def output_of(*command: str | Path) -> str:
    """Return what a tool prints; most are of binutils."""
    program = shutil.which(str(command[0]))
    if program is None:
        pytest.skip(f"{command[0]} is not on PATH")
    return subprocess.run([program, *command[1:]], check=True, capture_output=True, text=True).stdout


# ---- what it needs -----------------------------------------------------------------------------------------


def test_needs_two_libraries_of_torch_and_the_system_only(library: Path) -> None:
    dynamic = output_of("readelf", "-d", library)
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", dynamic))
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2"}
    assert {"libtorch_cpu.so", "libtorch.so"} <= needed <= {"libtorch_cpu.so", "libtorch.so"} | system
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_symbols_that_a_torch_without_cuda_lacks(library: Path) -> None:
    """Those of the stub. Everything else that is not the system's is of the stable ABI, in libtorch_cpu.so."""
    undefined = {
        name
        for kind, name in re.findall(r" ([Uw]) (\S+)", output_of("nm", "-D", "--undefined-only", library))
        if kind == "U" and not re.search("@(GLIBC|CXXABI|GCC)", name)
    }
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    defined = set(re.findall(r" [TWVBDR] (\w+)", output_of("nm", "-D", "--defined-only", torch_cpu)))
    assert undefined - defined == STUB_SYMBOLS
    assert [name for name in undefined if not name.startswith(("aoti_torch_", "torch_"))] == []


def test_holds_no_path_of_the_builder(library: Path) -> None:
    assert str(PACKAGE.parent).encode() not in library.read_bytes()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_abi_audit(library: Path, name: str) -> None:
    program = shutil.which("torch-abi-audit", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("torch-abi-audit is not installed")
    audited = library.with_name(f"libmotionrnn_ext_{name}.so")
    (found,) = json.loads(output_of(program, "--check", "torch", "--json", audited))["bundled_libs"]
    assert found["torch"]["stable"] and found["torch"]["unstable_symbols"] == []
    assert found["torch"]["unknown_shim_symbols"] == []
    assert found["torch"]["min_torch_version"] == "2.10.0"


def test_architectures_are_those_of_the_build_information(library: Path) -> None:
    info = native.build_info()
    assert info["cuda_ops"] and info["cuda_left_out"] is None
    cuobjdump = tool("cuobjdump")
    listed = cuda_binary.run(cuobjdump, "-lelf", str(library)) + cuda_binary.run(
        cuobjdump, "-lptx", str(library)
    )
    found = {(f"{a[:-1]}.{a[-1]}", kind) for a, kind in re.findall(r"sm_(\d+)\.(cubin|ptx)", listed)}
    expected = {(name.removesuffix("+PTX"), "cubin") for name in info["cuda_architectures"]}
    expected |= {(n.removesuffix("+PTX"), "ptx") for n in info["cuda_architectures"] if n.endswith("+PTX")}
    assert found == expected
    # what a GPU that is none of them is told
    told = f"CUDA kernels for the architectures {','.join(info['cuda_architectures'])}, not"
    assert told.encode() in library.read_bytes()


# ---- registration ------------------------------------------------------------------------------------------

REGISTERED = """
import ctypes, json, sys, torch
from motionrnn_ext.backends import native
stub, library = sys.argv[1:]
if torch.version.cuda is None:
    try:
        torch.ops.load_library(library)
        sys.exit("the library should not load without libtorch_cuda.so")
    except OSError as error:
        assert "undefined symbol: aoti_torch_get_current_cuda_stream" in str(error.__cause__ or error), error
    ctypes.CDLL(stub, mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(library)
names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("motionrnn_ext::")]
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(json.dumps({name.partition("::")[2]: [has(name, key) for key in ("CPU", "CUDA")] for name in names}))
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler is on PATH")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(STUB)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "stub.so", folder / "stub.c"], check=True)
    return folder / "stub.so"


def python(executable: str | Path, code: str, *arguments: str | Path, path: Path = PACKAGE.parent) -> str:
    done = subprocess.run(
        [executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_op_has_a_cuda_kernel(library: Path, stub: Path) -> None:
    registered = json.loads(python(sys.executable, REGISTERED, stub, library))
    defined = set(re.findall(r'"(\w+)\(', OPS_SOURCE.read_text()))
    assert len(defined) > 12 and set(registered) == defined
    lacking = {name for name, (_, cuda) in registered.items() if not cuda}
    # Other convolutions are cuDNN's there; the CPU has some of its own.
    winograd = {"winograd_pack", "winograd_conv", "winograd_weight_gradient"}
    steps = {"motion_step", "motion_step_backward", "motion_step_pack", "motion_gates_weight_gradients"}
    assert lacking == {"cpu_instruction_set", *steps, *winograd}
    unfused = {name for name, (cpu, _) in registered.items() if not cpu} - {"cpu_instruction_set"}
    packed = {"motion_gates_pack", "gated_warp", "gated_warp_backward"}
    packed |= {"decode_blend_pack", "decode_blend", "decode_blend_backward"}
    assert unfused == {
        "motion_warp",
        "motion_warp_backward",
        *packed,
    }  # the CPU runs motion_update and offset_warp


# ---- shapes on a GPU, by fake tensors ----------------------------------------------------------------------

B, C, OUT, H, W = 2, 8, 12, 5, 7


def image(channels: int, dtype: torch.dtype = torch.bfloat16, rows: bool = True) -> torch.Tensor:
    memory_format = torch.channels_last if rows else torch.contiguous_format
    return torch.empty(B, channels, H, W, device="cuda", dtype=dtype, memory_format=memory_format)


def described(results: Any) -> list[tuple[Any, ...]]:
    results = results if isinstance(results, (tuple, list)) else (results,)
    return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in results]


# Each op: its arguments, and an image of the kind that each output should be (None: empty). bf16 beside float32.
def calls(rows: bool) -> dict[str, tuple[tuple[Any, ...], list[torch.Tensor | None]]]:
    def feature(channels: int = C) -> torch.Tensor:
        return image(channels, rows=rows)

    def state(channels: int = 18) -> torch.Tensor:
        return image(channels, torch.float32, rows)

    weight = torch.empty(OUT, C, 3, 3, device="cuda", dtype=torch.bfloat16)
    motion = (feature(18), feature(18), state(), state())
    warp = (feature(), state(), feature(9), weight)
    gates = [torch.empty(*s, device="cuda", dtype=torch.bfloat16) for s in ((63, C, 3, 3), (63,))]
    gates += [torch.empty(rows, 18, 3, 3, device="cuda", dtype=torch.bfloat16) for rows in (36, 18)]
    of_5x5 = torch.empty(OUT, C, 5, 5, device="cuda")
    packed = torch.empty(36 * C * (OUT + 13), device="cuda")
    # Half maps of the size of all others, from maps of twice that size.
    rows_or_not = torch.channels_last if rows else torch.contiguous_format
    whole = torch.empty(B, OUT, 2 * H, 2 * W, device="cuda", dtype=torch.bfloat16).to(
        memory_format=rows_or_not
    )
    bf16: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    encoder, to_warp, decoder = (torch.empty(C, n, k, k, **bf16) for n, k in ((OUT, 5), (C, 3), (OUT, 4)))
    of_step = [encoder, *gates, to_warp, decoder, torch.empty(C, **bf16), torch.empty(OUT, **bf16)]
    most_bytes = 16 * sum(w.numel() + 9 * math.prod(w.shape[1:]) for w in of_step)
    step_packed = torch.empty(most_bytes, device="cuda", dtype=torch.uint8)
    of_gates = [w for w in gates if w.dim() == 4]
    most_bytes = 64 * sum((8 + w.shape[0]) * (8 + w.shape[1]) * 13 for w in (*of_gates, weight))
    gates_packed = torch.empty(most_bytes, device="cuda", dtype=torch.uint8)
    gate, of_out = torch.empty(OUT, 2 * OUT, 1, 1, **bf16), torch.empty(OUT, **bf16)
    most_bytes = 64 * sum((w.shape[0] + 3) * (w.shape[1] + 7) * w.shape[2] ** 2 for w in (decoder, gate))
    end_packed = torch.empty(most_bytes, device="cuda", dtype=torch.uint8)
    return {
        "decode_blend_pack": ((decoder, gate), [end_packed] * 2),
        "decode_blend": (
            (feature(), whole, decoder, of_out, gate, of_out, end_packed, True),
            [whole] * 3,
        ),
        "decode_blend_backward": ((*[whole] * 4, decoder, gate, end_packed, True), [whole] * 3),
        "motion_step_pack": ((of_step, True), [step_packed]),
        "motion_step": (
            (whole, state(), state(), *of_step, step_packed, 0.5, 1e4),
            [whole, state(), state(), feature(), feature(9), *[feature(18)] * 3, feature()],
        ),
        "motion_step_backward": (
            (
                *[whole] * 2,
                *[state()] * 3,
                feature(),
                feature(9),
                *[feature(18)] * 3,
                state(),
                *of_step,
                step_packed,
                0.5,
                1e4,
                0b1000,
            ),
            [whole, None, None, feature(), state(63), to_warp],
        ),
        "motion_gates_weight_gradients": ((state(63), feature(), state(), feature(18), 3), gates),
        "winograd_pack": ((of_5x5, False), [packed]),
        "winograd_conv": ((state(C), packed, 5, OUT, None), [state(OUT)]),
        "winograd_weight_gradient": (([state(OUT)], [state(C)], 5), [of_5x5]),
        "motion_reset": ((feature(18), state()), [feature(18)]),
        "motion_reset_backward": ((feature(18), feature(18), state()), [feature(18), state()]),
        "motion_update": ((*motion, 0.5, 1e4), [state(), state()]),
        "motion_update_backward": ((state(), state(), *motion[:3], state(), 0.5, 1e4), [*motion]),
        "memory_update": ((feature(3 * C), feature(3 * C), state(C), 1.0), [state(C)]),
        "memory_update_backward": (
            (state(C), feature(3 * C), feature(3 * C), state(C), 1.0),
            [feature(3 * C), state(C)],
        ),
        "highway_output": ((feature(), feature(), feature()), [feature()]),
        "highway_output_backward": ((feature(), feature(), feature(), None), [feature(), feature(), None]),
        "gated_blend": ((feature(), feature(), feature()), [feature()]),
        "gated_blend_backward": ((feature(),) * 4, [feature()] * 3),
        "st_lstm_update": (
            (feature(3 * C), feature(3 * C), state(C), state(C), 1.0),
            [feature(2 * C), state(C), state(C)],
        ),
        "st_lstm_update_backward": (
            (*[feature(2 * C)] * 2, *[state(C)] * 2, feature(), *[feature(3 * C)] * 2, *[state(C)] * 2, 1.0),
            [feature(4 * C), feature(3 * C), state(C), state(C)],
        ),
        "summed_output": ((*[feature()] * 3, None), [feature(), feature()]),
        "conv_lstm_update": ((feature(4 * C), state(C), None, 0.0), [feature(), state(C)]),
        "conv_lstm_update_backward": (
            (feature(), state(C), feature(4 * C), state(C), state(C), feature(), 0.0),
            [feature(4 * C), state(C), feature()],
        ),
        "offset_warp": (warp, [feature(OUT)]),
        "offset_warp_backward": (
            (feature(OUT), *warp, 0b1011, False),
            [feature(), state(), None, weight],
        ),
        "motion_gates": (
            (feature(), state(), state(), *gates, 0.5, 1e4),
            [state(), state(), feature(9), feature(18), feature(18), feature(18)],
        ),
        "motion_gates_backward": (
            (
                state(),
                state(),
                feature(9),
                feature(),
                state(),
                *gates,
                *[feature(18)] * 3,
                state(),
                0.5,
                1e4,
                0b1001,
            ),
            [feature(), None, None, *gates],
        ),
        "motion_gates_pack": ((*gates, weight), [gates_packed] * 2),
        "gated_warp": (
            (feature(), state(), state(), *gates, weight, gates_packed, 0.5, 1e4),
            [feature(OUT), state(), state(), feature(9), *[feature(18)] * 3],
        ),
        "gated_warp_backward": (
            (
                *(feature(OUT), state(), state(), feature(), state(), *gates, weight),
                *(feature(9), *[feature(18)] * 3, state(), gates_packed, 0.5, 1e4, 0b1001, False),
            ),
            [feature(), None, None, image(64).narrow(1, 0, 63), image(20).narrow(1, 0, 18), weight],
        ),
        "motion_warp": ((feature(), *motion, feature(9), weight, 0.5, 1e4), [feature(OUT), state(), state()]),
        "motion_warp_backward": (
            (
                feature(OUT),
                state(),
                state(),
                feature(),
                *motion[:3],
                state(),
                feature(9),
                weight,
                0.5,
                1e4,
                0b0111,
                True,
            ),
            [feature(), *motion, feature(9), None],
        ),
    }


@pytest.mark.parametrize("rows", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("op", sorted(re.findall(r'"(\w+)\(Tensor', OPS_SOURCE.read_text())))
def test_fakes_of_the_gpu(op: str, rows: bool) -> None:
    if "cpu" in native._missing:
        pytest.skip(f"no schemas: {native.unavailable_reason('cpu')}")
    with FakeTensorMode(), torch.no_grad():
        arguments, expected = calls(rows)[op]
        results = getattr(torch.ops.motionrnn_ext, op)(*arguments)
        results = results if isinstance(results, (tuple, list)) else (results,)
        assert len(results) == len(expected)
        for i, (result, like) in enumerate(zip(results, expected)):
            if like is None:
                assert result.numel() == 0, i
            else:
                assert described(result) == described(like), i


# ---- other versions of PyTorch -----------------------------------------------------------------------------

OTHER = """
import torch
import motionrnn_ext
from motionrnn_ext import ops
from motionrnn_ext.backends import native
loaded = {name: str(error.__cause__ or error) for name, error in native.load_errors.items()}
assert not loaded, loaded
logits, a, b = torch.randn(3, 2, 4, 5, 6).unbind()
with motionrnn_ext.backend("cpu"):
    blended = ops.gated_blend(logits, a, b)
torch.testing.assert_close(blended, logits.sigmoid() * a + (1 - logits.sigmoid()) * b)
has = torch._C._dispatch_has_kernel_for_dispatch_key("motionrnn_ext::motion_warp_backward", "CUDA")
assert has == (torch.version.cuda is not None), has
print(torch.__version__)
"""


def test_loads_in_other_versions_of_torch(library: Path, tmp_path: Path) -> None:
    folders = os.environ.get("MOTIONRNN_EXT_OTHER_ENVIRONMENTS", "").split(os.pathsep)
    if folders == [""]:
        pytest.skip("MOTIONRNN_EXT_OTHER_ENVIRONMENTS names no virtual environments with another PyTorch")
    shutil.copytree(PACKAGE, tmp_path / "motionrnn_ext", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in folders:
        version = python(Path(folder) / "bin" / "python", OTHER, path=tmp_path)
        print(f"loads in PyTorch {version.strip()}")


# ---- a GPU that the build has no kernels for ---------------------------------------------------------------

CHECK = """
#include "cuda/launch.h"
#include <cstdio>
int main() {
  for (cudaError_t error : {cudaSuccess, cudaErrorNoKernelImageForDevice, cudaErrorInvalidConfiguration}) {
    try {
      motionrnn_ext::cuda::check(error);
      std::puts("no exception");
    } catch (const std::exception& e) {
      std::puts(e.what());
    }
  }
}
"""


def test_errors_of_a_launch(tmp_path: Path) -> None:
    (tmp_path / "check.cu").write_text(CHECK)
    command = [tool("nvcc"), "-std=c++20", "-arch=sm_80", f"-I{OPS_SOURCE.parent}"]
    command += ['-DMOTIONRNN_EXT_CUDA_ARCHITECTURES="8.0,9.0+PTX"', "-o", str(tmp_path / "check")]
    subprocess.run([*command, str(tmp_path / "check.cu")], check=True)
    fine, no_image, other = cuda_binary.run(str(tmp_path / "check")).splitlines()
    assert fine == "no exception"
    assert "has CUDA kernels for the architectures 8.0,9.0+PTX, not for this GPU" in no_image
    assert "TORCH_CUDA_ARCH_LIST" in no_image and "'reference'" in no_image
    assert other == "motionrnn_ext: CUDA error: invalid configuration argument"
