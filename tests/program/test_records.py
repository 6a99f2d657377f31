"""Are finished trainings kept as data, with a page's tables made of nothing else, and does a table say who loses?"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from trainings import QUICK, plan

from motionrnn_ext import cli
from motionrnn_ext.experiments import runner
from motionrnn_ext.experiments.gate import gate_text
from motionrnn_ext.experiments.plan import Plan
from motionrnn_ext.experiments.record import (
    finished_part,
    read_record,
    record_markdown,
    restore,
    write_record,
)
from motionrnn_ext.files import read_json, write_json
from motionrnn_ext.metrics import Protocol, Values
from motionrnn_ext.training.runs import RunError

# ---- The gate


def cell(row: str, seed: int = 0, **per_lead: list[float]) -> dict[str, Any]:
    baseline = {"mse": [1.0, 2.0, 3.0, 4.0], "ssim": [0.9, 0.8, 0.7, 0.6]}
    baseline |= {name: [0.5, 0.4, math.nan, 0.2] for name in per_lead if name.startswith("csi")}
    good = {"mse": [0.5, 1.0, 1.5, 2.0], "ssim": [0.99] * 4}
    return {
        "row": row,
        "seed": seed,
        "metrics": {"per_lead": {**good, **per_lead}},
        "baseline": {"per_lead": baseline},
    }


def test_a_table_whose_models_all_win_says_so() -> None:
    first_is_lost = cell("b", mse=[9.0, 1.0, 1.0, 1.0])
    no_event = cell("c", csi_15=[0.0, 0.5, math.nan, 0.3])
    expected = "Every model beats repeat last frame in MSE and SSIM at each lead time but the first."
    assert gate_text([cell("a"), first_is_lost]) == expected
    assert gate_text([no_event]) == expected.replace("MSE and SSIM", "MSE, SSIM and CSI 15")


@pytest.mark.parametrize(
    ("cells", "failures"),
    [
        ([cell("a", mse=[0, 2.0, 1, 1])], "a, in MSE at t+2"),  # a tie is no win
        (
            [cell("a", ssim=[1, 0.7, 0.7, 0.7]), cell("b", mse=[0, 5, 1, 5])],
            "a, in SSIM at t+2 to t+3; b, in MSE at t+2 and t+4",
        ),
        ([cell("a", mse=[0, 1, math.nan, 1])], "a, in MSE at t+3"),
        (
            [cell("a", 0, mse=[0, 1, 1, 1]), cell("a", 1, mse=[0, 3.5, 1, 1])],  # on average
            "a, in MSE at t+2",
        ),
        (
            [cell("a", mse=[0, 5, 1, 1], ssim=[1, 0.1, 1, 0.1], csi_15=[0, 0, 1, 1])],
            "a, in MSE and CSI 15 at t+2, in SSIM at t+2 and t+4",
        ),
        (
            [cell("a", csi_5=[1, 0.3, 1, 1], csi_15=[0] * 4)],  # the lowest threshold alone
            "a, in CSI 5 at t+2",
        ),
    ],
)  # fmt: skip
def test_a_model_that_does_not_win_is_named_with_its_lead_times(
    cells: list[dict[str, Any]], failures: str
) -> None:
    text = gate_text(cells)
    assert text.startswith("Not every model beats repeat last frame in MSE")
    assert text.endswith(f"These do not: {failures}.")


def test_one_lead_time_counts() -> None:
    short = cell("a", mse=[2.0], ssim=[1.0])
    for name, values in short["baseline"]["per_lead"].items():
        short["baseline"]["per_lead"][name] = values[:1]
    assert gate_text([short]).endswith("a, in MSE at t+1.")


def test_of_several_baselines_those_that_win_are_named() -> None:
    hard = {"per_lead": {"mse": [0.1] * 4, "ssim": [0.1] * 4}}
    trainings = [
        {**one, "other_baselines": {"hard": hard, "as hard": hard}}
        for one in (cell("a"), cell("b", mse=[0.0] * 4))
    ]
    text = gate_text(trainings)
    assert text.startswith(
        "Not every model beats repeat last frame, hard and as hard in MSE and SSIM at each"
    )
    assert text.endswith("These do not: a against hard and as hard, in MSE at t+2 to t+4.")


# ---- The record


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of an experiment and its record."""
    place = tmp_path_factory.mktemp("records")
    record = place / "results" / "tiny.json"
    runner.run_plan(plan(), place / "runs", command="motionrnn ablate --seeds 0 1", record=record)
    return place / "runs", record


def test_a_record_has_every_training_by_lead_time(finished: tuple[Path, Path]) -> None:
    folder, record = finished
    content, results = read_record(record), read_json(folder / "results.json")
    assert content["missing"] == [] and content["seeds"] == [0, 1]
    assert [(one["row"], one["seed"]) for one in content["trainings"]] == [
        (row, seed) for seed in (0, 1) for row in ("base", "both")
    ]
    for one in content["trainings"]:
        kept = read_json(folder / "cells" / f"{one['row']}_seed_{one['seed']}.json")
        assert one["metrics"]["per_lead"]["ssim"] == pytest.approx(
            kept["metrics"]["per_lead"]["ssim"], rel=1e-5
        )
        assert one["metrics"]["mse"] == pytest.approx(kept["metrics"]["mse"], rel=1e-5)
        assert one["seconds"] == pytest.approx(kept["seconds"], rel=1e-5)
        assert (one["machine"], one["commit"]) == (kept["machine"], kept["commit"])
        assert content["baselines"]["repeat last frame"]["per_lead"]["mse"] == pytest.approx(
            kept["baseline"]["per_lead"]["mse"], rel=1e-5
        )
    for label, row in results["rows"].items():
        assert content["rows"][label]["metrics"]["mse"]["mean"] == pytest.approx(
            row["metrics"]["mse"]["mean"]
        )
    assert content["gate"] == results["gate"] and content["gate"] in (folder / "table.md").read_text()
    assert record.stat().st_size < 3_000 * len(content["trainings"])


def test_a_stop_loses_no_finished_training(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    record = tmp_path / "new" / "tiny.json"
    for name in ("both_seed_0", "both_seed_1"):
        (folder / "cells" / f"{name}.json").unlink()
    begun: list[int] = []
    true_train = runner.train

    def train(config: Any, *arguments: Any, **options: Any) -> Path:
        begun.append(config.seed)
        if config.seed == 1:
            assert read_record(record)["missing"] == ["both, seed 1"]
            raise KeyboardInterrupt
        return true_train(config, *arguments, **options)

    monkeypatch.setattr(runner, "train", train)
    with pytest.raises(KeyboardInterrupt):
        runner.run_plan(plan(), folder, command="motionrnn ablate", record=record)
    content = read_record(record)
    assert begun == [0, 1] and content["missing"] == ["both, seed 1"]
    assert list(content["rows"]) == ["base", "both"] and content["seeds"] == [0]
    assert [(one["row"], one["seed"]) for one in content["trainings"]] == [
        ("base", 0),
        ("both", 0),
        ("base", 1),
    ]
    text = record_markdown(content)
    assert "- not yet trained: both, seed 1" in text
    per_lead = content["trainings"][1]["metrics"]["per_lead"]["mse"]
    shown = text.split("| MSE ↓ at | t+1 | t+2 |")[1].split("| both | ")[1].splitlines()[0]
    assert shown == " | ".join(f"{value:.2f}" for value in per_lead) + " |"
    several = {**content, "missing": ["base, seed 1", "both, seed 1", "both, seed 2"]}
    assert "- not yet trained: base, seed 1; both, seeds 1 and 2" in record_markdown(several)


def test_an_experiment_goes_on_from_its_record_alone(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = finished
    moved = Path(shutil.copy(record, tmp_path))
    monkeypatch.setattr(runner, "train", lambda *_, **__: pytest.fail("trained again"))
    found = runner.run_plan(plan(), tmp_path / "elsewhere", command="motionrnn ablate", record=moved)
    before = read_json(folder / "results.json")
    assert found["gate"] == before["gate"] and found["test_clips"] == before["test_clips"]
    for label, row in before["rows"].items():
        for name, score in row["metrics"].items():
            assert found["rows"][label]["metrics"][name]["per_seed"] == pytest.approx(
                score["per_seed"], rel=1e-5
            )
    for ours, theirs in zip(found["differences"], before["differences"], strict=True):
        assert ours["mse"].pop("verdict") == theirs["mse"].pop("verdict")
        assert ours["mse"] == pytest.approx(theirs["mse"], rel=1e-3, abs=1e-4)
    again, first = read_record(moved), read_record(record)
    assert (again["trainings"], again["baselines"]) == (first["trainings"], first["baselines"])


def test_a_training_whose_clips_were_not_recorded_is_made_again(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    content = read_record(finished[1])
    del content["trainings"][0]["per_clip"]
    # A training that did not stay finite has none to record.
    content["trainings"][1]["per_clip"] = {}
    old = write_json(tmp_path / "old.json", content)
    restore(old, plan(), tmp_path / "runs")
    assert sorted(path.stem for path in (tmp_path / "runs" / "cells").iterdir()) == [
        "base_seed_1",
        "both_seed_0",
        "both_seed_1",
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (plan(replace(QUICK, lr=0.5)), "was started with lr .*, this is lr 0.5; .*: name another file with"),
        (plan(seeds=(0, 2)), "has base, seed 1, which this table has not: name another file with --json"),
    ],
)
def test_a_record_of_something_else_is_refused_and_kept(
    finished: tuple[Path, Path], tmp_path: Path, other: Plan, message: str
) -> None:
    record = Path(shutil.copy(finished[1], tmp_path))
    with pytest.raises(RunError, match=message):
        runner.run_plan(other, tmp_path / "runs", command="motionrnn ablate", record=record)
    assert record.read_bytes() == finished[1].read_bytes()


def test_the_table_of_a_part_has_rows_of_equal_seeds() -> None:
    whole = plan(seeds=(0, 1, 2))

    def part(*names: str) -> tuple[list[str], tuple[int, ...], int]:
        found = finished_part(whole, dict.fromkeys(names))
        return [row.label for row in found.rows], found.seeds, len(found.pairs)

    assert part("base_seed_0") == (["base"], (0,), 0)
    assert part("base_seed_0", "both_seed_0", "base_seed_1") == (["base", "both"], (0,), 1)
    assert part("both_seed_2", "base_seed_2", "base_seed_0", "both_seed_0") == (["base", "both"], (0, 2), 1)
    assert part("both_seed_1") == (["both"], (1,), 0)


def test_a_record_names_no_folder_of_this_machine(finished: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = finished
    cells = {path.stem: read_json(path) for path in (folder / "cells").iterdir()}
    counts = {label: {"parameters": 1, "macs": 1} for label in ("base", "both")}
    moved = plan(replace(QUICK, digits="/data/mine/mnist", root="../shared/x.h5"))
    command = "motionrnn compare --digits /data/mine/mnist --root '../shared/x.h5' --out runs/mine"
    text = write_record(tmp_path / "r.json", moved, cells, counts, command).read_text()
    assert "/data" not in text and "shared" not in text
    content = json.loads(text)
    assert (content["settings"]["digits"], content["settings"]["root"]) == ("mnist", "x.h5")
    assert content["command"] == "motionrnn compare --digits mnist --root x.h5 --out runs/mine"


def test_lists_of_numbers_are_lines(tmp_path: Path) -> None:
    content = {
        "a": [1, -2.5, math.nan, 1e-7],
        "b": [[1, 2], ["x,  1", True]],
        "c": [],
        "d": "[\n  1\n]",
        "e": {"f": [{}]},
    }
    text = write_json(tmp_path / "x.json", content, short_lists=True).read_text()
    assert '"a": [ 1, -2.5, null, 1e-07 ]' in text and '[ "x,  1", true ]' in text
    again = read_json(tmp_path / "x.json")
    assert math.isnan(again["a"].pop(2)) and content["a"].pop(2) and again == content


# ---- The page


def write_pages(folder: Path) -> list[Path]:
    """Run docs/results.py on the pages in `folder`."""
    spec = importlib.util.spec_from_file_location("pages_of_results", ROOT / "docs" / "results.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.write_pages(folder)


def test_a_page_gets_its_tables_from_the_records(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[1].parent, tmp_path / "results")
    page = tmp_path / "results.md"
    before = "# Results\n\nAbove.\n\n{}\nold\n{}\n\nBelow.\n"
    marks = "<!-- results/tiny.json -->", "<!-- end of results -->"
    page.write_text(before.format(*marks))
    (tmp_path / "other.md").write_text("no table")
    assert write_pages(tmp_path) == [page]
    text, content = page.read_text(), read_record(tmp_path / "results" / "tiny.json")
    head, _, rest = text.partition(marks[0] + "\n")
    tables, _, tail = rest.partition(marks[1])
    assert (head, tail) == ("# Results\n\nAbove.\n\n", "\n\nBelow.\n") and tables == record_markdown(content)
    assert tables.startswith(content["gate"])
    mse = content["rows"]["both"]["metrics"]["mse"]
    assert f"| both | {mse['mean']:.2f} ± {mse['spread']:.2f} |" in tables
    for fact in ("`motionrnn ablate --seeds 0 1`", "2 steps of 2 clips, 2 frames in and 2 out",
                 "3 test clips, seeds: 0, 1", "0 minutes of training and scoring on CPU", "commit "):  # fmt: skip
        assert fact in tables, fact
    assert write_pages(tmp_path) == []


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(
        ValueError, match="x.json is no record of an experiment; it should be written by --json"
    ):
        read_record(tmp_path / "x.json")


def test_the_pages_of_the_project_are_what_their_records_say(tmp_path: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy(page, tmp_path)
    if (ROOT / "docs" / "results").is_dir():
        shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    assert write_pages(tmp_path) == []


def test_the_command_writes_the_record(tmp_path: Path) -> None:
    QUICK.write(tmp_path / "settings.json")
    words = f"compare --config {tmp_path / 'settings.json'} --out {tmp_path / 'out'} --seeds 5 --steps 1"
    words += f" --test-clips 2 --predictors convlstm --json {tmp_path / 'docs' / 'one.json'}"
    assert cli.main(words.split()) == 0
    content = read_record(tmp_path / "docs" / "one.json")
    assert list(content["rows"]) == ["ConvLSTM", "MotionRNN-ConvLSTM"] and content["test_clips"] == 2
    assert content["command"].startswith("motionrnn compare --config settings.json --out out --seeds 5")


def test_json_keeps_numbers_as_keys_beside_what_is_not_finite(tmp_path: Path) -> None:
    assert str(read_json(write_json(tmp_path / "x.json", {"a": {1: math.nan}}))) == "{'a': {'1': nan}}"


def test_settings_with_many_digits_are_those_of_the_same_command(tmp_path: Path) -> None:
    config = replace(plan().config, lr=0.00123456789, steps=1)
    protocol = Protocol(thresholds=(23.010299956639813,), values=Values(70.0))
    long = replace(plan(), config=config, protocol=protocol)
    for _ in range(2):
        runner.run_plan(long, tmp_path / "runs", command="", record=tmp_path / "record.json")
    shutil.rmtree(tmp_path / "runs")
    # A file of before, whose settings were rounded.
    content = read_json(tmp_path / "record.json")
    content["settings"] |= {"lr": 0.00123457}
    content["settings"]["metrics"]["thresholds"] = [23.0103]
    write_json(tmp_path / "record.json", content)
    restore(tmp_path / "record.json", long, tmp_path / "runs")


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [], "trainings": [], "missing": []}', "\0", None])
def test_what_is_no_record_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.mkdir() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json is no record of an experiment"):
        read_record(path)
