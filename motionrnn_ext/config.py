"""The settings of a run: `Config` checks them, config.json keeps them, the command line is made from them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .layers.cells import CELLS
from .models.variants import variant_options

MAX_SEED = 2**32 - 1
_MOTION_RANGES = ("speed", "angle", "rotation", "scale", "scale_rate")


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """A run of `motionrnn train`. A ValueError names a bad field, what it is and what it should be."""

    # the model: arguments of MotionRNN
    predictor: str = _option("convlstm", "recurrent cells the model stands on", tuple(CELLS))
    hidden: tuple[int, ...] = _option((64, 64, 64, 64), "width of every layer, first to last")
    patch_size: int = _option(4, "frames are folded into maps smaller by this factor")
    filter_size: int = _option(5, "kernel of the cells' convolutions")
    layer_norm: bool = _option(False, "layer norm in the cells")
    variant: str = _option("paper", "which of the two forms of MotionRNN", ("paper", "official"))
    overrides: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "single options of the variant, see models/variants.py"}
    )
    motion_gru: bool = _option(True, "MotionGRUs between the layers")
    highway: bool = _option(True, "the Motion Highway past the layers")
    transient: bool = _option(True, "transient variation in the MotionGRUs")
    trend: bool = _option(True, "motion trend in the MotionGRUs")

    # the data: arguments of VariedMovingMNIST
    digits: str = _option("sklearn", "'sklearn', or a folder with MNIST's IDX files")
    plain: bool = _option(False, "plain Moving MNIST: no rotation, no change of size")
    image_size: tuple[int, ...] = _option((64, 64), "height and width of the frames")
    n_digits: int = _option(2, "digits in a clip")
    digit_size: int = _option(28, "side of a digit's image at scale 1, in pixels")
    speed: tuple[float, ...] | None = _option(None, "range of the speed, pixels per frame")
    angle: tuple[float, ...] | None = _option(None, "range of the first angle, degrees")
    rotation: tuple[float, ...] | None = _option(None, "range of the rotation, degrees per frame")
    scale: tuple[float, ...] | None = _option(None, "range of the scale")
    scale_rate: tuple[float, ...] | None = _option(None, "range of the change of scale per frame")
    n_input: int = _option(10, "given frames")
    n_output: int = _option(10, "frames to predict")
    train_clips: int = _option(10000, "different clips to train on; an epoch")
    val_clips: int = _option(200, "clips of every validation")

    # the training
    batch_size: int = _option(8, "clips per step and device")
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
    time_reversal: bool = _option(False, "train on every clip backwards as well, in the same step")
    seed: int = _option(0, "of weights, clips, their order and the sampling masks")
    precision: str = _option("32", "arithmetic of the features", ("32", "bf16-mixed"))
    accelerator: str = _option("auto", "Lightning's: auto, cpu, gpu, ...")
    devices: int = _option(1, "how many")
    workers: int = _option(0, "processes that draw clips; 0 draws in the training process")
    val_every: int = _option(500, "steps between validations; a checkpoint follows each")
    log_every: int = _option(10, "steps between rows of the logs")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = _plain(entry, getattr(self, entry.name))
            object.__setattr__(self, entry.name, value)
            choices = entry.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{entry.name} must be one of {', '.join(choices)}; got {value!r}")
        for name in ("devices", "log_every", "val_every", "steps", "batch_size", "val_clips", "train_clips", "n_output",
                     "n_input", "digit_size", "n_digits", "filter_size", "patch_size"):  # fmt: skip
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
        _check(self.l1_weight >= 0, "l1_weight", self.l1_weight, "0 or more")
        _check(self.clip_norm >= 0, "clip_norm", self.clip_norm, "0 or more")
        _check(0 < self.sampling_until <= 1, "sampling_until", self.sampling_until, "above 0, at most 1")
        self._check_image_size()
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
        )
        return {
            **{name: getattr(self, name) for name in (*names, "trend")},
            "in_channels": 1,
            "hidden_channels": self.hidden,
            "image_size": self.image_size,
            **self.overrides,
        }

    def data(self) -> dict[str, Any]:
        """Arguments of VariedMovingMNIST, but for split and length."""
        names = ("seed", "n_frames", "digits", "plain", "image_size", "n_digits", "digit_size")
        ranges = {name: getattr(self, name) for name in _MOTION_RANGES if getattr(self, name) is not None}
        return {**{name: getattr(self, name) for name in names}, **ranges}

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
            raise ValueError(f"{source}: unknown settings {', '.join(unknown)}")
        return cls(**values)

    @classmethod
    def read(cls, path: Path) -> Config:
        try:
            return cls.from_dict(json.loads(path.read_text()), str(path))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no readable JSON file: {error}") from None

    def write(self, path: Path) -> None:
        """Never half-written: under another name first."""
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        os.replace(part, path)


def _plain(entry: dataclasses.Field[Any], value: Any) -> Any:
    """`value` as the type that the field is declared with; lists become tuples, 1 may stand for 1.0."""
    wanted = str(entry.type)
    if value is None and wanted.endswith("None"):
        return None
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


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) if kind is int else math.isfinite(value)


def _check(good: bool, name: str, value: Any, rule: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {rule}; got {value!r}")
