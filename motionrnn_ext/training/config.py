"""The settings of a run. `Config` checks them, and config.json and every checkpoint hold them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .. import __version__
from ..data import DATASETS
from ..files import read_text, write_text
from ..layers.cells import cell_class, cell_options
from ..models.checkpoints.description import plain
from ..models.variants import variant_options
from .losses import RATES, levels_of, terms_of
from .settings import DataSettings, ModelSettings, TrainingSettings, kind_of, may_be_none
from .yaml_settings import parse_yaml

MAX_SEED = 2**32 - 1
# The largest count, which an index of 64 bits can hold.
_LARGEST = 2**62
# Settings whose default is the data set's value.
_PROTOCOL = ("image_size", "n_input", "n_output", "dbz")


@dataclass(frozen=True)
class Config(TrainingSettings, DataSettings, ModelSettings):
    """The settings of a run of `motionrnn train`.

    Raises:
        ValueError: a setting is wrong; the message names it, its value and what it should be.
    """

    def __post_init__(self) -> None:
        is_known = isinstance(self.dataset, str) and self.dataset in DATASETS
        _check(is_known, "dataset", self.dataset, f"one of {', '.join(DATASETS)}, or one of --import")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None and entry.name in _PROTOCOL:
                value = self._default(entry.name)
            if entry.name == "missing":
                value = _no_data(value)
            choices = entry.metadata.get("choices")
            if choices and str(value) in choices:
                # The precision 32 is a number in YAML unless it is quoted.
                value = str(value)
            value = _converted(entry, value)
            object.__setattr__(self, entry.name, value)
            if choices and value not in choices:
                raise ValueError(f"{entry.name} must be one of {', '.join(choices)}; got {value!r}")
        self._check_numbers()
        self._check_loss()
        self._check_image_size()
        self._check_cells()

    def _default(self, name: str) -> Any:
        """Return the data set's value of a setting in `_PROTOCOL`. Its `dbz` is that of files in which 255 is 1."""
        is_other = name == "dbz" and self.pixel_max not in (None, 255)
        return None if is_other else getattr(DATASETS[self.dataset], name)

    def _check_numbers(self) -> None:
        for name in ("devices", "nodes", "log_every", "val_every", "steps", "batch_size", "val_clips",
                     "train_clips", "n_output", "n_input", "stride", "digit_size", "n_digits", "filter_size",
                     "patch_size"):  # fmt: skip
            value = getattr(self, name)
            _check(value >= 1, name, value, "at least 1")
            _check(value <= _LARGEST, name, value, f"at most {_LARGEST}")
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
        for name in ("l1_weight", "ssim_weight", "gdl_weight"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _check(self.clip_norm >= 0, "clip_norm", self.clip_norm, "0 or more")
        _check(0 < self.sampling_until <= 1, "sampling_until", self.sampling_until, "above 0, at most 1")
        is_byte = self.pixel_max is None or 0 < self.pixel_max <= 255
        _check(is_byte, "pixel_max", self.pixel_max, "above 0, at most 255")
        _check(self.clip_step is None or self.clip_step >= 1, "clip_step", self.clip_step, "at least 1")
        _check(self.interval is None or self.interval > 0, "interval", self.interval, "above 0")
        for name in ("min_wet", "wet_above", "min_motion"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= 1, name, value, "from 0 to 1")
        self._check_dbz()

    def _check_dbz(self) -> None:
        if self.dbz is None:
            return
        rule = "two numbers, the reflectivity of pixel 0 and the higher one of pixel 1"
        _check(len(self.dbz) == 2 and self.dbz[0] < self.dbz[1], "dbz", self.dbz, rule)
        colours = f"left out with {self.dataset}, whose frames are in colour"
        _check(self.channels == 1, "dbz", self.dbz, colours)

    def _check_loss(self) -> None:
        _check(
            len(self.zr) == 2 and min(self.zr) > 0, "zr", self.zr, "two numbers above 0, a and b of Z = a R^b"
        )
        if "balanced" not in terms_of(self.loss):
            return
        if self.dbz is None:
            raise ValueError(
                f"loss {self.loss!r} weights pixels by their rain rate; give the reflectivity of pixels 0 and 1 in "
                "dBZ, such as dbz=(0, 70) (--dbz 0 70)"
            )
        lowest = levels_of(self.dbz, self.zr)[0]
        rule = f"a range that reaches {RATES[0]:g} mm/h, the lowest rate with a weight of its own"
        _check(0 < lowest <= 1, "dbz", self.dbz, rule)

    def _check_cells(self) -> None:
        cells = cell_class(self.predictor)
        _check(
            not (self.checkpoint_steps and self.compat == "openstl" and cells.keeps_state),
            "checkpoint_steps",
            self.checkpoint_steps,
            f"off for {self.predictor} with compat=openstl, whose cells keep a state from call to call",
        )
        for what, is_so in {
            "checkpoint_steps, whose steps are computed again": self.checkpoint_steps,
            f"{self.predictor} and compat=openstl": self.compat == "openstl" and cells.keeps_state,
            "several processes, whose gradients are joined outside of a graph": self.n_processes > 1,
            "accelerator=cpu: CUDA graphs need a GPU": self.accelerator == "cpu",
        }.items():
            _check(not (self.graph and is_so), "graph", self.graph, f"off with {what}")
        for name in self.cell_options:
            known = cell_options(self.predictor)
            _check(
                name in known, "cell_options", name, f"of {', '.join(known) or 'none'} for {self.predictor}"
            )
        try:
            variant_options(self.variant, self.filter_size, **self.overrides)
        except TypeError as error:  # an unknown option is a mistake of the user, like an unknown value
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
        """The value of `missing` as a number, which may be nan."""
        return None if self.missing is None else float(self.missing)

    def model(self) -> dict[str, Any]:
        """Return the arguments of MotionRNN."""
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
        """Return the arguments of `open_clips` except split and length."""
        names = ("dataset", "root", "n_frames", "image_size", *DATASETS[self.dataset].settings)
        values = {name: getattr(self, name) for name in names}
        values["missing"] = self.no_data
        return {name: value for name, value in values.items() if value is not None}

    def changed(self, given: Mapping[str, Any]) -> Config:
        """Return these settings changed by `given`. Another data set brings its own image size and numbers of frames,
        and drops the values of `root` and `missing`; another `pixel_max` drops `dbz`, what pixel 1 was before.
        """
        kept = self.to_dict()
        if given.get("pixel_max", self.pixel_max) != self.pixel_max:
            kept["dbz"] = None
        if given.get("dataset", self.dataset) != self.dataset:
            kept = {
                name: value for name, value in kept.items() if name not in (*_PROTOCOL, "root", "missing")
            }
        return Config(**{**kept, **given})

    def located(self) -> Config:
        """Return these settings with absolute paths of existing files, so that a run can be resumed from elsewhere."""
        names = ("root", "init_from", *(("digits",) if self.digits != "sklearn" else ()))
        paths = {name: getattr(self, name) for name in names if getattr(self, name)}
        return dataclasses.replace(
            self, **{name: os.path.abspath(path) for name, path in paths.items() if os.path.exists(path)}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name, in the plain types that JSON and a checkpoint can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    def without_places(self) -> dict[str, Any]:
        """Return the settings that mean the same on another machine, as `to_dict` does: no paths and no devices."""
        names = {"root", "init_from", "digits", "accelerator", "devices", "nodes", "workers"}
        return {name: value for name, value in self.to_dict().items() if name not in names}

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Config:
        """Return the settings of `to_dict`. An error message names `source`, the file of the values."""
        if not isinstance(values, dict):
            raise ValueError(f"{source} holds no settings of `motionrnn train`")
        unknown = sorted(map(str, values.keys() - {entry.name for entry in fields(cls)}))
        if unknown:
            raise ValueError(
                f"{source}: unknown settings {', '.join(unknown)}; misspelt, or of a newer version than this "
                f"motionrnn_ext ({__version__})"
            )
        return cls(**in_todays_form(values))

    @classmethod
    def read(cls, path: Path) -> Config:
        """Return the settings in a file: YAML if its name ends in .yaml or .yml, or else JSON."""
        return cls.from_dict(cls._values_in(path), str(path))

    @classmethod
    def named_in(cls, path: Path) -> dict[str, Any]:
        """Return the settings that a file names, which `read` would complete, by name."""
        values = cls._values_in(path)
        read = cls.from_dict(values, str(path)).to_dict()
        return {name: read[name] for name in values if name in read}

    @staticmethod
    def _values_in(path: Path) -> Any:
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        try:
            text = read_text(path)
            values = parse_yaml(text) if is_yaml else json.loads(text, object_pairs_hook=_named_once)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            kind = "YAML" if is_yaml else "JSON"
            raise ValueError(f"{path} is no readable {kind} file: {reason}") from None
        return values

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the content of a JSON object. Python's own reader lets the last of two equal names count."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return values


def in_todays_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings in today's form: before there was a `clip_step`, 255 was the default of `pixel_max`."""
    is_old = values.get("pixel_max") == 255 and "clip_step" not in values
    return {**values, "pixel_max": None} if is_old else dict(values)


def _converted(entry: dataclasses.Field[Any], value: Any) -> Any:
    """Return `value` as the type that the field is declared with."""
    if value is None and may_be_none(entry):
        return None
    kind = kind_of(entry)
    _check(kind.fits(value), entry.name, value, kind.rule)
    if kind.item is not dict:
        return kind.convert(value)
    try:
        return plain(value)
    # Such as a tensor, or a dict in itself, which neither config.json nor a checkpoint could hold.
    except (TypeError, RecursionError):
        _check(False, entry.name, value, "a dict of names, numbers and words")


def _no_data(value: Any) -> Any:
    """Return `missing` as text, because JSON has no nan and nan does not equal itself."""
    try:
        return None if value is None else f"{float(value):.9g}"
    except (TypeError, ValueError):
        raise ValueError(f"missing must be 'nan' or a number; got {value!r}") from None


def _check(good: bool, name: str, value: Any, rule: str) -> None:
    if not good:
        # A Parameter shows itself in two lines.
        raise ValueError(f"{name} must be {rule}; got {' '.join(repr(value).split())}")


# The settings of `motionrnn demo`, small enough to learn something in minutes on two cores.
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
    # Without L1 predictions keep a faint haze; with a weight of 1 a short training predicts black.
    l1_weight=0.15,
    sampling_until=0.5,
    accelerator="cpu",
    val_every=100,
)
