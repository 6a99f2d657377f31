"""Scores and pictures of trained models, and predictions of a user's own frames."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from io import BytesIO
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from .. import visualize
from ..data.registry import DATASETS, ClipDataset
from ..files import read_text, write_atomically, write_text
from ..layers import MotionState
from ..metrics import LABELS, Meter, Protocol, counted, heading, repeat_last_frame
from ..models import MotionRNN
from ..pixels import as_floats, check_range, filled, in_unit_range
from ..training.config import Config
from ..training.runs import PathLike, Run, RunError, load_runs
from .clips import fitting, held_out, in_rgb, other_data
from .pictures import Pictures

BASELINE = "repeat last frame"
_READING = ("digits", "stride", "pixel_max")  # settings that say how a data set is read
_NAMES = {
    "convlstm": "ConvLSTM",
    "predrnn": "PredRNN",
    "mim": "MIM",
    "e3d_lstm": "E3D-LSTM",
    "conv_tt_lstm": "Conv-TT-LSTM",
}


def predict(model: MotionRNN, frames: Tensor, n_future: int, seed: int = 0, *, clip: bool = True) -> Tensor:
    """(B, T, C, H, W) -> (B, n_future, C, H, W), with `clip` in [0, 1]; `seed` is of random initial states. uint8 is
    scaled, and missing values (nan) are given to the model as 0. A warning says so where the future is not finite.

    Raises:
        ValueError: frames out of [0, 1], by more than rounding.
    """
    check_range(frames)
    model.reset()  # else a prediction with compat="openstl" would depend on the clips before it
    generator = torch.Generator(frames.device).manual_seed(seed)
    frames = filled(frames if frames.is_floating_point() else as_floats(frames))
    future = model.predict(frames, n_future, generator=generator)
    if not future.isfinite().all():
        text = "predictions have values that are nan or infinite; are the model's weights finite?"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return future.clamp(0, 1) if clip else future


def score(
    models: Mapping[str, MotionRNN],
    clips: ClipDataset,
    n_input: int,
    *,
    protocol: Protocol | None = None,
    batch_size: int = 16,
    colours: str = "grey",
) -> dict[str, dict[str, Any]]:
    """label -> what `Meter.compute` gives on all clips; the baseline that repeats the last input comes first.

    `colours` is the order of the clips' channels, as in `DataSet`.
    """
    n_future = len(clips[0]) - n_input
    metrics = {label: Meter(n_future, protocol) for label in (BASELINE, *models)}
    devices = {label: next(model.parameters()).device for label, model in models.items()}
    for start in range(0, len(clips), batch_size):
        indices = range(start, min(start + batch_size, len(clips)))
        frames = torch.stack([in_unit_range(clips[i], f"the frames of clip {i}") for i in indices])
        given, truth = frames[:, :n_input], frames[:, n_input:]
        futures = {BASELINE: repeat_last_frame(frames, n_input)}
        for label, model in models.items():
            future = predict(model, given.to(devices[label]), n_future, seed=start, clip=False)
            futures[label] = future.cpu()
        for label, future in futures.items():  # LPIPS and FVD expect red first
            metrics[label].update(*(in_rgb(part, colours) for part in (future, truth, given)))
    return {label: metric.compute() for label, metric in metrics.items()}


def draw(
    folder: Path,
    models: Mapping[str, MotionRNN],
    clips: ClipDataset,
    n_input: int,
    which: Sequence[int],
    colours: str = "grey",
) -> Pictures:
    """For each clip of `which` a strip, a GIF, and for each model with MotionGRUs the motion trend as arrows.

    `colours` is the order of the clips' channels, as in `DataSet`.
    """
    pictures = Pictures()
    for index in which:
        pictures.attempt(
            f"the pictures of clip {index}",
            _draw_clip,
            pictures,
            folder,
            models,
            clips,
            n_input,
            index,
            colours,
        )
    return pictures


def _draw_clip(
    pictures: Pictures,
    folder: Path,
    models: Mapping[str, MotionRNN],
    clips: ClipDataset,
    n_input: int,
    index: int,
    colours: str,
) -> None:
    frames = clips[index]  # (T, C, H, W)
    futures, moves = {}, {}
    for label, model in models.items():
        given = frames[:n_input].to(next(model.parameters()).device)
        futures[label] = predict(model, given[None], len(frames) - n_input, seed=index)[0].cpu()
        if model.interfaces and model.trend:
            moves[label] = motion_trends(model, given, futures[label].to(given), seed=index)
    frames = in_rgb(frames, colours)
    futures = {label: in_rgb(future, colours) for label, future in futures.items()}
    pictures.draw(visualize.strip, folder / f"strip_{index}.png", frames, futures, n_input)
    pictures.draw(visualize.gif, folder / f"clip_{index}.gif", frames, futures, n_input)
    names = [file_name(label) for label in moves]
    if len(set(names)) < len(names):  # labels that differ in signs alone
        names = [f"{name}_{i}" for i, name in enumerate(names, start=1)]
    for own, (label, trends) in zip(names, moves.items()):
        name = f"arrows_{index}.png" if len(moves) == 1 else f"arrows_{index}_{own}.png"
        seen = torch.cat([frames[:n_input], futures[label]])[:-1]
        pictures.draw(visualize.arrows, folder / name, seen, trends)


@torch.no_grad()
def motion_states(model: MotionRNN, given: Tensor, future: Tensor, seed: int = 0) -> dict[str, MotionState]:
    """ "MotionGRU l" -> offset and trend, (T-1, 2K, h', w') each, after each frame that the model reads, its own future
    (from `predict`) included; of maps with a depth, the newest slice's."""
    model.reset()
    frames = filled(torch.cat([given if given.is_floating_point() else as_floats(given), future]))[None]
    generator = torch.Generator(frames.device).manual_seed(seed)
    _, motion = model(frames, len(given), return_motion=True, generator=generator)

    def of_clip(motion: Tensor) -> Tensor:  # (1, T-1, 2K, h', w') or (1, T-1, W, 2K, h', w')
        return motion[0] if motion.dim() == 5 else motion[0, :, -1]

    return {
        f"MotionGRU {level}": MotionState(*map(of_clip, state)) for level, state in enumerate(motion, start=1)
    }


def motion_trends(model: MotionRNN, given: Tensor, future: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The trends of `motion_states`."""
    return {name: state.trend for name, state in motion_states(model, given, future, seed).items()}


def evaluate(
    paths: Sequence[PathLike],
    folder: Path,
    *,
    clips: int | None = None,
    n_output: int | None = None,
    dataset: str | None = None,
    root: PathLike | None = None,
    digits: str | None = None,
    stride: int | None = None,
    pixel_max: float | None = None,
    missing: str | float | None = None,
    model: Mapping[str, Any] | None = None,
    split: str = "test",
    protocol: Protocol | None = None,
    batch_size: int = 16,
    pictures: int = 2,
    device: str = "cpu",
    show: Callable[[dict[str, dict[str, Any]]], None] | None = None,
) -> tuple[dict[str, dict[str, Any]], Pictures]:
    """Score the models of runs or checkpoints, public programs' too, on the same held-out clips, write metrics.json and
    pictures to `folder`.

    The numbers come first: they are written, `show` is called with them, also where the disk is full, and then pictures
    are drawn, of which one that fails is a line in `failed` of the paths that are returned.

    `clips` is by default 200 generated ones, or all that the files have. The data are the first run's, with another
    `root`, `digits`, `stride`, `pixel_max` or `missing`, or another `dataset` of the same kind of frames. `model` has
    arguments of MotionRNN for files of weights alone, see `load_run`.

    Raises:
        RunError: a checkpoint that cannot be read, or is given twice; runs whose clips have other sizes or inputs.
    """
    runs = labelled(load_runs(paths, dataset, model))
    changes = other_data(dataset, root, digits=digits, stride=stride, pixel_max=pixel_max, missing=missing)
    trained = next(iter(runs.values())).config
    config = _common_config(runs, changes)
    entry, colours = DATASETS[config.dataset], DATASETS[trained.dataset].colours
    if clips is None and split in entry.generated:
        clips = 200
    n_frames = config.n_input + (n_output or config.n_output)
    data = held_out(trained, clips, split=split, n_frames=n_frames, **changes)
    models = {label: on_device(run.model, device) for label, run in runs.items()}
    how: Any = {"protocol": protocol, "batch_size": batch_size, "colours": colours}
    results = score(models, data, config.n_input, **how)
    about = _about_data(config, split, data)
    about |= {"n_input": config.n_input, "n_output": n_frames - config.n_input}
    for result in results.values():
        result["protocol"]["data"] = _in_words(about)
    for label, run in runs.items():
        results[label] |= {
            "parameters": count_parameters(run.model),
            "step": run.step,
            "checkpoint": str(run.path),
        }
    try:  # neither a full disk nor an output without a reader costs both
        written = Pictures([write_json(folder / "metrics.json", {**about, "models": results})])
    finally:
        if show is not None:
            show(results)
    draw_lead_times(written, folder, results)
    written.add(draw(folder, models, data, config.n_input, range(min(pictures, len(data))), colours))
    return results, written


def _about_data(config: Config, split: str, data: ClipDataset) -> dict[str, Any]:
    """What a model is scored on, for metrics.json."""
    about = {"dataset": config.dataset, "root": config.root, "split": split, "clips": len(data)}
    if isinstance(data, Subset):
        about["of_clips"] = len(data.dataset)  # type: ignore[arg-type]
    entry = DATASETS[config.dataset]
    known = entry.settings if split in entry.generated else set(entry.settings) - {"digits"}
    about |= {name: getattr(config, name) for name in _READING if name in known}
    return about if config.missing is None else about | {"missing": config.missing}


def _in_words(about: Mapping[str, Any]) -> str:
    settings = "".join(f", {name} {about[name]}" for name in (*_READING, "missing") if name in about)
    return (
        f"data: {about['dataset']}, {about['split']}, {counted(about['clips'], 'clip')} of "
        f"{counted(about['n_input'], 'given frame')} and {about['n_output']} to predict{settings}"
    )


def _common_config(runs: Mapping[str, Run], changes: Mapping[str, Any]) -> Config:
    """The first run's settings, changed. RunError where its clips are not what all these models take."""
    first = next(iter(runs.values())).config
    trained_on, config = DATASETS[first.dataset], replace(first, **changes)

    def frames(config: Config) -> tuple[Any, ...]:
        return config.channels, config.image_size, config.n_input

    for label, run in runs.items():
        if "dataset" not in changes and run.config.dataset != config.dataset:
            raise RunError(
                f"{label} was trained on {run.config.dataset}, the first run on {config.dataset}; "
                "evaluate them apart, or name a data set for both (--dataset)"
            )
        if frames(run.config) != frames(config):
            raise RunError(
                f"{label} has (channels, image_size, n_input) {frames(run.config)}, the clips of {config.dataset} "
                f"{frames(config)}; evaluate them apart"
            )
        colours = DATASETS[run.config.dataset].colours
        if colours != trained_on.colours:
            raise RunError(
                f"{label} was trained on {colours} frames, the first run on {trained_on.colours}; evaluate them apart"
            )
    return config


def draw_lead_times(pictures: Pictures, folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """lead_time.png of the metrics of frames; lead_time_events.png of pooled CSI and FAR where they were measured."""
    names = list(next(iter(results.values()))["per_lead"])
    frames = [name for name in names if name in LABELS]
    pictures.draw(visualize.lead_time_curves, folder / "lead_time.png", results, frames)
    titles = {name: heading(name) for name in names if name not in LABELS}
    if titles:
        curves = {
            label: {"per_lead": {title: result["per_lead"][name] for name, title in titles.items()}}
            for label, result in results.items()
        }
        pictures.draw(visualize.lead_time_curves, folder / "lead_time_events.png", curves)


def predict_frames(
    run: Run,
    frames: Tensor,
    n_given: int,
    n_output: int,
    folder: Path,
    device: str = "cpu",
    *,
    pad: bool = False,
) -> Pictures:
    """Predict what follows the first `n_given` of frames (T, C, H, W); later ones, if any, are shown as the truth.

    Writes prediction.npy (n_output, C, H, W) float32, strip.png, clip.gif and, with MotionGRUs, arrows.png. With `pad`
    the model has `clips.fitting` frames, and predictions are cropped again, but for the arrows.
    """
    import numpy as np

    if not 1 <= n_given <= len(frames):
        raise RunError(f"n_input must be from 1 to the {len(frames)} frames that there are; got {n_given}")
    height, width = frames.shape[-2:]
    frames = fitting(run.model, in_unit_range(frames), pad)
    model, given = on_device(run.model, device), frames[:n_given].to(device)
    future = predict(model, given[None], n_output)[0]  # (n_output, C, H, W)
    content = BytesIO()  # numpy's own error of a full disk does not say so
    np.save(content, future[..., :height, :width].cpu().numpy())
    with write_atomically(folder / "prediction.npy") as part:
        part.write_bytes(content.getbuffer())
    shown = frames if len(frames) >= n_given + n_output else frames[:n_given]
    colours = DATASETS[run.config.dataset].colours
    shown = in_rgb(shown[: n_given + n_output, :, :height, :width], colours)
    futures = {model_name(run.config): in_rgb(future[..., :height, :width].cpu(), colours)}
    pictures = Pictures([folder / "prediction.npy"])
    pictures.draw(visualize.strip, folder / "strip.png", shown, futures, n_given)
    pictures.draw(visualize.gif, folder / "clip.gif", shown, futures, n_given)
    if model.interfaces and model.trend:
        seen = in_rgb(torch.cat([frames[:n_given], future.cpu()])[:-1], colours)
        trends = pictures.attempt(folder / "arrows.png", motion_trends, model, given, future)
        if trends is not None:
            pictures.draw(visualize.arrows, folder / "arrows.png", seen, trends)
    return pictures


def on_device(model: MotionRNN, device: str) -> MotionRNN:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch: unknown, or not there
        raise RunError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def model_name(config: Config) -> str:
    """What a run's model is called: "ConvLSTM", "MotionRNN-ConvLSTM", ..."""
    base = _NAMES.get(config.predictor, config.predictor)
    return f"MotionRNN-{base}" if config.motion_gru or config.highway else base


def labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by their models' names, or by their folders' where names repeat. RunError for a run given twice."""
    seen: set[Path] = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise RunError(f"{run.path} is given twice; name each run once")
        seen.add(run.path.resolve())
    names = [model_name(run.config) for run in runs]
    if len(set(names)) < len(names):
        names = [run.path.parent.parent.name or str(run.path) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return dict(zip(names, runs))


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label.lower())


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write `content` as JSON, which has no nan and no infinity: null stands there, and a last entry "not_finite" says
    where which was, as [{"at": ["models", "ConvLSTM", "psnr"], "is": "inf"}]. `read_json` puts them back."""
    found: list[dict[str, Any]] = []
    finite = _finite(content, found, [])
    write_text(path, json.dumps({**finite, "not_finite": found} if found else finite, indent=2) + "\n")
    return path


def _finite(content: Any, found: list[dict[str, Any]], place: list[Any]) -> Any:
    """With None for the numbers that are not finite, which are added to `found`."""
    if isinstance(content, float) and not math.isfinite(content):
        found.append({"at": place, "is": str(content)})
        return None
    if isinstance(content, Mapping):
        return {key: _finite(value, found, [*place, key]) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value, found, [*place, i]) for i, value in enumerate(content)]
    return content


def read_json(path: Path) -> Any:
    """The content that `write_json` was given."""
    content = json.loads(read_text(path))
    if isinstance(content, dict):
        for entry in content.pop("not_finite", []):
            *outer, key = entry["at"]
            reduce(getitem, outer, content)[key] = float(entry["is"])
    return content
