"""Are the taps drawn where the warp reads, and does `motionrnn visualize` write what it promises?"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from comparing import assert_close
from torch import Tensor

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from trainings import TINY

from motionrnn_ext import backends, cli, ops, visualize
from motionrnn_ext.evaluation.clips import held_out
from motionrnn_ext.evaluation.motion import motions
from motionrnn_ext.evaluation.scores import predict_clips
from motionrnn_ext.training.runs import load_run
from motionrnn_ext.training.train import train
from motionrnn_ext.visualize.taps import busiest, outside, tap_colours


def test_without_motion_the_taps_lie_on_the_grid() -> None:
    """A map of 4x2 over 16x24 frames: pixels of 4 rows and 12 columns."""
    points = visualize.sampling_points(torch.zeros(5, 18, 4, 2), (16, 24))
    assert points.shape == (5, 9, 2, 4, 2)
    row = 4 * (torch.arange(4.0) + 0.5) - 0.5
    column = 12 * (torch.arange(2.0) + 0.5) - 0.5
    for n in range(9):
        assert (points[0, n, 0] == (row + 4 * (n // 3 - 1))[:, None]).all()
        assert (points[0, n, 1] == (column + 12 * (n % 3 - 1))).all()


def test_an_offset_moves_its_own_tap() -> None:
    offset = torch.zeros(18, 4, 2)
    offset[5, 3, 1], offset[9 + 7, 0, 0] = 0.5, -2.0  # rows of tap 5, columns of tap 7
    moved = visualize.sampling_points(offset, (16, 24)) - visualize.sampling_points(offset * 0, (16, 24))
    assert moved.count_nonzero() == 2
    assert moved[5, 0, 3, 1] == 0.5 * 4
    assert moved[7, 1, 0, 0] == -2.0 * 12


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_points_are_where_the_warp_reads(k: int) -> None:
    """The warp of a map that holds its own coordinates gives each tap's, on a map whose pixels are the frame's."""
    torch.manual_seed(0)
    height, width = 12, 14
    inside = slice(None), slice(4, 8), slice(5, 9)
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(14.0), indexing="ij")
    offset = torch.randn(1, 2 * k * k, height, width).clamp(-2, 2)
    points = visualize.sampling_points(offset, (height, width))[0]
    mask = torch.full((1, k * k, height, width), 40.0)  # logits of 1
    for n in range(k * k):
        weight = torch.zeros(2, 2, k, k)
        weight[0, 0].view(-1)[n] = weight[1, 1].view(-1)[n] = 1
        with backends.backend("reference"):
            read = ops.offset_warp(torch.stack([row, column])[None], offset, mask, weight)[0]
        torch.testing.assert_close(points[n][inside], read[inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(17, 4, 4), (16, 4, 4), (0, 4, 4), (18,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with K = k\\*k, K row then K column offsets; got"):
        visualize.sampling_points(torch.zeros(shape), (8, 8))


def test_busiest_is_where_the_frames_change() -> None:
    frames = torch.zeros(3, 1, 16, 16)
    frames[:, :, 0:2, 0:2] = 1  # bright, and still
    frames[1, 0, 4:6, 12:14] = 1  # map pixel (2, 6) of 8x8
    frames[1, 0, 12:14, 2:4] = 0.5  # (6, 1)
    frames[2] = frames[1]
    assert busiest(frames, (8, 8), 5)[:2] == [[(2, 6), (6, 1)]] * 2
    assert busiest(frames, (8, 8), 1)[1] == [(2, 6)]
    assert len(busiest(frames, (8, 8), 5)[2]) == 1  # nothing moves: one place all the same
    moving = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for side in (4, 8, 16):
        assert [len(places) for places in busiest(moving, (side, side), 3)] == [3, 3], side
    close = torch.zeros(2, 1, 8, 8)
    close[1, 0, 3, 3:5] = torch.tensor([1.0, 0.9])
    assert busiest(close, (8, 8), 2, apart=1)[1] == [(3, 3), (3, 4)]
    assert busiest(close, (8, 8), 2, apart=2)[1] == [(3, 3)]


# ---- On pixels


def cell_of(image: np.ndarray, n_frame: int) -> tuple[np.ndarray, float, float]:
    """The part of a one-cell picture that shows the frame, and its pixels per frame pixel down and right."""
    dark = image[..., :3].astype(int).sum(-1) < 40  # the black frame on white paper
    rows, columns = np.flatnonzero(dark.mean(1) > 0.3), np.flatnonzero(dark.mean(0) > 0.3)
    part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, :3].astype(int)
    return part, part.shape[0] / n_frame, part.shape[1] / n_frame


def centre(part: np.ndarray, colour: tuple[float, float, float]) -> tuple[float, float] | None:
    """The middle of the dot of a colour: erosion leaves no line of it."""
    near = np.abs(part - np.array(colour) * 255).max(-1) < 40
    for _ in range(3):
        near[1:-1, 1:-1] &= near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:]
    ys, xs = np.nonzero(near)
    return (ys.mean(), xs.mean()) if len(ys) else None


def picture(tmp_path: Path, offset: Tensor, **options: object) -> np.ndarray:
    path = visualize.taps(
        tmp_path / "taps.png", torch.zeros(1, 1, 64, 64), {"m": offset[None]}, positions=[(3, 4)], **options
    )
    return iio.imread(path)


def test_taps_are_drawn_at_their_points(tmp_path: Path) -> None:
    offset = torch.zeros(18, 8, 8)  # a map pixel is 8 frame pixels
    offset[2, 3, 4], offset[9 + 2, 3, 4] = -1.0, 0.5  # tap 2, up and to the right
    part, down, right = cell_of(picture(tmp_path, offset), 64)
    points = visualize.sampling_points(offset, (64, 64))[:, :, 3, 4]
    assert points[2].tolist() == [(2 - 1 + 0.5) * 8 - 0.5, (5 + 0.5 + 0.5) * 8 - 0.5]
    for n, colour in enumerate(tap_colours(9)):
        found = centre(part, colour)
        assert found is not None, n
        y, x = found[0] / down - 0.5, found[1] / right - 0.5
        assert (y, x) == (
            pytest.approx(points[n, 0].item(), abs=0.4),
            pytest.approx(points[n, 1].item(), abs=0.4),
        ), n


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that stands on the pictures."""
    from matplotlib.text import Text

    seen: list[str] = []
    true_set = Text.set_text
    monkeypatch.setattr(Text, "set_text", lambda self, text: seen.append(str(text)) or true_set(self, text))
    return seen


def test_taps_outside_are_counted(tmp_path: Path, texts: list[str]) -> None:
    offset = torch.zeros(18, 8, 8)
    offset[0], offset[1], offset[2], offset[3] = math.nan, math.inf, 1e30, -50.0
    picture(tmp_path, offset)
    assert any(" ".join(text.split()).endswith("; 2 of 7 taps lie outside the frame") for text in texts)
    points = visualize.sampling_points(torch.zeros(18, 4, 4), (16, 16))
    assert outside(points, [(0, 0), (1, 2)], (16, 16)).tolist() == [5, 18]  # the corner's upper and left taps


def test_taps_of_other_shapes_are_refused(tmp_path: Path) -> None:
    frames = torch.zeros(2, 1, 16, 16)
    with pytest.raises(ValueError, match="must be \\(T' <= 2, 2K, h', w'\\); got \\(3, 18, 4, 4\\)"):
        visualize.taps(tmp_path / "x.png", frames, {"m": torch.zeros(3, 18, 4, 4)})
    with pytest.raises(ValueError, match="positions must lie on the map of 4x4; got \\(4, 0\\)"):
        visualize.taps(tmp_path / "x.png", frames, {"m": torch.zeros(2, 18, 4, 4)}, positions=[(4, 0)])


def test_colours_survive_in_a_gif(tmp_path: Path) -> None:
    """Frames in grey with a few coloured dots: greys stay grey, and dots keep their colours."""
    frames = torch.linspace(0, 1, 16 * 16).view(1, 1, 16, 16).repeat(2, 1, 1, 1)
    zero = torch.zeros(2, 18, 4, 4)
    shots = iio.imread(visualize.motion_gif(tmp_path / "m.gif", frames, {"m": zero}, {"m": zero}))
    part = shots[0].astype(int)
    left = part[60:200, 120:280]  # in the plain frame
    assert np.ptp(left, axis=-1).max() <= 2
    for colour in tap_colours(9):
        assert (np.abs(part - np.array(colour) * 255).max(-1) < 40).sum() > 10


# ---- Of a model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visualize") / "run"
    train(replace(TINY, hidden=(8, 8, 8), steps=1), folder, progress=False)
    return folder


@pytest.mark.parametrize("predictor", ["convlstm", "e3d_lstm"])
def test_motions_are_those_of_the_rollout(predictor: str) -> None:
    from motionrnn_ext.models import MotionRNN

    torch.manual_seed(0)
    config = replace(TINY, predictor=predictor, hidden=(8, 8, 8))
    model = MotionRNN(**config.model()).eval()
    clip = held_out(config, 1)[0]
    future = predict_clips(model, clip[None, :3], 3)[0]
    found = motions(model, clip[:3], future)
    assert list(found) == ["MotionGRU 1", "MotionGRU 2"]
    with torch.no_grad():
        _, states = model(torch.cat([clip[:3], future])[None], 3, return_motion=True)
    for motion, state in zip(found.values(), states, strict=True):
        newest = state.offset[0] if predictor == "convlstm" else state.offset[0][:, -1]
        assert_close(motion.offset, newest, 1e-5)
        assert motion.offset.shape == (5, 18, 4, 4) and motion.mask.shape == (5, 9, 4, 4)
        assert 0 < motion.mask.min() < motion.mask.max() < 1
    assert not any(gru.cell._forward_pre_hooks for gru in model.interfaces)


@pytest.mark.parametrize("predictor", ["convlstm", "e3d_lstm"])
def test_masks_are_those_that_the_warp_has(predictor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from motionrnn_ext.layers import motion_gru
    from motionrnn_ext.models import MotionRNN

    seen: list[Tensor] = []

    def record(op: str, mask: int) -> None:
        """The layer's calls of a warp, whose argument `mask` has the logits."""
        warp = getattr(motion_gru.ops, op)

        def recorded(*arguments: Tensor) -> Any:
            seen.append(arguments[mask])
            return warp(*arguments)

        monkeypatch.setattr(motion_gru.ops, op, recorded)

    record("motion_warp", mask=5)
    record("offset_warp", mask=2)  # on the CPU, after motion_gates
    torch.manual_seed(0)
    config = replace(TINY, predictor=predictor)  # one MotionGRU
    model = MotionRNN(**config.model()).eval()
    clip = held_out(config, 1)[0]
    (motion,) = motions(model, clip[:3], clip[3:]).values()
    torch.testing.assert_close(motion.mask, torch.stack([logits[-1].sigmoid() for logits in seen]))


def test_visualize_by_command(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["visualize", str(trained), "--clip", "2", "--out", str(out), "--times", "1", "5"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "arrows.png",
        "motion.gif",
        "motion.json",
        "taps.png",
    ]
    shots = iio.imread(out / "motion.gif")
    assert len(shots) == 5  # frames that a clip of six has read before its last prediction
    two_columns, alone = iio.imread(out / "taps.png"), tmp_path / "alone"
    words = ["visualize", str(trained), "--interface", "2", "--times", "5", "--out", str(alone)]
    assert cli.main(words) == 0
    one = iio.imread(alone / "taps.png")
    assert one.shape[0] < two_columns.shape[0] and one.shape[1] < two_columns.shape[1]


def test_visualize_a_users_frames(trained: Path, tmp_path: Path) -> None:
    clip = held_out(load_run(trained).config, 1)[0]
    np.save(tmp_path / "clip.npy", clip[:3].numpy())
    words = ["visualize", str(trained), "--frames", str(tmp_path / "clip.npy"), "--n-output", "4"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert len(iio.imread(tmp_path / "out" / "motion.gif")) == 6
    assert cli.main(words) == 0
    assert (trained / "motion" / "taps.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--interface", "3"), "interface must be from 1 to 2; got 3"),
        (("--times", "1", "6"), "times must be from 1 to 5; got 6"),
        (("--n-input", "9", "--frames", "CLIP"), "clip.npy has 3 frames; --n-input 9 needs as many or more"),
    ],
)
def test_bad_commands(
    options: tuple[str, ...], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "clip.npy", np.zeros((3, 16, 16), np.float32))
    words = [str(tmp_path / "clip.npy") if word == "CLIP" else word for word in options]
    assert cli.main(["visualize", str(trained), "--out", str(tmp_path / "out"), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_model_without_motion_is_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(TINY, motion_gru=False, steps=1), tmp_path / "run", progress=False)
    capsys.readouterr()
    assert cli.main(["visualize", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "has no MotionGRU, and so no motion to draw" in line
