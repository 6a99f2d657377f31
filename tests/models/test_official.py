"""load_checkpoint: what it reads off the tensors, what it refuses, and the released program itself."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from golden import relative_error
from official_program import needs_checkout, official_module
from public_weights import BASE, conv_tt_dict, edited, net, official_dict, openstl_dict

from motionrnn_ext.models import (
    MotionRNN,
    load_checkpoint,
    load_conv_tt_lstm_cell,
    official_name,
    save_official,
)
from motionrnn_ext.models.patches import fold_patches, unfold_patches


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda d: {"net_param": d},
        lambda d: {"state_dict": d, "epoch": 3},
        lambda d: {f"model.module.{k}": t for k, t in d.items()},
    ],
)
@pytest.mark.parametrize(
    "model",
    [
        net(),
        net(filter_size=5, layer_norm=True, image_size=(16, 24)),
        net(layers=12, **BASE),
        net("convlstm", **BASE, layer_norm=True, image_size=(8, 12)),
        net("convlstm", layers=1, filter_size=5, **BASE),
        net("convlstm"),
        net(gate_kernel_size=1, blend_kernel_size=1, encoder_kernel_size=3, mask_kernel_size=5),
    ],
    ids=["official", "norm", "predrnn12", "convlstm_norm", "convlstm1", "motion_convlstm", "kernels"],
)
def test_the_architecture_is_read_off_the_tensors(model: MotionRNN, wrap, tmp_path) -> None:
    torch.save(wrap(official_dict(model)), tmp_path / "model.ckpt")
    loaded = load_checkpoint(tmp_path / "model.ckpt")
    size = model.image_size or (16, 24)
    x = torch.rand(2, 3, 3, *size)
    assert loaded.options == model.options and torch.equal(loaded(x, 2), model(x, 2))
    assert all(p.requires_grad for p in loaded.parameters())


def test_names_follow_the_official_program() -> None:
    names = set(official_dict(net(layers=2)))
    assert names == {
        *(f"cell_list.{i}.conv_{c}.0.weight" for i in range(2) for c in "xhmo"),
        *(f"cell_list.{i}.conv_last.weight" for i in range(2)),
        *(f"{part}_list.0.{kind}" for part in ("enc", "dec", "gate") for kind in ("weight", "bias")),
        *(
            f"motion_list.0.{gate}.{kind}"
            for gate in ("update", "reset", "output", "warp.warp_gate")
            for kind in ("weight", "bias")
        ),
        "motion_list.0.warp.conv.weight",
        "conv_last.weight",
        "conv_first_v.weight",
    }


def test_the_given_dict_is_copied_and_dtypes_stay() -> None:
    weights = {name: t.double() for name, t in official_dict(net()).items()}
    model = load_checkpoint(weights, init_state="xavier", trend=False)
    assert model.options.init_state == "xavier" and not model.interfaces[0].cell.trend
    with torch.no_grad():
        model.conv_last.weight.zero_()
    assert weights["conv_last.weight"].abs().max() > 0 and model.conv_last.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, (3, 4)),
        ({"patch_size": 2}, (12, 2)),
        ({"in_channels": 12}, (12, 2)),
        ({"in_channels": 3}, (3, 4)),
    ],
)
def test_frame_layout(given, found) -> None:
    model = load_checkpoint(official_dict(net()), **given)
    assert (model.in_channels, model.patch_size) == found


@pytest.mark.parametrize(
    ("folded", "given", "assumed"),
    [
        (16, {}, "in_channels=1, patch_size=4"),
        (48, {}, "in_channels=3, patch_size=4"),
        (48, {"patch_size": 4}, None),
        (48, {"in_channels": 3}, None),
        (1, {}, None),
        (3, {}, None),
    ],
)
def test_an_assumed_frame_layout_is_told(folded, given, assumed) -> None:
    weights = official_dict(net(filter_size=3))
    for name in ("conv_last.weight", "conv_first_v.weight", "cell_list.0.conv_x.0.weight"):
        axis = 0 if name == "conv_last.weight" else 1
        weights[name] = weights[name].narrow(axis, 0, folded)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_checkpoint(weights, **given)
    told = (
        [f"load_checkpoint: assumed {assumed}, which no tensor shows; pass those that differ"]
        if assumed
        else []
    )
    assert [str(warning.message) for warning in said] == told


def test_what_openstls_mim_carries_over_is_told() -> None:
    """Its weights were trained with a state that leaks from sequence to sequence, which is not the default here."""
    with pytest.warns(UserWarning, match="assumed compat=None, which no tensor shows"):
        assert load_checkpoint(openstl_dict("mim"), patch_size=4).cells[1].compat is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            load_checkpoint(openstl_dict("mim"), patch_size=4, compat="openstl").cells[1].compat == "openstl"
        )


@pytest.mark.parametrize("index", ["01", "9" * 5000, "²"])
def test_a_layer_has_one_index(index: str) -> None:
    """Another spelling of a layer does not take the place of its weights."""
    name = f"cell_list.{index}.conv_x.0.weight"
    with pytest.raises(ValueError, match=f"does not fit: unexpected cell_list.{index[:2]}"):
        load_checkpoint(edited(**{name: torch.ones(56, 8, 3, 3)}), patch_size=4)


def test_one_parameter_under_two_names_is_refused() -> None:
    twice = edited(**{"interfaces.0.encoder.weight": torch.ones(2, 8, 3, 3)})
    with pytest.raises(ValueError, match=r"^interfaces\.0\.encoder\.weight and enc_list\.0\.weight are one"):
        load_checkpoint(twice, patch_size=4)


FOREIGN = {
    "PredRNN++": ("gradient_highway.z_concat.0.weight", "cell_list.0.conv_c2m.0.weight"),
    "MAU": ("cell_list.0.conv_t_next.0.weight", "srcnn.0.weight"),
    "PhyDNet": ("phycell.cell_list.0.F.conv1.weight", "encoder.convcell.cell_list.0.conv.weight"),
    "SimVP": ("enc.enc.0.conv.conv.weight", "dec.readout.weight"),
    "action-conditioned PredRNN": ("cell_list.0.conv_a.0.weight", "cell_list.0.conv_m.0.weight"),
    "Conv-TT-LSTM": ("layers_.0.weight", "layers.0.weight"),
}


@pytest.mark.parametrize("program", FOREIGN)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_program_that_is_not_known_is_named_with_those_that_are(program: str, prefix: str) -> None:
    weights = {f"{prefix}{name}": torch.ones(4, 4, 1, 1) for name in FOREIGN[program]}
    with pytest.raises(ValueError, match=re.escape(f"which belongs to {program}")) as error:
        load_checkpoint({"state_dict": weights})
    said = str(error.value)
    assert any(name in said for name in FOREIGN[program])
    assert said.endswith("known are MotionRNN, PredRNN, ConvLSTM (thuml, OpenSTL), MIM, E3D-LSTM (OpenSTL) and this "
                         "package's own")  # fmt: skip


def test_names_of_no_program_are_told() -> None:
    with pytest.raises(
        ValueError,
        match=r"^state dict has conv1\.weight, which belongs to no known program; known are Motion",
    ):
        load_checkpoint({"conv1.weight": torch.ones(4, 4, 1, 1), "fc.bias": torch.ones(3)})


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (edited(["conv_first_v.weight"]), {}, "does not fit: missing conv_first_v.weight$"),
        (edited(["cell_list.2.conv_h.0.weight"]), {}, "missing cell_list.2.conv_h.0.weight$"),
        (edited(["cell_list.1.conv_x.0.weight"]), {}, "missing cell_list.1.conv_x.0.weight$"),
        (edited(["conv_last.weight"]), {}, "missing conv_last.weight$"),
        (
            edited(["motion_list.1.reset.bias"], extra=torch.ones(2)),
            {},
            "missing motion_list.1.reset.bias; unexpected extra$",
        ),
        (
            edited(**{"dec_list.0.bias": torch.ones(3)}),
            {},
            r"dec_list.0.bias has shape \(3,\), expected \(8,\)$",
        ),
        ({}, {}, "holds no weights"),
        ({"epoch": 3}, {}, "entries that are not tensors: epoch"),
        (
            edited(),
            {"patch_size": 5},
            "frames fold to 48 channels in this checkpoint, which in_channels=None and",
        ),
    ],
)
def test_wrong_tensors_are_named(weights, options, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(weights, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 10, 1000, 0.5, -1])
@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_files_give_one_line(kept: float, new_format: bool, tmp_path) -> None:
    path = tmp_path / "model.ckpt-80000"
    torch.save({"net_param": official_dict(net())}, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="model.ckpt-80000' is truncated or no file of weights") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_code_in_a_file_is_not_run(tmp_path) -> None:
    torch.save({"net_param": SimpleNamespace(a=1)}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="holds more than weights"):
        load_checkpoint(tmp_path / "model.ckpt")


def test_dead_parameters_are_left_out_and_named() -> None:
    weights = official_dict(net("convlstm", layers=2, **BASE))
    dead = {
        f"cell_list.{i}.{c}.weight": torch.ones(8, 16, 1, 1)
        for i in range(2)
        for c in ("conv_o.0", "conv_last")
    }
    with pytest.warns(
        UserWarning, match="left out 4 tensors that prediction never reads: cell_list.0.conv_o.0"
    ):
        load_checkpoint(weights | dead)
    with pytest.warns(UserWarning, match="left out 1 tensors that prediction never reads: adapter.weight"):
        load_checkpoint(official_dict(net(**BASE)) | {"adapter.weight": torch.ones(8, 8, 1, 1)})


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(
    ("predictor", "layers", "own"),
    [("mim", 3, {}), ("mim", 1, {}), ("e3d_lstm", 2, {}), ("e3d_lstm", 1, {"cell_options": {"window": 3}})],
)
def test_openstls_mim_and_e3d_lstm(predictor, layers, own, layer_norm) -> None:
    """Each gate comes to its place, and what no tensor shows is settled."""
    weights = openstl_dict(predictor, layers, layer_norm=layer_norm, **own)
    model = load_checkpoint(weights)
    assert (model.predictor, model.image_size) == (
        predictor,
        None if predictor == "mim" and layers == 1 and not layer_norm else (8, 12),
    )
    first = model.cells[0]
    assert (len(model.cells), first.layer_norm) == (layers, layer_norm)
    assert first.compat == ("openstl" if predictor == "e3d_lstm" else None)
    if predictor == "e3d_lstm":
        i, _, r, _, i_m, _, f_m = weights["cell_list.0.conv_x.0.conv3d.weight"].chunk(7)
        ours = first.conv_x[0].weight.chunk(7)
        assert all(torch.equal(ours[n], gate) for n, gate in ((0, i_m), (1, f_m), (3, i), (4, r)))
        assert first.depth == own.get("cell_options", {"window": 2})["window"]
        assert load_checkpoint(weights, compat=None).cells[0].compat is None
    elif layers > 1:
        _, g, f, _ = weights["stlstm_layer_diff.1.conv_x_concat.0.weight"].chunk(4)
        ours = model.cells[2].nonstationary.conv_x[0].weight.chunk(4)
        assert torch.equal(ours[1], f) and torch.equal(ours[2], g)
    assert model(torch.rand(2, 3, 3, 8, 12), 2).shape == (2, 2, 3, 8, 12)


@pytest.mark.parametrize("predictor", ["mim", "e3d_lstm"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_missing_or_misshapen_tensor_is_named(predictor: str, layer_norm: bool) -> None:
    """Layer norm is tried with its own tensors alone; the others are tried without."""
    weights = openstl_dict(predictor, 2, layer_norm=layer_norm)
    tried = weights.keys() - (openstl_dict(predictor, 2) if layer_norm else {}).keys()
    for name in sorted(tried):
        tensor = weights[name]
        with pytest.raises(ValueError, match=f"missing {re.escape(name)}"):
            load_checkpoint({key: t for key, t in weights.items() if key != name})
        wrong = [tensor[:5].clone(), tensor.flatten(), tensor.new_ones(())]
        for other in (t for t in wrong if t.shape != tensor.shape):
            with pytest.raises(ValueError) as error:
                load_checkpoint(weights | {name: other})
            assert "\n" not in str(error.value)
            told = "fold to" if name == "conv_last.weight" and other.shape[:1] == (5,) else "shape"
            assert told in str(error.value), name


def test_the_cell_of_nvlabs() -> None:
    weights = conv_tt_dict()
    cell = load_conv_tt_lstm_cell(weights)
    assert (cell.in_channels, cell.hidden_channels, cell.filter_size) == (3, 4, 5)
    assert (cell.order, cell.steps) == (2, 3) and cell.factors[0].weight.shape == (3, 8, 5, 5)
    _, _, o, g = weights["layers.1.weight"].chunk(4)
    assert torch.equal(cell.conv_x.weight[8:], torch.cat([g, o])[:, :3])
    assert torch.equal(cell.conv_v.weight[8:], torch.cat([g, o])[:, 3:])
    for name, tensor in weights.items():
        with pytest.raises(ValueError, match="no cell of Conv-TT-LSTM: (missing|unexpected) "):
            load_conv_tt_lstm_cell({key: t for key, t in weights.items() if key != name})
        for other in (tensor[:2].clone(), tensor.new_ones(7), tensor.new_ones(())):
            with pytest.raises(ValueError, match="layers.* has shape"):
                load_conv_tt_lstm_cell(weights | {name: other})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({1: torch.ones(2)}, "entries that are not tensors: 1"),
        (
            {"state_dict": {"net_param": {"conv_last.weight": torch.ones(2, dtype=torch.int64)}}},
            "of torch.int64",
        ),
        (edited(**{"conv_last.weight": torch.ones(48, 8, 1, 1).double()}), "of torch.float32, torch.float64"),
    ],
)
def test_what_holds_no_weights_is_told(weights, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(weights)


@needs_checkout
@pytest.mark.parametrize("layer_norm", [0, 1])
def test_the_released_program_from_one_seed(layer_norm: int, tmp_path) -> None:
    """Its net, its random initial states at every call, its loss and gradients, float64 to 1e-10."""
    configs = SimpleNamespace(
        img_height=16,
        img_width=16,
        img_channel=1,
        patch_size=4,
        filter_size=3,
        stride=1,
        layer_norm=layer_norm,
        input_length=3,
        total_length=6,
        batch_size=2,
        device="cpu",
    )
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        official = official_module("core.models.MotionRNN_PredRNN").RNN(3, [8, 8, 8], configs)
        for parameter in official.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        frames, mask = torch.rand(2, 6, 4, 4, 16), torch.rand(2, 2, 4, 4, 16)
        torch.manual_seed(11)
        expected, loss = official(frames, mask)
        loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)

    model = load_checkpoint({"net_param": official.state_dict()}, init_state="xavier")
    save_official(model, tmp_path / "model.ckpt-1")
    official.load_state_dict(torch.load(tmp_path / "model.ckpt-1")["net_param"])  # as the program does
    for name, tensor in model.state_dict().items():
        assert torch.equal(official.state_dict()[official_name(name)], tensor)

    def image(x: torch.Tensor) -> torch.Tensor:
        return unfold_patches(x.movedim(-1, 2), 4)

    # The program draws F and D in its default dtype, here float64 as the features.
    found = model(image(frames), 3, image(mask), generator=torch.Generator().manual_seed(11))
    (found - image(frames)[:, 1:]).square().mean().backward()
    assert relative_error(fold_patches(found, 4).movedim(2, -1), expected.detach()) <= 1e-10
    gradients = {official_name(name): p.grad for name, p in model.named_parameters()}
    for name, parameter in official.named_parameters():
        assert relative_error(gradients[name], parameter.grad) <= 1e-10, name
