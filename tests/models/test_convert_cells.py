"""convert and revert of recurrent cells of other programs: recognised exactly, equal in a whole network's forward."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from foreign_cells import Cell, ConvLSTMCell, DecoupledCell, HighwayCell, Network, STLSTMCell
from golden import relative_error
from official_program import OPENSTL, needs_checkout, needs_openstl, official_module
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from under_test import CPU, NOT_TESTED

import motionrnn_ext
from motionrnn_ext.layers import convert, revert
from motionrnn_ext.layers.converted_cell import ConvertedCell
from motionrnn_ext.layers.forward_rollout import ForwardRollout
from motionrnn_ext.layers.rollout import current_rollout

KNOWN = [ConvLSTMCell, STLSTMCell, HighwayCell]


@pytest.fixture(autouse=True)
def shared_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share the weights of small float64 convolutions too, which in use are called as such."""
    for module in ("sharing", "converted_cell"):
        monkeypatch.setattr(sys.modules[f"motionrnn_ext.layers.{module}"], "gains", lambda *_: True)


def frames(t: int = 5, dtype: torch.dtype = torch.float64, size: int = 8) -> torch.Tensor:
    return torch.randn(2, t, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def network(cell: type[Cell] = STLSTMCell, dtype: torch.dtype = torch.float64, **options) -> Network:
    torch.manual_seed(0)
    return Network(cell, **options).to(dtype)


def loss_and_gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **found}


def assert_equal(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-12
) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert relative_error(found[name], value) <= tolerance, name


def is_sharing(model: nn.Module, size: int = 8) -> bool:
    """Whether a forward of the model, on maps of this size, opens a rollout in which weights are shared."""
    laid: list[int] = []

    def look(*_: object) -> None:
        active = current_rollout()
        laid.append(len(active._shared) if isinstance(active, ForwardRollout) else 0)

    handle = model.conv_last.register_forward_pre_hook(look)
    with torch.no_grad():
        model(frames(dtype=model.conv_last.weight.dtype, size=size))
    handle.remove()
    return bool(laid[-1])


@pytest.mark.parametrize("cell", KNOWN)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_network_goes_on_with_its_values_gradients_and_keys(cell: type[Cell], backend: str) -> None:
    model, x = network(cell), frames()
    cells, parameters, keys = list(model.cell_list), list(model.parameters()), list(model.state_dict())
    wanted = loss_and_gradients(model, x)

    report = convert(model)
    assert report.converted == ["cell_list.0", "cell_list.1"] and not report.skipped and not report.hooks
    assert report.sharing == ["conv_first", "conv_last"]
    assert all(a is b for a, b in zip(model.parameters(), parameters)) and list(model.state_dict()) == keys
    assert all(isinstance(cell, ConvertedCell) for cell in model.cell_list)
    with motionrnn_ext.backend(backend):
        for _ in range(3):  # the first forward is watched
            assert_equal(loss_and_gradients(model, x), wanted)
        assert is_sharing(model)
    assert str(convert(model)).startswith(
        "converted 0: none; its layers are this package's already: cell_list.0"
    )

    model.eval()
    report = revert(model)
    assert report.converted == ["cell_list.0", "cell_list.1"] and report.sharing == [
        "conv_first",
        "conv_last",
    ]
    assert list(model.cell_list) == cells and not any(cell.training for cell in cells)
    assert type(model.conv_last) is nn.Conv2d and not model._forward_hooks and not model._forward_pre_hooks
    assert not model._forward_hooks_always_called
    assert_equal(loss_and_gradients(model, x), wanted, 0)
    assert not revert(model).converted


def test_the_report_names_what_was_done() -> None:
    model = network(DecoupledCell)
    reason = "its forward returns 5 entries, not a tuple (h, c, m) (training mode)"
    shared = ", ".join(f"cell_list.0.{name}" for name in
                       ("conv_x.0", "conv_h.0", "conv_m.0", "conv_o.0"))  # fmt: skip
    said = (
        f"converted 0: none\nskipped cell_list.0: {reason}\nskipped cell_list.1: {reason}\n"
        f"sharing the weights of 10 convolutions between the steps of a forward: {shared}, cell_list.1.conv_x.0, "
        "cell_list.1.conv_h.0, cell_list.1.conv_m.0, cell_list.1.conv_o.0, ..."
    )
    assert str(convert(model)) == said
    assert "no longer sharing the weights of 10 convolutions" in str(revert(model))


@pytest.mark.parametrize("options", [{"cell": DecoupledCell}, {"cell": STLSTMCell, "norm": 8}])
def test_cells_that_stay_share_the_weights_of_their_convolutions(options: dict) -> None:
    model, x = network(**options), frames()
    wanted = loss_and_gradients(model, x)
    report = convert(model)
    assert not report.converted and len(report.sharing) == 10
    for _ in range(2):
        assert_equal(loss_and_gradients(model, x), wanted)
    assert is_sharing(model)


# ---- Recognition


class OtherBias(STLSTMCell):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._forget_bias = 0.0


class OtherOrder(ConvLSTMCell):
    def forward(self, x_t, h_t, c_t):
        i, g, f, o = (self.conv_x(x_t) + self.conv_h(h_t)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c_t + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Detached(ConvLSTMCell):
    def forward(self, x_t, h_t, c_t):
        return super().forward(x_t, h_t, c_t.detach())


class Keeping(ConvLSTMCell):
    def forward(self, x_t, h_t, c_t):
        self.last = super().forward(x_t, h_t, c_t)
        return self.last


class Starting(ConvLSTMCell):
    def forward(self, x_t, h_t, c_t):
        zeros = x_t.new_zeros(x_t.shape[0], self.num_hidden, *x_t.shape[2:])
        return super().forward(x_t, zeros if h_t is None else h_t, c_t)


class Causal(STLSTMCell):
    outs: ClassVar = {**STLSTMCell.outs, "conv_c": (1, 3)}


class Called(ConvLSTMCell):
    def __call__(self, *args):
        return super().__call__(*args)


def changed(change: Callable[[Cell], object], cell: type[Cell] = STLSTMCell) -> Cell:
    made = cell(3, 4)
    change(made)
    return made


def biased(**options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 28, 5, **{"padding": 2, "bias": False, **options}))


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forget bias": (lambda: OtherBias(3, 4), "computes something else: m of step 1 differs by"),
    "order of the gates": (lambda: OtherOrder(3, 4), "computes something else: c of step 1 differs by"),
    "cut from the graph": (lambda: Detached(3, 4), "computes something else: the gradient of"),
    "a state": (lambda: Keeping(3, 4), "its forward keeps state between calls: it changes last"),
    "None": (lambda: Starting(3, 4), "its forward takes None in place of its states"),
    "layer norm": (lambda: STLSTMCell(3, 4, norm=8), "conv_x has Conv2d, LayerNorm, not a Conv2d alone"),
    "another part": (lambda: Causal(3, 4), r"it is no ConvLSTM or ST-LSTM that is known here: its forward takes \("),
    "a method": (lambda: Called(3, 4), "Called overrides __call__ of nn.Module"),
    "a bias": (
        lambda: changed(lambda m: setattr(m, "conv_x", biased(bias=True))),
        "conv_x is not a same-size 5x5 convolution without bias from 3 to 28",
    ),
    "a stride": (lambda: STLSTMCell(3, 4, stride=2), "conv_x is not a same-size 5x5 convolution without bias"),
    "an even kernel": (lambda: STLSTMCell(3, 4, k=2), "conv_x is not a same-size odd convolution without bias"),
    "another kernel": (
        lambda: changed(lambda m: setattr(m, "conv_h", nn.Sequential(nn.Conv2d(4, 16, 3, padding=1, bias=False)))),
        "conv_h is not a same-size 5x5 convolution without bias from 4 to 16",
    ),
    "dilation": (
        lambda: changed(lambda m: setattr(m, "conv_x", biased(dilation=2, padding=4))),
        "conv_x is not a same-size 5x5",
    ),
    "padding": (
        lambda: changed(lambda m: setattr(m, "conv_x", biased(padding_mode="circular"))),
        "conv_x is not a same-size 5x5",
    ),
    "no convolution": (lambda: changed(lambda m: setattr(m, "conv_m", nn.Linear(4, 4))), "conv_m is a Linear"),
    "nothing": (lambda: changed(lambda m: setattr(m, "conv_m", nn.Sequential())), "conv_m is a Sequential, not a"),
    "a buffer": (
        lambda: changed(lambda m: m.register_buffer("grid", torch.ones(1))),
        "the module has the buffers grid, not none",
    ),
    "a parameter": (
        lambda: changed(lambda m: m.register_parameter("peephole", nn.Parameter(torch.ones(1)))),
        "the module has the parameters peephole, not none",
    ),
    "pruned": (
        lambda: changed(lambda m: prune.l1_unstructured(m.conv_x[0], "weight", 0.5)),
        r"conv_x.0 has the parameters bias, weight_orig, not bias, weight \(pruned",
    ),
    "parametrised": (
        lambda: changed(lambda m: parametrizations.spectral_norm(m.conv_h[0])),
        r"conv_h.0 is parametrised",
    ),
    "its own forward": (
        lambda: changed(lambda m: setattr(m, "forward", m.forward)),
        "forward of the module is replaced on the instance",
    ),
    "hooks": (
        lambda: changed(lambda m: m.conv_o[0].register_forward_hook(print)),
        "it has hooks that would no longer run: forward hook 'print' of conv_o.0",
    ),
    "several dtypes": (lambda: changed(lambda m: m.conv_x.half()), "its parameters are of several kinds"),
    "meta": (lambda: changed(lambda m: m.to("meta")), "its parameters are on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_left_alone_with_a_reason(case: str) -> None:
    make, reason = OTHERS[case]
    other = make()
    model = nn.ModuleList([other])
    report = convert(model)
    assert not report.converted and model[0] is other
    assert re.search(reason, report.skipped["0"]), report.skipped["0"]
    assert bool(report.hooks) == (case in ("hooks", "pruned"))


def test_cells_alike_are_compared_with_their_own_weights() -> None:
    """The second of two equal cells is compared less, and not at all less if a setting differs."""

    class Switching(ConvLSTMCell):
        def forward(self, x_t, h_t, c_t):
            h, c = super().forward(x_t, h_t, c_t)
            return h, c if float(self.conv_x[0].weight.detach().mean()) < 1 else 2 * c

    model = nn.ModuleList([Switching(3, 4), Switching(3, 4)])
    nn.init.constant_(model[1].conv_x[0].weight, 2.0)
    assert "c of step 1 differs" in convert(model).skipped["1"]
    model = nn.ModuleList([STLSTMCell(3, 4), STLSTMCell(3, 4)])
    model[1]._forget_bias = 0.5
    assert "m of step 1 differs" in convert(model).skipped["1"]


def test_a_cell_compiled_by_itself_a_script_and_a_root_are_left_alone() -> None:
    model = nn.ModuleList([torch.compile(STLSTMCell(3, 4), backend="eager")])
    assert "compiled by itself" in convert(model).skipped["0._orig_mod"]
    with pytest.raises(
        ValueError, match="itself a recurrent cell, which cannot be replaced in place; pass the model"
    ):
        convert(STLSTMCell(3, 4))
    model = nn.ModuleList([STLSTMCell(3, 4)])
    convert(model)
    with pytest.raises(ValueError, match="itself a converted recurrent cell; revert the model that holds it"):
        revert(model[0])


# ---- The converted cell as a module


def test_a_converted_cell_has_the_attributes_hooks_and_arguments_of_its_official_one() -> None:
    model, x = network(HighwayCell), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    cell, seen = model.cell_list[1], []
    wanted = cell(x, x, x, x, motion_highway=x)
    convert(model)
    converted = model.cell_list[1]
    assert converted.num_hidden == 4 and not hasattr(converted, "other")
    for found, value in zip(converted(x, x, m_t=x, c_t=x, motion_highway=x), wanted):
        assert torch.equal(found, value)
    with pytest.raises(TypeError, match="wrong"):
        converted(x, x, x, x, wrong=x)
    with pytest.raises(AttributeError, match="_forget_bias is an attribute of the official HighwayCell"):
        converted._forget_bias = 0.0
    converted.note = "free"
    converted.register_forward_hook(lambda *_: seen.append("cell"))
    converted.conv_x[0].register_forward_hook(lambda *_: seen.append("conv"))
    for _ in range(2):
        seen.clear()
        model(frames())
        assert seen == ["conv", "cell"] * 5  # the official forward calls its convolutions
    revert(model)
    seen.clear()
    model(frames())
    assert model.cell_list[1] is cell and seen == ["conv", "cell"] * 5


@pytest.mark.parametrize(
    "change",
    [
        lambda cell: setattr(vars(cell).get("official", cell), "_forget_bias", 0.0),
        lambda cell: setattr(cell, "conv_x", nn.Sequential(nn.Conv2d(4, 28, 5, padding=2).double())),
        lambda cell: prune.l1_unstructured(cell.conv_h[0], "weight", 0.5),
        lambda cell: parametrizations.weight_norm(cell.conv_m[0]),
        lambda cell: cell.conv_o.append(nn.Tanh()),
    ],
)
def test_what_is_done_to_a_cell_afterwards_counts(change: Callable[[nn.Module], object]) -> None:
    """The official forward then runs, in the forward that follows."""
    model, x = network(), frames()
    plain = copy.deepcopy(model)
    convert(model)
    for _ in range(2):
        loss_and_gradients(model, x)
    for each in (plain, model):
        torch.manual_seed(3)
        change(each.cell_list[1])
    assert_equal(loss_and_gradients(model, x), loss_and_gradients(plain, x))
    revert(model)
    assert_equal(loss_and_gradients(model, x), loss_and_gradients(plain, x), 0)


@pytest.mark.parametrize("cell", KNOWN)
@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float32, True), (torch.bfloat16, False)])
def test_half_precision_keeps_dtypes_and_is_as_exact(
    cell: type[Cell], dtype: torch.dtype, mixed: bool
) -> None:
    plain, x = network(cell, dtype), frames(dtype=dtype)
    exact = copy.deepcopy(plain).double()(x.double())
    model = copy.deepcopy(plain)
    assert len(convert(model).converted) == 2
    outputs = []
    for each in (plain, model):
        dtypes = []
        each.cell_list[1].register_forward_hook(
            lambda _m, _i, out, to=dtypes: to.append([t.dtype for t in out])
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            for _ in range(2):
                out = each(x)
        outputs.append((out, dtypes))
    (theirs, their_dtypes), (ours, our_dtypes) = outputs
    assert ours.dtype == theirs.dtype and our_dtypes == their_dtypes
    # bfloat16 rounds to 4e-3: measured 0.5 to 1.2 times the official error.
    assert relative_error(ours.double(), exact) <= 1.5 * relative_error(theirs.double(), exact)


# ---- A forward of a user's, which may do anything


def of(model: nn.Module) -> nn.Parameter:
    return model.cell_list[0].conv_h[0].weight


class Writing(Network):
    """Writes to a weight in the middle of a forward, without gradients, as some regularisers do."""

    def forward(self, frames):
        before = of(self).detach().clone()

        def write(t: int) -> None:
            if t == 2:
                self.write(0.5 * before)

        self.between = write
        try:
            return super().forward(frames)
        finally:
            self.write(before)

    def write(self, value):
        with torch.no_grad():
            of(self).copy_(value)


class Replacing(Writing):
    def write(self, value):
        self.cell_list[0].conv_h[0].weight = nn.Parameter(value)


class Pointing(Writing):
    def write(self, value):
        of(self).data = value


class Hiding(Writing):
    def write(self, value):
        of(self).data.copy_(value)


@pytest.mark.parametrize("kind", [Writing, Replacing, Pointing])
def test_a_weight_that_changes_within_a_forward_is_noticed(kind: type[Network]) -> None:
    torch.manual_seed(0)
    plain = kind(STLSTMCell).double()
    model, x = copy.deepcopy(plain), frames()
    convert(model)
    with torch.no_grad():
        for _ in range(3):
            assert relative_error(model(x), plain(x)) <= 1e-12


def test_a_weight_that_changes_behind_autograd_turns_sharing_off() -> None:
    class Ending(Hiding):
        """Leaves the weight changed, so that the end of the forward shows it."""

        def forward(self, frames):
            out = super().forward(frames)
            of(self).data.mul_(0.9)
            return out

    torch.manual_seed(0)
    plain = Ending(STLSTMCell).double()
    model, x = copy.deepcopy(plain), frames()
    convert(model)
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="the weights of Ending change within its forward, written"),
    ):
        assert relative_error(model(x), plain(x)) <= 1e-12
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relative_error(model(x), plain(x)) <= 1e-12
    assert not is_sharing(model)


def test_gradients_that_are_switched_within_a_forward() -> None:
    """The first steps run without gradients, or a backward pass runs in the middle."""
    model = network()

    def without(t: int) -> None:
        torch.set_grad_enabled(t >= 2)

    model.between = without
    plain, x = copy.deepcopy(model), frames()
    convert(model)
    for _ in range(3):
        assert_equal(loss_and_gradients(model, x), loss_and_gradients(plain, x))


class Truncated(Network):
    """Backward after every second step, within forward, as truncated training does."""

    def forward(self, frames):
        outs = []
        for part in frames.split(3, dim=1):
            out = super().forward(part)
            out.square().mean().backward(retain_graph=False)
            outs.append(out.detach())
        return torch.cat(outs, 1).requires_grad_()


def test_backward_within_a_forward() -> None:
    torch.manual_seed(0)
    model, x = Truncated(STLSTMCell).double(), frames(9)
    plain = copy.deepcopy(model)
    convert(model)
    for _ in range(3):
        for each in (model, plain):
            each.zero_grad()
            each(x)
        for a, b in zip(model.parameters(), plain.parameters()):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or relative_error(a.grad, b.grad) <= 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_activation_checkpointing(reentrant: bool, whole: bool) -> None:
    class Saving(Network):
        def forward(self, frames):
            if not whole:
                for cell in self.cell_list:
                    step = cell.forward
                    cell.__dict__["forward"] = lambda *a, step=step: checkpoint(
                        step, *a, use_reentrant=reentrant
                    )
            try:
                return super().forward(frames)
            finally:
                for cell in self.cell_list:
                    cell.__dict__.pop("forward", None)

    torch.manual_seed(0)
    plain, x = Saving(STLSTMCell).double(), frames()
    model = copy.deepcopy(plain)
    convert(model)

    def run(each: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return (lambda x: checkpoint(each, x, use_reentrant=reentrant)) if whole else each

    for _ in range(3):
        found = []
        for each in (model, plain):
            each.zero_grad()
            out = run(each)(x.clone().requires_grad_())
            out.square().mean().backward()
            found.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
        assert_equal(*found)


def test_an_interrupt_in_a_forward_leaves_nothing_open() -> None:
    model, x = network(), frames()
    wanted = loss_and_gradients(model, x)
    convert(model)
    for error in (ValueError, KeyboardInterrupt):

        def fail(t: int, error: type[BaseException] = error) -> None:
            if t == 2:
                raise error

        model(x)
        model.between = fail
        with pytest.raises(error):
            model(x)
        assert (current_rollout() is None) == (error is ValueError)
        model.between = lambda t: None
        for _ in range(2):
            assert_equal(loss_and_gradients(model, x), wanted)
        assert current_rollout() is None


def test_models_within_models_share_between_all_of_their_calls() -> None:
    class Layer(nn.Module):
        def __init__(self, *args, **options):
            super().__init__()
            self.cell = ConvLSTMCell(*args, **options)

        def forward(self, x, h, c):
            return self.cell(x, h, c)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer(3, 4)

        def forward(self, frames):
            h = c = frames.new_zeros(frames.shape[0], 4, *frames.shape[3:])
            for x in frames.unbind(1):
                h, c = self.layer(x, h, c)
            return h

    torch.manual_seed(0)
    model, x = Outer().double(), frames()
    wanted = loss_and_gradients(model, x)
    convert(model)
    for _ in range(2):
        assert_equal(loss_and_gradients(model, x), wanted)
    active = []
    model.layer.cell.register_forward_hook(lambda *_: active.append(current_rollout()))
    model(x)
    assert len(set(map(id, active))) == 1 and len(active) == 5


def test_few_steps_share_nothing() -> None:
    """A model that is called for each frame would lay its weights out for one call."""
    model = network()
    convert(model)
    for t, shares in ((1, False), (2, False), (5, False), (5, True), (1, True), (1, False)):
        laid: list[int] = []
        handle = model.register_forward_hook(
            lambda *_, to=laid: to.append(len(current_rollout()._shared)), prepend=True
        )
        model(frames(t))
        handle.remove()
        assert bool(laid[0]) == shares, t


@pytest.mark.parametrize(
    ("options", "dtype", "size", "shares"),
    [
        ({"hidden": 32}, torch.float32, 8, True),
        ({"hidden": 32, "k": 3}, torch.float32, 8, False),
        ({"hidden": 32, "k": 3}, torch.float32, 16, True),
        ({"hidden": 8}, torch.float32, 16, False),
        ({"hidden": 32}, torch.float64, 8, False),
    ],
)
@pytest.mark.parametrize("cell", [STLSTMCell, DecoupledCell])
def test_weights_are_shared_where_that_is_faster(cell, options, dtype, size, shares, monkeypatch) -> None:
    """On a CPU: where convolutions run by Winograd's algorithm."""
    monkeypatch.undo()
    if CPU.name in NOT_TESTED:
        pytest.skip(f"no kernels: {NOT_TESTED['cpu']}")
    model = network(cell, dtype, **options)
    convert(model)
    model(frames(dtype=dtype, size=size))
    assert is_sharing(model, size) == shares
    with motionrnn_ext.backend("reference"):
        assert not is_sharing(model, size)


def test_maps_of_other_sizes_in_one_forward() -> None:
    """Also in the sizes that run by Winograd's algorithm and those that do not."""

    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Network(STLSTMCell, hidden=32, k=5)

        def forward(self, frames):
            small = nn.functional.avg_pool3d(frames, (1, 4, 4))
            return self.net(frames).mean() + self.net(small).mean() + self.net(frames[:1]).mean()

    torch.manual_seed(0)
    plain, x = Scales(), frames(3, torch.float32).repeat(1, 1, 1, 2, 2)
    model = copy.deepcopy(plain)
    convert(model)
    for _ in range(2):
        found, wanted = loss_and_gradients(model, x), loss_and_gradients(plain, x)
        assert_equal(found, wanted, 2e-5)  # float32; measured 2e-6


def test_compiled_traced_and_functional_calls_run_the_official_forward() -> None:
    model, x = network(), frames()
    wanted = model(x)
    convert(model)
    model(x)
    compiled = torch.compile(model, backend="eager")
    assert relative_error(compiled(x), wanted) <= 1e-12
    halved = {name: 0.5 * p.detach() for name, p in model.named_parameters()}
    plain = copy.deepcopy(model)
    revert(plain)
    for _ in range(2):
        found = torch.func.functional_call(model, halved, (x,))
        assert relative_error(found, torch.func.functional_call(plain, halved, (x,))) <= 1e-12
        assert relative_error(model(x), wanted) <= 1e-12
    _, tangent = torch.func.jvp(model, (x,), (x,))
    assert relative_error(tangent, torch.func.jvp(plain, (x,), (x,))[1]) <= 1e-12


def test_second_gradients() -> None:
    model, x = network(ConvLSTMCell), frames(3)
    plain = copy.deepcopy(model)
    convert(model)
    model(x)
    found = []
    for each in (model, plain):
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(each(given).square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [p for p in each.parameters() if p.requires_grad],
                                         allow_unused=True))  # fmt: skip
    for a, b in zip(*found):
        assert (a is None) == (b is None) and (a is None or relative_error(a, b) <= 1e-11)


# ---- Copies and wrappers


def test_copies_and_pickles_stand_alone() -> None:
    model, x = network(), frames()
    wanted = loss_and_gradients(model, x)
    convert(model)
    loss_and_gradients(model, x)
    written = io.BytesIO()
    torch.save(model.cell_list, written)
    written.seek(0)
    loaded = torch.load(written, weights_only=False)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for _ in range(2):
        assert_equal(loss_and_gradients(twin, x), wanted)
    assert is_sharing(twin)
    assert list(revert(twin).converted) == ["cell_list.0", "cell_list.1"]
    assert_equal(loss_and_gradients(twin, x), wanted)
    assert isinstance(twin.cell_list[0], STLSTMCell)
    twin.cell_list = loaded
    assert_equal(loss_and_gradients(twin, x), wanted)


def test_a_replica_of_data_parallel_has_its_own_parameters() -> None:
    model, x = network(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    convert(model)
    cell = model.cell_list[0]
    replica = cell._replicate_for_data_parallel()
    replica._modules = {name: copy.deepcopy(part) for name, part in replica._modules.items()}
    for part in replica._modules.values():
        for p in part.parameters():
            nn.init.zeros_(p)
    states = (torch.randn(1, 4, 8, 8, dtype=torch.float64),) * 3
    assert replica(x, *states)[0].eq(0).all() and not cell(x, *states)[0].eq(0).all()


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models(wrap) -> None:
    model, x = wrap(network()), frames()
    wanted = model(x)
    assert len(convert(model).converted) == 2
    for _ in range(2):
        assert relative_error(model(x), wanted) <= 1e-12
    assert len(revert(model).converted) == 2 and torch.equal(model(x), wanted)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("each_cell", [True, False])
def test_a_sharded_model(one_process, each_cell: bool) -> None:
    """Its cells are converted before; whole and in parts."""
    model, x = network(dtype=torch.float32), frames(dtype=torch.float32)
    wanted = loss_and_gradients(model, x)
    convert(model)
    mesh = init_device_mesh("cpu", (1,))
    for part in [*model.cell_list, model] if each_cell else [model]:
        fully_shard(part, mesh=mesh)
    for _ in range(2):
        found = loss_and_gradients(model, x)
        assert_equal(
            {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in found.items()},
            wanted,
            1e-5,
        )
    assert len(revert(model).converted) == 2


def test_a_distributed_model(one_process) -> None:
    model, x = network(HighwayCell), frames()
    wanted = loss_and_gradients(model, x)
    parallel = nn.parallel.DistributedDataParallel(model)
    for swap in (convert, lambda m: None, lambda m: None, revert):
        swap(parallel)
        found = loss_and_gradients(parallel, x)
        assert_equal({name.removeprefix("module."): t for name, t in found.items()}, wanted)


# ---- The real programs


PREDRNN = os.environ.get("MOTIONRNN_EXT_PREDRNN")
needs_predrnn = pytest.mark.skipif(
    not PREDRNN, reason="MOTIONRNN_EXT_PREDRNN is unset: no checkout of thuml/predrnn-pytorch to compare with"
)


def configs(**options) -> SimpleNamespace:
    return SimpleNamespace(
        patch_size=2, img_channel=1, img_width=16, img_height=16, filter_size=3, stride=1, layer_norm=0, device="cpu",
        total_length=6, input_length=3, reverse_scheduled_sampling=0, batch_size=2, visual=0, visual_path="",
        decouple_beta=0.1, in_shape=(3, 1, 16, 16), pre_seq_length=3, aft_seq_length=3, **options,
    )  # fmt: skip


def check_program(network: nn.Module, converted: int, skipped: int) -> None:
    """Compare a program's network with its converted copy, where it runs: in float32, with its own random states."""
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    model = copy.deepcopy(network)
    report = convert(model)
    assert len(report.converted) == converted and len(report.skipped) == skipped, str(report)
    torch.manual_seed(0)
    x, mask = torch.rand(2, 6, 8, 8, 4), torch.zeros(2, 2, 8, 8, 4)
    for _ in range(2):
        found = []
        for each in (model, network):
            for part in each.modules():
                if hasattr(part, "convlstm_c"):
                    part.convlstm_c = None
            each.zero_grad()
            torch.manual_seed(1)
            out, loss = each(x, mask)
            loss.backward()
            found.append(
                {name: p.grad for name, p in each.named_parameters() if p.grad is not None} | {"out": out}
            )
        assert_equal(*found, 2e-5)  # float32; measured 3e-6
    revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in network.modules()]


@needs_checkout
def test_the_real_motionrnn() -> None:
    program = official_module("core.models.MotionRNN_PredRNN")
    check_program(program.RNN(3, [8, 8, 8], configs()), converted=5, skipped=0)


@needs_openstl
@pytest.mark.parametrize(
    ("file", "name", "cells", "converted", "skipped"),
    [
        ("convlstm", "ConvLSTM_Model", "convlstm", 2, 0),
        ("predrnn", "PredRNN_Model", "predrnn", 2, 0),
        ("predrnnv2", "PredRNNv2_Model", "predrnnv2", 0, 2),
        ("mim", "MIM_Model", "mim", 1, 2),
    ],
)
def test_the_real_openstl(
    monkeypatch, file: str, name: str, cells: str, converted: int, skipped: int
) -> None:
    for package in ("openstl", "openstl.modules", "openstl.models"):
        made = ModuleType(package)
        made.__path__ = [os.path.join(OPENSTL or "", *package.split("."))]
        monkeypatch.setitem(sys.modules, package, made)
    for each in ("predrnn", "mim", cells):
        module = importlib.import_module(f"openstl.modules.{each}_modules")
        for key, value in vars(module).items():
            setattr(sys.modules["openstl.modules"], key, value)
    program = getattr(importlib.import_module(f"openstl.models.{file}_model"), name)
    check_program(program(2, [8, 8], configs()), converted, skipped)


@needs_predrnn
@pytest.mark.parametrize(
    ("file", "converted"), [("SpatioTemporalLSTMCell", 2), ("SpatioTemporalLSTMCell_v2", 0)]
)
def test_the_real_predrnn(file: str, converted: int) -> None:
    path = os.path.join(PREDRNN or "", "core", "layers", f"{file}.py")
    spec = importlib.util.spec_from_file_location("predrnn_cells", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = [module.SpatioTemporalLSTMCell(inputs, 8, 8, 3, 1, 0) for inputs in (3, 8)]
    model = nn.ModuleList(made).double()
    report = convert(model)
    assert len(report.converted) == converted and len(report.skipped) == 2 - converted
