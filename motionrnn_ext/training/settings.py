"""The settings of a run in groups, each with its type, its default and its help text.

`Config` joins the groups and checks the values; the options of the command line are made from them.
"""

from __future__ import annotations

import sys
from dataclasses import Field, dataclass, field
from typing import Any, NamedTuple

from ..data import DATASETS
from ..layers.cells import CELLS

# The settings by which files are read, besides their place and the value of missing pixels, and what they stand for.
READING = ("stride", "clip_step", "interval", "pixel_max", "min_wet", "wet_above", "min_motion", "dbz")
_RANGES = "see motionrnn_ext.data.MotionRanges"


class Kind(NamedTuple):
    """The type of a setting. `item` is the type of the value, or of each entry if the value is a tuple."""

    item: type
    rule: str  # the words of an error after "must be"
    is_tuple: bool = False

    def fits(self, value: Any) -> bool:
        if self.is_tuple:
            return isinstance(value, (list, tuple)) and all(_is_a(self.item, entry) for entry in value)
        return _is_a(self.item, value)

    def convert(self, value: Any) -> Any:
        """Return a value that fits as this type: lists become tuples, and 1 becomes 1.0 where floats are wanted."""
        if self.is_tuple:
            return tuple(map(self.item, value))
        return self.item(value) if self.item in (int, float) else value


# The kinds by annotation, without its "| None".
_KINDS = {
    "bool": Kind(bool, "a bool (true or false)"),
    "dict[str, Any]": Kind(dict, "a dict"),
    "float": Kind(float, "a finite number (float)"),
    "int": Kind(int, "a finite number (int)"),
    "str": Kind(str, "a str"),
    "tuple[float, ...]": Kind(float, "numbers (float)", is_tuple=True),
    "tuple[int, ...]": Kind(int, "numbers (int)", is_tuple=True),
}


def kind_of(entry: Field[Any]) -> Kind:
    return _KINDS[str(entry.type).removesuffix(" | None")]


def may_be_none(entry: Field[Any]) -> bool:
    return str(entry.type).endswith(" | None")


def _is_a(kind: type, value: Any) -> bool:
    """Return whether `value` is a `kind`. An int may stand for a float, which must be finite; a bool is no number."""
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) if kind is int else abs(value) <= sys.float_info.max


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None, unset: str = "") -> Any:
    """Return the field of a setting. `unset` is the help's text for a default of None."""
    return field(default=default, metadata={"help": help, "choices": choices, "unset": unset})


@dataclass(frozen=True)
class ModelSettings:
    """The arguments of `MotionRNN`."""

    predictor: str = _option(
        "convlstm", f"recurrent cells of the model: {', '.join(CELLS)}, or one of --import"
    )
    cell_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "an option of this predictor's cells alone, such as rank=16 of conv_tt_lstm (may be repeated)",
            "flag": "--cell-option",
        },
    )
    compat: str = _option(
        "none",
        "compute the cells as OpenSTL does, which differs in places from their papers",
        ("none", "openstl"),
    )
    hidden: tuple[int, ...] = _option((64, 64, 64, 64), "width of every layer, first to last")
    patch_size: int = _option(
        4, "side of the patches that frames are folded into; maps are smaller by this factor"
    )
    filter_size: int = _option(5, "kernel size of the cells' convolutions")
    layer_norm: bool = _option(False, "use layer norm in the cells")
    variant: str = _option(
        "paper",
        "the form of MotionRNN: as in the paper, or as in the official program",
        ("paper", "official"),
    )
    overrides: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "set one option of the variant, see motionrnn_ext/models/variants.py (may be repeated)",
            "flag": "--override",
        },
    )
    motion_gru: bool = _option(True, "MotionGRUs between the layers")
    highway: bool = _option(True, "the Motion Highway around the layers")
    transient: bool = _option(True, "transient variation in the MotionGRUs")
    trend: bool = _option(True, "motion trend in the MotionGRUs")


@dataclass(frozen=True)
class DataSettings:
    """The arguments of `open_clips`."""

    dataset: str = _option("moving_digits", f"data set: {', '.join(DATASETS)}, or one of --import")
    root: str | None = _option(None, "where the data set's files are", unset="none, for generated data")
    stride: int = _option(1, "frames* and shanghai_*: take every stride-th frame")
    clip_step: int | None = _option(
        None,
        "frames*, shanghai_* and human36m*: the distance between the first frames of clips, in stored frames; below a "
        "clip's length, clips overlap",
        unset="the data set's",
    )
    interval: float | None = _option(
        None,
        "frames* and shanghai_png: minutes between frames whose names are times (or counts between those whose names "
        "are counts); no clip spans another step",
        unset="the median step",
    )
    pixel_max: float | None = _option(
        None,
        "frames* and shanghai_*: the stored value that becomes 1, for files of physical values",
        unset="255 for bytes, 1 for floats",
    )
    missing: str | None = _option(
        None,
        "the stored value of pixels without data, or 'nan'. They are left out of loss and metrics, and the model reads "
        "0 there; a nan that is not declared here is an error",
        unset="none",
    )
    min_wet: float | None = _option(
        None, "keep clips of files in which at least this share of the pixels is wet", unset="all clips"
    )
    wet_above: float = _option(0.0, "the value, 0 to 1, above which a pixel is wet for --min-wet")
    min_motion: float | None = _option(
        None,
        "keep clips of files whose mean absolute difference between successive frames, 0 to 1, is at least this",
        unset="all clips",
    )
    dbz: tuple[float, ...] | None = _option(
        None,
        "radar: the reflectivity of pixels 0 and 1 in dBZ, by which pictures are coloured and --thresholds are "
        "meant, and which the loss 'balanced' needs",
        unset="the data set's; none for most",
    )
    digits: str = _option("sklearn", "'sklearn', or a folder with MNIST's IDX files")
    plain: bool = _option(False, "plain Moving MNIST: no rotation, no change of size")
    image_size: tuple[int, ...] = _option(
        None, "height and width of the frames; frames of files are resized to it", unset="the data set's"
    )
    n_digits: int = _option(2, "digits in a clip")
    digit_size: int = _option(28, "side of a digit's image at scale 1, in pixels")
    speed: tuple[float, ...] | None = _option(None, "range of the speed, pixels per frame", unset=_RANGES)
    angle: tuple[float, ...] | None = _option(None, "range of the first angle, degrees", unset=_RANGES)
    rotation: tuple[float, ...] | None = _option(None, "range of rotation, degrees per frame", unset=_RANGES)
    scale: tuple[float, ...] | None = _option(None, "range of the scale", unset=_RANGES)
    scale_rate: tuple[float, ...] | None = _option(None, "range of growth, scale per frame", unset=_RANGES)
    n_input: int = _option(None, "number of given frames", unset="the data set's")
    n_output: int = _option(None, "number of frames to predict", unset="the data set's")
    train_clips: int = _option(
        10000, "clips per epoch of a generated data set; a data set of files uses all its clips"
    )
    val_clips: int = _option(200, "largest number of clips per validation")


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of the training itself."""

    batch_size: int = _option(8, "clips per step and device; a step uses batch-size x devices x nodes clips")
    steps: int = _option(20000, "optimiser steps")
    lr: float = _option(1e-3, "learning rate of Adam; with one-cycle, the highest one")
    lr_schedule: str = _option("constant", "schedule of the learning rate", ("constant", "one-cycle"))
    clip_norm: float = _option(0.0, "largest norm of the gradient; 0 for no limit")
    loss: str = _option(
        "l1+l2",
        "sum of terms, such as l2 or balanced+gdl: l2 squared error, l1 absolute error, balanced both weighted by rain "
        "rate (needs --dbz), ssim, gdl gradients; means over pixels and all T-1 predictions",
    )
    l1_weight: float = _option(1.0, "weight of l1 in the loss")
    ssim_weight: float = _option(0.1, "weight of ssim in the loss")
    gdl_weight: float = _option(1.0, "weight of gdl in the loss")
    zr: tuple[float, ...] = field(
        default=(200.0, 1.6),
        metadata={
            "help": "balanced: a and b of Z = a R^b, by which a reflectivity Z becomes a rain rate R in mm/h",
            "choices": None,
            "metavar": ("A", "B"),
        },
    )
    sampling: str = _option(
        "linear", "scheduled sampling of true frames past n_input; 'reverse' also samples the inputs",
        ("linear", "reverse", "none"),
    )  # fmt: skip
    sampling_until: float = _option(0.625, "share of the run after which no true frame is read past n_input")
    checkpoint_steps: bool = _option(
        False,
        "recompute every step in backward, for which 6.6 to 10 times less is kept: 1.3 to 1.4 times the time",
    )
    time_reversal: bool = _option(False, "also train on every clip in reverse order, in the same step")
    seed: int = _option(0, "seed of the weights, the clips, their order and the sampling masks")
    init_from: str | None = _option(
        None,
        "start a new run with these weights: a run's folder (its best checkpoint), a .ckpt file, or a public "
        "checkpoint that load_checkpoint knows; a run also brings its settings, unless --config is given",
        unset="random weights",
    )
    precision: str = _option("32", "precision of the features", ("32", "bf16-mixed"))
    channels_last: bool | None = _option(
        None,
        "lay maps out with their channels last, which changes no number but for rounding",
        unset="on a GPU whose tensor cores are used (bf16-mixed, or TF32, which PyTorch allows); off on a CPU",
    )
    graph: bool = _option(
        False, "play each step's rollout, forward and backward, from CUDA graphs; one process, on a GPU"
    )
    accelerator: str = _option("auto", "accelerator of Lightning: auto, cpu, gpu, ...")
    devices: int = _option(1, "number of devices of this machine; each gets a process")
    nodes: int = _option(1, "number of machines, with --devices devices each; start the same command on each")
    workers: int = _option(0, "processes that load clips; 0 loads them in the training process")
    val_every: int = _option(500, "steps between validations; a checkpoint is written after each")
    log_every: int = _option(10, "steps between rows of the logs")
    logger: str = _option(
        "tensorboard",
        "where to log besides the CSV files: csv for nowhere, tensorboard in the run's folder; wandb or mlflow where "
        "their own environment variables say",
        ("csv", "tensorboard", "wandb", "mlflow"),
    )
