"""The work of `motionrnn evaluate` and `motionrnn predict`: models' scores, predictions and pictures, in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from .. import visualize
from ..data.registry import DATASETS, ClipDataset
from ..files import write_atomically, write_json
from ..metrics import LABELS, Protocol, counted, heading
from ..models import MotionRNN
from ..models.ensembles import NOISE
from ..pixels import in_unit_range
from ..training.config import Config
from ..training.runs import PathLike, Run, RunError, checkpoint_home, load_runs
from ..training.settings import READING
from . import baselines
from .clips import fitting, held_out, in_rgb, other_data
from .pictures import Pictures
from .scores import motion_trends, on_device, predict_clips, score

# The settings that say how a data set is read.
_SAID = ("digits", *READING)
_NAMES = {
    "convlstm": "ConvLSTM",
    "predrnn": "PredRNN",
    "mim": "MIM",
    "e3d_lstm": "E3D-LSTM",
    "conv_tt_lstm": "Conv-TT-LSTM",
}


def evaluate(
    paths: Sequence[PathLike],
    folder: Path,
    *,
    n_clips: int | None = None,
    n_output: int | None = None,
    dataset: str | None = None,
    root: PathLike | None = None,
    digits: str | None = None,
    missing: str | float | None = None,
    model: Mapping[str, Any] | None = None,
    split: str = "test",
    protocol: Protocol | None = None,
    batch_size: int = 16,
    pictures: int = 2,
    device: str = "cpu",
    members: int | None = None,
    noise: float = NOISE,
    show: Callable[[dict[str, dict[str, Any]]], None] | None = None,
    **reading: Any,
) -> tuple[dict[str, dict[str, Any]], Pictures]:
    """Score the models of runs and checkpoints on the same held-out clips; write metrics.json and pictures to `folder`.

    Checkpoints of public programs are accepted too. Returns the results by label and the paths that were written. The
    numbers come before the pictures: metrics.json is written and `show` is called with the results, even if the disk is
    full. A picture that cannot be drawn is a line in `failed` of the returned paths.

    Args:
        n_clips: the number of clips; by default 200 where clips are generated, or all that the files have.
        dataset: a data set of the same kind of frames, in place of the first run's. `root`, `digits`, `missing` and
            `reading`, the fields of Config in `READING`, replace single settings of its data.
        model: arguments of MotionRNN for files of weights alone, see `load_run`.
        members: the size of an ensemble that is scored as well, see `score`; None for none.
        noise: the noise of the ensemble.

    Raises:
        RunError: a checkpoint cannot be read or is given twice, or the runs' clips differ in size or inputs.
    """
    runs = labelled(load_runs(paths, dataset, model))
    trained = next(iter(runs.values())).config
    changes = other_data(trained, dataset, root, digits=digits, missing=missing, **reading)
    config = _common_config(runs, changes)
    entry, colours = DATASETS[config.dataset], DATASETS[trained.dataset].colours
    if n_clips is None and split in entry.generated:
        n_clips = 200
    n_frames = config.n_input + (n_output or config.n_output)
    clips = held_out(trained, n_clips, split=split, n_frames=n_frames, **changes)
    models = {label: on_device(run.model, device) for label, run in runs.items()}
    how: Any = {"protocol": protocol, "batch_size": batch_size, "colours": colours}
    how |= {"members": members, "noise": noise}
    results = score(models, clips, config.n_input, **how)
    about = _about_data(config, split, clips)
    about |= {"n_input": config.n_input, "n_output": n_frames - config.n_input}
    for result in results.values():
        result["protocol"]["data"] = _in_words(about)
    for label, run in runs.items():
        results[label] |= {
            "parameters": count_parameters(run.model),
            "step": run.step,
            "checkpoint": str(run.path),
        }
    # A full disk does not keep the results from being shown.
    try:
        written = Pictures([write_json(folder / "metrics.json", {**about, "models": results})])
    finally:
        if show is not None:
            show(results)
    draw_lead_times(written, folder, results)
    indices = range(min(pictures, len(clips)))
    written.add(draw_clips(folder, models, clips, config.n_input, indices, colours, config.dbz))
    return results, written


def _about_data(config: Config, split: str, clips: ClipDataset) -> dict[str, Any]:
    """Return the entries of metrics.json that say which clips the models are scored on."""
    about = {"dataset": config.dataset, "root": config.root, "split": split, "clips": len(clips)}
    if isinstance(clips, Subset):
        about["of_clips"] = len(clips.dataset)  # type: ignore[arg-type]
    entry = DATASETS[config.dataset]
    known = entry.settings if split in entry.generated else set(entry.settings) - {"digits"}
    about |= {name: value for name in _SAID if name in known and (value := getattr(config, name)) is not None}
    if config.min_wet is None:
        about.pop("wet_above", None)
    return about if config.missing is None else about | {"missing": config.missing}


def _in_words(about: Mapping[str, Any]) -> str:
    """Return the entries of `_about_data` as a sentence of the protocol."""
    settings = "".join(f", {name} {about[name]}" for name in (*_SAID, "missing") if name in about)
    return (
        f"data: {about['dataset']}, {about['split']}, {counted(about['clips'], 'clip')} of "
        f"{counted(about['n_input'], 'given frame')} and {about['n_output']} to predict{settings}"
    )


def _common_config(runs: Mapping[str, Run], changes: Mapping[str, Any]) -> Config:
    """Return the first run's settings with `changes`.

    Raises:
        RunError: a run was trained on other data, or on frames of another size, colour order or number of inputs.
    """
    first = next(iter(runs.values())).config
    trained_on, config = DATASETS[first.dataset], replace(first, **changes)

    def frames_of(config: Config) -> tuple[Any, ...]:
        return config.channels, config.image_size, config.n_input

    for label, run in runs.items():
        if "dataset" not in changes and run.config.dataset != config.dataset:
            raise RunError(
                f"{label} was trained on {run.config.dataset}, the first run on {config.dataset}; "
                "evaluate them apart, or name a data set for both (--dataset)"
            )
        if frames_of(run.config) != frames_of(config):
            raise RunError(
                f"{label} has (channels, image_size, n_input) {frames_of(run.config)}, the clips of {config.dataset} "
                f"{frames_of(config)}; evaluate them apart"
            )
        colours = DATASETS[run.config.dataset].colours
        if colours != trained_on.colours:
            raise RunError(
                f"{label} was trained on {colours} frames, the first run on {trained_on.colours}; evaluate them apart"
            )
    return config


def draw_clips(
    folder: Path,
    models: Mapping[str, MotionRNN],
    clips: ClipDataset,
    n_input: int,
    indices: Sequence[int],
    colours: str = "grey",
    dbz: tuple[float, ...] | None = None,
) -> Pictures:
    """Draw the models' predictions of some clips: strip_N.png and clip_N.gif for clip N, and arrows_N.png.

    The optical flow has a row below the models, where it can be computed. The arrows are the motion trend of a model
    with MotionGRUs; several such models have a picture each, with the model's name in the file's. `colours` is the
    order of the clips' channels, as in `DataSet`, and `dbz` the reflectivity of pixels 0 and 1 of radar.
    """
    pictures = Pictures()
    for index in indices:
        arguments = (pictures, folder, models, clips, n_input, index, colours, dbz)
        pictures.attempt(f"the pictures of clip {index}", _draw_clip, *arguments)
    return pictures


def _draw_clip(
    pictures: Pictures,
    folder: Path,
    models: Mapping[str, MotionRNN],
    clips: ClipDataset,
    n_input: int,
    index: int,
    colours: str,
    dbz: tuple[float, ...] | None,
) -> None:
    frames = clips[index]  # (T, C, H, W)
    futures, moves = {}, {}
    for label, model in models.items():
        given = frames[:n_input].to(next(model.parameters()).device)
        futures[label] = predict_clips(model, given[None], len(frames) - n_input, seed=index)[0].cpu()
        if model.interfaces and model.trend:
            moves[label] = motion_trends(model, given, futures[label].to(given), seed=index)
    if baselines.FLOW in baselines.names(n_input):
        given = in_unit_range(frames[:n_input], f"the frames of clip {index}")
        futures[baselines.FLOW] = baselines.carried_on(given, len(frames) - n_input)
    frames = in_rgb(frames, colours)
    futures = {label: in_rgb(future, colours) for label, future in futures.items()}
    pictures.draw(visualize.strip, folder / f"strip_{index}.png", frames, futures, n_input, dbz=dbz)
    pictures.draw(visualize.gif, folder / f"clip_{index}.gif", frames, futures, n_input, dbz=dbz)
    names = [_file_name(label) for label in moves]
    # Labels that differ only in signs have the same file name.
    if len(set(names)) < len(names):
        names = [f"{name}_{i}" for i, name in enumerate(names, start=1)]
    for own, (label, trends) in zip(names, moves.items()):
        name = f"arrows_{index}.png" if len(moves) == 1 else f"arrows_{index}_{own}.png"
        seen = torch.cat([frames[:n_input], futures[label]])[:-1]
        pictures.draw(visualize.arrows, folder / name, seen, trends, dbz=dbz)


def draw_lead_times(pictures: Pictures, folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the metrics over lead time in lead_time.png, and CSI, FAR and FSS, if any, in lead_time_events.png."""
    names = list(next(iter(results.values()))["per_lead"])
    frames = [name for name in names if name in LABELS]
    pictures.draw(visualize.lead_time_curves, folder / "lead_time.png", results, frames)
    titles = {name: heading(name) for name in names if name.startswith(("csi", "far", "fss"))}
    if titles:
        curves = {
            label: {
                "baseline": "baseline" in result,
                "per_lead": {title: result["per_lead"][name] for name, title in titles.items()},
            }
            for label, result in results.items()
        }
        pictures.draw(visualize.lead_time_curves, folder / "lead_time_events.png", curves)


def write_prediction(
    run: Run,
    frames: Tensor,
    n_given: int,
    n_output: int,
    folder: Path,
    device: str = "cpu",
    *,
    pad: bool = False,
    members: int | None = None,
    noise: float = NOISE,
    dbz: tuple[float, ...] | None = None,
) -> Pictures:
    """Predict the frames that follow the first `n_given` of frames (T, C, H, W); write and draw them in `folder`.

    Writes prediction.npy, (n_output, C, H, W) in float32, strip.png, clip.gif and, for a model with MotionGRUs,
    arrows.png. Frames after the first `n_given`, if there are any, are drawn as the truth. With `pad` the frames are
    padded as by `clips.fitting`, and the predictions are cropped to the frames' own size; the arrows are not. With
    `members` an ensemble with `noise` is written to members.npy, (N, n_output, C, H, W), and its mean and first members
    are drawn as well; prediction.npy stays the prediction without noise. `dbz`
    is the reflectivity of pixels 0 and 1 of radar.

    Raises:
        RunError: `n_given` is not from 1 to T, or the frames do not fit the model.
    """
    import numpy as np

    if not 1 <= n_given <= len(frames):
        raise RunError(f"n_input must be from 1 to the {len(frames)} frames that there are; got {n_given}")
    height, width = frames.shape[-2:]
    frames = fitting(run.model, in_unit_range(frames), pad)
    model, given = on_device(run.model, device), frames[:n_given].to(device)
    future = predict_clips(model, given[None], n_output)[0]  # (n_output, C, H, W)
    written = {"prediction.npy": future}
    if members is not None:
        how: Any = {"members": members, "noise": noise}
        written["members.npy"] = predict_clips(model, given[None], n_output, **how)[0]
    for name, values in written.items():
        # The file is made in memory, because numpy's own error of a full disk does not say so.
        content = BytesIO()
        np.save(content, values[..., :height, :width].cpu().numpy())
        with write_atomically(folder / name) as part:
            part.write_bytes(content.getbuffer())
    shown = frames if len(frames) >= n_given + n_output else frames[:n_given]
    colours = DATASETS[run.config.dataset].colours
    shown = in_rgb(shown[: n_given + n_output, :, :height, :width], colours)
    futures = {model_name(run.config): future}
    if members is not None:
        ensemble = written["members.npy"]
        futures[f"mean of {members}"] = ensemble.mean(0)
        futures |= {f"member {i}": member for i, member in enumerate(ensemble[:3], start=1)}
    futures = {label: in_rgb(one[..., :height, :width].cpu(), colours) for label, one in futures.items()}
    pictures = Pictures([folder / name for name in written])
    pictures.draw(visualize.strip, folder / "strip.png", shown, futures, n_given, dbz=dbz)
    pictures.draw(visualize.gif, folder / "clip.gif", shown, futures, n_given, dbz=dbz)
    if model.interfaces and model.trend:
        seen = in_rgb(torch.cat([frames[:n_given], future.cpu()])[:-1], colours)
        trends = pictures.attempt(folder / "arrows.png", motion_trends, model, given, future)
        if trends is not None:
            pictures.draw(visualize.arrows, folder / "arrows.png", seen, trends, dbz=dbz)
    return pictures


def model_name(config: Config) -> str:
    """Return the name of a run's model, such as "ConvLSTM" or "MotionRNN-ConvLSTM"."""
    base = _NAMES.get(config.predictor, config.predictor)
    return f"MotionRNN-{base}" if config.motion_gru or config.highway else base


def labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs by label: their models' names, or their folders' if names repeat, or their checkpoints' paths.

    Raises:
        RunError: a run is given twice.
    """
    seen: set[Path] = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise RunError(f"{run.path} is given twice; name each run once")
        seen.add(run.path.resolve())
    names = [model_name(run.config) for run in runs]
    if len(set(names)) < len(names):
        names = [checkpoint_home(run.path).name or str(run.path) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return dict(zip(names, runs))


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of elements of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _file_name(label: str) -> str:
    """Return a label in lower case, with an underscore for each character that is no letter or digit."""
    return "".join(c if c.isalnum() else "_" for c in label.lower())
