"""Records tests/recorded: float64 numbers of public programs, of each at one commit.

    python tests/support/record_cases.py --official PATH --openstl PATH --out tests/recorded

A PATH is a checkout of the program; its files are compared with the commit's and run as they are. Without one
of the two, the files recorded from that program stay. `recording.py` says what a file holds.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path

import record_motion_rnn
import record_openstl
from recording import record

PROGRAMS = {"official": record_motion_rnn, "openstl": record_openstl}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, of in PROGRAMS.items():
        wanted = f"a checkout of {of.PROGRAM.repository} at commit {of.PROGRAM.commit[:7]}"
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=wanted)
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="the folder to write to")
    arguments = parser.parse_args(argv)
    chosen = {name: path for name in PROGRAMS if (path := getattr(arguments, name)) is not None}
    if not chosen:
        parser.error("nothing to record: give a checkout by --official PATH, --openstl PATH or both")
    warnings.filterwarnings("ignore")  # of the programs: deprecated hooks, meshgrid
    loaders = {name: PROGRAMS[name].importer(path.resolve()) for name, path in chosen.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, load in loaders.items():
        for case, make in PROGRAMS[name].cases().items():
            record(arguments.out, case, partial(make, module_of=load), PROGRAMS[name].PROGRAM)


if __name__ == "__main__":
    main()
