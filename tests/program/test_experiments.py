"""Do `ablate` and `compare` train what they say, once, and call a difference what the rule calls one?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repository import ROOT, TESTS

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from PIL import Image
from trainings import QUICK, TINY, plan

from motionrnn_ext import cli
from motionrnn_ext.evaluation.clips import held_out
from motionrnn_ext.evaluation.evaluate import count_parameters
from motionrnn_ext.evaluation.scores import score
from motionrnn_ext.experiments import STANDARD, Plan, ablation, comparison, preset, runner
from motionrnn_ext.experiments.costs import costs
from motionrnn_ext.experiments.differences import NO_DIFFERENCE, difference, kept, read_kept
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.metrics import Protocol, Values
from motionrnn_ext.models import MotionRNN
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import RunError, load_run


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The (seed, motion_gru) of every training that is really run."""
    seen: list[tuple[int, bool]] = []

    def train(config: Config, *arguments: Any, **options: Any) -> Path:
        seen.append((config.seed, config.motion_gru))
        return true_train(config, *arguments, **options)

    true_train = runner.train
    monkeypatch.setattr(runner, "train", train)
    return seen


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments") / "finished"
    runner.run_plan(plan(), folder, command="motionrnn ablate ...")
    return folder


def numbers(results: dict[str, Any]) -> Any:
    """All that does not depend on the clock."""
    return {label: row["metrics"] for label, row in results["rows"].items()}, results["differences"]


# ---- What is trained


def test_the_rows_of_an_ablation_differ_in_what_they_are_called_after() -> None:
    rows = {row.label: row.switches for row in ablation(QUICK, [0], 1).rows}
    on = {label: {name for name, value in switches.items() if value} for label, switches in rows.items()}
    all_parts = {"highway", "motion_gru", "transient", "trend"}
    assert on["both"] == all_parts
    assert on["without transient"] == all_parts - {"transient"}
    assert on["without trend"] == all_parts - {"trend"}
    assert on["MotionGRU only"] == all_parts - {"highway"}
    assert on["highway only"] == all_parts - {"motion_gru"}
    assert on["base"] == {"transient", "trend"}  # of MotionGRUs, of which it has none
    for label, own in (
        ("offsets within 2 pixels", {"max_offset": 2.0}),
        ("gated trend", {"trend_gate": 1.0}),
    ):
        assert on[label] == all_parts | {"overrides"} and rows[label]["overrides"] == own
    assert len(rows) == 8


def test_overrides_of_a_row_are_added_to_those_of_all() -> None:
    planned = ablation(replace(QUICK, overrides={"alpha": 0.3, "max_offset": 9.0}), [0], 1)
    found = {training.row.label: training.config.overrides for training in planned.trainings()}
    assert found["both"] == found["base"] == {"alpha": 0.3, "max_offset": 9.0}
    assert found["offsets within 2 pixels"] == {"alpha": 0.3, "max_offset": 2.0}
    assert found["gated trend"] == {"alpha": 0.3, "max_offset": 9.0, "trend_gate": 1.0}
    # An experiment of before, without such rows, has the same settings.
    assert planned.settings()["overrides"] == {"alpha": 0.3, "max_offset": 9.0}


def test_every_ablation_is_compared_with_base_or_both() -> None:
    pairs = set(ablation(QUICK, [0], 1).pairs)
    assert {("both", "base"), ("without transient", "both"), ("without trend", "both")} <= pairs
    for part in ("highway only", "MotionGRU only"):
        assert {(part, "base"), (part, "both")} <= pairs
    assert {("offsets within 2 pixels", "both"), ("gated trend", "both")} <= pairs
    assert len(pairs) == 9


def test_a_comparison_has_every_predictor_with_and_without_motionrnn() -> None:
    planned = comparison(QUICK, [3, 4], 1)
    configs = [
        (c.config.predictor, c.config.motion_gru, c.config.highway, c.config.seed)
        for c in planned.trainings()
    ]
    assert sorted(configs) == sorted((p, on, on, s) for p in CELLS for on in (False, True) for s in (3, 4))
    labels = [row.label for row in planned.rows]
    assert ("MotionRNN-PredRNN", "PredRNN") in planned.pairs
    assert all(
        ours == f"MotionRNN-{theirs}" and {ours, theirs} <= set(labels) for ours, theirs in planned.pairs
    )
    assert len({training.name for training in planned.trainings()}) == len(configs)


@pytest.mark.parametrize(
    "dataset, name", [(None, "quick"), (None, "full"), *((d, "standard") for d in STANDARD)]
)
def test_presets_can_be_built_for_every_row(dataset: str | None, name: str) -> None:
    config, seeds, clips, _ = preset(name, dataset)
    assert len(seeds) >= 2 and config.dataset == (dataset or "moving_digits")
    for planned in (ablation(config, seeds, clips), comparison(config, seeds, clips)):
        for row in planned.rows:
            with torch.device("meta"):
                MotionRNN(**row.settings(config).model())


def test_a_preset_has_settings_by_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preset("standard") == STANDARD["moving_digits"]
    with pytest.raises(
        ValueError,
        match="preset standard has no settings for radar_like; it has some for moving_digits, shanghai_h5, human36m",
    ):
        preset("standard", "radar_like")
    seen: list[tuple[Plan, Path]] = []
    monkeypatch.setattr(runner, "run_plan", lambda plan, folder, **_: seen.append((plan, folder)))
    radar = "compare --preset standard --dataset shanghai_h5 --root x.h5"
    for words in (
        radar,
        f"{radar} --steps 7 --seeds 5 --thresholds 0.5 --value-scale 1",
        "ablate --preset standard",
    ):
        assert cli.main(words.split()) == 0
    (plain, folder), (changed, _), (digits, _) = seen
    assert folder == Path("runs/compare-standard-shanghai_h5")
    chosen = STANDARD["shanghai_h5"]
    assert plain.config == replace(chosen.config, root="x.h5") and plain.seeds == chosen.seeds
    assert plain.protocol.thresholds == (15, 25, 35) and plain.protocol.values == Values(52.5, 0.0)
    assert (changed.config.steps, changed.seeds, changed.test_clips) == (7, (5,), chosen.test_clips)
    assert changed.protocol.thresholds == (0.5,) and changed.protocol.values == Values(1.0)
    assert digits.config == STANDARD["moving_digits"].config and not digits.protocol.thresholds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds must be one or more different numbers; got []"),
        ({"seeds": [1, 1]}, "seeds must be one or more different numbers"),
        ({"test_clips": 0}, "test_clips must be at least 1; got 0"),
        ({"config": replace(QUICK, hidden=(8,))}, "hidden must have two layers or more"),
        ({"config": replace(QUICK, devices=2)}, "devices must be 1"),
    ],
)
def test_bad_plans(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ablation(**{"config": QUICK, "seeds": [0], "test_clips": 1, **changes})
    assert message in str(error.value)


def test_options_of_one_predictor_reach_it_alone() -> None:
    config = replace(QUICK, predictor="conv_tt_lstm", cell_options={"rank": 2})
    trainings = comparison(config, [0], 1, predictors=["convlstm", "conv_tt_lstm"]).trainings()
    assert [training.config.cell_options for training in trainings] == [{}, {}, {"rank": 2}, {"rank": 2}]
    with pytest.raises(ValueError, match="cell_options: none of convlstm, predrnn knows 'rank'"):
        comparison(config, [0], 1, predictors=["convlstm", "predrnn"])


# ---- What is counted


def test_macs_of_a_convlstm_by_hand() -> None:
    config = replace(QUICK, motion_gru=False, highway=False, hidden=(8, 16), patch_size=2, filter_size=3)
    positions, steps = 8 * 8, config.n_frames - 1
    first = 9 * (4 + 8) * 4 * 8  # folded 2x2 frame and hidden state to four gates
    second = 9 * (8 + 16) * 4 * 16
    last = 16 * 4
    assert costs(config)["macs"] == positions * steps * (first + second + last)


@pytest.mark.parametrize("predictor", CELLS)
def test_motionrnn_costs_a_little_more(predictor: str) -> None:
    config = replace(QUICK, predictor=predictor)
    ours, base = costs(config), costs(replace(config, motion_gru=False, highway=False))
    assert ours["parameters"] == count_parameters(MotionRNN(**config.model()))
    assert base["parameters"] < ours["parameters"]
    assert base["macs"] < ours["macs"] < 1.6 * base["macs"]


def test_macs_of_e3d_lstms_attention_by_hand() -> None:
    """One more step adds to a step the attention to one more C."""
    config = replace(TINY, predictor="e3d_lstm", n_output=1)
    two, three, four = (costs(replace(config, n_input=n))["macs"] for n in (1, 2, 3))
    positions = 2 * config.image_size[0] * config.image_size[1] // config.patch_size**2
    assert four - 2 * three + two == len(config.hidden) * 2 * positions**2 * config.hidden[0]


def test_macs_of_a_motion_gru_by_hand() -> None:
    """Encoder 3x3, gates and mask 1x1 of features, gates of the motion, warp, decoder 4x4, output gate 1x1 of both."""
    config = replace(QUICK, highway=False, hidden=(8, 8), patch_size=2)
    c, e, taps, half, full = 8, 2, 9, 4 * 4, 8 * 8
    gru = (
        half * (9 * c * e + e * 7 * taps + 2 * taps * 6 * taps + taps * e * e)
        + half * 16 * e * c
        + full * 2 * c * c
    )
    base = costs(replace(config, motion_gru=False))["macs"]
    assert costs(config)["macs"] - base == (config.n_frames - 1) * gru


# ---- What is kept and never run again


def test_results_are_the_scores_of_the_last_checkpoints(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    clips = held_out(QUICK, 3)  # of seed 0 for all
    for label in ("base", "both"):
        per_seed = []
        for seed in (0, 1):
            trained = load_run(finished / "runs" / f"{label}_seed_{seed}" / "checkpoints" / "last.ckpt")
            assert (trained.step, trained.config.seed, trained.config.highway) == (2, seed, label == "both")
            per_seed.append(score({"m": trained.model}, clips, 2)["m"])
        for name in ("mse", "mae", "psnr", "ssim"):
            values = [scores[name] for scores in per_seed]
            found = results["rows"][label]["metrics"][name]
            assert found["per_seed"] == pytest.approx(values, rel=1e-5)
            assert found["mean"] == pytest.approx(sum(values) / 2, rel=1e-5)
            assert found["spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-3)
    baselines = score({}, clips, 2)
    assert results["repeat last frame"]["mse"] == pytest.approx(baselines.pop("repeat last frame")["mse"])
    others = {label: scores["mse"] for label, scores in results["other_baselines"].items()}
    assert others == {label: pytest.approx(scores["mse"]) for label, scores in baselines.items()}
    assert list(others) == ["mean of the inputs", "optical flow"]


def test_what_is_finished_is_not_run_again(
    finished: Path, tmp_path: Path, trainings: list[tuple[int, bool]]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = numbers(json.loads((folder / "results.json").read_text()))
    assert numbers(runner.run_plan(plan(), folder, command="again")) == before
    assert trainings == []
    (folder / "cells" / "both_seed_1.json").unlink()  # its training is finished: scored again
    assert numbers(runner.run_plan(plan(), folder, command="again")) == before
    assert trainings == [(1, True)]
    more = runner.run_plan(plan(seeds=(0, 1, 2)), folder, command="one seed more")
    assert trainings[1:] == [(2, False), (2, True)]
    assert all(len(row["metrics"]["mse"]["per_seed"]) == 3 for row in more["rows"].values())
    assert more["rows"]["both"]["metrics"]["mse"]["per_seed"][:2] == before[0]["both"]["mse"]["per_seed"]


def test_killed_in_the_middle_it_goes_on_to_the_same_numbers(
    finished: Path, tmp_path: Path, trainings: list[tuple[int, bool]]
) -> None:
    """SIGKILL in the third step of the second training, whose last checkpoint is of step 2."""
    longer = replace(QUICK, steps=4)
    code = textwrap.dedent(f"""
        import os, signal, sys
        from dataclasses import replace
        sys.path.insert(0, {str(TESTS / "support")!r})
        from motionrnn_ext.training.module import Training
        from motionrnn_ext.experiments import runner
        from trainings import QUICK, plan
        true_step = Training.training_step
        def step(self, frames, index):
            if self.config.motion_gru and self.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return true_step(self, frames, index)
        Training.training_step = step
        runner.run_plan(plan(replace(QUICK, steps=4), seeds=(0,)), runner.Path(sys.argv[1]), command="")
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (tmp_path / "killed" / "cells").iterdir()] == ["base_seed_0.json"]

    resumed = runner.run_plan(plan(longer, seeds=(0,)), tmp_path / "killed", command="")
    assert trainings == [(0, True)]
    assert resumed["resumed"] == 1
    logs = tmp_path / "killed" / "runs" / "both_seed_0" / "logs"
    assert "step" in (logs / "version_1" / "metrics.csv").read_text()
    unbroken = runner.run_plan(plan(longer, seeds=(0,)), tmp_path / "unbroken", command="")
    assert unbroken["resumed"] == 0
    assert json.dumps(numbers(resumed)) == json.dumps(numbers(unbroken))  # text, as nan differs from itself


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (plan(replace(QUICK, steps=3)), "was started with steps 2, this is steps 3"),
        (plan(replace(QUICK, hidden=(8, 8, 8))), "was started with hidden [8, 8], this is hidden [8, 8, 8]"),
        (replace(plan(), test_clips=4), "was started with test_clips 3, this is test_clips 4"),
        (comparison(QUICK, [0], 3), "was started with command ablate, this is command compare"),
        (
            plan(replace(QUICK, overrides={"init_state": "xavier"})),
            "was started with overrides.init_state none, this is overrides.init_state xavier;",
        ),
    ],
)
def test_changed_settings_are_named_and_nothing_is_touched(
    changed: Plan, message: str, finished: Path, trainings: list[tuple[int, bool]]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(RunError) as error:
        runner.run_plan(changed, finished, command="")
    assert message in str(error.value) and "name another folder with --out" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert trainings == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and holds no experiment; name another folder with --out"):
        runner.run_plan(plan(), tmp_path, command="")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_result_is_named(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "cells" / "base_seed_0.json").write_text('{"row": "ba')
    with pytest.raises(RunError, match="base_seed_0.json is no readable JSON file"):
        runner.run_plan(plan(), folder, command="")


@pytest.mark.parametrize(
    "lacking", ["metrics", "metrics.per_lead", "metrics.gdl", "baseline", "machine", "per_clip"]
)
def test_a_result_that_lacks_an_entry_is_named(lacking: str, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = folder / "cells" / "both_seed_1.json"
    kept = json.loads(path.read_text())
    *outer, last = lacking.split(".")
    del (kept[outer[0]] if outer else kept)[last]
    path.write_text(json.dumps(kept))
    with pytest.raises(RunError) as error:
        runner.run_plan(plan(), folder, command="")
    assert f"both_seed_1.json lacks {lacking}" in str(error.value)
    assert str(error.value).endswith("; remove that file to have the training scored again")


@pytest.mark.parametrize("damaged", ["checkpoints/last.ckpt", "config.json"])
def test_a_damaged_training_says_what_to_remove(
    damaged: str, finished: Path, tmp_path: Path, trainings: list[tuple[int, bool]]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "cells" / "both_seed_1.json").unlink()
    (folder / "cells" / "base_seed_0.json").unlink()  # comes first, and waits for the other to be put right
    home = folder / "runs" / "both_seed_1"
    path = home / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunError) as error:
        runner.run_plan(plan(), folder, command="")
    assert str(path) in str(error.value)
    assert str(error.value).endswith(f"; remove {home} to have that training made again")
    assert len(str(error.value).splitlines()) == 1 and trainings == []
    shutil.rmtree(home)
    again = runner.run_plan(plan(), folder, command="")
    assert trainings == [(0, False), (1, True)]
    assert numbers(again) == numbers(json.loads((finished / "results.json").read_text()))


# ---- What is wrong comes to light before anything is written


def broken_network(path: Path) -> Path:
    path.write_bytes(b"no network")
    return path


@pytest.mark.parametrize(
    ("protocol", "config", "message"),
    [
        ({"lpips": Path("no/such.pth")}, {}, "LPIPS weights no/such.pth cannot be read"),
        ({"lpips": "BROKEN"}, {}, "is damaged, or not a file of weights"),
        ({"fvd": Path("no/such.pt")}, {}, "FVD network no/such.pt cannot be read"),
        ({"fvd": "BROKEN"}, {}, "is damaged, or not a TorchScript file"),
        ({"fvd": "LONG"}, {}, "cannot take clips of 2 frames"),
        (
            {"ssim": "gaussian"},
            {"image_size": (8, 8), "plain": True, "digit_size": 4},
            "needs frames of at least 11x11",
        ),
        ({}, {"accelerator": "abacus"}, "accelerator 'abacus' cannot be used"),
    ],
)
def test_bad_metrics_and_machines_come_first(
    protocol: dict[str, Any],
    config: dict[str, Any],
    message: str,
    tmp_path: Path,
    trainings: list[tuple[int, bool]],
) -> None:
    made = {"BROKEN": broken_network, "LONG": long_network}
    options = {
        name: made[value](tmp_path / "file") if value in made else value for name, value in protocol.items()
    }
    planned = replace(plan(replace(QUICK, **config)), protocol=Protocol(**options))
    with pytest.raises(ValueError) as error:
        runner.run_plan(planned, tmp_path / "out", command="")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists() and trainings == []


class Mean(torch.nn.Module):
    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        assert video.shape[2] >= self.least
        return video.mean((3, 4)).flatten(1)


def long_network(path: Path) -> Path:
    torch.jit.script(Mean(9)).save(str(path))
    return path


def test_fvd_is_a_column(tmp_path: Path) -> None:
    torch.jit.script(Mean(2)).save(str(tmp_path / "net.pt"))
    planned = replace(plan(seeds=(0,), labels=("base",)), protocol=Protocol(fvd=tmp_path / "net.pt"))
    results = runner.run_plan(planned, tmp_path / "out", command="")
    assert results["rows"]["base"]["metrics"]["fvd"]["mean"] > 0
    assert "| FVD \u2193 |" in (tmp_path / "out" / "table.md").read_text()


# ---- The rule


def rows_of(differences: list[float], spread: float, clips: int = 200) -> tuple[list[Any], list[Any]]:
    """Return the clips' scores of a row and of another, (clips, 1) per seed, whose means differ by `differences`.

    Those of single clips differ by that and normal numbers of deviation `spread`, with a mean of 0.
    """
    random = np.random.default_rng(3)
    others = [10 + random.standard_normal((clips, 1)) for _ in differences]
    noise = [random.standard_normal((clips, 1)) for _ in differences]
    ours = [b + d + spread * (n - n.mean()) for b, d, n in zip(others, differences, noise, strict=True)]
    return ours, others


@pytest.mark.parametrize(
    ("differences", "spread", "verdict"),
    [
        ([-1.0, -1.1, -0.9], 1.0, "better"),  # p = 0.003, and the clips agree
        ([1.0, 1.1, 0.9], 1.0, "worse"),
        ([-1.0, -2.0, -0.1], 1.0, "better for these trainings"),  # p = 0.2 over seeds
        ([-1.0], 1.0, "better for these trainings"),
        ([1.0], 1.0, "worse for these trainings"),
        ([-0.1, -0.11, -0.09], 5.0, NO_DIFFERENCE),  # p = 0.003, but the clips' interval holds 0
        ([0.0, 0.0, 0.0], 0.0, NO_DIFFERENCE),
        ([-1.0, float("nan")], 1.0, NO_DIFFERENCE),
        ([-1.0, float("-inf")], 1.0, NO_DIFFERENCE),
    ],
)
def test_the_rule(differences: list[float], spread: float, verdict: str) -> None:
    clips = rows_of(differences, spread)
    values = [[float(seed.mean()) for seed in row] for row in clips]
    assert difference(*values, *clips, lower_is_better=True).verdict == verdict
    first = verdict.split()[0]
    mirrored = verdict.replace(first, {"better": "worse", "worse": "better"}.get(first, first), 1)
    assert difference(*values, *clips, lower_is_better=False).verdict == mirrored


def test_the_interval_is_that_of_the_paired_differences() -> None:
    """Own bootstrap in numpy, and the normal approximation, of the mean difference over clips."""
    ours, others = rows_of([-1.0, -1.2], 2.0)
    values = [[float(seed.mean()) for seed in row] for row in (ours, others)]
    found = difference(*values, ours, others, lower_is_better=True)
    each = np.mean([a - b for a, b in zip(ours, others, strict=True)], 0)[:, 0]
    random = np.random.default_rng(5)
    draws = each[random.integers(0, len(each), (20000, len(each)))].mean(1)
    error = each.std(ddof=1) / len(each) ** 0.5
    assert found.difference == pytest.approx(-1.1)
    assert (found.low, found.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.1 * error)
    assert (found.low, found.high) == pytest.approx(
        (-1.1 - 1.96 * error, -1.1 + 1.96 * error), abs=0.15 * error
    )
    # The t-test by hand: two differences, whose mean is 11 times their standard error.
    assert found.p == pytest.approx(1 - 2 / np.pi * np.arctan(11))


def test_whole_sequences_are_drawn() -> None:
    """Copies of a clip in its sequence change nothing; as sequences of their own they would halve the interval."""
    ours, others = rows_of([-1.0], 1.0, clips=20)
    values = [[float(seed.mean()) for seed in row] for row in (ours, others)]
    once = difference(*values, ours, others, lower_is_better=True)
    copied = [[np.repeat(seed, 4, 0) for seed in row] for row in (ours, others)]
    sequences = np.repeat(range(20), 4).tolist()
    together = difference(*values, *copied, lower_is_better=True, sequences=sequences)
    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    apart = difference(*values, *copied, lower_is_better=True)
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_sequences_of_several_lengths_are_drawn_with_all_their_clips() -> None:
    """Own bootstrap of a quotient of sums."""
    ours, others = rows_of([-1.0], 1.0, clips=60)
    sequences = np.repeat(range(20), [1, 2, 3, 6] * 5)
    each = (ours[0] - others[0])[:, 0] + np.random.default_rng(3).standard_normal(20)[sequences]
    ours = [others[0] + each[:, None]]
    values = [[float(seed.mean()) for seed in row] for row in (ours, others)]
    found = difference(*values, ours, others, lower_is_better=True, sequences=sequences.tolist())
    sums, counts = (np.bincount(sequences, w) for w in (each, None))
    drawn = np.random.default_rng(5).integers(0, 20, (20000, 20))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1 * means.std())


def test_the_interval_of_csi_is_that_of_pooled_counts() -> None:
    random = np.random.default_rng(0)
    clips, leads = 40, 3
    rows = [[random.integers(0, 20, (clips, 3, leads)) for _ in range(2)] for _ in range(2)]
    rows[1][0][:, 0] += 5

    def csi(counts: Any) -> float:
        tp, fp, fn = counts.sum(0)
        return float(np.mean(tp / (tp + fp + fn)))

    draws = random.integers(0, clips, (4000, clips))
    gaps = [np.mean([csi(a[d]) - csi(b[d]) for a, b in zip(*rows, strict=True)]) for d in draws]
    kept_rows = [[one.reshape(clips, -1).astype(float) for one in row] for row in rows]
    values = [[csi(one) for one in row] for row in rows]
    found = difference(*values, *kept_rows, lower_is_better=False)
    assert found.difference == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert (found.low, found.high) == pytest.approx(np.percentile(gaps, [2.5, 97.5]), abs=0.1 * np.std(gaps))


def test_clips_without_a_score_are_left_out() -> None:
    ours, others = rows_of([-1.0], 1.0, clips=20)
    ours[0][3], others[0][5] = np.nan, np.nan
    left = np.delete(np.arange(20), [3, 5])
    found = difference([9.0], [10.0], ours, others, lower_is_better=True)
    assert found == difference([9.0], [10.0], [ours[0][left]], [others[0][left]], lower_is_better=True)
    for few in (ours[0][3:5], ours[0][:1]):  # one clip that has a score
        alone = difference([9.0], [10.0], [few], [few + 1], lower_is_better=True)
        assert np.isnan(alone.low) and alone.verdict == NO_DIFFERENCE


def test_equal_rows_seldom_pass_for_different() -> None:
    """Two rows whose trainings differ by chance alone: at most 5 % are called better or worse."""
    random = np.random.default_rng(1)
    shown = []
    for _ in range(300):
        rows = [
            [random.standard_normal() + random.standard_normal((40, 1)) for _ in range(3)] for _ in range(2)
        ]
        values = [[float(seed.mean()) for seed in row] for row in rows]
        shown.append(difference(*values, *rows, lower_is_better=True).verdict in ("better", "worse"))
    assert np.mean(shown) <= 0.07  # 0.05, and 2 times the deviation of 300 draws


def test_scores_of_clips_survive_their_file() -> None:
    scores = {
        "mse": [60.123456, float("nan"), 0.5],
        "csi_15": [[[1, 2], [3, 4], [5, 123456]]] * 3,
        "psnr": [1.0] * 3,
    }
    text = kept(scores, ["mse", "csi_15", "ssim"])
    assert set(text) == {"mse", "csi_15"}
    assert read_kept(text["mse"], 3)[:, 0] == pytest.approx(
        [60.12346, float("nan"), 0.5], nan_ok=True, abs=1e-5
    )
    assert read_kept(text["csi_15"], 3).tolist() == [[1, 2, 3, 4, 5, 123456]] * 3
    with pytest.raises(ValueError, match="3 numbers are not those of 2 clips"):
        read_kept(text["mse"], 2)


# ---- What is written


def test_table_and_figure(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    results = runner.run_plan(plan(), folder, command="motionrnn ablate --seeds 0 1")
    text = (folder / "table.md").read_text()
    lines = {
        line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if " | " in line
    }
    mse = results["rows"]["both"]["metrics"]["mse"]
    assert lines["both"][1] == f"{mse['mean']:.2f} ± {mse['spread']:.2f}"
    assert lines["repeat last frame"][1] == f"{results['repeat last frame']['mse']:.2f}"
    assert f"{results['rows']['both']['parameters']:,}" in lines["both"]
    assert lines["both against base"][1].endswith(results["differences"][0]["mse"]["verdict"])
    assert "standard deviation over 2 seeds (0, 1)" in text
    assert "by a paired bootstrap over 3 clips; p: paired t-test over 2 seeds" in text
    found = results["differences"][0]["mse"]
    interval = f"{found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}], p = {found['p']:.2g}"
    assert lines["both against base"][1].startswith(interval)
    for fact in (
        "`motionrnn ablate --seeds 0 1`",
        "seeds: 0, 1",
        "commit: ",
        "1 thread, torch",
        "2 steps of 2 clips",
    ):
        assert fact in text, fact
    with Image.open(folder / "figure.png") as image:
        assert min(image.size) > 150


def test_a_damaged_score_of_clips_is_named(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = folder / "cells" / "both_seed_1.json"
    content = json.loads(path.read_text())
    content["per_clip"]["ssim"] = "0.1 0.2"
    path.write_text(json.dumps(content))
    with pytest.raises(
        RunError, match="both_seed_1.json: per_clip.ssim is damaged: 2 numbers are not those of 3"
    ):
        runner.run_plan(plan(), folder, command="")


def test_scores_of_clips_are_those_of_the_table(finished: Path) -> None:
    for path in (finished / "cells").iterdir():
        cell = json.loads(path.read_text())
        assert set(cell["per_clip"]) == {"mse", "ssim"}
        for name, text in cell["per_clip"].items():
            assert read_kept(text, 3).mean() == pytest.approx(cell["metrics"][name], rel=1e-5)


def test_events_have_a_table_of_their_own(tmp_path: Path) -> None:
    protocol = Protocol(thresholds=(0.2, 0.5), values=Values(1.0), fss_scales=(3,))
    planned = replace(plan(seeds=(0,)), protocol=protocol)
    results = runner.run_plan(planned, tmp_path / "out", command="")
    text = (tmp_path / "out" / "table.md").read_text()
    first, events = text.split("## Events")
    assert "CSI" not in first.replace(results["gate"], "")
    assert "| model | value >= | observed | POD ↑ | FAR ↓ | CSI ↑ | HSS ↑ | bias → 1 | FSS 3px ↑ |" in events
    clips = held_out(QUICK, 3)
    observed = sum(int((clips[i][2:].double() >= 0.5).sum()) for i in range(3))
    for baseline in ("repeat last frame", "mean of the inputs"):
        assert f"| {baseline} | 0.5 | {observed:,} | " in events
    csi = results["rows"]["both"]["metrics"]["csi_0.5"]["mean"]
    (row,) = [line for line in events.splitlines() if line.startswith("| both | 0.5 ")]
    assert row.split(" | ")[2] == f"{observed:,}" and row.split(" | ")[5] == f"{csi:.4f}"
    assert set(results["differences"][0]) == {"row", "against", "mse", "ssim", "csi_0.2"}
    cell = json.loads((tmp_path / "out" / "cells" / "both_seed_0.json").read_text())
    counts = read_kept(cell["per_clip"]["csi_0.2"], 3).sum(0).reshape(3, 2).tolist()
    assert counts == [cell["metrics"]["counts"]["0.2"][kind] for kind in ("tp", "fp", "fn")]


def test_a_folder_of_an_older_version_is_read(finished: Path, tmp_path: Path) -> None:
    """Its settings lack those that came later."""
    planned = replace(plan(), protocol=Protocol())
    folder = tmp_path / "out"
    runner.run_plan(planned, folder, command="")
    settings = json.loads((folder / "experiment.json").read_text())
    del settings["metrics"]["fss_scales"], settings["l1_weight"]
    # Before clips could overlap, 255 was the default of pixel_max.
    for name in ("clip_step", "interval", "min_wet", "wet_above", "min_motion", "dbz"):
        del settings[name]
    settings["pixel_max"] = 255.0
    (folder / "experiment.json").write_text(json.dumps(settings))
    before = numbers(json.loads((folder / "results.json").read_text()))
    assert numbers(runner.run_plan(planned, folder, command="again")) == before


def test_a_metric_without_any_event_says_so(finished: Path, tmp_path: Path) -> None:
    planned = replace(plan(), protocol=Protocol(thresholds=(2.0,), values=Values(1.0)))
    runner.run_plan(planned, tmp_path / "out", command="")
    text = (tmp_path / "out" / "table.md").read_text()
    assert "no event" in text and "not finite" not in text
    # A changed metric is named alone.
    with pytest.raises(RunError) as error:
        changed = replace(planned, protocol=Protocol(thresholds=(3.0,), values=Values(1.0)))
        runner.run_plan(changed, tmp_path / "out", command="")
    assert "was started with metrics.thresholds [2.0], this is metrics.thresholds [3.0];" in str(error.value)


# ---- The commands


def test_compare_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    QUICK.write(tmp_path / "settings.json")
    words = [
        "compare",
        "--config",
        str(tmp_path / "settings.json"),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "5",
    ]
    words += ["--steps", "1", "--test-clips", "2", "--predictors", "predrnn", "--thresholds", "0.5"]
    words += ["--value-scale", "1"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "[2/2] MotionRNN-PredRNN, seed 5: MSE " in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == ["PredRNN", "MotionRNN-PredRNN"]
    assert results["command"] == "motionrnn " + " ".join(words)
    assert results["settings"]["steps"] == 1
    assert "CSI 0.5" in (tmp_path / "out" / "table.md").read_text()
    assert cli.main([*words, "--lr", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "motionrnn compare: error:" in error and "was started with lr 0.001, this is lr 0.5" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ablate --predictor abacus", "unknown predictor 'abacus'"),
        ("compare --predictors abacus", "unknown predictor 'abacus'"),
        ("ablate --hidden 8 16", "all layers should be equal"),
        ("ablate --dataset human36m --root no/such/folder", "no/such/folder"),
    ],
)
def test_bad_commands(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words.split(), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_what_the_table_varies_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("ablate --no-trend", "ablate --no-highway", "compare --no-motion-gru"):
        with pytest.raises(SystemExit):
            cli.main(words.split())
