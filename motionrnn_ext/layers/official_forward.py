"""The official MotionGRU's forward alone, for programs that exchange the forward of a user's module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import ops
from .motion import as_motion, check_map
from .motion_gru_cell import PackedGates, packed_gates

# alpha of the official program, which has no bound on the motion.
_ALPHA = 0.5


class OfficialMotionGRU(nn.Module):
    """The official MotionGRU's `forward(x, offset, trend) -> (out, offset, trend)` by this package's ops.

    `kernelize` of the Hugging Face Hub's package `kernels` puts this `forward` into modules of another class with the
    submodules `update`, `reset`, `output`, `warp.warp_gate` and `warp.conv` of the official one. It takes classes that
    have nothing but a `forward`. An instance of this class cannot be called, because it has no weights.

    Everywhere else `convert` is the better choice: it compares results before it exchanges anything, and the weights
    are packed once for all steps of a rollout, not at every step.

    Raises:
        ValueError: one of the convolutions has another form than the official one, or x, offset or trend has another
            shape.
        TypeError: x, offset or trend has another dtype.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self, x: Tensor, offset: Tensor, trend: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module: Any = self
        gates = (module.update, module.reset, module.output, module.warp.warp_gate)
        packed, motion = _pack(gates), module.update.out_channels
        check_map("x", x, module.warp.conv.in_channels)
        offset, trend = (
            as_motion(self, "offset", offset, x, motion),
            as_motion(self, "trend", trend, x, motion),
        )
        offset, trend, mask = ops.motion_gates(x, offset, trend, *packed, _ALPHA)
        return ops.offset_warp(x, offset, mask, module.warp.conv.weight), offset, trend


def _pack(gates: Sequence[Any]) -> PackedGates:
    """Return the packed weights of u, r, z and the mask.

    Raises:
        ValueError: a convolution does not keep the size of the map, has groups, dilation or no bias, or pads otherwise
            than with zeros; or their kernels differ in size.
    """
    size = gates[0].kernel_size
    wanted = {"kernel_size": size, "padding": (size[0] // 2, size[1] // 2), "stride": (1, 1), "dilation": (1, 1),
              "groups": 1, "padding_mode": "zeros", "bias": True}  # fmt: skip
    for name, gate in zip(("update", "reset", "output", "warp.warp_gate"), gates):
        form = {key: getattr(gate, key) for key in wanted} | {"bias": gate.bias is not None}
        for key, value in form.items():
            if value != wanted[key]:
                raise ValueError(
                    f"{name} has {key}={value!r}; it should have {key}={wanted[key]!r}, as in the official MotionGRU"
                )
    return packed_gates([gate.weight for gate in gates], [gate.bias for gate in gates])
