"""Pictures show what they are given: checked on their pixels, not their looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from repository import ROOT
from torch import Tensor

from motionrnn_ext import visualize
from motionrnn_ext.visualize.page import Sheet, moments

ORANGE = np.array([0xFF, 0x9F, 0x43])


def is_arrow(image: np.ndarray) -> np.ndarray:
    return (np.abs(image[..., :3].astype(int) - ORANGE) < 60).all(-1)


def flat_frames(*levels: float, height: int = 16, width: int = 16) -> Tensor:
    """(T, 1, H, W), each frame of one grey level."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, height, width)


def cells(image: np.ndarray, levels: list[int]) -> dict[int, int]:
    """How many pixels have each grey level exactly."""
    grey = (image[..., 0] == image[..., 1]) & (image[..., 1] == image[..., 2])
    return {level: int((grey & (image[..., 0] == level)).sum()) for level in levels}


def test_strip_shows_every_frame_once(tmp_path: Path) -> None:
    frames = flat_frames(0.2, 0.4, 0.6, 0.8)  # two inputs, two futures
    path = tmp_path / "new" / "folder" / "strip.png"
    assert visualize.strip(path, frames, {"model-a": flat_frames(0.1, 0.3)}, n_input=2) == path
    image = iio.imread(path)
    assert image.shape[1] == pytest.approx(150 * (1.3 + 2 * 2.1), abs=1)
    counts = cells(image, [51, 102, 153, 204, 26, 76])  # round(255 x)
    sizes = list(counts.values())
    assert min(sizes) > 10000
    assert max(sizes) < 1.03 * min(sizes)  # cells of one size, up to a row of pixels at their edges
    rows = {level: np.nonzero((image[..., :3] == level).all(-1))[0].mean() for level in counts}
    columns = {level: np.nonzero((image[..., :3] == level).all(-1))[1].mean() for level in counts}
    assert rows[51] < rows[153] < rows[26]  # input, truth, model
    assert rows[153] == rows[204]
    assert columns[51] == columns[153] == columns[26] < columns[102] == columns[204] == columns[76]


def test_strip_takes_wide_colour_frames_and_more_inputs_than_futures(tmp_path: Path) -> None:
    frames = torch.zeros(7, 3, 8, 24)
    frames[:, 0] = 1
    image = iio.imread(visualize.strip(tmp_path / "s.png", frames, {}, n_input=5))
    red = (image[..., :3] == [255, 0, 0]).all(-1)
    widths = np.diff(np.flatnonzero(np.diff(red[np.flatnonzero(red.any(1))[5]].astype(int))))[::2]
    heights = np.diff(np.flatnonzero(np.diff(red.any(1).astype(int))))[::2]
    assert len(widths) == 5
    assert widths.mean() / heights.mean() == pytest.approx(3, rel=0.05)


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures of strips, arrows and taps, which are not written."""
    seen: list[Any] = []
    for name in ("strips", "motion", "taps"):  # `visualize.taps` is a function
        module = sys.modules[f"motionrnn_ext.visualize.{name}"]
        monkeypatch.setattr(module, "saved", lambda figure, path: seen.append(figure) or path)
    return seen


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def assert_legible(figure: Any) -> None:
    """No text over another or outside, and no side above what viewers show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    assert max(width, height) < 7000
    boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    for i, box in enumerate(boxes):
        assert box.x0 > 0 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, figure.texts[i]
        for other in boxes[i + 1 :]:
            assert not box.shrunk(0.9, 0.8).overlaps(other.shrunk(0.9, 0.8))


@pytest.mark.parametrize(
    ("n_input", "n_output", "size", "labels", "shown"),
    [
        (1, 1, (8, 8), ["m"], 1),
        (5, 40, (16, 16), ["MotionRNN-Conv-TT-LSTM"], 40),
        (70, 1, (16, 16), ["m"], 1),
        (2, 20, (16, 512), ["MotionRNN-ConvLSTM"], 20),
        (2, 20, (512, 16), ["m"], 20),
        (2, 3, (512, 512), ["runs_of_2026_" * 6, "x" * 80, "a b", "$\\frac{", "_hidden", "5%", "", "x-y"], 3),
    ],
)  # fmt: skip
def test_a_strip_of_any_length_and_shape_is_legible(
    n_input: int, n_output: int, size: tuple[int, int], labels: list[str], shown: int, sheets: list[Any]
) -> None:
    frames = torch.zeros(n_input + n_output, 1, *size)
    visualize.strip("s.png", frames, dict.fromkeys(labels, frames[n_input:]), n_input)
    assert_legible(sheets[0])
    found = texts(sheets[0])
    assert len({text for text in found if text.startswith("t+")}) == shown
    assert {"t+1", f"t+{n_output}"} <= set(found)
    said = [text for text in found if text.startswith("shown, evenly spread")]
    assert said == ([f"shown, evenly spread: {shown} of {n_output} lead times"] if shown < n_output else [])


@pytest.mark.parametrize(("n_times", "shown"), [(1, 1), (13, 13)])
def test_arrows_and_taps_of_many_times_are_legible(n_times: int, shown: int, sheets: list[Any]) -> None:
    frames, zero = torch.zeros(n_times, 1, 16, 16), torch.zeros(n_times, 18, 4, 4)
    for draw in (visualize.arrows, visualize.taps):
        draw("x.png", frames, {"MotionGRU 1": zero, "MotionGRU 2": zero}, times=list(range(n_times)))
        figure = sheets.pop()
        assert_legible(figure)
        found = texts(figure)
        assert sum(text.startswith("frame ") for text in found) == shown
        said = f"shown, evenly spread: {shown} of {n_times} frames"
        assert (said in found) == (shown < n_times)


def test_a_gif_of_more_frames_than_memory_should_hold_says_so() -> None:
    sheet = Sheet(3, 9, torch.zeros(1, 1, 64, 64), n_heads=1)
    times, said = moments(sheet, 5000)
    assert times[0] == 0 and times[-1] == 4999 and 24 <= len(times) < 200
    assert said == f" ({len(times)} of 5000 frames are shown)"
    assert moments(sheet, 20) == (list(range(20)), "")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def half(self: Figure, file: Any, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    path = visualize.strip(tmp_path / "s.png", torch.zeros(3, 1, 8, 8), {}, n_input=1)
    before = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space"):
        visualize.strip(path, torch.zeros(3, 1, 8, 8), {}, n_input=1)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_gif_has_every_frame_and_runs_side_by_side(tmp_path: Path) -> None:
    frames, prediction = flat_frames(0.1, 0.2, 0.3, 0.6, 0.7), flat_frames(0.4, 0.5)
    path = visualize.gif(tmp_path / "clip.gif", frames, {"ours": prediction}, n_input=3, fps=5)
    shots = iio.imread(path)
    assert shots.shape[0] == 5
    assert iio.immeta(path)["duration"] == 200
    assert iio.immeta(path)["loop"] == 0
    height, width = shots.shape[1:3]
    left, right = (shots[:, height // 2, width * part // 4].astype(int) for part in (1, 3))
    wanted = np.round(255 * frames[:, 0, 0, :1].numpy())
    assert np.abs(left - wanted).max() <= 2  # the palette
    wanted[3:] = np.round(255 * prediction[:, 0, 0, :1].numpy())
    assert np.abs(right - wanted).max() <= 2


def test_gif_keeps_frames_that_look_alike(tmp_path: Path) -> None:
    shots = iio.imread(visualize.gif(tmp_path / "still.gif", torch.zeros(6, 1, 8, 8), {}, n_input=2))
    assert len(shots) == 6


def test_trend_field_is_the_mean_over_taps_in_frame_pixels() -> None:
    trend = torch.zeros(2, 18, 4, 8)
    trend[1, :9] = torch.arange(9.0).view(9, 1, 1)  # row offsets: mean 4
    trend[1, 9:, 2, 3] = -1.5  # column offsets of one pixel
    field = visualize.trend_field(trend, (32, 96))
    assert field.shape == (2, 2, 4, 8)
    assert (field[0] == 0).all()
    assert (field[1, 0] == 4 * 32 / 4).all()
    assert field[1, 1, 2, 3] == -1.5 * 96 / 8
    assert field[1, 1].count_nonzero() == 1
    with pytest.raises(ValueError, match=r"K row then K column offsets; got \(9, 4, 4\)"):
        visualize.trend_field(trend[0, :9, :, :4], (8, 8))


@pytest.mark.parametrize(("axis", "sign"), [("row", 1), ("row", -1), ("column", 1), ("column", -1)])
def test_arrows_start_at_their_pixel_and_point_where_the_layer_reads(
    tmp_path: Path, axis: str, sign: int
) -> None:
    """One displacement, of 16 frame pixels, at map pixel (1, 2) of a 4x4 map over 64x64 frames."""
    trend = torch.zeros(1, 18, 4, 4)
    trend[0, slice(0, 9) if axis == "row" else slice(9, 18), 1, 2] = sign * 1.0
    path = visualize.arrows(tmp_path / "a.png", torch.zeros(1, 1, 64, 64), {"m": trend}, magnify=1)
    image = iio.imread(path)
    frame = (image[..., :3] == 0).all(-1) | is_arrow(image)
    y0, x0 = np.argwhere(frame).min(0)
    y1, x1 = np.argwhere(frame).max(0)
    ys, xs = (
        v / (n / 64)
        for v, n in zip(np.nonzero(is_arrow(image[y0:y1, x0:x1])), (y1 - y0, x1 - x0), strict=True)
    )
    along, across = (ys, xs) if axis == "row" else (xs, ys)
    start, line = (24, 40) if axis == "row" else (40, 24)  # centres of map pixels 1 and 2
    assert across.mean() == pytest.approx(line, abs=0.5)
    tail, head = (along.min(), along.max()) if sign > 0 else (along.max(), along.min())
    assert tail == pytest.approx(start, abs=0.8)
    assert head == pytest.approx(start + 16 * sign, abs=0.8)
    assert np.sign(along.mean() - (start + 8 * sign)) == sign  # the head is the heavier end


def test_arrows_are_magnified_to_be_seen(tmp_path: Path) -> None:
    frames, trend = torch.zeros(2, 1, 64, 64), torch.full((2, 18, 4, 4), 1e-3)
    plain, magnified = (
        iio.imread(visualize.arrows(tmp_path / f"{m}.png", frames, {"m": trend}, magnify=m))
        for m in (1, None)
    )
    assert not is_arrow(plain).any()
    assert is_arrow(magnified).sum() > 1000


LOG = """epoch,step,train_loss_epoch,train_loss_step,val_loss,val_mse
0,9,,4.0,,
0,19,,3.0,,
0,19,,,5.0,50
0,19,3.5,,,
1,29,,2.0,,
"""


def test_log_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    curves = {"train_loss_step": ([9, 19, 29], [4.0, 3.0, 2.0]), "val_loss": ([19], [5.0])}
    assert visualize.read_log(path) == curves
    assert visualize.read_log(path, ["val_mse"]) == {"val_mse": ([19], [50.0])}
    with pytest.raises(ValueError, match=r"metrics\.csv: no value in a column lr; it has epoch, step"):
        visualize.read_log(path, ["lr"])
    path.write_text("loss\n1\n")
    with pytest.raises(
        ValueError, match=r"metrics\.csv: a log must have a `step` column and a row; it has loss"
    ):
        visualize.read_log(path)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    frames, path = torch.zeros(5, 1, 8, 8), tmp_path / "x.png"
    with pytest.raises(ValueError, match=r"predictions\['m'\] must be \(3, 1, 8, 8\); got \(2, 1, 8, 8\)"):
        visualize.strip(path, frames, {"m": frames[:2]}, n_input=2)
    with pytest.raises(ValueError, match=r"1 <= n_input < T; got \(5, 1, 8, 8\), n_input 5"):
        visualize.gif(path, frames, {}, n_input=5)
    with pytest.raises(
        ValueError, match=r"trends\['m'\] must be \(T' <= 5, 2K, h', w'\); got \(6, 18, 4, 4\)"
    ):
        visualize.arrows(path, frames, {"m": torch.zeros(6, 18, 4, 4)})
    assert not path.exists()


def test_importing_and_drawing_leave_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from motionrnn_ext import visualize\n"
        "assert not {'matplotlib', 'imageio'} & set(sys.modules)\n"
        f"visualize.strip({str(tmp_path / 's.png')!r}, torch.zeros(3, 1, 8, 8), {{}}, n_input=1)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
