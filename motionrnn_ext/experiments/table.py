"""The table of finished trainings: mean and spread over seeds, and whether rows differ, see `differences`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from rich.table import Table
from rich.text import Text

from .. import visualize
from ..evaluation.scores import BASELINE
from ..metrics import BETTER, EVENTS, counted, heading
from .checks import names_of
from .costs import COUNTED
from .differences import NO_DIFFERENCE, difference, read_kept
from .gate import gate_text
from .plan import Plan


def headline(names: Sequence[str]) -> list[str]:
    """Return the metrics of the terminal, the figure and the comparisons: MSE, SSIM and CSI at the lowest threshold.

    table.md has all metrics.
    """
    csi = (name for name in names if name.startswith("csi_"))
    lowest = sorted(csi, key=lambda name: float(name.removeprefix("csi_")))[:1]
    return [name for name in ("mse", "ssim", *lowest) if name in names]


def _deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; nan for a single value or one that is not finite."""
    good = len(values) > 1 and all(map(math.isfinite, values))
    return stdev(values) if good else math.nan


def results(
    plan: Plan,
    trainings: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, int]],
    command: str,
    sequences: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the content of results.json from the results of all trainings of the plan.

    `sequences` holds the stored sequence of each test clip, see `differences.difference`.
    """
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
        "other_baselines": {
            label: {name: _number(scores[name]) for name in names}
            for label, scores in first["other_baselines"].items()
        },
        "test_clips": first["metrics"]["samples"],
        "test_sequences": None if sequences is None else len(set(sequences)),
        "protocol": list(first["metrics"]["protocol"].values()),
        "gate": gate_text(trainings),
        "observed": {
            name.removeprefix("observed_"): sum(values)
            for name, values in first["baseline"]["per_lead"].items()
            if name.startswith("observed_")
        },
        "differences": _differences(plan, rows, by_row, headline(names), sequences),
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


def _differences(
    plan: Plan,
    rows: Mapping[str, Any],
    by_row: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Sequence[str],
    sequences: Sequence[int] | None,
) -> list[dict[str, Any]]:
    """Return, for each pair of the plan, its labels and the difference in each metric."""
    found = []
    for pair in plan.pairs:
        entry: dict[str, Any] = dict(zip(("row", "against"), pair))
        for name in names:
            ours, theirs = (rows[label]["metrics"][name]["per_seed"] for label in pair)
            clips, other_clips = (_clips(by_row[label], name) for label in pair)
            lower_is_better = BETTER[name.split("_")[0]] == BETTER["mse"]
            entry[name] = difference(ours, theirs, clips, other_clips, lower_is_better, sequences)._asdict()
        found.append(entry)
    return found


def _clips(trainings: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return the scores of the clips of a row's trainings, or nothing if one of them did not stay finite."""
    kept = [(one["per_clip"].get(name), one["metrics"]["samples"]) for one in trainings]
    return [] if any(text is None for text, _ in kept) else [read_kept(text, n) for text, n in kept]


# ---- The table as text


def result_text(result: Mapping[str, Any]) -> str:
    """Return the result of a training in a line."""
    metrics = result["metrics"]
    numbers = {name: _number(metrics.get(name)) for name in headline(list(metrics))}
    scores = [f"{heading(name)[:-2]} {_text(name, numbers)}" for name in numbers]
    return ", ".join([*scores, f"{result['seconds']:.0f} s"])


def table_rows(results: Mapping[str, Any], names: Sequence[str], timed: bool = True) -> list[list[str]]:
    """Return the cells of the table as text, the heading first. `timed` adds the seconds of a training step."""
    lines = [["model", *map(heading, names), "parameters", "MACs", *(["s/step"] if timed else [])]]
    for label, scores in _baselines(results).items():
        lines.append([label, *(_text(name, scores) for name in names)])
        lines[-1] += [""] * (len(lines[0]) - len(lines[-1]))
    for label, row in results["rows"].items():
        means = [_with_spread(name, row["metrics"]) for name in names]
        lines.append([label, *means, f"{row['parameters']:,}", _short(row["macs"])])
        if timed:
            seconds = row["seconds_per_step"]
            lines[-1].append("-" if seconds is None else f"{seconds:.3g}")
    return lines


def _baselines(results: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Return the scores of all baselines by label."""
    return {BASELINE: results[BASELINE], **results["other_baselines"]}


def difference_rows(results: Mapping[str, Any], between: str = ": ") -> list[list[str]]:
    """Return the comparisons as text, the heading first, with `between` between numbers and verdict."""
    names = headline(list(results[BASELINE]))
    lines = [["compared", *map(heading, names)]]
    for pair in results["differences"]:
        line = [f"{pair['row']} against {pair['against']}"]
        for name in names:
            text = _difference_text(
                name, pair[name], [results["rows"][pair[one]] for one in ("against", "row")]
            )
            line.append(f"{text}{between}{pair[name]['verdict']}")
        lines.append(line)
    return lines


def _difference_text(name: str, found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a difference with its interval and p-value, such as "-1.11 [-1.30, -0.92], p = 0.04"."""
    means = [{metric: score["mean"] for metric, score in row["metrics"].items()} for row in rows]
    if not math.isfinite(found["difference"]):
        return next(_text(name, mean) for mean in means if not math.isfinite(mean[name]))
    digits = digits_of(means[0][name])
    text = f"{found['difference']:+.{digits}f}"
    if math.isfinite(found["low"]):
        text += f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    if math.isfinite(found["p"]):
        text += ", p < 0.001" if found["p"] < 0.001 else f", p = {found['p']:.2g}"
    return text


def _with_spread(name: str, scores: Mapping[str, Any]) -> str:
    means = {metric: score["mean"] for metric, score in scores.items()}
    text, spread = _text(name, means), scores[name]["spread"]
    return f"{text} ± {spread:.{digits_of(means[name])}f}" if math.isfinite(spread) else text


def _text(name: str, scores: Mapping[str, Any]) -> str:
    """Return the text of one of a model's scores; those of events may be nan although the MSE is a number."""
    value = scores[name]
    if math.isfinite(value):
        return f"{value:.{digits_of(value)}f}"
    return "no event" if name.startswith(EVENTS) and not math.isnan(scores["mse"]) else "not finite"


def digits_of(value: float) -> int:
    return 4 if abs(value) < 1 else 2


def _short(count: int) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)


def terminal(results: Mapping[str, Any]) -> list[Any]:
    """Return the parts of the final output: the table, the comparisons, and how to read them."""
    names = headline(list(results[BASELINE]))
    table = _rich(results["title"], table_rows(results, names))
    verdicts = _rich("Differences of means", difference_rows(results, between="\n"))
    return [table, verdicts, f"{results['gate']}\n{_how_to_read(results)}"]


def _rich(title: str, lines: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines[1:]:
        styles = {"better": "green", "worse": "red", NO_DIFFERENCE: "dim"}
        marks = [next((s for verdict, s in styles.items() if f"\n{verdict}" in text), "") for text in line]
        table.add_row(*(Text(text, mark) for mark, text in zip(marks, line)))
    return table


def _how_to_read(results: Mapping[str, Any]) -> str:
    """Return the sentences on the spread, the intervals and the verdicts."""
    seeds, clips = results["seeds"], clips_text(results)
    names = ", ".join(map(str, seeds))
    text = f"In brackets: the 95 % interval of the difference, by a paired bootstrap over {clips}"
    if len(seeds) == 1:
        return f"{text}. One seed ({names}): whether training again shows the same is not known."
    return (
        f"±: standard deviation over {len(seeds)} seeds ({names}), of weights and clips. {text}; p: paired t-test over "
        f"{len(seeds)} seeds. No difference is shown where the interval holds 0; with p of 0.05 or more, it is one of "
        "these trainings only."
    )


def clips_text(results: Mapping[str, Any], kind: str = "clip") -> str:
    """Return how many clips are scored, such as "9 clips", or "9 clips of 3 sequences" if some share a sequence."""
    clips, sequences = results["test_clips"], results.get("test_sequences")
    text = counted(clips, kind)
    return text if sequences in (None, clips) else f"{text} of {counted(sequences, 'sequence')}"


def markdown(results: Mapping[str, Any]) -> str:
    """Return the content of table.md, which shows figure.png beside it."""
    settings, seeds = results["settings"], results["seeds"]
    n_in, n_out = settings["n_input"], settings["n_output"]
    duration = f"{results['seconds'] / 60:.1f} minutes of training and scoring"
    if results["resumed"]:
        duration += f", without what {counted(results['resumed'], 'interrupted training')} took before"
    budget = f"{counted(settings['steps'], 'step')} of {counted(settings['batch_size'], 'clip')}"
    notes = [
        f"{_how_to_read(results)} The exact rule: motionrnn_ext/experiments/differences.py.",
        f"Each model is the one after its last step: {budget}. "
        "What is small or trained briefly says little about an architecture.",
        f"Scored on {clips_text(results, 'held-out clip')}, the same for all rows and seeds: "
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
    frames, *events = score_tables(results)
    parts = [
        f"# {results['title']}",
        results["gate"],
        frames,
        *(["## Events", *events] if events else []),
        "## Differences of means",
        markdown_table(difference_rows(results)),
        "![a dot per training, a line at each mean](figure.png)",
        "## How to read it",
        "\n".join(f"- {note}" for note in notes),
        "## How it was made",
        "\n".join(f"- {name}: {text}" for name, text in facts.items()),
    ]
    return "\n\n".join(parts) + "\n"


def score_tables(results: Mapping[str, Any], timed: bool = True) -> list[str]:
    """Return the table of frames, and that of events at thresholds if they were scored, in Markdown."""
    frames = [name for name in results[BASELINE] if not name.startswith(EVENTS)]
    return [markdown_table(table_rows(results, frames, timed)), *_events_in_markdown(results)]


def _events_in_markdown(results: Mapping[str, Any]) -> list[str]:
    lines: list[list[str]] = []
    for threshold, observed in results.get("observed", {}).items():
        names = [name for name in results[BASELINE] if name.split("_")[1:2] == [threshold]]
        short = [heading("_".join([*name.split("_")[:1], *name.split("_")[2:]])) for name in names]
        lines = lines or [["model", "value >=", "observed", *short]]
        about = [threshold, f"{observed:,}"]
        for label, scores in _baselines(results).items():
            lines.append([label, *about, *(_text(name, scores) for name in names)])
        for label, row in results["rows"].items():
            lines.append([label, *about, *(_with_spread(name, row["metrics"]) for name in names)])
    return [markdown_table(lines)] if lines else []


def _settings_text(settings: Mapping[str, Any]) -> str:
    texts = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            texts.append(f"{name}: ({_settings_text(value)})" if any(value.values()) else "")
        elif value not in (None, [], "") and name != "command":
            texts.append(f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(filter(None, texts))


def markdown_table(lines: list[list[str]]) -> str:
    rule = [" --- ", *[" ---: "] * (len(lines[0]) - 1)]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([body[0], f"|{'|'.join(rule)}|", *body[1:]])


def figure(path: Path, plan: Plan, results: Mapping[str, Any]) -> Path:
    """Draw a dot per training and a line at the mean of each row; return `path`."""
    names = headline(list(results[BASELINE]))
    rows = {
        label: {name: row["metrics"][name]["per_seed"] for name in names}
        for label, row in results["rows"].items()
    }
    groups = [row.group for row in plan.rows]
    title = f"{plan.title}, {plan.config.steps:,} steps"
    return visualize.dots(path, rows, groups, baselines=_baselines(results), title=title)
