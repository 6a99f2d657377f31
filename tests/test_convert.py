"""convert and revert on a user's model, with a stand-in of the official MotionGRU's structure and the real
one."""

from __future__ import annotations

import copy

import pytest
import torch
from golden import relative_error
from official_program import needs_checkout, official_module
from torch import nn

import motionrnn_ext
from motionrnn_ext.backends import reference
from motionrnn_ext.layers import MotionGRUCell, convert, from_official, revert


class StandInWarp(nn.Module):
    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, k, stride=k, bias=False)
        self.warp_gate = nn.Conv2d(channels, k * k, 3, padding=1)


class StandIn(nn.Module):
    """Attribute names, sizes and results of the official MotionGRU, in a few lines of plain PyTorch."""

    def __init__(self, channels: int, motion: int = 18, k: int = 3) -> None:
        super().__init__()
        self.update, self.reset, self.output = (
            nn.Conv2d(channels + motion, motion, 3, padding=1) for _ in "urz"
        )
        self.warp = StandInWarp(channels, k)

    def forward(self, x, offset, mean):
        u = torch.sigmoid(self.update(torch.cat([x, offset], 1)))
        r = torch.sigmoid(self.reset(torch.cat([x, offset], 1)))
        z = torch.tanh(self.output(torch.cat([x, r * offset], 1)))
        mean = mean + 0.5 * (offset - mean)
        offset = u * z + (1 - u) * offset + mean
        return reference.offset_warp(x, offset, self.warp.warp_gate(x), self.warp.conv.weight), offset, mean


class UserModel(nn.Module):
    """Two MotionGRUs in a list, one of them used under a second name too."""

    def __init__(self, layer=StandIn) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.motion_list = nn.ModuleList(layer(4) for _ in range(2))
        self.again = self.motion_list[0]

    def forward(self, x):
        offset = mean = x.new_zeros(x.shape[0], 18, *x.shape[2:])
        x = self.stem(x)
        for layer in (*self.motion_list, self.again):
            x, offset, mean = layer(x, offset, mean)
        return x + offset.mean()


def loss_and_gradients(model, x):
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def test_convert_keeps_parameters_keys_results_and_reverts() -> None:
    torch.manual_seed(0)
    model = UserModel().double().eval()
    x = torch.randn(2, 1, 6, 8, dtype=torch.float64)
    originals, parameters = list(model.motion_list), list(model.parameters())
    keys, before = list(model.state_dict()), loss_and_gradients(model, x)

    report = convert(model)
    assert report.converted == ["motion_list.0", "motion_list.1", "again"]
    assert not report.skipped and not report.hooks
    assert all(isinstance(layer, MotionGRUCell) and not layer.training for layer in model.motion_list)
    assert model.again is model.motion_list[0]
    assert all(a is b for a, b in zip(model.parameters(), parameters)) and list(model.state_dict()) == keys
    for ours, theirs in zip(loss_and_gradients(model, x), before):
        assert relative_error(ours, theirs) <= 1e-12
    assert not convert(model).converted  # nothing left to do

    model.train()
    assert revert(model).converted == ["motion_list.0", "motion_list.1", "again"]
    assert list(model.motion_list) == originals and model.again is originals[0]
    assert all(layer.training for layer in originals)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert not revert(model).converted


def test_an_optimizer_goes_on_through_convert_and_revert() -> None:
    def train(swaps: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, x = UserModel().double(), torch.randn(2, 1, 6, 8, dtype=torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(4):
            if swaps and step in (1, 3):
                convert(model) if step == 1 else revert(model)
            loss_and_gradients(model, x)
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for ours, theirs in zip(train(True), train(False)):
        assert relative_error(ours, theirs) <= 1e-9


def test_revert_takes_replaced_parameters_along() -> None:
    model = UserModel()
    convert(model)
    new = {name: torch.full_like(t, 0.25) for name, t in model.state_dict().items()}
    model.load_state_dict(new, assign=True)  # makes new Parameter objects
    revert(model)
    assert isinstance(model.again, StandIn) and model.again.reset.weight.eq(0.25).all()


def test_copies_of_a_converted_model_stand_alone() -> None:
    model = UserModel()
    convert(model)
    twin = copy.deepcopy(model)
    revert(twin)
    assert isinstance(twin.again, StandIn) and isinstance(model.again, MotionGRUCell)
    assert twin.again.update.weight is not model.again.update.weight


def test_hooks_are_reported() -> None:
    model = UserModel()
    model.motion_list[1].update.register_full_backward_hook(lambda *_: None)
    model.motion_list[1].register_forward_hook(lambda *_: None)
    report = convert(model)
    assert report.hooks == ["motion_list.1", "motion_list.1.update"]
    assert "hooks that no longer run: motion_list.1, motion_list.1.update" in str(report)


@pytest.mark.parametrize(
    ("attribute", "replacement", "reason"),
    [
        (
            "update",
            nn.Conv2d(22, 17, 3, padding=1),
            "update is not a same-size convolution with bias from 22 to 18",
        ),
        (
            "reset",
            nn.Conv2d(22, 18, 3, padding=1, bias=False),
            "reset is not a same-size convolution with bias",
        ),
        ("output", nn.Linear(22, 18), "output is a Linear, not a Conv2d"),
        ("output", nn.Conv2d(22, 18, 1), "output is not a same-size convolution"),
    ],
)
def test_lookalikes_are_left_alone_with_a_reason(attribute: str, replacement: nn.Module, reason: str) -> None:
    model = UserModel()
    setattr(model.motion_list[1], attribute, replacement)
    report = convert(model)
    assert report.converted == ["motion_list.0", "again"]
    assert reason in report.skipped["motion_list.1"] and reason in str(report)
    assert isinstance(model.motion_list[1], StandIn)
    with pytest.raises(ValueError, match=reason):
        from_official(model.motion_list[1])


def test_a_root_cannot_be_swapped_in_place() -> None:
    with pytest.raises(ValueError, match="assign the result"):
        convert(StandIn(4))
    cell = from_official(StandIn(4))
    assert isinstance(cell, MotionGRUCell)
    with pytest.raises(ValueError, match="revert the model that holds it"):
        revert(cell)
    assert not convert(MotionGRUCell(4)).converted
    with pytest.raises(ValueError, match="it should have update, reset"):
        from_official(nn.Linear(2, 2))


@needs_checkout
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_real_official_layer(backend: str) -> None:
    official = official_module("core.layers.MotionGRU").MotionGRU
    torch.manual_seed(0)
    model = UserModel(lambda channels: official(channels, 18, 3)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 1, 6, 8, dtype=torch.float64)
    before = loss_and_gradients(model, x)
    report = convert(model)
    assert report.converted == ["motion_list.0", "motion_list.1", "again"]
    assert len(report.hooks) == 8  # four no-op backward hooks in each layer
    with motionrnn_ext.backend(backend):
        for ours, theirs in zip(loss_and_gradients(model, x), before):
            assert relative_error(ours, theirs) <= 1e-11
    revert(model)
    for ours, theirs in zip(loss_and_gradients(model, x), before):
        assert torch.equal(ours, theirs)
    strict = MotionGRUCell(4).double()
    strict.load_state_dict(model.again.state_dict(), strict=True)


@needs_checkout
def test_same_seed_same_initial_values_as_the_official_layer() -> None:
    official = official_module("core.layers.MotionGRU").MotionGRU
    torch.manual_seed(3)
    theirs = official(16, 18, 3).state_dict()
    torch.manual_seed(3)
    ours = MotionGRUCell(16).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
