"""Profile a training step of MotionRNN-PredRNN beside one of its base predictor: `motionrnn bench --profile`.

    trace.json      torch.profiler's trace, for Perfetto or chrome://tracing
    breakdown.md    a page: the step, its time by part of the model, and torch.profiler's table of the longest ops

The parts are ranges from hooks around the model's modules, which last as long as the profile. On a GPU, a step with
NVTX ranges of the same names, between cudaProfilerStart and cudaProfilerStop, comes first: for Nsight Systems and
Nsight Compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function

from motionrnn_ext import MotionRNN

from .. import wording
from ..cases import DRY_RUN, GPU_BATCH, SETTINGS, ModelSetting
from ..measuring import counting, timing
from ..measuring.machine import description, gpu_description
from ..measuring.model_cases import TRAINING, ModelCase
from . import parts

OURS, BASE = "MotionRNN-PredRNN", "base predictor"
NAMES = {OURS: "ours", BASE: "base predictor"}  # the names in model_cases
EFFORT = timing.Effort(0.0, (5, 5), limit=20.0, few=3)  # for the step without a profiler
LONGEST = 15


@dataclass
class Profile:
    """A model's training step: its median time, its FLOPs, and under the profiler its time by part and by op."""

    step_us: float
    flops: int
    forward_flops: dict[str, int]
    times: parts.Times
    ops: str

    @property
    def total(self) -> float:
        return sum(self.times.values())


def write(out: Path, setting: str = "human36m", device: str = "cpu") -> Path:
    """Profile at a setting of `cases`, in float32; write the page and `trace.json`, and return the page's path.

    Raises:
        ValueError: no setting has this name.
    """
    settings = {**SETTINGS, DRY_RUN.name: DRY_RUN}
    if setting not in settings:
        raise ValueError(f"setting is {setting!r}; it should be one of {', '.join(settings)}")
    chosen = settings[setting].of_batch(GPU_BATCH) if device == "cuda" else settings[setting]
    case = ModelCase(chosen, "float32", TRAINING)
    frames = case.frames(device)
    models = {title: case.model(name).to(device) for title, name in NAMES.items()}
    out.mkdir(parents=True, exist_ok=True)
    subjects = {title: timing.Subject([_step(m, frames, chosen)], device == "cuda", can_be_captured=False)
                for title, m in models.items()}  # fmt: skip
    for subject in subjects.values():
        subject.prepare()
    if device == "cuda":
        _for_nsight(models[OURS], frames, chosen)
    timing.interleave(list(subjects.values()), EFFORT)
    profiles = {}
    for title, model in models.items():
        times, ops = profiled(model, frames, chosen, out / "trace.json" if title == OURS else None)
        step_us = timing.quantile(subjects[title].eager_us, 0.5)
        by_part = parts.flops_by_part(model, lambda model=model: model(frames, chosen.given))  # type: ignore[misc]
        flops = counting.flops(_step(model, frames, chosen))
        profiles[title] = Profile(step_us, flops, by_part, times, ops)
    page = out / "breakdown.md"
    page.write_text(render(profiles, chosen, device))
    return page


def nothing(name: str) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


def _step(
    model: MotionRNN, frames: Tensor, setting: ModelSetting, ranged: parts.Ranged = nothing
) -> Callable[[], object]:
    """Return the step: forward, the mean squared error of all predictions, its gradients; no optimiser."""
    parameters = list(model.parameters())

    def step() -> object:
        with ranged(parts.STEP):
            with ranged(parts.FORWARD):
                loss = F.mse_loss(model(frames, setting.given), frames[:, 1:])
            with ranged(parts.BACKWARD):
                gradients = torch.autograd.grad(loss, parameters)
            if frames.is_cuda:
                torch.cuda.synchronize()
        return gradients

    return step


def profiled(
    model: MotionRNN, frames: Tensor, setting: ModelSetting, trace: Path | None
) -> tuple[parts.Times, str]:
    """Return a step's time by part, and torch.profiler's table of its longest ops."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if frames.is_cuda else [])]
    step = _step(model, frames, setting, record_function)
    with parts.ranges(model, record_function):
        with torch.profiler.profile(activities=activities):  # the first use loads and allocates
            step()
        with torch.profiler.profile(activities=activities) as profiler:
            step()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    own = "self_device_time_total" if frames.is_cuda else "self_cpu_time_total"
    ops = profiler.key_averages().table(sort_by=own, row_limit=LONGEST, max_name_column_width=60)
    return parts.times_by_part(profiler.events() or [], on_gpu=frames.is_cuda), ops


def _for_nsight(model: MotionRNN, frames: Tensor, setting: ModelSetting) -> None:
    step = _step(model, frames, setting, torch.cuda.nvtx.range)
    with (
        parts.ranges(model, torch.cuda.nvtx.range),
        torch.cuda.profiler.profile(),
        torch.autograd.profiler.emit_nvtx(),
    ):
        step()


# ---- The page


def render(profiles: Mapping[str, Profile], setting: ModelSetting, device: str) -> str:
    ops = {f"The {LONGEST} longest ops of {title}": f"```\n{p.ops}\n```" for title, p in profiles.items()}
    sections = {
        "The step": _steps(profiles),
        "By part of the model": _parts(profiles),
        **ops,
        "How to read it": ON_GPU if device == "cuda" else ON_CPU,
    }
    title = f"# Where a training step of {OURS} spends its time: {setting.name}, {setting}, float32\n\n"
    return (
        title + _where(device) + "".join(f"\n## {heading}\n\n{text}\n" for heading, text in sections.items())
    )


FOR_BOTH = """Backward counts for the part whose forward made the node. FLOPs are counted for convolutions and
matrix products alone. In torch.profiler's tables, "Self" is without children. `trace.json` opens in
https://ui.perfetto.dev or chrome://tracing."""
ON_CPU = f"""Times are those of one step under torch.profiler. An event's time is its own, without its children's, so
that the parts add up to the step. The profiler slows every op call down, so the step without it is shorter, and the
shares of autograd and Python are upper bounds. {FOR_BOTH}"""
ON_GPU = f"""Times are those of the kernels of one step under torch.profiler, for the op that launched them. GPU idle is
the rest of the step: launches that the host was late with, and Python. {FOR_BOTH}"""


def _where(device: str) -> str:
    d = description()
    threads = f"{d['threads']} thread{'s' if d['threads'] != 1 else ''}"
    where = f"{d['cpu']}, {d['instruction_set']}, {threads}, malloc {d['malloc']}"
    where += f", torch {d['torch']}, commit {d['commit']}"
    return f"{gpu_description()['name']} ({where})\n" if device == "cuda" else f"{where}\n"


def _steps(profiles: Mapping[str, Profile]) -> str:
    ours, base = profiles[OURS], profiles[BASE]
    rows = [
        (title, wording.duration(p.step_us), wording.duration(p.total), wording.amount(p.flops, ""))
        for title, p in profiles.items()
    ]
    ratios = (ours.step_us / base.step_us, ours.total / base.total, ours.flops / base.flops)
    over = (f"{OURS} over {BASE}", *map(wording.times, ratios))
    return wording.table(("", "step, without a profiler", "step, profiled", "FLOPs"), [*rows, over])


def _parts(profiles: Mapping[str, Profile]) -> str:
    columns = (parts.FORWARD, parts.BACKWARD, "share of time", "of forward FLOPs")
    header = ("", *columns, f"{BASE}: {parts.FORWARD}", *columns[1:])
    every = (*parts.PARTS, parts.IDLE)
    groups = {
        **{part: (part,) for part in every},
        "all of the MotionGRUs": parts.MOTION_GRU,
        "together": every,
    }
    lines = []
    for title, group in groups.items():
        cells = [cell for p in profiles.values() for cell in _part(p, group)]
        if any(cell != wording.NONE for cell in cells):
            lines.append((title, *cells))
    return wording.table(header, lines)


def _part(of: Profile, group: tuple[str, ...]) -> Iterator[str]:
    """Yield the time forward, the time backward, the share of the time, and the share of the FLOPs."""
    times = {key: us for key, us in of.times.items() if key[0] in group}
    if not times:
        yield from [wording.NONE] * 4
        return
    for wanted in (parts.FORWARD, parts.BACKWARD):
        found = [us for (_, way), us in times.items() if way == wanted]
        yield wording.duration(sum(found) if found else None)
    yield wording.share(sum(times.values()) / of.total)
    yield wording.share(sum(of.forward_flops.get(part, 0) for part in group) / sum(of.forward_flops.values()))
