"""What wrappers, other programs' dicts and file formats put around the weights does not matter to load_checkpoint; what
holds no weights is told in one line."""

from __future__ import annotations

import io
import json
import struct
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import Tensors, equal, loaded, model, same
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from motionrnn_ext import MotionRNN
from motionrnn_ext.models import load_checkpoint

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


def test_counters_of_thop_are_no_weights() -> None:
    made = model("predrnn")
    counted = {
        f"{name.rpartition('.')[0]}.total_ops": torch.zeros(1, dtype=torch.float64)
        for name in made.state_dict()
    }
    assert equal(load_checkpoint({**made.state_dict(), **counted, "total_params": torch.zeros(1)}), made)


@pytest.mark.parametrize("index", [5, 10**12])
def test_a_gap_in_the_layers_is_told_at_once(index: int) -> None:
    """A damaged file's number of layers is not taken at its word: it would fill the memory."""
    state = {name.replace("cells.1.", f"cells.{index}."): t for name, t in model().state_dict().items()}
    with pytest.raises(ValueError, match=r"knows: missing cells\.1\.conv_x\.0\.weight"):
        load_checkpoint(state)


def test_of_several_weights_one_is_taken_and_the_others_are_named() -> None:
    old, new = model(), model(alpha=0.7)
    with pytest.warns(UserWarning, match=r"left out the weights params_ema, for those of params$"):
        assert equal(load_checkpoint({"params_ema": old.state_dict(), "params": new.state_dict()}), new)


@pytest.mark.parametrize("other", ["exp_avg", "grads", "optimizer"])
def test_what_an_optimiser_keeps_by_the_weights_names_is_no_model(other: str) -> None:
    made = model()
    kept = {name: torch.ones_like(tensor) for name, tensor in made.state_dict().items()}
    held = {other: {"state": kept} if other == "optimizer" else kept, "weights of mine": made.state_dict()}
    with pytest.warns(UserWarning, match=rf"left out the weights {other}\S*, for those of weights of mine$"):
        assert equal(load_checkpoint(held), made)


def test_other_tensors_beside_the_model_are_left_out_and_named() -> None:
    outer = Outer(model())
    outer.perceptual = nn.Conv2d(1, 1, 3)
    with pytest.warns(
        UserWarning, match=r"left out 2 tensors beside those of network\.\*: perceptual\.weight, "
    ):
        assert equal(load_checkpoint(outer.state_dict()), outer.network)


@pytest.mark.parametrize("predictor", ["convlstm", "mim"])
def test_two_models_in_one_are_told_apart_by_the_caller(predictor: str) -> None:
    outer = Outer(model(predictor, image_size=(8, 12)))
    outer.teacher = model(predictor, trend=False, image_size=(8, 12))
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


# ---- Pruned, normed and parametrised models


@pytest.mark.parametrize("described", [True, False])
def test_pruning_masks_are_applied(described: bool, tmp_path: Path) -> None:
    made = model("predrnn", layers=3)
    pruned = [
        (made.conv_last, "weight"),
        (made.cells[0].conv_x[0], "weight"),
        (made.interfaces[1].gate, "bias"),
    ]
    for module, name in pruned:
        prune.l1_unstructured(module, name, 0.5)
    state = nn.DataParallel(made).state_dict()
    torch.save(state if described else dict(state), tmp_path / "pruned.pt")
    with pytest.warns(
        UserWarning, match=r"applied the pruning masks of 3 weights, .*: .*interfaces\.1\.gate\.bias"
    ) as said:
        found = load_checkpoint(tmp_path / "pruned.pt")
    assert len(said) == 1 + (not described) and said[0].filename == __file__
    for module, name in pruned:
        prune.remove(module, name)
    assert equal(found, made) and found.conv_last.weight.eq(0).any()


REPARAMETRISED: dict[str, tuple[Callable[[nn.Module], Any], str, str]] = {
    "weight_norm": (
        parametrizations.weight_norm,
        "parametrizations.weight.original0",
        "torch.nn.utils.parametrize.remove_parametrizations",
    ),
    "spectral_norm": (
        parametrizations.spectral_norm,
        "parametrizations.weight.original",
        "torch.nn.utils.parametrize.remove_parametrizations",
    ),
    "old weight_norm": (nn.utils.weight_norm, "weight_g", "torch.nn.utils.remove_weight_norm"),
    "old spectral_norm": (nn.utils.spectral_norm, "weight_orig", "torch.nn.utils.remove_spectral_norm"),
}


@pytest.mark.parametrize("name", REPARAMETRISED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_what_only_a_module_can_compute_is_named_with_what_removes_it(name: str) -> None:
    change, key, remove = REPARAMETRISED[name]
    made = model()
    change(made.interfaces[0].cell.update)
    module = "interfaces.0.cell.update"
    with pytest.raises(ValueError) as error:
        load_checkpoint(made.state_dict())
    assert str(error.value) == (
        f"state dict has {module}.{key} and no weight, which only its module can compute from it; call "
        f"{remove}({module}, 'weight') before it is saved"
    )
    owner, call = remove.rpartition(".")[::2]
    getattr(sys.modules[owner], call)(made.get_submodule(module), "weight")
    assert same(loaded(made.state_dict()), made)


@pytest.mark.parametrize(
    "name", ["cells.0.conv_x.0.lora_A.default.weight", "cells.0.conv_x.0.base_layer.weight"]
)
def test_an_adapter_that_is_not_merged_is_named(name: str) -> None:
    state = {f"base_model.model.{n}": t for n, t in model().state_dict().items()}
    with pytest.raises(ValueError, match=r"^state dict has cells\.0\.\S+, of an adapter; merge it before"):
        load_checkpoint({**state, f"base_model.model.{name}": torch.zeros(2, 4, 3, 3)})


# ---- safetensors


def safetensors_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """Return float32 tensors as safetensors.torch.save does: a header padded to whole words, then the values."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name in sorted(tensors):
        held = tensors[name].detach().contiguous().numpy().tobytes()
        offsets = [len(data), len(data) + len(held)]
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": offsets}
        data += held
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def load_by_hand(data: bytes) -> Tensors:
    """Read tensors as safetensors.torch.load does."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, about in json.loads(data[8:end]).items():
        if name != "__metadata__":
            first, last = (end + offset for offset in about["data_offsets"])
            held = torch.frombuffer(bytearray(data[first:last]), dtype=torch.float32)
            found[name] = held.view(about["shape"])
    return found


@pytest.fixture(params=["installed", "stand-in"])
def safetensors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "installed":
        pytest.importorskip("safetensors", reason="the package safetensors is not installed")
        return
    stand_in = types.ModuleType("safetensors.torch")
    stand_in.load = load_by_hand
    monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", stand_in)


def test_the_files_of_these_tests_are_those_of_the_package() -> None:
    package = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    tensors = dict(model().state_dict())
    assert package.save(tensors, {"format": "pt"}) == safetensors_bytes(tensors, {"format": "pt"})


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_safetensors(safetensors: None, name: str, tmp_path: Path) -> None:
    made, path = model("predrnn", alpha=0.7), tmp_path / name
    data = safetensors_bytes(dict(made.state_dict()), {"format": "pt"})
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="assumed in_channels=1, patch_size=2, highway=True") as said:
        assert equal(load_checkpoint(path, alpha=0.7), made)
        assert equal(load_checkpoint(io.BytesIO(data), alpha=0.7), made)
    assert len(said) == 2
    for size in (100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is truncated or no file of weights") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)


def test_tied_tensors_that_safetensors_leaves_out(safetensors: None, tmp_path: Path) -> None:
    """Its save_model notes the name of the tensor that stands for the other."""
    made = model("predrnn", layers=3, alpha=nn.Parameter(torch.tensor(0.7)))
    tensors, kept, gone = dict(made.state_dict()), *(f"interfaces.{i}.cell.alpha" for i in (0, 1))
    del tensors[gone]
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt", gone: kept}))
    with pytest.warns(UserWarning, match="assumed"):
        found = load_checkpoint(tmp_path / "model.safetensors")
    assert same(found, made) and found.interfaces[0].cell.alpha is found.interfaces[1].cell.alpha


def test_an_alpha_that_is_no_parameter_is_described_by_its_value(tmp_path: Path) -> None:
    """It is a tensor that the user learns beside the model, and no tensor of the state dict."""
    made = model("predrnn", layers=3, alpha=torch.tensor(0.75, requires_grad=True))
    torch.save(made.state_dict(), tmp_path / "model.pt")
    found = load_checkpoint(tmp_path / "model.pt")
    assert found.interfaces[0].cell.alpha == 0.75
    clip = torch.rand(1, 5, 1, 8, 8)
    torch.testing.assert_close(found(clip, 2), made(clip, 2), rtol=0, atol=1e-6)
    made.interfaces[1].cell.alpha = torch.tensor(0.25, requires_grad=True)
    with pytest.warns(UserWarning, match="assumed .*alpha=0.5"):
        load_checkpoint(made.state_dict())


def test_safetensors_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(dict(model().state_dict())))
    with pytest.raises(
        ModuleNotFoundError, match=r"model\.safetensors' needs the package safetensors: pip install"
    ):
        load_checkpoint(tmp_path / "model.safetensors")


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
    "nothing": (lambda path: torch.save({}, path), "holds no weights$"),
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


def test_sparse_tensors_become_dense_and_eight_bits_are_refused() -> None:
    made = model()
    sparse = {name: tensor.to_sparse() for name, tensor in made.state_dict().items()}
    assert equal(load_checkpoint(sparse, variant="paper"), made)
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in made.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"has tensors of torch\.float8_e4m3fn; they should be of one floating-point"
    ):
        load_checkpoint(eight)


def test_tensors_without_values_are_told() -> None:
    with torch.device("meta"):
        made = MotionRNN("convlstm", 1, (8, 8), 2)
    with pytest.raises(ValueError, match=r"has tensors on the device meta, without values: cells\.0"):
        load_checkpoint(made.state_dict())


def test_a_fake_tensor_has_no_values() -> None:
    with FakeTensorMode():
        made = MotionRNN("convlstm", 1, (8, 8), 2)
    with pytest.raises(ValueError, match=r"has tensors on the device meta, without values: cells\.0"):
        load_checkpoint(made.state_dict())


def test_a_tensor_spread_over_processes_is_to_be_gathered() -> None:
    class DTensor(torch.Tensor):
        def full_tensor(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    made = model()
    state = {name: tensor.as_subclass(DTensor) for name, tensor in made.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"as a DTensor, .* gather it in all of them: tensor\.full_tensor\(\)"
    ):
        load_checkpoint(state)
    assert equal(load_checkpoint({name: t.full_tensor() for name, t in state.items()}, variant="paper"), made)


@pytest.mark.parametrize("kind", ["expanded", "sparse"])
def test_a_small_file_cannot_fill_the_memory(kind: str, tmp_path: Path) -> None:
    shape = (10**8, 10**7)
    huge = torch.zeros(1).expand(shape)
    if kind == "sparse":
        huge = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), shape)
    torch.save({**model().state_dict(), "conv_last.weight": huge}, tmp_path / "file")
    with pytest.raises(
        ValueError, match=r"has conv_last\.weight of shape .*, which is larger than the memory$"
    ):
        load_checkpoint(tmp_path / "file")
