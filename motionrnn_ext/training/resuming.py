"""The settings that may change when a run is resumed. `--resume` refuses a change that its numbers depend on.

root, workers, accelerator, checkpoint_steps, channels_last, graph, log_every, logger
                    may change: no number depends on them, except for the rounding of another device or layout.
digits              may change from one folder to another that holds the same files.
val_every           may change: the weights do not depend on it. best.ckpt is the best of the validated steps.
devices, nodes      may change if a step still learns from the same number of clips: batch_size becomes the share of
                    each process. Random initial states (`init_state`) are then other ones.
steps               may grow if lr_schedule is constant, even after the run has finished. sampling_until shrinks by the
                    same factor, so that scheduled sampling ends at the same step, and the run continues as if it had
                    been started with both. steps may shrink to any step that the run has not passed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from .config import Config

_INSTEAD = "for a new run from its weights: --init-from, with another --out"
FREE = frozenset(
    (
        "root", "workers", "accelerator", "checkpoint_steps", "channels_last", "graph", "log_every", "val_every",
        "logger",
    )
)  # fmt: skip


class Unchangeable(ValueError):
    """A setting that cannot change. The message continues a sentence that ends in "was started with"."""


def resumed(
    before: Config,
    wanted: Config,
    last_step: Callable[[], int | None],
    given: Collection[str] = (),
) -> Config:
    """Return the settings of a run that was started as `before` and is resumed as `wanted`.

    `given` names the settings that the user has set. batch_size and sampling_until are adapted unless they are given.

    Raises:
        Unchangeable: a setting differs that the run's numbers depend on.
    """
    free = {name: getattr(wanted, name) for name in FREE}
    if "sklearn" not in (before.digits, wanted.digits):
        free["digits"] = wanted.digits
    config = replace(before, **free)
    if wanted.n_processes != before.n_processes:
        config = _with_processes(config, wanted)
    else:
        config = replace(config, devices=wanted.devices, nodes=wanted.nodes)
    if wanted.steps != before.steps:
        config = _with_steps(config, wanted, last_step() or 0)
    old, new, named = before.to_dict(), config.to_dict(), wanted.to_dict()
    adapted = {"batch_size", "sampling_until"} - set(given)
    refused = [
        name
        for name, value in named.items()
        if value != new[name] and not (name in adapted and value == old[name])
    ]
    if refused:
        parts = [f"{name} {old[name]}; --resume cannot change it to {named[name]}" for name in refused]
        raise Unchangeable(f"{'; and with '.join(parts)}; {_INSTEAD}")
    return config


def _with_processes(config: Config, wanted: Config) -> Config:
    """Return `config` with the devices and nodes of `wanted`, and the same number of clips per step."""
    clips = config.batch_size * config.n_processes
    if clips % wanted.n_processes:
        raise Unchangeable(
            f"steps of {clips} clips (batch_size times devices times nodes), on which its numbers depend; they cannot "
            f"be shared by {wanted.n_processes} processes: devices times nodes should divide {clips}"
        )
    return replace(config, devices=wanted.devices, nodes=wanted.nodes, batch_size=clips // wanted.n_processes)


def _with_steps(config: Config, wanted: Config, done: int) -> Config:
    """Return `config` with the steps of `wanted`; `done` is the step of the last checkpoint."""
    new = f"steps {config.steps}; --resume cannot change it to {wanted.steps}"
    if config.lr_schedule != "constant":
        raise Unchangeable(
            f"{new}: the learning rate of {config.lr_schedule} depends on it from the first step on; {_INSTEAD}"
        )
    if wanted.steps < done:
        raise Unchangeable(f"{new}: its last checkpoint is of step {done}; it should be {done} or more")
    if config.sampling == "none":
        return replace(config, steps=wanted.steps)
    until = config.sampling_until * config.steps / wanted.steps
    if until > 1:
        raise Unchangeable(
            f"{new}: true frames are read up to step {round(config.sampling_until * config.steps)} "
            "(sampling_until); it should be that or more"
        )
    return replace(config, steps=wanted.steps, sampling_until=until)
