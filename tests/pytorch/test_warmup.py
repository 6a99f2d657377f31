"""motionrnn_ext.warmup: what runs, and that nothing is changed."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fake_cuda
import pytest
import torch
from torch import Tensor, nn
from under_test import ALL, UnderTest, on

import motionrnn_ext
from motionrnn_ext import MotionRNN, warmup

warmup_module = importlib.import_module("motionrnn_ext.warmup")  # the package's attribute is the function


class Changing(nn.Module):
    """Changes all that a module can: buffers, flags, random state, a kept tensor, a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.weight = nn.BatchNorm1d(3), nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.kept: Tensor | None = None
        self.calls: list[tuple[bool, bool]] = []
        self.fails_at = 0

    def forward(self, x: Tensor, *, nested: dict[str, tuple[Tensor, ...]], generator: torch.Generator) -> Any:
        self.calls.append((self.training, torch.is_grad_enabled()))
        self.kept = x.detach()
        self.new, self.replaced = x.detach(), self.replaced + 1
        self.count.add_(1)
        self.norm(x)  # whose statistics change without a new version
        self.norm.eval()
        with torch.no_grad():
            self.weight.add_(1)
        noise = torch.randn(3) + torch.randn(3, generator=generator)
        nested["pair"][0].add_(1)
        if len(self.calls) == self.fails_at:
            raise ZeroDivisionError
        return {"out": (self.norm(x * self.weight) + noise) * nested["pair"][1], "none": None}


def everything(module: Changing, *tensors: Tensor) -> list[Any]:
    state = [*module.state_dict().values(), *tensors, torch.get_rng_state()]
    return copy.deepcopy([[t.detach() for t in state], [m.training for m in module.modules()], module.kept])


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert all(a.equal(b) for a, b in zip(found[0], expected[0], strict=True))
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("fails_at", [0, 1, 2, "backward"])
def test_everything_is_as_before(fails_at: int | str):
    module, generator = Changing(), torch.Generator().manual_seed(3)
    module.norm.bias.grad = before = torch.full((3,), 5.0)
    source = torch.ones(4, 3, requires_grad=True)
    x, pair = source * 2, (torch.zeros(2), torch.ones(3, requires_grad=True))  # x has a graph behind it
    backwards: list[Tensor] = []

    def hook(gradient: Tensor) -> None:
        backwards.append(gradient)
        if fails_at == "backward":
            raise ZeroDivisionError

    module.weight.register_hook(hook)
    module.fails_at = 0 if fails_at == "backward" else fails_at
    expected = everything(module, x, source, *pair, generator.get_state())
    versions = [t._version for t in (x, *pair)]
    try:
        warmup(module, x, nested={"pair": pair}, generator=generator)
        assert not fails_at
    except ZeroDivisionError:
        assert fails_at
    assert_same(everything(module, x, source, *pair, generator.get_state()), expected)
    assert module.norm.bias.grad is before and before.eq(5).all()
    assert not hasattr(module, "new")
    assert module.weight.grad is None and source.grad is None and pair[1].grad is None
    assert [t._version for t in (x, *pair)] == versions
    if not fails_at:
        assert module.calls == [(True, True)] * 3 and len(backwards) == 3
        assert all(g.isfinite().all() and g.any() for g in backwards)


def test_a_tensor_given_as_alpha_keeps_its_gradient():
    """It is an attribute, and no Parameter."""
    alpha = torch.tensor(0.3, requires_grad=True)
    alpha.grad = torch.tensor(7.0)
    warmup(MotionRNN("convlstm", 1, (4, 4), 2, filter_size=3, alpha=alpha), torch.rand(1, 4, 1, 8, 8), 2)
    assert alpha.grad == 7


def test_without_gradients_there_is_no_backward():
    module = Changing().eval()
    module.weight.register_hook(lambda _: pytest.fail("a backward ran"))
    arguments = {"nested": {"pair": (torch.zeros(2), torch.ones(3))}, "generator": torch.Generator()}
    with torch.no_grad():
        warmup(module, torch.ones(4, 3), **arguments)
    with torch.inference_mode():
        warmup(module, torch.ones(4, 3), **arguments)
    assert module.calls == [(False, False)] * 6


@on(ALL)
def test_a_model_and_its_step(on: UnderTest):
    """A graph that waits for its backward is not spoilt."""
    torch.manual_seed(0)
    model = MotionRNN("convlstm", 1, (4, 4), 2, filter_size=3, init_state="xavier").to(on.device)
    frames = torch.rand(1, 3, 1, 8, 8, device=on.device)
    with on.chosen():
        random = torch.get_rng_state()
        expected = torch.autograd.grad(model(frames, 2).sum(), list(model.parameters()))
        torch.set_rng_state(random)
        waiting = model(frames, 2)
        _, state = model.step(frames[:, 0])
        random = torch.get_rng_state()
        warmup(model, frames, n_input=2)
        warmup(model.step, frames[:, 0], state)
        assert torch.get_rng_state().equal(random)
        found = torch.autograd.grad(waiting.sum(), list(model.parameters()))
    for a, e in zip(found, expected):
        torch.testing.assert_close(a, e)
    assert all(p.grad is None for p in model.parameters())


def test_what_a_cell_keeps_between_sequences_is_as_before():
    options = {"image_size": (8, 8), "compat": "openstl", "motion_gru": False, "highway": False}
    model, frames = MotionRNN("mim", 1, (4, 4), 2, filter_size=3, **options), torch.rand(1, 4, 1, 8, 8)
    for _ in range(2):  # nothing is kept yet; something is
        before = model.cells[1].carried
        warmup(model, frames, 2)
        assert model.cells[1].carried is before
        model(frames, 2)
        assert model.cells[1].carried is not before


def test_casts_that_autocast_has_cached_know_their_gradient():
    """Those made without gradients would be taken again."""
    layer = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            warmup(layer, torch.ones(1, 3))
        layer(torch.ones(1, 3)).float().sum().backward()
    assert layer.weight.grad is not None


def test_other_callables_are_refused():
    with pytest.raises(
        TypeError, match="module is <built-in .*; it should be a torch.nn.Module or a method of"
    ):
        warmup(len, [])
    assert motionrnn_ext.warmup is warmup


# ---- On a GPU that is not there


def test_devices_are_those_of_the_tensors(monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []

    @contextmanager
    def recorded(name: str, devices: list[int]) -> Iterator[None]:
        seen.append((name, devices))
        yield

    monkeypatch.setattr(warmup_module, "_side_streams", lambda devices: recorded("streams", devices))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: recorded("random", devices))
    model, frame = MotionRNN("convlstm", 1, (4, 4), 2, filter_size=3), torch.rand(1, 1, 8, 8)
    warmup(model.step, frame)
    with fake_cuda.fake_cuda("reference"):
        warmup(fake_cuda.moved(model).step, fake_cuda.like(frame))
    assert seen == [("random", []), ("streams", []), ("random", [0]), ("streams", [0])]


class Recorder:
    """Stands for torch.cuda: what is called, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: self.note(name, *args))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"s{device}")
        for name in ("stream", "device"):
            monkeypatch.setattr(torch.cuda, name, lambda value, name=name: self.within(name, value))

    def note(self, *words: Any) -> None:
        self.calls.append(" ".join(map(str, words)))

    @contextmanager
    def within(self, name: str, value: Any) -> Iterator[None]:
        self.note(name, value)
        try:
            yield
        finally:
            self.note("end", name, value)


@pytest.mark.parametrize("fails", [False, True])
def test_side_streams(fails: bool, monkeypatch: pytest.MonkeyPatch):
    cuda = Recorder(monkeypatch)
    try:
        with warmup_module._side_streams([0, 1]):
            cuda.note("run")
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert cuda.calls == [
        *("synchronize 0", "stream s0", "synchronize 1", "stream s1", "device 1"),
        "run",
        *("end device 1", "end stream s1", "end stream s0"),
        *("synchronize 0", "synchronize 1", "empty_cache"),
    ]


def test_no_streams_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    cuda = Recorder(monkeypatch)
    warmup(nn.Linear(2, 2), torch.ones(1, 2))
    assert cuda.calls == []


def test_within_a_capture_it_is_refused():
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: pytest.fail("it ran"))
    with fake_cuda.fake_cuda("reference"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="a CUDA graph is being captured; warmup should come before"):
            warmup(fake_cuda.moved(module), torch.ones(1, 2))
