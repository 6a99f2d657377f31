"""save_official: what it writes is what the public programs write, and what they cannot express is named."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from comparing import assert_close
from golden import GoldenCase, golden_cases
from public_weights import net, openstl_dict
from torch import nn
from torch.nn.utils import parametrizations, prune

from motionrnn_ext import MotionRNN
from motionrnn_ext.models import load_checkpoint, save_official

BARE = {"motion_gru": False, "highway": False}
CONTAINERS = {
    "convlstm": ("state_dict", "model."),
    "predrnn": ("net_param", ""),
    "mim": ("state_dict", "model."),
}
CONTAINERS["e3d_lstm"] = ("state_dict", "model.")
OPENSTL = {"compat": "openstl"}


def quietly(source: Any, **options: Any) -> MotionRNN:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_checkpoint(source, **options)


def with_alpha(*values: float) -> MotionRNN:
    """Return a model whose alphas were set after it was made."""
    made = net(layers=3)
    for interface, value in zip(made.interfaces, values):
        interface.cell.alpha = value
    return made


def written(model: MotionRNN, folder: Path) -> dict[str, torch.Tensor]:
    """The state dict as the program takes it from the file."""
    save_official(model, folder / "model.ckpt")
    container, prefix = CONTAINERS[model.predictor]
    content = torch.load(folder / "model.ckpt", weights_only=True)
    assert list(content) == [container] and all(name.startswith(prefix) for name in content[container])
    assert [path.name for path in folder.iterdir()] == ["model.ckpt"]
    return {name.removeprefix(prefix): tensor for name, tensor in content[container].items()}


@pytest.mark.parametrize("path", golden_cases("net_*.npz", "motionrnn_*.npz"))
def test_the_programs_own_weights_come_back(path: Path, tmp_path: Path) -> None:
    """Every name and number of the recorded programs' state dicts but those that no prediction reads, which are 0."""
    if "predrnnpp" in path.name:
        pytest.skip("PredRNN++ is not known here")
    case = GoldenCase(path)
    theirs = case.group("param")
    options = OPENSTL if "mim" in path.name else {}
    found = written(quietly(theirs, **options), tmp_path)
    extra = {"adapter.weight"} & theirs.keys()  # of PredRNN-V2's training, which PredRNN's program has not
    assert found.keys() == theirs.keys() - extra
    for name, tensor in found.items():
        assert tensor.shape == theirs[name].shape, name
        dead = name.endswith(("conv_o.0.weight", "conv_o.1.weight", "conv_o.1.bias", "conv_last.weight"))
        assert torch.equal(tensor, theirs[name]) or (dead and not tensor.any()), name


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        lambda **norm: net(**norm),
        lambda **norm: net(**BARE, **norm),
        lambda **norm: net("convlstm", **BARE, **norm),
        lambda **norm: quietly(openstl_dict("mim", layer_norm="layer_norm" in norm), **OPENSTL),
        lambda **norm: quietly(openstl_dict("mim", 1, layer_norm="layer_norm" in norm), **OPENSTL),
        lambda **norm: quietly(openstl_dict("e3d_lstm", 2, layer_norm="layer_norm" in norm, filter_size=5)),
    ],
    ids=["motionrnn", "predrnn", "convlstm", "mim", "mim1", "e3d_lstm"],
)
def test_load_checkpoint_reads_it_back(model, layer_norm: bool, tmp_path: Path) -> None:
    made = model(**({"layer_norm": True, "image_size": (8, 12)} if layer_norm else {})).bfloat16()
    save_official(made, tmp_path / "model.ckpt")
    back = quietly(tmp_path / "model.ckpt", compat=made.arguments["compat"])
    assert back.arguments == {**made.arguments, "variant": "official"} or not made.interfaces
    for name, tensor in made.state_dict().items():
        assert (
            torch.equal(back.state_dict()[name], tensor) and back.state_dict()[name].dtype == torch.bfloat16
        )


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: MotionRNN("predrnn", 1, (8, 8), 2),
         ["carry is 'block'; it should be 'motion'", "gate_kernel_size is 1; it should be 3"]),
        (lambda: net(trend=False, alpha=0.7), ["trend is False; it should be True", "alpha is 0.7; it should be 0.5"]),
        (lambda: net(alpha=nn.Parameter(torch.tensor(0.5))), ["alpha is learned; it should be 0.5"]),
        (lambda: net(highway=False), ["highway is False; it should be True"]),
        (lambda: net(kernel_size=5), ["kernel_size is 5; it should be 3"]),
        (lambda: net(layers=1), ["hidden_channels is (8,); MotionRNN's program wants two layers or more"]),
        (lambda: net("convlstm"), ["motion_gru is True; it should be False", "highway is True; it should be False"]),
        (lambda: net("mim", **BARE, image_size=(8, 12)), ["compat is None; it should be 'openstl'"]),
        (lambda: net("e3d_lstm", **BARE, image_size=(8, 12), cell_options={"window": 3}),
         ["compat is None", "filter_size is 3; it should be 5", "window is 3; it should be 2"]),
        (lambda: net("e3d_lstm", **BARE, **OPENSTL, filter_size=5, image_size=(8, 12), cell_options={"history": 2}),
         ["history is 2; it should be None"]),
        (lambda: net(max_offset=2.0), ["max_offset is 2.0; it should be None, or 10000 or more"]),
        (lambda: net(alpha=nn.Parameter(torch.tensor(0.5))), ["alpha is learned; it should be 0.5"]),
        (lambda: with_alpha(0.9, 0.9), ["alpha is 0.9; it should be 0.5"]),
        (lambda: with_alpha(0.9, 0.5), ["alpha differs among the layers"]),
        (lambda: net("conv_tt_lstm", **BARE), ["predictor is 'conv_tt_lstm'; it should be one of convlstm, predrnn, "]),
    ],
)  # fmt: skip
def test_what_no_program_can_express_is_named(model, named: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^no public program has this model: ") as error:
        save_official(model(), tmp_path / "model.ckpt")
    assert all(text in str(error.value) for text in named) and not list(tmp_path.iterdir())


class Doubling(MotionRNN):
    """A model whose forward computes something else from the same weights."""

    def forward(self, *args: Any, **options: Any) -> Any:
        return 2 * super().forward(*args, **options)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.cells[0].conv_x[0], "padding_mode", "circular"),
        lambda m: m.cells[0].conv_x.append(nn.Tanh()),
        lambda m: m.cells[1].conv_h[0].register_forward_hook(lambda module, args, out: 2 * out),
        lambda m: setattr(m, "__class__", Doubling),
        lambda m: m.register_forward_hook(lambda module, args, out: (out, out)),
    ],
    ids=["padding", "Tanh", "hook", "forward", "pair"],
)
def test_what_the_weights_alone_do_not_compute_is_refused(change: Any, tmp_path: Path) -> None:
    model = net(layers=2)
    change(model)
    with pytest.raises(
        ValueError,
        match=r"no public program has this model: (its (predictions differ by [\d.e-]+|forward returns)|it has code)",
    ):
        save_official(model, tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


class Shard(torch.Tensor):
    """Has, like a DTensor, a method that gathers the whole."""

    full_tensor = torch.Tensor.clone


def test_shards_and_what_cannot_be_copied_are_refused(tmp_path: Path) -> None:
    model = net(layers=2)
    model.cells[0].lock = threading.Lock()
    with pytest.raises(
        ValueError, match="model cannot be copied, to compare it with its weights alone: TypeError: "
    ):
        save_official(model, tmp_path / "model.ckpt")
    model = net(layers=2)
    model.conv_last.weight = nn.Parameter(model.conv_last.weight.detach().as_subclass(Shard))
    with pytest.raises(
        ValueError, match=r"sharded parameters, such as conv_last.weight; save a MotionRNN\(\*\*"
    ):
        save_official(model, tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def test_what_changes_no_prediction_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MotionRNN(
        "predrnn", 1, (8, 8), 2, "official", filter_size=3, alpha=0.9, init_state="xavier"
    ).half()
    model.interfaces[0].cell.alpha, seen = 0.5, []
    model.cells[0].register_forward_hook(lambda module, args, out: seen.append(out[0].dtype))
    model.cells[0].conv_x.append(nn.Dropout(0.5))
    before, state = {name: t.clone() for name, t in model.state_dict().items()}, torch.get_rng_state()
    save_official(model.train(), tmp_path / "model.ckpt")
    assert torch.get_rng_state().equal(state) and model.training
    assert all(t.equal(before[name]) for name, t in model.state_dict().items())
    found = quietly(tmp_path / "model.ckpt", in_channels=1, patch_size=2, init_state="xavier")
    clip = torch.rand(1, 4, 1, 8, 8).half()
    results = [m.eval()(clip, 2, generator=torch.Generator().manual_seed(0)) for m in (found, model)]
    # Measured: 3e-3. A rollout rounds sums in half precision that the hooked model rounds apart.
    assert_close(*results, 1e-2)


def test_a_pruned_model_is_written_as_it_computes(tmp_path: Path) -> None:
    pruned = net()
    prune.l1_unstructured(pruned.interfaces[0].gate, "weight", 0.5)
    save_official(pruned, tmp_path / "model.ckpt")
    prune.remove(pruned.interfaces[0].gate, "weight")
    found = quietly(tmp_path / "model.ckpt", patch_size=pruned.patch_size).state_dict()
    assert all(torch.equal(t, found[name]) for name, t in pruned.state_dict().items())


def test_other_parameters_and_no_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(content: object, file: BinaryIO) -> None:
        file.write(b"cut")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    normed = net()
    parametrizations.weight_norm(normed.interfaces[0].gate)
    with pytest.raises(
        ValueError, match=r"^model has interfaces\.0\.gate\.parametrizations\.weight\.original0 "
    ):
        save_official(normed, tmp_path / "model.ckpt")
    with_bias = net()
    with_bias.conv_last.bias = nn.Parameter(torch.ones(1))
    with pytest.raises(
        ValueError, match=r"other parameters than it was made with: unexpected conv_last\.bias"
    ):
        save_official(with_bias, tmp_path / "model.ckpt")
    for wrapper, path in ((nn.DataParallel(net()), "module"), (torch.compile(net()), "_orig_mod")):
        with pytest.raises(TypeError, match=f"it should be a MotionRNN: pass model.{path}$"):
            save_official(wrapper, tmp_path / "model.ckpt")
    with pytest.raises(TypeError, match="^model is a str; it should be a MotionRNN$"):
        save_official("model.ckpt", net())
    with torch.device("meta"):
        empty = net()
    with pytest.raises(ValueError, match="on the device meta, without values"):
        save_official(empty, tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt").write_text("kept")
    with pytest.raises(FileNotFoundError):
        save_official(net(), tmp_path / "none" / "model.ckpt")
    with pytest.raises(IsADirectoryError, match=r"path '.*' is a folder; it should be a file"):
        save_official(net(), tmp_path)
    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_official(net(), tmp_path / "model.ckpt")
    assert (tmp_path / "model.ckpt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
