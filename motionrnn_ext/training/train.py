"""Training on Lightning: a module, a data module, checkpoints, and `train`.

Whatever is random is a function of (seed, what it is for, epoch or step): a resume needs no generator state, and a run
that was stopped at any moment ends with the weights of one that was not.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.strategies import DDPStrategy

from ..terminal.console import is_animated
from . import launchers, processes
from .batches import ClipDataModule
from .checkpoint_io import WholeCheckpointIO
from .config import Config
from .folders import check_writable, held
from .module import Training
from .progress import ProgressBar, ProgressLines
from .runs import (
    NotFinite,
    PathLike,
    check_new,
    join_logs,
    last_checkpoint,
    last_step,
    log_versions,
    read_checkpoint,
    resumed_config,
    start_folder,
)
from .weights import load_weights

_SECONDS_TO_SAY = 10.0  # before another process that stops for the same reason ends
_UNREACHABLE = timedelta(minutes=10)  # a process that does not answer for so long is lost


def train(
    config: Config,
    folder: PathLike,
    *,
    resume: bool = False,
    progress: bool = True,
    watchers: Sequence[callbacks.Callback] = (),
    announce: Callable[[], None] | None = None,
    command: Sequence[str] = (),
) -> Path:
    """Train to the end of `config.steps`, in a new folder or (`resume`) from the last checkpoint of an existing one.

    `progress` is a bar, or without a terminal a line for each validation and every 30 seconds. `watchers` are told of
    every step, say to show progress in the caller's way. `announce` is called once, by the first process, when the
    settings are checked and before the folder holds anything. Returns the checkpoint with the lowest validation MSE.

    On several devices or nodes `command`, which calls this function likewise, is run in a process for each device,
    and this process watches over them. Without it, Lightning starts the running script anew for every further device.
    Processes that torchrun, srun, jsrun or mpirun has started are taken as they are, see launchers.py.

    Raises:
        ValueError: settings that do not work out; RunError: an existing folder, an unreadable checkpoint.
        NotFinite: the loss, the gradient, a validation or a weight became nan or infinite; the step and the last
            checkpoint, which is finite, are named.
        LostProcess: one of several processes was lost; the run is ready to be resumed.
        KeyboardInterrupt: stopped by the user, ready to be resumed.
    """
    folder, config = Path(folder), config.located()
    if resume:
        config = resumed_config(folder, config)
    with held(folder) if processes.is_first() else nullcontext():
        # These folders may be another user's, or copied read-only: better known before the work than after.
        for name in ("checkpoints", "logs") if processes.is_first() else ():
            check_writable(folder / name)
        _train(config, folder, resume, progress, watchers, announce, command)
    return folder / "checkpoints" / "best.ckpt"


def _train(
    config: Config,
    folder: Path,
    resume: bool,
    progress: bool,
    watchers: Sequence[callbacks.Callback],
    announce: Callable[[], None] | None,
    command: Sequence[str],
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module, clips = Training(config), ClipDataModule(config)
    if config.init_from and not (resume and last_checkpoint(folder).exists()):
        load_weights(module.model, config.init_from, config)
    place = launchers.launched(config.devices, config.nodes)
    with _quiet(), _without_variables("PL_"):  # such as PL_TRAINER_ACCUMULATE_GRAD_BATCHES
        trainer = _trainer(config, folder, progress, watchers, place)
        clips.check(config.n_processes)
        starts_others = bool(command) and config.n_processes > 1 and place is None
        if config.n_processes == 1 or (starts_others and config.nodes == 1):
            processes.check_first(config.n_processes)
        if starts_others:
            processes.find_place(config.devices, config.nodes)  # or fail before there is a folder
        checkpoint = _checkpoint(config, folder, resume, announce)
        try:
            if starts_others:
                del module, clips  # the processes have their own
                processes.run(command, config.devices, config.nodes)
            else:
                trainer.fit(
                    module, datamodule=clips, ckpt_path=None if checkpoint is None else str(checkpoint)
                )
        except SystemExit:
            if not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
            raise KeyboardInterrupt from None
        except NotFinite as error:
            if trainer.global_rank:  # the first process says it; then this one is ended with it
                time.sleep(_SECONDS_TO_SAY)
                raise SystemExit(2) from None
            raise NotFinite(f"{error}; {_kept(folder)}") from None
        except RuntimeError as error:
            if config.n_processes == 1 or not processes.is_lost_contact(error):
                raise
            raise processes.LostProcess("another process of the training was lost") from None
        finally:
            if processes.is_first():
                with suppress(OSError):  # a full disk: what it kept from being written says so
                    join_logs(folder)


def _checkpoint(
    config: Config, folder: Path, resume: bool, announce: Callable[[], None] | None
) -> Path | None:
    """What to go on from. The first process makes or checks the folder; the others need its first step for theirs."""
    if processes.is_first():
        if not resume:
            check_new(folder)
        elif last_checkpoint(folder).exists():
            read_checkpoint(last_checkpoint(folder))
        if announce is not None:  # before the folder holds anything: it may find that nobody reads its words
            announce()
        return start_folder(folder, config, resume)
    last = last_checkpoint(folder)
    return last if resume and last.exists() else None


def _kept(folder: Path) -> str:
    """Which checkpoint is left of a training that became not finite."""
    path, step = last_checkpoint(folder), last_step(folder)
    if step is None:
        return "there is no checkpoint yet"
    return f"the last finite checkpoint is {path}, of step {step:,}"


def _trainer(
    config: Config,
    folder: Path,
    progress: bool,
    watchers: Sequence[callbacks.Callback],
    place: processes.Place | None,
) -> L.Trainer:
    version = len(log_versions(folder))
    kept = partial(
        callbacks.ModelCheckpoint,
        folder / "checkpoints",
        every_n_epochs=1,
        save_on_train_epoch_end=False,  # but after each validation
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(config),
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=1,  # the run; StepBatches knows of epochs
        max_steps=config.steps,
        gradient_clip_val=config.clip_norm or None,
        check_val_every_n_epoch=None,
        val_check_interval=min(config.val_every, config.steps),
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=progress and is_animated(),
        plugins=[WholeCheckpointIO(), launchers.environment(place)],
        default_root_dir=folder,  # else Lightning looks for another run's checkpoint in the working directory
        logger=[
            loggers.CSVLogger(folder, "logs", version, flush_logs_every_n_steps=config.log_every),
            *([loggers.TensorBoardLogger(folder, "logs", version)] if _is_text(folder) else []),
        ],
        callbacks=[
            *([ProgressBar() if is_animated() else ProgressLines(config.steps)] if progress else []),
            *watchers,
            callbacks.LearningRateMonitor("step"),
            kept(filename="best", monitor="val/mse"),
            kept(filename="last", monitor=None),
        ],
    )


def _is_text(path: Path) -> bool:
    """Whether a path is UTF-8: TensorBoard can write to no other, and its log is then left out."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _strategy(config: Config) -> DDPStrategy | str:
    if config.n_processes == 1:
        return "auto"
    # static_graph: parameters that get no gradient, as MIM's have of two frames, are found in the first step.
    return DDPStrategy(static_graph=True, timeout=_UNREACHABLE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on things that are settled here."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    with warnings.catch_warnings():
        for text in (
            ".*does not have many workers.*",
            ".*dataloader is not resumable.*",
            ".*exists and is not empty.*",
            ".*LeafSpec.*",
            ".*smaller than the logging interval.*",
            ".*This DataLoader will create.*",
            ".*`srun` command is available.*",  # see launchers.py
            ".*recommended to use .*sync_dist=True.*",  # FrameMetrics joins the processes itself
        ):
            warnings.filterwarnings("ignore", message=f"(?s){text}")  # a folder's name may have line ends
        for name in levels:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def _without_variables(prefix: str) -> Iterator[None]:
    """Within the `with` block the environment has no variable whose name begins so."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)
