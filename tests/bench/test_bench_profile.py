"""What `motionrnn bench --profile` makes of a training step: shares of kinds of work and of parts, and their page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from motionrnn_ext import backends
from motionrnn_ext.benchmarks.profile import events as profile_events
from motionrnn_ext.benchmarks.profile import profiles
from motionrnn_ext.benchmarks.profile.events import KINDS, PARTS, kind

EXAMPLES = {
    profile_events.CONVOLUTIONS: ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::addmm"),
    profile_events.WARP: ("motionrnn_ext::offset_warp", "motionrnn_ext::motion_warp_backward",
                          "GeneratedBackwardFor_motionrnn_ext_offset_warp_default"),
    profile_events.GATES: ("motionrnn_ext::motion_gates", "motionrnn_ext::motion_gates_backward"),
    profile_events.FUSED: ("motionrnn_ext::memory_update", "motionrnn_ext::gated_blend_backward"),
    profile_events.ELEMENTWISE: ("aten::add_", "aten::sigmoid", "aten::mse_loss_backward", "aten::sum"),
    profile_events.COPIES: ("aten::copy_", "aten::cat", "aten::clone", "aten::empty_strided", "aten::zeros"),
    profile_events.AUTOGRAD: ("autograd::engine::evaluate_function: AddBackward0", "ConvolutionBackward0", "backward",
                              "GeneratedBackwardFor_motionrnn_ext_offset_warp_defaultBackward"),
    profile_events.CALLS: ("aten::view", "aten::split_with_sizes", "aten::reshape",
                           "aten::result_type", "aten::no_such_op"),
    profile_events.PYTHON: ("training step", "forward", "MotionGRU gate 12", "patches"),
    profile_events.IDLE: (profile_events.IDLE,),
}  # fmt: skip


@pytest.mark.parametrize("expected", KINDS)
def test_every_kind_of_work_has_its_ops(expected: str):
    assert {name: kind(name) for name in EXAMPLES[expected]} == dict.fromkeys(EXAMPLES[expected], expected)


def lines_with(page: str, *texts: str) -> list[str]:
    return [line for line in page.splitlines() if all(text in line for text in texts)]


def test_a_profile_adds_up(tmp_path: Path):
    page = profiles.write(tmp_path / "profile", "dry run")
    assert page.name == "breakdown.md" and json.loads((page.parent / "trace.json").read_text())["traceEvents"]
    text = page.read_text()
    for heading in ("By kind of work", "By part of the model", "The 15 longest ops of MotionRNN-PredRNN"):
        assert f"\n## {heading}\n" in text
    assert lines_with(text, "| together |", "| 100% |")
    assert lines_with(text, "MotionRNN-PredRNN over base predictor")


def test_times_of_kinds_and_parts_are_the_steps():
    if why := backends.unavailable_reason("cpu"):
        pytest.skip(f"the reference has no fused kernels to be found; the backend cpu: {why}")
    setting = profiles.DRY_RUN
    case = profiles.ModelCase(setting, "float32", profiles.TRAINING)
    model, frames = case.model("ours"), case.frames("cpu")
    times = profiles._profiled(model, frames, setting, None)
    step = sum(s.microseconds for s in times)
    shares = profile_events.totals(times, "kind")
    assert sum(shares.values()) == pytest.approx(step) and set(shares) <= set(KINDS)
    ways = profile_events.totals(times, "part", "way")
    assert sum(ways.values()) == pytest.approx(step)
    assert all(ways[part, way] > 0 for part in PARTS for way in ("forward", "backward"))
    calls = {s.name: sum(t.calls for t in times if t.name == s.name) for s in times}
    steps, interfaces = setting.total - 1, len(model.interfaces)
    assert calls["motionrnn_ext::offset_warp"] == steps * interfaces  # the Function inside is no second call
    warps = {(s.part, s.way) for s in times if s.kind == profile_events.WARP}
    assert warps == {(profile_events.MOTION, "forward"), (profile_events.MOTION, "backward")}


def test_a_profile_leaves_nothing_on_the_model():
    case = profiles.ModelCase(profiles.DRY_RUN, "float32", profiles.TRAINING)
    model, fold = case.model("ours"), profiles.motion_rnn.fold_patches
    with profiles.ranges(model, profiles._nothing):
        assert profiles.motion_rnn.fold_patches is not fold
    assert profiles.motion_rnn.fold_patches is fold
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_flops_by_part_are_all_of_the_forward_pass():
    case = profiles.ModelCase(profiles.DRY_RUN, "float32", profiles.TRAINING)
    model, frames = case.model("ours"), case.frames("cpu")

    def forward() -> object:
        return model(frames, profiles.DRY_RUN.given)

    flops = profiles.flops_by_part(model, forward)
    assert sum(flops.values()) == profiles.counting.flops(forward)
    assert set(flops) == set(PARTS) and min(flops.values()) >= 0
    encoder = model.interfaces[0].encoder
    maps = (profiles.DRY_RUN.size // profiles.DRY_RUN.patch // 2) ** 2
    steps = (profiles.DRY_RUN.total - 1) * len(model.interfaces)
    assert flops[profile_events.ENCODE] == 2 * encoder.weight.numel() * maps * steps
    assert flops[profile_events.PATCHES] == 0


def test_on_a_gpu_what_no_kernel_takes_is_idle():
    """Of made-up events: a step of 100 us, in which an op launches a kernel of 30."""

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
    part = Event(
        "MotionGRU cell 1", 5, 60, step, (Kernel(),)
    )  # a range has what its ops have: not counted twice
    events = [step, part, Event("motionrnn_ext::offset_warp", 10, 20, part, (Kernel(),))]
    kinds = profile_events.totals(profile_events.spent(events, on_gpu=True), "kind")
    assert kinds[profile_events.WARP] == 30 and kinds[profile_events.IDLE] == 70
    assert sum(kinds.values()) == 100


def test_an_unknown_setting_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="setting is 'kth'; it should be one of human36m, vmnist"):
        profiles.write(tmp_path, "kth")
