"""convert and revert on a user's model, with a stand-in of the official MotionGRU's structure and the real
one."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from golden import relative_error
from official_modules import Idle, StandIn, UserModel, official_parts
from official_program import needs_checkout, official_module
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import prune

import motionrnn_ext
from motionrnn_ext.layers import MotionGRUCell, convert, from_official, revert


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


class Wrapper:
    """A program's own class around its network, as the official `Model`."""

    def __init__(self) -> None:
        self.configs, self.network = {"lr": 1e-3}, UserModel()


class Holder:
    """Its module is a property, as in many trainers."""

    @property
    def model(self) -> nn.Module:
        return UserModel()

    @property
    def net(self) -> nn.Module:
        raise RuntimeError("not yet")


class Private:
    def __init__(self) -> None:
        self._net = UserModel()


class Nested:
    """A program whose method holds the model."""

    def __init__(self) -> None:
        self.steps, self.method = 3, Wrapper()


@pytest.mark.parametrize("function", [convert, revert, from_official])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Private(), "model is of type Private; it should be a torch.nn.Module: pass model._net"),
        (Nested(), "model is of type Nested; it should be a torch.nn.Module: pass model.method.network"),
        (Wrapper(), "model is of type Wrapper; it should be a torch.nn.Module: pass model.network"),
        (Holder(), "model is of type Holder; it should be a torch.nn.Module: pass model.model"),
        (UserModel, "model is the class UserModel; it should be a torch.nn.Module, an instance of it"),
        ([StandIn(4)], "model is of type list; it should be a torch.nn.Module: the one that holds these"),
        (
            {"a": StandIn(4)},
            "model is of type dict; it should be a torch.nn.Module: the one that holds these",
        ),
        (
            StandIn(4).state_dict(),
            "model is of type OrderedDict; it should be a torch.nn.Module: "
            "load these tensors into one with load_state_dict, and pass that",
        ),
        (
            UserModel().forward,
            "model is of type method; it should be a torch.nn.Module: the one whose method this is",
        ),
        ("model.ckpt", "model is of type str; it should be a torch.nn.Module"),
        (None, "model is of type NoneType; it should be a torch.nn.Module"),
    ],
)
def test_what_is_no_module_is_told_what_to_pass(function, given, message: str) -> None:
    with pytest.raises(TypeError) as error:
        function(given)
    assert str(error.value) == message


def test_reports_say_what_was_done_and_why_nothing_was() -> None:
    model = UserModel()
    names = "motion_list.0, motion_list.1, again"
    assert str(revert(model)) == ("reverted 0: none; no converted module among the 17 of this model")
    assert str(convert(model)) == f"converted 3: {names}"
    assert str(convert(model)) == (
        "converted 0: none; its layers are this package's already: motion_list.0, motion_list.1"
    )
    assert str(revert(model)) == f"reverted 3: {names}"
    assert str(convert(nn.Sequential(nn.ReLU(), nn.ReLU()))) == (
        "converted 0: none; no module with the official MotionGRU's update, reset, output, warp.conv, "
        "warp.warp_gate, or a recurrent cell's conv_x and conv_h, among the 3 of this model (2 ReLU, 1 Sequential)"
    )
    listed = nn.Sequential(nn.ReLU())
    listed[0].layers, listed[0].losses = [StandIn(4)], {"l1": nn.L1Loss()}
    assert str(convert(listed)) == (
        "converted 0: none; there are MotionGRUs or recurrent cells in a plain list or dict, where PyTorch does not "
        "find them: 0.layers should be an nn.ModuleList or nn.ModuleDict"
    )
    ours = motionrnn_ext.MotionRNN("predrnn", in_channels=1, hidden_channels=(4, 4), patch_size=2)
    assert "already: interfaces.0" in str(convert(ours))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_goes_on(dtype: torch.dtype) -> None:
    """The model takes its own program's states of half precision, and is no further from float32 than before."""
    torch.manual_seed(0)
    model, x = UserModel(), torch.randn(2, 1, 6, 8)
    exact = model(x)
    model, x = model.to(dtype), x.to(dtype)
    before = model(x)
    convert(model)
    after = model(x)
    assert before.dtype == after.dtype == dtype
    # Seeds 0 to 5, before and after: bfloat16 6.8e-3 to 1.3e-2 and 4.9e-3 to 1.0e-2,
    # float16 7.6e-4 to 1.6e-3 and 4.5e-4 to 1.1e-3.
    assert relative_error(after.float(), exact) <= 1.05 * relative_error(before.float(), exact)
    loss_and_gradients(model, x)


def test_arguments_may_have_their_official_names() -> None:
    class Named(StandIn):
        def forward(self, x_t, pre_offset, mean):
            return super().forward(x_t, pre_offset, mean)

    x, offset, trend = torch.randn(1, 4, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(1, 18, 5, 6)
    model = nn.ModuleList([Named(4)])
    before = model[0](x, mean=trend, pre_offset=offset)
    convert(model)
    for after, expected in zip(model[0](x, mean=trend, pre_offset=offset), before):
        assert relative_error(after, expected) <= 1e-5
    with pytest.raises(TypeError, match="wrong"):
        model[0](x, offset, mean=trend, wrong=1)


# ---- What comes back with revert


def test_revert_restores_what_there_was() -> None:
    """Hooks, training modes of single parts, frozen parameters; nothing of the caller's has been touched meanwhile."""
    model = UserModel(Idle).train()
    model.motion_list[1].warp.eval()
    model.motion_list[0].reset.eval()
    model.motion_list[1].output.weight.requires_grad_(False)
    before, random = official_parts(model), torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        report = convert(model)
    assert len(report.converted) == 3 and not report.skipped and not report.hooks
    assert not model.motion_list[1].warp.training and model.motion_list[0].update.training
    revert(model)
    assert official_parts(model) == before and torch.get_rng_state().equal(random)


def test_what_is_done_to_a_converted_layer_is_there_after_revert() -> None:
    """Another dtype, hooks, pruning, a convolution put in place of one, a single part's training mode."""
    model = UserModel(Idle)
    convert(model)
    model.double()
    layer, seen = model.motion_list[1], []
    layer.register_forward_hook(lambda *_: seen.append("layer"))
    handle = layer.register_forward_pre_hook(lambda *_: seen.append("removed"))
    prune.l1_unstructured(layer.update, "weight", 0.5)
    layer.reset = nn.Conv2d(22, 18, 3, padding=1).double()
    new_reset, mask = layer.reset, layer.update.weight_mask
    layer.warp.eval()
    revert(model)
    handle.remove()
    layer = model.motion_list[1]
    assert type(layer) is Idle and layer.reset is new_reset and layer.update.weight_mask is mask
    assert layer.training and not layer.warp.training and layer.update.weight.dtype == torch.float64
    model(torch.randn(1, 1, 6, 8, dtype=torch.float64))
    assert seen == ["layer"]
    assert len(layer.update._backward_hooks) == 1
    report = convert(model)
    assert report.converted == ["motion_list.0", "again"] and "pruned" in report.skipped["motion_list.1"]


def test_a_second_reference_to_the_official_layer_stays_the_same_layer() -> None:
    model = UserModel()
    held = model.motion_list[1]
    convert(model)
    model.load_state_dict(
        {name: torch.full_like(t, 0.5) for name, t in model.state_dict().items()}, assign=True
    )
    assert held.update.weight is model.motion_list[1].update.weight and held.update.weight.eq(0.5).all()


def test_parameters_keep_their_order() -> None:
    """An optimiser's state goes by it."""

    class Shuffled(StandIn):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self._modules = {name: self._modules[name] for name in ("warp", "output", "update", "reset")}
            self.warp._modules = {name: self.warp._modules[name] for name in ("warp_gate", "conv")}

    model = UserModel(Shuffled)
    names = [name for name, _ in model.named_parameters()]
    assert convert(model).converted
    assert [name for name, _ in model.named_parameters()] == names
    revert(model)
    assert [name for name, _ in model.named_parameters()] == names


def test_convert_after_revert() -> None:
    model, x = UserModel(Idle), torch.randn(1, 1, 6, 8)
    before = official_parts(model)
    for _ in range(3):
        convert(model)
        converted = model(x)
        assert str(convert(model)).startswith("converted 0")
        revert(model)
        assert official_parts(model) == before
    assert relative_error(converted, model(x)) <= 1e-5


def test_convolutions_in_two_layers_and_layers_in_two_models() -> None:
    model = UserModel(Idle)
    model.motion_list[1].update = model.motion_list[0].update
    before = official_parts(model)
    assert len(convert(model).converted) == 3
    assert model.motion_list[1].update is model.motion_list[0].update
    revert(model.motion_list)
    assert isinstance(model.again, MotionGRUCell) and isinstance(model.motion_list[0], Idle)
    revert(model)
    assert official_parts(model) == before


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = UserModel(Idle), torch.randn(1, 1, 6, 8)
        before = model(x)
    assert len(convert(model).converted) == 3
    with torch.inference_mode():
        assert relative_error(model(x), before) <= 1e-5


def test_an_error_leaves_the_model_as_it_was() -> None:
    class Interrupting(StandIn):
        def forward(self, x, offset, mean):
            raise KeyboardInterrupt

    model = UserModel(Idle)
    model.last = Interrupting(4)
    before = official_parts(model)
    with pytest.raises(KeyboardInterrupt):
        convert(model)
    assert official_parts(model) == before


def test_an_error_in_the_swap_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = sys.modules[convert.__module__], nn.ModuleList([Idle(4), Idle(4)])
    take_over, taken = module.take_over, []

    def failing(official):
        if official is model[1]:
            raise RuntimeError("no memory")
        taken.append(official)
        return take_over(official)

    monkeypatch.setattr(module, "take_over", failing)
    before, hooks = official_parts(model), len(model[0].update._backward_hooks)
    with pytest.raises(RuntimeError, match="no memory"):
        convert(model)
    assert model[0] in taken and hooks == 1  # the first one had been swapped
    assert official_parts(model) == before and len(model[0].update._backward_hooks) == hooks


def test_a_layer_without_its_convolutions_reverts_nothing() -> None:
    model = nn.ModuleList([Idle(4), Idle(4)])
    convert(model)
    warp, model[1].warp = model[1].warp, nn.Identity()
    cells = list(model)
    with pytest.raises(ValueError, match=r"^1 has no warp\.conv, warp\.warp_gate any more"):
        revert(model)
    assert list(model) == cells
    model[1].warp = warp
    assert revert(model).converted == ["0", "1"]


# ---- Wrapped models


def kernels_run(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The result, and whether this package's ops made it."""
    with torch.profiler.profile() as profile:
        result = model(x)
    return result, any(event.key.startswith("motionrnn_ext::") for event in profile.key_averages())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models(wrap) -> None:
    """Wrapped models have run before they are converted."""
    model = wrap(UserModel(Idle))
    x = torch.randn(2, 1, 6, 8)
    before, ours = kernels_run(model, x)
    assert not ours
    assert len(convert(model).converted) == 3
    after, ours = kernels_run(model, x)
    assert ours and relative_error(after, before) <= 1e-5
    assert len(revert(model).converted) == 3
    after, ours = kernels_run(model, x)
    assert not ours and after.equal(before)


@pytest.fixture
def one_process():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_distributed_model(one_process) -> None:
    """Before and after the swap its gradients go through DDP's reducer."""
    model, x = UserModel(Idle), torch.randn(2, 1, 6, 8)
    expected = loss_and_gradients(model, x)
    parallel = nn.parallel.DistributedDataParallel(model)
    loss_and_gradients(parallel, x)
    names = ["module.motion_list.0", "module.motion_list.1", "module.again"]
    for swap in (convert, revert):
        assert swap(parallel).converted == names
        for ours, theirs in zip(loss_and_gradients(parallel, x), expected):
            assert relative_error(ours, theirs) <= 1e-4


def test_a_sharded_model(one_process) -> None:
    """It is left alone; converted before, it can be sharded, and reverted."""
    model, x = UserModel(Idle), torch.randn(2, 1, 6, 8)
    expected, converted = model(x), copy.deepcopy(model)
    convert(converted)
    for each in (model, converted):
        fully_shard(each, mesh=init_device_mesh("cpu", (1,)))
    report = convert(model)
    assert not report.converted
    assert report.skipped["again"] == "update.weight is a DTensor, not a plain Parameter"
    for each in (model, converted):
        assert relative_error(each(x), expected) <= 1e-5
    assert len(revert(converted).converted) == 3
    assert relative_error(converted(x), expected) <= 1e-5


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
    assert not report.skipped and not report.hooks  # its four hooks in each layer do nothing
    assert all(not module._backward_hooks for module in model.modules())
    with motionrnn_ext.backend(backend):
        for ours, theirs in zip(loss_and_gradients(model, x), before):
            assert relative_error(ours, theirs) <= 1e-11
    revert(model)
    assert sum(len(module._backward_hooks) for module in model.modules()) == 8
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
