"""Pictures of radar: the colours of reflectivity, their bar, and which pictures have them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from commands import fails, run
from layouts import write_h5
from torch import Tensor

from motionrnn_ext import visualize
from motionrnn_ext.evaluation.baselines import FLOW, carried_on
from motionrnn_ext.evaluation.evaluate import evaluate
from motionrnn_ext.metrics import PRESETS
from motionrnn_ext.training.config import Config
from motionrnn_ext.visualize.radar import DRY, NO_DATA, TABLE, coloured

SMALL = ["--hidden", 4, 4, "--patch-size", 2, "--filter-size", 3, "--steps", 1, "--batch-size", 2, "--val-every", 1,
         "--val-clips", 2, "--image-size", 16, 16, "--accelerator", "cpu", "--no-progress"]  # fmt: skip


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def shows(path: Path, *colours: str) -> list[bool]:
    """Whether a picture has at least 20 pixels of each colour."""
    image = iio.imread(path)
    image = image.reshape(-1, *image.shape[-3:])[0][..., :3].astype(int)
    return [bool((np.abs(image - rgb(colour)).max(-1) <= 2).sum() >= 20) for colour in colours]


def test_a_pixel_has_the_colour_of_its_reflectivity() -> None:
    """By the table: 20 dBZ and more is bright green up to 25, and so on; scale 0 to 70 in bytes."""
    dbz = torch.tensor([0.0, 4.9, 5.0, 14.99, 15.0, 20.0, 34.9, 35.0, 50.0, 69.0, 70.0, math.nan])
    names = [
        DRY,
        DRY,
        TABLE[5],
        TABLE[10],
        TABLE[15],
        TABLE[20],
        TABLE[30],
        TABLE[35],
        TABLE[50],
        TABLE[65],
        TABLE[70],
    ]
    found = coloured((dbz / 70).view(1, 1, 1, -1), (0, 70)).mul(255).round().int()
    assert found.shape == (1, 3, 1, 12)
    assert found[0, :, 0].T.tolist() == [rgb(name) for name in [*names, NO_DATA]]
    # A byte that is a level: (byte + 30) / 2 of the official program, whose byte 10 is 20 dBZ.
    values = PRESETS["echo"]
    byte = torch.tensor([9, 10]).view(1, 1, 2) / 255
    found = coloured(byte, (values.offset, values.offset + values.scale)).mul(255).round().int()
    assert found[:, 0].T.tolist() == [rgb(TABLE[15]), rgb(TABLE[20])]
    # Predictions may leave [0, 1].
    outside = coloured(torch.tensor([-0.5, 1.5]).view(1, 1, 2), (10, 62)).mul(255).round().int()
    assert outside[:, 0].T.tolist() == [rgb(TABLE[10]), rgb(TABLE[60])]
    with pytest.raises(ValueError, match=r"frames of radar must be grey .*; got \(3, 4, 4\)"):
        coloured(torch.zeros(3, 4, 4), (0, 70))


def clip() -> tuple[Tensor, dict[str, Any]]:
    """Frames (4, 1, 16, 16) of 22, 37 and 52 dBZ, a dry part and one without data, at 0 to 70 dBZ; and motion."""
    frames = torch.zeros(4, 1, 16, 16)
    frames[..., :4], frames[..., 4:8], frames[..., 8:12] = 22 / 70, 37 / 70, 52 / 70
    frames[..., :4, 12:] = math.nan
    offset = torch.full((4, 18, 4, 4), 0.4)
    return frames, {"MotionGRU 1": offset}


def test_strips_and_films_have_the_colours_and_their_bar(tmp_path: Path) -> None:
    frames, _ = clip()
    future = {"model": torch.full((2, 1, 16, 16), 66 / 70)}
    seen = [TABLE[20], TABLE[35], TABLE[50], TABLE[65], NO_DATA]
    paths = [
        visualize.strip(tmp_path / "strip.png", frames, future, 2, dbz=(0, 70)),
        visualize.gif(tmp_path / "clip.gif", frames, future, 2, dbz=(0, 70)),
    ]
    assert shows(paths[0], *seen) == [True] * 5
    assert shows(paths[1], *seen[:3], NO_DATA) == [True] * 4
    # The bar has colours that no frame has, up to that of the highest pixel.
    for path in paths:
        assert shows(path, TABLE[25], TABLE[60], TABLE[70]) == [True] * 3
    grey = visualize.strip(tmp_path / "grey.png", frames, future, 2)
    assert shows(grey, *TABLE.values()) == [False] * (len(TABLE) - 1) + [True]  # white is that of the page
    plain, barred = (iio.imread(path).shape[0] for path in (grey, paths[0]))
    assert barred - plain == pytest.approx(150 * 0.42, abs=2)


def test_arrows_and_taps_lie_on_darkened_colours(tmp_path: Path) -> None:
    frames, motion = clip()
    masks = {"MotionGRU 1": torch.ones(4, 9, 4, 4)}
    pictures = {
        0.7: [visualize.arrows(tmp_path / "arrows.png", frames, motion, dbz=(0, 70))],
        0.6: [visualize.taps(tmp_path / "taps.png", frames, motion, masks=masks, dbz=(0, 70))],
    }
    for light, paths in pictures.items():
        for path in paths:
            dark = [
                "#" + "".join(f"{round(light * part):02x}" for part in rgb(TABLE[level]))
                for level in (20, 35, 50)
            ]
            assert shows(path, *dark) == [True] * 3, path
            assert shows(path, TABLE[25], TABLE[60]) == [True, True], path
    film = visualize.motion_gif(tmp_path / "motion.gif", frames, motion, motion, masks=masks, dbz=(0, 70))
    assert shows(film, TABLE[20], TABLE[35], TABLE[50]) == [True] * 3


# ---- The program


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("radar")
    write_h5(folder / "shanghai.h5")
    options = ["--dataset", "shanghai_h5", "--root", folder, "--n-input", 3, "--n-output", 2, "--dbz", 0, 70]
    assert run("train", "--out", folder / "run", *options, *SMALL) == 0
    return folder / "run"


def test_every_command_draws_radar_in_its_colours(trained: Path, tmp_path: Path) -> None:
    assert Config.read(trained / "config.json").dbz == (0.0, 70.0)
    assert run("evaluate", trained, "--pictures", 1, "--out", tmp_path / "e") == 0
    assert run("predict", trained, "--out", tmp_path / "p") == 0
    assert run("visualize", trained, "--out", tmp_path / "v") == 0
    drawn = ["e/strip_0.png", "e/clip_0.gif", "e/arrows_0.png", "p/strip.png", "p/clip.gif", "p/arrows.png"]
    drawn += ["v/arrows.png", "v/taps.png", "v/motion.gif"]
    for name in drawn:
        assert shows(tmp_path / name, TABLE[25], TABLE[65]) == [True, True], name
    # The scale of the bar can be another one than that of the training: its end is then at 30 dBZ.
    assert run("predict", trained, "--dbz", 0, 33, "--out", tmp_path / "other") == 0
    assert shows(tmp_path / "other/strip.png", TABLE[25], TABLE[65]) == [True, False]
    options = ["--digit-size", 8, "--n-input", 2, "--n-output", 2]
    assert run("train", "--out", tmp_path / "digits", *options, *SMALL) == 0
    assert run("predict", tmp_path / "digits", "--out", tmp_path / "d") == 0
    assert shows(tmp_path / "d/strip.png", TABLE[25], TABLE[65]) == [False, False]


def test_a_strip_shows_the_optical_flow_below_the_models(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(visualize, "strip", lambda path, *arguments, **_: drawn.append(arguments) or path)
    evaluate([trained], tmp_path, pictures=1)
    (frames, futures, n_input), *_ = drawn
    assert list(futures)[1:] == [FLOW]
    assert torch.equal(futures[FLOW], carried_on(frames[:n_input], len(frames) - n_input))


def test_thresholds_are_reflectivities_of_the_data(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", trained, "--pictures", 0, "--fss", 0]
    assert run(*words, "--thresholds", "15dBZ", "1mm/h", "40", "--out", tmp_path / "named") == 0
    shown = capsys.readouterr().out
    assert "events of 70 p +0 >= threshold" in shown and "repeat last frame, 23.0103" in shown
    options = ["--thresholds", 15, 23.010299956639813, 40, "--value-scale", 70]
    assert run(*words, *options, "--out", tmp_path / "plain") == 0
    texts = [(tmp_path / name / "metrics.json").read_text() for name in ("named", "plain")]
    assert texts[0] == texts[1]
    with pytest.raises(SystemExit):
        run(*words, "--thresholds", "15 cm")
    line = capsys.readouterr().err
    assert "a threshold must be a number, or one with dBZ or mm/h as 15dBZ or 1mm/h; got '15 cm'" in line
    # Another data set brings its own scale.
    line = fails(capsys, *words, "--dataset", "radar_like", "--thresholds", "15dBZ")
    assert (
        "--thresholds needs what a pixel stands for: --values NAME, --value-scale S or --dbz LOW HIGH" in line
    )


def test_scales_are_those_of_the_data_sets(trained: Path, tmp_path: Path) -> None:
    assert (Config(dataset="shanghai_png").dbz, Config().dbz) == ((0.0, 90.0), None)
    # The data set's own range is for files in which 255 is 1.
    assert Config(dataset="shanghai_png", pixel_max=70).dbz is None
    assert Config(dataset="shanghai_png", pixel_max=70, dbz=(0, 70)).dbz == (0.0, 70.0)
    assert Config(dataset="shanghai_png").changed({"pixel_max": 70.0}).dbz is None
    with pytest.raises(
        ValueError, match="dbz must be two numbers, the reflectivity of pixel 0 and the higher one"
    ):
        Config(dbz=(70, 0))
    with pytest.raises(ValueError, match="dbz must be left out with human36m, whose frames are in colour"):
        Config(dataset="human36m", dbz=(0, 70))
    results, written = evaluate([trained], tmp_path, pictures=1, dbz=(0.0, 33.0))
    assert not written.failed and shows(tmp_path / "strip_0.png", TABLE[25], TABLE[65]) == [True, False]
    assert all(math.isfinite(one["mse"]) for one in results.values())
