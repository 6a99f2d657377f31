"""The end of a MotionGRU's step, for the node of the step: the decoder's result Q, the output gate and the blend.

    X = s(g).A + (1 - s(g)).B,   g = W_g * [Q, H];   (A, B) is (H, Q) or (Q, H)

On GPUs a gate of 1x1 is one op with the decoder. Everywhere else the gate is a convolution of its own, and so is the
decoder, which belongs to the step's inner part there (motion_step.py).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ... import backends
from ...backends.layouts import new_image
from ...backends.registration.direct import run
from ..rollout import Rollout, SharedConvolution, add_in_place
from .motion_step import Laid, Packed

# The most channels that a block of CUDA's kernels holds, see csrc/cuda/decode_blend_bindings.cpp.
_MOST_CHANNELS_OF_CUDA = 256
# The most that a program of Triton's kernels holds, see backends/triton/decode_blend.py.
_MOST_CHANNELS_OF_TRITON = 64


class OutputGate:
    """The output gate as a convolution, and the blend.

    Args:
        kernels: the ops of the backend.
        gate: the convolution W_g.
        gates_maps: whether the output gate multiplies the maps themselves, and not what was decoded.
    """

    # Whether it computes Q as well.
    decodes = False

    def __init__(self, kernels: Any, gate: SharedConvolution, gates_maps: bool) -> None:
        self.kernels, self.gate, self.gates_maps = kernels, gate, gates_maps

    def forward(
        self, maps: Tensor, warped: Tensor, decoded: Tensor | None, laid: Laid
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return X, Q and g, from the maps, the warped features and Q, which is None where this `decodes`."""
        assert decoded is not None
        blend = self.gate.run(torch.cat([decoded, maps], dim=1), laid.gate_weight, laid.gate_bias)
        x = run(self.kernels.gated_blend.default, (blend, *self.sides(maps, decoded)))
        return x, decoded, blend

    def backward(
        self, ctx: Any, grad: Tensor, maps: Tensor, decoded: Tensor, blend: Tensor, laid: Laid, needs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of H and Q; leave what those of the gate's weights are made of, if it `needs` them."""
        channels, sides = maps.shape[1], self.sides(maps, decoded)
        grad_blend, *into_sides = run(self.kernels.gated_blend_backward.default, (grad, blend, *sides))
        grad_maps, grad_decoded = into_sides if self.gates_maps else reversed(into_sides)
        both = self._leave(ctx, grad_blend, maps, decoded, laid, needs)
        by_gate = self.gate.data_gradient(grad_blend, both, laid.gate_weight)
        add_in_place((grad_decoded, grad_maps), by_gate.split(channels, dim=1))
        return grad_maps, grad_decoded

    def sides(self, maps: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B of the blend."""
        return (maps, decoded) if self.gates_maps else (decoded, maps)

    def _leave(
        self, ctx: Any, grad_blend: Tensor, maps: Tensor, decoded: Tensor, laid: Laid, needs: Any
    ) -> Tensor:
        """Return [Q, H], whose values are there if the gate's weights need gradients."""
        if not any(needs):
            return new_image(maps, 2 * maps.shape[1])
        both = torch.cat([decoded, maps], dim=1)
        self.gate.leave(ctx, grad_blend, both, laid.gate_weight, needs)
        return both


class DecodingOutputGate(OutputGate, Packed):
    """The decoder, an output gate of 1x1 and the blend by the op `decode_blend` of CUDA or Triton."""

    decodes = True

    def __init__(self, active: Rollout, kernels: Any, gate: SharedConvolution, gates_maps: bool) -> None:
        OutputGate.__init__(self, kernels, gate, gates_maps)
        Packed.__init__(self)
        active.packed.append(self)

    @staticmethod
    def fits(maps: Tensor, gate_kernel_size: tuple[int, ...]) -> bool:
        """Return whether the kernels in force have the op for a gate of this size and such maps."""
        if gate_kernel_size != (1, 1) or not backends.runs_gpu_kernels(maps):
            return False
        is_cuda = backends.runs_cuda_kernels(maps)
        return maps.shape[1] <= (_MOST_CHANNELS_OF_CUDA if is_cuda else _MOST_CHANNELS_OF_TRITON)

    def forward(
        self, maps: Tensor, warped: Tensor, decoded: Tensor | None, laid: Laid
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = laid.decoder_weight, laid.decoder_bias, laid.gate_weight, laid.gate_bias
        arguments = (warped, maps, *weights, self._pack(laid, backward=False), self.gates_maps)
        return cast("tuple[Tensor, Tensor, Tensor]", run(self.kernels.decode_blend.default, arguments))

    def backward(
        self, ctx: Any, grad: Tensor, maps: Tensor, decoded: Tensor, blend: Tensor, laid: Laid, needs: Any
    ) -> tuple[Tensor, Tensor]:
        weights = laid.decoder_weight, laid.gate_weight
        arguments = (grad, maps, decoded, blend, *weights, self._pack(laid, backward=True), self.gates_maps)
        grad_maps, grad_decoded, grad_blend = run(self.kernels.decode_blend_backward.default, arguments)
        if any(needs):
            self._leave(ctx, grad_blend, maps, decoded, laid, needs)
        return grad_maps, grad_decoded

    def _pack(self, laid: Laid, *, backward: bool) -> Tensor:
        if backward not in self._packed:
            both = run(self.kernels.decode_blend_pack.default, (laid.decoder_weight, laid.gate_weight))
            self._packed.update(zip((False, True), both))
        return self._packed[backward]
