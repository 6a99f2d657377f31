"""Exports to ONNX, with the plain operations of the formulas and with DeformConv: does onnxruntime compute the same?"""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_close
from compiling import NEEDS_CPU, layer_of, model_of, slow, tensors
from features import feature
from torch import Tensor, nn
from torch.export import Dim

import motionrnn_ext
from motionrnn_ext import MotionGRU, MotionGRULayer, MotionRNN, ops
from motionrnn_ext.layers import MotionState
from motionrnn_ext.onnx import export_onnx, translation_table

pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# ONNX model has different number of inputs:UserWarning"),
]
BY_ONNXRUNTIME = 2e-6  # relative to the largest value; measured: up to 5e-7
B, h, w = Dim("B"), Dim("h"), Dim("w")
NAN, INF = math.nan, math.inf
has_node = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 25)
NEEDS_NODE = pytest.mark.skipif(
    not has_node, reason=f"onnxruntime {onnxruntime.__version__} has no DeformConv"
)
# Without the table, and with it.
TABLES = [pytest.param(False, marks=slow), pytest.param(True, marks=NEEDS_NODE)]
WARP = ["DeformConv", "Gather", "IsNaN", "Or", "Sigmoid", "Split", "Where", "Where"]


def run(path: Path, *inputs: Tensor) -> list[Tensor]:
    """Return what onnxruntime computes from a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    given = dict(zip(names, (t.detach().numpy() for t in inputs), strict=True))
    return [torch.from_numpy(out) for out in session.run(None, given)]


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def exported(
    module: nn.Module, arguments: tuple[Any, ...], shapes: Any, folder: Path, table: bool = True
) -> Path:
    path = folder / "model.onnx"
    options = {"custom_translation_table": translation_table()} if table else {}
    torch.onnx.export(
        module.eval(), arguments, path, dynamo=True, dynamic_shapes=shapes, verbose=False, **options
    )
    return path


def check(found: Any, expected: Any) -> None:
    for f, e in zip(tensors(found), tensors(expected), strict=True):
        assert_close(f, e.detach(), BY_ONNXRUNTIME)


# ---- The warp


class Warp(nn.Module):
    def forward(self, x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> Tensor:
        return ops.offset_warp(x, offset, mask_logits, weight)


def warp_inputs(
    k: int, batch: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Inputs whose offsets are fractions, whole numbers, and places on the border, outside and far away."""
    torch.manual_seed(k)
    x, mask = torch.randn(batch, 4, height, width), torch.randn(batch, k * k, height, width)
    offset = 2 * torch.randn(batch, 2 * k * k, height, width)
    special = torch.tensor([0.0, -1.0, 1.0, -1e-9, 3.0, -4.0, 1e4, -1e4, 1e7, -1e30, INF, -INF])
    offset.view(-1)[::5] = special.repeat(offset.numel())[: len(offset.view(-1)[::5])]
    weight = torch.randn(3, 4, k, k)
    return [x.to(dtype), offset, mask.to(dtype), weight.to(dtype)]


@NEEDS_NODE
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_warp_is_one_deform_conv(k: int, tmp_path: Path):
    """The warp is equal for any neighbourhood and size, on the border and beyond it, and for no images."""
    size = {0: B, 2: h, 3: w}
    path = exported(Warp(), tuple(warp_inputs(k, 2, 5, 7)), (size, size, size, None), tmp_path)
    assert sorted(nodes(path).elements()) == WARP
    for sizes in ((2, 5, 7), (1, 9, 4), (3, 1, 1), (1, 2, 33), (0, 4, 4)):
        inputs = warp_inputs(k, *sizes)
        check(run(path, *inputs), [ops.offset_warp(*inputs)])


@feature("onnx", on=["reference"])
@pytest.mark.parametrize("table", [False, pytest.param(True, marks=NEEDS_NODE)])
def test_what_is_not_finite(table: bool, tmp_path: Path):
    """Far offsets and inf sample 0, nan gives nan, as everywhere; a pixel that is nan or inf spreads to its cell."""
    inputs = warp_inputs(3, 1, 5, 6)
    path = exported(Warp(), tuple(inputs), None, tmp_path, table)
    _, offset, mask, _ = inputs
    offset[0, 3, 2, 4] = offset[0, 17, 0, 0] = mask[0, 4, 4, 4] = NAN
    mask[0, 2, 1, 1], mask[0, 2, 1, 3] = INF, -INF
    expected = ops.offset_warp(*inputs)
    assert expected.isnan().sum() == 3 * 3
    check(run(path, *inputs), [expected])
    for value in (NAN, INF, -INF):
        x, offset, mask, weight = warp_inputs(3, 1, 5, 6)
        x[0, 1, 2, 3], offset = value, torch.randn_like(offset)
        expected = ops.offset_warp(x, offset, mask, weight)
        assert 0 < (~expected.isfinite()).sum() < expected.numel()
        check(run(path, x, offset, mask, weight), [expected])


@NEEDS_NODE
def test_where_the_node_leaves_out_a_pixel_that_is_not_finite(tmp_path: Path):
    """A tap one pixel outside of the map, exactly: ours weighs the pixel on the border by 0, and 0 * nan is nan."""
    x, mask, weight = torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    offset = torch.zeros(1, 2, 3, 3)
    path = exported(Warp(), (x, offset, mask, weight), None, tmp_path)
    x[0, 0, 0, 1], offset[0, 0, 0] = NAN, -1.0
    assert ops.offset_warp(x, offset, mask, weight)[0, 0, 0].isnan().tolist() == [True, True, False]
    assert run(path, x, offset, mask, weight)[0][0, 0, 0].tolist() == [0, 0, 0]


@NEEDS_NODE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path):
    """The warp computes in float32 at least. numpy has no bfloat16, so that the file begins and ends with casts."""

    class Cast(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            x, offset, mask, weight = (t.to(dtype) for t in inputs)
            offset = offset if dtype == torch.float64 else offset.float()
            return ops.offset_warp(x, offset, mask, weight).float()

    inputs = warp_inputs(3, 2, 4, 5)
    inputs = [t.to(dtype).float() for t in inputs]
    inputs[1] = inputs[1].nan_to_num(posinf=50, neginf=-50)
    path = exported(Cast(), tuple(inputs), None, tmp_path)
    # Sums are rounded to `dtype` last; a unit in the last place apart where they lie between two numbers.
    assert_close(run(path, *inputs)[0], Cast()(*inputs), max(BY_ONNXRUNTIME, torch.finfo(dtype).eps))


@NEEDS_NODE
@NEEDS_CPU
def test_a_module_that_calls_the_kernels_op_by_name(tmp_path: Path):
    class ByName(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return torch.ops.motionrnn_ext.offset_warp(*inputs)

    inputs = warp_inputs(3, 1, 4, 5)
    path = exported(ByName(), tuple(inputs), None, tmp_path)
    check(run(path, *inputs), [ops.offset_warp(*inputs)])


# ---- Layers and models by torch.onnx.export


@feature("onnx", on=["reference"])
@pytest.mark.parametrize("table", TABLES)
def test_motion_gru(table: bool, tmp_path: Path):
    layer = layer_of()
    hidden = torch.randn(2, 8, 8, 12)
    path = exported(layer, (hidden,), ({0: B, 2: 2 * h, 3: 2 * w},), tmp_path, table)
    assert (nodes(path)["DeformConv"], nodes(path)["GatherElements"]) == ((1, 0) if table else (0, 4))
    assert table is (nodes(path).total() < 70)
    for size in ((3, 12, 6), (1, 4, 8)):
        hidden = torch.randn(size[0], 8, *size[1:])
        check(run(path, hidden), layer(hidden))


@NEEDS_CPU
@feature("onnx", on=["cpu"], refused=True)
def test_a_kernel_by_name_is_unknown_to_onnx():
    message = "No ONNX function found for .*motionrnn_ext.motion_gates"
    with motionrnn_ext.backend("cpu"), pytest.raises(RuntimeError, match=message):
        torch.onnx.export(layer_of(), (torch.randn(2, 8, 8, 12),), dynamo=True, verbose=False)


@feature("onnx", on=["reference"])
@slow
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "predictor, size",
    [("convlstm", {3: 4 * h, 4: 4 * w}), pytest.param("predrnn", {}, marks=pytest.mark.nightly)],
)
def test_motion_rnn(predictor: str, size: dict[int, Any], table: bool, tmp_path: Path):
    model = model_of(predictor).eval()
    clip = torch.rand(2, 3, 1, 16, 16)
    path = exported(model, (clip, 1), ({0: B, **size}, None), tmp_path, table)
    for batch, height, width in ((3, 8, 12), (1, 16, 20)):
        clip = torch.rand(batch, 3, 1, *((height, width) if size else (16, 16)))
        check(run(path, clip), [model(clip, 1)])


def test_an_opset_without_the_node_is_refused():
    with pytest.raises(RuntimeError) as raised:
        torch.onnx.export(
            layer_of(),
            (torch.randn(2, 8, 8, 12),),
            dynamo=True,
            verbose=False,
            opset_version=18,
            custom_translation_table=translation_table(),
        )
    assert "opset_version is 18; it should be 19 or more, which has DeformConv" in str(raised.value)


# ---- Files by export_onnx


def moving(model: MotionRNN) -> MotionRNN:
    """The model with motion of pixels, so that samples leave the map."""
    for name, parameter in model.named_parameters():
        if ".cell." in name:
            parameter.data.add_(0.6 * torch.randn_like(parameter))
    return model.eval()


@NEEDS_NODE
@pytest.mark.parametrize("variant", ["paper", pytest.param("official", marks=slow)])
def test_a_file_of_a_model_predicts_what_the_model_predicts(variant: str, tmp_path: Path):
    """Any batch and frame size, from an example of one small clip; the bound on the motion is reached."""
    torch.manual_seed(0)
    model = moving(MotionRNN("convlstm", 1, (8, 8), 2, variant, filter_size=3, max_offset=0.75))
    path = tmp_path / "model.onnx"
    export_onnx(model, torch.rand(1, 1, 1, 4, 4), path, n_future=2, any_size=True)
    assert nodes(path)["DeformConv"] == 2
    assert onnx.load(path).opset_import[0].version == 20
    for batch, height, width in ((3, 12, 8), (1, 8, 20)):
        frames = torch.rand(batch, 1, 1, height, width)
        motion = model(frames.repeat(1, 3, 1, 1, 1), 1, return_motion=True)[1][0].offset
        assert motion.abs().max() == 0.75
        check(run(path, frames), [model.predict(frames, 2)])


@slow
def test_a_bare_predictor_takes_multiples_of_its_patch_size(tmp_path: Path):
    torch.manual_seed(0)
    model = MotionRNN("convlstm", 1, (8,), 2, filter_size=3, motion_gru=False, highway=False).eval()
    export_onnx(model, torch.rand(1, 1, 1, 6, 6), tmp_path / "model.onnx", n_future=1, any_size=True)
    frames = torch.rand(3, 1, 1, 10, 6)
    check(run(tmp_path / "model.onnx", frames), [model.predict(frames, 1)])


@NEEDS_NODE
@slow
@pytest.mark.parametrize(
    "predictor",
    ["e3d_lstm", *(pytest.param(p, marks=pytest.mark.nightly) for p in ("predrnn", "mim", "conv_tt_lstm"))],
)
def test_a_file_of_every_predictor_is_read_without_torch(predictor: str, tmp_path: Path):
    model, frames = moving(model_of(predictor)), torch.rand(3, 3, 1, 16, 16)
    export_onnx(model, frames[:1], tmp_path / "model.onnx", n_future=2)
    frames.numpy().tofile(tmp_path / "frames")
    program = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
frames = numpy.fromfile("frames", numpy.float32).reshape(3, 3, 1, 16, 16)
session.run(["prediction"], {"frames": frames})[0].tofile("prediction")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    found = torch.from_file(str(tmp_path / "prediction"), size=3 * 2 * 256).view(3, 2, 1, 16, 16)
    check([found], [model.predict(frames, 2)])


@NEEDS_NODE
@pytest.mark.parametrize(
    "layer, shape",
    [
        (MotionGRU(8), (2, 8, 6, 10)),
        pytest.param(MotionGRU(8, kernel_size=5, depth=True), (2, 8, 3, 6, 10), marks=slow),
        pytest.param(MotionGRULayer(8, gate_side="decoded", max_offset=None), (2, 3, 8, 6, 10), marks=slow),
    ],
)
def test_a_file_of_a_layer_takes_and_returns_its_motion(layer: MotionGRU, shape: Any, tmp_path: Path):
    path = tmp_path / "layer.onnx"
    export_onnx(layer.eval(), torch.zeros(1, *shape[1:]), path, any_size=True)
    _, state = layer(2 * torch.randn(shape))
    hidden = torch.randn(shape)
    for motion in (state, MotionState(*(10 * t for t in state)), layer.initial_state(hidden)):
        check(run(path, hidden, *motion), layer(hidden, motion))


def test_what_export_onnx_does_not_take(tmp_path: Path):
    """An older file stays as it is."""
    path, frames = tmp_path / "model.onnx", torch.rand(1, 2, 1, 16, 16)
    path.write_text("older")
    model = model_of("convlstm")

    def refused(error: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=message):
            export_onnx(*arguments, **options)

    refused(
        ValueError,
        "opset is 18; it should be a whole number of at least 19",
        model,
        frames,
        path,
        2,
        opset=18,
    )
    refused(TypeError, "n_future is missing; it should be the number of frames", model, frames, path)
    refused(ValueError, "n_future is 0; both should be at least 1", model, frames, path, 0)
    refused(ValueError, r"frames has shape \(1, 2, 1, 16\)", model, frames[..., 0], path, 2)
    refused(ValueError, "both should be divisible by 4", model, frames[..., :10], path, 2)
    refused(TypeError, "n_future is 2; it should be left out for a MotionGRU", MotionGRU(8), frames, path, 2)
    refused(ValueError, "hidden has shape", MotionGRU(8), frames, path)
    refused(
        TypeError,
        "model is a Conv2d; it should be a MotionRNN, MotionGRU or",
        nn.Conv2d(1, 1, 1),
        frames,
        path,
    )
    sized = model_of("convlstm", layer_norm=True)
    refused(ValueError, "parameters for frames of 16x16", sized, frames, path, 2, any_size=True)
    random = model_of("convlstm", init_state="xavier")
    refused(ValueError, "init_state is 'xavier'; it should be 'zeros'", random, frames, path, 2)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_without_onnxscript_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for call in (
        translation_table,
        lambda: export_onnx(MotionGRU(8), torch.rand(1, 8, 4, 4), tmp_path / "a"),
    ):
        with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript"):
            call()
