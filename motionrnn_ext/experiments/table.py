"""The table of finished trainings: mean and spread over seeds, and whether rows differ.

The rule: the means of two rows are compared for each metric. Their spread is the sum of both rows' standard deviations
over seeds (of a sample, with n - 1). A difference is shown if it exceeds that spread. Otherwise, and with a single seed
or a value that is not finite, the table says "no difference shown". If results are normally distributed, two rows with
the same true mean are called different in 22 % of comparisons with two seeds, 8 % with three and 2 % with five.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from .. import visualize
from ..evaluation.scores import BASELINE
from ..metrics import BETTER, EVENTS, counted, heading
from .checks import names_of
from .costs import COUNTED
from .plan import Plan

NO_DIFFERENCE = "no difference shown"
# The metrics of the terminal, the figure and the comparisons; table.md has all metrics.
HEADLINE = ("mse", "ssim")


class Difference(NamedTuple):
    """The difference between two rows in a metric.

    Attributes:
        difference: the mean of a row minus the mean of the other.
        spread: the sum of the rows' standard deviations; nan for a single seed.
        verdict: "better", "worse" or NO_DIFFERENCE.
    """

    difference: float
    spread: float
    verdict: str


def difference(values: Sequence[float], others: Sequence[float], lower_is_better: bool) -> Difference:
    """Compare a row's values over seeds with another row's, by the rule above."""
    gap, spread = fmean(values) - fmean(others), _deviation(values) + _deviation(others)
    # The comparison is false for nan, which is no difference either.
    if not abs(gap) > spread or math.isinf(gap):
        return Difference(gap, spread, NO_DIFFERENCE)
    return Difference(gap, spread, "better" if (gap < 0) == lower_is_better else "worse")


def _deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; nan for a single value or one that is not finite."""
    good = len(values) > 1 and all(map(math.isfinite, values))
    return stdev(values) if good else math.nan


def results(
    plan: Plan, trainings: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, int]], command: str
) -> dict[str, Any]:
    """Return the content of results.json from the results of all trainings of the plan."""
    by_row = {row.label: [one for one in trainings if one["row"] == row.label] for row in plan.rows}
    first = trainings[0]
    names = names_of(first["metrics"])
    rows = {
        label: {
            "metrics": {name: _over_seeds(members, name) for name in names},
            **costs[label],
            "seconds_per_step": _median([one["seconds_per_step"] for one in members]),
        }
        for label, members in by_row.items()
    }
    return {
        "title": plan.title,
        "command": command,
        "seeds": list(plan.seeds),
        "settings": plan.settings(),
        "rows": rows,
        BASELINE: {name: _number(first["baseline"][name]) for name in names},
        "test_clips": first["metrics"]["samples"],
        "protocol": list(first["metrics"]["protocol"].values()),
        "differences": _differences(plan, rows, [name for name in HEADLINE if name in names]),
        "stopped": {
            f"{one['row']}, seed {one['seed']}": one["stopped"] for one in trainings if one.get("stopped")
        },
        "seconds": round(sum(one["seconds"] for one in trainings), 1),
        "resumed": sum(one["resumed"] for one in trainings),
        **{
            key: sorted({str(one[key]) for one in trainings if one[key]})
            for key in ("version", "commit", "machine")
        },
        "finished": max(one["finished"] for one in trainings),
    }


def _over_seeds(trainings: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    values = [_number(one["metrics"][name]) for one in trainings]
    return {"mean": fmean(values), "spread": _deviation(values), "per_seed": values}


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median of the values that are known, or None if none is."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _number(value: float | None) -> float:
    """Return a number of a JSON file, which has null for numbers that are not finite."""
    return math.nan if value is None else float(value)


def _differences(plan: Plan, rows: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for each pair of the plan, its labels and the difference in each metric."""
    found = []
    for row, against in plan.pairs:
        pair: dict[str, Any] = {"row": row, "against": against}
        for name in names:
            ours, theirs = (rows[label]["metrics"][name]["per_seed"] for label in (row, against))
            pair[name] = difference(ours, theirs, BETTER[name] == BETTER["mse"])._asdict()
        found.append(pair)
    return found


# ---- The table as text


def result_text(result: Mapping[str, Any]) -> str:
    """Return the result of a training in a line."""
    metrics = result["metrics"]
    numbers = {name: _number(metrics.get(name)) for name in HEADLINE}
    scores = [f"{heading(name)[:-2]} {_text(name, numbers)}" for name in HEADLINE]
    return ", ".join([*scores, f"{result['seconds']:.0f} s"])


def table_rows(results: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Return the cells of the table as text, the heading first."""
    lines = [["model", *map(heading, names), "parameters", "MACs", "s/step"]]
    lines.append([BASELINE, *(_text(name, results[BASELINE]) for name in names), "", "", ""])
    for label, row in results["rows"].items():
        scores = [_with_spread(name, row["metrics"]) for name in names]
        seconds = row["seconds_per_step"]
        step = "-" if seconds is None else f"{seconds:.3g}"
        lines.append([label, *scores, f"{row['parameters']:,}", _short(row["macs"]), step])
    return lines


def difference_rows(results: Mapping[str, Any], between: str = ": ") -> list[list[str]]:
    """Return the comparisons as text, the heading first, with `between` between numbers and verdict."""
    names = [name for name in HEADLINE if name in results[BASELINE]]
    lines = [["compared", *map(heading, names)]]
    for pair in results["differences"]:
        line = [f"{pair['row']} against {pair['against']}"]
        for name in names:
            gap, spread, verdict = (pair[name][key] for key in Difference._fields)
            digits = _digits(results["rows"][pair["against"]]["metrics"][name]["mean"])
            text = f"{gap:+.{digits}f}" if math.isfinite(gap) else "not finite"
            text += f", spread {spread:.{digits}f}" if math.isfinite(spread) else ""
            line.append(f"{text}{between}{verdict}")
        lines.append(line)
    return lines


def _with_spread(name: str, scores: Mapping[str, Any]) -> str:
    means = {metric: score["mean"] for metric, score in scores.items()}
    text, spread = _text(name, means), scores[name]["spread"]
    return f"{text} ± {spread:.{_digits(means[name])}f}" if math.isfinite(spread) else text


def _text(name: str, scores: Mapping[str, Any]) -> str:
    """Return the text of one of a model's scores; those of events may be nan although the MSE is a number."""
    value = scores[name]
    if math.isfinite(value):
        return f"{value:.{_digits(value)}f}"
    return "no event" if name.startswith(EVENTS) and not math.isnan(scores["mse"]) else "not finite"


def _digits(value: float) -> int:
    return 4 if abs(value) < 1 else 2


def _short(count: int) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)


def terminal(results: Mapping[str, Any]) -> list[Any]:
    """Return the parts of the final output: the table, the comparisons, and how to read them."""
    names = [name for name in HEADLINE if name in results[BASELINE]]
    table = _rich(results["title"], table_rows(results, names))
    verdicts = _rich("Differences of means", difference_rows(results, between="\n"))
    return [table, verdicts, _spread_text(results["seeds"])]


def _rich(title: str, lines: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines[1:]:
        styles = {"better": "green", "worse": "red", NO_DIFFERENCE: "dim"}
        marks = [next((s for end, s in styles.items() if text.endswith(f"\n{end}")), "") for text in line]
        table.add_row(*(Text(text, mark) for mark, text in zip(marks, line)))
    return table


def _spread_text(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}): there is no spread, and so no difference can be shown."
    text = f"±: standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))}), of weights and clips. "
    text += "A difference is shown where it exceeds the sum of both rows' standard deviations"
    if len(seeds) == 2:
        text += "; with two seeds, rows that are equal in truth pass for different in about one of five comparisons"
    return text + "."


def markdown(results: Mapping[str, Any], figure: str) -> str:
    """Return the content of table.md. `figure` is the path of the picture as seen from there."""
    settings, seeds = results["settings"], results["seeds"]
    names = list(results[BASELINE])
    n_in, n_out = settings["n_input"], settings["n_output"]
    duration = f"{results['seconds'] / 60:.1f} minutes of training and scoring"
    if results["resumed"]:
        duration += f", without what {counted(results['resumed'], 'interrupted training')} took before"
    budget = f"{counted(settings['steps'], 'step')} of {counted(settings['batch_size'], 'clip')}"
    notes = [
        f"{_spread_text(seeds)} The exact rule: motionrnn_ext/experiments/table.py.",
        f"Each model is the one after its last step: {budget}. "
        "What is small or trained briefly says little about an architecture.",
        f"Scored on {counted(results['test_clips'], 'held-out clip')}, the same for all rows and seeds: "
        f"{counted(n_in, 'frame')} in, "
        f"{n_out} predicted.",
        *(
            f"Not finite: {label}, whose training stopped: {why}."
            for label, why in results["stopped"].items()
        ),
        *(f"{text[:1].upper()}{text[1:]}." for text in results["protocol"]),
        f"{COUNTED} s/step: median of a training step, other load of the machine included.",
    ]
    facts = {
        "command": f"`{results['command']}`",
        "motionrnn_ext": ", ".join(results["version"]),
        "commit": ", ".join(results["commit"]) or "no git checkout",
        "seeds": ", ".join(map(str, seeds)),
        "machine": "; ".join(results["machine"]),
        "finished": results["finished"],
        "duration": duration,
        "settings": f"`{_settings_text(settings)}`",
    }
    parts = [
        f"# {results['title']}",
        _markdown_table(table_rows(results, names)),
        "## Differences of means",
        _markdown_table(difference_rows(results)),
        f"![a dot per training, a line at each mean]({figure})",
        "## How to read it",
        "\n".join(f"- {note}" for note in notes),
        "## How it was made",
        "\n".join(f"- {name}: {text}" for name, text in facts.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _settings_text(settings: Mapping[str, Any]) -> str:
    texts = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            texts.append(f"{name}: ({_settings_text(value)})" if any(value.values()) else "")
        elif value not in (None, [], "") and name != "command":
            texts.append(f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(filter(None, texts))


def _markdown_table(lines: list[list[str]]) -> str:
    rule = [" --- ", *[" ---: "] * (len(lines[0]) - 1)]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([body[0], f"|{'|'.join(rule)}|", *body[1:]])


def figure(path: Path, plan: Plan, results: Mapping[str, Any]) -> Path:
    """Draw a dot per training and a line at the mean of each row; return `path`."""
    names = [name for name in HEADLINE if name in results[BASELINE]]
    rows = {
        label: {name: row["metrics"][name]["per_seed"] for name in names}
        for label, row in results["rows"].items()
    }
    groups = [row.group for row in plan.rows]
    title = f"{plan.title}, {plan.config.steps:,} steps"
    return visualize.dots(path, rows, groups, baseline={BASELINE: results[BASELINE]}, title=title)
