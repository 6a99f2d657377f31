"""The settings of a run: `Config` checks them, config.json keeps them, the command line is made from them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import __version__
from ..data import DATASETS
from ..files import NoText, read_text, write_text
from ..layers.cells import CELLS, cell_class, cell_options
from ..models.variants import variant_options

MAX_SEED = 2**32 - 1
_RANGES = "see motionrnn_ext.data.MotionRanges"
_PROTOCOL = ("image_size", "n_input", "n_output")  # the data set's, where not given


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None, unset: str = "") -> Any:
    """`unset` says what a default of None stands for."""
    return field(default=default, metadata={"help": help, "choices": choices, "unset": unset})


@dataclass(frozen=True)
class Config:
    """A run of `motionrnn train`. A ValueError names a bad field, what it is and what it should be."""

    # the model: arguments of MotionRNN
    predictor: str = _option(
        "convlstm", f"recurrent cells the model stands on: {', '.join(CELLS)}, or one of --import"
    )
    cell_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "options of this predictor's cells alone, such as rank=16 of conv_tt_lstm",
            "flag": "--cell-option",
        },
    )
    compat: str = _option(
        "none", "cells as OpenSTL's where those deviate from their papers", ("none", "openstl")
    )
    hidden: tuple[int, ...] = _option((64, 64, 64, 64), "width of every layer, first to last")
    patch_size: int = _option(4, "frames are folded into maps smaller by this factor")
    filter_size: int = _option(5, "kernel of the cells' convolutions")
    layer_norm: bool = _option(False, "layer norm in the cells")
    variant: str = _option("paper", "which of the two forms of MotionRNN", ("paper", "official"))
    overrides: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "single options of the variant, see models/variants.py", "flag": "--override"},
    )
    motion_gru: bool = _option(True, "MotionGRUs between the layers")
    highway: bool = _option(True, "the Motion Highway past the layers")
    transient: bool = _option(True, "transient variation in the MotionGRUs")
    trend: bool = _option(True, "motion trend in the MotionGRUs")

    # the data: arguments of open_clips
    dataset: str = _option("moving_digits", f"what to learn from: {', '.join(DATASETS)}, or one of --import")
    root: str | None = _option(None, "where the data set's files are", unset="none, for generated data")
    stride: int = _option(1, "frames, shanghai_*: take every stride-th frame")
    pixel_max: float = _option(
        255.0,
        "frames, shanghai_*: the stored value that counts as 1; below 255 for bytes that are physical values",
    )
    missing: str | None = _option(
        None,
        "the one stored value of pixels without data, or 'nan': left out of loss and metrics, 0 to the model; nan is "
        "an error where it is not declared, beside another value too",
        unset="none",
    )
    digits: str = _option("sklearn", "'sklearn', or a folder with MNIST's IDX files")
    plain: bool = _option(False, "plain Moving MNIST: no rotation, no change of size")
    image_size: tuple[int, ...] = _option(
        None, "height and width of the frames; files are resized", unset="the data set's"
    )
    n_digits: int = _option(2, "digits in a clip")
    digit_size: int = _option(28, "side of a digit's image at scale 1, in pixels")
    speed: tuple[float, ...] | None = _option(None, "range of the speed, pixels per frame", unset=_RANGES)
    angle: tuple[float, ...] | None = _option(None, "range of the first angle, degrees", unset=_RANGES)
    rotation: tuple[float, ...] | None = _option(None, "range of rotation, degrees per frame", unset=_RANGES)
    scale: tuple[float, ...] | None = _option(None, "range of the scale", unset=_RANGES)
    scale_rate: tuple[float, ...] | None = _option(None, "range of growth, scale per frame", unset=_RANGES)
    n_input: int = _option(None, "given frames", unset="the data set's")
    n_output: int = _option(None, "frames to predict", unset="the data set's")
    train_clips: int = _option(10000, "generated clips to train on, an epoch; files are taken whole")
    val_clips: int = _option(200, "clips of every validation, at most")

    # the training
    batch_size: int = _option(
        8, "clips per step and device: a step learns from devices x nodes times as many"
    )
    steps: int = _option(20000, "optimiser steps")
    lr: float = _option(1e-3, "learning rate of Adam, the highest one of the schedule")
    lr_schedule: str = _option("constant", "course of the learning rate", ("constant", "one-cycle"))
    clip_norm: float = _option(0.0, "clip the gradient's norm to this; 0 does not")
    loss: str = _option("l1+l2", "mean over pixels and all T-1 predictions", ("l2", "l1+l2"))
    l1_weight: float = _option(1.0, "weight of L1 in l1+l2")
    sampling: str = _option(
        "linear", "scheduled sampling of true frames past n_input; 'reverse' also samples the inputs",
        ("linear", "reverse", "none"),
    )  # fmt: skip
    sampling_until: float = _option(0.625, "share of the run after which no true frame is read any more")
    checkpoint_steps: bool = _option(
        False, "compute every step again in backward: 7 to 10 times less memory, 1.3 to 1.4 times the time"
    )
    time_reversal: bool = _option(False, "train on every clip backwards as well, in the same step")
    seed: int = _option(0, "of weights, clips, their order and the sampling masks")
    init_from: str | None = _option(
        None,
        "begin a new run with these weights: a run's folder (its best checkpoint), a .ckpt file, or a public one that "
        "load_checkpoint knows; a run's settings come with them, unless --config is given",
        unset="random weights",
    )
    precision: str = _option("32", "arithmetic of the features", ("32", "bf16-mixed"))
    accelerator: str = _option("auto", "Lightning's: auto, cpu, gpu, ...")
    devices: int = _option(1, "a process for each of so many on this machine")
    nodes: int = _option(1, "machines with as many devices, on each of which the same command is started")
    workers: int = _option(0, "processes that draw clips; 0 draws in the training process")
    val_every: int = _option(500, "steps between validations; a checkpoint follows each")
    log_every: int = _option(10, "steps between rows of the logs")

    def __post_init__(self) -> None:
        is_known = isinstance(self.dataset, str) and self.dataset in DATASETS
        _check(is_known, "dataset", self.dataset, f"one of {', '.join(DATASETS)}, or one of --import")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None and entry.name in _PROTOCOL:
                value = getattr(DATASETS[self.dataset], entry.name)
            if entry.name == "missing":
                value = _no_data(value)
            value = _plain(entry, value)
            object.__setattr__(self, entry.name, value)
            choices = entry.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{entry.name} must be one of {', '.join(choices)}; got {value!r}")
        for name in ("devices", "nodes", "log_every", "val_every", "steps", "batch_size", "val_clips",
                     "train_clips", "n_output", "n_input", "stride", "digit_size", "n_digits", "filter_size",
                     "patch_size"):  # fmt: skip
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(
            bool(self.hidden) and min(self.hidden) >= 1,
            "hidden",
            self.hidden,
            "one or more widths of at least 1",
        )
        _check(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"from 0 to {MAX_SEED}")
        _check(self.workers >= 0, "workers", self.workers, "0 or more")
        _check(self.lr > 0, "lr", self.lr, "above 0")
        _check(self.lr <= 1e36, "lr", self.lr, "at most 1e36, which weights in float32 can hold")
        _check(self.l1_weight >= 0, "l1_weight", self.l1_weight, "0 or more")
        _check(self.clip_norm >= 0, "clip_norm", self.clip_norm, "0 or more")
        _check(0 < self.sampling_until <= 1, "sampling_until", self.sampling_until, "above 0, at most 1")
        _check(0 < self.pixel_max <= 255, "pixel_max", self.pixel_max, "above 0, at most 255")
        self._check_image_size()
        cells = cell_class(self.predictor)
        _check(
            not (self.checkpoint_steps and self.compat == "openstl" and cells.keeps_state),
            "checkpoint_steps",
            self.checkpoint_steps,
            f"off for {self.predictor} with compat=openstl, whose cells keep a state from call to call",
        )
        for name in self.cell_options:
            known = cell_options(self.predictor)
            _check(
                name in known, "cell_options", name, f"of {', '.join(known) or 'none'} for {self.predictor}"
            )
        try:
            variant_options(self.variant, self.filter_size, **self.overrides)
        except TypeError as error:  # an unknown option is the user's mistake here, as an unknown value is
            raise ValueError(f"overrides: {error}") from None

    def _check_image_size(self) -> None:
        divisor = self.patch_size * (2 if self.motion_gru and len(self.hidden) > 1 else 1)
        good = len(self.image_size) == 2 and all(n >= 7 and n % divisor == 0 for n in self.image_size)
        rule = f"height and width, at least 7 and divisible by {divisor} (patch_size, twice that with MotionGRUs)"
        _check(good, "image_size", self.image_size, rule)

    @property
    def n_frames(self) -> int:
        return self.n_input + self.n_output

    @property
    def n_processes(self) -> int:
        return self.devices * self.nodes

    @property
    def channels(self) -> int:
        return DATASETS[self.dataset].channels

    @property
    def no_data(self) -> float | None:
        """`missing` as a number, which may be nan."""
        return None if self.missing is None else float(self.missing)

    def model(self) -> dict[str, Any]:
        """Arguments of MotionRNN."""
        names = (
            "predictor",
            "patch_size",
            "variant",
            "filter_size",
            "layer_norm",
            "motion_gru",
            "highway",
            "transient",
            "trend",
            "cell_options",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "compat": None if self.compat == "none" else self.compat,
            "in_channels": self.channels,
            "hidden_channels": self.hidden,
            "image_size": self.image_size,
            **self.overrides,
        }

    def data(self) -> dict[str, Any]:
        """Arguments of `open_clips`, but for split and length."""
        names = ("dataset", "root", "n_frames", "image_size", *DATASETS[self.dataset].settings)
        values = {name: getattr(self, name) for name in names}
        values["missing"] = self.no_data
        return {name: value for name, value in values.items() if value is not None}

    def changed(self, given: Mapping[str, Any]) -> Config:
        """With the settings that a user gives; another data set brings its own protocol and no files of this one."""
        kept = self.to_dict()
        if given.get("dataset", self.dataset) != self.dataset:
            kept = {
                name: value for name, value in kept.items() if name not in (*_PROTOCOL, "root", "missing")
            }
        return Config(**{**kept, **given})

    def located(self) -> Config:
        """With absolute paths of files that are there, so that a run can go on from another working directory."""
        names = ("root", "init_from", *(("digits",) if self.digits != "sklearn" else ()))
        paths = {name: getattr(self, name) for name in names if getattr(self, name)}
        return dataclasses.replace(
            self, **{name: os.path.abspath(path) for name, path in paths.items() if os.path.exists(path)}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, as JSON and a checkpoint keep them."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Config:
        """The inverse; `source` is named where the values are no settings of a run."""
        if not isinstance(values, dict):
            raise ValueError(f"{source} holds no settings of `motionrnn train`")
        unknown = sorted(map(str, values.keys() - {entry.name for entry in fields(cls)}))
        if unknown:
            raise ValueError(
                f"{source}: unknown settings {', '.join(unknown)}; misspelt, or of a newer version than this "
                f"motionrnn_ext ({__version__})"
            )
        return cls(**values)

    @classmethod
    def read(cls, path: Path) -> Config:
        try:
            return cls.from_dict(json.loads(read_text(path)), str(path))
        except OSError as error:
            raise ValueError(f"{path} is no readable JSON file: {error.strerror or error}") from None
        except (NoText, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no readable JSON file: {error}") from None

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")


def _plain(entry: dataclasses.Field[Any], value: Any) -> Any:
    """`value` as the type that the field is declared with; lists become tuples, 1 may stand for 1.0."""
    wanted = str(entry.type)
    if value is None and wanted.endswith("None"):
        return None
    wanted = wanted.removesuffix(" | None")
    if wanted.startswith("tuple"):
        item = int if "int" in wanted else float
        good = isinstance(value, (list, tuple)) and all(_is_number(x, item) for x in value)
        _check(good, entry.name, value, f"numbers ({item.__name__})")
        return tuple(item(x) for x in value)
    if wanted in ("int", "float"):
        number = int if wanted == "int" else float
        _check(_is_number(value, number), entry.name, value, f"a finite number ({wanted})")
        return number(value)
    kind = {"str": str, "bool": bool}.get(wanted, dict)
    _check(isinstance(value, kind), entry.name, value, f"a {kind.__name__}")
    return value


def _no_data(value: Any) -> Any:
    """`missing` as text, "nan" or a number: JSON has no nan, and nan does not equal itself."""
    try:
        return None if value is None else f"{float(value):.9g}"
    except (TypeError, ValueError):
        raise ValueError(f"missing must be 'nan' or a number; got {value!r}") from None


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) if kind is int else math.isfinite(value)


def _check(good: bool, name: str, value: Any, rule: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {rule}; got {value!r}")


# Of `motionrnn demo`: small enough to learn something in minutes on two cores.
SMALL = Config(
    hidden=(48, 48),
    patch_size=4,
    filter_size=3,
    n_input=5,
    n_output=5,
    train_clips=100_000,
    val_clips=32,
    batch_size=4,
    steps=2800,
    lr=4e-3,
    lr_schedule="one-cycle",
    clip_norm=1.0,
    loss="l1+l2",
    l1_weight=0.15,  # removes the faint haze that the mean square alone leaves; 1 makes a short training predict black
    sampling_until=0.5,
    accelerator="cpu",
    val_every=100,
)
