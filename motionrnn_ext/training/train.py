"""Train a model with Lightning, from the start or from the last checkpoint of a run.

Every random number is a function of the seed, its purpose, and the epoch or step. A resumed run therefore needs no
generator state, and a run that was stopped at any moment ends with the same weights as one that was not.
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
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import DDPStrategy

from ..graphs import conditions
from ..terminal.console import is_animated
from . import launchers, logs, processes
from .batches import ClipDataModule
from .checkpoint_io import WholeCheckpointIO
from .config import Config
from .folders import check_writable, held
from .module import Training, check_layout
from .progress import ProgressBar, ProgressLines
from .runs import (
    NotFinite,
    PathLike,
    RunError,
    check_new,
    join_logs,
    last_checkpoint,
    last_step,
    next_version,
    read_checkpoint,
    resumed_config,
    start_folder,
)
from .weights import load_weights

# The first process reports the error within this time; then the others, which stop for the same reason, end too.
_SECONDS_TO_REPORT = 10.0
# A process that does not answer for so long is lost.
_UNREACHABLE = timedelta(minutes=10)


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

    Args:
        progress: show a bar, or without a terminal a line for each validation and every 30 seconds.
        watchers: further callbacks that are told of every step, for example to show progress in the caller's way.
        announce: a function that the first process calls once, after the settings are checked and before anything is
            written to the folder.
        command: a command that calls this function with the same arguments. On several devices or nodes this process
            runs it once per device of this machine and watches over these processes. Without it, Lightning starts the
            running script again for every further device. Processes that torchrun, srun, jsrun or mpirun has started
            are used as they are, see launchers.py.

    Returns:
        The checkpoint with the lowest validation MSE.

    Raises:
        ValueError: settings that cannot be used.
        RunError: the folder exists already, or a checkpoint cannot be read.
        NotFinite: the loss, the gradient, a validation or a weight became nan or infinite. The message names the step
            and the last checkpoint, which is finite.
        LostProcess: one of several processes was lost; the run is ready to be resumed.
        KeyboardInterrupt: the user stopped the training; the run is ready to be resumed.
    """
    # Lightning reads "~" as the home folder, so that the rest has to as well.
    folder, config = Path(os.path.expanduser(folder)), config.located()
    if "::" in str(folder):
        raise RunError(
            f"{folder} holds '::', which Lightning reads as an address; name another folder with --out"
        )
    if resume:
        config = resumed_config(folder, config)
    with held(folder) if processes.is_first() else nullcontext():
        # These folders may belong to another user or be read-only; this is found out before the work, not after it.
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
    logs.check_service(config, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module, clips = Training(config), ClipDataModule(config)
    if config.init_from and not (resume and last_checkpoint(folder).exists()):
        load_weights(module.model, config.init_from, config)
    place = launchers.launched(config.devices, config.nodes)
    # PL_ variables, such as PL_TRAINER_ACCUMULATE_GRAD_BATCHES, would change the settings of the Trainer.
    with _quiet(), _without_variables("PL_"):
        trainer = _trainer(config, folder, progress, watchers, place)
        _check_fits(config, module, trainer.strategy.root_device)
        clips.check(config.n_processes)
        starts_others = bool(command) and config.n_processes > 1 and place is None
        if config.n_processes == 1 or (starts_others and config.nodes == 1):
            processes.check_first(config.n_processes)
        if starts_others:
            processes.find_place(config.devices, config.nodes)  # an error comes before the folder is made
        checkpoint = _checkpoint(config, folder, resume, announce)
        try:
            if starts_others:
                del module, clips  # each process makes its own
                processes.run_processes(command, config.devices, config.nodes)
            else:
                last = None if checkpoint is None else str(checkpoint)
                with logs.service_log(trainer, config, folder, resume):
                    trainer.fit(module, datamodule=clips, ckpt_path=last)
        except SystemExit:
            if not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
            raise KeyboardInterrupt from None
        except NotFinite as error:
            if trainer.global_rank:  # the first process reports the error
                time.sleep(_SECONDS_TO_REPORT)
                raise SystemExit(2) from None
            raise NotFinite(f"{error}; {_kept(folder)}") from None
        except RuntimeError as error:
            if config.n_processes == 1 or not processes.is_lost_contact(error):
                raise
            raise processes.LostProcess("another process of the training was lost") from None
        finally:
            if processes.is_first():
                with suppress(OSError):  # a full disk has already raised an error where it mattered
                    join_logs(folder)


def _checkpoint(
    config: Config, folder: Path, resume: bool, announce: Callable[[], None] | None
) -> Path | None:
    """Return the checkpoint to resume from, or None. The first process also makes or checks the folder; the others wait
    for it in their first joint operation."""
    if processes.is_first():
        if not resume:
            check_new(folder)
        elif last_checkpoint(folder).exists():
            read_checkpoint(last_checkpoint(folder))
        # The announcement comes before anything is written: it raises if the output cannot be written.
        if announce is not None:
            announce()
        return start_folder(folder, config, resume)
    last = last_checkpoint(folder)
    return last if resume and last.exists() else None


def _check_fits(config: Config, module: Training, device: torch.device) -> None:
    """Raise a ValueError if a setting does not fit the device or the model."""
    check_layout(config, module.model)
    if config.graph and device.type != conditions.DEVICE:
        raise ValueError(f"graph must be off on {device}: CUDA graphs need a GPU; got True")


def _kept(folder: Path) -> str:
    """Return a sentence that names the last checkpoint of a training whose numbers are no longer finite."""
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
    kept = partial(
        callbacks.ModelCheckpoint,
        folder / "checkpoints",
        every_n_epochs=1,
        save_on_train_epoch_end=False,  # saved after each validation instead
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(config),
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=1,  # the whole run; StepBatches counts the real epochs
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
        default_root_dir=folder,  # otherwise Lightning looks for checkpoints in the working directory
        logger=logs.file_loggers(config, folder, next_version(folder)),
        callbacks=[
            *([ProgressBar() if is_animated() else ProgressLines(config.steps)] if progress else []),
            *watchers,
            _StepsOfLogs(),
            callbacks.LearningRateMonitor("step"),
            kept(filename="best", monitor="val/mse"),
            kept(filename="last", monitor=None),
        ],
    )


class _StepsOfLogs(callbacks.Callback):
    """The step that a row of the logs states, after a resume too.

    Lightning counts the logged steps apart from the optimiser's, and its count in a checkpoint is one too low, unless
    the checkpoint was written at a multiple of `val_every`.
    """

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def _strategy(config: Config) -> DDPStrategy | str:
    if config.n_processes == 1:
        return "auto"
    # static_graph finds the parameters without a gradient in the first step: some of MIM's have none with two frames.
    return DDPStrategy(static_graph=True, timeout=_UNREACHABLE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's advice on choices that this module makes on purpose."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    with warnings.catch_warnings():
        for text in (
            ".*does not have many workers.*",
            ".*dataloader is not resumable.*",
            ".*exists and is not empty.*",
            ".*LeafSpec.*",
            ".*smaller than the logging interval.*",
            ".*This DataLoader will create.*",
            ".*`srun` command is available.*",  # launchers.py decides
            ".*recommended to use .*sync_dist=True.*",  # the metrics join the processes themselves
        ):
            # (?s), because a folder's name may contain line ends.
            warnings.filterwarnings("ignore", message=f"(?s){text}")
        for name in levels:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def _without_variables(prefix: str) -> Iterator[None]:
    """Remove the environment variables whose names begin with `prefix` for the duration of the `with` block."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)
