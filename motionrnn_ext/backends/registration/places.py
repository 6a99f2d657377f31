"""Where the arguments of the ops with weights stand, of which sums over the batch and FLOPs depend."""

from __future__ import annotations

from typing import Any, NamedTuple

WEIGHTS = 8  # the bit of `wanted` for gradients of weights


class Places(NamedTuple):
    x: int
    weights: tuple[int, ...]
    wanted: int | None = None  # of a backward: bits of the gradients to make
    needs: tuple[int, ...] = ()  # by weight, the bits that need the gradient of what it is multiplied with

    def wants_weights(self, arguments: Any) -> bool:
        return self.wanted is not None and bool(arguments[self.wanted] & WEIGHTS)

    def products(self, arguments: Any) -> list[int]:
        """How many matrix products each weight takes part in."""
        if self.wanted is None:
            return [1] * len(self.weights)
        wanted = arguments[self.wanted]
        return [bool(wanted & bits) + bool(wanted & WEIGHTS) for bits in self.needs]


PLACES = {
    "offset_warp": Places(x=0, weights=(3,)),
    "motion_warp": Places(x=0, weights=(6,)),
    "motion_gates": Places(x=0, weights=(3, 4, 5, 6)),
    "offset_warp_backward": Places(x=1, weights=(4,), wanted=5, needs=(7,)),
    "motion_warp_backward": Places(x=3, weights=(9,), wanted=12, needs=(7,)),
    "motion_gates_backward": Places(x=3, weights=(5, 6, 7, 8), wanted=15, needs=(1, 0, 2, 11)),
}
