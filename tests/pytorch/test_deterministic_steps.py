"""Whole training steps of MotionRNN are equal to the bit under torch.use_deterministic_algorithms(True)."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from features import feature
from side_by_side import check_passed
from torch import Tensor
from under_test import ALL, EMULATED, REFERENCE, UnderTest, on, set_seed

from motionrnn_ext import MotionRNN
from motionrnn_ext.layers.cells import CELLS, ConvLSTMCell

# cuBLAS is deterministic with a workspace of fixed size, which it takes when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
REFUSAL = "does not have a deterministic implementation"


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train(on: UnderTest, predictor: str, steps: int = 2, size: int = 16) -> list[Tensor]:
    """Losses, parameters and last gradients of a few steps of Adam."""
    torch.manual_seed(0)
    model = MotionRNN(predictor, 1, (8, 8), 2, filter_size=3, image_size=(size, size)).to(on.device)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    frames = torch.rand(4, 4, 1, size, size).to(on.device)
    losses = []
    with on.chosen():
        for _ in range(steps):
            loss = (model(frames, 2) - frames[:, 1:]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*losses, *(p.detach() for p in model.parameters()), *gradients]


def runs(on: UnderTest, predictor: str, times: int, **options: int) -> Iterator[list[Tensor]]:
    """Equal trainings, on PTX each with another order of blocks and warps."""
    try:
        for i in range(times):
            if on is EMULATED:
                set_seed(i)
            yield train(on, predictor, **options)
    finally:
        if on is EMULATED:
            set_seed(0)


@on([t for t in ALL if not t.is_slow])
def test_memory_need_not_be_filled(on: UnderTest, deterministic: None, monkeypatch: pytest.MonkeyPatch):
    filled = train(on, "predrnn")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    for a, b in zip(train(on, "predrnn"), filled, strict=True):
        assert a.equal(b)


@feature("deterministic")
@on(ALL)
@pytest.mark.parametrize(
    "predictor", [pytest.param(name, marks=[] if name == "predrnn" else pytest.mark.slow) for name in CELLS]
)
def test_training_steps(on: UnderTest, predictor: str, deterministic: None):
    """30 times, 3 where they take seconds, and 10 for the other predictors. Memory that is read before it is written
    shows, too: under the flag PyTorch fills it with nan."""
    times, options = (3, {"size": 8}) if on.is_slow else (30 if predictor == "predrnn" else 10, {})
    try:
        first, *others = runs(on, predictor, times, **options)
    except RuntimeError as error:  # some attention kernels on a GPU
        if on.device == "cuda" and REFUSAL in str(error):
            pytest.skip(f"PyTorch refuses: {error}")
        raise
    assert all(t.isfinite().all() for t in first)
    assert first[1] < first[0]  # it learns
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other, strict=True))


@on([t for t in ALL if t is EMULATED])
def test_without_the_flag_they_depend_on_the_order(on: UnderTest):
    """Or the test above would prove nothing there."""
    first, other = runs(on, "predrnn", 2)
    assert not all(a.equal(b) for a, b in zip(first, other))


@on([t for t in ALL if not t.is_slow])
def test_warn_only_is_deterministic_as_well(on: UnderTest):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first, *others = runs(on, "convlstm", 3)
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other))


@pytest.mark.slow
def test_two_threads():
    """The CPU kernels and the reference again, in a process where threads that wait do not spin."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "training_steps and not emulated",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    check_passed("two threads", done, at_least=len(CELLS))


class UnpoolingCell(ConvLSTMCell):
    """A cell with an op that PyTorch itself has in no deterministic form."""

    def forward(self, x: Tensor, *rest):
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        return super().forward(F.max_unpool2d(pooled, places, 2), *rest)


def test_what_pytorch_refuses_is_refused(monkeypatch: pytest.MonkeyPatch, deterministic: None):
    monkeypatch.setitem(CELLS, "unpooling", UnpoolingCell)
    with pytest.raises(RuntimeError, match=f"max_unpooling2d_forward_out {REFUSAL}"):
        train(REFERENCE, "unpooling")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match=f"max_unpooling2d_forward_out {REFUSAL}"):
        train(REFERENCE, "unpooling", steps=1)
