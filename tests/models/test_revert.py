"""`revert` hands over what was done to a converted layer, or says what it cannot hand over and reverts nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from official_modules import Idle, StandIn, UserModel, official_parts
from torch import nn

from motionrnn_ext.layers import MotionGRUCell, OffsetWarp, convert, revert


class FullHooks(StandIn):
    """A stand-in whose hooks that do nothing are full backward hooks."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        for conv in (self.update, self.reset, self.output, self.warp.warp_gate):
            conv.register_full_backward_hook(self._set_lr)

    @staticmethod
    def _set_lr(module, grad_input, grad_output):
        grad_input = (grad_input[i] * 0.1 for i in range(len(grad_input)))


class Standing(OffsetWarp):
    """A warp that moves nothing."""

    def forward(self, x, offset):
        return x


@pytest.mark.parametrize("layer", [Idle, FullHooks])
def test_backward_hooks_of_either_kind_come_back(layer: type[StandIn]) -> None:
    model = UserModel(layer)
    flags = [module._is_full_backward_hook for module in model.modules()]
    assert len(convert(model).converted) == 3
    revert(model)
    assert [module._is_full_backward_hook for module in model.modules()] == flags


@pytest.mark.parametrize("copied", [False, True])
def test_a_backward_hook_of_a_converted_layer_runs_after_revert(copied: bool) -> None:
    model, seen = UserModel(), []
    convert(model)
    model.motion_list[1].register_full_backward_hook(lambda *_: seen.append("layer"))
    model.again.update.register_full_backward_hook(lambda *_: seen.append("update"))
    model = copy.deepcopy(model) if copied else model
    for swapped in (True, False):
        model(torch.randn(1, 1, 6, 8)).sum().backward()
        assert sorted(seen) == ["layer", "update", "update"]
        seen.clear()
        if swapped:
            revert(model)


def test_training_modes_inside_a_new_convolution_stay() -> None:
    model = UserModel()
    convert(model)
    model.again.update = nn.Sequential(model.again.update, nn.BatchNorm2d(18).eval())
    revert(model)
    assert isinstance(model.again, StandIn)
    assert model.again.update.training and not model.again.update[1].training


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda cell: cell.register_buffer("count", torch.zeros(1)), "count of its own"),
        (
            lambda cell: cell.warp.register_parameter("scale", nn.Parameter(torch.ones(1))),
            "warp.scale of its own",
        ),
        (lambda cell: cell.add_module("adapter", nn.Conv2d(4, 4, 1)), "the module adapter"),
        (lambda cell: setattr(cell, "alpha", nn.Parameter(torch.tensor(0.3))), "alpha of its own"),
        (lambda cell: setattr(cell, "alpha", 0.9), "alpha=0.9"),
        (lambda cell: setattr(cell, "trend_gate", 0.9), "trend_gate=0.9"),
        (lambda cell: setattr(cell, "trend", False), "trend=False"),
        (lambda cell: setattr(cell, "warp", Standing(4)), "a Standing as warp"),
        (lambda cell: setattr(cell, "forward", cell.forward), "forward of its own"),
    ],
)
def test_what_the_official_layer_has_no_place_for_is_not_lost(change, named: str) -> None:
    model = nn.ModuleList([Idle(4), Idle(4)])
    convert(model)
    change(model[1])
    cells, before = list(model), official_parts(model)
    with pytest.raises(ValueError, match=f"^1 has {named}, which its official module cannot take over"):
        revert(model)
    assert list(model) == cells and official_parts(model) == before


def test_attributes_of_the_official_layer_cannot_be_set_on_the_converted_one() -> None:
    class Adjustable(StandIn):
        momentum = 0.5

        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.scale = 1.0

        def forward(self, x, offset, mean):
            out, offset, mean = super().forward(x, offset, mean)
            return out, self.scale * offset, mean + (self.momentum - 0.5)

    model = UserModel(Adjustable)
    convert(model)
    for name in ("momentum", "scale"):
        with pytest.raises(AttributeError, match=f"{name} is an attribute of the official Adjustable"):
            setattr(copy.deepcopy(model).again, name, 0.9)
    model.again.note, model.again.max_offset = "free", 1e4
    revert(model)
    model.again.momentum = 0.9
    assert "trend of step 1 differs by 0.4" in convert(model).skipped["again"]


def test_a_cell_compiled_by_itself_is_left_alone() -> None:
    """Its wrapper would go on with the cell that it has compiled."""
    model = UserModel()
    convert(model)
    model.motion_list[1] = torch.compile(model.motion_list[1], backend="eager")
    report = revert(model)
    assert report.converted == ["motion_list.0", "again"]
    assert report.skipped == {
        "motion_list.1._orig_mod": "it is compiled by itself (torch.compile); "
        "put its _orig_mod in its place, then revert"
    }


def test_a_network_of_the_layers_name_is_looked_into() -> None:
    class MotionGRU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([StandIn(4)])

    model = MotionGRU()
    assert convert(model).converted == ["layers.0"]
    assert revert(model).converted == ["layers.0"]


def test_a_property_that_hides_a_submodule_is_passed_by() -> None:
    class Trainer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("net", UserModel())

    model = Trainer()
    Trainer.net = property(lambda self: self._modules["net"].stem)
    assert len(convert(model).converted) == 3
    assert isinstance(model._modules["net"].again, MotionGRUCell)
    assert len(revert(model).converted) == 3
