"""Run `motionrnn bench`: measure on this machine, write the pages from the measured rows, or profile a model."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

import motionrnn_ext
from motionrnn_ext import backends
from motionrnn_ext.terminal.console import Console
from motionrnn_ext.training.folders import check_writable, held

from . import cases
from .measuring import cpu_ceilings, plan, rows, timing
from .measuring.machine import with_tuned_malloc
from .measuring.subjects import Programs
from .report import cells
from .report.measured import Run

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
Row = dict[str, Any]


def bench(options: argparse.Namespace) -> None:
    """Do what the options of `motionrnn bench` ask for; a mistake in them is a ValueError."""
    if options.report:
        check_alone("--report", options.argv)
        report()
        return
    check_device(options.device)
    programs = named_programs(options)
    comparisons = chosen(options, programs)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json: {options.json.parent} is no folder")
    if options.json is not None and options.json.is_dir():
        raise ValueError(f"--json: {options.json} is a folder; it should be a file")
    if options.json is not None:
        check_writable(options.json.resolve().parent, "--json")
    with motionrnn_ext.backend(options.device):  # for this call alone: a program may have called `main`
        if options.profile is not None:
            with held(options.profile):
                profile(options)
        else:
            measure(options, comparisons, programs)


def start_again_tuned(options: argparse.Namespace) -> None:
    """Restart a program that measures with a tuned malloc, see `machine.with_tuned_malloc`."""
    if not (options.report or options.default_malloc):
        with_tuned_malloc()


def check_alone(flag: str, words: Sequence[str]) -> None:
    given = [word.split("=", 1)[0] for word in words if word.startswith("-")]
    others = [word for word in given if word not in (flag, "--debug", "--import")]
    if others:
        raise ValueError(f"{flag} measures nothing and takes no other option: leave {others[0]} out")


def check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU")
    if why := backends.unavailable_reason(device):
        raise ValueError(f"--device {device}: {why}")


def named_programs(options: argparse.Namespace) -> Programs:
    """Import the programs whose checkouts the options name."""
    official, openstl = None, None
    if options.official is not None:
        from .measuring.official import Program

        official = Program(options.official)
    if options.openstl is not None:
        from .measuring.openstl import OpenSTL

        openstl = OpenSTL(options.openstl)
    return Programs(official, openstl)


def chosen(options: argparse.Namespace, programs: Programs) -> list[plan.Comparison]:
    """Return the comparisons that the options ask for."""
    official, openstl = (program is not None for program in programs)
    if options.quick:
        planned = plan.quick_plan(official, options.dry_run, openstl)
    elif options.device == "cuda":
        planned = plan.gpu_plan(options.dry_run, official, openstl)
    else:
        planned = plan.cpu_plan(official, options.dry_run, openstl)
    if options.only is not None:
        planned = [c for c in planned if options.only in str(c)]
        if not planned:
            raise ValueError(f"--only {options.only!r}: no comparison has this in its name")
    return planned


def measure(options: argparse.Namespace, comparisons: Sequence[plan.Comparison], programs: Programs) -> None:
    console = Console(None if sys.stdout.isatty() else 160)
    report = rows.empty_report(options.device, ceilings(options.device), options.quick or options.dry_run)
    report |= {"command": command(options), "only": options.only}
    console.print(headline(report, len(comparisons), programs))
    rows.measure(
        comparisons, report, effort(options), options.json, options.seconds,
        lambda measured: console.print(table(measured, options.device)), programs,
    )  # fmt: skip
    failed = sum("error" in row for row in report["rows"])
    console.print(f"{len(report['rows'])} rows, {failed} failed")
    if report["not_run"]:
        console.print(f"not run for lack of time (--seconds): {len(report['not_run'])}")
    if options.json is not None:
        console.print(f"rows: {options.json}", soft_wrap=True)


def ceilings(device: str) -> dict[str, Any] | None:
    if device == "cpu":
        return cpu_ceilings.measure()
    from .gpu import ceilings

    return ceilings.measure()


def effort(options: argparse.Namespace) -> timing.Effort:
    if options.dry_run:
        return timing.DRY_RUN
    if options.quick:
        return timing.QUICK
    return timing.ON_GPU if options.device == "cuda" else timing.ON_CPU


def command(options: argparse.Namespace) -> str:
    """Return the command as it was given, without the folders of this machine."""
    words = [part for word in options.argv for part in word.split("=", 1)]  # --flag=value as --flag value
    for flag, instead in (
        ("--official", "PATH"),
        ("--openstl", "PATH"),
        ("--json", options.json and options.json.name),
    ):
        if flag in words[:-1]:
            words[words.index(flag) + 1] = instead
    return shlex.join(["motionrnn", *words])


# ---- On the console


def headline(report: dict[str, Any], comparisons: int, programs: Programs) -> str:
    where = "{cpu}, kernels for {instruction_set}, {threads} threads, malloc {malloc}".format(**report)
    if report["gpu"]:
        where = "{name}, driver {driver}, CUDA {torch_cuda}; ".format(**report["gpu"]) + where
    versions = "torch {torch}, Python {python}, commit {commit}".format(**report)
    absent = "" if programs.official else "\n--official PATH adds the released program"
    absent += "" if programs.openstl else "\n--openstl PATH adds OpenSTL's networks"
    return (
        f"{where}\n{versions}\n{comparisons} comparisons, medians of rounds in turns; results are compared with "
        f"float64 before anything is timed{absent}"
    )


def table(measured: Sequence[Row], device: str) -> Table:
    """Return the table of one comparison."""
    first, run = measured[0], Run("", {"device": device, "rows": measured})
    name = " ".join(str(first[key]) for key in ("op", "setting", "direction", "shape", "dtype") if first[key])
    missing = [f"{cells.implementation_of(row)}: {row[kind]}"
               for row in measured for kind in ("error", "unavailable") if kind in row]  # fmt: skip
    made = Table(title=name, title_justify="left", title_style="bold", expand=False,
                 caption=Text("\n".join(missing)), caption_justify="left")  # fmt: skip
    for heading in cells.row_header(run.on_gpu):
        made.add_column(heading, justify="left" if heading == "implementation" else "right")
    for row in run.rows:
        line = cells.row_cells(run, row)
        made.add_row(*[Text(c, style="bold red" if c.endswith(cells.LOST) else "") for c in line])
    return made


# ---- Pages and profiles


def report() -> None:
    """Write the repository's pages from the rows that are kept in it."""
    from .report.pages import write

    docs, readme = HERE.parent / "docs", HERE.parent / "README.md"
    if not (RESULTS.is_dir() and docs.is_dir() and readme.is_file()):
        raise ValueError(
            "--report writes docs/ and README.md of the repository; run it from an editable installation"
        )
    for path in write(RESULTS, docs, readme):
        print(os.path.relpath(path))


def profile(options: argparse.Namespace) -> None:
    from .profile.profiles import write

    setting = cases.DRY_RUN if options.dry_run else cases.QUICK if options.quick else cases.HUMAN36M
    print(write(options.profile, setting.name, options.device))
