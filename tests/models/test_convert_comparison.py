"""`convert` leaves a layer alone that computes something else only now and then, or keeps something between calls."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from official_modules import StandIn, UserModel, official_parts
from torch import nn

from motionrnn_ext.layers import convert


def reason(layer: type[StandIn]) -> str:
    """Why convert skips such a layer, in a model that is as it was afterwards."""
    model = UserModel(layer)
    before = official_parts(model)
    report = convert(model)
    assert not report.converted and official_parts(model) == before
    return report.skipped["again"]


SOMETIMES = {
    "one sample": lambda x: x.shape[0] == 1,
    "more than two samples": lambda x: x.shape[0] > 2,
    "square maps": lambda x: x.shape[2] == x.shape[3],
    "even maps": lambda x: x.shape[2] % 2 == 0,
    "wide maps": lambda x: x.shape[3] > x.shape[2],
    "tall maps": lambda x: x.shape[2] > x.shape[3],
    "one row": lambda x: x.shape[2] == 1,
    "large maps": lambda x: x.shape[2] * x.shape[3] >= 64 * 64,
    "float32": lambda x: x.dtype == torch.float32,
    "float16": lambda x: x.dtype == torch.float16,
    "bfloat16": lambda x: x.dtype == torch.bfloat16,
    "autocast": lambda x: torch.is_autocast_enabled("cpu"),
    "inference mode": lambda x: torch.is_inference_mode_enabled(),
}


@pytest.mark.parametrize("when", SOMETIMES)
def test_a_layer_that_differs_only_sometimes_is_left_alone(when: str) -> None:
    class Sometimes(StandIn):
        def forward(self, x, offset, mean):
            out, offset, mean = super().forward(x, offset, mean)
            return out, offset, 2 * mean if SOMETIMES[when](x) else mean

    assert "it computes something else: trend" in reason(Sometimes)


@pytest.mark.parametrize("limit", [1e2, 1e4, 1e6])
def test_bounds_are_found(limit: float) -> None:
    class Bounded(StandIn):
        def forward(self, x, offset, mean):
            return super().forward(x, offset.clamp(-limit, limit), mean)

    class BoundedFeatures(StandIn):
        def forward(self, x, offset, mean):
            return super().forward(x.clamp(-limit / 10, limit / 10), offset, mean)

    assert "it computes something else" in reason(Bounded)
    if limit == 1e2:
        assert "it computes something else: out differs" in reason(BoundedFeatures)


class Keeping(StandIn):
    """Computes what the official layer does, and keeps something."""

    steps = 0
    shared: ClassVar[deque[int]] = deque()

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.log, self.sums, self.meter = [0], {"x": torch.zeros(())}, SimpleNamespace(count=0)
        self.hidden = [nn.BatchNorm2d(channels, affine=False).double()]

    def forward(self, x, offset, mean):
        results = super().forward(x, offset, mean)
        self.keep(x)
        return results

    def keep(self, x):
        pass


KEPT = {
    "steps": lambda self, x: setattr(self, "steps", self.steps + 1),
    "warp.last": lambda self, x: setattr(self.warp, "last", x),
    "log[1]": lambda self, x: self.log.append(1),
    "sums['x']": lambda self, x: self.sums["x"].add_(1),
    "meter.count": lambda self, x: setattr(self.meter, "count", self.meter.count + 1),
    "hidden[0]._buffers['num_batches_tracked']": lambda self, x: self.hidden[0](x),
    "shared[0]": lambda self, x: type(self).shared.append(1),
}


@pytest.mark.parametrize("kept", KEPT)
def test_a_layer_that_keeps_state_is_left_alone(kept: str) -> None:
    class Layer(Keeping):
        shared: ClassVar[deque[int]] = deque()
        keep = KEPT[kept]

    assert f"its forward keeps state between calls: it changes {kept}" in reason(Layer)


def test_attributes_that_stay_as_they_are_do_no_harm() -> None:
    assert len(convert(UserModel(Keeping)).converted) == 3


def test_a_layer_whose_forward_is_compiled_keeps_no_state() -> None:
    """Attributes that torch.compile sets on classes do not count as state."""

    class Compiled(StandIn):
        forward = torch.compile(StandIn.forward, backend="eager")

    assert convert(nn.ModuleList([Compiled(4)])).converted == ["0"]


def test_a_layer_with_parameters_elsewhere_is_left_alone() -> None:
    """An adapter in a closure, which starts at zero, changes no result yet."""
    adapter = nn.Conv2d(4, 4, 1, bias=False).double()
    nn.init.zeros_(adapter.weight)

    class Adapted(StandIn):
        def forward(self, x, offset, mean):
            return super().forward(x + adapter(x.double()).to(x), offset, mean)

    wanted = "its results depend on parameters that are not its own, of shape (4, 4, 1, 1)"
    assert reason(Adapted).startswith(wanted)
