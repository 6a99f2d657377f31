"""`motionrnn bench --profile`: where a training step of MotionRNN-PredRNN spends its time.

    trace.json      torch.profiler's trace, for Perfetto or chrome://tracing
    breakdown.md    a page: by kind of work and by part of the model, beside the base predictor; the longest ops

Parts are ranges that are there for the profile alone: hooks around the model's modules. On a GPU, a step with NVTX
ranges of the same names, between cudaProfilerStart and cudaProfilerStop, comes first: for Nsight Systems and Nsight
Compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from motionrnn_ext import MotionGRU, MotionRNN
from motionrnn_ext.models import motion_rnn

from ..cases import DRY_RUN, GPU_BATCH, SETTINGS, ModelSetting
from ..measuring import counting, timing
from ..measuring.model_cases import TRAINING, ModelCase
from . import events
from .events import BACKWARD, FORWARD, PARTS, REST, STEP, Spent
from .page import BASE, OURS, Profile, render

NAMES = {OURS: "ours", BASE: "base predictor"}  # how model_cases calls them
EFFORT = timing.Effort(0.0, (5, 5), limit=20.0, few=3)  # of the step without a profiler
Ranged = Callable[[str], AbstractContextManager[Any]]


def write(out: Path, setting: str = "human36m", device: str = "cpu") -> Path:
    """Profile at one of the settings of `cases`, in float32; the path of the page. `trace.json` lies beside it.

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
        trace = out / "trace.json" if title == OURS else None
        times = _profiled(model, frames, chosen, trace)
        step_us = timing.quantile(subjects[title].eager_us, 0.5)
        by_part = flops_by_part(model, lambda model=model: model(frames, chosen.given))  # type: ignore[misc]
        flops = counting.flops(_step(model, frames, chosen))
        profiles[title] = Profile(times, step_us, flops, by_part)
    page = out / "breakdown.md"
    page.write_text(render(profiles, chosen, device))
    return page


# ---- A step, and its ranges


def _nothing(name: str) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


def _step(
    model: MotionRNN, frames: Tensor, setting: ModelSetting, ranged: Ranged = _nothing
) -> Callable[[], object]:
    """Forward, the mean squared error of all predictions, its gradients by all parameters; no optimiser."""
    parameters = list(model.parameters())

    def step() -> object:
        with ranged(STEP):
            with ranged(FORWARD):
                loss = F.mse_loss(model(frames, setting.given), frames[:, 1:])
            with ranged(BACKWARD):
                gradients = torch.autograd.grad(loss, parameters)
            if frames.is_cuda:
                torch.cuda.synchronize()
        return gradients

    return step


def modules_of_parts(model: MotionRNN) -> Iterator[tuple[nn.Module, str, str]]:
    """A module, the part that it is, and its range's name."""
    interfaces = [m for m in model.interfaces if isinstance(m, MotionGRU)]
    layered: dict[str, Sequence[nn.Module]] = {events.CELLS: list(model.cells)}
    layered[events.ENCODE] = [i.encoder for i in interfaces]
    layered[events.MOTION] = [i.cell for i in interfaces]
    layered[events.DECODE] = [i.decoder for i in interfaces]
    layered[events.BLEND] = interfaces  # what of a MotionGRU is in none of the three
    for part, modules in layered.items():
        for level, module in enumerate(modules):
            yield module, part, f"{part} {level + 1}"
    for projection in (model.conv_first, model.conv_last):
        if projection is not None:
            yield projection, events.PROJECTIONS, events.PROJECTIONS


@contextlib.contextmanager
def ranges(model: MotionRNN, ranged: Ranged) -> Iterator[None]:
    """Ranges around the parts of a model's forward pass, as long as this lasts."""
    opened: list[AbstractContextManager[Any]] = []

    def opens(name: str) -> Callable[..., None]:
        def hook(*unused: Any) -> None:
            opened.append(ranged(name))
            opened[-1].__enter__()

        return hook

    def closes(*unused: Any) -> None:
        opened.pop().__exit__(None, None, None)

    def folding(name: str) -> Callable[..., Tensor]:
        fold = getattr(motion_rnn, name)

        def folded(*arguments: Any) -> Tensor:
            with ranged(events.PATCHES):
                return fold(*arguments)

        return folded

    with contextlib.ExitStack() as stack:
        for module, _, name in modules_of_parts(model):
            stack.callback(module.register_forward_pre_hook(opens(name)).remove)
            stack.callback(module.register_forward_hook(closes, always_call=True).remove)
        for name in ("fold_patches", "unfold_patches"):
            stack.enter_context(mock.patch.object(motion_rnn, name, folding(name)))
        yield


def _profiled(model: MotionRNN, frames: Tensor, setting: ModelSetting, trace: Path | None) -> list[Spent]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if frames.is_cuda else [])]
    step = _step(model, frames, setting, record_function)
    with ranges(model, record_function):
        with profile(activities=activities):  # its first use loads and allocates what it needs
            step()
        with profile(activities=activities) as profiler:
            step()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    return events.spent(profiler.events() or [], on_gpu=frames.is_cuda)


def _for_nsight(model: MotionRNN, frames: Tensor, setting: ModelSetting) -> None:
    step = _step(model, frames, setting, torch.cuda.nvtx.range)
    with (
        ranges(model, torch.cuda.nvtx.range),
        torch.cuda.profiler.profile(),
        torch.autograd.profiler.emit_nvtx(),
    ):
        step()


def flops_by_part(model: MotionRNN, forward: Callable[[], object]) -> dict[str, int]:
    """Of one forward pass, by FlopCounterMode: those of convolutions and matrix products. (Backward, it counts some for
    modules that they do not belong to, and without gradients it takes no weights as inputs of modules.)"""
    with FlopCounterMode(display=False) as counter:
        forward()
    names = {module: name for name, module in model.named_modules()}
    counts = counter.get_flop_counts()
    flops = dict.fromkeys(PARTS, 0)
    for module, part, _ in modules_of_parts(model):
        flops[part] += sum(counts.get(f"{type(model).__name__}.{names[module]}", {}).values())
    flops[events.BLEND] -= flops[events.ENCODE] + flops[events.MOTION] + flops[events.DECODE]  # nested in it
    flops[REST] = counter.get_total_flops() - sum(flops.values())
    return flops
