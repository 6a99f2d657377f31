"""No file that a user names can run code by being read, and what is wrong with it is told in one line."""

from __future__ import annotations

import argparse
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("h5py", reason="the training program's packages are not installed")
pytest.importorskip("lightning", reason="the training program's packages are not installed")
pytest.importorskip("torchmetrics", reason="the training program's packages are not installed")

import numpy as np

from motionrnn_ext.data import MovingMNISTNpy, MovingMNISTNpz, RadarH5
from motionrnn_ext.evaluation.clips import read_frames
from motionrnn_ext.metrics.fvd import load_video_network
from motionrnn_ext.metrics.lpips import load_lpips
from motionrnn_ext.models import MotionRNN, load_checkpoint, load_conv_tt_lstm_cell, official_name
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import CONFIG_KEY, load_run

Write = Callable[[Path], None]
Read = Callable[[Path], Any]


class Hostile:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile_code_ran",)


@pytest.fixture(autouse=True)
def no_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("hostile_code_ran").exists()


def test_the_hostile_file_is_hostile() -> None:
    pickle.loads(pickle.dumps(Hostile()))
    Path("hostile_code_ran").rmdir()


# ---- What is read, by name: a good file's content for torch.save, and the reader


def official() -> dict[str, torch.Tensor]:
    model = MotionRNN("predrnn", 1, (8, 8), 2, "official", filter_size=3)
    return {official_name(name): t for name, t in model.state_dict().items()}


def conv_tt_lstm() -> dict[str, torch.Tensor]:
    shapes = {"layers_.0": (3, 4, 3, 3, 2), "layers.0": (16, 6, 3, 3)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}


def own() -> dict[str, Any]:
    return MotionRNN("convlstm", 1, (8, 8), 2, filter_size=3).state_dict()


def run() -> dict[str, Any]:
    config = Config(predictor="convlstm", hidden=(4, 4))
    model = MotionRNN(**config.model())
    weights = {f"model.{name}": t for name, t in model.state_dict().items()}
    return {"state_dict": weights, CONFIG_KEY: config.to_dict()}


def alexnet() -> dict[str, torch.Tensor]:
    shapes = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
    return {
        f"features.{n}.{kind}": torch.zeros(shape if kind == "weight" else shape[:1])
        for n, (o, i, k) in zip((0, 3, 6, 8, 10), shapes)
        for kind, shape in (("weight", (o, i, k, k)), ("bias", (o, i, k, k)))
    }


WEIGHTS: dict[str, tuple[Callable[[], dict[str, Any]], Read]] = {
    "official": (official, load_checkpoint),
    "own": (own, load_checkpoint),
    "conv_tt_lstm": (conv_tt_lstm, load_conv_tt_lstm_cell),
    "run": (run, load_run),
    "lpips": (alexnet, load_lpips),
}


def saved(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def refused(read: Read, path: Path, why: str = "") -> None:
    with pytest.raises(ValueError) as error:
        read(path)
    said = str(error.value)
    assert path.name in said and "\n" not in said and why in said
    for advice in ("weights_only", "allow_pickle", "trust", "safe_globals", "unsafe"):
        assert advice not in said, said


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_read(name: str) -> None:
    content, read = WEIGHTS[name]
    Path("weights").write_bytes(saved(content()))
    assert isinstance(getattr(read(Path("weights")), "model", read(Path("weights"))), torch.nn.Module)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["alone", "beside", "key", "tensor", "pickle"])
def test_code_in_weights_is_not_run(name: str, zipped: bool, place: str) -> None:
    content, read = WEIGHTS[name]
    good = content()
    held: Any = {
        "alone": Hostile(),
        "beside": {**good, "extra": Hostile()},
        "key": {**good, (Hostile(),): 1},
        "tensor": {**good, next(iter(good)): Hostile()},
        "pickle": None,
    }[place]
    path = Path("weights")
    path.write_bytes(pickle.dumps(Hostile()) if place == "pickle" else saved(held, zipped))
    refused(
        read,
        path,
        f"asks for {os.mkdir.__module__}.mkdir" if "official" in name and place != "pickle" else "",
    )


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_cut_short_anywhere_are_refused(name: str, zipped: bool) -> None:
    content, read = WEIGHTS[name]
    whole, path = saved(content(), zipped), Path("weights")
    lengths = {0, 1, 2, 3, 10, 50, 64, 100, len(whole) - 1, len(whole) - 2, len(whole) - 30}
    lengths |= {len(whole) * i // 24 for i in range(1, 24)}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        refused(read, path)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "lpips"])  # which is large
def test_weights_with_a_byte_changed_are_read_or_refused(name: str) -> None:
    """Pickled names, opcodes and the archive's own records: none of them runs code, none ends the process."""
    content, read = WEIGHTS[name]
    whole, path = saved(content()), Path("weights")
    generator = torch.Generator().manual_seed(0)
    places = [
        *torch.randint(0, 1200, (40,), generator=generator).tolist(),
        *range(len(whole) - 400, len(whole), 23),
    ]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            read(path)
        except ValueError as error:
            assert "\n" not in str(error) and "weights_only" not in str(error)


VALUES = {
    "numbers": {"best": np.float64(0.5), "step": np.int64(3), "done": np.bool_(True)},
    "array": {"losses": np.arange(3.0)},
    "settings": {"args": argparse.Namespace(lr=0.1, out=Path("runs"), best=np.float32(0.5))},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_plain_values_beside_the_weights_are_read(values: dict[str, Any], zipped: bool) -> None:
    """Programs save scores of NumPy, paths and the settings of argparse; code among them still is refused."""
    path, model = Path("weights"), {"model": own()}
    path.write_bytes(saved({**model, **values}, zipped))
    assert load_checkpoint(path).state_dict().keys() == own().keys()
    with open(path, "rb") as file:
        load_checkpoint(file)
    for hostile in (Hostile(), argparse.Namespace(of=Hostile()), np.array([Hostile()])):
        path.write_bytes(saved({**model, **values, "hostile": hostile}, zipped))
        refused(load_checkpoint, path, "holds more than weights: it asks for ")


def test_what_a_checkpoint_asks_for_is_named() -> None:
    path = Path("model.ckpt")
    torch.save({"net_param": {}, "arguments": Config()}, path)
    with pytest.raises(ValueError, match=r"^checkpoint 'model.ckpt' holds more than weights: ") as error:
        load_checkpoint(path)
    assert str(error.value).endswith(
        ": it asks for motionrnn_ext.training.config.Config, and such a file could run code"
    )
    with pytest.raises(FileNotFoundError, match="none.ckpt"):
        load_checkpoint("none.ckpt")
    with pytest.raises(IsADirectoryError):
        load_checkpoint(".")
    torch.save(official(), path)
    with pytest.raises(RuntimeError, match="no_such_device"):  # the device's fault, not the file's
        load_checkpoint(path, map_location="no_such_device")


# ---- Arrays


def h5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}/all_len"] = 2
            for i in range(2):
                file[f"{split}/{i}"] = np.zeros((25, 8, 8), np.uint8)


def npz(path: Path) -> None:
    with open(path, "wb") as file:
        frames = np.zeros((40, 1, 8, 8), np.float32)
        np.savez(file, clips=np.array([[(0, 10), (20, 10)], [(10, 10), (30, 10)]]), input_raw_data=frames)


def npy(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.zeros((20, 2, 8, 8), np.uint8))


def frames(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.zeros((5, 8, 8), np.float32))


ARRAYS: dict[str, tuple[str, Write, Read]] = {
    "h5": ("shanghai.h5", h5, lambda path: RadarH5("test", path, n_frames=15, image_size=(8, 8))[0]),
    "npz": (
        "moving-mnist-test.npz",
        npz,
        lambda path: MovingMNISTNpz("test", path.parent, image_size=(8, 8))[0],
    ),
    "npy": ("mnist_test_seq.npy", npy, lambda path: MovingMNISTNpy(path, image_size=(8, 8))[0]),
    "frames": ("clip.npy", frames, read_frames),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read(name: str) -> None:
    file, write, read = ARRAYS[name]
    write(Path(file))
    assert read(Path(file)).dtype == torch.float32


@pytest.mark.parametrize("name", ARRAYS)
def test_code_in_arrays_is_not_run(name: str) -> None:
    file, _, read = ARRAYS[name]
    path = Path(file)
    objects = io.BytesIO()
    np.save(objects, np.array([Hostile()] * 20), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, clips=np.array([Hostile()]), input_raw_data=np.array([Hostile()]))
    for content in (pickle.dumps(Hostile()), objects.getvalue(), archive.getvalue(), saved(Hostile())):
        path.write_bytes(content)
        refused(read, path)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_cut_short_anywhere_are_refused(name: str) -> None:
    file, write, read = ARRAYS[name]
    path = Path(file)
    write(path)
    whole = path.read_bytes()
    for length in sorted(
        {0, 1, 7, 9, 11, 50, 127, 130, *(len(whole) * i // 12 for i in range(1, 12)), len(whole) - 1}
    ):
        path.write_bytes(whole[:length])
        refused(read, path)


# ---- TorchScript is a program; what is not TorchScript is refused


def test_a_pickle_is_no_network() -> None:
    path = Path("net.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    whole = path.read_bytes()
    assert load_video_network(path)(torch.zeros(1, 2)).shape == (1, 2)
    cut = [whole[: len(whole) * i // 12] for i in range(12)]
    for content in (pickle.dumps(Hostile()), saved(Hostile()), saved(Hostile(), zipped=False), *cut):
        path.write_bytes(content)
        refused(load_video_network, path)
