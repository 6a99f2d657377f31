"""Real files of the public data sets of docs/data.md, read by the loaders of their layouts."""

from __future__ import annotations

import warnings
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from real_data import real

from motionrnn_ext.data import VariedMovingMNIST, load_digits, open_clips


def test_digits_are_those_of_mnist() -> None:
    folder = real("mnist")
    images = {split: load_digits(folder, split) for split in ("train", "val", "test")}
    counts = {split: len(found) for split, found in images.items()}
    assert counts == {"train": 55_000, "val": 5_000, "test": 10_000}
    # The mean and the deviation of the 60,000 images for training, by which programs normalise them.
    floats = torch.cat([images["train"], images["val"]]).double() / 255
    assert (round(floats.mean().item(), 4), round(floats.std().item(), 4)) == (0.1307, 0.3081)
    clip = VariedMovingMNIST("test", digits=folder, length=1)[0]
    assert clip.shape == (20, 1, 64, 64) and 0.02 < clip.mean() < 0.2


def test_radar_of_trentino() -> None:
    root = real("radar_trentino")
    for split in ("train", "test"):
        clips = open_clips("shanghai_h5", split, root=root)
        with h5py.File(root / "shanghai.h5") as file:
            assert len(clips) == int(file[f"{split}/all_len"][()]) > 50
            stored = torch.from_numpy(file[f"{split}/7"][:15] / np.float32(255))
        torch.testing.assert_close(clips[7][:, 0], stored, rtol=0, atol=1e-6)
    # 25 frames hold a clip of 15 at 0, 5 and 10.
    overlapping = open_clips("shanghai_h5", "test", root=root, clip_step=5)
    assert len(overlapping) == 3 * len(clips)
    assert torch.equal(overlapping[4][:10], overlapping[3][5:])
    choice = {"min_wet": 0.03, "wet_above": 20 / 52.5}
    with pytest.warns(UserWarning, match=f"of {len(clips)} clips are kept"):
        wet = open_clips("shanghai_h5", "test", root=root, **choice)
    shares = [float((clips[i] > 20 / 52.5).float().mean()) for i in range(len(clips))]
    assert 0 < len(wet) == sum(share >= 0.03 for share in shares) < len(clips)


@pytest.mark.parametrize("name", ["radar_fmi", "radar_mch"])
def test_radar_of_finland_and_switzerland(name: str) -> None:
    root = real(name)
    options: dict[str, Any] = {"root": root, "image_size": (128, 128)}
    with warnings.catch_warnings():
        # A gap in time would be a warning.
        warnings.simplefilter("error")
        clips = open_clips("shanghai_png", "test", **options)
        more = open_clips("shanghai_png", "test", clip_step=5, interval=1, **options)
    sequences = sorted((root / "test").iterdir())
    lengths = [len(list(sequence.iterdir())) for sequence in sequences]
    assert len(clips) == sum(n // 15 for n in lengths) > 0
    assert len(more) == sum((n - 15) // 5 + 1 for n in lengths)
    assert torch.equal(more[3], clips[1])
    stored = np.stack([np.asarray(Image.open(sequences[0] / f"{t:04d}.png")) for t in range(15)])
    torch.testing.assert_close(clips[0][:, 0], torch.from_numpy(stored / 255).float(), rtol=0, atol=1e-6)


def test_walking_people() -> None:
    root = real("people")
    if not (root / "train.txt").exists():
        pytest.skip(f"{root} holds films, not the lists of clips that human36m_openstl reads")
    options: dict[str, Any] = {"root": root, "image_size": (128, 128)}
    clips = open_clips("human36m_openstl", "test", n_frames=16, **options)
    assert len(clips) == len((root / "test.txt").read_text().split())
    halves = open_clips("human36m_openstl", "test", n_frames=8, clip_step=8, **options)
    assert len(halves) == 2 * len(clips) and clips[0].shape == (16, 3, 128, 128)
    assert torch.equal(torch.cat([halves[0], halves[1]]), clips[0])
    with pytest.warns(UserWarning, match="clips are kept, those with at least 0.02 of change between frames"):
        busy = open_clips("human36m_openstl", "test", n_frames=2, min_motion=0.02, **options)
    assert 0 < len(busy) < len(clips)
