"""CSI and FAR: scores of the prediction that a value reaches a threshold.

A pixel p stands for the value v = scale * p + offset (`Values`). An event is v >= threshold. TP is the number of pixels
with an event in both frames, FP with one in the prediction alone, FN with one in the truth alone.

    CSI = TP / (TP + FP + FN)      higher is better
    FAR = FP / (TP + FP)           lower is better

Pixels whose true value is missing (nan) count as none of these. If a prediction is nan although the true value is
known, CSI and FAR of its lead time are nan, and so are the means over lead times.

Both conventions are reported:

    pooled     TP, FP and FN are summed over the test set for each lead time; then come CSI and FAR, then the mean
               over lead times. CSI is nan at a lead time without an event in either frame, FAR at one without a
               predicted event; both are left out of the mean. The batch size does not matter.
    per_batch  CSI and FAR of each batch's pooled pixels for each lead time, 0 without events, are averaged over
               batches, and a short last batch has the weight of the others. This is the official MotionRNN
               trainer's convention. It depends on the batch size, and batches without events lower it. A batch whose
               true values of a lead time are all missing is left out at that lead time; a lead time without any
               other batch is nan and left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..layers.arguments import is_whole
from ..pixels import as_floats, check_range, check_units
from .frames import check_shapes, to_bytes


@dataclass(frozen=True)
class Values:
    """The physical values that pixels stand for: value = scale * p + offset, p in [0, 1].

    Args:
        scale: the value of p = 1 minus that of p = 0, positive, in the data's unit.
        offset: the value of p = 0, in the data's unit.
        bytes: whether p is first truncated to a byte, floor(255 p) / 255. uint8 frames are always taken as bytes.

    Raises:
        ValueError: the scale is not positive, or a number is not finite.
    """

    scale: float
    offset: float = 0.0
    bytes: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be a positive number; got {self.scale!r}")
        if not math.isfinite(self.offset):
            raise ValueError(f"offset must be a finite number; got {self.offset!r}")

    def __call__(self, frames: Tensor) -> Tensor:
        """Convert frames of any shape, floats clipped to [0, 1] or uint8, to float64 values in the data's unit."""
        if self.bytes or frames.dtype == torch.uint8:
            # scale / 255 comes first, so that published thresholds that are whole bytes are met exactly.
            return to_bytes(frames).double() * (self.scale / 255) + self.offset
        return as_floats(frames, "predictions").double().clamp(0, 1) * self.scale + self.offset


PRESETS = {
    # (byte + 30) / 2: the official trainer's radar echo and Guangzhou.
    "echo": Values(127.5, 15.0, bytes=True),
    # dBZ of the Shanghai radar data, by DiffCast's scale.
    "shanghai": Values(90.0),
    # dBZ of HKO-7.
    "hko7": Values(70.0, -10.0),
}
PRESET_THRESHOLDS = {"echo": (20.0, 30.0, 40.0, 50.0), "shanghai": (20.0, 30.0, 35.0, 40.0)}


def event_counts(prediction: Tensor, truth: Tensor, thresholds: Sequence[float], values: Values) -> Tensor:
    """Count the true positives, false positives and false negatives of every frame at thresholds.

    Args:
        prediction: (B, L, C, H, W), floats or uint8; nan is below every threshold.
        truth: (B, L, C, H, W), floats in [0, 1] or uint8; a nan is missing, and its pixel is not counted.
        thresholds: in the unit of `values`.
        values: the physical values of the pixels.

    Returns:
        TP, FP, FN as int64 (3, thresholds, B, L).

    Raises:
        ValueError: the frames have other shapes.
        TypeError: they are no tensors.
    """
    check_shapes(prediction, truth)
    guess, fact, known = values(prediction), values(truth), ~truth.isnan()
    counts = []
    for threshold in thresholds:
        predicted, observed = guess >= threshold, fact >= threshold
        kinds = (predicted & observed, predicted & ~observed & known, ~predicted & observed)
        # (3, B, L)
        counts.append(torch.stack([kind.sum((2, 3, 4)) for kind in kinds]))
    return torch.stack(counts, dim=1)


def csi(counts: Tensor) -> Tensor:
    """Return CSI of TP, FP, FN (3, *S) as float64 (*S); nan where all three are 0."""
    hits, false_alarms, misses = counts.double()
    return hits / (hits + false_alarms + misses)


def far(counts: Tensor) -> Tensor:
    """Return FAR of TP, FP, FN (3, *S) as float64 (*S); nan where no event is predicted."""
    hits, false_alarms, _ = counts.double()
    return false_alarms / (hits + false_alarms)


class EventMetrics(Metric):
    """A torchmetrics Metric that accumulates CSI and FAR at thresholds over batches and processes.

        metrics = EventMetrics(n_lead=10, thresholds=(20, 30, 40, 50), values=PRESETS["echo"])
        for ...:
            metrics.update(prediction, truth)    # (B, L, C, H, W) each, in [0, 1] or uint8
        result = metrics.compute()

    `compute()` returns plain numbers: "csi_20", "far_20" and so on for each threshold, pooled and averaged over lead
    times; "per_lead", the same names with L numbers each; "per_batch", a dict of the same names and "per_lead" by that
    convention; "counts", for each threshold "tp", "fp", "fn" with L numbers each; "batches", the number of updates;
    "missing", the share of true values that are missing. A score is nan if there is no event to score, and if a
    prediction is nan where the true value is known.

    Args:
        n_lead: L, the number of lead times.
        thresholds: one or more different numbers, in the unit of `values`.
        values: the physical values of the pixels.

    Raises:
        ValueError: a bad argument; an update with other shapes or with true frames outside of [0, 1]; a compute before
            any update.
        TypeError: `values` is not a `Values`, or an update gets no tensors.
    """

    full_state_update = False
    # (3, thresholds, L) int64: TP, FP, FN.
    counts: Tensor
    # (2, thresholds, L) float64: CSI and FAR, summed over batches.
    batch_sums: Tensor
    batches: Tensor
    # (L,) int64: the batches with a known true value.
    known_batches: Tensor
    # (L,) int64: the predictions that are nan where the true value is known.
    lost: Tensor
    # (2,) int64: the missing true values, and all true values.
    n_values: Tensor

    def __init__(self, n_lead: int, thresholds: Sequence[float], values: Values, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not is_whole(n_lead) or n_lead < 1:
            raise ValueError(f"n_lead must be a positive integer; got {n_lead!r}")
        if not isinstance(values, Values):
            raise TypeError(f"values is {values!r}; it should be a Values, such as PRESETS['shanghai']")
        self.n_lead, self.values = int(n_lead), values
        self.thresholds = checked_thresholds(thresholds)
        size = (len(self.thresholds), n_lead)
        self.add_state("counts", torch.zeros(3, *size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("batch_sums", torch.zeros(2, *size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name, length in {"known_batches": n_lead, "lost": n_lead, "n_values": 2}.items():
            self.add_state(name, torch.zeros(length, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add a batch: (B, L, C, H, W) each, floats or uint8."""
        check_shapes(prediction, truth, self.n_lead)
        check_range(truth, "true frames")
        check_units(prediction)
        if not len(prediction):
            return
        counts = event_counts(prediction.detach(), truth.detach(), self.thresholds, self.values).sum(2)
        counts = counts.to(self.counts)
        self.counts += counts
        self.batch_sums += torch.stack([csi(counts), far(counts)]).nan_to_num(0)
        self.batches += 1
        missing = truth.isnan()
        self.known_batches += (~missing).transpose(0, 1).flatten(1).any(1).to(self.known_batches)
        self.lost += (prediction.isnan() & ~missing).sum((0, 2, 3, 4)).to(self.lost)
        self.n_values += torch.tensor([int(missing.sum()), missing.numel()]).to(self.n_values)

    def compute(self) -> dict[str, Any]:
        """Return the scores of all batches, see the class."""
        if not self.batches:
            raise ValueError("there is nothing to average: call update before compute")
        pooled = self._named(torch.stack([csi(self.counts), far(self.counts)]))
        counts = {
            f"{threshold:g}": dict(zip(("tp", "fp", "fn"), kinds))
            for threshold, kinds in zip(self.thresholds, self.counts.transpose(0, 1).tolist())
        }
        per_batch = self._named(self.batch_sums / self.known_batches)
        n_missing, n_values = self.n_values.tolist()
        about = {"batches": int(self.batches), "missing": n_missing / n_values if n_values else 0.0}
        return {**pooled, "per_batch": per_batch, "counts": counts, **about}

    def _named(self, scores: Tensor) -> dict[str, Any]:
        """Return the means over lead times of CSI and FAR (2, thresholds, L) by name, and "per_lead"."""
        scores = scores.masked_fill(self.lost > 0, math.nan)
        rows = {
            f"{kind}_{threshold:g}": scores[k, i]
            for k, kind in enumerate(("csi", "far"))
            for i, threshold in enumerate(self.thresholds)
        }
        means = {name: math.nan if self.lost.any() else row.nanmean().item() for name, row in rows.items()}
        return {**means, "per_lead": {name: row.tolist() for name, row in rows.items()}}


def checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return thresholds as floats; raise a ValueError unless they are one or more different, finite numbers."""
    try:
        found = () if isinstance(thresholds, str) else tuple(float(threshold) for threshold in thresholds)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(map(math.isfinite, found)) or len({f"{t:g}" for t in found}) < len(found):
        raise ValueError(f"thresholds must be one or more different, finite numbers; got {thresholds!r}")
    return found
