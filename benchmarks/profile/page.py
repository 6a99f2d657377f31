"""The page of a profile: tables by kind of work, by part of the model, and by op, beside the base predictor's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..cases import ModelSetting
from ..gpu.summary import table
from ..measuring.machine import description, gpu_description
from ..report import wording
from .events import BACKWARD, FORWARD, KINDS, MOTION_GRU, PARTS, Spent, totals

OURS, BASE = "MotionRNN-PredRNN", "base predictor"
TOP = 15


@dataclass
class Profile:
    """A model's training step: where its time goes under the profiler, its median without, its FLOPs, and those of
    its forward pass by part."""

    times: list[Spent]
    step_us: float
    flops: int
    forward_flops: dict[str, int]

    @property
    def total(self) -> float:
        return sum(s.microseconds for s in self.times)


def render(profiles: Mapping[str, Profile], setting: ModelSetting, device: str) -> str:
    ours = profiles[OURS]
    parts = [
        ("The step", _steps(profiles)),
        ("By kind of work", _kinds(profiles)),
        ("By part of the model", _parts(profiles)),
        (f"The {TOP} longest ops of {OURS}", _top(ours)),
        ("How to read it", ON_GPU if device == "cuda" else ON_CPU),
    ]
    title = f"# Where a training step of {OURS} spends its time: {setting.name}, {setting}, float32\n\n"
    return title + _where(device) + "".join(f"\n## {heading}\n\n{text}\n" for heading, text in parts)


ON_CPU = """Times are of one step under torch.profiler, each event's own, its children's taken off: they add up to the
step. The profiler makes every op call dearer, so the step without it is shorter, and the shares of autograd, op calls
and Python are upper bounds. Backward counts for the part whose forward made the node. FLOPs are counted, of
convolutions and matrix products alone. `trace.json` opens in https://ui.perfetto.dev or chrome://tracing."""
ON_GPU = """Times are of the kernels of one step under torch.profiler, for the op that launched them; GPU idle is the
rest of the step: launches that the host was late with, and Python. Backward counts for the part whose forward made the
node. FLOPs are counted, of convolutions and matrix products alone. `trace.json` opens in https://ui.perfetto.dev or
chrome://tracing."""


def _where(device: str) -> str:
    d = description()
    threads = f"{d['threads']} thread{'s' if d['threads'] != 1 else ''}"
    where = f"{d['cpu']}, {d['instruction_set']}, {threads}, malloc {d['malloc']}"
    where += f", torch {d['torch']}, commit {d['commit']}"
    return f"{gpu_description()['name']} ({where})\n" if device == "cuda" else f"{where}\n"


def _steps(profiles: Mapping[str, Profile]) -> str:
    rows: list[tuple[str, ...]] = [
        (title, wording.duration(p.step_us), wording.duration(p.total), wording.amount(p.flops, ""))
            for title, p in profiles.items()
    ]  # fmt: skip
    ours, base = profiles[OURS], profiles[BASE]
    of_time = ours.step_us / base.step_us
    of_flops = ours.flops / base.flops
    rows.append((f"{OURS} over {BASE}", *map(wording.times, (of_time, ours.total / base.total, of_flops))))
    return table(("", "step, without a profiler", "step, profiled", "FLOPs"), rows)


def _kinds(profiles: Mapping[str, Profile]) -> str:
    sums = {title: totals(p.times, "kind") for title, p in profiles.items()}
    ours, base = sums[OURS], sums[BASE]
    rows = [
        (name, *_both(profiles, {title: of.get(name) for title, of in sums.items()}),
         _difference(ours.get(name, 0.0), base.get(name, 0.0)))
        for name in KINDS if name in ours or name in base
    ]  # fmt: skip
    rows.append(("together", *_both(profiles, {title: p.total for title, p in profiles.items()}),
                 _difference(profiles[OURS].total, profiles[BASE].total)))  # fmt: skip
    return table(("", OURS, "share", BASE, "share", "difference"), rows)


def _both(profiles: Mapping[str, Profile], microseconds: Mapping[str, float | None]) -> Iterator[str]:
    for title, of in microseconds.items():
        yield wording.duration(of)
        yield wording.share(None if of is None else of / profiles[title].total)


def _difference(ours: float, base: float) -> str:
    return f"{'-' if ours < base else '+'}{wording.duration(abs(ours - base))}"


def _parts(profiles: Mapping[str, Profile]) -> str:
    columns = (FORWARD, BACKWARD, "share of time", "of forward FLOPs")
    header = ("", *columns, f"{BASE}: {FORWARD}", *columns[1:])
    groups = {**{part: (part,) for part in PARTS}, "all of the MotionGRUs": MOTION_GRU, "together": PARTS}
    lines = []
    for title, parts in groups.items():
        cells = [cell for p in profiles.values() for cell in _part(p, parts)]
        if any(cell != wording.NONE for cell in cells):
            lines.append((title, *cells))
    return table(header, lines)


def _part(of: Profile, parts: tuple[str, ...]) -> Iterator[str]:
    """Forward, backward, share of time, share of FLOPs."""
    sums = totals((s for s in of.times if s.part in parts), "way")
    if not sums:
        yield from [wording.NONE] * 4
        return
    yield wording.duration(sums.get(FORWARD))
    yield wording.duration(sums.get(BACKWARD))
    yield wording.share(sum(sums.values()) / of.total)
    yield wording.share(sum(of.forward_flops[part] for part in parts) / sum(of.forward_flops.values()))


def _top(of: Profile) -> str:
    sums = totals((s for s in of.times if not s.of_range), "name", "kind")
    longest = sorted(sums.items(), key=lambda item: -item[1])[:TOP]
    calls: Counter[str] = Counter()
    for s in of.times:
        calls[s.name] += s.calls
    rows = [(f"`{name}`", kind, str(calls[name]), wording.duration(us), wording.share(us / of.total))
            for (name, kind), us in longest]  # fmt: skip
    return table(("", "kind", "calls", "time", "share"), rows)
