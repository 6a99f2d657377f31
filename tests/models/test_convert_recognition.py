"""`convert` swaps exactly the official MotionGRU and says of everything like it why it does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from official_modules import Idle, StandIn, UserModel, official_parts
from official_program import needs_checkout, official_module
from torch import nn
from torch.ao.nn import qat
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.utils import parametrizations, prune

from motionrnn_ext.backends import reference
from motionrnn_ext.layers import MotionGRUCell, convert, from_official


class Other(StandIn):
    """The official layer with one of its steps changed."""

    alpha, mask_scale = 0.5, 1.0

    def forward(self, x, offset, mean):
        u = torch.sigmoid(self.update(torch.cat([x, offset], 1)))
        r = torch.sigmoid(self.reset(torch.cat([x, offset], 1)))
        z = torch.tanh(self.output(torch.cat([x, r * offset], 1)))
        mean = mean + self.alpha * (offset - mean)
        offset = self.kept(u * z + (1 - u) * offset) + mean
        mask = self.mask_scale * self.warp.warp_gate(x)
        return reference.offset_warp(x, offset, mask, self.warp.conv.weight), offset, mean

    def kept(self, offset):
        return offset


class Alpha(Other):
    alpha = 0.9


class Mask(Other):
    mask_scale = 2.0


class Clamped(Other):
    def kept(self, offset):
        return offset.clamp(-100, 100)


class Truncated(Other):
    def kept(self, offset):
        return offset.detach()


class Dropout(Other):
    def kept(self, offset):
        return torch.dropout(offset, 0.1, self.training)


class InEval(Other):
    def kept(self, offset):
        return offset if self.training else 0.5 * offset


class WithoutGradients(Other):
    def kept(self, offset):
        return offset if torch.is_grad_enabled() else 0.5 * offset


class Scaling(Idle):
    """The official hook as it is meant."""

    @staticmethod
    def _set_lr(module, grad_input, grad_output):
        return tuple(None if g is None else g * 0.1 for g in grad_input)


class Listening(Idle):
    """The official hook, edited to keep what it sees."""

    @staticmethod
    def _set_lr(module, grad_input, grad_output):
        seen.append(grad_output)


class Keeping(Idle):
    """The same without a name that says so."""

    @staticmethod
    def _set_lr(module, grad_input, grad_output, kept=[]):  # noqa: B006
        kept += [grad_output]


seen: list[object] = []


class Optional(StandIn):
    def forward(self, x, offset, mean, scale=None):
        return super().forward(x, offset, mean)


class Starting(StandIn):
    """Makes the motion of the first step itself."""

    def forward(self, x, offset, mean):
        zeros = x.new_zeros(x.shape[0], 18, *x.shape[2:])
        return super().forward(x, zeros if offset is None else offset, zeros if mean is None else mean)


class WithDefaults(Starting):
    def forward(self, x, offset=None, mean=None):
        return super().forward(x, offset, mean)


class AsDict(StandIn):
    def forward(self, x, offset, mean):
        return dict(zip(("x", "offset", "mean"), super().forward(x, offset, mean)))


class Called(StandIn):
    def __call__(self, *args):
        out, offset, mean = super().__call__(*args)
        return 2 * out, offset, mean


class Stateful(StandIn):
    """Computes the right thing in its first step only; its count is not to be seen from outside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.steps = itertools.count()

    def forward(self, x, offset, mean):
        out, offset, mean = super().forward(x, offset, mean)
        return out, offset, mean if next(self.steps) == 0 else mean + 1


class Named(StandIn):
    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {f"my.{key}" if "prefix" not in kwargs else key: value for key, value in state.items()}


class KeptInFloat32(StandIn):
    def _apply(self, fn, recurse=True):
        return self


class Extra(StandIn):
    def get_extra_state(self):
        return {"version": 2}


class Caching(StandIn):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.last = self.update.weight.sum()  # has a graph, so no copy can be made of it


class MotionGRU(nn.Module):
    """A module of the official name, with other parts."""

    def __init__(self) -> None:
        super().__init__()
        self.update = nn.Conv2d(22, 18, 3, padding=1)


QCONFIG = get_default_qat_qconfig("x86")


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    layer = StandIn(4)
    change(layer)
    return layer


def with_weight_cut(layer: nn.Module) -> None:
    layer.update.weight = nn.Parameter(layer.update.weight[:, :20].clone())


def meta(layer: nn.Module) -> None:
    layer.to("meta")


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # what it computes
    "alpha": (lambda: Alpha(4), "computes something else: trend of step 1 differs by"),
    "mask": (lambda: Mask(4), "computes something else: out of step 1 differs by"),
    "clamped": (lambda: Clamped(4), "computes something else: offset of step 1 differs by"),
    "detached": (lambda: Truncated(4), "computes something else: the gradient of "),
    "dropout": (lambda: Dropout(4), r"differs by .* \(training mode\)"),
    "only in eval": (lambda: InEval(4), r"differs by .* \(eval mode\)"),
    "only under no_grad": (lambda: WithoutGradients(4), "something else: .* under no_grad differs by"),
    "stateful": (lambda: Stateful(4), "trend of step 2 differs by 1 on random numbers"),
    "hook that scales": (lambda: Scaling(4), "computes something else: the gradient of "),
    "a dict": (lambda: AsDict(4), r"its forward returns a dict, not a tuple \(out, offset, trend\)"),
    "other arguments": (lambda: Optional(4), r"its forward takes \(x, offset, mean, scale=None\)"),
    "an argument that may be left out": (
        lambda: WithDefaults(4),
        r"its forward takes \(x, offset=None, mean=None\)",
    ),
    "None as motion": (lambda: Starting(4), "its forward takes None in place of the motion"),
    # methods of PyTorch's that the cell would not have
    "called": (lambda: Called(4), "Called overrides __call__ of nn.Module"),
    "other keys": (lambda: Named(4), "Named overrides state_dict of nn.Module"),
    "extra state": (lambda: Extra(4), "Extra overrides get_extra_state of nn.Module"),
    "kept in its dtype": (lambda: KeptInFloat32(4), "KeptInFloat32 overrides _apply of nn.Module"),
    "train of the instance": (
        lambda: changed(lambda m: setattr(m.warp, "train", lambda mode=True: m.warp)),
        "train of warp is replaced on the instance",
    ),
    # what it has
    "other parts": (MotionGRU, "it has no reset, output, warp.conv, warp.warp_gate"),
    "a parameter": (
        lambda: changed(lambda m: m.register_parameter("scale", nn.Parameter(torch.ones(1)))),
        "the module has the parameters scale, not none",
    ),
    "a parameter that is None": (
        lambda: changed(lambda m: m.register_parameter("scale", None)),
        "the module has the parameters scale, not none",
    ),
    "a buffer": (
        lambda: changed(lambda m: m.warp.register_buffer("grid", torch.ones(1), persistent=False)),
        "warp has the buffers grid, not none",
    ),
    "a submodule": (
        lambda: changed(lambda m: m.add_module("norm", nn.Identity())),
        "it has more submodules: norm",
    ),
    "a module in a convolution": (
        lambda: changed(lambda m: m.update.add_module("adapter", nn.Identity())),
        "it has more submodules: update.adapter",
    ),
    "another padding": (
        lambda: changed(lambda m: m.warp.add_module("zero_padding", nn.ReflectionPad2d(1))),
        "warp.zero_padding is a ReflectionPad2d, not a ZeroPad2d",
    ),
    "a convolution's subclass": (
        lambda: changed(lambda m: setattr(m, "update", type("Mine", (nn.Conv2d,), {})(22, 18, 3, padding=1))),
        "update is a Mine, not a Conv2d",
    ),
    "prepared for quantisation": (
        lambda: changed(lambda m: setattr(m, "update", qat.Conv2d(22, 18, 3, padding=1, qconfig=QCONFIG))),
        r"update is a torch\.ao\..*Conv2d, not a Conv2d",
    ),
    "caching results": (lambda: Caching(4), "it cannot be copied to be compared: RuntimeError"),
    "forward of the instance": (
        lambda: changed(lambda m: setattr(m, "forward", lambda *a: m.forward(*a))),
        "forward of the module is replaced on the instance",
    ),
    "forward of a convolution": (
        lambda: changed(lambda m: setattr(m.update, "forward", torch.relu)),
        "forward of update is replaced on the instance",
    ),
    "parametrised": (
        lambda: changed(lambda m: parametrizations.spectral_norm(m.reset)),
        r"reset is parametrised \(torch.nn.utils.parametrize\)",
    ),
    "new weight_norm": (
        lambda: changed(lambda m: parametrizations.weight_norm(m.warp.conv)),
        r"warp.conv is parametrised",
    ),
    "pruned": (
        lambda: changed(lambda m: prune.l1_unstructured(m.update, "weight", 0.5)),
        r"update has the parameters bias, weight_orig, not bias, weight \(pruned,",
    ),
    "old weight_norm": (
        lambda: changed(lambda m: nn.utils.weight_norm(m.output)),
        "output has the parameters bias, weight_g, weight_v, not bias, weight",
    ),
    "old spectral_norm": (
        lambda: changed(lambda m: nn.utils.spectral_norm(m.warp.warp_gate)),
        "warp.warp_gate has the parameters bias, weight_orig, not bias, weight",
    ),
    "weight of other size": (
        lambda: changed(with_weight_cut),
        r"update.weight has shape \(18, 20, 3, 3\)",
    ),
    "complex": (
        lambda: changed(lambda m: m.to(torch.complex64)),
        "update.weight has dtype torch.complex64, which is not floating point",
    ),
    "several dtypes": (
        lambda: changed(lambda m: m.update.half()),
        "its parameters are of several kinds: torch.float16 on cpu, torch.float32 on cpu",
    ),
    "meta": (lambda: changed(meta), "its parameters are on the meta device"),
    "a list's update": (
        lambda: changed(lambda m: setattr(m, "update", nn.Conv2d(22, 17, 3, padding=1))),
        "update is not a same-size convolution with bias from 22 to 18",
    ),
    "without bias": (
        lambda: changed(lambda m: setattr(m, "reset", nn.Conv2d(22, 18, 3, padding=1, bias=False))),
        "reset is not a same-size convolution with bias",
    ),
    "no convolution": (
        lambda: changed(lambda m: setattr(m, "output", nn.Linear(22, 18))),
        "output is a Linear, not a Conv2d",
    ),
    "another kernel": (
        lambda: changed(lambda m: setattr(m, "output", nn.Conv2d(22, 18, 1))),
        "output is not a same-size convolution",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm|backward hook).*")
def test_others_are_left_alone_with_a_reason(case: str) -> None:
    """The model is as it was, but for the layers beside it."""
    make, reason = OTHERS[case]
    model = UserModel()
    layer = model.motion_list[1] = make()
    before = official_parts(layer)
    report = convert(model)
    assert report.converted == ["motion_list.0", "again"]
    assert model.motion_list[1] is layer and official_parts(layer) == before
    with pytest.raises(ValueError, match=reason):
        from_official(layer)
    assert f"skipped motion_list.1: {report.skipped['motion_list.1']}" in str(report)


def hook(*_: object) -> None:
    """A user's, which does nothing that could be seen."""


@pytest.mark.parametrize(
    ("register", "kind"),
    [
        ("register_forward_hook", "forward hook"),
        ("register_forward_pre_hook", "forward pre hook"),
        ("register_full_backward_hook", "backward hook"),
        ("register_full_backward_pre_hook", "backward pre hook"),
        ("register_state_dict_pre_hook", "state dict pre hook"),
        ("register_load_state_dict_post_hook", "load state dict post hook"),
    ],
)
@pytest.mark.parametrize("part", ["", "update", "warp"])
def test_hooks_of_the_user_are_named(register: str, kind: str, part: str) -> None:
    model = UserModel()
    layer = model.motion_list[1]
    getattr(layer.get_submodule(part), register)(hook)
    before = official_parts(model.motion_list[1])
    report = convert(model)
    assert report.converted == ["motion_list.0", "again"]
    assert report.hooks == [f"motion_list.1.{part}".rstrip(".")]
    assert report.skipped["motion_list.1"] == (
        f"it has hooks that would no longer run: {kind} 'hook' of {part or 'the module'}"
    )
    assert official_parts(model.motion_list[1]) == before


def test_the_official_hooks_are_told_from_the_users() -> None:
    """Hooks are told apart by what they do: one that keeps gradients is the user's, wherever it is defined."""
    model = UserModel(Idle)
    assert len(convert(model).converted) == 3
    for layer in (Listening, Keeping):
        report = convert(UserModel(layer))
        assert not report.converted
        assert f"backward hook '{layer.__name__}._set_lr' of warp.warp_gate" in report.skipped["again"]
    model = UserModel(Idle)
    model.again.update.register_backward_hook(hook)
    report = convert(model)
    assert report.skipped["again"] == "it has hooks that would no longer run: backward hook 'hook' of update"


def test_hooks_of_parameters_go_on() -> None:
    model, norms = UserModel(), []
    model.again.update.weight.register_hook(lambda gradient: norms.append(gradient.norm()))
    convert(model)
    model(torch.randn(1, 1, 6, 8)).sum().backward()
    assert len(norms) == 1 and norms[0] > 0


@pytest.mark.parametrize("value", [0.0, float("nan"), 1e30])
def test_weights_of_any_value_are_taken(value: float) -> None:
    """Zero at first, as the official ones, or of a training that went wrong."""
    model = UserModel()
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    assert len(convert(model).converted) == 3


@pytest.mark.parametrize("k, channels", [(1, 4), (3, 1), (5, 4)])
def test_other_sizes_are_taken(k: int, channels: int) -> None:
    model = nn.ModuleList([StandIn(channels, 2 * k * k, k)])
    assert convert(model).converted == ["0"] and isinstance(model[0], MotionGRUCell)


def test_a_layer_compiled_by_itself_is_left_alone() -> None:
    """Its wrapper would go on with the layer that it has compiled."""
    model = nn.ModuleList([torch.compile(StandIn(4), backend="eager")])
    assert convert(model).skipped == {
        "0._orig_mod": "it is compiled by itself (torch.compile); convert first, compile then"
    }


def test_a_script_module_is_left_alone() -> None:
    inputs = torch.ones(1, 4, 4, 4), torch.ones(1, 18, 4, 4), torch.ones(1, 18, 4, 4)
    model = nn.ModuleList([torch.jit.trace(StandIn(4), inputs)])
    assert convert(model).skipped == {"0": "it is a ScriptModule; convert the model before torch.jit"}


@needs_checkout
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_real_official_layer_is_recognised(k: int, dtype: torch.dtype) -> None:
    official = official_module("core.layers.MotionGRU").MotionGRU
    model = nn.ModuleList([official(4, 2 * k * k, k)]).to(dtype)
    assert convert(model).converted == ["0"]


@needs_checkout
def test_the_real_official_layer_changed_is_not() -> None:
    official = official_module("core.layers.MotionGRU").MotionGRU

    class Slower(official):
        def forward(self, x_t, pre_offset, mean):
            out, offset, mean = super().forward(x_t, pre_offset, mean)
            return out, offset, 0.9 * mean

    assert "trend of step 1 differs" in convert(nn.ModuleList([Slower(4, 18, 3)])).skipped["0"]
