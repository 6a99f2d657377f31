"""The compatibility table of docs/pytorch.md: which feature has been tested on which backend, and what came of it.

A test of a feature carries `@feature("vmap")`, or `@feature("vmap", refused=True)` where what it asserts is a refusal.
Its backend is its argument `on` (see under_test.py) or `backend`, or is named: `@feature("ddp", on=["cpu"])`. Every
pytest process of a run, those that a test starts included, notes what passed. At the end, the process that was started
first compares that with `features.json`, from which the page's table is made.

After a change, `MOTIONRNN_EXT_FEATURES=NOTES make test-nightly` keeps what passed, and
`python tests/support/features.py --update NOTES` writes it into record and page.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from repository import ROOT, TESTS

FEATURES = {
    "values": "the ops and their gradients, against float64",
    "half": "bfloat16 and float16, motion state in float32",
    "autocast": "autocast to bfloat16 or float16",
    "channels_last": "channels_last through the layer, without copies",
    "compile": "`torch.compile(fullgraph=True)`, forward and backward",
    "compile_model": "the same of a whole training step of `MotionRNN`",
    "dynamic": "the same with dynamic shapes",
    "export": "`torch.export` with dynamic dimensions",
    "aoti": "AOTInductor, packed and loaded",
    "onnx": "ONNX, run by onnxruntime",
    "deterministic": "bitwise equal under `use_deterministic_algorithms(True)`",
    "second": "second derivatives, and higher ones",
    "forward_mode": "forward-mode derivatives, `torch.func.jvp`",
    "func": "`torch.func.grad` and its kin",
    "vmap": "`torch.vmap`, also of gradients (`is_grads_batched`)",
    "flops": "counted by `FlopCounterMode`",
    "checkpoint": "activation checkpointing, also selective",
    "cuda_graphs": "CUDA graphs: `graphed`, `make_graphed_callables`, `reduce-overhead`",
    "ddp": "`DistributedDataParallel` on two processes",
    "fsdp": "FSDP2 (`fully_shard`) on two processes",
    "copies": "pickle, deepcopy, state dicts",
    "fuzz": "random shapes, strides, dtypes and offsets, against float64",
    "threads": "many threads at once",
}
FILES = [  # whose tests run emulated and interpreted kernels, too
    "test_autocast.py",
    "test_channels_last.py",
    "test_checkpointing.py",
    "test_compile.py",
    "test_deterministic_steps.py",
    "test_distributed.py",
    "test_export.py",
    "test_recompile.py",
    "test_transforms.py",
    "test_warmup.py",
]
COLUMNS = ("reference", "cpu", "cuda", "triton")
_COLUMN_OF = {"emulated": "cuda", "auto": None}
_HOW = {"emulated": "emulated", "triton": "interpreted"}  # without a GPU
WORKS, REFUSED = "works", "refused"

RECORD = TESTS / "support" / "features.json"
PAGE = ROOT / "docs" / "pytorch.md"
START, END = (
    "<!-- compatibility: made by tests/pytorch/test_features.py -->\n",
    "<!-- end of compatibility -->\n",
)
FOLDER = "MOTIONRNN_EXT_FEATURES"  # where the processes of a run leave their notes

Cells = dict[str, dict[str, str]]  # of a feature: of a column: what came of it
_noted: Cells = {}


def feature(name: str, *, refused: bool = False, on: Sequence[str] = ()) -> pytest.MarkDecorator:
    assert name in FEATURES, name
    return pytest.mark.feature(name, refused=refused, on=tuple(on))


# ---- Called by conftest.py


_made: list[str] = []


def begin() -> None:
    """Make the folder of the notes, which `end` of this process removes, unless a variable names one that stays: its
    maker's, or a user's."""
    if FOLDER in os.environ:
        Path(os.environ[FOLDER]).mkdir(parents=True, exist_ok=True)
    else:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="motionrnn_ext-features-")
        _made.append(os.environ[FOLDER])


def note(item: pytest.Item, passed: bool) -> None:
    on_gpu = item.get_closest_marker("cuda") is not None
    for mark in item.iter_markers("feature"):
        for backend in _backends(item, mark):
            said = "fails" if not passed else REFUSED if mark.kwargs["refused"] else WORKS
            if said == WORKS and backend in _HOW and not on_gpu:
                said += f", {_HOW[backend]}"
            column = _COLUMN_OF.get(backend, backend)
            if column is not None:
                _put(_noted, mark.args[0], column, said)


def end() -> Cells | None:
    """Leave this process's notes in the folder; in the process that has made it, return what all have noted."""
    if _made:
        found = noted()
        shutil.rmtree(_made.pop())
        del os.environ[FOLDER]
        return found
    if _noted:
        path = Path(os.environ[FOLDER]) / f"{os.getpid()}.json"
        path.write_text(json.dumps(_noted))
    return None


def _backends(item: pytest.Item, mark: pytest.Mark) -> Sequence[str]:
    if mark.kwargs["on"]:
        return mark.kwargs["on"]
    parameters = item.callspec.params  # type: ignore[attr-defined]
    return [parameters["on"].name] if "on" in parameters else [parameters["backend"]]


def _put(cells: Cells, name: str, column: str, said: str) -> None:
    """Note an outcome. A failure counts most among several tests' outcomes, then what works."""
    row = cells.setdefault(name, {})
    rank = ["fails", WORKS, REFUSED]
    row[column] = min(row.get(column, said), said, key=lambda s: rank.index(s.partition(",")[0]))


# ---- The table


def noted() -> Cells:
    """Return what this process noted, and those it started."""
    cells: Cells = {}
    found = [json.loads(path.read_text()) for path in Path(os.environ[FOLDER]).glob("*.json")]
    for part in [*found, _noted]:
        for name, row in part.items():
            for column, said in row.items():
                _put(cells, name, column, said)
    return cells


def disagreements(found: Cells, whole: bool) -> list[str]:
    """Return what a run's notes and the record say differently. A `whole` run also covers all of the record, for the
    backends that it had."""
    record = recorded()
    wrong = [
        f"{name} on {column}: this run says '{said}', the record '{record.get(name, {}).get(column, 'nothing')}'"
        for name, row in found.items()
        for column, said in row.items()
        if said.partition(",")[0] != record.get(name, {}).get(column, "").partition(",")[0]
    ]
    if whole:
        ran = {column for row in found.values() for column in row}
        wrong += [
            f"{name} on {column}: no test of this run covers it"
            for name, row in record.items()
            for column in row
            if column in ran and column not in found.get(name, {})
        ]
    return wrong


def recorded() -> Cells:
    return json.loads(RECORD.read_text())


def write(cells: Cells) -> None:
    ordered = {n: {c: cells[n][c] for c in COLUMNS if c in cells[n]} for n in FEATURES if n in cells}
    RECORD.write_text(json.dumps(ordered, indent=2) + "\n")
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + START + "\n".join(table(ordered)) + "\n" + END + after)


def table(cells: Cells) -> Iterator[str]:
    yield f"| | {' | '.join(f'`{c}`' for c in COLUMNS)} |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    for name, title in FEATURES.items():
        row = cells.get(name, {})
        yield f"| {title} | {' | '.join(row.get(c, '-') for c in COLUMNS)} |"


def main() -> None:
    """Add the notes of a run of the tests to the record, and write the page's table anew."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--update", type=Path, metavar="NOTES", required=True,
        help=f"the folder of the notes: first run {FOLDER}=NOTES make test-nightly",
    )  # fmt: skip
    os.environ[FOLDER] = str(parser.parse_args().update)
    found, before = noted(), recorded()
    write({name: {**before.get(name, {}), **found.get(name, {})} for name in FEATURES})


if __name__ == "__main__":
    main()
