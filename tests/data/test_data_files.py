"""Do the data sets of files take the frames that their rules name, with the right values, and say what is wrong?"""

from __future__ import annotations

import pickle
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("h5py", reason="the training program's packages are not installed")
pytest.importorskip("PIL", reason="the training program's packages are not installed")

import h5py
from layouts import (
    noise,
    write_h5,
    write_human36m,
    write_npy,
    write_npz,
    write_openstl,
    write_pngs,
)
from own_data import refusal
from PIL import Image
from torch.utils.data import DataLoader

from motionrnn_ext.data import (
    DATASETS,
    FrameSequences,
    Human36M,
    Human36MOpenSTL,
    MovingMNISTNpy,
    MovingMNISTNpz,
    RadarH5,
    VariedMovingMNIST,
    open_clips,
)
from motionrnn_ext.data.human36m import Frame, clip_starts
from motionrnn_ext.data.images import resized

# ---- Resizing


def kernel(distance: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
    """Keys' cubic with a = -3/4, or the triangle."""
    d = np.abs(distance)
    if mode == "bilinear":
        return np.clip(1 - d, 0, None)
    a = -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def sampling_matrix(n_in: int, n_out: int, mode: str) -> NDArray[np.float64]:
    """(n_out, n_in): half-pixel centres, no smoothing, the edge pixels stand for all beyond them."""
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        place = (i + 0.5) * n_in / n_out - 0.5
        taps = np.arange(int(np.floor(place)) - 2, int(np.floor(place)) + 4)
        np.add.at(matrix[i], np.clip(taps, 0, n_in - 1), kernel(place - taps, mode))
    return matrix


def resize_by_hand(image: NDArray[Any], size: tuple[int, int], mode: str) -> NDArray[np.float64]:
    """(H, W, C) -> (h, w, C), not rounded."""
    rows, columns = (sampling_matrix(n, m, mode) for n, m in zip(image.shape, size))
    return np.clip(np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(float)), 0, 255)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("before", "after"), [((50, 40), (13, 16)), ((9, 7), (20, 7)), ((16, 16), (16, 16))])
def test_resizing_samples_at_half_pixel_centres_without_smoothing(
    mode: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    image = noise(*before, 3)
    wanted = resize_by_hand(image, after, mode)
    found = resized(torch.from_numpy(image).permute(2, 0, 1), after, mode)
    assert found.dtype == torch.uint8
    distance = np.abs(found.permute(1, 2, 0).numpy() - wanted)
    assert distance.max() <= 0.5 + 1e-3  # to the nearest byte


# ---- Human3.6M


def video(name: str, n: int, missing: tuple[int, ...] = ()) -> list[Frame]:
    ids = [1 + 5 * i for i in range(n + len(missing)) if i not in missing]
    return [Frame(f"{name}_{id:06d}.jpg", (name, "1"), id) for id in ids]


@pytest.mark.parametrize(
    ("frames", "n_frames", "step", "wanted"),
    [
        # 0, 2 are the clip's frames; the last start needs two frames a clip frame: s + 3 < n
        (video("a", 25) + video("b", 25), 2, 10, [0, 10, 20, 30, 40]),
        # 20 and 21 would reach over the boundary at 22: by one until a clip lies within b
        (video("a", 22) + video("b", 25), 2, 10, [0, 10, 22, 32, 42]),
        (video("a", 22) + video("b", 25), 2, 5, [0, 5, 10, 15, 22, 27, 32, 37, 42]),
        # within a video with a frame missing no clip starts, and the step stays
        (video("a", 40, missing=(11,)), 2, 10, [0, 20, 30]),
        (video("a", 40, missing=(11,)), 2, 5, [0, 5, 15, 20, 25, 30, 35]),
        (video("a", 16), 8, 10, [0]),
        (video("a", 15), 8, 10, []),
        (video("a", 26), 8, 5, [0, 5, 10]),
        ([], 8, 5, []),
    ],
)
def test_where_clips_of_human36m_start(
    frames: list[Frame], n_frames: int, step: int, wanted: list[int]
) -> None:
    assert clip_starts(frames, n_frames, step) == wanted


def test_human36m_takes_walking_of_its_subjects(tmp_path: Path) -> None:
    others = [
        "S1_WalkDog.54138969",
        "S1_WalkTogether.54138969",
        "S1_WalkingDog.54138969",
        "S1_Eating.54138969",
    ]
    people = ["S1_Walking.54138969", "S6_Walking_1.54138969", "S9_Walking.54138969", "S11_Walking_1.60457274"]
    write_human36m(tmp_path, dict.fromkeys([*others, *people], 16), size=(8, 8))
    (tmp_path / "notes.txt").touch()
    for split, wanted in (("train", people[:2]), ("val", people[2:]), ("test", people[2:])):
        data = Human36M(split, tmp_path, image_size=(8, 8))
        videos = [".".join(data.frames[start].video) for start in data.starts]
        assert sorted(videos) == sorted(wanted) and len(data) == 2


@pytest.mark.parametrize("size", [(48, 40), (46, 51)])
def test_human36m_crops_resizes_and_takes_every_second_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    images = write_human36m(tmp_path, {"S1_Walking.54138969": 20}, size)
    data = Human36M("train", tmp_path, n_frames=4, image_size=(12, 16))
    assert data.starts == [0, 10]
    item = data[1]
    assert item.shape == (4, 3, 12, 16) and item.dtype == torch.float32
    height, width = size
    for t in range(4):
        image = images[f"S1_Walking.54138969_{1 + 5 * (10 + 2 * t):06d}.jpg"]
        middle = image[height // 4 : -height // 4, width // 4 : -width // 4]  # rounds down at both ends
        wanted = resize_by_hand(middle, (12, 16), "bilinear")
        found = item[t].permute(1, 2, 0).numpy() * 255
        assert np.abs(found - found.round()).max() < 1e-4  # bytes
        assert np.abs(found - wanted).max() <= 0.5 + 1e-3


def test_human36m_says_what_is_wrong(tmp_path: Path) -> None:
    refusal(lambda: Human36M("test", tmp_path / "none"), "none: cannot be read as a folder")
    (tmp_path / "S9_Eating.1_000001.jpg").touch()
    refusal(lambda: Human36M("test", tmp_path), tmp_path, "no frame of Walking by S9, S11", "_000471.jpg")
    for n, name in enumerate(("holiday.jpg", "S9_Walking_000001.jpg", "S9_Walking.1_01.jpg")):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / name).touch()
        refusal(
            lambda n=n: Human36M("test", tmp_path / str(n)), name, "<subject>_<action>.<camera>_<number>.jpg"
        )
    write_human36m(tmp_path, {"S9_Walking.1": 15}, (8, 8))
    refusal(lambda: Human36M("test", tmp_path), tmp_path, "no clip of 8 frames", "15 frames of Walking")
    refusal(lambda: Human36M("testing", tmp_path), "split must be one of train, val, test; got 'testing'")
    refusal(lambda: Human36M("test", tmp_path, n_frames=0), "n_frames must be a positive integer; got 0")
    refusal(lambda: Human36M("test", tmp_path, image_size=(8,)), "image_size must be two positive integers")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "gone"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    write_human36m(tmp_path, {"S9_Walking.1": 16})
    data, path = Human36M("test", tmp_path, image_size=(8, 8)), tmp_path / "S9_Walking.1_000011.jpg"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
        refusal(lambda: data[0], path, "there is no such image")
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no image"}[damage])
        refusal(lambda: data[0], path, "damaged, or not a jpg or png image")


def test_openstl_takes_listed_frames_whole_and_bgr(tmp_path: Path) -> None:
    write_openstl(tmp_path)
    assert len(Human36MOpenSTL("train", tmp_path)) == 2
    for split in ("val", "test"):
        data = Human36MOpenSTL(split, tmp_path, image_size=(16, 20))
        assert len(data) == 1
        item = data[0]
        assert item.shape == (8, 3, 16, 20)
        for t in range(8):
            with Image.open(tmp_path / f"images/S9_Eating_1.55011271_{226 + 5 * t:06d}.jpg") as image:
                bgr = np.asarray(image.convert("RGB"))[..., ::-1]
            wanted = resize_by_hand(bgr, (16, 20), "bicubic")
            assert np.abs(item[t].permute(1, 2, 0).numpy() * 255 - wanted).max() <= 0.5 + 1e-3


def test_openstl_says_what_is_wrong(tmp_path: Path) -> None:
    refusal(lambda: Human36MOpenSTL("train", tmp_path), tmp_path / "train.txt", "cannot be read")
    write_openstl(tmp_path)
    lost = tmp_path / "images/S5_Walking.60457274_000251.jpg"
    lost.unlink()
    refusal(lambda: Human36MOpenSTL("train", tmp_path), lost, "train.txt names this image")
    assert len(Human36MOpenSTL("train", tmp_path, n_frames=5)) == 2  # that frame is the sixth
    refusal(lambda: Human36MOpenSTL("test", tmp_path, n_frames=9), "S9_Eating_1.55011271_000266.jpg")
    for last, count in ((256, 7), (260, 7), (221, 0), (0, 0)):
        (tmp_path / "test.txt").write_text(f"\nimages/S9_Eating_1.55011271_,226,{last}\n")
        words = f"line 2: n_frames 8 (n_input and n_output together) is too long for this clip, which has {count} "
        refusal(lambda: Human36MOpenSTL("test", tmp_path), tmp_path / "test.txt", words, f"226 to {last}")
        if count:
            assert len(Human36MOpenSTL("test", tmp_path, n_frames=count)) == 1
    (tmp_path / "train.txt").write_text("images/S1_Directions.54138969_,226,296\nimages/S5_Walking,x,1\n")
    refusal(lambda: Human36MOpenSTL("train", tmp_path), "train.txt, line 2", "images/S5_Walking,x,1")
    (tmp_path / "test.txt").write_text("\n")
    refusal(lambda: Human36MOpenSTL("test", tmp_path), tmp_path / "test.txt", "no clip")


# ---- Radar


def test_h5_gives_the_first_frames_of_each_sequence(tmp_path: Path) -> None:
    written = write_h5(tmp_path / "shanghai.h5")
    for split, group in (("train", "train"), ("val", "test"), ("test", "test")):
        data = RadarH5(split, tmp_path, n_frames=15, image_size=(20, 24))
        assert len(data) == 3
        wanted = torch.from_numpy(written[f"{group}/1"][:15, None] / 255).float()
        torch.testing.assert_close(data[1], wanted, rtol=0, atol=1e-6)
        assert torch.equal(data[-2], data[1])
    every_second = RadarH5("test", tmp_path / "shanghai.h5", n_frames=13, image_size=(20, 24), stride=2)
    wanted = torch.from_numpy(written["test/2"][::2, None] / 255).float()
    torch.testing.assert_close(every_second[2], wanted, rtol=0, atol=1e-6)
    dbz = RadarH5("test", tmp_path, n_frames=2, image_size=(20, 24), pixel_max=90)
    wanted = torch.from_numpy((written["test/0"][:2, None] / 90).clip(0, 1)).float()
    torch.testing.assert_close(dbz[0], wanted, rtol=0, atol=1e-6)
    with pytest.raises(IndexError):
        data[3]


def test_radar_is_smoothed_when_it_shrinks(tmp_path: Path) -> None:
    """Halved, a checkerboard is grey away from the edges; single pixels sampled from it would be black or white."""
    frames = np.zeros((1, 16, 16), np.uint8)
    frames[0, ::2, ::2] = frames[0, 1::2, 1::2] = 255
    with h5py.File(tmp_path / "shanghai.h5", "w") as file:
        file["test/all_len"], file["test/0"] = 1, frames
    item = RadarH5("test", tmp_path, n_frames=1, image_size=(8, 8))[0]
    assert item.shape == (1, 1, 8, 8)
    inside = item[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.5), rtol=0, atol=1e-6)


def test_h5_goes_through_pickling_and_worker_processes(tmp_path: Path) -> None:
    write_h5(tmp_path / "shanghai.h5", n=6)
    data = RadarH5("train", tmp_path, n_frames=5, image_size=(16, 16))
    wanted = torch.stack([data[i] for i in range(6)])  # the file is open from here on
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[5], wanted[5])
    assert torch.equal(torch.cat(list(DataLoader(data, batch_size=2, num_workers=2))), wanted)


def test_h5_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "shanghai.h5"
    refusal(lambda: RadarH5("test", tmp_path), tmp_path, "neither a file nor a folder with shanghai.h5")
    path.write_text("no radar")
    refusal(lambda: RadarH5("test", path), path, "damaged, or not an HDF5 file")
    write_h5(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refusal(lambda: RadarH5("test", path), path, "damaged, or not an HDF5 file")
    write_h5(path, frames=14)
    refusal(lambda: RadarH5("test", path), path, "test/0 has 14 frames; 15 frames need 15")
    refusal(lambda: RadarH5("test", path, stride=2, n_frames=8), "8 frames at stride 2 need 15")
    refusal(lambda: RadarH5("test", path, stride=0), "stride must be at least 1; got 0")
    refusal(lambda: RadarH5("test", path, pixel_max=0), "pixel_max must be above 0, at most 255; got 0")
    frames = noise(15, 8, 8)
    for content, words in (
        ({"training/0": frames}, ["must have a group 'test'", "it has training"]),
        ({"test": frames}, ["must have a group 'test'"]),
        ({"test/0": frames}, ["all_len", "there is no such number"]),
        ({"test/0": frames, "test/all_len": 0}, ["test/all_len is 0"]),
        ({"test/0": frames, "test/all_len": 2}, ["test/1 is missing; all_len says that there are 2"]),
        (
            {"test/0": frames.astype("int16"), "test/all_len": 1},
            ["of uint8 or floats", "int16"],
        ),
        ({"test/0": frames[0], "test/all_len": 1}, ["test/0 must be frames (T, h, w) of uint8", "(8, 8)"]),
        ({"test/0/x": frames, "test/all_len": 1}, ["test/0 must be frames (T, h, w) of uint8"]),
    ):
        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file[name] = value
        refusal(lambda: RadarH5("test", path), path, *words)


def test_pngs_are_in_the_order_of_their_numbers_and_make_clips_one_after_the_other(tmp_path: Path) -> None:
    write_pngs(tmp_path, ["train/b", "train/a", "test/c"], frames=12)
    data = FrameSequences("train", tmp_path, n_frames=3, image_size=(16, 16), stride=2)
    starts = [(str(sequence.path.relative_to(tmp_path)), first) for sequence, first in data.clips]
    assert starts == [(f"train/{sequence}", first) for sequence in "ab" for first in (0, 5)]
    wanted = torch.from_numpy(np.stack([noise(16, 16, seed=100 + t) for t in (5, 7, 9)])[:, None] / 255)
    torch.testing.assert_close(data[1], wanted.float(), rtol=0, atol=1e-6)


def test_pngs_of_every_kind_become_grey(tmp_path: Path) -> None:
    folder = tmp_path / "test/a"
    folder.mkdir(parents=True)
    grey, colour = noise(16, 16), noise(16, 16, 3)
    Image.fromarray(grey).save(folder / "0.png")
    with_palette = Image.fromarray(grey)
    with_palette = with_palette.convert("P")
    with_palette.putpalette([255 - level for level in range(256) for _ in range(3)])
    with_palette.save(folder / "1.png")
    Image.fromarray(colour).save(folder / "2.png")
    Image.fromarray(np.dstack([colour, grey])).save(folder / "3.png")
    Image.fromarray(grey > 127).save(folder / "4.png")
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(folder / "5.png")
    luma = colour @ np.array([0.299, 0.587, 0.114])
    item = FrameSequences("test", tmp_path, n_frames=6, image_size=(16, 16))[0][:, 0].numpy() * 255
    for t, wanted in enumerate([grey, 255 - grey, luma, luma, 255.0 * (grey > 127), np.full((16, 16), 200)]):
        assert np.abs(item[t] - wanted).max() < 1, t


def test_splits_of_pngs(tmp_path: Path) -> None:
    def sequences(root: Path, split: str) -> list[str]:
        clips = FrameSequences(split, root, n_frames=8, image_size=(16, 16)).clips
        return [sequence.path.name for sequence, _ in clips]

    named = tmp_path / "named"
    write_pngs(named, ["train/a", "train/b", "test/c"])
    assert [sequences(named, split) for split in ("train", "val", "test")] == [["a", "b"], ["c"], ["c"]]
    write_pngs(named, ["valid/d"])
    assert sequences(named, "val") == ["d"]
    places = tmp_path / "places"
    write_pngs(places, [f"{i:02d}" for i in range(20)])
    names = [f"{i:02d}" for i in range(20)]
    assert [sequences(places, split) for split in ("train", "val", "test")] == [
        names[:16], names[16:18], names[18:]
    ]  # fmt: skip
    three = tmp_path / "three"
    write_pngs(three, ["a", "b", "c"])
    assert [sequences(three, split) for split in ("train", "val", "test")] == [["a"], ["b"], ["c"]]


def test_pngs_say_what_is_wrong(tmp_path: Path) -> None:
    def open_(root: str = "", split: str = "test", n: int = 8) -> FrameSequences:
        return FrameSequences(split, tmp_path / root, n_frames=n, image_size=(16, 16))

    refusal(lambda: open_("none"), "none: cannot be read as a folder")
    refusal(open_, tmp_path, "it must hold <split>/<sequence>/<frame>.png", "it has 0")
    write_pngs(tmp_path, ["train/a", "valid/b"])
    refusal(open_, tmp_path, "there is no folder 'test' beside train, valid")
    (tmp_path / "test").mkdir()
    refusal(open_, tmp_path / "test", "it has no folder of a sequence")
    refusal(lambda: open_("", "train", 9), tmp_path / "train/a", "it has 8 png files, 9 frames need 9")
    (tmp_path / "train/empty").mkdir()
    refusal(lambda: open_("", "train"), tmp_path / "train/empty", "it has 0 png files")
    deep = tmp_path / "valid/b/3.png"
    Image.fromarray(noise(16, 16).astype(np.uint16) * 256).save(deep)
    refusal(lambda: open_("", "val")[0], deep, "8 bits a channel", "I;16")
    deep.write_bytes(deep.read_bytes()[:40])
    refusal(lambda: open_("", "val")[0], deep, "damaged, or not a jpg or png image")
    Image.fromarray(noise(16, 18)).save(deep)
    refusal(
        lambda: open_("", "val")[0], deep, "is 16x18, the first frame 16x16 (0.png); all must have one size"
    )
    assert open_("", "val", 3)[0].shape == (3, 1, 16, 16)  # without that frame


# ---- Moving MNIST


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_puts_targets_after_inputs(tmp_path: Path, compressed: bool) -> None:
    written = write_npz(tmp_path, compressed=compressed)
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        data = MovingMNISTNpz(split, tmp_path, image_size=(16, 16))
        assert len(data) == 4  # all: the programs' iterators leave the last batch out
        assert torch.equal(data[3], torch.from_numpy(written[name][3].copy()))
    short = MovingMNISTNpz("test", tmp_path, n_frames=13, image_size=(16, 16))
    assert torch.equal(short[0], data[0][:13])
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(torch.cat(list(DataLoader(again, batch_size=2, num_workers=1)))[3], data[3])
    assert (len(pickle.dumps(data)) < 5000) == (not compressed)  # the frames stay in the file
    assert MovingMNISTNpz("test", tmp_path, image_size=(8, 12))[0].shape == (20, 1, 8, 12)


def test_npz_of_bytes(tmp_path: Path) -> None:
    raw = noise(4, 1, 8, 8)
    np.savez(tmp_path / "moving-mnist-test.npz", clips=np.array([[(0, 2)], [(2, 2)]]), input_raw_data=raw)
    data = MovingMNISTNpz("test", tmp_path, n_frames=4, image_size=(8, 8))
    torch.testing.assert_close(data[0], torch.from_numpy(raw).float() / 255)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_npz_of_floats_that_torch_does_not_have(dtype: Any, tmp_path: Path) -> None:
    raw = (noise(4, 1, 8, 8) / 255).astype(dtype)
    np.savez(tmp_path / "moving-mnist-test.npz", clips=np.array([[(0, 2)], [(2, 2)]]), input_raw_data=raw)
    data = MovingMNISTNpz("test", tmp_path, n_frames=4, image_size=(8, 8))
    assert torch.equal(data[0], torch.from_numpy(raw.astype(np.float32)))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (Path("hostile_code_ran"),)


def test_npz_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "moving-mnist-test.npz"

    def open_(n: int = 4) -> MovingMNISTNpz:
        return MovingMNISTNpz("test", tmp_path, n_frames=n, image_size=(8, 8))

    refusal(open_, path, "there is no such file; root must be the folder with moving-mnist-train.npz")
    path.touch()
    root_rule = "this is a file; root must be the folder with moving-mnist-train.npz"
    refusal(lambda: MovingMNISTNpz("test", path, n_frames=4), f"{path}: {root_rule}")
    path.write_bytes(b"PK no archive")
    refusal(open_, path, "damaged, or not a .npz file of numbers")
    clips, raw = np.array([[(0, 2)], [(2, 2)]]), np.zeros((4, 1, 8, 8), np.float32)
    np.savez(path, clips=clips, input_raw_data=raw)
    refusal(lambda: open_(5), path, "a clip has 4 frames; 5 are wanted")
    path.write_bytes(path.read_bytes()[:500])
    refusal(open_, path, "damaged, or not a .npz file of numbers")
    for content, words in (
        ({"clips": clips}, ["must hold input_raw_data and clips; there is no input_raw_data"]),
        ({"input_raw_data": raw}, ["there is no clips"]),
        ({"clips": clips + 1, "input_raw_data": raw}, ["clips names frames", "the 4 of input_raw_data"]),
        ({"clips": clips[0], "input_raw_data": raw}, ["clips must be integers (2, n, 2)", "(1, 2)"]),
        ({"clips": clips / 1.0, "input_raw_data": raw}, ["clips must be integers", "float64"]),
        ({"clips": clips.astype(str), "input_raw_data": raw}, ["clips must be integers"]),
        ({"clips": clips, "input_raw_data": raw.astype(str)}, ["input_raw_data must be frames"]),
        ({"clips": clips, "input_raw_data": raw[:0]}, ["input_raw_data must be frames", "(0, 1, 8, 8)"]),
        ({"clips": clips, "input_raw_data": raw[:, 0]}, ["must be frames (M, 1, h, w)", "(4, 8, 8)"]),
        ({"clips": clips, "input_raw_data": raw.astype(int)}, ["float or uint8; it is int64"]),
        (
            {"clips": clips, "input_raw_data": np.array([Hostile()])},
            ["damaged, or not a .npz file of numbers"],
        ),
    ):
        np.savez(path, **content)
        refusal(open_, path, *words)
    np.savez(path, clips=clips, input_raw_data=raw + 2)
    refusal(lambda: open_()[0], path, "clip 0 must have values in [0, 1]; they go from 2 to 2")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clips.npy", b"no array")
    refusal(open_, path, "damaged, or not a .npz file of numbers")
    assert not Path("hostile_code_ran").exists()


def test_npy_is_read_from_the_file_clip_by_clip(tmp_path: Path) -> None:
    written = write_npy(tmp_path / "mnist_test_seq.npy")
    data = MovingMNISTNpy(tmp_path, image_size=(16, 16))
    assert len(data) == 5
    wanted = torch.from_numpy(written[:, 4, None]).float() / 255
    assert torch.equal(data[4], wanted)
    assert torch.equal(MovingMNISTNpy(tmp_path, n_frames=7, image_size=(16, 16))[4], wanted[:7])
    assert len(pickle.dumps(data)) < 2000
    assert torch.equal(pickle.loads(pickle.dumps(data))[4], wanted)


def test_npy_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mnist_test_seq.npy"
    refusal(lambda: MovingMNISTNpy(tmp_path), tmp_path, "neither a file nor a folder with mnist_test_seq.npy")
    write_npy(path)
    refusal(lambda: MovingMNISTNpy(path, n_frames=21), path, "its clips have 20 frames; 21 are wanted")
    path.write_bytes(path.read_bytes()[:5000])
    refusal(lambda: MovingMNISTNpy(path), path, "damaged, or not a .npy file of numbers")
    for array, found in ((np.zeros((20, 5, 8)), "float64 (20, 5, 8)"), (noise(20, 8, 8), "uint8 (20, 8, 8)")):
        np.save(path, array)
        refusal(lambda: MovingMNISTNpy(path), path, "must hold uint8 (frames, clips, h, w)", found)
    np.save(path, np.array([Hostile()]), allow_pickle=True)
    refusal(lambda: MovingMNISTNpy(path), path, "damaged, or not a .npy file of numbers")
    path.write_bytes(b"text")
    refusal(lambda: MovingMNISTNpy(path), path, "damaged, or not a .npy file of numbers")


# ---- By name


def test_the_test_file_of_moving_mnist_is_never_trained_on(tmp_path: Path) -> None:
    write_npy(tmp_path / "mnist_test_seq.npy")
    options: dict[str, Any] = {"root": tmp_path, "n_frames": 20, "image_size": (64, 64), "seed": 1}
    test = open_clips("moving_mnist_npy", "test", root=tmp_path, n_frames=20, image_size=(16, 16))
    assert isinstance(test, MovingMNISTNpy) and len(test) == 5
    for split in ("train", "val"):
        generated = open_clips("moving_mnist_npy", split, 7, **options)
        assert isinstance(generated, VariedMovingMNIST) and len(generated) == 7
        assert generated.ranges.speed == pytest.approx((3.6, 3.6)) and generated.ranges.rotation == (0, 0)


def test_open_clips_spreads_what_is_left_of_files(tmp_path: Path) -> None:
    write_h5(tmp_path / "shanghai.h5", n=7)
    options: dict[str, Any] = {"root": tmp_path, "n_frames": 3, "image_size": (16, 16)}
    whole = open_clips("shanghai_h5", "train", **options)
    three = open_clips("shanghai_h5", "train", 3, **options)
    assert (len(whole), len(three)) == (7, 3)
    for i, wanted in enumerate((0, 2, 4)):
        assert torch.equal(three[i], whole[wanted])
    assert len(open_clips("shanghai_h5", "train", 50, **options)) == 7


def test_a_folder_of_sequences_is_opened_under_a_neutral_name(tmp_path: Path) -> None:
    write_pngs(tmp_path, [f"walk{i:02d}" for i in range(20)], frames=9)
    options: dict[str, Any] = {"root": tmp_path, "n_frames": 4, "image_size": (16, 16), "stride": 2}
    positions = {"train": range(16), "val": range(16, 18), "test": range(18, 20)}
    for split, wanted in positions.items():
        clips = open_clips("frames", split, **options)
        names = [sequence.path.name for sequence, _ in clips.clips]  # type: ignore[attr-defined]
        assert names == [f"walk{i:02d}" for i in wanted]
        assert torch.equal(clips[0], open_clips("shanghai_png", split, **options)[0])
    assert (DATASETS["frames"].n_input, DATASETS["frames"].n_output) == (10, 10)
    refusal(lambda: open_clips("frames", "train", root=tmp_path, n_frames=10), "it has 9 png files")
    refusal(
        lambda: open_clips("frames", "train"),
        "frames needs root (--root): the folder with sequences, each a folder SEQUENCE/FRAME.png, a SEQUENCE.npy",
    )


def test_open_clips_brings_channels_into_the_wanted_order(tmp_path: Path) -> None:
    write_openstl(tmp_path)
    opened = partial(open_clips, "human36m_openstl", root=tmp_path, n_frames=4, image_size=(16, 16))
    own = opened("train")
    for colours, wanted in (("BGR", own[1]), ("RGB", own[1].flip(1))):
        for length, index in ((None, 1), (1, 0)):
            clips = opened("train", length, colours=colours)
            assert len(clips) == (length or 2)
            assert torch.equal(
                clips[index], wanted if index else {"BGR": own[0], "RGB": own[0].flip(1)}[colours]
            )
    assert not torch.equal(own[1], own[1].flip(1))
    refusal(
        lambda: opened("train", colours="grey"), "human36m_openstl has clips in BGR; clips in grey are wanted"
    )
    refusal(
        lambda: open_clips("radar_like", "test", n_frames=4, image_size=(16, 16), colours="RGB"),
        "radar_like has clips in grey; clips in RGB are wanted",
    )


def test_open_clips_says_what_is_wrong() -> None:
    options: dict[str, Any] = {"n_frames": 3, "image_size": (16, 16)}
    refusal(
        lambda: open_clips("mnist", "test", **options), "dataset must be one of moving_digits, radar_like"
    )
    for name, entry in DATASETS.items():
        root = None if entry.layout else "x"
        words = (
            (f"{name} needs root (--root): {entry.layout}",)
            if entry.layout
            else (f"{name} is generated", "--root")
        )
        refusal(partial(open_clips, name, "test", root=root, **options), *words)


@pytest.mark.parametrize("name", DATASETS)
def test_open_clips_has_defaults_for_every_data_set(name: str, tmp_path: Path) -> None:
    write: dict[str, Any] = {
        "human36m": lambda: write_human36m(tmp_path, {"S9_Walking_1.60457274": 30}),
        "human36m_openstl": lambda: write_openstl(tmp_path),
        "frames": lambda: write_pngs(tmp_path, ["a", "b", "c"], frames=20),
        "frames_rgb": lambda: write_pngs(tmp_path, ["a", "b", "c"], frames=20),
        "shanghai_h5": lambda: write_h5(tmp_path / "shanghai.h5"),
        "shanghai_png": lambda: write_pngs(tmp_path, ["train/a", "test/b"], frames=15),
        "moving_mnist_npz": lambda: write_npz(tmp_path),
        "moving_mnist_npy": lambda: write_npy(tmp_path / "mnist_test_seq.npy"),
    }
    entry, root = DATASETS[name], tmp_path if name in write else None
    write.get(name, lambda: None)()
    clip = open_clips(name, "test", root=root)[0]
    assert clip.shape == (entry.n_input + entry.n_output, entry.channels, *entry.image_size)
