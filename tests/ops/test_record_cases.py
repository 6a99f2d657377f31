"""The recorded files are what the recording programs list, and a file they write is one that tests can trust."""

from __future__ import annotations

from pathlib import Path

import pytest
import record_cases
import record_motion_rnn
import record_openstl
import torch
from golden import RECORDED, GoldenCase, relative_error
from recording import Case, Program, normal, record, redrawn
from torch import nn

PROGRAMS = [record_motion_rnn, record_openstl]


@pytest.mark.parametrize("of", PROGRAMS)
def test_every_listed_case_is_recorded_from_its_commit(of) -> None:
    for name in of.cases():
        case = GoldenCase(RECORDED / f"{name}.npz")
        assert case.meta["name"] == name
        assert (case.meta["repository"], case.meta["commit"]) == (of.PROGRAM.repository, of.PROGRAM.commit)
        assert case.meta["source"] in of.PROGRAM.blobs
        for group in ("param", "in", "cot"):
            assert all(torch.equal(t, t.float().double()) for t in case.group(group).values())


def test_nothing_else_is_recorded() -> None:
    listed = {f"{name}.npz" for of in PROGRAMS for name in of.cases()}
    assert {path.name for path in RECORDED.iterdir()} == listed


def test_a_recorded_file_gives_back_values_and_gradients(tmp_path: Path) -> None:
    def call(module, given):
        out = module(given["x"]).sigmoid()
        return {"out": out}, {"twice": 2 * out}

    def make(g):
        inputs = {"x": normal(g, 5, 3), "unread": normal(g, 2)}
        return Case("some/file.py", {}, redrawn(nn.Linear(3, 2), g), inputs, call)

    case = GoldenCase(record(tmp_path, "sigmoid", make, Program("owner/name", "0" * 40, {})))
    w, b, x, cot = (case.arrays[key] for key in ("param/weight", "param/bias", "in/x", "cot/out"))
    y = (x @ w.T + b).sigmoid()
    through = cot * y * (1 - y)
    expected = {"out/out": y, "aux/twice": 2 * y, "grad_in/x": through @ w}
    expected |= {"grad_param/weight": through.T @ x, "grad_param/bias": through.sum(0)}
    for key, reference in expected.items():
        assert 0 < relative_error(case.arrays[key], reference) <= 2**-34  # rounded, and no further
    assert case.meta["none_grad"] == ["grad_in/unread"] and not case.arrays["grad_in/unread"].any()
    assert 0 < case.meta["fp32_relerr"]["grad_param/weight"] < 1e-6


def test_an_offset_near_an_integer_is_drawn_again(tmp_path: Path) -> None:
    draws = iter([torch.tensor([2.0]), torch.tensor([2.5])])

    def make(g):
        inputs = {"offset": next(draws).double()}
        module = redrawn(nn.Linear(1, 1), g)
        return Case("", {"outc": 1}, module, inputs, lambda m, given: ({"out": m(given["offset"])}, {}))

    case = GoldenCase(record(tmp_path, "near", make, Program("owner/name", "0" * 40, {})))
    assert case.arrays["in/offset"].item() == case.meta["margin"] + 2 == 2.5


@pytest.mark.parametrize(("option", "of"), [("--official", record_motion_rnn), ("--openstl", record_openstl)])
def test_files_of_another_commit_are_refused(tmp_path: Path, option: str, of) -> None:
    out, first = tmp_path / "out", next(iter(of.PROGRAM.blobs))
    for content in (None, "print()"):
        if content is not None:
            (tmp_path / first).parent.mkdir(parents=True)
            (tmp_path / first).write_text(content)
        with pytest.raises(SystemExit, match=f"{first} is not that of {of.PROGRAM.repository} at "):
            record_cases.main([option, str(tmp_path), "--out", str(out)])
    assert not out.exists()


def test_without_a_checkout_there_is_nothing_to_record(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        record_cases.main(["--out", str(tmp_path)])
    assert "--official PATH, --openstl PATH or both" in capsys.readouterr().err
