"""load_checkpoint: what it reads off the tensors, what it refuses, and the released program itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from golden import relative_error
from official_program import needs_checkout, official_module

from motionrnn_ext.models import MotionRNN, load_checkpoint, official_name
from motionrnn_ext.models.patches import fold_patches, unfold_patches

BASE = {"motion_gru": False, "highway": False}


def net(predictor: str = "predrnn", layers: int = 3, **options) -> MotionRNN:
    torch.manual_seed(0)
    model = MotionRNN(predictor, 3, (8,) * layers, 4, "official", **{"filter_size": 3, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def official_dict(model: MotionRNN) -> dict[str, torch.Tensor]:
    return {official_name(name): t.clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda d: {"net_param": d},
        lambda d: {"state_dict": d, "epoch": 3},
        lambda d: {f"module.{k}": t for k, t in d.items()},
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


def edited(remove=(), **add):
    weights = official_dict(net())
    for name in remove:
        del weights[name]
    return weights | add


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
        ({}, {}, "holds no state dict"),
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
    with pytest.raises(ValueError, match="no file of weights"):
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


@needs_checkout
@pytest.mark.parametrize("layer_norm", [0, 1])
def test_the_released_program_from_one_seed(layer_norm: int) -> None:
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

    def image(x: torch.Tensor) -> torch.Tensor:
        return unfold_patches(x.movedim(-1, 2), 4)

    # The program draws F and D in its default dtype, here float64 as the features.
    found = model(image(frames), 3, image(mask), generator=torch.Generator().manual_seed(11))
    (found - image(frames)[:, 1:]).square().mean().backward()
    assert relative_error(fold_patches(found, 4).movedim(2, -1), expected.detach()) <= 1e-10
    gradients = {official_name(name): p.grad for name, p in model.named_parameters()}
    for name, parameter in official.named_parameters():
        assert relative_error(gradients[name], parameter.grad) <= 1e-10, name
