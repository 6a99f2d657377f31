"""`motionrnn info`: what a report of a defect needs, and nothing that should not be in one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import motionrnn_ext
from motionrnn_ext import backends, cli
from motionrnn_ext.cli import info


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["info", *options]) == 0
    return capsys.readouterr().out


def test_every_backend_is_tried(capsys: pytest.CaptureFixture[str]):
    facts = json.loads(shown(capsys, "--json"))
    assert tuple(facts["smoke_runs"]) == motionrnn_ext.available_backends()
    for run in facts["smoke_runs"].values():
        assert 0 < run["error"] < 1e-5


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda out: out * 1.001, "WRONG, error 2e-03"),
        (lambda out: out * math.nan, "FAILS: the result is not finite"),
        (lambda out: (_ for _ in ()).throw(OSError("two\nlines")), "FAILS: OSError: two lines"),
    ],
    ids=["wrong", "nan", "raises"],
)
def test_a_backend_that_is_wrong_or_fails(change: Any, said: str, monkeypatch: pytest.MonkeyPatch):
    dispatch = backends.dispatch

    def changed(op: str, *arguments: Any) -> Any:
        out = dispatch(op, *arguments)
        return change(out) if out.dtype == torch.float32 else out

    monkeypatch.setattr(backends, "dispatch", changed)
    lines = info.text(info.collect()).splitlines()
    assert f"  reference    {said}" in lines


def test_environment_without_secrets_and_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    told = {
        "MOTIONRNN_EXT_CPU_ISA": "baseline",
        "TRITON_CACHE_DIR": f"{tmp_path}/triton",
        "CUDA_VISIBLE_DEVICES": "0",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "MALLOC_ARENA_MAX": "2",
    }
    untold = {
        "MY_OMP_TOKEN": "t0ken",
        "HF_TOKEN": "t0ken",
        "AWS_SECRET_ACCESS_KEY": "t0ken",
        "COMP_WORDS": "t0ken",
    }
    for name, value in {**told, **untold}.items():
        monkeypatch.setenv(name, value)
    facts = info.collect()
    assert {n: facts["environment"][n] for n in told} == {**told, "TRITON_CACHE_DIR": "~/triton"}
    text = info.text(facts)
    assert "  TRITON_CACHE_DIR=~/triton" in text.splitlines()
    assert "t0ken" not in text and str(tmp_path) not in text + json.dumps(facts)


def test_markdown_is_the_text_as_a_block(capsys: pytest.CaptureFixture[str]):
    text, block = shown(capsys), shown(capsys, "--markdown")
    assert block == f"```\n{text}```\n"
    assert text.startswith(f"motionrnn_ext  {motionrnn_ext.__version__}, ")
    with pytest.raises(SystemExit):
        cli.main(["info", "--json", "--markdown"])
