"""Does --config read a YAML file as it reads JSON, with the values that its text looks like?"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the training program's packages are not installed")
pytest.importorskip("yaml", reason="PyYAML is not installed")

from commands import fails, run
from trainings import TINY

from motionrnn_ext.training.config import Config
from motionrnn_ext.training.yaml_settings import parse_yaml

RUN = """
# a short run
hidden: [8, 8]
patch_size: 2
filter_size: 3
image_size: [16, 16]
digit_size: 8
n_input: 3
n_output: 3
train_clips: 10
val_clips: 3
batch_size: 2
steps: 2
lr: 1e-3
precision: 32
motion_gru: false
sampling: none
dbz: ~
overrides: {alpha: 5e-1}
accelerator: cpu
"""


def test_a_run_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    out = tmp_path / "run"
    assert run("train", "--config", tmp_path / "run.yaml", "--steps", 1, "--out", out, "--no-progress") == 0
    config = Config.read(out / "config.json")
    assert (config.hidden, config.steps, config.lr, config.precision) == ((8, 8), 1, 0.001, "32")
    assert (config.motion_gru, config.sampling, config.dbz) == (False, "none", None)
    assert config.overrides == {"alpha": 0.5}


def test_json_is_yaml(tmp_path: Path) -> None:
    """A config.json under another name gives the same settings."""
    TINY.write(tmp_path / "config.yml")
    assert Config.read(tmp_path / "config.yml") == TINY


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 0.001), ("-1E3", -1000.0), (".5", 0.5), ("1.", 1.0), ("010", 10), ("+7", 7), ("0x10", 16)],
        *[
            ("0o10", 8),
            ("no", "no"),
            ("On", "On"),
            ("y", "y"),
            ("true", True),
            ("False", False),
            ("null", None),
        ],
        *[("", None), ("1:30", "1:30"), ("1_000", "1_000"), ("2020-01-01", "2020-01-01"), ("'32'", "32")],
        *[("nan", "nan"), ("-.inf", float("-inf")), ("=", "="), ("# a comment", None), ("[1, a]", [1, "a"])],
    ],
)
def test_a_value_is_what_it_looks_like(text: str, value: Any) -> None:
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


def test_repeated_parts() -> None:
    text = "a: &a {steps: 1, lr: 2}\nb: {<<: *a, lr: 3}"
    assert parse_yaml(text)["b"] == {"steps": 1, "lr": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1e-3", "steps must be a finite number (int); got 0.001"),
        ("steps: 1_000", "steps must be a finite number (int); got '1_000'"),
        ("lr: 1:30", "lr must be a finite number (float); got '1:30'"),
        ("lr: .inf", "lr must be a finite number (float); got inf"),
        ("motion_gru: no", "motion_gru must be a bool (true or false); got 'no'"),
        ("sampling: no", "sampling must be one of linear, reverse, none; got 'no'"),
        ("hidden: 8, 8", "hidden must be numbers (int); got '8, 8'"),
        ("root: 2020", "root must be a str; got 2020"),
        ("spelling: 1", "unknown settings spelling"),
        ("1: 2", "unknown settings 1"),
        ("- steps: 1", "holds no settings of `motionrnn train`"),
        ("", "holds no settings of `motionrnn train`"),
        ("steps: 1\nlr: 1\nsteps: 2", "run.yaml is no readable YAML file: line 1: 'steps' is there twice"),
        ("steps: 1\n\tlr: 1", "line 2: found character '\\t' that cannot start any token"),
        ("steps: [1", "line 1: expected ',' or ']'"),
        ("steps: 1\n---\nsteps: 2", "line 2: but found another document"),
        ("steps: !!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
        ("root: !!timestamp x", "line 1: could not determine a constructor"),
        ("plain: !!bool x", "'x' is not true or false"),
        ("steps: \0", "is no text"),
        ("root: \1", "special characters are not allowed"),
    ],
)
def test_a_mistake_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    line = fails(capsys, "train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_names_that_stand_twice_in_json(tmp_path: Path) -> None:
    content = json.dumps(TINY.to_dict())
    (tmp_path / "config.json").write_text(content[:-1] + ', "steps": 3}')
    with pytest.raises(ValueError, match=r"config.json is no readable JSON file: 'steps' is there twice"):
        Config.read(tmp_path / "config.json")


def test_without_pyyaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "run.yaml").write_text(RUN)
    line = fails(capsys, "train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run")
    assert re.search(r"settings in YAML need the package PyYAML: pip install pyyaml$", line)
    TINY.write(tmp_path / "config.json")
    assert Config.read(tmp_path / "config.json") == TINY
