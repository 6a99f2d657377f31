"""Turn the options of a command into the settings of a run, a model or an evaluation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from ..data import DATASETS
from ..training import processes
from ..training.config import Config
from ..training.settings import READING
from .options import MODEL_OPTIONS


def config_of(arguments: argparse.Namespace) -> Config:
    """Return the settings of `train`: those of the run to resume, of --config or of --init-from, or else the defaults,
    changed by the options that are given."""
    from ..training.resuming import Unchangeable, resumed
    from ..training.runs import RunError, last_step, resumable_config, settings_of

    given = {**given_settings(arguments), **_of_torchrun(arguments)}
    if arguments.resume:
        if arguments.config is not None:
            given = {**Config.named_in(arguments.config), **given}
        before = resumable_config(arguments.out)
        wanted = Config(**{**before.to_dict(), **given}).located()
        try:
            config = resumed(before, wanted, partial(last_step, arguments.out), given)
        except Unchangeable as error:
            raise RunError(f"{arguments.out} was started with {error}") from None
        return config
    start = Config() if arguments.config is None else Config.read(arguments.config)
    if "init_from" in given and arguments.config is None:
        start = settings_of(given["init_from"]) or start
    return checked_reading(start.changed(given), given)


def checked_reading(config: Config, given: Collection[str]) -> Config:
    """Return the settings; raise a ValueError if one of those that are given would not be used by the data set."""
    known = {*DATASETS[config.dataset].settings, "dbz"}
    for name in given:
        if name in READING and name not in known:
            takers = [other for other, entry in DATASETS.items() if name in entry.settings]
            raise ValueError(
                f"{name} (--{name.replace('_', '-')}) is for {', '.join(takers)}; {config.dataset} has none"
            )
    return config


def _of_torchrun(arguments: argparse.Namespace) -> dict[str, int]:
    """Return `devices` and `nodes` as torchrun has set them, so that they need not be given again."""
    found = processes.of_torchrun()
    for name, value in found.items():
        if getattr(arguments, name, value) != value:
            raise ValueError(
                f"--{name} is {getattr(arguments, name)}, and torchrun has started {value}; leave it out"
            )
    return found


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a run that are given as options, by name."""
    given = {
        entry.name: getattr(arguments, entry.name)
        for entry in fields(Config)
        if hasattr(arguments, entry.name)
    }
    for name in given.keys() & {"overrides", "cell_options"}:
        given[name] = dict(_named_value(text) for text in given[name])
    return given


# Python's words and those of JSON.
_OF_PYTHON = {"None": "null", "True": "true", "False": "false"}


def _named_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--override and --cell-option must be NAME=VALUE; got {text!r}")
    try:
        return name, json.loads(_OF_PYTHON.get(value, value))
    except json.JSONDecodeError:
        return name, value


def model_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of MotionRNN that are given for a file of weights alone."""
    given = {name: value for name, value in given_settings(arguments).items() if name in MODEL_OPTIONS}
    if given.get("compat") == "none":
        given["compat"] = None
    overrides = given.pop("overrides", {})
    return {**given, **overrides}


def protocol_of(arguments: argparse.Namespace, dbz: Sequence[float] | None = None) -> Any:
    """Return the metrics to compute: with the values of a preset, the given ones, or for thresholds those of `dbz`, the
    reflectivity of pixels 0 and 1; and with the preset's thresholds unless others are given."""
    from ..metrics import FSS_SCALES, PRESET_THRESHOLDS, PRESETS, Protocol, Values

    scale, offset = arguments.value_scale, arguments.value_offset
    values = PRESETS.get(arguments.values)
    if values is not None and (scale is not None or offset is not None or arguments.value_bytes):
        raise ValueError(
            "--values names scale and offset; leave out --value-scale, --value-offset, --value-bytes"
        )
    if scale is not None:
        values = Values(scale, offset or 0.0, arguments.value_bytes)
    thresholds = tuple(arguments.thresholds or PRESET_THRESHOLDS.get(arguments.values, ()))
    if thresholds and values is None and offset is None and dbz is not None:
        values = Values(dbz[1] - dbz[0], dbz[0], arguments.value_bytes)
    if thresholds and values is None:
        raise ValueError(
            "--thresholds needs what a pixel stands for: --values NAME, --value-scale S or --dbz LOW HIGH"
        )
    if not thresholds and (values is not None or offset is not None or arguments.value_bytes):
        raise ValueError("values are for scores of events: give --thresholds too")
    names = ("convention", "ssim", "lpips", "fvd", "fvd_context", "device")
    options = {name: getattr(arguments, name) for name in names}
    scales = tuple(arguments.fss or FSS_SCALES) if thresholds or arguments.fss else ()
    scales = () if scales == (0,) else scales
    return Protocol(thresholds=thresholds, values=values, fss_scales=scales, **options)
