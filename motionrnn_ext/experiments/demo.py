"""The work of `motionrnn demo`: ConvLSTM and MotionRNN-ConvLSTM learn from the same moving digits and are compared.

The weights that come with the package predict a clip first. A minute into the first training, the model's prediction of
a test clip is drawn. The table follows at the end.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks

from .. import visualize
from ..data.registry import ClipDataset
from ..evaluation.clips import held_out, held_out_clip
from ..evaluation.evaluate import count_parameters, draw_clips
from ..evaluation.pictures import Pictures
from ..evaluation.scores import BASELINE, predict_clips, score
from ..evaluation.tables import print_paths, print_results
from ..files import write_json
from ..metrics import counted
from ..terminal.console import Console, is_animated
from ..training.config import SMALL, Config
from ..training.folders import held
from ..training.progress import ProgressLines
from ..training.runs import RunError, is_free, load_run, numbered, seconds_per_step
from ..training.train import train

DEFAULT_FOLDER, SHIPPED = Path("runs/demo"), "vmnist-small"
MODELS: dict[str, dict[str, Any]] = {
    "ConvLSTM": {"motion_gru": False, "highway": False},
    "MotionRNN-ConvLSTM": {"motion_gru": True, "highway": True},
}
# Fewer steps than SMALL has: the table is there within ten minutes on two cores without AVX-512, where a step takes
# 0.10 s and 0.11 s.
FULL = replace(SMALL, steps=2400)
QUICK = replace(
    SMALL,
    hidden=(8, 8),
    image_size=(32, 32),
    digit_size=16,
    n_input=4,
    n_output=4,
    steps=12,
    val_clips=8,
    val_every=6,
)
N_PICTURES = 2
# Seconds of training before the first prediction is drawn, and between lines where no progress bar can move.
FIRST_AFTER, LINE_EVERY = 60, 10


def demo(folder: Path | None = None, *, quick: bool = False) -> Path:
    """Train, compare and draw; return the folder with metrics.json.

    Raises:
        RunError: the user has chosen a `folder` that holds something else.
    """
    console, config = Console(), QUICK if quick else FULL
    with held(_folder(folder, config, console)) as folder:
        _demo(console, config, folder, quick)
    return folder


def _demo(console: Console, config: Config, folder: Path, quick: bool) -> None:
    began = time.perf_counter()
    _show_shipped(console, folder)
    _introduce(console, config, folder, quick)
    clips = held_out(config, 16 if quick else 256)
    first = FirstPrediction(folder / "first_prediction.png", clips, config)
    for number, (label, switches) in enumerate(MODELS.items(), start=1):
        console.print(f"\n{number}/{len(MODELS)} training {label}", style="bold")
        _train(replace(config, **switches), _run_folder(folder, label), first)

    console.print("\nscoring both on test digits, and drawing", style="bold")
    # The models after the last step, so that both had the same budget.
    runs = {label: load_run(_run_folder(folder, label) / "checkpoints" / "last.ckpt") for label in MODELS}
    models = {label: run.model for label, run in runs.items()}
    results = score(models, clips, config.n_input)
    for label, model in models.items():
        results[label]["parameters"] = count_parameters(model)
        seconds = seconds_per_step(_run_folder(folder, label))
        results[label]["seconds_per_step"] = None if seconds is None else round(seconds, 4)
    _show(console, config, results)
    about = {"test_clips": len(clips), "threads": torch.get_num_threads(), "config": config.to_dict()}
    path = write_json(folder / "metrics.json", {**about, "models": results, "finished": False})

    pictures = draw_clips(folder, models, clips, config.n_input, range(N_PICTURES))
    logs = {label: _run_folder(folder, label) / "metrics.csv" for label in models}
    pictures.draw(visualize.loss_curves, folder / "loss.png", logs, ["val/loss"])
    pictures.draw(visualize.lead_time_curves, folder / "lead_time.png", results)
    if not pictures.failed:
        write_json(path, {**about, "minutes": _minutes(began), "models": results})
    print_paths([*pictures, path])
    pictures.check()
    console.print(f"done in {_minutes(began)} minutes; look at {pictures[1]} first", soft_wrap=True)


def _show_shipped(console: Console, folder: Path) -> None:
    """Draw what the weights that come with the package predict."""
    try:
        run = load_run(SHIPPED)
    except ModuleNotFoundError as error:
        console.print(f"The trained model that comes with the package is not shown: {error}.", soft_wrap=True)
        return
    config, pictures = run.config, Pictures()
    clip = held_out_clip(config, 0, config.n_frames)
    future = predict_clips(run.model, clip[None, : config.n_input], config.n_output)[0]
    pictures.draw(
        visualize.strip, folder / "shipped_prediction.png", clip, {"prediction": future}, config.n_input
    )
    for path in pictures:
        console.print(f"a prediction of {SHIPPED}, which comes with the package: {path}", soft_wrap=True)
    for failure in pictures.failed:
        console.print(failure, soft_wrap=True)


def _train(config: Config, folder: Path, first: FirstPrediction) -> None:
    """Train in a new folder, or resume a training that was stopped."""
    watchers: list[callbacks.Callback] = [first]
    if not is_animated():
        watchers.append(ProgressLines(config.steps, LINE_EVERY))
    train(
        config,
        folder,
        resume=(folder / "config.json").exists(),
        progress=is_animated(),
        watchers=watchers,
    )


class FirstPrediction(callbacks.Callback):
    """A callback that draws a prediction of the first test clip, FIRST_AFTER seconds into a training or at its end."""

    def __init__(self, path: Path, clips: ClipDataset, config: Config) -> None:
        self._path, self._clips, self._config = path, clips, config
        self._is_drawn = path.exists()
        self._due = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._due = time.monotonic() + FIRST_AFTER

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if not self._is_drawn and time.monotonic() >= self._due:
            self._draw(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._is_drawn:
            self._draw(trainer, module)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._is_drawn = True
        clip, n_input, n_output = self._clips[0], self._config.n_input, self._config.n_output
        future = predict_clips(module.model, clip[None, :n_input], n_output)[0]  # type: ignore[arg-type]
        pictures = Pictures()
        pictures.draw(visualize.strip, self._path, clip, {"prediction": future}, n_input)
        after = f"after {trainer.global_step:,} of {counted(self._config.steps, 'step')}"
        for path in pictures:
            print(f"a first prediction, {after}: {path}", flush=True)
        for failure in pictures.failed:
            print(failure, flush=True)


def _folder(chosen: Path | None, config: Config, console: Console) -> Path:
    """Return the folder to work in: a new one, or one in which a demo with these settings was stopped."""
    if chosen is not None:
        if not is_free(chosen) and not _is_stopped(chosen, config):
            raise RunError(f"{chosen} exists; name another folder with --out")
        return chosen
    for folder in numbered(DEFAULT_FOLDER):
        if _is_stopped(folder, config):
            console.print(f"The demo in {folder} was stopped; resuming it.")
            return folder
        if is_free(folder):
            return folder
        what = "a finished demo" if _is_finished(folder) else "something else"
        console.print(f"{folder} holds {what}, which is left as it is.")
    raise AssertionError("unreachable")


def _is_stopped(folder: Path, config: Config) -> bool:
    """Return whether a demo with these settings began in `folder` and was stopped before its end."""
    label, switches = next(iter(MODELS.items()))
    settings = _run_folder(folder, label) / "config.json"
    if not settings.is_file() or _is_finished(folder):
        return False
    try:
        return Config.read(settings) == replace(config, **switches)
    except ValueError:
        return False


def _is_finished(folder: Path) -> bool:
    """Return whether `folder` holds a demo that came to its end, with all its pictures."""
    try:
        content = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(isinstance(content, dict) and content.get("finished", True))


def _run_folder(folder: Path, label: str) -> Path:
    return folder / label.lower()


def _minutes(began: float) -> float:
    return round((time.perf_counter() - began) / 60, 1)


def _introduce(console: Console, config: Config, folder: Path, quick: bool) -> None:
    (first, second), (height, width) = MODELS, config.image_size
    duration = (
        "On two cores this takes about ten minutes or less; a first prediction is drawn after one minute."
    )
    text = (
        f"Two handwritten digits move, bounce, turn and grow. From {config.n_input} frames of {height}x{width} pixels,",
        f"two small networks learn to predict the next {config.n_output}: {first}, and {second}, which adds",
        "a MotionGRU between the layers and a highway past them. Both take the same",
        f"{config.steps:,} steps on the same clips, {config.batch_size} at a time.",
        "This takes a minute." if quick else duration,
    )
    console.print("\n" + " ".join(text))
    where = f"Everything goes to {folder}; stop with Ctrl-C, and resume with the same command."
    console.print(where, soft_wrap=True)


def _show(console: Console, config: Config, results: dict[str, dict[str, Any]]) -> None:
    """Print the table, each model's gain over the baseline, and what the table does not show."""
    console.print()
    title = f"{config.n_output} frames ahead, test digits that no training has seen"
    print_results(results, title=title)
    repeated = results[BASELINE]
    for label in MODELS:
        ratio, gain = results[label]["mse"] / repeated["mse"], results[label]["ssim"] - repeated["ssim"]
        console.print(
            f"{label}: {ratio:.0%} of the squared error of repeating the last frame, SSIM {gain:+.3f}"
        )
    text = (
        "MSE and MAE are sums over a frame. These are small models after minutes of training:",
        "the table shows what they have learnt and what a step costs. It is no verdict on the architectures.",
    )
    console.print(" ".join(text))
