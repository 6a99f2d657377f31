"""Scores and pictures of trained models, and predictions of a user's own frames."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import visualize
from .config import Config
from .data import VariedMovingMNIST
from .metrics import FrameMetrics, repeat_last_frame
from .models import MotionRNN
from .runs import PathLike, Run, RunError, load_run

BASELINE = "repeat last frame"


def held_out(config: Config, clips: int, **changes: Any) -> VariedMovingMNIST:
    """Test clips as a run's settings describe them: digits and motions that no training has seen."""
    return VariedMovingMNIST(length=clips, **{"split": "test", **config.data(), **changes})


def predict(model: MotionRNN, frames: Tensor, n_future: int, seed: int = 0) -> Tensor:
    """(B, T, C, H, W) -> (B, n_future, C, H, W) in [0, 1]; `seed` is of random initial states."""
    generator = torch.Generator(frames.device).manual_seed(seed)
    return model.predict(frames, n_future, generator=generator).clamp(0, 1)


def score(
    models: Mapping[str, MotionRNN],
    clips: VariedMovingMNIST,
    n_input: int,
    *,
    ssim: str = "float",
    batch_size: int = 16,
) -> dict[str, dict[str, Any]]:
    """label -> what `FrameMetrics.compute` gives on all clips; the baseline that repeats the last input comes first."""
    n_future = clips.n_frames - n_input
    metrics = {label: FrameMetrics(n_future, ssim) for label in (BASELINE, *models)}
    devices = {label: next(model.parameters()).device for label, model in models.items()}
    for start in range(0, len(clips), batch_size):
        frames = torch.stack([clips[i] for i in range(start, min(start + batch_size, len(clips)))])
        truth = frames[:, n_input:]
        metrics[BASELINE].update(repeat_last_frame(frames, n_input), truth)
        for label, model in models.items():
            future = predict(model, frames[:, :n_input].to(devices[label]), n_future, seed=start)
            metrics[label].update(future.cpu(), truth)
    return {label: metric.compute() for label, metric in metrics.items()}


def draw(
    folder: Path,
    models: Mapping[str, MotionRNN],
    clips: VariedMovingMNIST,
    n_input: int,
    which: Sequence[int],
) -> list[Path]:
    """For each clip of `which` a strip, a GIF, and for each model with MotionGRUs the motion trend as arrows."""
    paths = []
    for index in which:
        frames = clips[index]  # (T, C, H, W)
        futures, moves = {}, {}
        for label, model in models.items():
            given = frames[:n_input].to(next(model.parameters()).device)
            futures[label] = predict(model, given[None], len(frames) - n_input, seed=index)[0].cpu()
            if model.interfaces and model.trend:
                moves[label] = motion_trends(model, given, futures[label].to(given), seed=index)
        paths.append(visualize.strip(folder / f"strip_{index}.png", frames, futures, n_input))
        paths.append(visualize.gif(folder / f"clip_{index}.gif", frames, futures, n_input))
        for label, trends in moves.items():
            name = f"arrows_{index}.png" if len(moves) == 1 else f"arrows_{index}_{file_name(label)}.png"
            seen = torch.cat([frames[:n_input], futures[label]])[:-1]
            paths.append(visualize.arrows(folder / name, seen, trends))
    return paths


@torch.no_grad()
def motion_trends(model: MotionRNN, given: Tensor, future: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Interface -> trend (T-1, 2K, h', w') after each frame that the model reads, its own future included."""
    frames = torch.cat([given, future])[None]
    generator = torch.Generator(frames.device).manual_seed(seed)
    _, motion = model(frames, len(given), return_motion=True, generator=generator)
    return {f"MotionGRU {level}": state.trend[0] for level, state in enumerate(motion, start=1)}


def evaluate(
    paths: Sequence[PathLike],
    folder: Path,
    *,
    clips: int = 200,
    n_output: int | None = None,
    digits: str | None = None,
    split: str = "test",
    ssim: str = "float",
    batch_size: int = 16,
    pictures: int = 2,
    device: str = "cpu",
) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """Score the models of runs or checkpoints on the same held-out clips, write metrics.json and pictures to `folder`.

    Raises:
        RunError: a checkpoint that cannot be read; runs whose clips have other sizes or inputs.
    """
    runs = labelled([load_run(path) for path in paths])
    config = next(iter(runs.values())).config
    for label, run in runs.items():
        found, wanted = (run.config.image_size, run.config.n_input), (config.image_size, config.n_input)
        if found != wanted:
            raise RunError(
                f"{label} has (image_size, n_input) {found}, the first run {wanted}; evaluate them apart"
            )
    n_frames = config.n_input + (n_output or config.n_output)
    changes = {"split": split, "n_frames": n_frames, **({"digits": digits} if digits else {})}
    data = held_out(config, clips, **changes)
    models = {label: on_device(run.model, device) for label, run in runs.items()}
    results = score(models, data, config.n_input, ssim=ssim, batch_size=batch_size)
    for label, run in runs.items():
        results[label] |= {
            "parameters": count_parameters(run.model),
            "step": run.step,
            "checkpoint": str(run.path),
        }
    about = {"clips": clips, "split": split, "n_input": config.n_input, "n_output": n_frames - config.n_input}
    written = [
        write_json(folder / "metrics.json", {**about, "digits": digits or config.digits, "models": results})
    ]
    written.append(visualize.lead_time_curves(folder / "lead_time.png", results))
    written += draw(folder, models, data, config.n_input, range(min(pictures, clips)))
    return results, written


def predict_frames(
    run: Run, frames: Tensor, n_given: int, n_output: int, folder: Path, device: str = "cpu"
) -> list[Path]:
    """Predict what follows the first `n_given` of frames (T, C, H, W); later ones, if any, are shown as the truth.

    Writes prediction.npy (n_output, C, H, W) float32, strip.png, clip.gif and, with MotionGRUs, arrows.png.
    """
    import numpy as np

    if not 1 <= n_given <= len(frames):
        raise RunError(f"n_input must be from 1 to the {len(frames)} frames that there are; got {n_given}")
    model, given = on_device(run.model, device), frames[:n_given].to(device)
    future = predict(model, given[None], n_output)[0]  # (n_output, C, H, W)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "prediction.npy", future.cpu().numpy())
    shown = frames if len(frames) >= n_given + n_output else frames[:n_given]
    shown, futures = shown[: n_given + n_output], {model_name(run.config): future.cpu()}
    paths = [folder / "prediction.npy"]
    paths.append(visualize.strip(folder / "strip.png", shown, futures, n_given))
    paths.append(visualize.gif(folder / "clip.gif", shown, futures, n_given))
    if model.interfaces and model.trend:
        seen = torch.cat([frames[:n_given], future.cpu()])[:-1]
        trends = motion_trends(model, given, future)
        paths.append(visualize.arrows(folder / "arrows.png", seen, trends))
    return paths


def on_device(model: MotionRNN, device: str) -> MotionRNN:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch: unknown, or not there
        raise RunError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def read_frames(path: Path) -> Tensor:
    """A .npy file of grey frames, (T, H, W) or (T, 1, H, W), uint8 or floats in [0, 1] -> float32 (T, 1, H, W).

    Raises:
        RunError: no such file, no plain array of numbers, or another shape or range.
    """
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise RunError(f"{path} is no .npy file of numbers: {' '.join(str(error).split())}") from None
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind not in "uf"
        or array.ndim not in (3, 4)
        or not array.size
    ):
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise RunError(f"{path} must hold frames (T, H, W) or (T, 1, H, W), uint8 or float; it holds {found}")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        raise RunError(f"{path} must be uint8 or float; it is {array.dtype}")
    frames = torch.from_numpy(array.astype(np.float32)) / (255 if array.dtype == np.uint8 else 1)
    if not (frames.isfinite().all() and frames.min() >= 0 and frames.max() <= 1):
        raise RunError(
            f"{path} must have values in [0, 1]; they go from {frames.min():g} to {frames.max():g}"
        )
    return frames if frames.ndim == 4 else frames[:, None]


def model_name(config: Config) -> str:
    """What a run's model is called: "ConvLSTM", "MotionRNN-ConvLSTM", ..."""
    base = {"convlstm": "ConvLSTM", "predrnn": "PredRNN"}.get(config.predictor, config.predictor)
    return f"MotionRNN-{base}" if config.motion_gru or config.highway else base


def labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by their models' names, or by their folders' where names repeat."""
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


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(_finite(content), indent=2) + "\n")
    os.replace(part, path)
    return path


def _finite(content: Any) -> Any:
    """JSON has no infinity (a PSNR of equal frames): null instead."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content
