"""The offset warp as an op of its own in an export to ONNX.

The exporter keeps an op for which the user gives a translation (`motionrnn_ext.onnx.translation_table`). Any other op
that is composite it takes apart, so that an export without the table consists of the reference's plain operations.
"""

from __future__ import annotations

import torch

from ..name import PACKAGE
from . import reference

_LIBRARY = torch.library.Library(f"{PACKAGE}_onnx", "DEF")
_LIBRARY.define("offset_warp(Tensor x, Tensor offset, Tensor mask_logits, Tensor weight) -> Tensor")
_LIBRARY.impl("offset_warp", reference.offset_warp, "CompositeImplicitAutograd")

offset_warp = getattr(torch.ops, _LIBRARY.ns).offset_warp.default
