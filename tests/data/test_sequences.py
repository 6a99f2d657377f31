"""Sequences of frames of every kind: what is read from them, which clips they are cut into, which are kept."""

from __future__ import annotations

import math
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from layouts import noise, write_h5, write_human36m, write_openstl
from own_data import refusal
from PIL import Image
from torch.utils.data import DataLoader, Subset

from motionrnn_ext.data import FrameSequences, Human36M, Human36MOpenSTL, RadarH5, open_clips, videos
from motionrnn_ext.data.choice import mean_motion, wet_share
from motionrnn_ext.data.registry import sequences_of
from motionrnn_ext.data.times import gaps

SIZE = (12, 20)


def wanted(frames: np.ndarray) -> torch.Tensor:
    """Bytes (T, H, W, C) as float32 (T, C, H, W) in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def write_images(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame.squeeze()).save(folder / f"{t}.png")


def play(monkeypatch: pytest.MonkeyPatch, frames: np.ndarray) -> None:
    """Let a stand-in for imageio decode every video to these frames, as no decoder is among what the tests need."""

    def imiter(path: Path, **given: str) -> Iterator[np.ndarray]:
        yield from frames

    v3 = SimpleNamespace(imiter=imiter)
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: name == "av" or None)
    monkeypatch.setitem(sys.modules, "imageio", SimpleNamespace(v3=v3))
    monkeypatch.setitem(sys.modules, "imageio.v3", v3)


# ---- Kinds of sequences


def test_the_same_frames_from_every_kind_of_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(5, *SIZE, 3)
    play(monkeypatch, frames)
    folder = tmp_path / "train"
    write_images(folder / "a", frames)
    np.save(folder / "b.npy", frames)
    np.save(folder / "c.npy", frames.transpose(0, 3, 1, 2).astype(np.float64) / 255)
    (folder / "d.avi").write_bytes(b"")
    (folder / "notes.txt").write_text("not a sequence")
    colour = FrameSequences("train", tmp_path, channels=3, n_frames=5, image_size=SIZE)
    assert [sequence.path.name for sequence, _ in colour.clips] == ["a", "b.npy", "c.npy", "d.avi"]
    for clip in colour:
        torch.testing.assert_close(clip, wanted(frames), rtol=0, atol=1e-6)
    grey = FrameSequences("train", tmp_path, n_frames=5, image_size=SIZE)
    luma = torch.from_numpy(frames @ np.array([0.299, 0.587, 0.114]) / 255).float()[:, None]
    for clip in grey:
        # Bytes of luma are rounded to 1/255.
        torch.testing.assert_close(clip, luma, rtol=0, atol=0.51 / 255)


def test_grey_files_have_three_equal_channels_in_colour(tmp_path: Path) -> None:
    frames = noise(4, *SIZE)
    for i, name in enumerate("abc"):
        np.save(tmp_path / f"{name}.npy", frames if i else frames > 127)
    clip = open_clips("frames_rgb", "val", root=tmp_path, n_frames=4, image_size=SIZE)[0]
    torch.testing.assert_close(clip, wanted(frames[..., None]).expand(-1, 3, -1, -1), rtol=0, atol=1e-6)
    truth = open_clips("frames", "train", root=tmp_path, n_frames=4, image_size=SIZE)[0]
    assert torch.equal(truth[:, 0], torch.from_numpy(frames > 127).float())


def test_a_film_is_resized_as_images_are_but_for_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noise(4, 24, 40, 3)
    play(monkeypatch, frames)
    write_images(tmp_path / "test/a", frames)
    (tmp_path / "test/b.mp4").write_bytes(b"")
    images, film = FrameSequences("test", tmp_path, channels=3, n_frames=4, image_size=SIZE)
    torch.testing.assert_close(film, images, rtol=0, atol=0.51 / 255)
    torch.testing.assert_close(film * 255, (film * 255).round(), rtol=0, atol=1e-4)


def test_sequences_go_through_pickling_and_worker_processes(tmp_path: Path) -> None:
    for name in "abcd":
        np.save(tmp_path / f"{name}.npy", noise(6, *SIZE, seed=ord(name)))
    data = FrameSequences("train", tmp_path, n_frames=3, image_size=SIZE)
    expected = torch.stack(list(data))
    assert torch.equal(pickle.loads(pickle.dumps(data))[3], expected[3])
    assert torch.equal(torch.cat(list(DataLoader(data, batch_size=2, num_workers=2))), expected)
    assert torch.equal(data[-1], expected[3])
    with pytest.raises(IndexError, match=r"0\.\.3; got 4"):
        data[4]


def test_files_that_are_no_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, noise(2, *SIZE, 3))
    options: dict[str, Any] = {"n_frames": 3, "image_size": SIZE}
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/a.npy"
    for stored, words in (
        (noise(3, *SIZE).astype(np.int16), "must hold frames (T, H, W)"),
        (noise(3, *SIZE).astype(np.uint16), "must be uint8 or float; it is uint16"),
        (noise(*SIZE, 3), "which is one picture"),
        (noise(2, *SIZE), "a sequence is a file of frames; it has 2, 3 frames need 3"),
    ):
        np.save(path, stored)
        refusal(lambda: FrameSequences("train", tmp_path, **options), path, words)
    path.write_bytes(b"no array")
    refusal(lambda: FrameSequences("train", tmp_path, **options), path, "is not a .npy file of numbers")
    path.unlink()
    (tmp_path / "train/film.avi").write_bytes(b"")
    refusal(lambda: FrameSequences("train", tmp_path, **options), "film.avi", "it has 2, 3 frames need 3")
    refusal(lambda: FrameSequences("train", tmp_path, channels=2), "channels must be 1 or 3; got 2")
    refusal(lambda: FrameSequences("train", tmp_path, interval=0), "interval must be above 0")


# ---- Physical values, and values without data


def test_floats_are_physical_values_by_pixel_max(tmp_path: Path) -> None:
    dbz = np.linspace(-10, 75, 4 * 240).reshape(4, *SIZE).astype(np.float32)
    (tmp_path / "test").mkdir()
    np.save(tmp_path / "test/a.npy", dbz)
    options: dict[str, Any] = {"root": tmp_path, "n_frames": 4, "image_size": SIZE}
    refusal(
        lambda: open_clips("frames", "test", **options),
        "a.npy must have values in [0, 1], or pixel_max (--pixel-max)",
        "they go from -10 to 75",
    )
    with pytest.warns(
        UserWarning, match=r"outside of 0 to pixel_max 70: they go from -10 to 75 and count as"
    ):
        clip = open_clips("frames", "test", pixel_max=70, **options)[0]
    torch.testing.assert_close(clip[:, 0], torch.from_numpy(dbz.clip(0, 70) / 70), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_nan_of_arrays_is_missing_where_it_is_declared(kind: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((4, *SIZE))
    frames[2, 3, 5] = np.nan
    if kind == "npy":
        (tmp_path / "test").mkdir()
        np.save(tmp_path / "test/a.npy", frames)
    else:
        with h5py.File(tmp_path / "shanghai.h5", "w") as file:
            file["test/all_len"], file["test/0"] = 1, frames
    name = "frames" if kind == "npy" else "shanghai_h5"
    options: dict[str, Any] = {"root": tmp_path, "n_frames": 4, "image_size": SIZE}
    refusal(lambda: open_clips(name, "test", **options), "has nan in 1 of 960 values", "--missing nan")
    clip = open_clips(name, "test", missing=math.nan, **options)[0]
    assert clip.isnan().nonzero().tolist() == [[2, 0, 3, 5]]
    torch.testing.assert_close(clip[:, 0], torch.from_numpy(frames).float(), rtol=0, atol=0, equal_nan=True)


def test_a_pixel_in_colour_is_missing_if_all_of_its_channels_are(tmp_path: Path) -> None:
    frames = noise(3, *SIZE, 3).clip(1, 255)
    frames[1, 2, 3] = 0
    frames[1, 4, 5, 0] = 0
    write_images(tmp_path / "test/a", frames)
    clip = open_clips("frames_rgb", "test", root=tmp_path, n_frames=3, image_size=SIZE, missing=0)[0]
    assert clip.isnan().nonzero().tolist() == [[1, channel, 2, 3] for channel in range(3)]


# ---- Clips of a sequence


def test_clips_may_overlap(tmp_path: Path) -> None:
    """40 frames hold two clips of 15 one after the other, and six that start at every fifth frame."""
    folder = tmp_path / "frames"
    (folder / "train").mkdir(parents=True)
    stored = noise(40, *SIZE)
    np.save(folder / "train/a.npy", stored)
    options: dict[str, Any] = {"root": folder, "n_frames": 15, "image_size": SIZE}
    assert len(open_clips("frames", "train", **options)) == 2
    clips = open_clips("frames", "train", clip_step=5, **options)
    assert len(clips) == 6 and sequences_of(clips) == [0] * 6
    for i, clip in enumerate(clips):  # type: ignore[arg-type]
        expected = wanted(stored[5 * i : 5 * i + 15, ..., None])
        torch.testing.assert_close(clip, expected, rtol=0, atol=1e-6)
    assert len(open_clips("frames", "train", clip_step=1, stride=2, **options)) == 40 - 29 + 1
    refusal(
        lambda: open_clips("frames", "train", clip_step=0, **options), "clip_step must be a positive integer"
    )

    written = write_h5(tmp_path / "shanghai.h5", n=2)
    data = RadarH5("train", tmp_path, n_frames=15, image_size=(20, 24), clip_step=4)
    assert data.clips == [(sequence, start) for sequence in (0, 1) for start in (0, 4, 8)]
    assert sequences_of(data) == [0, 0, 0, 1, 1, 1] and sequences_of(Subset(data, [4, 0, 5])) == [0, 1, 0]
    expected = wanted(written["train/1"][4:19, ..., None])
    torch.testing.assert_close(data[4], expected, rtol=0, atol=1e-6)


def test_clips_of_people_may_overlap(tmp_path: Path) -> None:
    write_human36m(tmp_path / "flat", {"S9_Walking_1.60457274": 30})
    options: dict[str, Any] = {"n_frames": 4, "image_size": (16, 16)}
    assert Human36M("test", tmp_path / "flat", **options).starts == [0, 5, 10, 15, 20]
    assert Human36M("test", tmp_path / "flat", clip_step=2, **options).starts == list(range(0, 23, 2))
    (tmp_path / "listed").mkdir()
    write_openstl(tmp_path / "listed", n_frames=15)
    one = Human36MOpenSTL("train", tmp_path / "listed", **options)
    more = Human36MOpenSTL("train", tmp_path / "listed", clip_step=5, **options)
    assert len(one) == 2 and [first for _, first in more.clips] == [226, 251, 276] * 2
    assert torch.equal(more[3], one[1]) and sequences_of(more) == [0, 0, 0, 1, 1, 1]
    assert sequences_of(open_clips("human36m", "test", root=tmp_path / "flat", **options)) == [0] * 5
    later = Human36MOpenSTL("train", tmp_path / "listed", n_frames=9, image_size=(16, 16))
    assert torch.equal(more[1], later[0][5:9])
    refusal(lambda: Human36M("test", tmp_path / "flat", clip_step=0, **options), "clip_step must be")


def test_generated_clips_are_sequences_of_their_own() -> None:
    assert sequences_of(open_clips("moving_digits", "test", 3, digits="sklearn")) == [0, 1, 2]


def test_a_stated_interval_says_what_a_gap_is(tmp_path: Path) -> None:
    names = ["20170509_2350", "20170509_2355", "20170510_0010", "20170510_0025", "20170510_0040"]
    # Of the steps 5, 15, 15 and 15 minutes the median is 15; an interval of 5 minutes makes three gaps.
    assert gaps(names) == []
    assert gaps(names, 5) == [2, 3, 4]
    assert gaps(names, 15) == [1]
    assert gaps(["1", "2", "4", "6"], 2) == [1]
    assert gaps(["0750", "0755", "0800", "0805"], 5) == []
    refusal(lambda: gaps(["b", "a"], 5), "interval is 5; it is for names of frames with increasing times")
    for name in names:
        (tmp_path / "train/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(*SIZE)).save(tmp_path / f"train/a/{name}.png")
    options: dict[str, Any] = {"root": tmp_path, "n_frames": 2, "image_size": SIZE, "clip_step": 1}
    said = "3 of the steps in time between frames are longer than 1.5 times the interval 5 or as much shorter"
    with pytest.warns(UserWarning, match=said):
        assert len(open_clips("frames", "train", interval=5, **options)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_clips("frames", "train", **options)) == 4


# ---- The choice of clips


def test_wetness_and_motion_count_known_values_alone() -> None:
    clip = torch.tensor([[0.0, 0.2, 0.6], [0.0, 0.8, 0.4]])[:, None, None]
    assert wet_share(clip, 0.0) == pytest.approx(4 / 6)
    assert wet_share(clip, 0.5) == pytest.approx(2 / 6)
    assert mean_motion(clip) == pytest.approx((0.6 + 0.2) / 3)
    clip[0, 0, 0, 1] = math.nan
    assert wet_share(clip, 0.5) == pytest.approx(2 / 5)
    assert mean_motion(clip) == pytest.approx(0.2 / 2)
    assert wet_share(clip * math.nan, 0) == mean_motion(clip * math.nan) == 0


def test_dry_clips_and_clips_at_rest_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    shares = [0.0, 0.1, 0.3, 0.3]
    for i, share in enumerate(shares):
        frames = np.zeros((4, *SIZE), np.uint8)
        frames[:, : int(SIZE[0] * share + 0.5)] = 200
        frames[1::2] = frames[1::2] if i < 3 else frames[1::2, ::-1]
        np.save(tmp_path / f"train/{i}.npy", frames)
    options: dict[str, Any] = {"root": tmp_path, "n_frames": 4, "image_size": SIZE}

    def kept(**choice: float) -> list[int]:
        with pytest.warns(
            UserWarning, match=r"frames \(train\): \d of 4 clips are kept, those with at least"
        ):
            return open_clips("frames", "train", **choice, **options).indices  # type: ignore[attr-defined]

    assert kept(min_wet=0.05) == [1, 2, 3]
    assert kept(min_wet=0.2) == [2, 3]
    assert kept(min_motion=0.01) == [3]
    assert kept(min_wet=0.05, min_motion=0) == [1, 2, 3]
    refusal(
        lambda: open_clips("frames", "train", min_wet=0.2, wet_above=0.9, **options),
        "frames (train): no clip of 4 has at least 0.2 of the pixels above 0.9 (min_wet); the highest share is 0,",
    )
    refusal(lambda: open_clips("frames", "train", min_wet=2, **options), "min_wet must be from 0 to 1; got 2")
    assert len(open_clips("frames", "train", **options)) == 4


def test_codes_of_a_film_are_not_blended(tmp_path: Path) -> None:
    stored = np.full((6, 64, 64), 255, np.uint8)
    for t in range(6):
        stored[t, :, 30 + t :] = 20
    for name in ("film", "array"):
        (tmp_path / name / "test").mkdir(parents=True)
    np.save(tmp_path / "array" / "test" / "s.npy", stored)
    first, *others = (Image.fromarray(frame) for frame in stored)
    first.save(tmp_path / "film" / "test" / "s.gif", save_all=True, append_images=others, duration=100)
    for how in ({"missing": 255}, {"pixel_max": 30.0}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            film, array = (
                FrameSequences("test", tmp_path / name, n_frames=6, image_size=(32, 32), **how)[0]
                for name in ("film", "array")
            )
        torch.testing.assert_close(film, array, rtol=0, atol=0, equal_nan=True)
    assert film.max() == 1


@pytest.mark.parametrize("low", [-32.0, -9999.0, -math.inf])
def test_values_below_0_do_not_hide_the_echo_beside_them(low: float, tmp_path: Path) -> None:
    stored = np.full((4, 32, 32), low, np.float32)
    stored[:, :, 15:] = 60
    (tmp_path / "test").mkdir()
    np.save(tmp_path / "test" / "s.npy", stored)
    clips = FrameSequences("test", tmp_path, n_frames=4, image_size=(16, 16), pixel_max=60)
    with pytest.warns(UserWarning, match="values are outside of 0 to pixel_max 60"):
        found = clips[0]
    np.save(tmp_path / "test" / "s.npy", stored.clip(0))
    wanted = FrameSequences("test", tmp_path, n_frames=4, image_size=(16, 16), pixel_max=60)[0]
    assert torch.equal(found, wanted)


def test_a_frame_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "s"
    folder.mkdir(parents=True)
    for i in range(4):
        for ending in ("png", "jpg"):
            Image.fromarray(np.full((16, 16), 10 * i, np.uint8)).save(folder / f"f{i}.{ending}")
    with pytest.raises(
        ValueError, match=r"has a frame twice, as f0\.jpg and f0\.png; it should have each once"
    ):
        FrameSequences("test", tmp_path, n_frames=4, image_size=(16, 16))


def test_pixels_that_a_viewer_would_not_show_are_said(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., :3] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, save in {
        "transparent pixels": lambda path: Image.fromarray(pixels).save(path),
        "images that their EXIF data turn": lambda path: Image.fromarray(pixels[..., 0]).save(
            path, exif=turned
        ),
    }.items():
        folder = tmp_path / name / "test" / "s"
        folder.mkdir(parents=True)
        for i in range(3):
            save(folder / f"{i}.png")
        clips = FrameSequences("test", tmp_path / name, n_frames=3, image_size=(16, 16))
        with pytest.warns(UserWarning, match=f"s has {name}, which a data set reads as stored"):
            assert clips[0].max() == 1
