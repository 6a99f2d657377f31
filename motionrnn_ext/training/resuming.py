"""What may change when a run goes on: `--resume` refuses what its numbers depend on, and says what to do instead.

root, workers, accelerator, checkpoint_steps, log_every
                    change freely: no number depends on them, but for the rounding of another device.
digits              the folder of the same files may change, as `root` may.
val_every           changes freely: the weights do not depend on it; best.ckpt is the best of what was validated.
devices, nodes      may change where a step still learns from as many clips: batch_size becomes their share. Random
                    initial states (`init_state`) are then drawn anew.
steps               may grow, also of a finished run, where lr_schedule is constant. sampling_until shrinks by the same
                    factor, so that scheduled sampling ends at the step it had: the run is from then on one that was
                    started with both. It may fall to a step that is not passed yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from .config import Config

_INSTEAD = "for a new run from its weights: --init-from, with another --out"
FREE = frozenset(("root", "workers", "accelerator", "checkpoint_steps", "log_every", "val_every"))


class Unchangeable(ValueError):
    """What cannot change; the text goes on after "was started with"."""


def resumed(
    before: Config,
    wanted: Config,
    last_step: Callable[[], int | None],
    given: Collection[str] = (),
) -> Config:
    """The settings of a run that was started as `before` and goes on as `wanted`; `given` are named by the user.

    Raises:
        Unchangeable: its numbers depend on a setting that differs.
    """
    free = {name: getattr(wanted, name) for name in FREE}
    if "sklearn" not in (before.digits, wanted.digits):
        free["digits"] = wanted.digits
    config = replace(before, **free)
    if wanted.n_processes != before.n_processes:
        config = _spread(config, wanted)
    else:
        config = replace(config, devices=wanted.devices, nodes=wanted.nodes)
    if wanted.steps != before.steps:
        config = _of_length(config, wanted, last_step() or 0)
    old, new, named = before.to_dict(), config.to_dict(), wanted.to_dict()
    follows = {"batch_size", "sampling_until"} - set(
        given
    )  # may stay as it was, and then follows what changes
    refused = [
        name
        for name, value in named.items()
        if value != new[name] and not (name in follows and value == old[name])
    ]
    if refused:
        parts = [f"{name} {old[name]}; --resume cannot change it to {named[name]}" for name in refused]
        raise Unchangeable(f"{'; and with '.join(parts)}; {_INSTEAD}")
    return config


def _spread(config: Config, wanted: Config) -> Config:
    """With as many clips a step from other processes."""
    clips = config.batch_size * config.n_processes
    if clips % wanted.n_processes:
        raise Unchangeable(
            f"steps of {clips} clips (batch_size times devices times nodes), on which its numbers depend; they cannot "
            f"be shared by {wanted.n_processes} processes: devices times nodes should divide {clips}"
        )
    return replace(config, devices=wanted.devices, nodes=wanted.nodes, batch_size=clips // wanted.n_processes)


def _of_length(config: Config, wanted: Config, done: int) -> Config:
    """With more steps, or fewer."""
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
