"""load_checkpoint on files of this package: the model that comes back is the one that was saved, or a warning says what
is assumed; what wrappers, other programs' dicts and file formats put around the weights does not matter."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from motionrnn_ext import MotionRNN
from motionrnn_ext.layers import LSTMState, RecurrentCell, register_predictor
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.models import load_checkpoint
from motionrnn_ext.models.variants import OPTIONS

Tensors = dict[str, Tensor]


def model(predictor: str = "convlstm", layers: int = 2, **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    made = MotionRNN(predictor, 1, (8,) * layers, 2, **{"filter_size": 3, **options})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def same(a: MotionRNN, b: MotionRNN) -> bool:
    """Whether both give the same predictions."""
    frames = torch.rand(1, 4, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    return torch.equal(a(frames, 2), b(frames, 2))


def equal(a: MotionRNN, b: MotionRNN) -> bool:
    """Whether both were made with the same arguments and have the same weights."""
    ours, theirs = a.state_dict(), b.state_dict()
    return a.arguments == b.arguments and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def loaded(source: Any, **options: Any) -> MotionRNN:
    """Loaded without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_checkpoint(source, **options)


class OwnCell(RecurrentCell):
    """A convolutional GRU."""

    def __init__(self, in_channels, hidden_channels, filter_size=5, *, slope=1.0, **options) -> None:
        super().__init__(in_channels, hidden_channels, filter_size, **options)
        self.gates = self.convolution(in_channels + hidden_channels, 2 * hidden_channels)
        self.candidate, self.slope = self.convolution(in_channels + hidden_channels, hidden_channels), slope

    def forward(self, x, state, memory=None, highway=None):
        u, r = self.gates(torch.cat([x, state.hidden], 1)).sigmoid().chunk(2, 1)
        z = self.candidate(torch.cat([x, r * state.hidden], 1)).mul(self.slope).tanh()
        h = torch.lerp(state.hidden if highway is None else highway, z, u)
        return h, LSTMState(h, h), memory


@pytest.fixture
def own_predictor():
    register_predictor("own_cell")(OwnCell)
    yield "own_cell"
    del CELLS["own_cell"]


SIZE = {"image_size": (8, 12)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("convlstm", {}),
    "official": ("predrnn", {"variant": "official"}),
    "no_motion_gru": ("convlstm", {"motion_gru": False}),
    "no_highway": ("predrnn", {"highway": False}),
    "bare": ("convlstm", {"motion_gru": False, "highway": False}),
    "no_trend": ("predrnn", {"trend": False}),
    "no_transient": ("convlstm", {"transient": False}),
    "gate_side": ("convlstm", {"gate_side": "decoded", "carry": "motion"}),
    "alpha": ("predrnn", {"alpha": 0.9}),
    "kernels": ("convlstm", {"gate_kernel_size": 3, "blend_kernel_size": 5, "kernel_size": 5}),
    "layer_norm": ("convlstm", {"layer_norm": True, **SIZE}),
    "one_layer": ("predrnn", {"layers": 1, "variant": "official"}),
    "mim": ("mim", {"compat": "openstl", **SIZE}),
    "e3d_lstm": ("e3d_lstm", {"cell_options": {"window": 3}, **SIZE}),
    "conv_tt_lstm": ("conv_tt_lstm", {"cell_options": {"order": 2, "steps": 4, "rank": 3}}),
}


# ---- A state dict says what model it is of


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_saved_state_dict_is_the_model_again(name: str, zipped: bool, tmp_path: Path) -> None:
    predictor, options = MODELS[name]
    made = model(predictor, **options)
    torch.save(made.state_dict(), tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    found = loaded(tmp_path / "weights.pt")
    assert equal(found, made) and (not zipped or same(found, made))
    assert all(p.requires_grad for p in found.parameters())


def test_the_arguments_are_all_that_make_the_model(own_predictor: str) -> None:
    made = model(own_predictor, cell_options={"slope": 0.5})
    assert same(loaded(made.state_dict()), made)
    again = MotionRNN(**made.arguments)
    again.load_state_dict(made.state_dict())
    assert same(again, made) and set(OPTIONS) < made.arguments.keys()
    del CELLS[own_predictor]
    with pytest.raises(ValueError, match=r"unknown predictor 'own_cell'; known: convlstm, "):
        load_checkpoint(made.state_dict())
    CELLS[own_predictor] = OwnCell


def test_names_tensors_and_strict_loading_are_as_without_it() -> None:
    made = model()
    old = dict(made.state_dict())  # without metadata, as older files
    model().load_state_dict(old, strict=True)
    assert set(old) == {name for name, _ in made.named_parameters()}


def test_options_that_are_no_plain_values_do_not_spoil_the_file(own_predictor: str, tmp_path: Path) -> None:
    made = model(own_predictor, cell_options={"slope": torch.tensor(0.5)})
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    assert torch.load(tmp_path / "weights.pt", weights_only=True).keys() == made.state_dict().keys()
    with pytest.warns(UserWarning, match=r"assumed .*cell_options=\{\}"):
        load_checkpoint(tmp_path / "weights.pt")


def test_the_caller_has_the_last_word() -> None:
    made = model("predrnn", variant="official", trend=False)
    assert loaded(made.state_dict(), init_state="xavier", trend=True).arguments == {
        **made.arguments,
        "init_state": "xavier",
        "trend": True,
    }
    kernels = {n: made.arguments[n] for n in OPTIONS if n.endswith("kernel_size") or n == "highway_first"}
    paper = loaded(made.state_dict(), variant="paper", **kernels)
    assert (paper.options.carry, paper.options.gate_side) == ("block", "hidden")
    with pytest.raises(ValueError, match=r"^patch_size is 4; it should be 2, as the checkpoint says$"):
        load_checkpoint(made.state_dict(), patch_size=4)
    with pytest.raises(TypeError, match="unknown option 'cary'"):
        load_checkpoint(made.state_dict(), cary="block")


# ---- Tensors alone


@pytest.mark.parametrize("name", MODELS)
def test_of_tensors_alone_what_is_assumed_is_told(name: str) -> None:
    """Given all that the warning names, the model is the same; without, the warning names what differs."""
    predictor, options = MODELS[name]
    made = model(predictor, **options)
    with pytest.warns(
        UserWarning, match=r"^load_checkpoint: assumed .*, which no tensor shows; name what"
    ) as said:
        found = load_checkpoint(dict(made.state_dict()))
    (message,) = [str(warning.message) for warning in said]
    assumed = re.findall(r"(\w+)=", message.partition(", which")[0])
    assert all(f"{key}={found.arguments[key]!r}" in message for key in assumed)
    again = loaded(dict(made.state_dict()), **{key: made.arguments[key] for key in assumed})
    made.reset()
    assert same(again, made)


def test_a_registered_predictor_is_known_by_its_tensors(own_predictor: str) -> None:
    made = model(own_predictor, filter_size=5, layer_norm=True, **SIZE)
    with pytest.warns(UserWarning, match="assumed .*cell_options={}"):
        found = load_checkpoint(dict(made.state_dict()))
    assert found.predictor == own_predictor and same(found, made)
    with pytest.warns(UserWarning):
        assert load_checkpoint(dict(made.state_dict()), predictor=own_predictor).predictor == own_predictor
    del CELLS[own_predictor]
    with pytest.raises(
        ValueError, match=r"^cells\.0\.\S+ is of no known predictor; known: convlstm, .* registered"
    ):
        load_checkpoint(dict(made.state_dict()))
    CELLS[own_predictor] = OwnCell


# ---- What is put around it


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.network = inner


def renamed(prefix: str) -> Callable[[MotionRNN], Tensors]:
    return lambda made: {f"{prefix}{name}": tensor for name, tensor in made.state_dict().items()}


WRAPPED: dict[str, Callable[[MotionRNN], Any]] = {
    "data_parallel": lambda made: nn.DataParallel(made).state_dict(),
    "compiled": lambda made: torch.compile(made).state_dict(),
    "averaged": lambda made: AveragedModel(made).state_dict(),
    "outer": lambda made: Outer(made).state_dict(),
    "compiled within": lambda made: Outer(torch.compile(made)).state_dict(),
    "all of it": lambda made: nn.DataParallel(
        torch.compile(Outer(nn.DataParallel(torch.compile(made))))
    ).state_dict(),
    "averaged within": lambda made: Outer(AveragedModel(nn.DataParallel(made))).state_dict(),
    "parameters": lambda made: dict(made.named_parameters()),
    "_orig_mod. module.": renamed("_orig_mod.module."),
    "module. module. model.": renamed("module.module.model."),
    "generator.": renamed("generator."),
    "net._orig_mod.": renamed("net._orig_mod."),
    "a cell compiled": lambda made: {
        n.replace("cells.0.", "cells.0._orig_mod."): t for n, t in made.state_dict().items()
    },
    "any.depth.": renamed("any.depth.of.names."),
}
HELD: dict[str, Callable[[Any], Any]] = {
    "model": lambda held: {"model": held, "epoch": 3},
    "model_state_dict": lambda held: {
        "model_state_dict": held,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    },
    "net": lambda held: {"net": held, "acc": 0.5},
    "params": lambda held: {"params": held},
    "params_ema": lambda held: {"params_ema": held},
    "state_dict": lambda held: {"state_dict": held, "loss": torch.tensor(0.1)},
    "net_param": lambda held: {
        "net_param": held,
        "optimizer_param": {"state": {0: {"exp_avg": torch.ones(2)}}},
    },
    "nested": lambda held: {"checkpoint": {"state": {"model": held}}, "args": None},
    "beside": lambda held: {
        **held,
        "epoch": 3,
        "step": torch.tensor(7),
        "optimizer": {"lr": 0.1},
        "name": "mine",
    },
    "any": lambda held: {"weights of mine": held},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_wrappers_put_before_the_names_is_dropped(name: str) -> None:
    made = model("predrnn", trend=False)
    held = WRAPPED[name](made)
    found = (
        loaded(held) if hasattr(held, "_metadata") else load_checkpoint(held, trend=False, variant="paper")
    )
    assert equal(found, made)


@pytest.mark.parametrize("name", HELD)
def test_whatever_holds_the_weights(name: str, tmp_path: Path) -> None:
    made = model("predrnn", alpha=0.8)
    torch.save(HELD[name](Outer(made).state_dict()), tmp_path / "file")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if name != "beside" else "ignore")
        assert equal(load_checkpoint(tmp_path / "file", **({"alpha": 0.8} if name == "beside" else {})), made)
    with open(tmp_path / "file", "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert equal(load_checkpoint(io.BytesIO(file.read()), alpha=0.8), made)


def test_of_several_weights_one_is_taken_and_the_others_are_named() -> None:
    old, new = model(), model(alpha=0.7)
    with pytest.warns(UserWarning, match=r"left out the weights params_ema, for those of params$"):
        assert equal(load_checkpoint({"params_ema": old.state_dict(), "params": new.state_dict()}), new)


def test_other_tensors_beside_the_model_are_left_out_and_named() -> None:
    outer = Outer(model())
    outer.perceptual = nn.Conv2d(1, 1, 3)
    with pytest.warns(
        UserWarning, match=r"left out 2 tensors beside those of network\.\*: perceptual\.weight, "
    ):
        assert equal(load_checkpoint(outer.state_dict()), outer.network)


def test_two_models_in_one_are_told_apart_by_the_caller() -> None:
    outer = Outer(model())
    outer.teacher = model(trend=False)
    with pytest.raises(
        ValueError, match=r"holds several models, 'network\.' and 'teacher\.'; it should be one: pick"
    ):
        load_checkpoint(outer.state_dict())
    assert equal(loaded(outer.teacher.state_dict()), outer.teacher)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_views_and_layouts(dtype: torch.dtype) -> None:
    made = model().to(dtype)
    shared = torch.cat([t.flatten() for t in made.state_dict().values()])
    views, start = {}, 0
    for name, tensor in made.state_dict().items():
        views[name] = shared[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    found = load_checkpoint(views)
    shared.zero_()
    assert all(
        torch.equal(t, made.state_dict()[n]) and t.dtype == dtype for n, t in found.state_dict().items()
    )
    assert found.conv_last.weight.untyped_storage().nbytes() == found.conv_last.weight.nbytes


# ---- Checkpoints of `motionrnn train`, and of a Lightning module of one's own


@pytest.mark.parametrize("described", [True, False], ids=["", "of an older version"])
def test_a_checkpoint_of_train_has_its_settings(described: bool, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="the training program's packages are not installed")
    from motionrnn_ext.config import Config
    from motionrnn_ext.runs import CONFIG_KEY, load_run

    config = Config(
        predictor="predrnn", hidden=(8, 8), trend=False, highway=False, overrides={"alpha": 0.9}, filter_size=3,
        patch_size=2, compat="openstl",
    )  # fmt: skip
    made = MotionRNN(**config.model())
    state = nn.ModuleDict({"model": made}).state_dict()
    content = {
        "state_dict": state if described else dict(state),
        CONFIG_KEY: config.to_dict(),
        "global_step": 3,
    }
    torch.save(content, tmp_path / "best.ckpt")
    found = loaded(tmp_path / "best.ckpt")
    assert same(found, made) and same(found, load_run(tmp_path / "best.ckpt").model)
    assert found.arguments == made.arguments


def test_a_lightning_module_of_ones_own(tmp_path: Path) -> None:
    L = pytest.importorskip("lightning", reason="the training program's packages are not installed")

    class Mine(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model("convlstm", gate_side="decoded")

        def training_step(self, batch, index):
            return self.net(batch, 2).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    mine = Mine()
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(mine, torch.utils.data.DataLoader(torch.rand(1, 3, 1, 8, 8)))
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    assert equal(loaded(tmp_path / "mine.ckpt"), mine.net)


# ---- safetensors


def safetensors_file(path: Path, tensors: Tensors) -> Path:
    header, data = {}, b""
    for name, tensor in tensors.items():
        held = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(held)],
        }
        data += held
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def read_by_hand(path: Any, device: str) -> Tensors:
    """What safetensors.torch.load_file does."""
    content = Path(path).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    return {
        name: torch.frombuffer(bytearray(content[end + about["data_offsets"][0] : end + about["data_offsets"][1]]),
                               dtype=torch.float32).view(about["shape"])
        for name, about in header.items() if name != "__metadata__"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
@pytest.mark.parametrize("package", ["installed", "stand-in"])
def test_safetensors(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "installed":
        pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    else:
        stand_in = types.ModuleType("safetensors.torch")
        stand_in.load_file = read_by_hand
        monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
        monkeypatch.setitem(sys.modules, "safetensors.torch", stand_in)
    made = model("predrnn", alpha=0.7)
    path = safetensors_file(tmp_path / name, dict(made.state_dict()))
    with pytest.warns(UserWarning, match="assumed in_channels=1, patch_size=2, highway=True"):
        assert equal(load_checkpoint(path, alpha=0.7), made)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is truncated or no file of weights") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_safetensors_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = safetensors_file(tmp_path / "model.safetensors", dict(model().state_dict()))
    with pytest.raises(
        ModuleNotFoundError, match=r"model\.safetensors' needs the package safetensors: pip install"
    ):
        load_checkpoint(path)


# ---- What is no checkpoint


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is truncated or no file of weights"),
    "text": (lambda path: path.write_text("version https://git-lfs"), "is truncated or no file of weights"),
    "zip": (lambda path: path.write_bytes(b"PK\x05\x06" + 18 * b"\0"), "is truncated or no file of weights"),
    "script": (script, "is a TorchScript program; it should be a file of weights"),
    "module": (lambda path: torch.save(nn.Linear(2, 2), path), "asks for torch.nn.modules.linear.Linear"),
    "list": (lambda path: torch.save([torch.ones(2)], path), "holds no state dict but a list"),
    "tensor": (lambda path: torch.save(torch.ones(2), path), "holds no state dict but a Tensor"),
    "optimiser": (
        lambda path: torch.save(torch.optim.Adam(model().parameters()).state_dict(), path),
        "has entries that are not tensors: state, param_groups",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_checkpoint(name: str, tmp_path: Path) -> None:
    write, message = FILES[name]
    write(tmp_path / "file")
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(tmp_path / "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (model(), r"^source is a MotionRNN; it should be a file or a state dict: pass its state_dict\(\)$"),
        (nn.DataParallel(model()), "^source is a DataParallel; it should be a file or a state dict: pass"),
        ([("a", torch.ones(2))], "^source is a list; it should be a file or a state dict$"),
        (model().named_parameters(), "^source is a generator; it should be"),
        (None, "^source is a NoneType; it should be"),
        (7, "^source is a int; it should be"),
    ],
    ids=["model", "wrapped", "list", "generator", "none", "number"],
)
def test_what_is_no_source_is_told(source: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        load_checkpoint(source)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; it should be a file$"):
        load_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(IsADirectoryError, match=r"it should be a file, such as its checkpoints/last\.ckpt$"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")


def test_tensors_without_values_are_told() -> None:
    with torch.device("meta"):
        made = MotionRNN("convlstm", 1, (8, 8), 2)
    with pytest.raises(ValueError, match=r"has tensors on the device meta, without values: cells\.0"):
        load_checkpoint(made.state_dict())


@pytest.mark.parametrize(
    "arguments",
    [{"hidden_channels": 8}, {"cells": 1}, {"patch_size": "2"}, {"predictor": []}, {1: 2}],
)
def test_a_description_that_was_tampered_with_is_one_line(arguments: dict[Any, Any]) -> None:
    state = model().state_dict()
    entry = state._metadata[""]
    entry["motionrnn_ext"] = {**entry["motionrnn_ext"], **arguments}
    with pytest.raises(ValueError) as error:
        load_checkpoint(state)
    assert "\n" not in str(error.value)
