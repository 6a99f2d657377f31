"""The command line of `motionrnn`; the options of `train` are made from `Config`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from .. import __version__
from ..training.config import Config
from ..training.settings import DataSettings, ModelSettings, TrainingSettings, kind_of

DATA_OPTIONS = ("dataset", "root", "stride", "pixel_max", "missing")  # of `clips.other_data`
# What tensors alone do not tell of a model, beside what they do.
MODEL_OPTIONS = (
    "predictor", "cell_options", "compat", "patch_size", "variant", "overrides", "highway", "transient", "trend",
    "image_size",
)  # fmt: skip
_GROUPS = {"model": ModelSettings, "data": DataSettings, "training": TrainingSettings}


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, without the page of usage."""

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
    info = _add(
        commands, "info", "print what a bug report needs: versions, backends, a check of each, build flags"
    )
    form = info.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--markdown", action="store_true", help="as a block to paste into an issue")
    help = (
        "train ConvLSTM and MotionRNN-ConvLSTM with the same settings, compare them, draw what they predict"
    )
    demo = _add(commands, "demo", help, ["motionrnn demo", "motionrnn demo --out runs/mine"])
    help = "folder (default: runs/demo, or the next free runs/demo-N once that is finished)"
    demo.add_argument("--out", type=Path, default=None, help=help)
    demo.add_argument(
        "--quick", action="store_true", help="a minute, to see that all works; nothing is learnt"
    )
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


def _add_train(commands: Any) -> None:
    examples = [
        "motionrnn train --out runs/mine --predictor predrnn --hidden 64 64 64 --steps 20000",
        "motionrnn train --out runs/mine --resume",
        "motionrnn train --out runs/base --no-motion-gru --no-highway     # the bare predictor",
        "motionrnn train --out runs/mnist --digits path/to/idx --plain    # Moving MNIST",
        "motionrnn train --out runs/walk --dataset human36m --root path/to/jpgs --workers 4",
    ]
    parser = _add(commands, "train", "train a model on clips of a data set", examples)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/train"), help="the run's folder (default: runs/train)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out from its last checkpoint"
    )
    parser.add_argument("--config", type=Path, help="start from the settings of this config.json")
    help = "a progress bar; without a terminal, a line for each validation and every 30 seconds (default: on)"
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True, help=help)
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser, left_out: Collection[str] = (), default: str = "") -> None:
    """An option for every setting of a run but those `left_out`; `default` says what theirs is, if not Config's."""
    for title, settings in _GROUPS.items():
        group = parser.add_argument_group(title, default)
        for entry in fields(settings):
            if entry.name not in left_out:
                _add_setting(group, entry, with_default=not default)


def _add_setting(group: Any, entry: Field[Any], with_default: bool) -> None:
    flag, kind = f"--{entry.name.replace('_', '-')}", kind_of(entry)
    options: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS}
    default = "" if entry.default is MISSING else entry.metadata.get("unset") or _text(entry.default)
    options["help"] = entry.metadata["help"] + (f" (default: {default})" if default and with_default else "")
    if kind.item is bool:
        options |= {"action": argparse.BooleanOptionalAction}
    elif kind.item is dict:
        flag = entry.metadata["flag"]
        options |= {"action": "append", "metavar": "NAME=VALUE"}
    elif entry.name == "hidden":
        options |= {"type": kind.item, "nargs": "+", "metavar": "WIDTH"}
    elif kind.is_tuple:
        options |= {
            "type": kind.item,
            "nargs": 2,
            "metavar": ("H", "W") if kind.item is int else ("LOW", "HIGH"),
        }
    elif choices := entry.metadata["choices"]:
        options |= {"type": kind.item, "choices": choices}
    else:
        options |= {"type": kind.item, "metavar": {int: "N", float: "X"}.get(kind.item, "TEXT")}
    group.add_argument(flag, **options)


def _text(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _add_evaluate(commands: Any) -> None:
    help = "score models on held-out clips: MSE, MAE, PSNR, SSIM, GDL and more per lead time, with pictures"
    examples = [
        "motionrnn evaluate runs/mine",
        "motionrnn evaluate runs/base runs/mine --clips 1000 --out runs/compared",
        "motionrnn evaluate runs/radar --thresholds 20 30 40 --value-scale 70 --value-offset -10",
        "motionrnn evaluate runs/radar --dataset shanghai_h5 --root path/to/shanghai.h5 --values shanghai",
        "motionrnn evaluate model.ckpt-80000 --dataset human36m --root path/to/jpgs   # of the official program",
    ]
    parser = _add(commands, "evaluate", help, examples)
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CKPT", help="runs' folders or checkpoints"
    )
    parser.add_argument(
        "--clips",
        type=_count,
        metavar="N",
        help="clips to score on (default: 200 generated ones, all of files)",
    )
    parser.add_argument(
        "--n-output", type=_count, metavar="N", help="frames to predict (default: as trained)"
    )
    _add_data(parser)
    parser.add_argument("--digits", help="'sklearn' or a folder with MNIST's IDX files (default: as trained)")
    parser.add_argument(
        "--split",
        choices=("test", "val", "train"),
        default="test",
        help="which part of the data (default: test)",
    )
    parser.add_argument(
        "--batch-size", type=_count, default=16, metavar="N", help="clips at a time (default: 16)"
    )
    parser.add_argument("--pictures", type=_index, default=2, metavar="N", help="clips to draw (default: 2)")
    _add_model(parser)
    _add_place(parser, "evaluation")
    _add_metrics(parser.add_argument_group("metrics, see motionrnn_ext.metrics"))


def _add_metrics(group: Any) -> None:
    choices: tuple[str, ...] = ("float", "official", "openstl")
    help = "whose numbers to compare with (default: float)"
    group.add_argument("--convention", choices=choices, default="float", help=help)
    choices = ("float", "uint8", "range2", "gaussian")
    group.add_argument("--ssim", choices=choices, help="how SSIM is computed (default: the convention's)")
    help = "CSI and FAR of the pixels whose value reaches each of these"
    group.add_argument("--thresholds", nargs="+", type=float, metavar="L", help=help)
    choices = ("echo", "shanghai", "hko7")
    help = "scale and offset of this data and, but for hko7, its thresholds; echo is the official trainer's"
    group.add_argument("--values", choices=choices, help=help)
    help = "instead of --values: a pixel p of [0, 1] has the value S p + O"
    group.add_argument("--value-scale", type=float, metavar="S", help=help)
    group.add_argument("--value-offset", type=float, metavar="O", help="see --value-scale (default: 0)")
    help = "truncate pixels to bytes before they are given values"
    group.add_argument("--value-bytes", action="store_true", help=help)
    help = "LPIPS with the weights of AlexNet in this file"
    group.add_argument("--lpips", type=Path, metavar="WEIGHTS", help=help)
    help = "FVD with the network in this TorchScript file, which can run code: use only one that you trust"
    group.add_argument("--fvd", type=Path, metavar="WEIGHTS", help=help)
    help = "begin FVD's clips with the frames that the model was given"
    group.add_argument("--fvd-context", action="store_true", help=help)


def _add_predict(commands: Any) -> None:
    help = "predict the frames that follow a clip: numbers, a strip, a GIF and the motion trend"
    examples = [
        "motionrnn predict runs/mine --clip 7",
        "motionrnn predict runs/mine --frames clip.npy --n-output 30",
        "motionrnn predict runs/mine --frames film.mp4 --pad",
        "motionrnn predict runs/walk --clip 7 --root path/to/jpgs",
    ]
    parser = _add(commands, "predict", help, examples)
    _add_clip(parser, "frames to predict (default: as trained)")
    _add_place(parser, "prediction")


def _add_visualize(commands: Any) -> None:
    help = "draw the motion that a model has learnt over a clip: trend arrows, and where every tap reads"
    examples = [
        "motionrnn visualize runs/mine --clip 7",
        "motionrnn visualize runs/mine --interface 1 --times 2 5 8",
        "motionrnn visualize runs/mine --frames clip.npy --out pictures",
    ]
    parser = _add(commands, "visualize", help, examples)
    _add_clip(parser, "frames that the model goes on by itself (default: as trained)")
    help = "the MotionGRU above this layer alone, from 1 on (default: all)"
    parser.add_argument("--interface", type=_count, metavar="L", help=help)
    help = "frames to show in the PNGs, from 1 on (default: evenly spread, six of arrows and four of taps)"
    parser.add_argument("--times", type=_count, nargs="+", metavar="T", help=help)
    help = "places per frame to show the taps of, where most moves (default: 3)"
    parser.add_argument("--positions", type=_count, default=3, metavar="N", help=help)
    _add_place(parser, "motion")


def _add_clip(parser: argparse.ArgumentParser, n_output: str) -> None:
    """A checkpoint, and the clip that its model is given."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a run's folder or a checkpoint")
    source = parser.add_mutually_exclusive_group()
    help = "index of a test clip of the data set (default: 0)"
    source.add_argument("--clip", type=_index, default=0, metavar="INDEX", help=help)
    help = "your own frames, of which the last are given: a .npy, .npz or .pt file, (T, H, W), (T, C, H, W) or (T, H, "
    help += "W, C), bool, uint8 or floats in [0, 1]; a folder of images; a gif; a video (mp4, ...)"
    source.add_argument("--frames", type=Path, metavar="PATH", help=help)
    help = "repeat the last row and column of frames up to a size that the model takes"
    parser.add_argument("--pad", action="store_true", help=help)
    _add_data(parser)
    parser.add_argument("--n-input", type=_count, metavar="N", help="given frames (default: as trained)")
    parser.add_argument("--n-output", type=_count, metavar="N", help=n_output)
    _add_model(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """The `MODEL_OPTIONS`."""
    title = "model, of a file of weights alone, where its tensors do not tell; a warning says what is assumed"
    group = parser.add_argument_group(title)
    for entry in fields(Config):
        if entry.name in MODEL_OPTIONS:
            _add_setting(group, entry, with_default=False)


def _add_ablate(commands: Any) -> None:
    help = "train MotionRNN with and without its parts: predictor alone, either part, both, no transient, no trend"
    examples = [
        "motionrnn ablate --preset quick",
        "motionrnn ablate --preset full --predictor predrnn --seeds 0 1 2 3 4",
        "motionrnn ablate --config runs/mine/config.json --out runs/mine-apart",
    ]
    parser = _add(commands, "ablate", help, examples)
    _add_experiment(parser, ("seed", "motion_gru", "highway", "transient", "trend"))


def _add_compare(commands: Any) -> None:
    help = "train every predictor with and without MotionRNN"
    examples = [
        "motionrnn compare --preset quick",
        "motionrnn compare --preset full --predictors predrnn mim --hidden 64 64 64",
    ]
    parser = _add(commands, "compare", help, examples)
    help = "which (default: all)"
    parser.add_argument("--predictors", nargs="+", metavar="NAME", help=help)
    _add_experiment(parser, ("seed", "predictor", "motion_gru", "highway"))


def _add_experiment(parser: argparse.ArgumentParser, left_out: Collection[str]) -> None:
    help = "settings to start from: quick takes minutes, full hours (default: quick); another --dataset than theirs "
    help += "brings its own image size, n_input and n_output, where these are not given"
    parser.add_argument("--preset", choices=("quick", "full"), default="quick", help=help)
    help = "start from the settings of this config.json instead"
    parser.add_argument("--config", type=Path, metavar="FILE", help=help)
    help = "one training of each row per seed (default: the preset's, 0 1 or 0 1 2)"
    parser.add_argument("--seeds", type=_index, nargs="+", metavar="N", help=help)
    help = "held-out clips to score on (default: the preset's, 128 or 512)"
    parser.add_argument("--test-clips", type=_count, metavar="N", help=help)
    help = "the folder; what is finished in it is not run again (default: runs/COMMAND-PRESET)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=help)
    help = "also write the table and the figure to this folder and its images/"
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help=help)
    _add_settings(parser, left_out, "as `motionrnn train --help` says; by default the preset's")
    parser.set_defaults(device="cpu")  # of the metrics' networks
    _add_metrics(parser.add_argument_group("metrics, see motionrnn_ext.metrics"))


def _add_bench(commands: Any) -> None:
    help = "time the ops, the cell and whole models on this machine, and what they replace"
    examples = [
        "motionrnn bench --quick",
        "motionrnn bench --threads 2 --official path/to/MotionRNN --json benchmarks/results/bench_cpu.json",
        "motionrnn bench --only MotionGRUCell",
        "motionrnn bench --report     # docs/benchmarks.md and README's table, from the rows that are kept",
    ]
    parser = _add(commands, "bench", help, examples)
    parser.add_argument("--quick", action="store_true", help="a few minutes: small shapes, a small model")
    choices = ("cpu", "cuda")
    parser.add_argument("--device", choices=choices, default="cpu", help="where to run (default: cpu)")
    help = "threads of PyTorch (default: PyTorch's choice)"
    parser.add_argument("--threads", type=_count, metavar="N", help=help)
    help = "a checkout of thuml/MotionRNN, whose modules are compared as well"
    parser.add_argument("--official", type=Path, metavar="PATH", help=help)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to this file, as they come")
    help = "start no comparison after this time (default: no limit)"
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="X", help=help)
    help = "only comparisons with this in their name, such as 'offset_warp forward', 'B8 C16 16x16' or 'human36m'"
    parser.add_argument("--only", metavar="TEXT", help=help)
    help = "leave malloc as it is; otherwise glibc's keeps large blocks, which favours what allocates more"
    parser.add_argument("--default-malloc", action="store_true", help=help)
    instead = parser.add_mutually_exclusive_group()
    help = "measure nothing: write docs/benchmarks.md and README's table from benchmarks/results"
    instead.add_argument("--report", action="store_true", help=help)
    help = "measure nothing: profile a training step of a model into this folder (default: runs/profile)"
    instead.add_argument(
        "--profile", type=Path, nargs="?", const=Path("runs/profile"), metavar="DIR", help=help
    )
    parser.add_argument(
        "--dry-run", action="store_true", help=argparse.SUPPRESS
    )  # tiny shapes, nothing compiled


def _add_data(parser: argparse.ArgumentParser) -> None:
    """The `DATA_OPTIONS`."""
    parser.add_argument(
        "--dataset", metavar="NAME", help="another data set, with --root (default: as trained)"
    )
    help = "where the data set's files are now (default: as trained)"
    parser.add_argument("--root", metavar="PATH", help=help)
    help = "shanghai_*: take every stride-th frame (default: as trained)"
    parser.add_argument("--stride", type=_count, metavar="N", help=help)
    help = "shanghai_*: the stored value that counts as 1 (default: as trained)"
    parser.add_argument("--pixel-max", type=float, metavar="X", help=help)
    help = "the one stored value of pixels without data, or nan, which is an error elsewhere (default: as trained; of "
    help += "another --dataset none)"
    parser.add_argument("--missing", metavar="X", help=help)


def _count(text: str) -> int:
    return _integer(text, 1)


def _index(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, lowest: int) -> int:
    if not text.lstrip("-").isdigit() or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}; got {text!r}")
    return int(text)


def _add_place(parser: argparse.ArgumentParser, name: str) -> None:
    help = f"a new folder for what is written (default: {name}, or {name}-N, in the run's folder)"
    parser.add_argument("--out", type=Path, help=help)
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
