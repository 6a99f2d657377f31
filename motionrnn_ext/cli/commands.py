"""The commands of the program, a function each. Each imports only what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.pictures import Pictures
from ..training import processes
from ..training.config import Config
from .options import DATA_OPTIONS, ensemble_of
from .settings import checked_reading, config_of, given_settings, model_arguments, protocol_of


def _train(arguments: argparse.Namespace) -> None:
    config = config_of(arguments)
    from ..evaluation.evaluate import count_parameters
    from ..training.runs import last_step, load_run
    from ..training.train import train

    shows = processes.is_first()
    again = [sys.executable, "-m", "motionrnn_ext.cli", *arguments.argv]
    try:
        best = train(
            config,
            arguments.out,
            resume=arguments.resume,
            progress=arguments.progress,
            announce=partial(_announce, config, arguments),
            command=again,
        )
    except KeyboardInterrupt:
        if shows:
            has_begun = (arguments.out / "config.json").is_file()
            how = _resume_command(arguments, config) if has_begun else "the same command"
            print(f"\ngo on with: {how}", file=sys.stderr)
        raise
    except processes.LostProcess as error:
        step = last_step(arguments.out)
        kept = "there is no checkpoint yet" if step is None else f"the last checkpoint is of step {step:,}"
        raise processes.LostProcess(
            f"{error}; {kept}; go on with: {_resume_command(arguments, config)}"
        ) from None
    if shows:
        run = load_run(arguments.out)
        parameters = f"{count_parameters(run.model):,} parameters"
        which = "lowest validation MSE" if best.exists() else f"{best} is gone; the last checkpoint is that"
        print(f"{which} after step {run.step or 0:,}: {run.path} ({parameters})")
        print(f"next: {_shell_command('evaluate', arguments, _as_argument(arguments.out))}")


def _announce(config: Config, arguments: argparse.Namespace) -> None:
    """Print the model, the data and the length of a training before it starts."""
    from ..data import DATASETS
    from ..evaluation.evaluate import model_name
    from ..metrics import counted
    from ..training.batches import ClipDataModule
    from ..training.runs import last_step

    size, title = f"{config.image_size[0]}x{config.image_size[1]}", DATASETS[config.dataset].title
    print(f"{model_name(config)} on {title}, {size}, {config.n_input} frames in and {config.n_output} out")
    steps, batch = counted(config.steps, "step"), counted(config.batch_size, "clip")
    each = f" in each of {config.n_processes} processes" if config.n_processes > 1 else ""
    print(f"{steps} of {batch}{each}; everything goes to {arguments.out}")
    if arguments.resume and last_step(arguments.out) == config.steps:
        further = "; --steps with a larger number trains further"
        print(f"all steps are done{further if config.lr_schedule == 'constant' else ''}")
    if config.missing is not None:
        print(ClipDataModule(config).about_missing())


def _resume_command(arguments: argparse.Namespace, config: Config) -> str:
    """Return the command that resumes a training."""
    if processes.of_torchrun():
        return "the same torchrun command and --resume"
    command = _shell_command("train", arguments, "--out", _as_argument(arguments.out), "--resume")
    return command if config.nodes == 1 else f"{command} (on every machine)"


def _shell_command(name: str, arguments: argparse.Namespace, *words: str) -> str:
    """Return a command to paste into a shell, with the same --import options as this one."""
    by_module = Path(sys.argv[0]) == Path(__file__).parents[1] / "__main__.py"
    program = ["python", "-m", "motionrnn_ext"] if by_module else ["motionrnn"]
    imports = [word for module in arguments.imports for word in ("--import", module)]
    return shlex.join([*program, name, *imports, *words])


def _as_argument(path: Path) -> str:
    """Return a path in a form that is not mistaken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _evaluate(arguments: argparse.Namespace) -> None:
    from ..data.registry import find
    from ..evaluation.evaluate import evaluate
    from ..evaluation.tables import print_protocol, print_results
    from ..training.folders import held_new
    from ..training.runs import checkpoint_file, checkpoint_home, settings_of

    for path in arguments.checkpoints:
        checkpoint_file(path)

    def show(results: Any) -> None:
        print_results(results, per_lead=True)
        print_protocol(results)

    names = ("n_output", "digits", "split", "batch_size", "pictures", "device", *DATA_OPTIONS)
    options = {name: getattr(arguments, name) for name in names}
    options |= {"n_clips": arguments.clips, "model": model_arguments(arguments), **ensemble_of(arguments)}
    known = next(filter(None, map(settings_of, arguments.checkpoints)), None)
    if known is not None:
        dbz = _dbz(arguments, known)
    else:
        dbz = arguments.dbz or (find(arguments.dataset).dbz if arguments.dataset else None)
    protocol, home = protocol_of(arguments, dbz), checkpoint_home(arguments.checkpoints[0])
    with held_new(arguments.out, home / "evaluation") as folder:
        _, written = evaluate(arguments.checkpoints, folder, protocol=protocol, show=show, **options)
        _conclude(written)


def _conclude(written: Pictures) -> None:
    """Print the paths of the files that were written. Raise NotDrawn if a picture could not be drawn."""
    from ..evaluation.tables import print_paths

    print_paths(written)
    written.check()


def _predict(arguments: argparse.Namespace) -> None:
    from ..evaluation.evaluate import write_prediction
    from ..training.folders import held_new
    from ..training.runs import checkpoint_home, load_run

    options = {"device": arguments.device, "pad": arguments.pad, **ensemble_of(arguments)}
    checkpoint = arguments.checkpoint or arguments.pretrained
    run = load_run(checkpoint, arguments.dataset, model=model_arguments(arguments))
    with held_new(arguments.out, checkpoint_home(checkpoint) / "prediction") as folder:
        frames, n_input, n_output = _clip(arguments, run.config)
        drawn = write_prediction(
            run, frames, n_input, n_output, folder, dbz=_dbz(arguments, run.config), **options
        )
        _conclude(drawn)


def _dbz(arguments: argparse.Namespace, config: Config) -> tuple[float, ...] | None:
    """Return the reflectivity of pixels 0 and 1 of what a command draws or scores; None if it is no radar."""
    from ..evaluation.clips import other_data

    given = other_data(config, arguments.dataset, dbz=arguments.dbz, pixel_max=arguments.pixel_max)
    names = ("dataset", "pixel_max", "dbz")
    return replace(config, **{name: given[name] for name in names if name in given}).dbz


def _clip(arguments: argparse.Namespace, config: Config) -> tuple[Any, int, int]:
    """Return a clip (T, C, H, W), the number of its frames that the model is given, and the number that it predicts.

    The clip is a test clip, or with --frames the last of the user's own frames.
    """
    from ..data import DATASETS
    from ..evaluation.clips import held_out_clip, last_frames, other_data
    from ..metrics import counted

    n_input, n_output = arguments.n_input or config.n_input, arguments.n_output or config.n_output
    options = {name: getattr(arguments, name) for name in DATA_OPTIONS}
    if arguments.frames is None:
        changes = other_data(config, **options)
        frames = held_out_clip(config, arguments.clip, n_input + n_output, **changes)
        _say_missing(frames[:n_input])
        return frames, n_input, n_output
    for name, value in options.items():
        if value is not None and name not in ("missing", "dbz", "pixel_max"):
            raise ValueError(
                f"--{name.replace('_', '-')} is for clips of a data set; leave it out with --frames"
            )
    anew = {name: getattr(arguments, name) for name in ("missing", "pixel_max")}
    config = replace(config, **{name: value for name, value in anew.items() if value is not None})
    reading: Any = {"pixel_max": config.pixel_max, "interval": config.interval}
    colours = DATASETS[config.dataset].colours
    frames, n = last_frames(arguments.frames, n_input, colours, config.no_data, **reading)
    if config.stride > 1:
        print(f"the model was trained with --stride {config.stride}; these frames are taken as they are")
    if n < n_input:
        needed = (
            f"--n-input {n_input} needs"
            if arguments.n_input
            else f"the model was trained on {n_input} given ones: give"
        )
        less = "" if arguments.n_input else f", or name fewer with --n-input {n}"
        raise ValueError(f"{arguments.frames} has {counted(n, 'frame')}; {needed} as many or more{less}")
    first = n - n_input + 1
    given = f"frame {n}" if n_input == 1 else f"frames {first} to {n}"
    future = f"{n + 1}" if n_output == 1 else f"{n + 1} to {n + n_output}"
    print(f"given {given} of {n}, predicts {future}")
    _say_missing(frames)
    return frames, n_input, n_output


def _say_missing(given: Any) -> None:
    from ..pixels import missing_share

    if share := missing_share(given):
        print(f"{share:.2%} of the given values are missing; the model reads 0 there")


def _visualize(arguments: argparse.Namespace) -> None:
    from ..evaluation.clips import fitting
    from ..evaluation.motion import draw_motion
    from ..training.folders import held_new
    from ..training.runs import checkpoint_home, load_run

    checkpoint = arguments.checkpoint or arguments.pretrained
    run = load_run(checkpoint, arguments.dataset, model=model_arguments(arguments))
    options = {name: getattr(arguments, name) for name in ("interface", "times", "positions", "device")}
    with held_new(arguments.out, checkpoint_home(checkpoint) / "motion") as folder:
        frames, n_input, n_output = _clip(arguments, run.config)
        frames = fitting(run.model, frames, arguments.pad)
        clips = _clips_for_numbers(arguments, run.config, n_input + n_output)
        options["dbz"] = _dbz(arguments, run.config)
        _conclude(draw_motion(run, frames, n_input, n_output, folder, clips=clips, **options))


def _clips_for_numbers(arguments: argparse.Namespace, config: Config, n_frames: int) -> list[Any]:
    """Return as many test clips as --clips says, or none without it."""
    from ..evaluation.clips import held_out, other_data

    if arguments.clips is None:
        return []
    if arguments.frames is not None:
        raise ValueError("--clips is for clips of a data set; leave it out with --frames")
    changes = other_data(config, **{name: getattr(arguments, name) for name in DATA_OPTIONS})
    clips = held_out(config, arguments.clips, n_frames=n_frames, **changes)
    return [clips[i] for i in range(len(clips))]


def _ablate(arguments: argparse.Namespace) -> None:
    from ..experiments import ablation

    _experiment(arguments, ablation)


def _compare(arguments: argparse.Namespace) -> None:
    from ..experiments import comparison

    _experiment(arguments, partial(comparison, predictors=arguments.predictors))


def _experiment(arguments: argparse.Namespace, plan: Callable[..., Any]) -> None:
    from ..experiments import preset
    from ..experiments.runner import run_plan

    chosen = preset(arguments.preset, getattr(arguments, "dataset", None))
    start, name = chosen.config, f"{arguments.command}-{arguments.preset}"
    if arguments.preset == "standard":
        name += f"-{start.dataset}"
    if arguments.config is not None:
        start, name = Config.read(arguments.config), arguments.command
    given = given_settings(arguments)
    if "init_from" in given:
        raise ValueError(
            "init_from (--init-from) is for one model; the rows of a table begin with weights of their own"
        )
    config = checked_reading(replace(start, init_from=None).changed(given), given)
    if arguments.thresholds is None and arguments.values is None:
        arguments.thresholds = chosen.thresholds
    seeds, test_clips = arguments.seeds or chosen.seeds, arguments.test_clips or chosen.test_clips
    planned = plan(config, seeds, test_clips, protocol=protocol_of(arguments, config.dbz))
    try:
        folder = arguments.out or Path("runs") / name
        command = shlex.join(["motionrnn", *arguments.argv])
        run_plan(planned, folder, command=command, record=arguments.json)
    except KeyboardInterrupt:
        print("\ngo on with the same command", file=sys.stderr)
        raise


def _bench(arguments: argparse.Namespace) -> None:
    from ..benchmarks import bench

    if arguments.is_program:
        bench.start_again_tuned(arguments)
    bench.bench(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from ..evaluation.evaluate import count_parameters
    from ..models.checkpoints.pretrained import save_pretrained
    from ..models.checkpoints.reading import WEIGHTS
    from ..training.folders import held_new
    from ..training.runs import load_run

    run = load_run(arguments.checkpoint)
    more = {"settings": run.config.without_places(), "step": run.step}
    with held_new(arguments.folder, arguments.folder, "FOLDER") as folder:
        save_pretrained(run.model, folder, float16=arguments.float16, more=more)
        size = (folder / WEIGHTS).stat().st_size
    print(f"{count_parameters(run.model):,} parameters in {size / 1e6:.2f} MB: {folder}")
    print(f"next: {_shell_command('predict', arguments, _as_argument(folder), '--frames', 'path/to/frames')}")


def _info(arguments: argparse.Namespace) -> None:
    from . import info

    facts = info.collect()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print(info.markdown(facts) if arguments.markdown else info.text(facts))


def _tune(arguments: argparse.Namespace) -> None:
    from .tune import table, tune

    measured = tune(arguments.channels, arguments.dtype, tuple(arguments.size), arguments.batch_size)
    if arguments.rows:
        print(*(f"    {choice.row!r}," for choice in measured), sep="\n")
    else:
        print(table(measured))


def _demo(arguments: argparse.Namespace) -> None:
    from ..experiments.demo import demo

    demo(arguments.out, quick=arguments.quick)


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "visualize": _visualize,
    "ablate": _ablate,
    "compare": _compare,
    "bench": _bench,
    "export": _export,
    "info": _info,
    "tune": _tune,
    "demo": _demo,
}
