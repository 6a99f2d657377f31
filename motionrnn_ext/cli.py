"""The program `motionrnn`: train, evaluate, predict, info, demo. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .arguments import make_parser
from .config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code: 0, 2 for what the user can put right, 130 when interrupted."""
    arguments = make_parser().parse_args(argv)
    try:
        _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        return _fail(arguments, _missing_package(error))
    except Exception as error:
        # Lightning's exception by name, because Lightning may not be installed.
        is_mistake = (
            isinstance(error, (ValueError, OSError)) or type(error).__name__ == "MisconfigurationException"
        )
        if not is_mistake:
            raise  # a fault of the program: its traceback is wanted
        return _fail(arguments, " ".join(str(error).split()))
    return 0


def _fail(arguments: argparse.Namespace, message: str) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"motionrnn {arguments.command}: error: {message}", file=sys.stderr)
    return 2


def _missing_package(error: ModuleNotFoundError) -> str:
    if error.name is None:  # a message of ours
        return str(error)
    return f"the package {error.name.split('.')[0]} is missing: pip install 'motionrnn-ext[train]'"


# ---- The commands


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    from .evaluate import count_parameters, model_name
    from .runs import load_run
    from .train import train

    size = f"{config.image_size[0]}x{config.image_size[1]}"
    print(
        f"{model_name(config)} on moving digits, {size}, {config.n_input} frames in and {config.n_output} out"
    )
    print(f"{config.steps:,} steps of {config.batch_size} clips; everything goes to {arguments.out}")
    try:
        best = train(config, arguments.out, resume=arguments.resume, progress=arguments.progress)
    except KeyboardInterrupt:
        print(f"\ngo on with: motionrnn train --out {arguments.out} --resume", file=sys.stderr)
        raise
    run = load_run(best)
    print(f"best of {count_parameters(run.model):,} parameters after step {run.step:,}: {best}")
    print(f"next: motionrnn evaluate {arguments.out}")


def _config(arguments: argparse.Namespace) -> Config:
    """The settings of `train`: of the run to resume, or of --config, or the defaults; then the options given."""
    from .runs import RunError, resumable_config

    given = {
        entry.name: getattr(arguments, entry.name)
        for entry in fields(Config)
        if hasattr(arguments, entry.name)
    }
    if "overrides" in given:
        given["overrides"] = dict(_override(text) for text in given["overrides"])
    if arguments.resume:
        config = resumable_config(arguments.out)
        for name, value in Config(**{**config.to_dict(), **given}).to_dict().items():
            if value != config.to_dict()[name]:
                before = config.to_dict()[name]
                raise RunError(
                    f"{arguments.out} was started with {name} {before}; --resume cannot change it to {value}"
                )
        return config
    if arguments.config is None:
        return Config(**given)
    return Config(**{**Config.read(arguments.config).to_dict(), **given})


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--override must be NAME=VALUE; got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _evaluate(arguments: argparse.Namespace) -> None:
    from .evaluate import evaluate
    from .report import print_paths, print_results
    from .runs import checkpoint_home

    folder = _output(arguments.out, checkpoint_home(arguments.checkpoints[0]) / "evaluation")
    names = ("clips", "n_output", "digits", "split", "ssim", "batch_size", "pictures", "device")
    options = {name: getattr(arguments, name) for name in names}
    results, paths = evaluate(arguments.checkpoints, folder, **options)
    print_results(results, per_lead=True)
    print_paths(paths)


def _predict(arguments: argparse.Namespace) -> None:
    from .evaluate import held_out, predict_frames, read_frames
    from .report import print_paths
    from .runs import checkpoint_home, load_run

    run = load_run(arguments.checkpoint)
    n_input, n_output = arguments.n_input or run.config.n_input, arguments.n_output or run.config.n_output
    if arguments.frames is None:
        frames = held_out(run.config, arguments.clip + 1, n_frames=n_input + n_output)[arguments.clip]
    else:
        frames = read_frames(arguments.frames)
        n_input = arguments.n_input or min(n_input, len(frames))
    folder = _output(arguments.out, checkpoint_home(arguments.checkpoint) / "prediction")
    print_paths(predict_frames(run, frames, n_input, n_output, folder, arguments.device))


def _output(chosen: Path | None, default: Path) -> Path:
    """The folder that the user chose, which must be new, or the next free one."""
    from .runs import RunError, fresh_folder

    if chosen is None:
        return fresh_folder(default)
    if fresh_folder(chosen) != chosen:
        raise RunError(f"{chosen} exists; name another folder with --out")
    return chosen


def _info(arguments: argparse.Namespace) -> None:
    from . import info

    facts = info.collect()
    print(json.dumps(facts, indent=2) if arguments.json else info.text(facts))


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import demo

    demo(arguments.out, quick=arguments.quick)


_COMMANDS = {"train": _train, "evaluate": _evaluate, "predict": _predict, "info": _info, "demo": _demo}


if __name__ == "__main__":
    sys.exit(main())
