"""CSI and FAR: how well a map predicts where a value reaches a threshold.

A pixel p stands for the value v = scale * p + offset (`Values`). An event is v >= threshold; of a map's pixels
TP are events in both maps, FP in the prediction alone, FN in the truth alone.

    CSI = TP / (TP + FP + FN)      higher is better
    FAR = FP / (TP + FP)           lower is better

Pixels whose true value is missing (nan) count as none of these. A prediction that is nan where the true value is known
makes CSI and FAR of its lead time nan, and so the means over lead times.

Two conventions, both reported:

    pooled     TP, FP, FN are summed over the test set for each lead time, then CSI and FAR are taken, then the mean
               over lead times. A lead time with no event in either map has no CSI, one with no predicted event no
               FAR: nan, left out of the mean. Batch sizes do not matter.
    per_batch  CSI and FAR of each batch's pooled pixels for each lead time, 0 without events, averaged over batches,
               a short last one counting as one: the official MotionRNN trainer's. Depends on the batch size, and
               batches without events pull it down. A batch whose true values of a lead time are all missing is left
               out there; a lead time without any other batch is nan, left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..pixels import as_floats, check_range, check_units
from .frames import check_shapes, to_bytes


@dataclass(frozen=True)
class Values:
    """What a pixel stands for: value = scale * p + offset, p in [0, 1].

    Args:
        scale: the value of p = 1 less that of p = 0, positive, in the data's unit.
        offset: the value of p = 0.
        bytes: whether p is first truncated to a byte, floor(255 p) / 255; frames that are uint8 always are bytes.

    Raises:
        ValueError: a scale that is not positive, a number that is not finite.
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
        """Frames in [0, 1], or bytes, of any shape -> values, float64; what leaves [0, 1] is clipped."""
        if self.bytes or frames.dtype == torch.uint8:
            # scale / 255 first: exact where the published thresholds are whole bytes
            return to_bytes(frames).double() * (self.scale / 255) + self.offset
        return as_floats(frames, "predictions").double().clamp(0, 1) * self.scale + self.offset


PRESETS = {
    "echo": Values(
        127.5, 15.0, bytes=True
    ),  # (byte + 30) / 2: the official trainer's radar echo and Guangzhou
    "shanghai": Values(90.0),  # dBZ of the Shanghai radar data, as DiffCast takes it
    "hko7": Values(70.0, -10.0),  # dBZ of HKO-7
}
PRESET_THRESHOLDS = {"echo": (20.0, 30.0, 40.0, 50.0), "shanghai": (20.0, 30.0, 35.0, 40.0)}


def event_counts(prediction: Tensor, truth: Tensor, thresholds: Sequence[float], values: Values) -> Tensor:
    """(B, L, C, H, W) each -> TP, FP, FN as (3, thresholds, B, L) int64. nan in a prediction is below every
    threshold; a true nan is missing, and its pixel counts as none."""
    guess, fact, known = values(prediction), values(truth), ~truth.isnan()
    counts = []
    for threshold in thresholds:
        predicted, observed = guess >= threshold, fact >= threshold
        kinds = (predicted & observed, predicted & ~observed & known, ~predicted & observed)
        counts.append(torch.stack([kind.sum((2, 3, 4)) for kind in kinds]))  # (3, B, L)
    return torch.stack(counts, dim=1)


def csi(counts: Tensor) -> Tensor:
    """TP, FP, FN as (3, *S) -> (*S) float64; nan where all three are 0."""
    hits, false_alarms, misses = counts.double()
    return hits / (hits + false_alarms + misses)


def far(counts: Tensor) -> Tensor:
    """TP, FP, FN as (3, *S) -> (*S) float64; nan where nothing is predicted."""
    hits, false_alarms, _ = counts.double()
    return false_alarms / (hits + false_alarms)


class EventMetrics(Metric):
    """Accumulates CSI and FAR at thresholds over batches (and, as a torchmetrics Metric, over processes).

        metrics = EventMetrics(n_lead=10, thresholds=(20, 30, 40, 50), values=PRESETS["echo"])
        for ...:
            metrics.update(prediction, truth)    # (B, L, C, H, W) each, in [0, 1] or uint8
        result = metrics.compute()

    `compute()` gives plain numbers: "csi_20", "far_20", ... for each threshold, pooled and averaged over lead times;
    "per_lead", the same names with L numbers each; "per_batch", a dict of the same names and "per_lead" by that
    convention; "counts", for each threshold "tp", "fp", "fn" with L numbers each; "batches"; "missing", the share of
    the true values that are. nan: see the module.

    Args:
        n_lead: L.
        thresholds: in the unit of `values`.
        values: what a pixel stands for.

    Raises:
        ValueError: a bad argument; an update with other shapes, or with true frames out of [0, 1]; a compute before
            any update. TypeError: values that are no `Values`, no tensors.
    """

    full_state_update = False
    counts: Tensor  # (3, thresholds, L) int64: TP, FP, FN
    batch_sums: Tensor  # (2, thresholds, L) float64: CSI, FAR, summed over batches
    batches: Tensor
    known_batches: Tensor  # (L,) int64: batches with a true value that is known
    lost: Tensor  # (L,) int64: predictions that are nan where the true value is known
    n_values: Tensor  # (2,) int64: true values that are missing, and all

    def __init__(self, n_lead: int, thresholds: Sequence[float], values: Values, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(n_lead, int) or n_lead < 1:
            raise ValueError(f"n_lead must be a positive integer; got {n_lead!r}")
        if not isinstance(values, Values):
            raise TypeError(f"values is {values!r}; it should be a Values, such as PRESETS['shanghai']")
        self.n_lead, self.values = n_lead, values
        self.thresholds = checked_thresholds(thresholds)
        size = (len(self.thresholds), n_lead)
        self.add_state("counts", torch.zeros(3, *size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("batch_sums", torch.zeros(2, *size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name, length in {"known_batches": n_lead, "lost": n_lead, "n_values": 2}.items():
            self.add_state(name, torch.zeros(length, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
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
        """(2, thresholds, L) of CSI and FAR -> the means over lead times by name, and "per_lead"."""
        scores = scores.masked_fill(self.lost > 0, math.nan)
        rows = {
            f"{kind}_{threshold:g}": scores[k, i]
            for k, kind in enumerate(("csi", "far"))
            for i, threshold in enumerate(self.thresholds)
        }
        means = {name: math.nan if self.lost.any() else row.nanmean().item() for name, row in rows.items()}
        return {**means, "per_lead": {name: row.tolist() for name, row in rows.items()}}


def checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    try:
        found = () if isinstance(thresholds, str) else tuple(float(threshold) for threshold in thresholds)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(map(math.isfinite, found)) or len({f"{t:g}" for t in found}) < len(found):
        raise ValueError(f"thresholds must be one or more different, finite numbers; got {thresholds!r}")
    return found
