"""The functional API: six differentiable ops, one file per stem, and two that join others.

`motion_gates` joins the MotionGRU's pointwise ops and the convolutions between them; `motion_warp` joins
`motion_update` and `offset_warp`.

Notation, used in every docstring and shape comment of the package:

    B batch   T time   C channels   H, W map size
    k neighbourhood (3)   K = k*k taps   M = 2K motion channels
    n a tap, n = a*k + b for row a and column b of the neighbourhood
    p_n = (a - (k-1)/2, b - (k-1)/2), the tap's place in the neighbourhood, in pixels
    F offset (the motion filter): M channels, K row offsets then K column offsets, in pixels
    D trend (the momentum): as F
    s() sigmoid   . elementwise product   * convolution   *S any trailing sizes

Every op takes logits and applies the activations itself, so that one launch each way is enough and backward needs only
the op's inputs. Where an op returns a new offset, backward also needs that, to see where it is at its bound;
`motion_gates` also keeps the logits that it computes.

Features (x, logits, gates, weight) share one dtype: float32, bfloat16, float16 or float64. Motion state
(offset, trend), coordinates and all arithmetic are float32, or float64 with float64 features. Under autocast the ops
cast features to autocast's dtype and motion state to float32 themselves.

Wrong ranks, sizes and devices raise ValueError, wrong dtypes TypeError. The message names the argument, says what it is
and what it should be.
"""

from .motion_gates import motion_gates
from .motion_gru import motion_reset, motion_update
from .motion_warp import motion_warp
from .offset_warp import offset_warp
from .recurrent_gates import gated_blend, highway_output, memory_update

__all__ = [
    "gated_blend",
    "highway_output",
    "memory_update",
    "motion_gates",
    "motion_reset",
    "motion_update",
    "motion_warp",
    "offset_warp",
]
