"""The command line of `motionrnn`; the options of `train` are made from `Config`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .config import Config

_GROUPS = {"predictor": "model", "digits": "data", "batch_size": "training"}  # first field -> heading


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="motionrnn",
        description="MotionRNN video prediction: train on moving handwritten digits, evaluate, predict.",
        epilog="`motionrnn COMMAND --help` shows a command's options. Start with: motionrnn demo",
    )
    parser.add_argument("--version", action="version", version=f"motionrnn_ext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    info = _add(commands, "info", "versions, backends and why one is absent, build flags (needs torch alone)")
    info.add_argument("--json", action="store_true", help="as JSON")
    help = "train ConvLSTM and MotionRNN-ConvLSTM alike, compare them, draw what they predict"
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
    parser = commands.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=form)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_train(commands: Any) -> None:
    examples = [
        "motionrnn train --out runs/mine --predictor predrnn --hidden 64 64 64 --steps 20000",
        "motionrnn train --out runs/mine --resume",
        "motionrnn train --out runs/base --no-motion-gru --no-highway     # the bare predictor",
        "motionrnn train --out runs/mnist --digits path/to/idx --plain    # Moving MNIST",
    ]
    parser = _add(commands, "train", "train a model on clips of moving digits", examples)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/train"), help="the run's folder (default: runs/train)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out from its last checkpoint"
    )
    parser.add_argument("--config", type=Path, help="start from the settings of this config.json")
    help = "a progress bar (default: on)"
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True, help=help)
    group: Any = parser
    for entry in fields(Config):
        if entry.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[entry.name])
        _add_setting(group, entry)


def _add_setting(group: Any, entry: Field[Any]) -> None:
    flag, kind = f"--{entry.name.replace('_', '-')}", str(entry.type)
    options: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS}
    default = "" if entry.default is MISSING else _text(entry.default)
    help = entry.metadata["help"] + (f" (default: {default})" if default else "")
    if kind == "bool":
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help, **options)
    elif kind.startswith("dict"):
        group.add_argument(
            "--override", action="append", metavar="NAME=VALUE", help=help, **{**options, "dest": entry.name}
        )
    elif kind.startswith("tuple"):
        item: Any = int if "int" in kind else float
        metavar: Any = "WIDTH" if entry.name == "hidden" else ("H", "W") if item is int else ("LOW", "HIGH")
        nargs = "+" if entry.name == "hidden" else 2
        group.add_argument(flag, type=item, nargs=nargs, metavar=metavar, help=help, **options)
    else:
        item = {"int": int, "float": float}.get(kind, str)
        choices = entry.metadata.get("choices")
        metavar = None if choices else {"int": "N", "float": "X"}.get(kind, "TEXT")
        group.add_argument(flag, type=item, choices=choices, metavar=metavar, help=help, **options)


def _text(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None:
        return "see motionrnn_ext.data.MotionRanges"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _add_evaluate(commands: Any) -> None:
    help = "score models on held-out clips: MSE, MAE, SSIM and PSNR per lead time, with pictures"
    examples = [
        "motionrnn evaluate runs/mine",
        "motionrnn evaluate runs/base runs/mine --clips 1000 --out runs/compared",
    ]
    parser = _add(commands, "evaluate", help, examples)
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CKPT", help="runs' folders or .ckpt files"
    )
    parser.add_argument(
        "--clips", type=_count, default=200, metavar="N", help="clips to score on (default: 200)"
    )
    parser.add_argument(
        "--n-output", type=_count, metavar="N", help="frames to predict (default: as trained)"
    )
    parser.add_argument("--digits", help="'sklearn' or a folder with MNIST's IDX files (default: as trained)")
    parser.add_argument(
        "--split", choices=("test", "val", "train"), default="test", help="which digits (default: test)"
    )
    choices, help = (
        ("float", "uint8", "range2", "gaussian"),
        "how SSIM is computed, see metrics.py (default: float)",
    )
    parser.add_argument("--ssim", choices=choices, default="float", help=help)
    parser.add_argument(
        "--batch-size", type=_count, default=16, metavar="N", help="clips at a time (default: 16)"
    )
    parser.add_argument("--pictures", type=_index, default=2, metavar="N", help="clips to draw (default: 2)")
    _add_place(parser, "evaluation")


def _add_predict(commands: Any) -> None:
    help = "predict the frames that follow a clip: numbers, a strip, a GIF and the motion trend"
    examples = [
        "motionrnn predict runs/mine --clip 7",
        "motionrnn predict runs/mine --frames clip.npy --n-output 30",
    ]
    parser = _add(commands, "predict", help, examples)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a run's folder or a .ckpt file")
    source = parser.add_mutually_exclusive_group()
    help = "index of a generated test clip (default: 0)"
    source.add_argument("--clip", type=_index, default=0, metavar="INDEX", help=help)
    help = ".npy file of frames, (T, H, W) or (T, 1, H, W), uint8 or floats in [0, 1]"
    source.add_argument("--frames", type=Path, metavar="FILE", help=help)
    parser.add_argument("--n-input", type=_count, metavar="N", help="given frames (default: as trained)")
    parser.add_argument(
        "--n-output", type=_count, metavar="N", help="frames to predict (default: as trained)"
    )
    _add_place(parser, "prediction")


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
