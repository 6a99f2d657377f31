"""The gate of a table: whether every model beats the baselines, the least that a forecast should do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from ..evaluation.scores import BASELINE
from ..metrics import BETTER, heading

_SCORES = ("mse", "ssim")


def gate_text(trainings: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence that says whether every row beats every baseline, and if not, which does not, where.

    A row beats a baseline if its mean over seeds is better at each lead time but the first: in MSE, in SSIM and, where
    events are scored, in CSI at the lowest threshold. At the first lead time little has moved, and a baseline is hard
    to beat. A lead time at which the baseline has no score, because no event occurred, does not count.
    """
    first = trainings[0]
    names = [name for name in (*_SCORES, *_lowest_csi(first)) if name in first["metrics"]["per_lead"]]
    baselines = baselines_of(first)
    what = f"{listed(list(baselines))} in {_words(names)} at each lead time but the first"
    failures = []
    for row, members in _by_row(trainings).items():
        against: dict[str, list[str]] = {}
        for label, baseline in baselines.items():
            if lost := _lost(members, baseline, names):
                against.setdefault(lost, []).append(label)
        for lost, labels in against.items():
            which = f" against {listed(labels)}" if len(baselines) > 1 else ""
            failures.append(f"{row}{which}, {lost}")
    if not failures:
        return f"Every model beats {what}."
    return f"Not every model beats {what}. These do not: {'; '.join(failures)}."


def _lost(members: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return where a row is not better than a baseline, such as "in MSE and SSIM at t+2", or nothing."""
    scores: dict[str, list[str]] = {}
    for name in names:
        if at := list(_not_better(members, baseline, name)):
            scores.setdefault(_leads(at), []).append(name)
    return ", ".join(f"in {_words(found)} at {at}" for at, found in scores.items())


def _words(names: Sequence[str]) -> str:
    """Return the names of scores as text, such as "MSE, SSIM and CSI 15"."""
    return listed([heading(name).rpartition(" ")[0] for name in names])


def listed(words: Sequence[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def baselines_of(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the scores of the baselines by label, from the result of a training."""
    return {BASELINE: result["baseline"], **result.get("other_baselines", {})}


def _lowest_csi(result: Mapping[str, Any]) -> list[str]:
    """Return the name of the CSI at the lowest threshold, or nothing."""
    found = [name for name in result["metrics"]["per_lead"] if name.startswith("csi_")]
    return sorted(found, key=lambda name: float(name.removeprefix("csi_")))[:1]


def _by_row(trainings: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in trainings:
        found.setdefault(one["row"], []).append(one)
    return found


def _not_better(
    members: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any], name: str
) -> Iterator[int]:
    """Yield the lead times, counted from 1, at which the mean over seeds is not better than the baseline."""
    lower = BETTER[name.partition("_")[0]] == BETTER["mse"]
    theirs = baseline["per_lead"][name]
    for i in range(min(1, len(theirs) - 1), len(theirs)):
        values = [one["metrics"]["per_lead"][name][i] for one in members]
        # JSON has null for numbers that are not finite.
        if theirs[i] is None or theirs[i] != theirs[i]:
            continue
        ours = None if None in values else fmean(values)
        # The comparisons are false for nan, which is no better either.
        if ours is None or not (ours < theirs[i] if lower else ours > theirs[i]):
            yield i + 1


def _leads(at: Sequence[int]) -> str:
    """Return lead times as text, such as "t+2 to t+5 and t+7"."""
    runs = [[lead for _, lead in run] for _, run in groupby(enumerate(at), lambda pair: pair[1] - pair[0])]
    return listed([f"t+{run[0]} to t+{run[-1]}" if len(run) > 1 else f"t+{run[0]}" for run in runs])
