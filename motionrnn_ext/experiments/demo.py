"""`motionrnn demo`: ConvLSTM and MotionRNN-ConvLSTM, trained alike on digits that move, turn and grow, and compared."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import visualize
from ..evaluation.clips import held_out
from ..evaluation.evaluate import count_parameters, draw_clips
from ..evaluation.scores import BASELINE, score
from ..evaluation.tables import print_paths, print_results
from ..files import write_json
from ..terminal.console import Console
from ..training.config import SMALL, Config
from ..training.folders import held
from ..training.runs import RunError, is_free, load_run, seconds_per_step
from ..training.train import train

DEFAULT_FOLDER = Path("runs/demo")
MODELS: dict[str, dict[str, Any]] = {
    "ConvLSTM": {"motion_gru": False, "highway": False},
    "MotionRNN-ConvLSTM": {"motion_gru": True, "highway": True},
}
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
PICTURES = 2


def demo(folder: Path | None = None, *, quick: bool = False) -> Path:
    """Train, compare, draw; returns the folder with metrics.json.

    Raises:
        RunError: a `folder` chosen by the user that holds something else.
    """
    console, config = Console(), QUICK if quick else SMALL
    with held(_folder(folder, config, console)) as folder:
        _demo(console, config, folder, quick)
    return folder


def _demo(console: Console, config: Config, folder: Path, quick: bool) -> None:
    began = time.perf_counter()
    _introduce(console, config, folder, quick)
    runs = {}
    for number, (label, switches) in enumerate(MODELS.items(), start=1):
        console.print(f"\n{number}/{len(MODELS)} training {label}", style="bold")
        runs[label] = load_run(_trained(replace(config, **switches), _home(folder, label)))

    console.print("\nscoring both on test digits, and drawing", style="bold")
    models = {label: run.model for label, run in runs.items()}
    clips = held_out(config, 16 if quick else 256)
    results = score(models, clips, config.n_input)
    for label, model in models.items():
        results[label]["parameters"] = count_parameters(model)
        seconds = seconds_per_step(_home(folder, label))
        results[label]["seconds_per_step"] = None if seconds is None else round(seconds, 4)
    _show(console, config, results)
    about = {"test_clips": len(clips), "threads": torch.get_num_threads(), "config": config.to_dict()}
    path = write_json(folder / "metrics.json", {**about, "models": results, "finished": False})

    pictures = draw_clips(folder, models, clips, config.n_input, range(PICTURES))
    logs = {label: _home(folder, label) / "metrics.csv" for label in models}
    pictures.draw(visualize.loss_curves, folder / "loss.png", logs, ["val/loss"])
    pictures.draw(visualize.lead_time_curves, folder / "lead_time.png", results)
    if not pictures.failed:
        write_json(path, {**about, "minutes": _minutes(began), "models": results})
    print_paths([*pictures, path])
    pictures.check()
    console.print(f"done in {_minutes(began)} minutes; look at {pictures[1]} first", soft_wrap=True)


def _folder(chosen: Path | None, config: Config, console: Console) -> Path:
    """The folder to work in: a new one, or one whose demo with these settings was stopped."""
    if chosen is not None:
        if not is_free(chosen) and not _is_stopped(chosen, config):
            raise RunError(f"{chosen} exists; name another folder with --out")
        return chosen
    for folder in _candidates():
        if _is_stopped(folder, config):
            console.print(f"The demo in {folder} was stopped; going on with it.")
            return folder
        if is_free(folder):
            return folder
        what = "a finished demo" if _is_finished(folder) else "something else"
        console.print(f"{folder} holds {what}; leaving it as it is.")
    raise AssertionError("unreachable")


def _candidates() -> Iterator[Path]:
    yield DEFAULT_FOLDER
    number = 1
    while True:
        number += 1
        yield DEFAULT_FOLDER.with_name(f"{DEFAULT_FOLDER.name}-{number}")


def _is_stopped(folder: Path, config: Config) -> bool:
    """Whether a demo of these settings began here and did not come to its end."""
    label, switches = next(iter(MODELS.items()))
    settings = _home(folder, label) / "config.json"
    if not settings.is_file() or _is_finished(folder):
        return False
    try:
        return Config.read(settings) == replace(config, **switches)
    except ValueError:
        return False


def _is_finished(folder: Path) -> bool:
    """Whether a demo came to its end here, with all its pictures."""
    try:
        content = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(isinstance(content, dict) and content.get("finished", True))


def _home(folder: Path, label: str) -> Path:
    return folder / label.lower()


def _trained(config: Config, folder: Path) -> Path:
    """Train, or go on with what was stopped; the model after the last step, so that both had the same budget."""
    train(config, folder, resume=(folder / "config.json").exists())
    return folder / "checkpoints" / "last.ckpt"


def _minutes(began: float) -> float:
    return round((time.perf_counter() - began) / 60, 1)


def _introduce(console: Console, config: Config, folder: Path, quick: bool) -> None:
    (first, second), (height, width) = MODELS, config.image_size
    text = (
        f"Two handwritten digits move, bounce, turn and grow. From {config.n_input} frames of {height}x{width} pixels,",
        f"two small networks learn to predict the next {config.n_output}: {first}, and {second}, which adds",
        "a MotionGRU between the layers and a highway past them. Both take the same",
        f"{config.steps:,} steps on the same clips,",
        f"{config.batch_size} at a time.",
        "This takes a minute." if quick else "On two cores this takes ten minutes to half an hour.",
    )
    console.print("\n" + " ".join(text))
    where = f"Everything goes to {folder}; stop with Ctrl-C, and the same command goes on from there."
    console.print(where, soft_wrap=True)


def _show(console: Console, config: Config, results: dict[str, dict[str, Any]]) -> None:
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
        "the table says what they have learnt and what a step costs, and is no verdict on the architectures.",
    )
    console.print(" ".join(text))
