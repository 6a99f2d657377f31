"""Training and scoring of the rows of a table, one training after the other in this process, and the table's files."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .. import __version__
from ..data.registry import sequences_of
from ..evaluation.pictures import Pictures
from ..evaluation.scores import BASELINE
from ..evaluation.tables import print_paths
from ..files import write_json, write_text
from ..metrics import counted
from ..terminal.console import Console, is_animated, wide_console
from ..training.config import Config
from ..training.folders import check_writable, held
from ..training.logs import check_service
from ..training.runs import NotFinite, has_begun, last_step, load_run, seconds_per_step, start_folder
from ..training.train import train
from . import table
from .checks import Checked, check
from .differences import kept
from .folder import check_training, open_folder, read_result, result_file
from .plan import Plan, Training
from .record import restore, write_record


def run_plan(plan: Plan, folder: Path, *, command: str, record: Path | None = None) -> dict[str, Any]:
    """Train and score what is not finished, then write and print the table; return the content of results.json.

    Args:
        command: the command line that the table names.
        record: a JSON file that receives what is finished, after each training, see `record`. What it holds already
            counts as finished.

    Raises:
        ValueError: the plan does not pass `check`.
        RunError: the folder holds something else, or has other settings or a damaged file.
        NotFinite: the numbers of a training did not stay finite; raised at the end, when the table is written.
        KeyboardInterrupt: the user has stopped it; the same call resumes.
    """
    if record is not None:
        check_writable(record.parent, "--json")
    with held(folder):
        return _run_plan(plan, folder, command, record)


def _run_plan(plan: Plan, folder: Path, command: str, record: Path | None) -> dict[str, Any]:
    console = Console()
    check_service(plan.config, folder)
    checked = check(plan)
    about = (checked.costs, command, sequences_of(checked.clips))
    open_folder(folder, plan)
    if record is not None and record.exists():
        restore(record, plan, folder)
    trainings, finished = plan.trainings(), {}
    for training in trainings:
        result = read_result(folder, training, checked.metrics)
        if result is None:
            check_training(folder / "runs" / training.name, training.config)
        else:
            finished[training.name] = result
    if record is not None and finished:
        write_record(record, plan, finished, *about)
    _introduce(console, plan, folder, len(finished))
    with _Display(console, plan, len(finished)) as display:
        for number, training in enumerate(trainings, start=1):
            if training.name not in finished:
                display.start(training)
                result = finished[training.name] = _finish(training, folder, checked, display)
                display.line(f"[{number}/{len(trainings)}] {training.label}: {table.result_text(result)}")
                if record is not None:
                    write_record(record, plan, finished, *about)
    in_order = [finished[training.name] for training in trainings]
    results = table.results(plan, in_order, *about)
    *tables, reading = table.terminal(results)
    for part in tables:
        wide_console().print(part)
    console.print(reading)
    pictures = _write(plan, folder, results)
    if record is not None:
        pictures.append(record)
    print_paths(pictures)
    if results["stopped"]:
        stopped = "; ".join(f"{label}: {why}" for label, why in results["stopped"].items())
        raise NotFinite(f"the table is written, but not every training stayed finite: {stopped}")
    pictures.check()
    return results


def _finish(training: Training, folder: Path, checked: Checked, display: _Display) -> dict[str, Any]:
    """Begin or resume a training, score its model, write and return the result.

    The model is the one after the last step, so that all have had the same budget.
    """
    began, home, config = time.perf_counter(), folder / "runs" / training.name, training.config
    resumed = has_begun(home)
    if not resumed:
        start_folder(home, config.located(), resume=False)
    stopped, step = None, config.steps
    try:
        train(config, home, resume=True, progress=not display.is_shown, watchers=[display])
        trained = load_run(home / "checkpoints" / "last.ckpt")
        scores = checked.score({training.row.label: trained.model.to(_device(config))})
    except NotFinite as error:
        # A row that diverges is a result too, and the other rows are still wanted.
        stopped, step = str(error).partition(";")[0], last_step(home) or 0
        scores = checked.score({})
        scores[training.row.label] = _no_scores(scores[BASELINE], checked.metrics)
    per_step = seconds_per_step(home)
    per_clip = {label: one.pop("per_clip", {}) for label, one in scores.items()}
    result = {
        "row": training.row.label,
        "seed": config.seed,
        "metrics": scores[training.row.label],
        "baseline": scores[BASELINE],
        "other_baselines": {
            label: one for label, one in scores.items() if one.get("baseline") and label != BASELINE
        },
        "per_clip": kept(per_clip[training.row.label], table.headline(checked.metrics)),
        "step": step,
        "stopped": stopped,
        "seconds_per_step": None if per_step is None else round(per_step, 5),
        "seconds": round(time.perf_counter() - began, 1),
        "resumed": resumed,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(config),
        "version": __version__,
        "commit": commit(),
        "config": config.to_dict(),
    }
    write_json(result_file(folder, training), result)
    return result


def _no_scores(baseline: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a training that did not stay finite: nan for each of `names`."""
    per_lead = {name: [math.nan] * len(values) for name, values in baseline["per_lead"].items()}
    about = {name: baseline[name] for name in ("samples", "protocol")}
    return {**dict.fromkeys(names, math.nan), "per_lead": per_lead, **about}


def _device(config: Config) -> str:
    on_gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def machine(config: Config) -> str:
    """Return the device, the number of threads and the version of torch, as the table names them."""
    device = torch.cuda.get_device_name() if _device(config) == "cuda" else f"CPU ({platform.machine()})"
    return f"{device}, {counted(torch.get_num_threads(), 'thread')}, torch {torch.__version__}"


def commit() -> str | None:
    """Return the commit of this package's checkout, with "-dirty" if files differ, or None without a checkout."""
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return None
    command = ["git", "-C", os.fspath(home), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _write(plan: Plan, folder: Path, results: Mapping[str, Any]) -> Pictures:
    pictures = Pictures([write_json(folder / "results.json", results), folder / "table.md"])
    write_text(folder / "table.md", table.markdown(results))
    pictures.draw(table.figure, folder / "figure.png", plan, results)
    return pictures


def _introduce(console: Console, plan: Plan, folder: Path, finished: int) -> None:
    n_rows, n_seeds = len(plan.rows), len(plan.seeds)
    sizes = [counted(n_rows, "row"), counted(n_seeds, "seed"), counted(n_rows * n_seeds, "training")]
    steps = counted(plan.config.steps, "step")
    console.print(f"{plan.title}: {sizes[0]} with {sizes[1]}, {sizes[2]} of {steps} each")
    if finished:
        console.print(f"{finished} of them {'is' if finished == 1 else 'are'} finished and not repeated.")
    where = f"Everything goes to {folder}; stop with Ctrl-C, and resume with the same command."
    console.print(where, soft_wrap=True)


class _Display(L.Callback):
    """The progress over all steps of the table and within the current training: bars, or lines without a terminal."""

    def __init__(self, console: Console, plan: Plan, n_finished: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not is_animated(),
        )
        self._steps = plan.config.steps
        self._done = self._steps * n_finished
        total = self._steps * len(plan.rows) * len(plan.seeds)
        self._all = self._progress.add_task("all steps", total=total, completed=self._done)
        self._one = self._progress.add_task("", total=self._steps, visible=False)

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def is_shown(self) -> bool:
        return not self._progress.disable

    def start(self, training: Training) -> None:
        """Show which training begins."""
        if not self.is_shown:
            self._progress.console.print(f"training {training.label}")
        self._progress.reset(self._one, description=training.label, visible=True)

    def line(self, text: str) -> None:
        """Print a line about the training that has ended."""
        self._done += self._steps
        self._progress.update(self._all, completed=self._done)
        self._progress.console.print(text)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._progress.update(self._one, completed=trainer.global_step)
        self._progress.update(self._all, completed=self._done + trainer.global_step)
