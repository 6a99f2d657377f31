"""The finished trainings of an experiment as one file of data, from which a page's tables can be made again, and with
which the experiment can go on elsewhere.

The file is a JSON object with the entries of results.json, for the rows and seeds that are finished, and

missing     the trainings of the plan that are not finished
baselines   the results of the baselines, by label
trainings   for each finished training its row, seed, metrics (mean and per lead time), the scores of each clip, step,
            seconds, machine, commit

It names files and folders without the place where they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..evaluation.scores import BASELINE
from ..files import read_json, write_json
from ..metrics import EVENTS, counted, heading
from ..training.runs import RunError
from . import table
from .checks import names_of
from .folder import check_settings, result_file
from .gate import baselines_of, listed
from .plan import Plan

_OF_TRAINING = (
    "row", "seed", "step", "stopped", "seconds", "seconds_per_step", "resumed", "finished", "machine", "version",
    "commit", "per_clip",
)  # fmt: skip

_ENTRIES = {"rows", "trainings", "missing", "settings", "baselines"}


def write_record(
    path: Path,
    plan: Plan,
    finished: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, int]],
    command: str,
    sequences: Sequence[int] | None = None,
) -> Path:
    """Write the record of the `finished` trainings, by name, and return `path`. There should be one at least.

    `sequences` holds the stored sequence of each test clip.
    """
    part = finished_part(plan, finished)
    members = [finished[training.name] for training in part.trainings()]
    content = {
        **table.results(part, members, costs, _command(command), sequences),
        "baselines": baselines_of(members[0]),
        "missing": [one.label for one in plan.trainings() if one.name not in finished],
        "trainings": [
            {**{name: one.get(name) for name in _OF_TRAINING}, "metrics": _scores(one["metrics"])}
            for training in plan.trainings()
            if (one := finished.get(training.name)) is not None
        ],
    }
    # Settings are compared when the file is read, so they are not rounded.
    content = {**_rounded(content), "settings": _without_folders(content["settings"])}
    return write_json(path, content, short_lists=True)


def restore(path: Path, plan: Plan, folder: Path) -> None:
    """Write the results of a record's trainings into the experiment's folder, where they are missing.

    A training without the scores of its clips, which older versions did not record, is left out, to be made again.

    Raises:
        RunError: the record is of other settings, or has a training that is none of the plan and would be lost.
        ValueError: the file is no record.
    """
    content, remedy = read_record(path), "name another file with --json"
    # Older versions rounded the settings.
    before, now = (
        _rounded(settings) for settings in (content["settings"], _without_folders(plan.settings()))
    )
    check_settings(path, before, plan, now, remedy)
    planned = {(one.row.label, one.config.seed): one for one in plan.trainings()}
    for one in content["trainings"]:
        if (one["row"], one["seed"]) not in planned:
            raise RunError(f"{path} has {one['row']}, seed {one['seed']}, which this table has not: {remedy}")
    others = dict(content["baselines"])
    baseline = others.pop(BASELINE)
    for one in content["trainings"]:
        training = planned[one["row"], one["seed"]]
        kept = result_file(folder, training)
        # The scores are empty, not missing, where a training did not stay finite.
        if one.get("per_clip") is not None and not kept.exists():
            about = {name: baseline[name] for name in ("samples", "protocol")}
            result = {**one, "metrics": {**one["metrics"], **about}, "baseline": baseline}
            write_json(kept, {**result, "other_baselines": others, "config": training.config.to_dict()})


def finished_part(plan: Plan, finished: Mapping[str, Any]) -> Plan:
    """Return the part of a plan whose rows are finished with the same seeds.

    These are all rows with the seeds that every row has; or, if no seed is complete, the rows that have the seed with
    the most rows.
    """
    rows = {seed: [row for row in plan.rows if f"{row.key}_seed_{seed}" in finished] for seed in plan.seeds}
    complete = tuple(seed for seed, found in rows.items() if len(found) == len(plan.rows))
    if complete:
        return replace(plan, seeds=complete)
    seed = max(plan.seeds, key=lambda seed: len(rows[seed]))
    labels = {row.label for row in rows[seed]}
    pairs = tuple(pair for pair in plan.pairs if labels.issuperset(pair))
    return replace(plan, rows=tuple(rows[seed]), pairs=pairs, seeds=(seed,))


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a record.

    Raises:
        ValueError: the file cannot be read or is no record.
    """
    why = ""
    try:
        content = read_json(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        content, why = None, f" ({getattr(error, 'strerror', None) or error})"
    if not (isinstance(content, dict) and content.keys() >= _ENTRIES):
        raise ValueError(
            f"{path} is no record of an experiment{why}; it should be written by --json of ablate or compare"
        )
    return content


def record_markdown(content: Mapping[str, Any]) -> str:
    """Return the tables of a record and how they were made, as Markdown without headings."""
    settings = content["settings"]
    minutes = sum(one["seconds"] for one in content["trainings"]) / 60
    duration = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes"
    steps, clips = counted(settings["steps"], "step"), counted(settings["batch_size"], "clip")
    facts = [
        f"`{content['command']}`",
        f"{steps} of {clips}, {settings['n_input']} frames in and {settings['n_output']} out",
        f"{table.clips_text(content, 'test clip')}, seeds: {', '.join(map(str, content['seeds']))}",
        f"{duration} of training and scoring on {'; '.join(content['machine'])}",
        f"commit {', '.join(content['commit']) or 'unknown'}",
    ]
    if content["missing"]:
        facts.append(f"not yet trained: {_by_row(content['missing'])}")
    # Steps are not timed here: trainings of several sittings share the machine with other work.
    parts = [content["gate"], *table.score_tables(content, timed=False), *_lead_tables(content)]
    if content["differences"]:
        parts.append(table.markdown_table(table.difference_rows(content)))
    return "\n\n".join([*parts, "\n".join(f"- {fact}" for fact in facts)]) + "\n"


def _lead_tables(content: Mapping[str, Any]) -> list[str]:
    """Return a table by lead time for each metric of frames and each CSI: the baselines, and rows' means over seeds."""
    per_lead = {label: scores["per_lead"] for label, scores in content["baselines"].items()}
    for row in content["rows"]:
        seeds = [
            one["metrics"]["per_lead"]
            for one in content["trainings"]
            if one["row"] == row and one["seed"] in content["seeds"]
        ]
        per_lead[row] = {name: [*map(_mean, zip(*(one[name] for one in seeds)))] for name in seeds[0]}
    found = []
    for name in content[table.BASELINE]:
        is_shown = name.startswith("csi") or not name.startswith(EVENTS)
        if name in per_lead[table.BASELINE] and is_shown:
            leads = len(per_lead[table.BASELINE][name])
            lines = [[f"{heading(name)} at", *(f"t+{lead}" for lead in range(1, leads + 1))]]
            lines += [[label, *map(_text, scores[name])] for label, scores in per_lead.items()]
            found.append(table.markdown_table(lines))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is None, which stands in JSON for what is not finite."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.{table.digits_of(value)}f}"


def _by_row(labels: Sequence[str]) -> str:
    """Return labels of trainings as text in which each row stands once, such as "MIM, seeds 0 and 1"."""
    seeds: dict[str, list[str]] = {}
    for label in labels:
        row, _, seed = label.rpartition(", seed ")
        seeds.setdefault(row, []).append(seed)
    return "; ".join(
        f"{row}, {'seed' if len(of_row) == 1 else 'seeds'} {listed(of_row)}" for row, of_row in seeds.items()
    )


def _scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: metrics[name] for name in names_of(metrics)}, "per_lead": metrics["per_lead"]}


def _rounded(value: Any) -> Any:
    """Return a value with six significant digits in its floats."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _without_folders(value: Any) -> Any:
    """Return settings with the last part alone of each path to somewhere else."""
    if isinstance(value, Mapping):
        return {key: _without_folders(entry) for key, entry in value.items()}
    is_elsewhere = isinstance(value, str) and value.startswith(("/", "../"))
    return Path(value).name if is_elsewhere else value


def _command(command: str) -> str:
    return shlex.join(_without_folders(word) for word in shlex.split(command))
