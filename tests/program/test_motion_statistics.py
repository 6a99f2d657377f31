"""Are the numbers of `motionrnn visualize` those of the model's states, its mask and its gates, at every step?"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from case import generator
from torch import Tensor, nn

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from trainings import TINY

from motionrnn_ext import MotionRNN, cli
from motionrnn_ext.evaluation.clips import held_out
from motionrnn_ext.evaluation.motion_statistics import motion_statistics
from motionrnn_ext.files import read_json
from motionrnn_ext.models.off_map import share_off_map
from motionrnn_ext.training.runs import load_run
from motionrnn_ext.training.train import train

GIVEN, FUTURE = 3, 2
STEPS = GIVEN + FUTURE - 1
pytestmark = pytest.mark.filterwarnings("ignore:the MotionGRU after layer")


def rnn(predictor: str = "convlstm", variant: str = "paper", hidden: int = 4, **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    model = MotionRNN(predictor, 1, (hidden,) * 3, 2, variant, filter_size=3, image_size=(8, 8), **options)
    with torch.no_grad():  # gates that do something
        for gru in model.interfaces:
            for gate in (gru.cell.update, gru.cell.reset, gru.cell.output, gru.cell.warp.warp_gate):
                nn.init.normal_(gate.weight, std=0.3)
                nn.init.normal_(gate.bias)
    return model


def clips(n: int = 3) -> Tensor:
    return torch.rand(n, GIVEN, 1, 8, 8, generator=generator())


@torch.no_grad()
def states(model: MotionRNN, given: Tensor) -> list[Any]:
    """Return the states before the first step and after every one."""
    found, prediction = [model.initial_state(len(given), 8, 8)], given[:, 0]
    for t in range(STEPS):
        prediction, state = model.step(given[:, t] if t < GIVEN else prediction, found[-1])
        found.append(state)
    return found


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_motion_is_that_of_the_states(variant: str, batch_size: int) -> None:
    """With batches of any size, the last of which may be smaller."""
    model = rnn(variant=variant)
    found = motion_statistics(model, clips(), GIVEN, FUTURE, batch_size=batch_size)
    assert (found["clips"], found["n_input"], found["n_output"]) == (3, GIVEN, FUTURE)
    after = states(model, clips())[1:]
    assert list(found["motion_grus"]) == ["MotionGRU 1", "MotionGRU 2"]
    for level, numbers in enumerate(found["motion_grus"].values()):
        motion = [state.motion[level] for state in after]
        expected = {
            "offset_rms": [rms(f) for f, _ in motion],
            "trend_rms": [rms(d) for _, d in motion],
            "transient_rms": [rms(f - d) for f, d in motion],  # F' + D' = F where there is no bound near
            "off_map": [share_off_map(f).item() for f, _ in motion],
            "at_bound": [0.0] * STEPS,
        }
        for name, values in expected.items():
            assert numbers[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    assert found["motion_grus"]["MotionGRU 1"]["off_map"][-1] > 0.2


def test_a_bound_and_a_gated_trend() -> None:
    """F' is what it is before the bound and the trend's weight."""
    bounded = motion_statistics(rnn(max_offset=0.3), clips(), GIVEN, FUTURE)["motion_grus"]["MotionGRU 1"]
    shares = [
        (s.motion[0].offset.abs() == 0.3).double().mean().item() for s in states(rnn(max_offset=0.3), clips())
    ]
    assert bounded["at_bound"] == pytest.approx(shares[1:], rel=1e-5) and bounded["at_bound"][-1] > 0.1
    gated, paper = (
        motion_statistics(rnn(trend_gate=c), clips(), GIVEN, FUTURE)["motion_grus"]["MotionGRU 1"]
        for c in (0.5, None)
    )
    # From motion at rest both forms begin alike.
    assert (
        gated["transient_rms"][0] == pytest.approx(paper["transient_rms"][0]) and gated["trend_rms"][0] == 0
    )
    assert gated["offset_rms"][0] == pytest.approx(gated["transient_rms"][0])
    assert gated["offset_rms"][-1] < paper["offset_rms"][-1]


def test_a_known_mask_and_known_gates() -> None:
    model = rnn()
    for gru, (taps, gate, update) in zip(
        model.interfaces, (((0.0,) * 9, 1.5, 0.4), ((9.0, *[-60.0] * 8), -2.0, -1.0))
    ):
        for part, bias in ((gru.cell.warp.warp_gate, taps), (gru.gate, gate), (gru.cell.update, update)):
            nn.init.zeros_(part.weight)
            part.bias.data.copy_(torch.tensor(bias))
    first, second = motion_statistics(model, clips(), GIVEN, FUTURE)["motion_grus"].values()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = {"mask": 0.5, "mask_entropy": 1.0, "hidden_weight": sigmoid(1.5), "update_gate": sigmoid(0.4)}
    for name, value in expected.items():
        assert first[name] == pytest.approx([value] * STEPS, rel=1e-5), name
    expected = {"mask": sigmoid(9) / 9, "mask_entropy": 0.0, "hidden_weight": sigmoid(-2.0)}
    for name, value in expected.items():
        assert second[name] == pytest.approx([value] * STEPS, rel=1e-4, abs=1e-6), name
    model.interfaces[0].gate_side = "decoded"
    other = motion_statistics(model, clips(), GIVEN, FUTURE)["motion_grus"]["MotionGRU 1"]
    assert other["hidden_weight"] == pytest.approx([1 - sigmoid(1.5)] * STEPS, rel=1e-5)


def test_the_highways_part_of_a_layer() -> None:
    """Of H = o.tanh(C) + (1 - o).Y, with o solved for from states in float64; layer 1 has none in the paper's form."""
    model = rnn().double()
    given = clips().double()
    found = motion_statistics(model, given, GIVEN, FUTURE)["layers"]
    assert list(found) == ["layer 2", "layer 3"]
    for level in (1, 2):
        for t, state in enumerate(states(model, given)[1:]):
            hidden, content = state.layers[level].hidden, state.layers[level].cell.tanh()
            below = state.layers[level - 1].hidden
            highway = (1 - (hidden - below) / (content - below)) * below
            assert found[f"layer {level + 1}"]["highway_rms"][t] == pytest.approx(rms(highway), rel=1e-5)
            assert found[f"layer {level + 1}"]["hidden_rms"][t] == pytest.approx(rms(hidden), rel=1e-9)
    assert list(motion_statistics(rnn(variant="official"), clips(), GIVEN, FUTURE)["layers"]) == [
        "layer 1",
        "layer 2",
        "layer 3",
    ]
    assert motion_statistics(rnn(highway=False), clips(), GIVEN, FUTURE)["layers"] == {}


@pytest.mark.parametrize("predictor", ["predrnn", "mim", "e3d_lstm", "conv_tt_lstm"])
def test_every_predictor_is_read_and_left_as_it_was(predictor: str) -> None:
    model = rnn(predictor)
    before = model.predict(clips(), FUTURE)
    found = motion_statistics(model, clips(), GIVEN, FUTURE)
    for numbers in (*found["motion_grus"].values(), *found["layers"].values()):
        for values in numbers.values():
            assert len(values) == STEPS and all(map(math.isfinite, values))
    assert model.predict(clips(), FUTURE).equal(before)
    assert not any(part._forward_hooks for part in model.modules())


def test_the_ablations() -> None:
    without_trend = motion_statistics(rnn(trend=False), clips(), GIVEN, FUTURE)["motion_grus"]["MotionGRU 1"]
    assert without_trend["trend_rms"] == [0.0] * STEPS
    assert without_trend["transient_rms"] == pytest.approx(without_trend["offset_rms"], rel=1e-5)
    only_trend = motion_statistics(rnn(transient=False), clips(), GIVEN, FUTURE)["motion_grus"]["MotionGRU 1"]
    assert only_trend["transient_rms"] == [0.0] * STEPS
    assert only_trend["trend_rms"] == pytest.approx(only_trend["offset_rms"])


def test_a_cell_with_a_state_of_its_own_is_not_called_twice() -> None:
    """Its layers are left out, and the model's predictions stay what they are."""
    model = rnn("mim", compat="openstl")
    found = motion_statistics(model, clips(), GIVEN, FUTURE)
    assert set(found["layers"]) < {"layer 2", "layer 3"}
    motion = [rms(state.motion[0].offset) for state in states(model, clips())[1:]]
    assert found["motion_grus"]["MotionGRU 1"]["offset_rms"] == pytest.approx(motion, rel=1e-4)


# ---- The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("statistics") / "run"
    train(replace(TINY, steps=2, val_every=2), folder, progress=False)
    return folder


def test_visualize_writes_the_numbers(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(trained)
    few = held_out(run.config, 4)
    for words, of in (([], [few[0]]), (["--clips", "4"], [few[i] for i in range(4)])):
        out = tmp_path / f"out{len(words)}"
        assert cli.main(["visualize", str(trained), "--out", str(out), *words]) == 0
        found = read_json(out / "motion.json")
        assert (found["clips"], found["n_input"], found["n_output"]) == (len(of), 3, 3)
        expected = motion_statistics(run.model, of, 3, 3)["motion_grus"]["MotionGRU 1"]["offset_rms"]
        assert found["motion_grus"]["MotionGRU 1"]["offset_rms"] == pytest.approx(expected, rel=1e-5)
        assert str(out / "motion.json") in capsys.readouterr().out
    torch.save(few[0], tmp_path / "x.pt")
    words = ["visualize", str(trained), "--frames", str(tmp_path / "x.pt"), "--clips", "4"]
    assert cli.main([*words, "--out", str(tmp_path / "bad")]) == 2
    assert "--clips is for clips of a data set; leave it out with --frames" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
