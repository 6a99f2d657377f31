"""Write docs/benchmarks.md, its plots and README's table from the rows in `results` and nothing else.

`motionrnn bench --report` does this; the same rows give the same pages.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .. import wording
from ..wording import table
from . import plots, readme_table
from .cells import LOST, NOISY, implementation_of, row_cells, row_header
from .measured import LEVELS, OURS, Row, Run, is_peer, read

BASE = "base predictor"


def write(results: Path, docs: Path, readme: Path | None = None) -> list[Path]:
    """Write the pages of every bench_*.json of `results`: docs/benchmarks.md, docs/images, and the table between the
    markers of `readme`. Return the paths.

    Raises:
        ValueError: `results` has no runs, or `readme` lacks the two markers.
    """
    runs = read(results)
    front = None if readme is None else readme_table.page_with(readme.read_text(), runs, readme)
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks.md").write_text(page(runs))
    if readme is not None and front is not None:
        readme.write_text(front)
    # The pictures come last, so that an error in them leaves the numbers written.
    pictures = plots.write(runs, docs / "images")
    return [docs / "benchmarks.md", *pictures, *([] if readme is None else [readme])]


def page(runs: Sequence[Run]) -> str:
    parts = [
        ("What was measured where", where_table(runs)),
        ("How to read it", HOW_TO_READ),
        ("Where we lose", losses(runs)),
        ("Ratios by op and peer", RATIOS_NOTE + ratio_table(runs)),
        ("Pictures", "\n\n".join(f"![{alt}](images/{name})" for alt, name in plots.titles(runs))),
        *[(run.title, "\n\n".join(sections(run))) for run in runs],
    ]
    return INTRODUCTION + "".join(f"\n## {title}\n\n{text}\n" for title, text in parts if text)


INTRODUCTION = """# Benchmarks

`motionrnn bench --report` makes this page from the rows in
[`benchmarks/results`](../benchmarks/results); no figure is written by hand. `motionrnn bench`
measures the same on your machine, `--quick` in minutes, `--official PATH` compares with the
official program as well, and `--openstl PATH` with OpenSTL. [Measure and profile](profiling.md)
says how to run one comparison.

[`benchmarks/cases.py`](../benchmarks/cases.py) has the shapes. "B8 C16 16x16" is a batch of 8 maps
with 16 channels of 16x16 pixels. "B1 T8 3x128x128" is a batch of 1 clip with 8 frames, which have 3
channels of 128x128 pixels.
"""

HOW_TO_READ = """\
- All implementations of a comparison have the same inputs and weights. Results, gradients included,
  are compared with float64 before anything is timed ("off by": the norm of the difference over the
  norm). An implementation that is too far off is not timed and stands under Failed. The others are
  timed in turns, round after round, so that a noisy minute affects all of them alike.
- Time: the median of the rounds, and the 10th and 90th percentiles (p10, p90). On a GPU, "device"
  is the time of a call inside a CUDA graph, and "wall" that of a call from Python. On a CPU the time
  is the wall time. "CPU" is the processor time of all threads in a call: it does not have the time
  in which other programs had the cores.
- Ratio: the time of a peer (another implementation of the same computation) over ours, in the same
  comparison and layout. 3x means that we take a third of its time. **Below 1 we lose**: such rows
  stay in their table, are marked, and are listed under Where we lose. On a GPU the ratio is that of
  device times, or of wall times ("wall") where one of the two could not be captured in a graph.
- Too noisy: p10 to p90 are wider than half of the median, in this row or in ours, as on a machine
  with other work. Such a row has no ratio. If its CPU times are within that limit, a row of a CPU
  has their ratio instead ("CPU").
- Kept: bytes that the forward pass keeps for backward, beside inputs and parameters. Peak: the most
  memory that a call takes beside what is allocated already. On a CPU this counts what PyTorch's
  allocator hands out. Memory that libraries and our kernels take for a call and return within it,
  up to some MB per thread, does not count.
- Ops: the ops that PyTorch dispatches in a call, without views; compiled code has none to count.
  Launches: the kernels, copies and memsets of a call.
- FLOPs and bytes are counted from the equations, not measured. Bytes: each input read once and each
  output written once. A sigmoid or tanh counts as ten FLOPs. A model's FLOPs are those of
  convolutions and matrix products, counted by FlopCounterMode.
- Roofline: the least possible time over the time taken. The least time is that of copying those
  bytes or that of those multiplications at this machine's measured ceilings, whichever is larger;
  the word after the figure names it. For models it is that of the multiplications.
- First: the time of the first call. It includes compilation, unless a cache on disk had the result.
- The models "without MotionGRU" and "base predictor" compute less: they show what a MotionGRU
  costs.
- "-" means not measured, or nothing to measure. Layouts other than NCHW are named."""

RATIOS_NOTE = """\
The median of all ratios, forward and backward, over every shape, dtype and layout that has the
peer. The brackets hold the smallest and the largest ratio. Then follows in how many of them we
lose.

"""


# ---- All runs side by side


def where_table(runs: Sequence[Run]) -> str:
    lines = {
        "run": lambda run: f"`{run.name}`" + (", quick" if run.report["quick"] else ""),
        "date": lambda run: run.report["date"],
        "CPU": lambda run: f"{run.report['cpu']}, {run.report['instruction_set']}",
        "threads": lambda run: str(run.report["threads"]),
        "malloc": lambda run: run.report["malloc"],
        "GPU": lambda run: _gpu(run, "{name}, capability {capability}"),
        "driver, nvcc": lambda run: _gpu(run, "{driver}, {nvcc}"),
        "Python, torch": lambda run: f"{run.report['python']}, {run.report['torch']}",
        "triton, torchvision": lambda run: _gpu(run, "{triton}, {torchvision}"),
        "commit": lambda run: run.report["commit"],
        "command": lambda run: f"`{run.report['command']}`",
        "rounds": _rounds,
        "ceilings": _ceilings,
    }
    return table(("", *[run.title for run in runs]), ((name, *map(say, runs)) for name, say in lines.items()))


def _gpu(run: Run, form: str) -> str:
    return form.format(**run.report["gpu"]) if run.report.get("gpu") else wording.NONE


def _rounds(run: Run) -> str:
    rounds = [row["rounds"] for row in run.rows if row.get("rounds")]
    return f"{min(rounds)} to {max(rounds)}" if rounds else wording.NONE


def _ceilings(run: Run) -> str:
    """Return the ceilings that are rates, such as "copy 12.3 GB/s"."""
    found = []
    for name, value in (run.report["ceilings"] or {}).items():
        for ending, unit in (("_bytes_per_s", "B/s"), ("_flops", "FLOP/s")):
            if name.endswith(ending):
                found.append(f"{name.removesuffix(ending)} {wording.amount(value, unit)}")
    return ", ".join(found) or wording.NONE


def losses(runs: Sequence[Run]) -> str:
    """Return a line per run, op and peer that is faster than ours or needs less memory."""
    in_time: dict[str, list[str]] = {}
    in_memory: dict[str, list[str]] = {}
    for run in runs:
        for row in filter(is_peer, run.rows):
            key = f"- {run.title}, {_subject(row)} against {row['implementation']}: "
            if run.loses(row):
                close = " (within the spread)" if run.within_spread(row) else ""
                in_time.setdefault(key, []).append(f"{_case(row)}, {wording.times(run.ratio(row))}{close}")
            for kind in ("kept", "peak"):
                own, theirs = (run.ours_beside(row) or {}).get(f"{kind}_bytes"), row.get(f"{kind}_bytes")
                if own is not None and theirs is not None and theirs < own:
                    said = f"{_case(row)}, {kind} {wording.size(theirs)} to our {wording.size(own)}"
                    in_memory.setdefault(key, []).append(said)
    parts = [
        note + "\n".join(key + "; ".join(cases) for key, cases in found.items())
        for note, found in ((LOSSES_NOTE, in_time), (MEMORY_NOTE, in_memory))
        if found
    ]
    return "\n\n".join(parts) or "Nowhere in these rows."


LOSSES_NOTE = """\
These peers take less time than ours; the figure is the ratio. "Within the spread" means that the
ranges from p10 to p90 of both overlap.

"""
MEMORY_NOTE = """These peers need less memory than ours.

"""


def ratio_table(runs: Sequence[Run]) -> str:
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        for row in run.rows:
            ratio = run.ratio(row)
            if is_peer(row) and ratio is not None:
                of_runs = found.setdefault((_subject(row), row["implementation"]), {})
                of_runs.setdefault(run.name, []).append(ratio)
    subjects = list(dict.fromkeys(subject for subject, _ in found))
    ordered = sorted(found.items(), key=lambda item: subjects.index(item[0][0]))
    lines = ((*what, *[_spread(of.get(run.name, [])) for run in runs]) for what, of in ordered)
    return table(("op", "peer", *[run.title for run in runs]), lines)


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return wording.NONE
    lost = sum(ratio < 1 for ratio in ratios)
    text = wording.times(statistics.median(ratios))
    text += f" ({wording.times(min(ratios))} to {wording.times(max(ratios))})" if len(ratios) > 1 else ""
    return text + (f", **{lost} of {len(ratios)} lost**" if lost else "")


# ---- One run


def sections(run: Run) -> Iterator[str]:
    """Yield a run's complete tables by level and op, and what has no times."""
    for level, title in LEVELS.items():
        rows = run.where(level=level)
        if rows:
            yield f"### {title}"
        for subject in dict.fromkeys(map(_subject, rows)):
            yield f"#### {subject}\n\n" + row_table(run, [row for row in rows if _subject(row) == subject])
    costs = list(_motion_gru_costs(run))
    if costs:
        yield "### What the MotionGRUs cost\n\n" + COSTS_NOTE + table(COSTS_HEADER, costs)
    for kind, title in (("error", "Failed"), ("unavailable", "Unavailable")):
        if problems := _problems(run.report["rows"], kind):
            yield f"### {title}\n\n{problems}"
    if run.report["not_run"]:
        yield "### Not run for lack of time\n\n" + "\n".join(f"- {what}" for what in run.report["not_run"])


def _problems(rows: Iterable[Row], kind: str) -> str:
    seen: dict[str, list[Row]] = {}
    for row in rows:
        if kind in row:
            seen.setdefault(row[kind], []).append(row)
    return "\n".join(
        f"- {reason}: {len(same)} rows, first {same[0]['op']} {_case(same[0])}, {implementation_of(same[0])}"
        for reason, same in seen.items()
    )


def row_table(run: Run, rows: Iterable[Row]) -> str:
    """Return the rows' table; only the first line of a comparison names the case, and losses are bold."""
    lines, comparison = [], None
    for row in rows:
        case, comparison = "" if row["comparison"] == comparison else _case(row), row["comparison"]
        cells = [f"**{cell}**" if cell.endswith(LOST) else cell for cell in row_cells(run, row)]
        lines.append((case, *cells))
    return table(("case", *row_header(run.on_gpu)), lines)


def _subject(row: Row) -> str:
    return f"{row['op']} {row['setting']}" if row.get("setting") else row["op"]


def _case(row: Row) -> str:
    scale = row.get("offset_scale", 1.0)
    offsets = f", offsets x{scale:g}" if scale != 1 else ""
    return f"{row['shape']} {row['dtype']} {row['direction']}{offsets}"


COSTS_HEADER = ("case", "time", f"{BASE}'s", "ratio of times", "ratio of FLOPs", "kept", f"{BASE} keeps")
COSTS_NOTE = """\
MotionRNN beside its base predictor in the same comparison: the ratios of their times and of their
FLOPs.

"""


def _motion_gru_costs(run: Run) -> Iterator[tuple[str, ...]]:
    for ours in run.where(level="model", implementation=OURS):
        for base in run.comparisons[ours["comparison"]]:
            if base["implementation"] == BASE and base["layout"] == ours["layout"]:
                clock, ratio = run.clock(base), run.ratio(base)
                slower = NOISY if ratio is None else wording.times(1 / ratio)
                flops = ours["flops"] / base["flops"] if ours.get("flops") and base.get("flops") else None
                yield (
                    f"{ours['setting']} {_case(ours)}", wording.duration(ours[f"{clock}_us"]),
                    wording.duration(base[f"{clock}_us"]), slower, wording.times(flops),
                    wording.size(ours.get("kept_bytes")), wording.size(base.get("kept_bytes")),
                )  # fmt: skip
