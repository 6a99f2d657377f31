"""The choice of clips in which something happens: wet ones, and those with motion."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import Subset

from ..caller import stacklevel_of_user

if TYPE_CHECKING:
    from .registry import ClipDataset


def wet_share(clip: Tensor, above: float) -> float:
    """Return the share of a clip's known values that are above a value in [0, 1]; 0 if all are missing."""
    known = clip[~clip.isnan()]
    return float((known > above).float().mean()) if known.numel() else 0.0


def mean_motion(clip: Tensor) -> float:
    """Return the mean absolute difference between successive frames (T, C, H, W) where both are known; else 0."""
    change = clip.diff(dim=0).abs()
    known = change[~change.isnan()]
    return float(known.mean()) if known.numel() else 0.0


def chosen(
    clips: ClipDataset,
    name: str,
    *,
    min_wet: float | None = None,
    wet_above: float = 0.0,
    min_motion: float | None = None,
) -> ClipDataset:
    """Return the clips in which enough happens. Every clip is read once; a warning says how many are kept.

    All frames of a clip count, those to predict included. A choice of test clips therefore depends on what is to be
    predicted: scores on chosen clips compare with scores on the same choice alone.

    Args:
        name: the clips' name in messages.
        min_wet: the smallest `wet_share`; None keeps dry clips.
        wet_above: the value, from 0 to 1, above which a pixel is wet.
        min_motion: the smallest `mean_motion`; None keeps clips at rest.

    Raises:
        ValueError: a share or a value is not in [0, 1], or no clip is left.
    """
    limits = {"min_wet": min_wet, "wet_above": wet_above, "min_motion": min_motion}
    for limit, value in limits.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{limit} must be from 0 to 1; got {value}")
    if min_wet is None and min_motion is None:
        return clips
    found = [
        (wet_share(clip, wet_above), mean_motion(clip)) for clip in map(clips.__getitem__, range(len(clips)))
    ]
    kept = [
        i for i, (wet, motion) in enumerate(found) if wet >= (min_wet or 0) and motion >= (min_motion or 0)
    ]
    rules = [
        f"{value:g} {what}"
        for value, what in (
            (min_wet, f"of the pixels above {wet_above:g} (min_wet)"),
            (min_motion, "of change between frames (min_motion)"),
        )
        if value is not None
    ]
    if not kept:
        wettest, fastest = (max(values, default=0.0) for values in zip(*found))
        raise ValueError(
            f"{name}: no clip of {len(clips)} has at least {' and '.join(rules)}; the highest share is {wettest:.4g}, "
            f"the highest change {fastest:.4g}"
        )
    warnings.warn(
        f"{name}: {len(kept)} of {len(clips)} clips are kept, those with at least {' and '.join(rules)}",
        stacklevel=stacklevel_of_user(),
    )
    return Subset(clips, kept)  # type: ignore[arg-type]
