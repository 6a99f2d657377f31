"""Every data set through train, evaluate and predict on the command line, on small real files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the training program's packages are not installed")
pytest.importorskip("h5py", reason="the training program's packages are not installed")

import numpy as np
from commands import SMALL, fails, run
from layouts import (
    noise,
    write_h5,
    write_human36m,
    write_jpg,
    write_npy,
    write_npz,
    write_openstl,
    write_pngs,
)
from PIL import Image

from motionrnn_ext.cli.parser import make_parser
from motionrnn_ext.cli.settings import config_of
from motionrnn_ext.data import DATASETS, DataSet, open_clips
from motionrnn_ext.evaluation.clips import held_out, other_data, read_frames
from motionrnn_ext.evaluation.scores import predict_clips
from motionrnn_ext.training.batches import ClipDataModule
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import load_run

Writer = Callable[[Path], object]
LAYOUTS: dict[str, tuple[Writer | None, int, tuple[str, ...]]] = {
    # name -> what writes the files, clips for training (0: generated), further options
    "moving_digits": (None, 0, ("--digit-size", "8")),
    "radar_like": (None, 0, ()),
    "human36m": (
        lambda root: write_human36m(root, {"S1_Walking.54138969": 26, "S9_Walking_1.60457274": 22}),
        2,
        (),
    ),
    "human36m_openstl": (write_openstl, 2, ()),
    "frames": (lambda root: write_pngs(root, [f"{i:02d}" for i in range(11)]), 9, ()),
    "shanghai_h5": (lambda root: write_h5(root / "shanghai.h5"), 3, ("--stride", "2")),
    "shanghai_png": (lambda root: write_pngs(root, ["train/a", "train/b", "test/c"]), 2, ()),
    "moving_mnist_npz": (write_npz, 4, ()),
    "moving_mnist_npy": (lambda root: write_npy(root / "mnist_test_seq.npy"), 0, ("--digit-size", "12")),
}


def written(home: Path, name: str) -> list[str]:
    """The files of a data set and the options that name it."""
    write, _, options = LAYOUTS[name]
    if write is None:
        return ["--dataset", name, *options]
    root = home / "data"
    root.mkdir()
    write(root)
    return ["--dataset", name, "--root", str(root), *options]


@pytest.mark.parametrize("name", LAYOUTS)
def test_train_evaluate_predict(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, entry = written(tmp_path, name), tmp_path / "run", DATASETS[name]
    assert run("train", "--out", out, *data, *SMALL) == 0
    assert f"ConvLSTM on {entry.title}, 16x16, 4 frames in and 4 out" in capsys.readouterr().out
    config = Config.read(out / "config.json")
    assert (config.dataset, config.channels) == (name, entry.channels)
    assert len(ClipDataModule(config).training) == (
        LAYOUTS[name][1] or 3
    )  # files are taken whole, whatever train_clips is

    trained = load_run(out)
    assert trained.model.in_channels == entry.channels
    assert run("evaluate", out, "--clips", 2, "--pictures", 0) == 0
    results = json.loads((out / "evaluation/metrics.json").read_text())
    clips = held_out(config, 2)
    assert (results["dataset"], results["clips"]) == (name, len(clips))
    frames = torch.stack([clips[i] for i in range(len(clips))])
    error = predict_clips(trained.model, frames[:, :4], 4) - frames[:, 4:]
    wanted = error.double().square().sum((2, 3, 4)).mean()
    mine = next(result for result in results["models"].values() if "checkpoint" in result)
    assert mine["mse"] == pytest.approx(float(wanted), rel=1e-4)

    assert run("predict", out, "--clip", 0) == 0
    found = torch.from_numpy(np.load(out / "prediction/prediction.npy"))
    assert found.shape == (4, entry.channels, 16, 16)
    torch.testing.assert_close(found, predict_clips(trained.model, held_out(config)[0][None, :4], 4)[0])
    if not entry.generated:
        n = len(held_out(config))
        assert f"the clip must be one of 0 to {n - 1}" in fails(capsys, "predict", out, "--clip", n)


@pytest.mark.parametrize("name", ["human36m", "shanghai_h5"])
def test_worker_processes_change_nothing(name: str, tmp_path: Path) -> None:
    settings = [*written(tmp_path, name), *SMALL]
    weights = []
    for workers in (0, 1):
        out = tmp_path / f"run-{workers}"
        assert run("train", "--out", out, *settings, "--workers", workers) == 0
        weights.append(load_run(out).model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_files_that_have_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, here, there = tmp_path / "run", tmp_path / "data", tmp_path / "moved"
    assert run("train", "--out", out, *written(tmp_path, "shanghai_h5"), *SMALL) == 0
    here.rename(there)
    assert f"{here}: neither a file nor a folder with shanghai.h5" in fails(capsys, "evaluate", out)
    assert run("evaluate", out, "--root", there, "--pictures", 0) == 0
    results = json.loads((out / "evaluation/metrics.json").read_text())
    assert (results["clips"], results["root"]) == (3, str(there))  # all of them, by default
    assert run("predict", out, "--root", there, "--clip", 2) == 0
    assert "is generated" in fails(capsys, "evaluate", out, "--dataset", "radar_like", "--root", there)
    assert "needs root (--root)" in fails(capsys, "evaluate", out, "--dataset", "shanghai_png")
    line = fails(capsys, "evaluate", out, "--digits", "sklearn")
    assert "digits (--digits) is for moving_digits, moving_mnist_npy; shanghai_h5 has none" in line


def test_a_model_of_digits_is_scored_on_the_test_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("train", "--out", out, "--plain", "--digit-size", 12, *SMALL) == 0
    options = written(tmp_path, "moving_mnist_npy")[:4]
    assert run("evaluate", out, *options, "--pictures", 0) == 0
    results = json.loads((out / "evaluation/metrics.json").read_text())
    assert (results["dataset"], results["clips"]) == ("moving_mnist_npy", 5)
    assert run("predict", out, *options, "--clip", 4) == 0
    line = fails(capsys, "evaluate", out, "--dataset", "human36m", "--root", tmp_path)
    assert "ConvLSTM has (channels, image_size, n_input) (1, (16, 16), 4)" in line
    assert "the clips of human36m (3, (16, 16), 4)" in line
    other = tmp_path / "other"
    assert run("train", "--out", other, "--dataset", "radar_like", *SMALL) == 0
    line = fails(capsys, "evaluate", out, other)
    assert "was trained on radar_like, the first run on moving_digits" in line and "--dataset" in line
    assert run("evaluate", out, other, "--dataset", "radar_like", "--clips", 2, "--pictures", 0) == 0


def test_a_model_of_generated_radar_is_scored_on_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("train", "--out", out, "--dataset", "radar_like", *SMALL) == 0
    options = [*written(tmp_path, "shanghai_h5")[:4], "--stride", 3, "--pixel-max", 200]
    capsys.readouterr()
    assert run("evaluate", out, *options, "--pictures", 0, "--values", "shanghai") == 0
    shown = capsys.readouterr().out
    words = "data: shanghai_h5, test, 3 clips of 4 given frames and 4 to predict, stride 3, pixel_max 200.0\n"
    assert shown.count(words) == 1 and "warning" not in shown
    results = json.loads((out / "evaluation/metrics.json").read_text())
    assert (results["dataset"], results["stride"], results["pixel_max"]) == ("shanghai_h5", 3, 200)
    own = open_clips(
        "shanghai_h5",
        "test",
        root=tmp_path / "data",
        n_frames=8,
        image_size=(16, 16),
        stride=3,
        pixel_max=200,
    )
    frames = torch.stack([own[i] for i in range(3)])
    error = predict_clips(load_run(out).model, frames[:, :4], 4) - frames[:, 4:]
    mine = next(result for result in results["models"].values() if "checkpoint" in result)
    assert mine["mse"] == pytest.approx(float(error.double().square().sum((2, 3, 4)).mean()), rel=1e-4)
    assert run("predict", out, *options, "--clip", 2) == 0
    found = torch.from_numpy(np.load(out / "prediction/prediction.npy"))
    torch.testing.assert_close(found, predict_clips(load_run(out).model, own[2][None, :4], 4)[0])

    for command in (("evaluate", out), ("predict", out), ("visualize", out)):
        line = fails(capsys, *command, "--stride", 2)
        assert (
            "stride (--stride) is for frames, frames_rgb, shanghai_h5, shanghai_png; radar_like has none"
            in line
        )
    assert "pixel_max must be above 0" in fails(capsys, "evaluate", out, *options[:4], "--pixel-max", 0)
    np.save(tmp_path / "frames.npy", noise(4, 16, 16))
    for option in (("--root", "x"), ("--dataset", "shanghai_h5"), ("--stride", 2)):
        for command in ("predict", "visualize"):
            line = fails(capsys, command, out, "--frames", tmp_path / "frames.npy", *option)
            assert f"{option[0]} is for clips of a data set; leave it out with --frames" in line
    again = out / "checkpoints" / ".." / "checkpoints" / "best.ckpt"
    assert "best.ckpt is given twice; name each run once" in fails(capsys, "evaluate", out, again)


def test_a_model_of_rgb_frames_gets_rgb_of_bgr_files_and_the_reverse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from motionrnn_ext import visualize

    shown: list[torch.Tensor] = []
    strip = visualize.strip
    monkeypatch.setattr(
        visualize,
        "strip",
        lambda path, frames, *rest, **options: shown.append(frames) or strip(path, frames, *rest, **options),
    )
    data = {}
    for name in ("human36m", "human36m_openstl"):
        (tmp_path / name).mkdir()
        data[name] = written(tmp_path / name, name)
        assert run("train", "--out", tmp_path / name / "run", *data[name], *SMALL) == 0
    for name, other in (("human36m", "human36m_openstl"), ("human36m_openstl", "human36m")):
        out, root = tmp_path / name / "run", tmp_path / other / "data"
        clip = open_clips(other, "test", root=root, n_frames=8, image_size=(16, 16))[0]
        model = load_run(out).model
        wanted, swapped = (
            predict_clips(model, clip.flip(1)[None, :4], 4)[0],
            predict_clips(model, clip[None, :4], 4)[0],
        )
        assert not torch.allclose(wanted, swapped.flip(1), atol=1e-3)
        assert run("predict", out, *data[other]) == 0
        found = torch.from_numpy(np.load(out / "prediction/prediction.npy"))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert run("evaluate", out, *data[other], "--clips", 1, "--pictures", 1) == 0
        results = json.loads((out / "evaluation/metrics.json").read_text())["models"]
        mine = next(result for result in results.values() if "checkpoint" in result)
        error = (wanted - clip.flip(1)[4:]).double().square().sum((1, 2, 3)).mean()
        assert mine["mse"] == pytest.approx(float(error), rel=1e-4)
        red_first = clip if other == "human36m" else clip.flip(1)
        assert all(torch.equal(frames, red_first) for frames in shown) and len(shown) == 2
        shown.clear()
    runs = [tmp_path / name / "run" for name in data]
    line = fails(capsys, "evaluate", *runs, *data["human36m"])
    assert "was trained on BGR frames, the first run on RGB; evaluate them apart" in line


def test_grey_frames_for_a_model_of_colours_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("train", "--out", out, *written(tmp_path, "human36m"), *SMALL) == 0
    for command in ("predict", "visualize"):
        line = fails(capsys, command, out, "--dataset", "radar_like")
        assert "radar_like has clips in grey; clips in RGB are wanted" in line


def test_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for options, message in (
        (
            ("--dataset", "kth"),
            "dataset must be one of moving_digits, radar_like, frames, frames_rgb, human36m",
        ),
        (
            ("--clip-step", 3),
            "clip_step (--clip-step) is for frames, frames_rgb, human36m, human36m_openstl, shanghai",
        ),
        (("--dataset", "human36m"), "human36m needs root (--root): the folder with S11_Walking_1"),
        (
            ("--root", tmp_path),
            "moving_digits is generated and reads no files; root (--root) is for the other",
        ),
        (("--dataset", "human36m", "--root", tmp_path), "no frame of Walking by S1, S5, S6, S7, S8"),
        (("--dataset", "shanghai_h5", "--root", tmp_path, "--stride", 0), "stride must be at least 1; got 0"),
    ):
        assert message in fails(capsys, "train", "--out", out, *options, *SMALL)
        assert not out.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_the_training_with_its_name(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path, "human36m")
    bad = tmp_path / "data/S1_Walking.54138969_000121.jpg"  # in the second clip alone
    bad.write_bytes(bad.read_bytes()[:300])
    line = fails(capsys, "train", "--out", tmp_path / "run", *data, *SMALL, "--workers", workers)
    assert line.startswith(f"motionrnn train: error: {bad}: damaged, or not a jpg or png image (")


@pytest.mark.parametrize(
    ("name", "package", "fault"), [("shanghai_h5", "h5py", "h5py"), ("human36m", "PIL.Image", "PIL")]
)
def test_a_missing_package_is_named(
    name: str,
    package: str,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = written(tmp_path, name)
    monkeypatch.setitem(sys.modules, package, None)
    if fault == "PIL":
        monkeypatch.delattr("PIL.Image")
        monkeypatch.setitem(sys.modules, "PIL", None)
    line = fails(capsys, "train", "--out", tmp_path / "run", *data, *SMALL)
    how = "pip install 'motionrnn-ext[train]'"
    assert line == f"motionrnn train: error: the package {fault} is missing: {how}"
    assert not (tmp_path / "run").exists()


def test_resuming_keeps_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "run", written(tmp_path, "shanghai_png")
    assert run("train", "--out", out, *data, *SMALL) == 0
    assert run("train", "--out", out, "--resume", *data, "--no-progress") == 0
    line = fails(capsys, "train", "--out", out, "--resume", "--dataset", "shanghai_h5")
    assert "was started with dataset shanghai_png; --resume cannot change it to shanghai_h5" in line


# ---- A user's own frames, and data set


@pytest.mark.parametrize("name", ["human36m", "human36m_openstl"])
def test_predict_from_images_and_arrays_of_colours(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "run", tmp_path / "frames"
    assert run("train", "--out", out, *written(tmp_path, name), *SMALL) == 0
    images = [write_jpg(folder / f"{t}.jpg", t, (16, 16)) for t in range(9, 13)]  # 9, 10, 11, 12
    frames = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    if name == "human36m_openstl":
        frames = frames.flip(1)
    np.save(tmp_path / "frames.npy", frames.numpy())
    wanted = predict_clips(load_run(out).model, frames[None], 4)[0]
    for number, source in enumerate((folder, tmp_path / "frames.npy")):
        assert run("predict", out, "--frames", source, "--out", tmp_path / str(number)) == 0
        found = torch.from_numpy(np.load(tmp_path / str(number) / "prediction.npy"))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    np.save(tmp_path / "grey.npy", frames[:, 0].numpy())
    assert run("predict", out, "--frames", tmp_path / "grey.npy", "--out", tmp_path / "grey") == 0
    found = torch.from_numpy(np.load(tmp_path / "grey" / "prediction.npy"))
    wanted = predict_clips(load_run(out).model, frames[None, :, :1].expand(-1, -1, 3, -1, -1), 4)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    (tmp_path / "none").mkdir()
    assert "no png, jpg, bmp, tif or webp image is in this folder" in fails(
        capsys, "predict", out, "--frames", tmp_path / "none"
    )
    write_jpg(folder / "13.jpg", 0, (16, 20))
    line = fails(capsys, "predict", out, "--frames", folder)
    assert "13.jpg is 16x20, the first frame 16x16" in line


def test_folders_of_images_become_grey_for_a_grey_model(tmp_path: Path) -> None:
    for t in range(3):
        Image.fromarray(noise(8, 10, seed=t)).save(tmp_path / f"{t}.png")
    wanted = torch.from_numpy(np.stack([noise(8, 10, seed=t) for t in range(3)])[:, None]).float() / 255
    assert torch.equal(read_frames(tmp_path), wanted)
    assert torch.equal(read_frames(tmp_path, "RGB"), wanted.expand(3, 3, 8, 10))


MODULE = """
import torch
from torch.utils.data import Dataset
from motionrnn_ext.data import DATASETS, DataSet

class Ramps(Dataset):
    def __init__(self, split, root, n_frames, image_size):
        self.shape = (n_frames, 3, *image_size)
    def __len__(self):
        return 3
    def __getitem__(self, index):
        return torch.full(self.shape, index / 4)

DATASETS["ramps"] = DataSet("ramps", Ramps, "anything", image_size=(16, 16), n_input=2, n_output=3, colours="RGB")
"""


def test_a_data_set_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_ramps.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATASETS, "ramps", DataSet("", list))  # removed after the test
    monkeypatch.setattr(sys, "path", sys.path.copy())
    small = [*SMALL[:6], *SMALL[13:]]  # the sizes are the data set's
    own = ["--import", "my_ramps"]
    assert run("train", "--out", "run", *own, "--dataset", "ramps", "--root", "x", *small) == 0
    config = Config.read(Path("run/config.json"))
    assert (config.image_size, config.n_input, config.n_output, config.channels) == ((16, 16), 2, 3, 3)
    assert run("evaluate", "run", *own) == 0
    assert run("predict", "run", *own, "--clip", 2) == 0
    assert np.load("run/prediction/prediction.npy").shape == (3, 3, 16, 16)


def test_a_data_set_of_ones_own_with_other_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for items, message in (
        (
            torch.zeros(2, 8, 3, 16, 16),
            "must give clips (T, C, H, W) of torch.float32, here (8, 1, 16, 16); it gives",
        ),
        (torch.zeros(2, 8, 1, 16, 16).double(), "it gives torch.float64 (8, 1, 16, 16)"),
        (torch.zeros(0), "mine has no clip"),
    ):
        entry = DataSet("mine", lambda split, items=items, **_: items, "anything")
        monkeypatch.setitem(DATASETS, "mine", entry)
        options = ["--dataset", "mine", "--root", "x", *SMALL]
        assert message in fails(capsys, "train", "--out", tmp_path / "run", *options)


# ---- Settings


def test_protocols_of_the_data_sets_hold_where_nothing_is_given() -> None:
    wanted = {
        "moving_digits": ((64, 64), 10, 10, 1),
        "radar_like": ((64, 64), 5, 10, 1),
        "frames": ((64, 64), 10, 10, 1),
        "frames_rgb": ((64, 64), 10, 10, 3),
        "human36m": ((128, 128), 4, 4, 3),
        "human36m_openstl": ((256, 256), 4, 4, 3),
        "shanghai_h5": ((64, 64), 5, 10, 1),
        "shanghai_png": ((64, 64), 5, 10, 1),
        "moving_mnist_npz": ((64, 64), 10, 10, 1),
        "moving_mnist_npy": ((64, 64), 10, 10, 1),
    }
    assert wanted.keys() == DATASETS.keys()
    for name, protocol in wanted.items():
        config = Config(dataset=name)
        assert (config.image_size, config.n_input, config.n_output, config.channels) == protocol
        assert config.model()["in_channels"] == protocol[-1]
    config = Config(dataset="human36m", image_size=(64, 32), n_input=3)
    assert (config.image_size, config.n_input, config.n_output) == ((64, 32), 3, 4)
    with pytest.raises(ValueError, match="dataset must be one of moving_digits"):
        Config(dataset="kth")


def test_another_data_set_than_the_files_brings_its_own_protocol(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    Config(dataset="human36m", root="there", n_input=3, n_output=2, lr=0.5).write(path)

    def config(*options: object) -> Config:
        words = ["train", "--config", str(path), *map(str, options)]
        return config_of(make_parser().parse_args(words))

    other = config("--dataset", "shanghai_h5", "--root", "here")
    assert (other.image_size, other.n_input, other.n_output) == ((64, 64), 5, 10)
    assert (other.lr, other.root) == (0.5, "here")
    assert config("--dataset", "radar_like").root is None
    chosen = config("--dataset", "shanghai_h5", "--image-size", 32, 48, "--n-input", 7)
    assert (chosen.image_size, chosen.n_input, chosen.n_output) == ((32, 48), 7, 10)
    same = config("--dataset", "human36m", "--n-output", 6)
    assert (same.image_size, same.n_input, same.n_output, same.root) == ((128, 128), 3, 6, "there")


def test_settings_of_before_there_were_data_sets_still_load(tmp_path: Path) -> None:
    config = Config(image_size=(32, 48), n_input=7, digits="somewhere")
    old = {k: v for k, v in config.to_dict().items() if k not in ("dataset", "root", "stride", "pixel_max")}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert Config.read(tmp_path / "config.json") == config
    assert config.dataset == "moving_digits" and config.model()["in_channels"] == 1
    # Files of bytes were the only ones, and 255 their highest value.
    older = {k: v for k, v in config.to_dict().items() if k != "clip_step"} | {"pixel_max": 255.0}
    assert Config.from_dict(older, "x") == config
    assert Config.from_dict({**config.to_dict(), "pixel_max": 255.0}, "x").pixel_max == 255
    moved = replace(config, dataset="shanghai_h5", root="here", stride=2)
    moved.write(tmp_path / "config.json")
    assert Config.read(tmp_path / "config.json") == moved


def test_the_runs_own_data_set_by_name_changes_nothing() -> None:
    config = Config(dataset="shanghai_png", root="a", missing="255", dbz=(0, 60), pixel_max=70.0)
    named = {"dataset": "shanghai_png"}
    assert other_data(config) == {} and other_data(config, "shanghai_png") == named
    assert other_data(config, "shanghai_png", "b", pixel_max=70.0) == {
        **named,
        "root": "b",
        "pixel_max": 70.0,
    }
    assert other_data(config, "shanghai_png", pixel_max=50.0) == {**named, "dbz": None, "pixel_max": 50.0}
    assert other_data(config, "frames", "b") == {
        "dataset": "frames",
        "root": "b",
        "missing": None,
        "dbz": None,
    }
