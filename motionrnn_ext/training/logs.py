"""The logs of a run: CSV files, and beside them TensorBoard's, or a run of W&B or MLflow.

The CSV files are always written, because the program's own figures are drawn from them. What W&B and MLflow call a run
is named in logs/wandb.txt or logs/mlflow.txt, so that a resumed training continues it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import loggers

from ..files import read_text, write_text
from .config import Config
from .runs import RunError

_PROJECT = "motionrnn"
# Values of the setting `logger` that are services, with packages of their names and settings in the environment.
_SERVICES = ("wandb", "mlflow")


def file_loggers(config: Config, folder: Path, version: int) -> list[loggers.Logger]:
    """Return the loggers that write to logs/version_N in the run's folder."""
    found: list[loggers.Logger] = [
        loggers.CSVLogger(folder, "logs", version, flush_logs_every_n_steps=config.log_every)
    ]
    if config.logger == "tensorboard" and _is_text(folder):
        found.append(loggers.TensorBoardLogger(folder, "logs", version))
    return found


def check_service(config: Config, folder: Path) -> None:
    """Raise an error if the run is to be logged to a service whose package is missing, or cannot write to `folder`."""
    name = config.logger
    if name not in _SERVICES:
        return
    advice = f"logger {name} needs the package {name}: pip install {name}"
    try:
        # A folder of that name, which W&B makes in the working directory, is imported as an empty package.
        if getattr(importlib.import_module(name), "__file__", None) is None:
            raise ModuleNotFoundError(advice)
    except ModuleNotFoundError as error:
        reason = "" if error.name in (None, name) else f" ({error})"
        raise ModuleNotFoundError(f"{advice}{reason}") from None
    if not _is_text(folder):
        raise RunError(f"logger {name} needs a folder whose path is UTF-8; name another with --out")


@contextmanager
def service_log(trainer: L.Trainer, config: Config, folder: Path, resume: bool) -> Iterator[None]:
    """Log the training of the `with` block to W&B or MLflow, if the settings say so: metrics, settings and the folder.

    An error of the service is a RunError. The run of the service has failed if the block ends with an exception.
    """
    name, place = config.logger, folder / "logs" / f"{config.logger}.txt"
    if name not in _SERVICES or not trainer.is_global_zero:
        yield
        return
    known = read_text(place).strip() if resume and place.is_file() else None
    finish: Any = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        logger, finish = _wandb(folder, known) if name == "wandb" else _mlflow(folder, known)
        _log_settings(logger, {**config.to_dict(), "folder": os.path.abspath(folder)}, bool(known))
        write_text(place, f"{logger.version}\n")
        trainer.loggers = [*trainer.loggers, logger]
        yield
    except BaseException as error:
        if finish is not None:
            finish(False)
        is_theirs = type(error).__module__.partition(".")[0] == name or isinstance(error, ModuleNotFoundError)
        if not is_theirs:
            raise
        advice = f"; remove {place} to begin a new log" if known else ""
        raise RunError(f"logger {name}: {' '.join(str(error).split())}{advice}") from None
    else:
        finish(True)


def _wandb(folder: Path, known: str | None) -> tuple[Any, Any]:
    """Return a logger and a function that ends its run, told whether the training succeeded."""
    import wandb

    if wandb.run is not None:
        raise RunError(
            "a run of W&B is in progress in this program; end it by wandb.finish() before the training"
        )
    project = os.environ.get("WANDB_PROJECT") or _PROJECT
    logger = loggers.WandbLogger(folder.name, folder / "logs", id=known, project=project)
    run = logger.experiment
    return logger, lambda good: run.finish(0 if good else 1)


def _mlflow(folder: Path, known: str | None) -> tuple[Any, Any]:
    """Return a logger as `_wandb` does. Lightning ends its run."""
    import mlflow

    logger = loggers.MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT,
        run_name=folder.name,
        tracking_uri=mlflow.get_tracking_uri(),
        run_id=known,
    )
    if known:
        logger.experiment.update_run(known, status="RUNNING")
    return logger, lambda good: None


def _log_settings(logger: Any, settings: dict[str, Any], resumed: bool) -> None:
    """Log the settings. MLflow cannot change those of a run: what a resumed training changes becomes a tag."""
    if resumed and isinstance(logger, loggers.MLFlowLogger):
        before = logger.experiment.get_run(logger.run_id).data.params
        for name, value in settings.items():
            if name in before and before[name] != str(value)[:250]:
                logger.experiment.set_tag(logger.run_id, name, str(value))
        settings = {name: value for name, value in settings.items() if name not in before}
    logger.log_hyperparams(settings)


def _is_text(path: Path) -> bool:
    """Return whether a path is UTF-8. TensorBoard cannot write to other paths; its log is then left out."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
