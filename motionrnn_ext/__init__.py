"""motionrnn_ext: MotionRNN (video prediction, CVPR 2021), made fast.

    ops         fused, differentiable ops such as `motionrnn_ext.ops.offset_warp`
    layers      `MotionGRUCell`, `MotionGRU`, `MotionGRULayer`, the recurrent cells, `convert` and `revert`
    models      `MotionRNN`, checkpoints of the official program
    graphed, graphed_step   a model in CUDA graphs
    onnx        `onnx.export_onnx` and a translation table for `torch.onnx.export`
    warmup      run a module before a CUDA graph is captured or a clock starts

An import needs torch alone, compiles nothing, and never fails because a native library is missing.
"""

from typing import TYPE_CHECKING

import torch

from . import layers, models, ops
from .backends import available_backends, backend, set_backend
from .layers import MotionGRU, MotionGRUCell, MotionGRULayer
from .lazy import imported_on_use
from .models import MotionRNN
from .name import PACKAGE
from .warmup import warmup

if TYPE_CHECKING:
    from . import graphs as graphs
    from . import onnx
    from .graphs import graphed, graphed_step
    from .layers import convert, revert
else:
    __getattr__, __dir__ = imported_on_use(
        __name__,
        {
            "convert": "layers",
            "graphed": "graphs",
            "graphed_step": "graphs",
            "graphs": "graphs",
            "onnx": "onnx",
            "revert": "layers",
        },
    )

__version__ = "0.1.0"

# The version is part of the keys of torch.compile's cache, which keeps graphs on disk, backward functions included, and
# does not look into this package. Without it a compiled program would run the graphs of an earlier version.
_in_keys = f" {PACKAGE} {__version__}"
if _in_keys not in torch.compiler.config.cache_key_tag:
    torch.compiler.config.cache_key_tag += _in_keys

__all__ = [
    "MotionGRU",
    "MotionGRUCell",
    "MotionGRULayer",
    "MotionRNN",
    "available_backends",
    "backend",
    "convert",
    "graphed",
    "graphed_step",
    "layers",
    "models",
    "onnx",
    "ops",
    "revert",
    "set_backend",
    "warmup",
]
