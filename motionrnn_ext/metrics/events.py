"""POD, FAR, CSI, HSS, bias and FSS: scores of the prediction that a value reaches a threshold.

A pixel p stands for the value v = scale * p + offset (`Values`). An event is v >= threshold. TP is the number of pixels
with an event in both frames, FP with one in the prediction alone, FN with one in the truth alone, TN with none.

    POD  = TP / (TP + FN)                         higher is better; the share of observed events that is predicted
    FAR  = FP / (TP + FP)                         lower is better
    CSI  = TP / (TP + FP + FN)                    higher is better
    HSS  = 2 (TP TN - FP FN) / ((TP + FN)(FN + TN) + (TP + FP)(FP + TN))
                                                  higher is better, 0 is chance; Heidke's score, or Cohen's kappa
    bias = (TP + FP) / (TP + FN)                  best at 1; below it, too few events are predicted
    FSS                                           higher is better; events in windows, see `fractions`

Pixels whose true value is missing (nan) count as none of these. If a prediction is nan although the true value is
known, all scores of its lead time are nan, and so are the means over lead times.

Two conventions are reported, the second for CSI and FAR alone:

    pooled     TP, FP, FN and TN are summed over the test set for each lead time; then come the scores, then their mean
               over lead times. A score is nan at a lead time where its denominator is 0, such as CSI without an event
               in either frame, and FAR without a predicted event; it is left out of the mean. The batch size does not
               matter.
    per_batch  CSI and FAR of each batch's pooled pixels for each lead time, 0 without events, are averaged over
               batches, and a short last batch has the weight of the others. This is the official MotionRNN
               trainer's convention. It depends on the batch size, and batches without events lower it. A batch whose
               true values of a lead time are all missing is left out at that lead time; a lead time without any
               other batch is nan and left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..layers.arguments import is_whole
from ..pixels import as_floats, check_range, check_units
from .contingency import PER_BATCH, SCORES
from .fractions import checked_scales, event_fractions, fss
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
    """Count the true positives, false positives, false negatives and true negatives of every frame at thresholds.

    Args:
        prediction: (B, L, C, H, W), floats or uint8; nan is below every threshold.
        truth: (B, L, C, H, W), floats in [0, 1] or uint8; a nan is missing, and its pixel is not counted.
        thresholds: in the unit of `values`.
        values: the physical values of the pixels.

    Returns:
        TP, FP, FN, TN as int64 (4, thresholds, B, L).

    Raises:
        ValueError: the frames have other shapes.
        TypeError: they are no tensors.
    """
    check_shapes(prediction, truth)
    counts = []
    for predicted, observed, known in _events(prediction, truth, thresholds, values):
        kinds = (
            predicted & observed,
            predicted & ~observed & known,
            ~predicted & observed,
            ~predicted & ~observed & known,
        )
        # (4, B, L)
        counts.append(torch.stack([kind.sum((2, 3, 4)) for kind in kinds]))
    return torch.stack(counts, dim=1)


def _events(
    prediction: Tensor, truth: Tensor, thresholds: Sequence[float], values: Values
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield for every threshold where an event is predicted, where one is observed, and where the truth is known."""
    guess, fact, known = values(prediction), values(truth), ~truth.isnan()
    # The tolerance is above float32's rounding of a pixel, 6e-8, so that 45 dBZ, stored as 45 / 70, reaches 45 dBZ.
    tolerance = 1e-6 * values.scale
    for threshold in thresholds:
        yield guess >= threshold - tolerance, fact >= threshold - tolerance, known


class EventMetrics(Metric):
    """A torchmetrics Metric that accumulates the scores of events at thresholds over batches and processes.

        metrics = EventMetrics(n_lead=10, thresholds=(20, 30, 40, 50), values=PRESETS["echo"], scales=(3, 9))
        for ...:
            metrics.update(prediction, truth)    # (B, L, C, H, W) each, in [0, 1] or uint8
        result = metrics.compute()

    `compute()` returns plain numbers: "pod_20", "far_20", "csi_20", "hss_20", "bias_20", "fss_20_3px" and so on for
    each threshold and scale, pooled and averaged over lead times; "per_lead", the same names with L numbers each, and
    "observed_20", the pixels with an observed event; "per_batch", a dict of CSI and FAR and their "per_lead" by that
    convention; "counts", for each threshold "tp", "fp", "fn", "tn" with L numbers each; "batches", the number of
    updates; "missing", the share of true values that are missing. A score is nan if there is no event to score, and if
    a prediction is nan where the true value is known. With `per_clip` there is "per_clip": for each threshold
    "csi_20", a list with the TP, FP and FN of every clip, (N, 3, L).

    Args:
        n_lead: L, the number of lead times.
        thresholds: one or more different numbers, in the unit of `values`.
        values: the physical values of the pixels.
        scales: the windows of FSS, different odd numbers of pixels; none leaves FSS out.
        per_clip: whether to keep the counts of every clip.

    Raises:
        ValueError: a bad argument; an update with other shapes or with true frames outside of [0, 1]; a compute before
            any update.
        TypeError: `values` is not a `Values`, or an update gets no tensors.
    """

    full_state_update = False
    # (4, thresholds, L) int64: TP, FP, FN, TN.
    counts: Tensor
    # (2, scales, thresholds, L) float64: the sums of FSS.
    fractions: Tensor
    # (B, 3, thresholds, L) int64 for every batch: TP, FP, FN of every clip, if they are kept.
    clips: list[Tensor]
    # (2, thresholds, L) float64: CSI and FAR, summed over batches.
    batch_sums: Tensor
    batches: Tensor
    # (L,) int64: the batches with a known true value.
    known_batches: Tensor
    # (L,) int64: the predictions that are nan where the true value is known.
    lost: Tensor
    # (2,) int64: the missing true values, and all true values.
    n_values: Tensor

    def __init__(
        self,
        n_lead: int,
        thresholds: Sequence[float],
        values: Values,
        scales: Sequence[int] = (),
        *,
        per_clip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not is_whole(n_lead) or n_lead < 1:
            raise ValueError(f"n_lead must be a positive integer; got {n_lead!r}")
        if not isinstance(values, Values):
            raise TypeError(f"values is {values!r}; it should be a Values, such as PRESETS['shanghai']")
        self.n_lead, self.values = int(n_lead), values
        self.thresholds, self.scales = checked_thresholds(thresholds), checked_scales(scales)
        self.per_clip = per_clip
        size = (len(self.thresholds), n_lead)
        self.add_state("counts", torch.zeros(4, *size, dtype=torch.int64), dist_reduce_fx="sum")
        sums = torch.zeros(2, len(self.scales), *size, dtype=torch.float64)
        self.add_state("fractions", sums, dist_reduce_fx="sum")
        if per_clip:
            self.add_state("clips", [], dist_reduce_fx="cat")
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
        prediction, truth = prediction.detach(), truth.detach()
        per_clip = event_counts(prediction, truth, self.thresholds, self.values).to(self.counts)
        if self.per_clip:
            self.clips.append(per_clip[:3].movedim(2, 0))
        counts = per_clip.sum(2)
        self.counts += counts
        self.batch_sums += torch.stack([SCORES[kind](counts) for kind in PER_BATCH]).nan_to_num(0)
        for i, events in enumerate(
            _events(prediction, truth, self.thresholds, self.values) if self.scales else ()
        ):
            self.fractions[:, :, i] += event_fractions(*events, self.scales).sum(2).to(self.fractions)
        self.batches += 1
        missing = truth.isnan()
        self.known_batches += (~missing).transpose(0, 1).flatten(1).any(1).to(self.known_batches)
        self.lost += (prediction.isnan() & ~missing).sum((0, 2, 3, 4)).to(self.lost)
        self.n_values += torch.tensor([int(missing.sum()), missing.numel()]).to(self.n_values)

    def compute(self) -> dict[str, Any]:
        """Return the scores of all batches, see the class."""
        if not self.batches:
            raise ValueError("there is nothing to average: call update before compute")
        scores = {
            f"{kind}_{threshold:g}": row
            for kind, score in SCORES.items()
            for threshold, row in zip(self.thresholds, score(self.counts))
        }
        scores |= {
            f"fss_{threshold:g}_{scale}px": row
            for scale, rows in zip(self.scales, fss(self.fractions))
            for threshold, row in zip(self.thresholds, rows)
        }
        pooled = self._named(scores)
        counts = {
            f"{threshold:g}": dict(zip(("tp", "fp", "fn", "tn"), kinds))
            for threshold, kinds in zip(self.thresholds, self.counts.transpose(0, 1).tolist())
        }
        observed = {
            f"observed_{name}": [tp + fn for tp, fn in zip(found["tp"], found["fn"])]
            for name, found in counts.items()
        }
        pooled["per_lead"] |= observed
        sums = zip(PER_BATCH, self.batch_sums / self.known_batches)
        per_batch = self._named(
            {f"{kind}_{t:g}": row for kind, rows in sums for t, row in zip(self.thresholds, rows)}
        )
        n_missing, n_values = self.n_values.tolist()
        about: dict[str, Any] = {
            "batches": int(self.batches),
            "missing": n_missing / n_values if n_values else 0.0,
        }
        if self.per_clip:
            clips = dim_zero_cat(self.clips).movedim(2, 0).tolist()
            about["per_clip"] = {f"csi_{t:g}": found for t, found in zip(self.thresholds, clips)}
        return {**pooled, "per_batch": per_batch, "counts": counts, **about}

    def _named(self, scores: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the means over lead times of scores (L) by name, and "per_lead"."""
        rows = {name: row.masked_fill(self.lost > 0, math.nan) for name, row in scores.items()}
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
