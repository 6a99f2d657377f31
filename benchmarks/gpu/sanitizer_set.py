"""Call every kernel once or a few times on small inputs, for compute-sanitizer to watch.

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck python -m motionrnn_ext.benchmarks.gpu.sanitizer_set

The calls are those of all ops, forward and backward, default and deterministic, in three dtypes and both layouts, at
channel counts with and without a kernel of their own, on maps whose pixels do not fill a block. Without caching each
tensor is an allocation of its own, so that a read past its end is seen. Values are tested elsewhere; here they only
have to be finite.
"""

from __future__ import annotations

import argparse
import sys

import motionrnn_ext

from ..cases import MapShape
from ..measuring.implementations import implementation
from ..measuring.op_cases import BOTH, INPUTS, LAYOUTS, Case, as_tuple

SHAPES = (MapShape(2, 16, 7), MapShape(1, 32, 5), MapShape(1, 8, 6), MapShape(1, 5, 5))
DTYPES = ("float32", "bfloat16", "float16")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    motionrnn_ext.set_backend(options.device)
    calls = 0
    for op in INPUTS:
        # The cell's kernels are those of its ops and a library's convolutions; a whole MotionGRU has more.
        if op in ("MotionGRUCell", "convolution"):
            continue
        for shape in SHAPES if "warp" in op else SHAPES[:2]:
            for dtype in DTYPES:
                for layout in LAYOUTS:
                    calls += check(Case(op, shape, dtype, BOTH), layout, options.device)
    print(f"{calls} calls, forward and backward, all finite")
    return 0


def check(case: Case, layout: str, device: str) -> int:
    """Call the op in each of its variants, check that the results are finite, and return the number of calls."""
    variants = ("ours", "ours, deterministic") if "warp" in case.op else ("ours",)
    for name in variants:
        call, _ = implementation(name, layout, case, device).call(case, case.inputs(device, 0))
        outputs, grads = call()
        for t in (*as_tuple(outputs), *grads):
            if not t.isfinite().all():
                raise ArithmeticError(f"{case} {layout} {name}: a result is not finite")
    return len(variants)


if __name__ == "__main__":
    sys.exit(main())
