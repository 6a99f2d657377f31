"""Does `motionrnn bench --profile` divide a training step into its parts, and write that on its page?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from motionrnn_ext.benchmarks.cases import DRY_RUN
from motionrnn_ext.benchmarks.measuring import counting
from motionrnn_ext.benchmarks.measuring.model_cases import TRAINING, ModelCase
from motionrnn_ext.benchmarks.profile import parts, profiles

CASE = ModelCase(DRY_RUN, "float32", TRAINING)


def test_the_page(tmp_path: Path):
    page = profiles.write(tmp_path / "profile", "dry run")
    assert page.name == "breakdown.md" and json.loads((page.parent / "trace.json").read_text())["traceEvents"]
    text = page.read_text()
    for heading in ("The step", "By part of the model", "The 15 longest ops of MotionRNN-PredRNN",
                    "The 15 longest ops of base predictor"):  # fmt: skip
        assert f"\n## {heading}\n" in text
    assert "| MotionRNN-PredRNN over base predictor | " in text and "| 100% | 100% |" in text
    assert "Self CPU time total" in text and text.count("aten::") > 5


def test_times_of_the_parts_are_the_steps(monkeypatch: pytest.MonkeyPatch):
    events, divided = [], parts.times_by_part

    def keep(found, on_gpu):
        events.extend(found)
        return divided(found, on_gpu)

    monkeypatch.setattr(parts, "times_by_part", keep)
    times, _ = profiles.profiled(CASE.model("ours"), CASE.frames("cpu"), DRY_RUN, None)
    (step,) = [e for e in events if e.name == parts.STEP]
    assert sum(times.values()) == pytest.approx(step.cpu_time_total)
    assert all(times[part, way] > 0 for part in parts.PARTS for way in ("forward", "backward"))


def test_a_profile_leaves_nothing_on_the_model():
    model, fold = CASE.model("ours"), parts.motion_rnn.fold_patches
    with parts.ranges(model, profiles.nothing):
        assert parts.motion_rnn.fold_patches is not fold
    assert parts.motion_rnn.fold_patches is fold
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_flops_by_part_are_all_of_the_forward_pass():
    model, frames = CASE.model("ours"), CASE.frames("cpu")

    def forward() -> object:
        return model(frames, DRY_RUN.given)

    flops = parts.flops_by_part(model, forward)
    assert sum(flops.values()) == counting.flops(forward)
    assert set(flops) == set(parts.PARTS) and min(flops.values()) >= 0
    encoder = model.interfaces[0].encoder
    maps = (DRY_RUN.size // DRY_RUN.patch // 2) ** 2
    steps = (DRY_RUN.total - 1) * len(model.interfaces)
    assert flops[parts.ENCODE] == 2 * encoder.weight.numel() * maps * steps
    assert flops[parts.PATCHES] == 0


def test_on_a_gpu_the_time_without_a_kernel_is_idle():
    """The events are made up: a step of 100 us, in which an op launches a kernel of 30 us."""

    class Event:
        def __init__(
            self, name: str, start: float, end: float, parent: Event | None = None, kernels: tuple = ()
        ):
            self.name, self.cpu_parent, self.kernels, self.is_async = name, parent, kernels, False
            self.device_type, self.sequence_nr, self.scope = torch.autograd.DeviceType.CPU, -1, 0
            self.time_range = torch.autograd.profiler_util.Interval(start, end)

    class Kernel:
        duration = 30.0

    step = Event("training step", 0, 100)
    part = Event("MotionGRU cell 1", 5, 60, step, (Kernel(),))  # a range lists its ops' kernels again
    events = [step, part, Event("motionrnn_ext::offset_warp", 10, 20, part, (Kernel(),))]
    times = parts.times_by_part(events, on_gpu=True)
    assert times[parts.MOTION, "forward"] == 30 and times[parts.IDLE, "forward"] == 70
    assert sum(times.values()) == 100


def test_an_unknown_setting_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="setting is 'kth'; it should be one of human36m, vmnist"):
        profiles.write(tmp_path, "kth")
