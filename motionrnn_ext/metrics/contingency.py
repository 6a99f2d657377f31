"""The scores of counts of events, TP, FP, FN and TN (4, *S); `events` has their equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pod(counts: Tensor) -> Tensor:
    """Return POD of TP, FP, FN, TN (4, *S) as float64 (*S); nan where no event is observed."""
    hits, _, misses, _ = counts.double()
    return hits / (hits + misses)


def far(counts: Tensor) -> Tensor:
    """Return FAR of TP, FP, FN, TN (4, *S) as float64 (*S); nan where no event is predicted."""
    hits, false_alarms, _, _ = counts.double()
    return false_alarms / (hits + false_alarms)


def csi(counts: Tensor) -> Tensor:
    """Return CSI of TP, FP, FN, TN (4, *S) as float64 (*S); nan without an event in either frame."""
    hits, false_alarms, misses, _ = counts.double()
    return hits / (hits + false_alarms + misses)


def hss(counts: Tensor) -> Tensor:
    """Return HSS of TP, FP, FN, TN (4, *S) as float64 (*S); nan where all pixels of both frames are alike."""
    tp, fp, fn, tn = counts.double()
    return 2 * (tp * tn - fp * fn) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))


def frequency_bias(counts: Tensor) -> Tensor:
    """Return the frequency bias of TP, FP, FN, TN (4, *S) as float64 (*S); nan where no event is observed."""
    hits, false_alarms, misses, _ = counts.double()
    return torch.where(hits + misses > 0, (hits + false_alarms) / (hits + misses), math.nan)


SCORES = {"pod": pod, "far": far, "csi": csi, "hss": hss, "bias": frequency_bias}
# The scores that the official trainer computes for each batch.
PER_BATCH = ("csi", "far")
