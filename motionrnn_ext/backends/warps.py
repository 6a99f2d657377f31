"""Where the warps' arguments stand, of which sums over the batch and FLOPs depend."""

from __future__ import annotations

from typing import Any, NamedTuple


class Places(NamedTuple):
    x: int
    weight: int
    wanted: int | None = None  # of a backward: bits of the gradients to make

    def wants_weight(self, arguments: Any) -> bool:
        return self.wanted is not None and bool(arguments[self.wanted] & 8)

    def wants_samples(self, arguments: Any) -> bool:
        return self.wanted is not None and bool(arguments[self.wanted] & 7)


PLACES = {
    "offset_warp": Places(x=0, weight=3),
    "motion_warp": Places(x=0, weight=6),
    "offset_warp_backward": Places(x=1, weight=4, wanted=5),
    "motion_warp_backward": Places(x=3, weight=9, wanted=11),
}
