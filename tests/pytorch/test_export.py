"""torch.export and AOTInductor of the layer and the models: for other sizes, with the results of eager."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_close
from compiling import (
    BY_INDUCTOR,
    NEEDS_CPU,
    OLD_TORCH,
    layer_of,
    model_of,
    on_slowly_on_reference,
    slow,
    tensors,
)
from features import feature
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from under_test import ALL, REFERENCE, TRITON, UnderTest

import motionrnn_ext
from motionrnn_ext import MotionGRU, MotionRNN, ops
from motionrnn_ext.layers import MotionState
from motionrnn_ext.layers.cells import CELLS

# On a GPU, Triton's kernels stand in the graph themselves.
EXPORTED = [t for t in ALL if t is not TRITON or t.is_slow]
B, h, w = Dim("B"), Dim("h"), Dim("w")
# Convolutions of every size: these have no parameters per position.
ANY_SIZE = [p for p, cell in CELLS.items() if not cell.of_layer(1).needs_map_size]
OPS_OF_THE_LAYER = {
    "reference": set(),
    "cpu": {"motion_gates", "offset_warp", "gated_blend"},
    "triton": {"motion_gates", "offset_warp", "gated_blend"},
    "cuda": {"motion_gates", "offset_warp", "gated_blend"},
    "emulated": {"motion_gates", "offset_warp", "gated_blend"},
}


def ops_in(program: torch.export.ExportedProgram) -> set[str]:
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    return {t._opname for t in targets if getattr(t, "namespace", "").startswith("motionrnn_ext")}


@torch.no_grad()
def check(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    for f, e in zip(tensors(found), tensors(expected), strict=True):
        assert_close(f, e, tolerance)


def saved_and_loaded(program: torch.export.ExportedProgram, folder: Path) -> nn.Module:
    torch.export.save(program, folder / "program.pt2")
    return torch.export.load(folder / "program.pt2").module()


# ---- torch.export


@feature("export")
@on_slowly_on_reference(EXPORTED)
def test_motion_gru_of_any_size(on: UnderTest, tmp_path: Path):
    """The program takes the state of a step before; ops stay whole, also where torch takes others apart."""
    layer = layer_of(on.device)

    def inputs(batch: int, height: int, width: int) -> tuple[Tensor, MotionState]:
        hidden = torch.randn(2, batch, 8, height, width, device=on.device)
        return hidden[0], MotionState(*(t.detach() for t in layer(hidden[1])[1]))

    motion = {0: B, 2: h, 3: w}
    shapes = ({0: B, 2: 2 * h, 3: 2 * w}, MotionState(motion, motion))
    with on.chosen():
        program = torch.export.export(layer, inputs(2, 8, 12), dynamic_shapes=shapes)
        assert ops_in(program) == OPS_OF_THE_LAYER[on.name]
        assert ops_in(program.run_decompositions()) == ops_in(program)
        loaded = saved_and_loaded(program, tmp_path)
        for size in ((3, 12, 6), (1, 4, 14), (0, 4, 4)):
            arguments = inputs(*size)
            check(loaded(*arguments), layer(*arguments))


@feature("export")
@on_slowly_on_reference(EXPORTED)
def test_motion_gru_of_any_batch(on: UnderTest):
    """On maps of one size, the batch alone decides how many pixels there are: no number of them may bound it."""
    layer, hidden = layer_of(on.device), torch.randn(3, 8, 4, 6, device=on.device)
    with on.chosen():
        program = torch.export.export(layer, (hidden[:2],), dynamic_shapes={"hidden": {0: B}})
        check(program.module()(hidden), layer(hidden))


@feature("export")
@on_slowly_on_reference(EXPORTED)
@pytest.mark.parametrize(
    "predictor", [p if p == "convlstm" else pytest.param(p, marks=pytest.mark.nightly) for p in CELLS]
)
def test_motion_rnn(predictor: str, on: UnderTest, tmp_path: Path):
    """T and n_input are fixed; H and W are multiples of 2P, where the predictor takes any."""
    if on is REFERENCE and predictor != "convlstm":
        pytest.skip("of the reference, one predictor shows it")
    model = model_of(predictor, on.device).eval()
    size = {3: 4 * h, 4: 4 * w} if predictor in ANY_SIZE else {}
    shapes = {"frames": {0: B, **size}, "n_input": None, "return_motion": None}
    clip = torch.rand(2, 3, 1, 16, 16, device=on.device)
    with on.chosen():
        program = torch.export.export(model, (clip, 1), {"return_motion": True}, dynamic_shapes=shapes)
        loaded = saved_and_loaded(program, tmp_path)
        for batch, height, width in ((3, 8, 20), (1, 16, 12)):
            clip = torch.rand(batch, 3, 1, *((height, width) if size else (16, 16)), device=on.device)
            # An exported program calls modules, where a rollout joins convolutions; measured 2e-7.
            check(loaded(clip, 1, return_motion=True), model(clip, 1, return_motion=True), 1e-5)


class Step(nn.Module):
    """`MotionRNN.step` as a module, which torch.export takes."""

    def __init__(self, model: MotionRNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, state: Any) -> Any:
        return self.model.step(frame, state)


@NEEDS_CPU
def test_a_step_exported_from_the_first_state_reads_every_part_of_a_later_one():
    """torch.export takes a tensor that is given twice for one input, and says nothing."""
    model = model_of("predrnn").eval()
    frame, other = torch.rand(2, 1, 1, 16, 16)
    with torch.no_grad():
        step = torch.export.export(Step(model), (frame, model.initial_state(1, 16, 16))).module()
        _, state = model.step(other, model.step(frame)[1])
        check(step(other, state), model.step(other, state))
    for predictor in CELLS:
        parts = list(tensors(model_of(predictor).initial_state(1, 16, 16)))
        assert len({t.untyped_storage().data_ptr() for t in parts}) == len(parts), predictor
    layer, hidden = layer_of(), torch.rand(1, 8, 8, 8)
    for start in (layer.initial_state(hidden), layer.cell.initial_state(layer.encoder(hidden))):
        assert start.offset is not start.trend


@NEEDS_CPU
@feature("export", on=["cpu"])
@pytest.mark.parametrize(
    "predictor", [p if p in ("convlstm", "e3d_lstm") else pytest.param(p, marks=slow) for p in CELLS]
)
def test_a_stream_of_any_length(predictor: str, tmp_path: Path):
    """A step whose state is its argument and its result. E3D-LSTM's past grows."""
    if predictor == "e3d_lstm" and OLD_TORCH:
        pytest.skip(f"torch {torch.__version__} does not load an exported size that grows")
    model = model_of(predictor).eval()
    clip = torch.rand(3, 6, 1, 16, 16)

    def dynamic(path: Any, leaf: Any) -> dict[int, Any] | None:
        grows = {1: Dim.DYNAMIC} if path[-1] == torch.utils._pytree.GetAttrKey("history") else {}
        return {0: Dim.DYNAMIC, **grows} if isinstance(leaf, Tensor) else None

    with torch.no_grad(), motionrnn_ext.backend("cpu"):
        example = None
        for frame in clip[:2, :2].unbind(1):
            _, example = model.step(frame, example)
        shapes = torch.utils._pytree.tree_map_with_path(dynamic, example)
        step = torch.export.export(
            Step(model), (clip[:2, 0], example), dynamic_shapes=({0: Dim.DYNAMIC}, shapes)
        )
        step = saved_and_loaded(step, tmp_path)
        states = [model.step(clip[:, 1], model.step(clip[:, 0])[1])[1]] * 2
        for frame in clip[:, 2:].unbind(1):
            found, expected = step(frame, states[0]), model.step(frame, states[1])
            check(found, expected)
            states = [found[1], expected[1]]


@NEEDS_CPU
@slow
@feature("export", on=["cpu"])
def test_a_program_loads_where_the_package_is_imported(tmp_path: Path):
    with motionrnn_ext.backend("cpu"):
        program = torch.export.export(layer_of(), (torch.randn(2, 8, 4, 6),), dynamic_shapes=({0: B},))
    path = tmp_path / "layer.pt2"
    torch.export.save(program, path)
    for imports, loads in (("torch, motionrnn_ext", True), ("torch", False)):
        script = f"import {imports}; torch.export.load({str(path)!r}).module()(torch.randn(3, 8, 4, 6))"
        assert (subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0) is loads


@NEEDS_CPU
def test_what_an_exported_program_does_not_take():
    """Another T, odd maps, maps of one pixel: torch names the guard."""
    model = model_of("convlstm").eval()
    shapes = {"frames": {0: B, 3: 4 * h, 4: 4 * w}, "n_input": None}
    with motionrnn_ext.backend("cpu"):
        program = torch.export.export(model, (torch.rand(2, 2, 1, 16, 12), 1), dynamic_shapes=shapes).module()
        for shape in ((2, 3, 1, 16, 12), (2, 2, 1, 16, 14), (2, 2, 1, 16, 4)):
            with pytest.raises(
                (AssertionError, RuntimeError), match=r"Guard failed: .*frames\.size|Expected input"
            ):
                program(torch.rand(shape), 1)


# ---- AOTInductor


def packed(module: nn.Module, arguments: tuple[Any, ...], shapes: Any, folder: Path) -> Any:
    program = torch.export.export(module, arguments, dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    return torch._inductor.aoti_load_package(path)


@NEEDS_CPU
@slow
@feature("aoti", on=["cpu"])
@torch.no_grad()
def test_motion_gru_by_aotinductor(tmp_path: Path):
    layer = layer_of()
    with motionrnn_ext.backend("cpu"):
        shapes = ({0: B, 2: 2 * h, 3: 2 * w},)
        compiled = packed(layer, (torch.randn(2, 8, 8, 12),), shapes, tmp_path)
    for size in ((5, 8, 12), (3, 6, 10)):
        hidden = torch.randn(size[0], 8, *size[1:])
        check(compiled(hidden), layer(hidden), BY_INDUCTOR)


@NEEDS_CPU
@pytest.mark.nightly
@feature("aoti", on=["cpu"])
@torch.no_grad()
def test_motion_rnn_by_aotinductor(tmp_path: Path):
    model = model_of("predrnn").eval()
    with motionrnn_ext.backend("cpu"):
        compiled = packed(model, (torch.rand(2, 3, 1, 16, 16), 1), ({0: B}, None), tmp_path)
    clip = torch.rand(5, 3, 1, 16, 16)
    check(compiled(clip, 1), model(clip, 1), BY_INDUCTOR)


pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")


# ---- TorchScript and fx: what docs/pytorch.md says of them


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(8, 8, 1), layer_of()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x))[0]


class FromTwo(nn.Module):
    def __init__(self, model: MotionRNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames, 2)


def blended(gate: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.motionrnn_ext.gated_blend(gate, a, b)


@NEEDS_CPU
@pytest.mark.filterwarnings("ignore")
def test_torchscript_takes_ops_by_script_and_layers_and_models_by_trace():
    x, other = torch.rand(2, 2, 8, 8, 8)
    assert torch.jit.script(blended)(x, x, other).equal(ops.gated_blend(x, x, other))
    model = MotionRNN("convlstm", 1, (8, 8), 2)
    for module in (layer_of(), model):
        with pytest.raises((RuntimeError, ValueError, torch.jit.frontend.FrontendError)):
            torch.jit.script(module)
    assert torch.jit.trace(layer_of(), (x,))(other)[0].equal(layer_of()(other)[0])
    frames = torch.rand(1, 4, 1, 8, 8)
    check(torch.jit.trace(FromTwo(model), (frames / 2,))(frames), model(frames, 2), 1e-5)


def test_fx_keeps_a_layer_as_a_leaf():
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, MotionGRU) or super().is_leaf_module(module, name)

    net, x = Around(), torch.rand(1, 8, 8, 8)
    with pytest.raises(TypeError, match="hidden is a Proxy; it should be a torch.Tensor"):
        torch.fx.symbolic_trace(net)
    with pytest.raises(TypeError, match="frames is a Proxy; it should be a torch.Tensor"):
        torch.fx.symbolic_trace(MotionRNN("convlstm", 1, (8, 8), 2), {"n_input": 2})
    traced = torch.fx.GraphModule(net, Leaves().trace(net))
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["first", "layer"]
    assert traced(x).equal(net(x))
    assert make_fx(net)(x)(2 * x).equal(net(2 * x))
