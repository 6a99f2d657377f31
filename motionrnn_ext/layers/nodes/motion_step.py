"""The part of a MotionGRU's step before its output gate, for the node of the step: encoder, gates, warp, decoder.

    E = Enc(H);   F', D', m = motion_gates(E, F, D);   Q = Dec(warp(E, F', m))

On the CPU it is one op each way. On a GPU the gates and the warp are one op between convolutions of PyTorch. The
gradients of the gates' weights are made once for many steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...backends.convolution import same
from ...backends.registration.direct import run
from ...backends.registration.wanted import Wanted
from ..rollout import (
    LeftGradients,
    Rollout,
    SharedConvolution,
    SharedWeights,
    SummedGradients,
    shared_tensors,
)


class Laid(NamedTuple):
    """The weights as the steps of a rollout read them, in the order of a node's arguments."""

    encoder_weight: Tensor
    encoder_bias: Tensor
    decoder_weight: Tensor
    decoder_bias: Tensor
    gate_weight: Tensor
    gate_bias: Tensor
    # The packed weights of the cell's gates, as in PackedGates, and that of the warp.
    x_weight: Tensor
    x_bias: Tensor
    state_weight: Tensor
    candidate_weight: Tensor
    warp_weight: Tensor

    @property
    def gates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the packed weights of the gates."""
        return self.x_weight, self.x_bias, self.state_weight, self.candidate_weight


class Kept(NamedTuple):
    """The maps of a step that backward reads."""

    features: Tensor
    mask: Tensor
    update: Tensor
    reset: Tensor
    candidate: Tensor
    warped: Tensor


class Gradients(NamedTuple):
    """The gradients that backward is given: those of Q, F' and D', and the part of H's that comes from elsewhere."""

    decoded: Tensor
    maps: Tensor
    offset: Tensor
    trend: Tensor


class Needs(NamedTuple):
    """The gradients that backward has to make: those of F and D, and those of each weight of gates and warp."""

    motion: bool
    weights: tuple[bool, ...]


class Packed:
    """The weights as kernels read them, packed at the first step of each direction."""

    def __init__(self) -> None:
        self._packed: dict[bool, Tensor] = {}

    def free_forward(self) -> None:
        """Free what only forward reads; a later call packs it again."""
        self._packed.pop(False, None)


def _gates_gradients(kernels: Any, kernel_size: int) -> LeftGradients:
    """Return what computes the gradients of the gates' weights.

    It must not hold the step: the step's laid-out weights hold it by their autograd node, and Python's garbage
    collector does not see such a cycle.
    """
    return LeftGradients(
        lambda *maps: run(kernels.motion_gates_weight_gradients.default, (*maps, kernel_size))
    )


class StepOfOneOp(Packed):
    """The step by the op `motion_step` of the CPU."""

    def __init__(
        self,
        active: Rollout,
        kernels: Any,
        dtype: torch.dtype,
        alpha: float,
        max_offset: float,
        *weights: Tensor,
    ) -> None:
        super().__init__()
        self.kernels, self.alpha, self.max_offset = kernels, alpha, max_offset
        *gates, warp_weight = weights
        self.of_gates, self.of_warp = _gates_gradients(kernels, gates[0].shape[2]), SummedGradients()
        of_warp = shared_tensors(self.of_warp, dtype, warp_weight)
        self.laid = (*shared_tensors(self.of_gates, dtype, *gates), *of_warp)
        active.packed.append(self)

    def forward(
        self, maps: Tensor, offset: Tensor, trend: Tensor, laid: Laid
    ) -> tuple[Tensor, Tensor, Tensor, Kept]:
        """Return Q, F', D' and what backward reads."""
        weights = self._weights(laid)
        packed = self._pack(weights, backward=False)
        arguments = (maps, offset, trend, *weights, packed, self.alpha, self.max_offset)
        decoded, new_offset, new_trend, *kept = run(self.kernels.motion_step.default, arguments)
        return decoded, new_offset, new_trend, Kept(*kept)

    def backward(
        self,
        ctx: Any,
        grads: Gradients,
        offset: Tensor,
        new_offset: Tensor,
        kept: Kept,
        laid: Laid,
        needs: Needs,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of H, F, D and E, and leave what the gradients of weights are made of."""
        weights = self._weights(laid)
        packed = self._pack(weights, backward=True)
        wanted = (Wanted.MOTION if needs.motion else 0) | (Wanted.WEIGHTS if any(needs.weights) else 0)
        numbers = self.alpha, self.max_offset, int(wanted)
        to_maps, to_offset, to_trend, to_features, to_logits, to_warp = run(
            self.kernels.motion_step_backward.default,
            (*grads, offset, *kept[:-1], new_offset, *weights, packed, *numbers),
        )
        self.of_gates.leave(ctx, (to_logits, kept.features, offset, kept.reset), needs.weights[:4])
        self.of_warp.add(ctx, [to_warp], needs.weights[4:])
        return to_maps, to_offset, to_trend, to_features

    @staticmethod
    def _weights(laid: Laid) -> list[Tensor]:
        """Return the weights in the op's order."""
        biases = laid.encoder_bias, laid.decoder_bias
        return [laid.encoder_weight, *laid.gates, laid.warp_weight, laid.decoder_weight, *biases]

    def _pack(self, weights: list[Tensor], *, backward: bool) -> Tensor:
        if backward not in self._packed:
            self._packed[backward] = run(self.kernels.motion_step_pack.default, (weights, backward))
        return self._packed[backward]


class StepOfGpu(Packed):
    """The step by the op `gated_warp` of CUDA or Triton, between PyTorch's convolutions."""

    def __init__(
        self,
        active: Rollout,
        kernels: Any,
        dtype: torch.dtype,
        alpha: float,
        max_offset: float,
        maps: Tensor,
        encoder: SharedConvolution,
        decoder: SharedConvolution,
        *weights: Tensor,
        decodes: bool,
    ) -> None:
        super().__init__()
        self.kernels, self.alpha, self.max_offset = kernels, alpha, max_offset
        self.encoder, self.decoder, self.decodes, self.dtype = encoder, decoder, decodes, dtype
        x_weight, x_bias, state_weight, candidate_weight, warp_weight = weights
        shared = [
            SharedWeights(same(weight), maps, dtype, weight, bias)
            for weight, bias in ((x_weight, x_bias), (state_weight, None), (candidate_weight, None))
        ]
        self.of_x, self.of_state, self.of_candidate = (weights.conv for weights in shared)
        self.sums = SummedGradients()
        of_warp = shared_tensors(self.sums, dtype, warp_weight)
        self.laid = (*(t for weights in shared for t in weights.laid), *of_warp)
        active.packed.append(self)

    def forward(
        self, maps: Tensor, offset: Tensor, trend: Tensor, laid: Laid
    ) -> tuple[Tensor | None, Tensor, Tensor, Kept]:
        """Return Q, F', D' and what backward reads; None for Q where the output gate decodes."""
        features = self.encoder.run(maps, laid.encoder_weight, laid.encoder_bias)
        packed = self._pack(laid, backward=False)
        weights = (*laid.gates, laid.warp_weight, packed, self.alpha, self.max_offset)
        warped, new_offset, new_trend, mask, update, reset, candidate = run(
            self.kernels.gated_warp.default, (features, offset, trend, *weights)
        )
        decoded = self.decoder.run(warped, laid.decoder_weight, laid.decoder_bias) if self.decodes else None
        return decoded, new_offset, new_trend, Kept(features, mask, update, reset, candidate, warped)

    def backward(
        self,
        ctx: Any,
        grads: Gradients,
        offset: Tensor,
        new_offset: Tensor,
        kept: Kept,
        laid: Laid,
        needs: Needs,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of H, F, D and E, and leave what the gradients of weights are made of."""
        features, motion = kept.features, offset.shape[1]
        to_warped = self.decoder.data_gradient(grads.decoded, kept.warped, laid.decoder_weight)
        of_weights = int(Wanted.WEIGHTS) if any(needs.weights) else 0
        wanted = int(Wanted.X) | of_weights | (int(Wanted.MOTION) if needs.motion else 0)
        to_features, to_offset, to_trend, to_logits, reset_offset, to_warp_weight = run(
            self.kernels.gated_warp_backward.default,
            (
                *(to_warped, grads.offset, grads.trend, features, offset, *laid.gates, laid.warp_weight),
                *(kept.mask, kept.update, kept.reset, kept.candidate, new_offset),
                *(self._pack(laid, backward=True), self.alpha, self.max_offset, wanted),
                torch.are_deterministic_algorithms_enabled(),
            ),
        )
        if of_weights:
            to_gates, to_candidate = to_logits[:, : 2 * motion], to_logits[:, 2 * motion : 3 * motion]
            of_x, of_state, of_candidate = needs.weights[:2], needs.weights[2:3], needs.weights[3:4]
            self.of_x.leave(ctx, to_logits, features, laid.x_weight, of_x)
            self.of_state.leave(ctx, to_gates, offset.to(self.dtype), laid.state_weight, of_state)
            self.of_candidate.leave(ctx, to_candidate, reset_offset, laid.candidate_weight, of_candidate)
            self.sums.add(ctx, [to_warp_weight], needs.weights[4:])
        to_maps = grads.maps.add_(self.encoder.data_gradient(to_features, grads.maps, laid.encoder_weight))
        return to_maps, to_offset, to_trend, to_features

    def _pack(self, laid: Laid, *, backward: bool) -> Tensor:
        if backward not in self._packed:
            both = run(self.kernels.motion_gates_pack.default, (*laid.gates, laid.warp_weight))
            self._packed.update(zip((False, True), both))
        return self._packed[backward]
