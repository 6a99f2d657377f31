"""FSS: a score of events that forgives small displacements, by the share of events in windows.

At a scale n the share of events in the window of n x n pixels around each pixel is compared (Roberts and Lean, Monthly
Weather Review 136, 2008):

    FSS_n = 1 - sum (F - O)^2 / (sum F^2 + sum O^2)      from 0 to 1, higher is better

F is the share of predicted events in the window, O that of observed ones. The sums go over all pixels of all clips at a
lead time. A window of 1 compares pixel by pixel; one that is much larger than the frame compares the numbers of events.

What lies outside of the frame is no event. A pixel whose true value is missing (nan) is no event in either, so that
what is predicted there does not matter, and the window around it is left out of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..layers.arguments import is_whole

# The scales that are measured unless others are named, in pixels.
FSS_SCALES = (3, 9, 27)


def event_fractions(predicted: Tensor, observed: Tensor, known: Tensor, scales: Sequence[int]) -> Tensor:
    """Return the two sums of FSS for every frame and scale.

    Args:
        predicted: (B, L, C, H, W), whether an event is predicted.
        observed: (B, L, C, H, W), whether an event is observed.
        known: (B, L, C, H, W), whether the true value is known.
        scales: the sides of the windows in pixels, odd.

    Returns:
        sum (F - O)^2 and sum F^2 + sum O^2, (2, scales, B, L), float64.
    """
    both = torch.stack([predicted & known, observed & known]).double().flatten(0, 2)
    sums = []
    for scale in scales:
        across = avg_pool2d(both, (1, scale), stride=1, padding=(0, scale // 2))
        shares = avg_pool2d(across, (scale, 1), stride=1, padding=(scale // 2, 0))
        guess, fact = (shares.view(2, *predicted.shape) * known).unbind()
        terms = (guess - fact).square(), guess.square() + fact.square()
        sums.append(torch.stack([term.sum((2, 3, 4)) for term in terms]))
    return torch.stack(sums, dim=1)


def fss(sums: Tensor) -> Tensor:
    """Return FSS of the sums of `event_fractions` (2, *S) as float64 (*S); nan without an event in either."""
    errors, references = sums
    return 1 - errors / references


def checked_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """Return scales as ints; raise a ValueError unless they are different, odd and positive."""
    good = isinstance(scales, Sequence) and all(is_whole(n) and n >= 1 and n % 2 == 1 for n in scales)
    if not good or len(set(scales)) < len(scales):
        raise ValueError(f"the scales of FSS must be different, odd numbers of pixels; got {scales!r}")
    return tuple(map(int, scales))
