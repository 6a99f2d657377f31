"""Make README's table: the warp, the cell and a training step against the official program and PyTorch.

There is a table per machine.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import wording
from ..wording import table
from .cells import LOST, NOISY
from .measured import CPU, OURS, WALL, Row, Run, newest, size

START = "<!-- benchmarks: made by motionrnn bench --report -->"
END = "<!-- end of benchmarks -->"
# A column shows the fastest of its implementations.
COLUMNS = {
    "official program": ("official",),
    "eager PyTorch": ("reference", "plain"),
    "torch.compile": ("reference, compiled", "plain, compiled", "reference, CUDA graphs"),
}
WHAT = {"offset_warp": "forward+backward", "MotionGRUCell": "forward+backward",
        "MotionRNN-PredRNN": "training step"}  # fmt: skip
HEADER = ("float32, forward and backward", OURS, *COLUMNS, "kept for backward, against")


def page_with(page: str, runs: Sequence[Run], path: Path) -> str:
    """Return `page`, the text of README at `path`, with the tables of these runs between the markers."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(
            f"{path}: should have the lines {START} and, below it, {END}; the table goes between them"
        )
    return before + START + "\n" + text(runs) + END + after


def text(runs: Sequence[Run]) -> str:
    """Return a sentence and a table per machine, and a pointer to the complete page."""
    parts = [f"{_sentence(run)}\n\n{table(HEADER, _lines(run))}\n" for run in newest(runs)]
    return "\n".join([*parts, REST])


REST = """Times are medians of rounds in turns. Results were compared with float64 before. 3x means that the
other takes three times our time; below 1x we lose. Of eager and compiled PyTorch the faster form is
shown. [docs/benchmarks.md](docs/benchmarks.md) has all rows, with memory, FLOPs, rooflines and
where we lose.
"""


def _sentence(run: Run) -> str:
    r = run.report
    threads = f"{r['threads']} thread{'s' if r['threads'] != 1 else ''}"
    where = f"{r['cpu']}, {r['instruction_set']}, {threads}, malloc {r['malloc']}"
    if run.on_gpu:
        where = f"{r['gpu']['name']}, driver {r['gpu']['driver']} (host: {where})"
    quick = " A quick run: few rounds, the smallest shapes." if r["quick"] else ""
    versions = f"torch {r['torch']}, commit {r['commit']}, {r['date']}"
    sentence = f"On a {'GPU' if run.on_gpu else 'CPU'}: {where}, {versions}.{quick}"
    return textwrap.fill(sentence, 100, break_on_hyphens=False)


def _lines(run: Run) -> Iterator[tuple[str, ...]]:
    for op, direction in WHAT.items():
        rows = [r for r in run.where(op=op, direction=direction, dtype="float32", implementation=OURS, layout="NCHW")
                if r.get("offset_scale", 1.0) == 1.0]  # fmt: skip
        cases: dict[tuple[str | None, str], list[Row]] = {}
        for row in sorted(rows, key=lambda row: (row.get("setting") or "", size(row))):
            cases.setdefault((row.get("setting"), row["shape"]), []).append(row)
        for (setting, shape), same in cases.items():
            peers = [_fastest(run, same, names) for names in COLUMNS.values()]
            what = f"{direction} of {op}, {setting}" if setting else f"`{op}`"
            yield (
                f"{what}, {shape}",
                _own(run, same[0], peers),
                *[_peer(run, peer) for peer in peers],
                _kept(same[0], peers),
            )


def _fastest(run: Run, ours: Sequence[Row], names: Sequence[str]) -> Row | None:
    """Return the row with the smallest ratio among these implementations in the comparisons of ours; one without a
    ratio if none has one."""
    compared = [row for own in ours for row in run.comparisons[own["comparison"]]]
    found = [row for row in compared if row["implementation"] in names]
    return min(found, key=lambda row: run.ratio(row) or float("inf"), default=None)


def _own(run: Run, row: Row, peers: Sequence[Row | None]) -> str:
    """Return our times that the peers are compared with: device time, and wall time for peers without the former."""
    clocks = sorted({run.clock(peer) for peer in peers if peer is not None} or {run.clock(row)}, reverse=True)
    return ", ".join(wording.duration(row[f"{clock}_us"]) + _clock(run, clock) for clock in clocks)


def _peer(run: Run, row: Row | None) -> str:
    if row is None:
        return wording.NONE
    ratio = NOISY if run.is_noisy(row) else wording.times(run.ratio(row))
    took = wording.duration(row[f"{run.clock(row)}_us"]) + _clock(run, run.clock(row))
    return f"{took}, **{ratio}{LOST}**" if run.loses(row) else f"{took}, {ratio}"


def _clock(run: Run, clock: str) -> str:
    return " CPU" if clock == CPU else " wall" if run.on_gpu and clock == WALL else ""


def _kept(ours: Row, peers: Sequence[Row | None]) -> str:
    """Return the bytes that ours keeps, beside those of the official program or else of eager PyTorch."""
    own = ours.get("kept_bytes")
    for peer in peers[:2]:
        if own is not None and peer is not None and peer.get("kept_bytes") is not None:
            name = "official" if peer["implementation"] == "official" else "PyTorch"
            return f"{wording.size(own)}, {name} {wording.size(peer['kept_bytes'])}"
    return wording.size(own)
