"""load_checkpoint on files of this package: the model that comes back is the one that was saved, or a warning says what
is assumed."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import equal, loaded, model, same
from torch import nn

from motionrnn_ext import MotionRNN
from motionrnn_ext.layers import LSTMState, RecurrentCell, register_predictor
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.models import load_checkpoint
from motionrnn_ext.models.variants import OPTIONS


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
    "e3d_history": ("e3d_lstm", {"cell_options": {"window": 2, "history": 2}, **SIZE}),
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


@pytest.mark.parametrize("described", [True, False])
def test_a_learned_alpha_is_learned_again(described: bool, tmp_path: Path) -> None:
    options = {"trend": True, "gate_side": "decoded"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = MotionRNN("convlstm", 1, (8, 8, 8), 2, alpha=nn.Parameter(torch.tensor(0.7)), **options)
    with torch.no_grad():
        made.arguments["alpha"].fill_(1.25)  # learning may leave [0, 1]
    state = made.state_dict() if described else dict(made.state_dict())
    torch.save(state, tmp_path / "weights.pt")
    if described:
        found = loaded(tmp_path / "weights.pt")
    else:
        with pytest.warns(UserWarning, match="gate_side='hidden'") as said:
            load_checkpoint(tmp_path / "weights.pt")
        assert "alpha" not in str(said[0].message)
        given = {
            "init_state": "zeros",
            "carry": "block",
            "max_offset": 1e4,
            "trend_gate": None,
            "residual": False,
            "highway": True,
            "transient": True,
        }
        found = loaded(tmp_path / "weights.pt", in_channels=1, patch_size=2, **options, **given)
    assert same(found, made)
    alpha = found.arguments["alpha"]
    assert all(interface.cell.alpha is alpha for interface in found.interfaces) and alpha.requires_grad
    assert len(list(found.parameters())) == len(list(made.parameters()))


def test_what_is_set_after_making_is_described() -> None:
    made = model(layers=3)
    for interface in made.interfaces:
        interface.cell.alpha, interface.cell.max_offset, interface.gate_side = 0.9, 3.0, "decoded"
    found = loaded(made.state_dict())
    assert same(found, made) and (found.options.alpha, found.options.max_offset) == (0.9, 3.0)
    made.interfaces[0].cell.alpha = 0.1
    with pytest.warns(UserWarning, match=r"assumed .*alpha=0\.5"):  # no one value makes this model
        load_checkpoint(made.state_dict())


def test_what_is_set_at_the_model_and_its_cells_is_described() -> None:
    made = model(layers=3)
    made.options = replace(made.options, carry="motion", init_state="xavier")
    found = loaded(made.state_dict())
    assert (found.options.carry, found.options.init_state) == ("motion", "xavier")
    for predictor, name, value in (
        ("e3d_lstm", "history", 1),
        ("e3d_lstm", "compat", "openstl"),
        ("mim", "compat", "openstl"),
    ):
        made = model(predictor, **SIZE)
        for cell in made.cells:
            setattr(cell, name, value)
        found = loaded(made.state_dict())
        assert all(getattr(cell, name) == value for cell in found.cells)
        setattr(made.cells[1], name, None)
        with pytest.warns(UserWarning, match="assumed"):  # no one value makes this model
            load_checkpoint(made.state_dict())


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
        UserWarning, match=r"^load_checkpoint: assumed .*, which no tensor shows; pass those"
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
        ValueError,
        match=r"^cells\.0\.\S+ belongs to no known predictor; known: convlstm, .* register one of your own first",
    ):
        load_checkpoint(dict(made.state_dict()))
    CELLS[own_predictor] = OwnCell


# ---- Checkpoints of `motionrnn train`, and of a Lightning module of one's own


@pytest.mark.parametrize("described", [True, False], ids=["", "of an older version"])
def test_a_checkpoint_of_train_has_its_settings(described: bool, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="the training program's packages are not installed")
    from motionrnn_ext.training.config import Config
    from motionrnn_ext.training.runs import CONFIG_KEY, load_run

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


@pytest.mark.parametrize(
    "arguments",
    [
        {"hidden_channels": 8},
        {"cells": 1},
        {"patch_size": "2"},
        {"in_channels": float("nan")},
        {"predictor": []},
        {1: 2},
    ],
)
def test_a_description_that_was_tampered_with_is_one_line(arguments: dict[Any, Any]) -> None:
    state = model().state_dict()
    entry = state._metadata[""]
    entry["motionrnn_ext"] = {**entry["motionrnn_ext"], **arguments}
    with pytest.raises(ValueError) as error:
        load_checkpoint(state)
    assert "\n" not in str(error.value)


def test_a_description_that_asks_for_memory_is_refused_at_once() -> None:
    """A million factors, or real tensors in place of those that have no values yet."""
    state = model("conv_tt_lstm", cell_options={"order": 2, "steps": 3, "rank": 2}).state_dict()
    entry, own = state._metadata[""], state._metadata[""]["motionrnn_ext"]
    entry["motionrnn_ext"] = {**own, "cell_options": {"order": 10**6, "steps": 10**6, "rank": 2}}
    with pytest.raises(ValueError, match=r"its order is 1000000, and it has 34 tensors"):
        load_checkpoint(state)
    for name, value in (("device", "cpu"), ("dtype", torch.float64)):
        entry["motionrnn_ext"] = {**own, name: value}
        with pytest.raises(ValueError, match=f"its description has {name}, which is no argument of it"):
            load_checkpoint(state)


@pytest.mark.parametrize("value", [[], torch.ones(2)])
def test_a_choice_of_another_type_is_told(value: Any) -> None:
    for name, message in (("predictor", "^unknown predictor "), ("variant", "^variant is ")):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(dict(model().state_dict()), **{name: value})


# ---- A learned alpha


def test_a_learned_alpha_comes_back_as_one_parameter(tmp_path: Path) -> None:
    """Every other argument comes back too, also where training has taken alpha out of [0, 1]."""
    made = model(layers=3, alpha=nn.Parameter(torch.tensor(0.3)), max_offset=None, gate_side="decoded")
    made.options.alpha.data.fill_(-0.1)
    torch.save(made.state_dict(), tmp_path / "learned.pt")
    found = loaded(tmp_path / "learned.pt")
    assert same(found, made) and found.options.max_offset is None
    alphas = {id(gru.cell.alpha) for gru in found.interfaces} | {id(found.options.alpha)}
    assert len(alphas) == 1 and isinstance(found.options.alpha, nn.Parameter)
    found(torch.rand(1, 4, 1, 8, 12), 2).sum().backward()
    assert found.options.alpha.grad is not None

    with torch.no_grad():
        found.interfaces[1].cell.alpha = nn.Parameter(found.options.alpha / 2)
    again = loaded(found.state_dict())
    assert same(again, found) and again.interfaces[1].cell.alpha.equal(found.interfaces[1].cell.alpha)


def test_a_learned_alpha_among_tensors_alone_is_not_assumed() -> None:
    made = model(layers=3, alpha=nn.Parameter(torch.tensor(0.3)))
    with pytest.warns(UserWarning, match="assumed") as told:
        found = load_checkpoint(dict(made.state_dict()))
    assert same(found, made) and "alpha" not in str(told[0].message)


def test_cell_options_that_are_given_change_and_the_others_stay() -> None:
    options = {"order": 2, "steps": 3, "rank": 4}
    torch.manual_seed(0)
    made = MotionRNN("conv_tt_lstm", 1, (4,), 2, filter_size=3, cell_options=options, motion_gru=False)
    e3d = {"predictor": "e3d_lstm", "image_size": (8, 8), "filter_size": 3}
    recalling = MotionRNN(
        in_channels=1, hidden_channels=(4,), patch_size=2, cell_options={"window": 3}, **e3d
    )
    for state in (recalling.state_dict(), dict(recalling.state_dict())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_checkpoint(state, in_channels=1, cell_options={"history": 2})
        assert found.arguments["cell_options"] == {"window": 3, "history": 2}
        assert torch.equal(found.conv_last.weight, recalling.conv_last.weight)
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(made.state_dict(), cell_options={"rank": 5})
