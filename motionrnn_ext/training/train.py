"""Training on Lightning: a module, a data module, checkpoints, and `train`.

Whatever is random is a function of (seed, what it is for, epoch or step): a resume needs no generator state, and a run
that was stopped at any moment ends with the weights of one that was not.
"""

from __future__ import annotations

import logging
import math
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
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torchmetrics import SumMetric

from ..metrics import FrameMetrics
from ..models import MotionRNN
from ..pixels import filled
from ..terminal.console import is_animated
from ..terminal.surroundings import without_variables
from . import launchers, processes
from .batches import Clips
from .config import Config
from .folders import check_writable, held
from .progress import ProgressLines
from .runs import (
    CONFIG_KEY,
    NotFinite,
    PathLike,
    check_new,
    join_logs,
    last_checkpoint,
    last_step,
    load_weights,
    log_versions,
    read_checkpoint,
    resumed_config,
    start_folder,
)

# Second words of the random streams' keys; the clips and their order have 0 to 3 there.
_SAMPLING, _STATE = 4, 5
_SECONDS_TO_SAY = 10.0  # before another process that stops for the same reason ends
_ADVICE = "a lower lr, or a clip_norm, may keep the training finite"
_UNREACHABLE = timedelta(minutes=10)  # a process that does not answer for so long is lost


def sampling_probabilities(config: Config, step: int) -> tuple[float, float]:
    """The probabilities that a true frame is read at steps 1..n_input-1, and at later ones, in optimiser step `step`.

    With p = step / (sampling_until * steps), so that p = 1 stands for the official programs' iteration 50,000:

        linear     1, 1 - p                                          MotionRNN's program
        reverse    .5, .5 up to p = .5, then
                   1 - .5 exp(-10 (p - .5)), 1 - p                   PredRNN-V2's program, alpha = 5,000
        both       1, 0 from p = 1 on
        none       1, 0
    """
    p = step / (config.sampling_until * config.steps)
    if config.sampling == "none" or p >= 1:
        return 1.0, 0.0
    if config.sampling == "linear":
        return 1.0, 1 - p
    return (0.5, 0.5) if p < 0.5 else (1 - 0.5 * math.exp(-10 * (p - 0.5)), 1 - p)


def sampling_mask(
    config: Config, step: int, batch_size: int, rank: int = 0, n_ranks: int = 1
) -> Tensor | None:
    """1 where the true frame is read: (B, n_output-1, 1, 1, 1), or (B, T-2, 1, 1, 1) if inputs are sampled too. Of
    several ranks each has its rows of what one has with the joined batch, as `StepBatches` gives out the clips."""
    given, generated = sampling_probabilities(config, step)
    if config.sampling == "none":
        return None
    chances = [generated] * (config.n_output - 1)
    if config.sampling == "reverse":
        chances = [given] * (config.n_input - 1) + chances
    stream = np.random.default_rng([config.seed, _SAMPLING, step, 0])
    drawn = stream.random((batch_size * n_ranks, len(chances)))[rank::n_ranks]
    return torch.from_numpy(drawn < np.array(chances)).float()[..., None, None, None]


class Training(L.LightningModule):
    """How a MotionRNN learns: the loss over all T-1 predictions, scheduled sampling, Adam, validation."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.train_loss = config, torch.zeros(())
        self.model = MotionRNN(**config.model())
        # Of validations; both join the processes. Lightning's own mean is wrong where their clips differ in number.
        self.metrics = FrameMetrics(config.n_output)
        # Weighted loss and weights apart, as torchmetrics' MeanMetric forgets the weights where it is to keep nan.
        self.loss, self.loss_weight = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")

    def training_step(self, frames: Tensor, batch_index: int) -> Tensor:
        config, step = self.config, self.global_step
        self.model.reset()  # with compat="openstl" a step would depend on the last, and a resumed run differ
        mask = sampling_mask(config, step, len(frames), self.global_rank, config.n_processes)
        if config.time_reversal:  # the same mask for both directions, as in the official program
            frames = torch.cat([frames, frames.flip(1)])
            mask = None if mask is None else torch.cat([mask, mask])
        if config.missing is not None:
            self.log("train/missing", frames.isnan().float().mean())
        predictions = self.model(
            frames if config.missing is None else filled(frames),
            config.n_input,
            None if mask is None else mask.to(frames.device),
            reverse_sampling=config.sampling == "reverse",
            generator=self._generator(step),
            checkpoint=config.checkpoint_steps,
        )
        loss, _ = self._loss(predictions, frames[:, 1:], joined=config.n_processes > 1)
        self.train_loss = loss.detach()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/sampling", sampling_probabilities(config, step)[1])
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before weights change by what is not finite, in all processes together."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        found = torch.stack([self.train_loss, torch.nn.utils.get_total_norm(gradients)]).float()
        if self.config.n_processes > 1:  # the gradients are joined, the loss is each process's own
            finite = found.isfinite().float()
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
            found = torch.where(finite.bool() | ~found.isfinite(), found, math.nan)
        for name, value in zip(("loss", "norm of the gradient"), found.tolist()):
            if not math.isfinite(value):
                raise NotFinite(f"the {name} is {value} in step {self.global_step + 1:,}; {_ADVICE}")

    def on_train_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("train/seconds", time.perf_counter() - self._started)
        if self.global_step >= self.config.steps:
            self.trainer.should_stop = True  # asks for a validation after the last step, wherever that is

    def validation_step(self, frames: Tensor, batch_index: int) -> None:
        self.model.reset()
        n_input, generator = self.config.n_input, self._generator(batch_index)
        given = filled(frames[:, :n_input])
        prediction = self.model.predict(given, self.config.n_output, generator=generator)
        self.metrics.update(prediction.float(), frames[:, n_input:])
        loss, weight = self._loss(prediction, frames[:, n_input:])
        self.loss.update(loss * weight)
        self.loss_weight.update(weight)

    def on_validation_epoch_end(self) -> None:
        result = {**self.metrics.compute(), "loss": self.loss.compute() / self.loss_weight.compute()}
        self.metrics.reset()
        self.loss.reset()
        self.loss_weight.reset()
        for name in ("loss", "mse"):
            if not math.isfinite(result[name]):
                why = "its true frames have no data" if result["missing"] == 1 else _ADVICE
                raise NotFinite(
                    f"the {name} of the validation after step {self.global_step:,} is {float(result[name])}; {why}"
                )
        for name in (*self.metrics.names, "loss"):
            self.log(f"val/{name}", result[name], prog_bar=name == "mse", rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizer = torch.optim.Adam(self.parameters(), lr=config.lr)
        if config.lr_schedule == "constant":
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.steps + 1, pct_start=0.1, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                raise NotFinite(f"{name} is not finite after step {self.global_step:,}")
        checkpoint[CONFIG_KEY] = self.config.to_dict()

    def _loss(self, prediction: Tensor, truth: Tensor, joined: bool = False) -> tuple[Tensor, Any]:
        """The mean over the true values, and its weight in a mean over batches. Missing values are left out; if
        `joined`, the mean over processes is that over all their values."""
        prediction = prediction.float()
        l1_weight = self.config.l1_weight if self.config.loss == "l1+l2" else 0.0
        if self.config.missing is None:
            loss = F.mse_loss(prediction, truth)
            return (loss + l1_weight * F.l1_loss(prediction, truth) if l1_weight else loss), len(truth)
        known = ~truth.isnan()
        error = torch.where(known, prediction - filled(truth), 0)
        n_values = known.sum().float()
        if joined:
            torch.distributed.all_reduce(n_values, torch.distributed.ReduceOp.SUM)
            n_values = n_values / self.config.n_processes
        sums = error.square().sum() + l1_weight * error.abs().sum()
        return sums / n_values.clamp(min=1), n_values

    def _generator(self, index: int) -> torch.Generator | None:
        """For the model's initial state, where that is random."""
        if self.model.options.init_state == "zeros":
            return None
        key = [self.config.seed, _STATE, int(self.training), index, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        return torch.Generator(self.device).manual_seed(seed)


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there: written beside their place, then moved. Lightning's own go through the
    system's temporary folder, and from there to another disk they are copied. Reading runs no code of the file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.part"
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch's own of a full disk is a RuntimeError
            with suppress(OSError):
                os.remove(part)
            reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
            raise OSError(f"{path} cannot be written: {reason}; earlier ones are kept") from error

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        content = read_checkpoint(Path(path))
        for state in content.get("callbacks", {}).values():
            _move(state, os.path.dirname(os.path.realpath(path)))
        # The last batch of a finished run is not the last where it goes on with more steps.
        loop = content.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        loop["is_last_batch"] = False
        return content


def _move(state: dict[str, Any], folder: str) -> None:
    """Name the files of a ModelCheckpoint's state by where they are now: Lightning forgets which was the best if its
    folder has another name."""
    before = state.get("dirpath")
    if not before or before == folder:
        return

    def moved(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path.startswith(before) else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder


class ProgressBar(callbacks.RichProgressBar):
    """The run is one epoch to Lightning, and nothing to tell the user about; nor is the number of the log."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        return {
            name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"
        }

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


def train(
    config: Config,
    folder: PathLike,
    *,
    resume: bool = False,
    progress: bool = True,
    watch: callbacks.Callback | None = None,
    announce: Callable[[], None] | None = None,
    command: Sequence[str] = (),
) -> Path:
    """Train to the end of `config.steps`, in a new folder or (`resume`) from the last checkpoint of an existing one.

    `progress` is a bar, or without a terminal a line for each validation and every 30 seconds. `watch` is told of every
    step, say to show progress in the caller's way. `announce` is called once, by the first process, when the settings
    are checked and before the folder holds anything. Returns the checkpoint with the lowest validation MSE.

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
        _train(config, folder, resume, progress, watch, announce, command)
    return folder / "checkpoints" / "best.ckpt"


def _train(
    config: Config,
    folder: Path,
    resume: bool,
    progress: bool,
    watch: callbacks.Callback | None,
    announce: Callable[[], None] | None,
    command: Sequence[str],
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module, clips = Training(config), Clips(config)
    if config.init_from and not (resume and last_checkpoint(folder).exists()):
        load_weights(module.model, config.init_from, config)
    place = launchers.launched(config.devices, config.nodes)
    with _quiet(), without_variables("PL_"):  # such as PL_TRAINER_ACCUMULATE_GRAD_BATCHES
        trainer = _trainer(config, folder, progress, [watch] if watch else [], place)
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
    watchers: list[callbacks.Callback],
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
