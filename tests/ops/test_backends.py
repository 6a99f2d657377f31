"""The choice of a backend: names, scope, fallback."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import motionrnn_ext
from motionrnn_ext import backends, ops
from motionrnn_ext.backends import native, triton


def blend():
    return ops.gated_blend(*(torch.ones(1, 2) for _ in range(3)))


def test_scope_is_the_block_and_the_thread():
    assert backends.current_backend() == "auto"
    with motionrnn_ext.backend("reference"):
        assert backends.current_backend() == "reference"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(backends.current_backend()))
        thread.start()
        thread.join()
        assert seen == ["auto"]
        with motionrnn_ext.backend("auto"):
            assert backends.current_backend() == "auto"
        assert backends.current_backend() == "reference"
    assert backends.current_backend() == "auto"


def test_scope_ends_with_an_exception():
    with pytest.raises(RuntimeError), motionrnn_ext.backend("reference"):
        raise RuntimeError
    assert backends.current_backend() == "auto"


def test_set_backend_reaches_every_thread():
    motionrnn_ext.set_backend("reference")
    try:
        seen = []
        thread = threading.Thread(target=lambda: seen.append(backends.current_backend()))
        thread.start()
        thread.join()
        assert seen == ["reference"]
    finally:
        motionrnn_ext.set_backend("auto")


def test_an_absent_backend_says_why_and_what_there_is(monkeypatch):
    monkeypatch.setitem(native._missing, "cpu", "the library was left at home")
    with pytest.raises(
        ValueError,
        match=r"'cpu' is not available: the library was left at home; available are: auto, reference",
    ):
        motionrnn_ext.set_backend("cpu")
    monkeypatch.setattr(triton, "_IS_INSTALLED", False)
    with pytest.raises(ValueError, match="'triton' is not available: the package triton is not installed"):
        motionrnn_ext.set_backend("triton")


def test_auto_falls_back_with_one_warning_and_an_explicit_name_never(monkeypatch):
    monkeypatch.setitem(native._missing, "cpu", "the library was left at home")
    monkeypatch.setattr(backends, "_warned", set())
    with pytest.warns(UserWarning, match="'reference' backend, because the library was left at home"):
        blend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blend()
    monkeypatch.undo()
    with motionrnn_ext.backend("reference"):
        monkeypatch.setattr(native, "call", lambda *a: pytest.fail("the native library ran"))
        blend()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU, Triton and its tools, where this package has no CUDA library; nothing runs on it."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the package triton is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(native._missing, "cuda", "no CUDA compiler (nvcc) was found")
    monkeypatch.setattr(triton, "_MISSING_TOOL", None)
    return monkeypatch


def in_force(device: str, dtype: torch.dtype = torch.float32) -> str:
    with FakeTensorMode():
        return backends._in_force(torch.empty(1, 2, device=device, dtype=dtype))


def test_auto_takes_triton_on_a_gpu_without_a_cuda_library(gpu: pytest.MonkeyPatch):
    assert in_force("cuda") == "triton" and "triton" in motionrnn_ext.available_backends()
    assert in_force("cuda", torch.float64) == "reference"
    assert in_force("cpu") == ("cpu" if native.unavailable_reason("cpu") is None else "reference")
    gpu.delitem(native._missing, "cuda")
    assert in_force("cuda") == "cuda"


def test_triton_without_its_tools_is_not_taken_and_says_why(gpu: pytest.MonkeyPatch):
    """Or the first op would fail."""
    gpu.setattr(triton, "_MISSING_TOOL", triton_missing(gpu, CC=None, PATH=""))
    gpu.setattr(backends, "_warned", set())
    with pytest.warns(
        UserWarning, match="on cuda run on the slow 'reference' backend, because no CUDA compiler"
    ):
        assert in_force("cuda") == "reference"
    with pytest.raises(
        ValueError, match="'triton' is not available: Triton needs a C compiler at its first launch"
    ):
        motionrnn_ext.set_backend("triton")


def test_what_triton_needs_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    compiler = tmp_path / "clang"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert "install gcc or clang, or name one in CC" in triton_missing(monkeypatch, CC=None, PATH="")
    for environment in ({"CC": "mycc", "PATH": ""}, {"CC": None, "PATH": str(tmp_path)}):
        monkeypatch.setattr(triton, "python_headers", lambda: tmp_path)
        assert triton_missing(monkeypatch, **environment) is None
        monkeypatch.setattr(triton, "python_headers", lambda: None)
        assert "Python.h" in triton_missing(monkeypatch, **environment)


def triton_missing(monkeypatch: pytest.MonkeyPatch, CC: str | None, PATH: str) -> str | None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", PATH)
        patch.delenv("CC", raising=False) if CC is None else patch.setenv("CC", CC)
        return triton._missing_tool()


def test_a_backend_of_another_device_is_refused():
    if "cpu" not in motionrnn_ext.available_backends():
        pytest.skip(f"no cpu backend: {native.unavailable_reason('cpu')}")
    with (
        motionrnn_ext.backend("cpu"),
        pytest.raises(ValueError, match="'cpu' was chosen, but the tensors are on meta"),
    ):
        ops.gated_blend(*(torch.ones(1, 2, device="meta") for _ in range(3)))


def test_auto_runs_meta_tensors_on_reference():
    assert ops.gated_blend(*(torch.ones(1, 2, device="meta") for _ in range(3))).shape == (1, 2)


@pytest.mark.parametrize("name, ends", [("reference", "(1, 2)"), ("gpu", "unknown backend 'gpu'")])
def test_environment_variable(name: str, ends: str):
    code = "import torch; from motionrnn_ext import ops; print(tuple(ops.gated_blend(*[torch.ones(1, 2)] * 3).shape))"
    environment = {**os.environ, "MOTIONRNN_EXT_BACKEND": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ends in done.stdout + done.stderr


@pytest.mark.parametrize("isa", ["baseline", "x86_64_v3"])
def test_lower_instruction_sets_agree(isa: str):
    """The kernels' other copies, which run where the best instruction set is missing."""
    if "cpu" not in motionrnn_ext.available_backends():
        pytest.skip(f"no cpu backend: {native.unavailable_reason('cpu')}")
    tests = os.path.join(os.path.dirname(__file__), "test_ops.py")
    environment = {**os.environ, "MOTIONRNN_EXT_CPU_ISA": isa}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        tests,
        "-k",
        "cpu and (values or half)",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    code = "from motionrnn_ext.backends import native; print(native.cpu_instruction_set())"
    used = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    ).stdout.strip()
    assert used in (isa, "baseline")
