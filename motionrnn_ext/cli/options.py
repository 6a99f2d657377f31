"""The options that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from ..models.ensembles import NOISE
from ..pretrained import shipped
from ..training.config import Config
from ..training.settings import READING, DataSettings, ModelSettings, TrainingSettings, kind_of

# The settings of data that can differ from those of the training, see `clips.other_data`.
DATA_OPTIONS = ("dataset", "root", "missing", *READING)
# The settings of a model that a file of weights alone may not show.
MODEL_OPTIONS = (
    "predictor", "cell_options", "compat", "patch_size", "variant", "overrides", "highway", "transient", "trend",
    "image_size",
)  # fmt: skip
_GROUPS = {"model": ModelSettings, "data": DataSettings, "training": TrainingSettings}


def path_of(text: str) -> Path:
    """Return the path that an option names. `~` is the home folder, also where the shell has left it: --out=~/x."""
    return Path(os.path.expanduser(text))


def add_settings(parser: argparse.ArgumentParser, left_out: Collection[str] = (), default: str = "") -> None:
    """Add an option for every setting of a run except those in `left_out`.

    `default` describes the defaults in the headings if they are not Config's.
    """
    for title, settings in _GROUPS.items():
        group = parser.add_argument_group(title, default)
        for entry in fields(settings):
            if entry.name not in left_out:
                _add_setting(group, entry, with_default=not default)


def _add_setting(
    group: Any, entry: Field[Any], with_default: bool, suffix: str = "", unset: Any = argparse.SUPPRESS
) -> None:
    flag, kind = f"--{entry.name.replace('_', '-')}", kind_of(entry)
    options: dict[str, Any] = {"dest": entry.name, "default": unset}
    default = "" if entry.default is MISSING else entry.metadata.get("unset") or _text(entry.default)
    options["help"] = entry.metadata["help"] + (
        f" (default: {default})" if default and with_default else suffix
    )
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
            "metavar": entry.metadata.get("metavar", ("H", "W") if kind.item is int else ("LOW", "HIGH")),
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


def add_metrics(group: Any) -> None:
    choices: tuple[str, ...] = ("float", "official", "openstl")
    help = "whose published numbers to compare with (default: float)"
    group.add_argument("--convention", choices=choices, default="float", help=help)
    choices = ("float", "uint8", "range2", "gaussian")
    group.add_argument("--ssim", choices=choices, help="how SSIM is computed (default: the convention's)")
    help = "score events: pixels whose value reaches each of these (POD, FAR, CSI, HSS, bias, FSS)"
    help += (
        ": numbers in the data's unit, or with units as 15dBZ and 1mm/h, which is 23.0 dBZ by Z = 200 R^1.6"
    )
    group.add_argument("--thresholds", nargs="+", type=threshold, metavar="L", help=help)
    help = "sides of FSS's windows, odd numbers of pixels (default: 3 9 27; 0 for no FSS)"
    group.add_argument("--fss", nargs="+", type=index, metavar="N", help=help)
    choices = ("echo", "shanghai", "hko7")
    help = "scale and offset of this data, and except for hko7 its thresholds; echo is the official trainer's"
    group.add_argument("--values", choices=choices, help=help)
    help = "instead of --values: a pixel p in [0, 1] has the value S p + O"
    group.add_argument("--value-scale", type=float, metavar="S", help=help)
    group.add_argument("--value-offset", type=float, metavar="O", help="see --value-scale (default: 0)")
    help = "truncate pixels to bytes before they become values"
    group.add_argument("--value-bytes", action="store_true", help=help)
    help = "compute LPIPS with the weights of AlexNet in this file"
    group.add_argument("--lpips", type=path_of, metavar="WEIGHTS", help=help)
    help = "compute FVD with the network in this TorchScript file; it can run code, so use only one that you trust"
    group.add_argument("--fvd", type=path_of, metavar="WEIGHTS", help=help)
    help = "start FVD's clips with the given frames"
    group.add_argument("--fvd-context", action="store_true", help=help)


def add_ensemble(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the options of an ensemble; `help` says what is done with it."""
    parser.add_argument(
        "--members", type=count, metavar="N", help=f"also predict an ensemble of N members, {help}"
    )
    help = "with --members: the noise in the hidden maps, as a share of their root mean square"
    parser.add_argument("--noise", type=float, metavar="X", help=f"{help} (default: {NOISE})")


def ensemble_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the `members` and `noise` that are given.

    Raises:
        ValueError: noise is given without members.
    """
    if arguments.members is None and arguments.noise is not None:
        raise ValueError("--noise is for ensembles: give --members too")
    found = {"members": arguments.members, "noise": arguments.noise}
    return {name: value for name, value in found.items() if value is not None}


def add_clip(parser: argparse.ArgumentParser, n_output: str) -> None:
    """Add the options for a checkpoint and the clip that its model is given."""
    help = (
        "a run's folder, a checkpoint, a folder of weights or the name of weights that come with the package"
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("checkpoint", type=path_of, nargs="?", metavar="CKPT", help=help)
    help = f"the same as CKPT, for weights that come with the package: {', '.join(shipped())}"
    model.add_argument("--pretrained", type=path_of, metavar="NAME", help=help)
    source = parser.add_mutually_exclusive_group()
    help = "index of a test clip of the data set (default: 0)"
    source.add_argument("--clip", type=index, default=0, metavar="INDEX", help=help)
    help = "your own frames, of which the last ones are given: a .npy, .npz or .pt file of shape (T, H, W), "
    help += (
        "(T, C, H, W) or (T, H, W, C), bool, uint8 or floats in [0, 1]; a folder of images, a GIF or a video"
    )
    source.add_argument("--frames", type=path_of, metavar="PATH", help=help)
    help = "repeat the last row and column of the frames until the model takes their size"
    parser.add_argument("--pad", action="store_true", help=help)
    add_data(parser)
    parser.add_argument("--n-input", type=count, metavar="N", help="given frames (default: as trained)")
    parser.add_argument("--n-output", type=count, metavar="N", help=n_output)
    add_model(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the `MODEL_OPTIONS`."""
    title = "model, for a file of weights alone whose tensors do not show it; a warning says what is assumed"
    group = parser.add_argument_group(title)
    for entry in fields(Config):
        if entry.name in MODEL_OPTIONS:
            _add_setting(group, entry, with_default=False)


def add_experiment(parser: argparse.ArgumentParser, left_out: Collection[str]) -> None:
    help = "settings to start from: quick takes minutes, full takes hours (default: quick); a --dataset other than "
    help += "theirs brings its own image size, n_input and n_output, unless these are given; standard has settings "
    help += "for moving_digits, shanghai_h5 and human36m_openstl, by --dataset"
    parser.add_argument("--preset", choices=("quick", "full", "standard"), default="quick", help=help)
    help = "start from the settings of this file instead, a run's config.json or a .yaml file of settings"
    parser.add_argument("--config", type=path_of, metavar="FILE", help=help)
    help = "train every row once per seed (default: the preset's, 0 1 2, or 0 1 with quick)"
    parser.add_argument("--seeds", type=index, nargs="+", metavar="N", help=help)
    help = "held-out clips to score on (default: the preset's, 512, or 128 with quick)"
    parser.add_argument("--test-clips", type=count, metavar="N", help=help)
    help = "folder; trainings that are finished there are not repeated (default: runs/COMMAND-PRESET)"
    parser.add_argument("--out", type=path_of, metavar="FOLDER", help=help)
    help = "write what is finished to this file after each training, without folders' names, for docs/results.py; "
    help += "what it holds is not repeated, on another machine either"
    parser.add_argument("--json", type=path_of, metavar="FILE", help=help)
    add_settings(parser, left_out, "as `motionrnn train --help` says; by default the preset's")
    parser.set_defaults(device="cpu")  # the device of the metrics' networks
    add_metrics(parser.add_argument_group("metrics, see motionrnn_ext.metrics"))


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the `DATA_OPTIONS`."""
    parser.add_argument(
        "--dataset", metavar="NAME", help="another data set, with --root (default: as trained)"
    )
    help = "where the data set's files are (default: as trained)"
    parser.add_argument("--root", metavar="PATH", help=help)
    for entry in fields(Config):
        if entry.name in READING:
            _add_setting(parser, entry, with_default=False, suffix=" (default: as trained)", unset=None)
    help = "the stored value of pixels without data, or nan (default: as trained; none for another --dataset)"
    parser.add_argument("--missing", metavar="X", help=help)


def threshold(text: str) -> float:
    from ..metrics.reflectivity import named_threshold

    try:
        return named_threshold(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    return _integer(text, 1)


def index(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, lowest: int) -> int:
    if not text.lstrip("-").isdigit() or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}; got {text!r}")
    return int(text)


def add_place(parser: argparse.ArgumentParser, name: str) -> None:
    help = f"a new folder for the results (default: {name}, or {name}-N, in the run's folder)"
    parser.add_argument("--out", type=path_of, help=help)
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
