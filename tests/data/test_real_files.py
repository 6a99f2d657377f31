"""Real files of the four public data sets, read by the loaders of their layouts."""

from __future__ import annotations

import warnings

import pytest
import torch
from real_data import real

from motionrnn_ext.data import VariedMovingMNIST, load_digits, open_clips


def test_digits_are_those_of_mnist() -> None:
    folder = real("mnist")
    images = {split: load_digits(folder, split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in images.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    everything = torch.cat([images["train"], images["val"]])
    # The mean and the deviation of the 60,000 images for training, as programs normalise them.
    floats = everything.double() / 255
    assert (round(floats.mean().item(), 4), round(floats.std().item(), 4)) == (0.1307, 0.3081)
    clip = VariedMovingMNIST("test", digits=folder, length=1)[0]
    assert clip.shape == (20, 1, 64, 64) and 0.02 < clip.mean() < 0.2


def test_radar_of_trentino() -> None:
    root = real("radar_trentino")
    for split, n in (("train", 423), ("test", 60)):
        clips = open_clips("shanghai_h5", split, root=root)
        assert len(clips) == n
        assert clips[n - 1].shape == (15, 1, 64, 64)
    # 25 frames hold a clip of 15 at 0, 5 and 10.
    overlapping = open_clips("shanghai_h5", "test", root=root, clip_step=5)
    assert len(overlapping) == 3 * 60
    assert torch.equal(overlapping[4][:10], overlapping[3][5:])
    with pytest.warns(UserWarning, match="of 60 clips are kept"):
        wet = open_clips("shanghai_h5", "test", root=root, min_wet=0.03, wet_above=20 / 52.5)
    assert 0 < len(wet) < 60
    assert all((clip > 20 / 52.5).float().mean() >= 0.03 for clip in map(wet.__getitem__, range(len(wet))))


@pytest.mark.parametrize(("name", "n_train", "n_test"), [("radar_fmi", 29, 24), ("radar_mch", 29, 12)])
def test_radar_of_finland_and_switzerland(name: str, n_train: int, n_test: int) -> None:
    root = real(name)
    with warnings.catch_warnings():
        # A gap in time would be a warning.
        warnings.simplefilter("error")
        options = {"root": root, "image_size": (128, 128)}
        clips = {split: open_clips("shanghai_png", split, **options) for split in ("train", "test")}
        more = open_clips("shanghai_png", "test", clip_step=5, interval=1, **options)
    # 40 frames hold two clips of 15 one after the other, and six that start at every fifth frame.
    assert (len(clips["train"]), len(clips["test"]), len(more)) == (2 * n_train, 2 * n_test, 6 * n_test)
    assert torch.equal(more[3], clips["test"][1])
    assert 0 < clips["test"][0].mean() < 1


def test_walking_people() -> None:
    root = real("people")
    for split, n in (("train", 579), ("test", 187)):
        clips = open_clips("human36m_openstl", split, root=root, n_frames=16, image_size=(128, 128))
        assert len(clips) == n and clips[0].shape == (16, 3, 128, 128)
    halves = open_clips("human36m_openstl", "test", root=root, n_frames=8, image_size=(128, 128), clip_step=8)
    assert len(halves) == 2 * 187
    assert torch.equal(torch.cat([halves[0], halves[1]]), clips[0])
