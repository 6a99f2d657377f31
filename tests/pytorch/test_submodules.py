"""Submodules with hooks, parametrised, or replaced by a user's: ours against a program that calls every one of them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as prune
from equations import randomised
from golden import relative_error
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode

import motionrnn_ext
from motionrnn_ext import MotionGRU, MotionGRULayer, MotionRNN
from motionrnn_ext.layers import MotionGRUCell, MotionState, OffsetWarp
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.layers.cells.e3d_lstm import DepthConv
from motionrnn_ext.layers.initial_values import Resettable
from motionrnn_ext.models import load_checkpoint

TOLERANCE = 1e-10  # relative to max|expected|, float64; measured 5e-13


def masked_taps(x: Tensor, offset: Tensor, mask: Tensor, k: int) -> Tensor:
    """The taps side by side, (B, C, k*H, k*W), by grid_sample."""
    height, width = x.shape[-2:]
    taps = x.new_zeros(*x.shape[:2], height * k, width * k)
    for n in range(k * k):
        i, j = divmod(n, k)
        rows = torch.arange(height).view(-1, 1) + i - k // 2 + offset[:, n]
        columns = torch.arange(width) + j - k // 2 + offset[:, k * k + n]
        grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
        sample = F.grid_sample(x, grid, align_corners=True)
        taps[:, :, i::k, j::k] = sample * torch.sigmoid(mask[:, n : n + 1])
    return taps


class Calling(nn.Module):
    """A MotionGRU that calls all of its convolutions, as the official program does."""

    def __init__(self, gru: MotionGRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, hidden: Tensor, state: Any = None) -> tuple[Tensor, MotionState]:
        gru, cell = self.gru, self.gru.cell
        x = gru.encoder(hidden)
        if state is None:
            state = [x.new_zeros(len(x), gru.motion_channels, *x.shape[2:]) for _ in range(2)]
        offset, trend = state
        u = torch.sigmoid(cell.update(torch.cat([x, offset], 1)))
        r = torch.sigmoid(cell.reset(torch.cat([x, offset], 1)))
        z = torch.tanh(cell.output(torch.cat([x, r * offset], 1)))
        trend = trend + cell.alpha * (offset - trend)
        offset = u * z + (1 - u) * offset + trend
        taps = masked_taps(x, offset, cell.warp.warp_gate(x), cell.kernel_size)
        decoded = gru.decoder(cell.warp.conv(taps))
        g = torch.sigmoid(gru.gate(torch.cat([decoded, hidden], 1)))
        return g * hidden + (1 - g) * decoded, MotionState(offset, trend)


# ---- What users do to a submodule: `change(parent, name)`

Change = Callable[[nn.Module, str], Any]


def rebuilt(**changes: Any) -> Change:
    """Another convolution in its place, with the same weight."""

    def change(parent: nn.Module, name: str) -> None:
        old = getattr(parent, name)
        wanted = {key: make(old) if callable(make) else make for key, make in changes.items()}
        settings = {"bias": old.bias is not None, "padding": old.padding, "stride": old.stride, **wanted}
        new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, **settings, dtype=torch.float64)
        new.weight = old.weight
        setattr(parent, name, new)

    return change


class LoRA(nn.Module):
    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down = copy.deepcopy(base)
        self.up = nn.Conv2d(base.out_channels, base.out_channels, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(torch.relu(self.down(x)))


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Recalled(nn.Conv2d):
    def _call_impl(self, *inputs: Any) -> Tensor:
        return 0.5 * super()._call_impl(*inputs)


class Half(Tensor):
    """A tensor that convolutions multiply with half of, as quantised weights are tensors of a class of their own."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.detach:
            return super().__torch_function__(function, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **(kwargs or {}))
            return 0.5 * out if function is F.conv2d else out


def weight_of_a_subclass(parent: nn.Module, name: str) -> None:
    conv = getattr(parent, name)
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(Half))


def bias_taken_out(parent: nn.Module, name: str) -> None:
    conv = getattr(parent, name)
    del conv.bias
    conv.bias = None


def enlarged_in_place(parent: nn.Module, name: str) -> None:
    conv = getattr(parent, name)
    if conv.stride == (1, 1):
        conv.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 1, 1, 1), value=0.1))
        conv.kernel_size, conv.padding = 5, 2


def of_class(cls: type[nn.Conv2d]) -> Change:
    def change(parent: nn.Module, name: str) -> None:
        getattr(parent, name).__class__ = cls

    return change


def forward_on_the_instance(parent: nn.Module, name: str) -> None:
    conv = getattr(parent, name)
    forward = conv.forward
    conv.forward = lambda x: 0.5 * forward(x)


def hook(register: str, function: Callable[..., Any], **options: Any) -> Change:
    return lambda parent, name: getattr(getattr(parent, name), register)(function, **options)


def pruned_and_removed(parent: nn.Module, name: str) -> None:
    prune.l1_unstructured(getattr(parent, name), "weight", 0.5)
    prune.remove(getattr(parent, name), "weight")


CHANGES: dict[str, Change] = {
    "pruned": lambda p, n: prune.l1_unstructured(getattr(p, n), "weight", 0.5),
    "pruned by channels": lambda p, n: prune.ln_structured(getattr(p, n), "weight", 0.5, n=2, dim=0),
    "pruned, then made permanent": pruned_and_removed,
    "old weight_norm": lambda p, n: nn.utils.weight_norm(getattr(p, n)),
    "old spectral_norm": lambda p, n: nn.utils.spectral_norm(getattr(p, n)),
    "weight_norm": lambda p, n: parametrizations.weight_norm(getattr(p, n)),
    "spectral_norm": lambda p, n: parametrizations.spectral_norm(getattr(p, n)),
    "orthogonal": lambda p, n: parametrizations.orthogonal(getattr(p, n)),
    "forward hook": hook("register_forward_hook", lambda m, i, o: 0.5 * o),
    "forward hook with kwargs": hook(
        "register_forward_hook", lambda m, i, k, o: 0.5 * o, with_kwargs=True, always_call=True
    ),
    "forward-pre hook": hook("register_forward_pre_hook", lambda m, i: 0.5 * i[0]),
    "full backward hook": hook("register_full_backward_hook", lambda m, i, o: (0.5 * i[0],)),
    "full backward-pre hook": hook("register_full_backward_pre_hook", lambda m, o: (0.5 * o[0],)),
    "adapter": lambda p, n: setattr(p, n, LoRA(getattr(p, n))),
    "sequence": lambda p, n: setattr(p, n, nn.Sequential(getattr(p, n), nn.ReLU())),
    "other bias": rebuilt(bias=lambda old: old.bias is None),
    "circular": rebuilt(padding_mode="circular"),
    "reflect": rebuilt(padding_mode="reflect"),
    "dilated": rebuilt(dilation=2, padding=lambda old: 2 if old.stride == (1, 1) else 1),
    "padding by name": rebuilt(padding=lambda old: "same" if old.stride == (1, 1) else "valid"),
    "forward overridden": of_class(Scaled),
    "_conv_forward overridden": of_class(Standardised),
    "_call_impl overridden": of_class(Recalled),
    "weight of a subclass": weight_of_a_subclass,
    "bias taken out": bias_taken_out,
    "enlarged in place": enlarged_in_place,
    "forward on the instance": forward_on_the_instance,
    "frozen": lambda p, n: getattr(p, n).requires_grad_(False),
}
TARGETS = ("update", "reset", "output", "warp.conv", "warp.warp_gate", "gate")


def changed(change: str, *targets: str) -> MotionGRU:
    gru = randomised(MotionGRU(8, gate_kernel_size=3, mask_kernel_size=3, blend_kernel_size=3))
    torch.manual_seed(1)
    for target in targets:
        path = target if target == "gate" else f"cell.{target}"
        owner, _, name = path.rpartition(".")
        CHANGES[change](gru.get_submodule(owner), name)
    return gru


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(module: nn.Module, inputs: Callable[[], tuple[Tensor, ...]], steps: int = 2) -> list[Tensor]:
    """Return outputs and gradients of two training steps, and the values they leave, buffers included."""
    found: list[Tensor] = []
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(steps):
        leaves = [t.requires_grad_() for t in inputs()]
        outputs = torch.utils._pytree.tree_leaves(module(*leaves))
        loss = sum((t * drawn(*t.shape, seed=7 + i)).sum() for i, t in enumerate(outputs))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found += [t.detach() for t in outputs] + [t.grad for t in leaves]
    return [*found, *module.parameters(), *module.buffers()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert relative_error(ours, theirs.detach()) <= TOLERANCE


def two_steps(gru: nn.Module) -> nn.Module:
    """Two time steps, so that a state with motion is seen."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru

        def forward(self, hidden: Tensor) -> Any:
            x, state = self.gru(hidden)
            return self.gru(x, state)

    return Two()


def sample() -> tuple[Tensor]:
    return (drawn(2, 8, 8, 12),)


@pytest.mark.parametrize("target", [*TARGETS, "all"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_submodule_counts_as_if_it_were_called(change: str, target: str) -> None:
    targets = TARGETS if target == "all" else (target,)
    ours = trained(two_steps(changed(change, *targets)), sample)
    assert_same(ours, trained(two_steps(Calling(changed(change, *targets))), sample))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("change", ["pruned", "adapter"])
def test_it_does_on_every_backend(change: str, backend: str) -> None:
    if backend not in motionrnn_ext.available_backends():
        pytest.skip("not available here")
    with motionrnn_ext.backend(backend):
        ours = trained(two_steps(changed(change, *TARGETS)), sample)
    assert_same(ours, trained(two_steps(Calling(changed(change, *TARGETS))), sample))


@pytest.mark.parametrize("change", ["adapter", "spectral_norm", "forward hook", "other bias"])
def test_offset_warp_alone_calls_its_own(change: str) -> None:
    def warp() -> OffsetWarp:
        made = changed(change, "warp.conv", "warp.warp_gate").cell.warp
        assert isinstance(made, OffsetWarp)
        return made

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.warp = warp()

        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return self.warp.conv(masked_taps(x, offset, self.warp.warp_gate(x), 3))

    def inputs() -> tuple[Tensor, Tensor]:
        return drawn(2, 2, 5, 6), drawn(2, 18, 5, 6, seed=2)

    assert_same(trained(warp(), inputs), trained(Called(), inputs))


def test_a_warp_with_a_hook_or_of_another_class_is_called() -> None:
    hooked, replaced, plain = (changed("frozen") for _ in range(3))
    hooked.cell.warp.register_forward_hook(lambda m, i, o: 2 * o)

    class Twice(nn.Module):
        def __init__(self, warp: OffsetWarp) -> None:
            super().__init__()
            self.warp = warp

        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return 2 * self.warp(x, offset)

    replaced.cell.warp = Twice(replaced.cell.warp)
    plain.cell.warp.conv.weight.data *= 2
    (expected, _), hidden = plain(*sample()), sample()[0]
    for gru in (hooked, replaced):
        assert relative_error(gru(hidden)[0], expected.detach()) <= TOLERANCE


@pytest.mark.parametrize("on_the_instance", [False, True])
def test_a_warp_with_other_mask_logits_is_called(on_the_instance: bool) -> None:
    class Sharp(OffsetWarp):
        def mask_logits(self, x: Tensor) -> Tensor:
            return 5 * super().mask_logits(x)

    found, expected = changed("frozen"), changed("frozen")
    warp = found.cell.warp
    if on_the_instance:
        warp.mask_logits = lambda x: 5 * OffsetWarp.mask_logits(warp, x)
    else:
        warp.__class__ = Sharp
    for parameter in expected.cell.warp.warp_gate.parameters():
        parameter.data *= 5
    assert_same(
        trained(two_steps(found), sample, steps=1)[:2], trained(two_steps(expected), sample, steps=1)[:2]
    )


# ---- MotionRNN: rollouts pack the gates' weights once, where no step can change them


def model(change: str, calling: bool) -> MotionRNN:
    made = randomised(
        MotionRNN("convlstm", 1, (8, 8), 2, filter_size=3, gate_kernel_size=3, highway_first=True)
    )
    torch.manual_seed(1)
    gru = made.interfaces[0]
    for owner, name in ((gru.cell, "update"), (gru.cell.warp, "warp_gate"), (gru, "gate")):
        CHANGES[change](owner, name)
    CHANGES[change](made, "conv_first")
    CHANGES[change](made, "conv_last")
    CHANGES[change](made.cells[0].conv_x, "0")
    if calling:
        made.interfaces[0] = Calling(gru)
    return made


class Rollout(nn.Module):
    def __init__(self, model: MotionRNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames, 2)


@pytest.mark.parametrize(
    "change", [c for c in CHANGES if c not in ("dilated", "orthogonal", "other bias", "enlarged in place")]
)
def test_a_rollout_of_motion_rnn_is_as_if_all_were_called(change: str) -> None:
    def frames() -> tuple[Tensor]:
        return (drawn(2, 4, 1, 8, 12),)

    ours, calling = (trained(Rollout(model(change, calling)), frames) for calling in (False, True))
    assert_same(ours, calling)


def test_a_forward_hook_runs_at_every_step() -> None:
    made, seen = model("frozen", calling=False), []
    made.interfaces[0].cell.reset.register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    made(drawn(2, 5, 1, 8, 12), 2)
    assert len(seen) == 4 and not seen[1].equal(seen[2])


def test_a_warp_compiled_in_place_is_called() -> None:
    torch._dynamo.reset()
    gru, compiled = changed("frozen"), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph

    before = gru(*sample())[0].detach()
    gru.cell.warp.compile(backend=backend)
    assert relative_error(gru(*sample())[0], before) <= TOLERANCE
    assert compiled


@pytest.mark.parametrize(
    ("cls", "number"), [(nn.Conv2d, 1), (OffsetWarp, 2), (MotionGRUCell, 3), (MotionGRU, 2)]
)
def test_a_class_whose_forward_was_replaced_is_called(
    cls: type[nn.Module], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's forward knows no argument of the package's own."""
    made, frames, seen = model("frozen", calling=False), drawn(2, 4, 1, 8, 12), set()
    before, forward = made(frames, 2).detach(), cls.forward

    def replacement(self: nn.Module, *inputs: Any) -> Any:
        assert len(inputs) == number
        seen.add(self)
        return forward(self, *inputs)

    monkeypatch.setattr(cls, "forward", replacement)
    assert relative_error(made(frames, 2), before) <= TOLERANCE
    assert {m for m in made.modules() if isinstance(m, cls)} == seen


def growing(conv: nn.Module) -> Callable[..., None]:
    """Return a hook that changes the weight of a convolution."""

    def grow(*_: Any) -> None:
        conv.weight.data.mul_(-1.5)

    return grow


def test_a_hook_of_another_part_may_change_weights_at_every_step() -> None:
    def made(calling: bool) -> MotionRNN:
        one = model("frozen", calling)
        gru = one.interfaces[0].gru if calling else one.interfaces[0]
        one.cells[0].register_forward_hook(growing(gru.cell.update))
        return one

    frames = drawn(2, 5, 1, 8, 12)
    expected = made(calling=True)(frames, 2).detach()
    assert relative_error(made(calling=False)(frames, 2), expected) <= TOLERANCE


def test_a_hook_inside_the_layer_may_change_weights_at_every_step() -> None:
    layer, single = (changed("frozen") for _ in range(2))
    layer.__class__ = MotionGRULayer
    for one in (layer, single):
        one.encoder.register_forward_hook(growing(one.cell.update))
    hidden, state = drawn(2, 3, 8, 8, 12), None
    for t in range(3):
        x, state = single(hidden[:, t], state)
    assert relative_error(layer(hidden)[0][:, -1], x.detach()) <= TOLERANCE


def test_a_hook_before_the_motion_gru_may_change_its_weights_at_every_step() -> None:
    made = randomised(MotionRNN("convlstm", 1, (8, 8), 2, filter_size=3))
    twin = copy.deepcopy(made)
    twin.interfaces[0] = Calling(twin.interfaces[0])

    def grow(module: nn.Module, _: Any) -> None:
        cell = getattr(module, "gru", module).cell
        cell.update.weight.data.mul_(1.5)

    for one in (made, twin):
        one.interfaces[0].register_forward_pre_hook(grow)
    frames = drawn(2, 5, 1, 8, 12)
    with torch.no_grad():
        assert relative_error(made(frames, 2), twin(frames, 2)) <= TOLERANCE


def test_a_replaced_motion_gru_is_called() -> None:
    made, twin = (randomised(MotionRNN("predrnn", 1, (8, 8, 8), 2, filter_size=3)) for _ in range(2))
    twin.interfaces[1] = Calling(twin.interfaces[1])
    frames = drawn(2, 4, 1, 8, 12)
    for run in (lambda m: m(frames, 2), lambda m: m.predict(frames, 2), lambda m: m.step(frames[:, 0])[0]):
        assert relative_error(run(made), run(twin).detach()) <= TOLERANCE


def test_weights_tied_between_layers_and_cached_parametrizations() -> None:
    def tied(calling: bool) -> MotionRNN:
        made = randomised(MotionRNN("convlstm", 1, (8, 8, 8), 2, filter_size=3))
        made.interfaces[1].cell.update = made.interfaces[0].cell.update
        made.interfaces[1].cell.reset.weight = made.interfaces[0].cell.reset.weight
        parametrizations.weight_norm(made.interfaces[0].cell.output)
        if calling:
            made.interfaces = nn.ModuleList(Calling(gru) for gru in made.interfaces)
        return made

    def frames() -> tuple[Tensor]:
        return (drawn(2, 4, 1, 8, 12),)

    expected = trained(Rollout(tied(calling=True)), frames)
    assert_same(trained(Rollout(tied(calling=False)), frames), expected)
    ours = Rollout(tied(calling=False))
    with parametrize.cached():
        assert_same(trained(ours, frames, steps=1)[:2], expected[:2])


def test_printing_and_starting_a_model_compute_no_parametrised_weight() -> None:
    made = MotionRNN("e3d_lstm", 1, (4, 4), 2, filter_size=3, image_size=(8, 8))
    convolutions = [made.conv_last, *(m for m in made.modules() if isinstance(m, DepthConv))]
    for conv in convolutions:
        parametrizations.spectral_norm(conv)
    before = [b.clone() for b in made.buffers()]
    made.initial_state(1, 8, 8)
    repr(made)
    assert all(torch.equal(a, b) for a, b in zip(before, made.buffers()))


# ---- The cells


def test_a_depth_convolution_computes_a_parametrised_weight_once() -> None:
    conv, times = DepthConv(2, 3, 2, 3, repeat=False), []

    class Counted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            times.append(1)
            return weight

    parametrize.register_parametrization(conv, "weight", Counted(), unsafe=True)
    times.clear()
    conv(torch.ones(1, 2, 2, 4, 4))
    assert len(times) == 1


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("predictor", CELLS)
def test_what_hooks_of_the_cells_convolutions_keep_is_not_overwritten(
    predictor: str, layer_norm: bool
) -> None:
    """No sum is taken in the memory of what a hook has seen, and a backward hook's views are no target either."""
    if layer_norm and predictor == "conv_tt_lstm":
        pytest.skip("it has no layer norm")
    made = MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, image_size=(8, 8), layer_norm=layer_norm)
    frames = torch.rand(1, 3, 1, 8, 8)
    expected = made(frames, 2)
    kept: list[tuple[Tensor, Tensor]] = []
    for module in made.cells.modules():
        if isinstance(module, (nn.Conv2d, nn.LayerNorm, DepthConv, nn.Conv3d)):
            module.register_forward_hook(lambda m, i, o: kept.append((o, o.detach().clone())))
            module.register_full_backward_hook(lambda m, i, o: None)
    found = made(frames, 2)
    found.sum().backward()
    assert kept and all(torch.equal(a, b) for a, b in kept)
    assert relative_error(found, expected.detach().double()) <= 1e-6


class Keeping(TorchFunctionMode):
    """Keeps the results of convolutions, with copies."""

    def __init__(self, kept: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is F.conv2d:
            self.kept.append((out, out.clone()))
        return out


@contextlib.contextmanager
def hooks_on_all_modules(kept: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    def keep(module: nn.Module, inputs: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            kept.append((out, out.clone()))

    module = nn.modules.module
    handles = [
        module.register_module_forward_hook(keep),
        module.register_module_full_backward_hook(lambda m, i, o: None),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("watching", [Keeping, hooks_on_all_modules])
@pytest.mark.parametrize("predictor", CELLS)
def test_what_a_mode_or_hooks_on_all_modules_keep_is_not_overwritten(
    predictor: str, watching: Callable[..., Any]
) -> None:
    made = MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, image_size=(8, 8))
    frames, kept = torch.rand(1, 3, 1, 8, 8), []
    expected = made(frames, 2).detach()
    with motionrnn_ext.backend("reference"), watching(kept):
        found = made(frames, 2)
        found.sum().backward()
    assert kept and all(torch.equal(a, b) for a, b in kept)
    assert relative_error(found, expected.double()) <= 1e-6


def test_a_compiled_model_does_not_overwrite_what_hooks_on_all_modules_keep() -> None:
    torch._dynamo.reset()
    made, kept = torch.compile(MotionRNN("predrnn", 1, (4,), 2, filter_size=3), backend="eager"), []
    with hooks_on_all_modules(kept):
        made(torch.rand(1, 2, 1, 8, 8), 1)
    assert kept and all(torch.equal(a, b) for a, b in kept)


@pytest.mark.parametrize("predictor", CELLS)
def test_a_lazy_convolution_gets_its_size_in_the_first_call(predictor: str) -> None:
    made = MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, image_size=(8, 8))
    twin, frames = copy.deepcopy(made), torch.rand(1, 3, 1, 8, 8)
    made.interfaces[0].gate, made.conv_last = nn.LazyConv2d(4, 1), nn.LazyConv2d(4, 1)
    first = made(frames, 2)
    twin.interfaces[0].gate, twin.conv_last = made.interfaces[0].gate, made.conv_last
    assert relative_error(first, twin(frames, 2).detach().double()) <= 1e-6


@pytest.mark.parametrize("predictor", ["predrnn", "conv_tt_lstm"])
def test_cells_take_convolutions_whose_result_is_kept_for_backward(predictor: str) -> None:
    """A ReLU keeps its result; a module that returns its input must not have that overwritten."""
    made = MotionRNN(predictor, 1, (4, 4), 2, filter_size=3)
    for cell in made.cells:
        if predictor == "predrnn":
            cell.conv_o.append(nn.ReLU())
        else:
            cell.factors[1] = nn.Sequential(cell.factors[1], nn.ReLU())
    made(torch.rand(1, 4, 1, 8, 8), 2).sum().backward()
    assert all(p.grad is not None for p in made.parameters())


# ---- torch.compile, the layer, errors


@pytest.mark.slow
@pytest.mark.parametrize("change", ["pruned", "old weight_norm", "spectral_norm", "adapter", "circular"])
def test_a_changed_layer_compiles_in_one_graph(change: str) -> None:
    torch._dynamo.reset()
    gru = changed(change, *TARGETS).eval()
    compiled = torch.compile(gru, fullgraph=True, backend="aot_eager")
    hidden = drawn(2, 8, 8, 12).requires_grad_()
    found, expected = compiled(hidden)[0], gru(hidden)[0]
    assert relative_error(found, expected.detach()) <= TOLERANCE
    assert relative_error(*(torch.autograd.grad(t.sum(), hidden)[0] for t in (found, expected))) <= TOLERANCE


@pytest.mark.parametrize("change", ["pruned", "spectral_norm", "frozen"])
def test_the_layer_over_a_sequence_calls_at_every_step(change: str) -> None:
    layer, calling = changed(change, *TARGETS), Calling(changed(change, *TARGETS))
    layer.__class__ = MotionGRULayer
    hidden, state, expected = drawn(2, 3, 8, 8, 12), None, []
    for t in range(3):
        x, state = calling(hidden[:, t], state)
        expected.append(x)
    found, after = layer(hidden)
    assert relative_error(found, torch.stack(expected, 1).detach()) <= TOLERANCE
    assert relative_error(after.trend, state.trend.detach()) <= TOLERANCE


@pytest.mark.parametrize("target", TARGETS)
def test_a_submodule_that_returns_another_shape_is_named(target: str) -> None:
    gru = changed("frozen")
    path = target if target == "gate" else f"cell.{target}"
    gru.get_submodule(path).register_forward_hook(lambda m, i, o: o[:1])
    with pytest.raises(ValueError, match=rf"^{target} returns shape \(1, .*; it should return a tensor of"):
        gru(*sample())


class Returning(nn.Module):
    """A module, and then a function of what it returns."""

    def __init__(self, inner: nn.Module, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self.inner(*inputs))


@pytest.mark.parametrize(
    ("path", "function", "message"),
    [
        (
            "encoder",
            lambda x: None,
            r"encoder returns a NoneType; it should return a tensor of shape \(2, any, 4, 6\)",
        ),
        ("encoder", lambda x: x[..., :1, :1], r"encoder returns shape \(2, 2, 1, 1\); it should return"),
        ("cell", lambda out: out[0], r"cell returns a Tensor; it should return \(out, offset, trend\)"),
        ("cell", lambda out: out[:2], r"cell returns 2 entries; it should return \(out, offset, trend\)"),
        (
            "cell",
            lambda out: ("out", *out[1:]),
            r"cell returns a str; it should return a tensor of shape \(2, any",
        ),
        (
            "cell.warp",
            lambda x: x[:1],
            r"warp returns shape \(1, 2, 4, 6\); it should return .* \(2, any, 4, 6\)",
        ),
        ("cell.warp", lambda x: [x], "warp returns a list; it should return a tensor of shape"),
        (
            "decoder",
            lambda x: x[:, :1],
            r"decoder returns shape \(2, 1, 8, 12\); it should return .* \(2, 8, 8, 12\)",
        ),
    ],
)
def test_a_replaced_part_that_returns_something_else_is_named(
    path: str, function: Callable[[Any], Any], message: str
) -> None:
    gru = MotionGRU(8)
    owner, _, name = path.rpartition(".")
    setattr(gru.get_submodule(owner), name, Returning(gru.get_submodule(path), function))
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        gru(torch.rand(2, 8, 8, 12))


@pytest.mark.parametrize("batch", [1, 2, 3])  # a tensor of 2 or 3 entries could be taken for a tuple of them
@pytest.mark.parametrize(
    ("path", "function", "message"),
    [
        (
            "interfaces.0",
            lambda out: out[0],
            r"interfaces\[0\] returns a Tensor; it should return \(x, state\)",
        ),
        (
            "interfaces.0",
            lambda out: (out[0], None),
            r"the state that interfaces\[0\] returns is a NoneType; it",
        ),
        (
            "interfaces.0",
            lambda out: (out[0], out[1].trend),
            r"the state that .* returns is a Tensor; it should be",
        ),
        (
            "cells.1",
            lambda out: out[0],
            r"cells\[1\] returns a Tensor; it should return \(h, state, memory\)",
        ),
        (
            "cells.0",
            lambda out: out[:2],
            r"cells\[0\] returns 2 entries; it should return \(h, state, memory\)",
        ),
    ],
)
def test_a_part_of_a_model_that_returns_something_else_is_named(
    path: str, function: Callable[[Any], Any], message: str, batch: int
) -> None:
    made = MotionRNN("convlstm", 1, (4, 4), 2, filter_size=3)
    made.get_submodule(path).register_forward_hook(lambda module, inputs, out: function(out))
    with pytest.raises(TypeError, match=f"^{message}"):
        made(torch.rand(batch, 3, 1, 8, 8), 2)


@pytest.mark.parametrize(
    "path",
    ["encoder", "cell", "decoder", "gate", "cell.update", "cell.reset", "cell.output", "cell.warp"]
    + ["cell.warp.conv", "cell.warp.warp_gate"],
)
def test_none_in_place_of_a_part_is_refused_where_it_is_set(path: str) -> None:
    gru = MotionGRU(8)
    owner, _, name = path.rpartition(".")
    part, kept = gru.get_submodule(owner), gru.get_submodule(path)
    with pytest.raises(
        TypeError, match=rf"^{type(part).__name__}\.{name} is None; it should be a module, since it"
    ):
        setattr(part, name, None)
    assert gru.get_submodule(path) is kept


@pytest.mark.parametrize("predictor", CELLS)
def test_none_in_place_of_a_part_of_a_model(predictor: str) -> None:
    made, frames = (
        MotionRNN(predictor, 1, (4, 4), 2, "official", filter_size=3, image_size=(8, 8)),
        torch.rand(1, 3, 1, 8, 8),
    )
    for module in (made, *made.cells, *made.cells[-1].children()):
        for name, part in module.named_children():
            if isinstance(module, Resettable) and name != "conv_first":
                with pytest.raises(TypeError, match=rf"\.{name} is None; it should be a module"):
                    setattr(module, name, None)
                assert getattr(module, name) is part
    made.interfaces[0] = None
    with pytest.raises(TypeError, match=r"^interfaces\[0\] is None; it should be a MotionGRU"):
        made(frames, 2)


def test_a_model_may_lose_its_first_highway() -> None:
    made, frames = MotionRNN("predrnn", 1, (4, 4), 2, "official", filter_size=3), torch.rand(1, 3, 1, 8, 8)
    made.conv_first = None
    found = load_checkpoint(made.state_dict())
    assert found.conv_first is None and found(frames, 2).equal(made(frames, 2))


def test_a_submodule_of_another_dtype_is_refused_as_pytorch_does() -> None:
    gru = MotionGRU(8)
    gru.cell.reset.half()
    with pytest.raises(RuntimeError, match="should be the same"):
        gru(torch.rand(2, 8, 8, 12))
    with torch.autocast("cpu", torch.bfloat16):
        assert gru(torch.rand(2, 8, 8, 12))[0].isfinite().all()
