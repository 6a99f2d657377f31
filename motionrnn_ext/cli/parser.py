"""The commands of the command line `motionrnn`, and the options of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from .. import __version__
from .options import (
    add_clip,
    add_data,
    add_ensemble,
    add_experiment,
    add_metrics,
    add_model,
    add_place,
    add_settings,
    count,
    index,
    path_of,
)


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="motionrnn",
        description="MotionRNN video prediction: train on moving digits, people or radar echo, evaluate, predict.",
        epilog="`motionrnn COMMAND --help` shows a command's options. Start with: motionrnn demo",
    )
    version = f"motionrnn_ext {__version__}, torch {torch.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_visualize(commands)
    _add_ablate(commands)
    _add_compare(commands)
    _add_bench(commands)
    _add_tune(commands)
    _add_export(commands)
    _add_info(commands)
    _add_demo(commands)
    return parser


def _add(commands: Any, name: str, help: str, examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples) if examples else None
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=form, allow_abbrev=False
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    help = "import this Python module first, which registers a predictor or a data set of your own (may be repeated)"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help=help)
    return parser


def _add_export(commands: Any) -> None:
    help = "write the model of a run as a folder of weights, model.safetensors and config.json, to hand on"
    examples = ["motionrnn export runs/mine mine --float16", "motionrnn predict mine --frames path/to/frames"]
    parser = _add(commands, "export", help, examples)
    parser.add_argument("checkpoint", type=path_of, metavar="CKPT", help="a run's folder or a checkpoint")
    parser.add_argument("folder", type=path_of, metavar="FOLDER", help="a new folder for the weights")
    help = "store the weights in float16, in half the space; they are loaded as float32"
    parser.add_argument("--float16", action="store_true", help=help)


def _add_info(commands: Any) -> None:
    help = "print what a bug report needs: versions, backends with a check of each, build flags"
    form = _add(commands, "info", help).add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--markdown", action="store_true", help="as a block to paste into an issue")


def _add_tune(commands: Any) -> None:
    help = "measure the block sizes of Triton's kernels on this GPU, and keep the fastest for later runs"
    examples = [
        "motionrnn tune",
        "motionrnn tune --channels 64 128 --dtype bfloat16 --size 32 32",
    ]
    parser = _add(commands, "tune", help, examples)
    help = "widths of the layers, as in train --hidden (default: 64)"
    parser.add_argument("--channels", type=count, nargs="+", default=[64], metavar="WIDTH", help=help)
    names = ("float32", "bfloat16", "float16")
    help = "dtypes of the features (default: float32 bfloat16)"
    parser.add_argument("--dtype", nargs="+", choices=names, default=list(names[:2]), help=help)
    help = "height and width of the layers' maps, even numbers (default: 32 32)"
    parser.add_argument("--size", type=count, nargs=2, default=[32, 32], metavar=("H", "W"), help=help)
    parser.add_argument(
        "--batch-size", type=count, default=8, metavar="N", help="clips at a time (default: 8)"
    )
    help = "print the rows of motionrnn_ext/backends/triton/measured.py in place of the table"
    parser.add_argument("--rows", action="store_true", help=help)


def _add_demo(commands: Any) -> None:
    help = "train ConvLSTM and MotionRNN-ConvLSTM alike, compare them, and draw their predictions"
    parser = _add(commands, "demo", help, ["motionrnn demo", "motionrnn demo --out runs/mine"])
    help = "folder (default: runs/demo, or the next free runs/demo-N once that is finished)"
    parser.add_argument("--out", type=path_of, default=None, help=help)
    help = "a minute, to see that everything works; the models learn nothing"
    parser.add_argument("--quick", action="store_true", help=help)


def _add_train(commands: Any) -> None:
    examples = [
        "motionrnn train --out runs/mine --predictor predrnn --hidden 64 64 64 --steps 20000",
        "motionrnn train --out runs/mine --resume",
        "motionrnn train --out runs/base --no-motion-gru --no-highway     # the bare predictor",
        "motionrnn train --out runs/mnist --digits path/to/idx --plain    # Moving MNIST",
        "motionrnn train --out runs/mine --dataset frames --root path/to/frames    # SEQUENCE/FRAME.png, grey",
        "motionrnn train --out runs/tuned --init-from vmnist-small --dataset frames --root path/to/frames",
        "motionrnn train --out runs/walk --dataset human36m --root path/to/jpgs --workers 4",
    ]
    parser = _add(commands, "train", "train a model on clips of a data set", examples)
    parser.add_argument(
        "--out", type=path_of, default=Path("runs/train"), help="the run's folder (default: runs/train)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in --out from its last checkpoint"
    )
    help = "start from the settings of this file, a run's config.json or a .yaml file of settings"
    parser.add_argument("--config", type=path_of, metavar="FILE", help=help)
    help = "a progress bar; without a terminal, a line for each validation and every 30 seconds (default: on)"
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True, help=help)
    add_settings(parser)


def _add_evaluate(commands: Any) -> None:
    help = "score models on held-out clips: MSE, MAE, PSNR, SSIM, GDL and more per lead time, with pictures"
    examples = [
        "motionrnn evaluate runs/mine",
        "motionrnn evaluate runs/base runs/mine --clips 1000 --out runs/compared",
        "motionrnn evaluate runs/radar --thresholds 20 30 40 --value-scale 70 --value-offset -10",
        "motionrnn evaluate runs/radar --dataset shanghai_h5 --root path/to/shanghai.h5 --values shanghai",
        "motionrnn evaluate model.ckpt-80000 --dataset human36m --root path/to/jpgs   # an official checkpoint",
    ]
    parser = _add(commands, "evaluate", help, examples)
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=path_of,
        metavar="CKPT",
        help="runs' folders or checkpoints, or weights that come with the package",
    )
    parser.add_argument(
        "--clips",
        type=count,
        metavar="N",
        help="clips to score on (default: 200 if generated, all if from files)",
    )
    parser.add_argument("--n-output", type=count, metavar="N", help="frames to predict (default: as trained)")
    add_data(parser)
    parser.add_argument("--digits", help="'sklearn' or a folder with MNIST's IDX files (default: as trained)")
    parser.add_argument(
        "--split",
        choices=("test", "val", "train"),
        default="test",
        help="which part of the data (default: test)",
    )
    parser.add_argument(
        "--batch-size", type=count, default=16, metavar="N", help="clips at a time (default: 16)"
    )
    parser.add_argument("--pictures", type=index, default=2, metavar="N", help="clips to draw (default: 2)")
    add_ensemble(parser, "and score it: CRPS, spread, skill and ranks")
    add_model(parser)
    add_place(parser, "evaluation")
    add_metrics(parser.add_argument_group("metrics, see motionrnn_ext.metrics"))


def _add_predict(commands: Any) -> None:
    help = "predict the frames that follow a clip, as numbers, a strip and a GIF, with the motion trend"
    examples = [
        "motionrnn predict runs/mine --clip 7",
        "motionrnn predict runs/mine --frames clip.npy --n-output 30",
        "motionrnn predict runs/mine --frames film.mp4 --pad",
        "motionrnn predict --pretrained vmnist-small --frames film.mp4 --pad",
        "motionrnn predict runs/mine --clip 7 --members 8",
        "motionrnn predict runs/walk --clip 7 --root path/to/jpgs",
    ]
    parser = _add(commands, "predict", help, examples)
    add_clip(parser, "frames to predict (default: as trained)")
    add_ensemble(parser, "into members.npy")
    add_place(parser, "prediction")


def _add_visualize(commands: Any) -> None:
    help = "draw the motion that a model sees in a clip: trend arrows, and where every tap reads; and its numbers"
    examples = [
        "motionrnn visualize runs/mine --clip 7",
        "motionrnn visualize runs/mine --interface 1 --times 2 5 8",
        "motionrnn visualize runs/mine --frames clip.npy --out pictures",
        "motionrnn visualize runs/mine --clips 64     # numbers of the motion over 64 clips, in motion.json",
    ]
    parser = _add(commands, "visualize", help, examples)
    add_clip(parser, "frames to predict (default: as trained)")
    help = "only the MotionGRU above this layer, counted from 1 (default: all)"
    parser.add_argument("--interface", type=count, metavar="L", help=help)
    help = "frames to show in the PNGs, counted from 1 (default: evenly spaced, six with arrows and four with taps)"
    parser.add_argument("--times", type=count, nargs="+", metavar="T", help=help)
    help = "places per frame whose taps are shown, those with the most motion (default: 3)"
    parser.add_argument("--positions", type=count, default=3, metavar="N", help=help)
    help = "compute the numbers of motion.json over so many test clips (default: the shown clip alone)"
    parser.add_argument("--clips", type=count, metavar="N", help=help)
    add_place(parser, "motion")


def _add_ablate(commands: Any) -> None:
    help = "train MotionRNN with and without its parts: predictor alone, either part, both, no transient, no trend; "
    help += "and with motion that cannot go far: bounded offsets, a gated trend"
    examples = [
        "motionrnn ablate --preset quick",
        "motionrnn ablate --preset full --predictor predrnn --seeds 0 1 2 3 4",
        "motionrnn ablate --config runs/mine/config.json --out runs/mine-apart",
        "motionrnn ablate --preset standard --dataset shanghai_h5 --root path/to/shanghai.h5",
    ]
    parser = _add(commands, "ablate", help, examples)
    add_experiment(parser, ("seed", "motion_gru", "highway", "transient", "trend"))


def _add_compare(commands: Any) -> None:
    help = "train every predictor with and without MotionRNN"
    examples = [
        "motionrnn compare --preset quick",
        "motionrnn compare --preset full --predictors predrnn mim --hidden 64 64 64",
    ]
    parser = _add(commands, "compare", help, examples)
    help = "the predictors (default: all)"
    parser.add_argument("--predictors", nargs="+", metavar="NAME", help=help)
    add_experiment(parser, ("seed", "predictor", "motion_gru", "highway"))


def _add_bench(commands: Any) -> None:
    help = "time the ops, the cell and whole models on this machine, and what they replace"
    examples = [
        "motionrnn bench --quick",
        "motionrnn bench --threads 2 --official path/to/MotionRNN --json benchmarks/results/bench_cpu.json",
        "motionrnn bench --only MotionGRUCell",
        "motionrnn bench --report     # writes docs/benchmarks.md and README's table",
    ]
    parser = _add(commands, "bench", help, examples)
    parser.add_argument("--quick", action="store_true", help="a few minutes: small shapes, a small model")
    choices = ("cpu", "cuda")
    parser.add_argument("--device", choices=choices, default="cpu", help="where to run (default: cpu)")
    help = "threads of PyTorch (default: PyTorch's choice)"
    parser.add_argument("--threads", type=count, metavar="N", help=help)
    help = "also compare the modules of this checkout of thuml/MotionRNN"
    parser.add_argument("--official", type=path_of, metavar="PATH", help=help)
    help = "also compare the base predictors with the networks of this checkout of chengtan9907/OpenSTL"
    parser.add_argument("--openstl", type=path_of, metavar="PATH", help=help)
    parser.add_argument(
        "--json", type=path_of, metavar="PATH", help="write each row to this file when it is measured"
    )
    help = "start no comparison after this time (default: no limit)"
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="X", help=help)
    help = "only comparisons whose name contains this, such as 'offset_warp forward', 'B8 C16 16x16' or 'human36m'"
    parser.add_argument("--only", metavar="TEXT", help=help)
    help = "do not tune malloc; by default glibc's keeps large blocks, which favours code that allocates more"
    parser.add_argument("--default-malloc", action="store_true", help=help)
    instead = parser.add_mutually_exclusive_group()
    help = "measure nothing: write docs/benchmarks.md and README's table from benchmarks/results"
    instead.add_argument("--report", action="store_true", help=help)
    help = "measure nothing: profile a training step of a model into this folder (default: runs/profile)"
    instead.add_argument(
        "--profile", type=path_of, nargs="?", const=Path("runs/profile"), metavar="DIR", help=help
    )
    # For tests: tiny shapes, and nothing is compiled.
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)
