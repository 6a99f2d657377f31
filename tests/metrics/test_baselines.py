"""Baselines: are they what they are said to be, and are they scored as a model is?"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from motionrnn_ext.evaluation import baselines
from motionrnn_ext.evaluation.baselines import BASELINE, FLOW, MEAN, backward_paths, carried, carried_on
from motionrnn_ext.evaluation.scores import score
from motionrnn_ext.metrics import FrameMetrics
from motionrnn_ext.metrics.protocol import Protocol

SIDE = 48


def blobs(n_frames: int, motion: tuple[float, float], channels: int = 1) -> Tensor:
    """Two round blobs (T, C, H, W) that move by (rows, columns) a frame."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    frames = torch.zeros(n_frames, channels, SIDE, SIDE)
    for t in range(n_frames):
        for row, column, width in ((18.0, 16.0, 5.0), (26.0, 30.0, 4.0)):
            down, right = rows - row - t * motion[0], columns - column - t * motion[1]
            frames[t] += 0.7 * torch.exp(-(down**2 + right**2) / (2 * width**2))
    return frames.clamp(0, 1)


def whirl(omega: float) -> Tensor:
    """The motion (2, H, W) of a body that turns by omega radians a step about the middle of the frame."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    return omega * torch.stack([right, -down])


def test_paths_lead_back_along_a_motion_that_is_the_same_everywhere() -> None:
    motion = torch.tensor([1.5, -0.75]).view(2, 1, 1).expand(2, SIDE, SIDE)
    start = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    for step, places in enumerate(backward_paths(motion, 4), start=1):
        torch.testing.assert_close(places, start - step * motion, rtol=0, atol=1e-4)


def test_paths_turn_with_a_whirl() -> None:
    """The path back of 10 steps is a turn by 10 omega. Its error, 2.3e-3 pixels, is that of the midpoint rule."""
    omega, steps, middle = 0.05, 10, (SIDE - 1) / 2
    places = backward_paths(whirl(omega), steps)[-1] - middle
    axis = torch.arange(SIDE) - middle
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    angle = -omega * steps
    expected = torch.stack(
        [math.cos(angle) * down + math.sin(angle) * right, -math.sin(angle) * down + math.cos(angle) * right]
    )
    # Paths from the corners leave the frame, where the motion is not known.
    inside = (down**2 + right**2).sqrt() < middle - 1
    assert (places - expected)[:, inside].abs().max() < 0.005


def test_a_frame_is_interpolated_where_its_paths_lead() -> None:
    frame = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    motion = whirl(0.08) + 0.3
    found, places = carried(frame, motion, 5), backward_paths(motion, 5)
    assert found.shape == (5, 3, SIDE, SIDE)
    for t, channel in np.ndindex(5, 3):
        expected = map_coordinates(
            frame[channel].double().numpy(), places[t].double().numpy(), order=1, mode="nearest"
        )
        # float32 positions of up to 48 pixels.
        np.testing.assert_allclose(found[t, channel].numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("motion", [(0.0, 0.0), (1.0, 0.0), (-0.6, 1.3)])
def test_what_moves_evenly_is_carried_on(motion: tuple[float, float], channels: int) -> None:
    clip = blobs(8, motion, channels)
    future = carried_on(clip[:4], 4)
    errors = [(guess - clip[4:]).square().mean().item() for guess in (future, clip[3:4].expand_as(future))]
    # A hundredth of the error of the last frame; measured are 0.01 % to 0.07 %.
    assert errors[0] <= 0.01 * errors[1] + 1e-9


def test_pysteps_extrapolates_alike() -> None:
    semilagrangian = pytest.importorskip("pysteps.extrapolation.semilagrangian")
    motion, frame = whirl(0.03) + 0.4, blobs(1, (0, 0))[0]
    # pysteps has the columns' motion first.
    known: Any = semilagrangian.extrapolate(frame[0].numpy(), motion.flip(0).numpy(), 4, n_iter=3, outval=0.0)
    ours = carried(frame, motion, 4)[:, 0].numpy()
    # What comes from outside of the frame is another matter. The largest difference is 3e-4.
    inside = slice(10, -10)
    np.testing.assert_allclose(ours[:, inside, inside], known[:, inside, inside], rtol=0, atol=1e-3)


def test_the_mean_of_the_inputs_is_that_of_known_values() -> None:
    frames = torch.rand(2, 5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    frames[0, 0, 0, 3, 4] = frames[0, 1, 0, 3, 4] = math.nan
    frames[1, :3, 0, 5, 6] = math.nan
    found = baselines.predictions(frames, 3)
    assert list(found) == [BASELINE, MEAN, FLOW]
    assert all(guess.shape == (2, 2, 1, 16, 16) and guess.isfinite().all() for guess in found.values())
    expected = frames[:, :3].mean(1)
    expected[0, 0, 3, 4], expected[1, 0, 5, 6] = frames[0, 2, 0, 3, 4], 0.0
    torch.testing.assert_close(found[MEAN][:, 1], expected, rtol=0, atol=1e-6)
    assert torch.equal(found[BASELINE][0, 1], frames[0, 2])


@pytest.mark.parametrize("size", [(7, 9), (32, 32)])
def test_frames_without_anything_stay_as_they_are(size: tuple[int, int]) -> None:
    clip = torch.full((3, 1, *size), 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(carried_on(clip, 3), clip, rtol=0, atol=1e-6)


def test_missing_values_of_the_future_change_no_other_score() -> None:
    """Predictions under missing pixels of the truth are not read."""
    clips = blobs(6, (0.5, 1.0))[None].repeat(2, 1, 1, 1, 1)
    clips[1, 4:, :, 10:20, 10:20] = math.nan
    results = score({}, clips, 4)  # type: ignore[arg-type]
    guesses = baselines.predictions(clips, 4)
    for label, guess in guesses.items():
        known = clips[1, 4:].isfinite()
        squares = (guess[1] - clips[1, 4:]).square()
        second = [squares[t][known[t]].mean() * SIDE**2 for t in range(2)]
        first = (guess[0] - clips[0, 4:]).square().sum((1, 2, 3))
        expected = torch.stack([*second, *first]).mean().item()
        assert results[label]["mse"] == pytest.approx(expected, rel=1e-5), label


def test_baselines_are_scored_as_a_model_is() -> None:
    clips = torch.stack([blobs(7, (0.5 * i, 1.0)) for i in range(3)])
    results = score({}, clips, 4, protocol=Protocol(), batch_size=2)  # type: ignore[arg-type]
    assert list(results) == [BASELINE, MEAN, FLOW] and all(one["baseline"] for one in results.values())
    for label, guess in baselines.predictions(clips, 4).items():
        metrics = FrameMetrics(3, gdl=True)
        metrics.update(guess, clips[:, 4:])
        expected = metrics.compute()
        for name in ("mse", "mae", "psnr", "ssim", "gdl"):
            assert results[label][name] == pytest.approx(expected[name], rel=1e-5), (label, name)
    assert results[FLOW]["mse"] < results[BASELINE]["mse"]


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = torch.rand(1, 3, 1, 16, 16)
    one = score({}, clips, 1)  # type: ignore[arg-type]
    assert list(one) == [BASELINE, MEAN]
    assert "optical flow is left out, because it needs two given frames" in one[MEAN]["protocol"]["baselines"]
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    none = score({}, clips, 2)  # type: ignore[arg-type]
    assert list(none) == [BASELINE, MEAN]
    assert "because scikit-image is not installed: pip install" in none[MEAN]["protocol"]["baselines"]
