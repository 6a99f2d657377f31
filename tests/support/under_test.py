"""The implementations that the tests of the ops run on, each with its device and dtypes.

`emulated` is the CUDA kernels on the CPU: nvcc's PTX on an interpreter, where MOTIONRNN_EXT_PTX names their build (as
tests/ptx/test_cuda_on_ptx.py does); `cuda` needs a GPU. So does `triton`, unless TRITON_INTERPRET=1 runs its kernels on
the CPU (as tests/triton/test_triton.py does) or MOTIONRNN_EXT_PTX_OF=triton runs their PTX there (as
tests/ptx/test_triton_on_ptx.py does).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import motionrnn_ext
from motionrnn_ext import backends
from motionrnn_ext.backends import native, triton

if TYPE_CHECKING:
    from ptx_interpreter import Interpreter

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class UnderTest:
    name: str
    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = DTYPES
    backend: str | None = None  # the package's name for it, if it has another
    namespace: str = "motionrnn_ext"

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Within the block the package runs its ops on this. After it, what the PTX interpreter reports is an error."""
        with pytest.MonkeyPatch.context() as patch, motionrnn_ext.backend(self.backend or self.name):
            patch.setattr(native, "NAMESPACE", self.namespace)
            patch.setattr(native, "CUDA_KERNELS_ON", {self.device} if self.runs_cuda_kernels else set())
            yield
        if PTX and (reports := PTX.reports()):
            raise AssertionError("\n".join(["the PTX interpreter reports", *map(str, reports[:5])]))

    @property
    def runs_cuda_kernels(self) -> bool:
        return self.name in ("cuda", "emulated")

    @property
    def runs_gpu_kernels(self) -> bool:
        return self.runs_cuda_kernels or self.name == "triton"

    @property
    def is_slow(self) -> bool:
        """Whether it is Triton's interpreter, where thousands of calls take too long."""
        return self is TRITON and TRITON.device == "cpu" and not PTX

    @property
    def float32_bound(self) -> float:
        """The bound of float32 values' relative error, far inside of the stated 5e-5.

        Measured: up to 7.4e-7, and 2.1e-6 by 72 channels on tensor cores, also emulated, which cut sums instead of
        rounding them.
        """
        return 5e-6 if self.runs_cuda_kernels or self.device == "cuda" else 1.5e-6

    def op(self, name: str) -> Any:
        return getattr(getattr(torch.ops, self.namespace), name)


def _ptx() -> Interpreter | None:
    """The PTX interpreter, with the kernels of MOTIONRNN_EXT_PTX_OF (cuda or triton), if MOTIONRNN_EXT_PTX is set."""
    if not os.environ.get("MOTIONRNN_EXT_PTX"):
        return None
    import on_ptx

    return on_ptx.load_triton() if PTX_OF_TRITON else on_ptx.load_cuda()


PTX_OF_TRITON = os.environ.get("MOTIONRNN_EXT_PTX_OF") == "triton"
PTX = _ptx()
REFERENCE = UnderTest("reference")
CPU = UnderTest("cpu")
CUDA = UnderTest("cuda", device="cuda", dtypes=DTYPES[1:])
TRITON = UnderTest(
    "triton",
    device="cpu" if triton.INTERPRETED else "cuda",
    dtypes=DTYPES if triton.INTERPRETED and not PTX else DTYPES[1:],
    namespace=triton.NAMESPACE,
)
AUTO = UnderTest("auto")  # the package's own choice
EMULATED = replace(CUDA, name="emulated", device="cpu", backend="cpu", namespace="motionrnn_ext_emulated")


def set_seed(value: int) -> None:
    """Set the order in which emulated blocks and warps run; 0 is that of their numbers."""
    assert PTX
    PTX.set(seed=value)


@contextmanager
def few_blocks(count: int) -> Iterator[None]:
    """Within the block PTX is run for so many blocks of a launch, spread evenly. What the others write stays nan."""
    if PTX:
        PTX.set(max_blocks=count)
    try:
        yield
    finally:
        if PTX:
            PTX.set(max_blocks=0)


def _hasten_the_interpreter() -> None:
    """Cut the interpreter's time to a quarter. It does not depend on the size of blocks: they are large.

    Most of it goes into patching Triton's language again, 1 ms, for every call of a helper function, though the kernel
    that calls has done so; much of the rest into whether sums of 32 bits overflow, for which there is a test.
    """
    from triton.runtime import interpreter

    from motionrnn_ext.backends.triton.launch import BLOCKS, MANY, Block

    for op in BLOCKS:
        size = 4096 if op == "pointwise" else 256
        BLOCKS[op] = [(MANY, Block(size, 4), Block(size, 4))]
    patched = set()

    def call_helper(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.fn.__module__
        if module.startswith("triton.") and module not in patched:  # kernels do not patch for these
            interpreter._patch_lang(self.fn)
            patched.add(module)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call_helper
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


def _reason_not_to(test: UnderTest) -> str | None:
    if test is not EMULATED:
        return backends.unavailable_reason(test.name)
    return None if PTX and not PTX_OF_TRITON else "MOTIONRNN_EXT_PTX names no build of the CUDA kernels"


NOT_TESTED = {t.name: why for t in (REFERENCE, CPU, CUDA, TRITON, EMULATED) if (why := _reason_not_to(t))}
ALL = [t for t in (REFERENCE, CPU, CUDA, TRITON, EMULATED) if t.name not in NOT_TESTED]
KERNELS = [t for t in ALL if t is not REFERENCE]
CUDA_KERNELS = [t for t in KERNELS if t.runs_cuda_kernels]
GPU_KERNELS = [t for t in KERNELS if t.runs_gpu_kernels]
if EMULATED in ALL:
    native.register(EMULATED.namespace)
if TRITON in ALL and TRITON.is_slow:
    _hasten_the_interpreter()


def on(tests: Iterable[UnderTest], *, dtypes: Iterable[torch.dtype] = ()) -> pytest.MarkDecorator:
    """Run a test on each of `tests`, as its argument `on`; with `dtypes` also for each of those that it has."""
    arguments = []
    for test in tests:
        marks = [pytest.mark.cuda] if test.device == "cuda" else []
        if dtypes:
            arguments += [
                pytest.param(test, dtype, id=f"{test}-{str(dtype).removeprefix('torch.')}", marks=marks)
                for dtype in dtypes
                if dtype in test.dtypes
            ]
        else:
            arguments.append(pytest.param(test, id=test.name, marks=marks))
    if not arguments:
        why = "; ".join(f"{name} is not tested: {reason}" for name, reason in NOT_TESTED.items())
        return pytest.mark.skip(reason=why)
    return pytest.mark.parametrize("on, dtype" if dtypes else "on", arguments)
