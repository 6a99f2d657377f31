"""The program `motionrnn`: a function per command, which imports what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import backends
from ..evaluation.pictures import NotDrawn, Pictures
from ..terminal import surroundings
from ..training import processes
from ..training.config import Config
from .parser import DATA_OPTIONS, MODEL_OPTIONS, make_parser

_NOT_DRAWN = 4  # exit code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code: 0, 2 for what the user can put right, 3 where one of several processes
    of a training was lost, 4 where pictures could not be drawn and all else is done, 130 when interrupted, 141 where
    the reader of its output has gone."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given != sys.argv[1:]:  # called from a program, whose streams and variables these are
        return _run(given)
    surroundings.settle()
    code = surroundings.guarded(partial(_run, given))
    if processes.is_started() or processes.of_torchrun():
        processes.leave(code)
    return code


def _run(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    arguments.argv = argv
    if _is_the_program(arguments):  # of what is assumed, say: not with a line of the source
        warnings.formatwarning = lambda message, *_: f"motionrnn {arguments.command}: warning: {message}\n"
    if processes.is_started():
        processes.end_with_parent()
    try:
        processes.is_first()  # or what it reads is named before Lightning fails on it
        _import(arguments.imports)
        if arguments.command != "info":  # which shows what is wrong with them
            _check_variables()
        _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        if not processes.is_started():
            print("\nstopped", file=sys.stderr)
        return 130
    except processes.LostProcess as error:
        if not processes.is_started():
            _fail(arguments, str(error))
        return processes.LOST
    except ModuleNotFoundError as error:
        return _fail(arguments, _missing_package(error))
    except NotDrawn as error:
        for line in error.failed:
            _fail(arguments, line)
        return _NOT_DRAWN
    except Exception as error:
        advice = _advice(error)
        if advice is not None:
            return _fail(arguments, advice)
        # Lightning's exception by name, because Lightning may not be installed.
        is_mistake = (
            isinstance(error, (ValueError, OSError)) or type(error).__name__ == "MisconfigurationException"
        )
        if not is_mistake:
            raise  # a fault of the program: its traceback is wanted
        return _fail(arguments, _one_line(error))
    return 0


def _is_the_program(arguments: argparse.Namespace) -> bool:
    """Whether this process is, and not one that calls `main`."""
    return bool(arguments.argv == sys.argv[1:])


def _fail(arguments: argparse.Namespace, message: str) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"motionrnn {arguments.command}: error: {message}", file=sys.stderr)
    return 2


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    if "in DataLoader worker process" in text:  # what the worker raised stands last, after its traceback
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _advice(error: Exception) -> str | None:
    """What to do where the machine has too little memory; torch and its workers say it in many ways."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory: try a smaller --batch-size, and for training --checkpoint-steps"
    if "shared memory" in text or "unable to write to file </torch_" in text or "/dev/shm" in text:
        return "no shared memory (/dev/shm) is left for the processes that draw clips: try --workers 0, or enlarge it"
    return None


def _missing_package(error: ModuleNotFoundError) -> str:
    if error.name is None:  # a message of ours, or Lightning's of a logger's packages
        return " ".join(str(error).split())
    return f"the package {error.name.split('.')[0]} is missing: pip install 'motionrnn-ext[train]'"


def _check_variables() -> None:
    try:
        backends.check_variables()
    except RuntimeError as error:  # of the kernels, which begins with a place in their source
        raise ValueError(re.sub(r"^.*\.cpp:\d+, ", "", str(error))) from None


def _import(modules: Sequence[str]) -> None:
    """The user's modules, from the working directory too, as with `python -m`."""
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for name in modules:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--import must be the name of a module, such as my_cells; got {name!r}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ValueError(f"--import {name}: {error}, which it imports") from None
            raise ValueError(
                f"--import: no module {name!r} in the working directory or on sys.path"
            ) from None


# ---- The commands


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    from ..data import DATASETS
    from ..evaluation.evaluate import count_parameters, model_name
    from ..metrics import counted
    from ..training.runs import last_step, load_run
    from ..training.train import train

    def announce() -> None:
        size, title = f"{config.image_size[0]}x{config.image_size[1]}", DATASETS[config.dataset].title
        print(
            f"{model_name(config)} on {title}, {size}, {config.n_input} frames in and {config.n_output} out"
        )
        steps, batch = counted(config.steps, "step"), counted(config.batch_size, "clip")
        each = f" in each of {config.n_processes} processes" if config.n_processes > 1 else ""
        print(f"{steps} of {batch}{each}; everything goes to {arguments.out}")
        if arguments.resume and last_step(arguments.out) == config.steps:
            further = "; --steps with a larger number trains further"
            print(f"all steps are done{further if config.lr_schedule == 'constant' else ''}")
        if config.missing is not None:
            from ..training.batches import Clips

            print(Clips(config).about_missing())

    shows = processes.is_first()
    again = [sys.executable, "-m", "motionrnn_ext.cli", *arguments.argv]
    try:
        best = train(
            config,
            arguments.out,
            resume=arguments.resume,
            progress=arguments.progress,
            announce=announce,
            command=again,
        )
    except KeyboardInterrupt:
        if shows:
            print(f"\ngo on with: {_go_on(arguments, config)}", file=sys.stderr)
        raise
    except processes.LostProcess as error:
        step = last_step(arguments.out)
        kept = "there is no checkpoint yet" if step is None else f"the last checkpoint is of step {step:,}"
        raise processes.LostProcess(f"{error}; {kept}; go on with: {_go_on(arguments, config)}") from None
    if shows:
        run = load_run(best)
        parameters = f"{count_parameters(run.model):,} parameters"
        print(f"lowest validation MSE after step {run.step or 0:,}: {best} ({parameters})")
        print(f"next: {_command('evaluate', arguments, _as_argument(arguments.out))}")


def _go_on(arguments: argparse.Namespace, config: Config) -> str:
    """The command that resumes a training."""
    if processes.of_torchrun():
        return "the same torchrun command and --resume"
    command = _command("train", arguments, "--out", _as_argument(arguments.out), "--resume")
    return command if config.nodes == 1 else f"{command} (on every machine)"


def _command(name: str, arguments: argparse.Namespace, *words: str) -> str:
    """A command to paste into a shell, which knows the modules that this one has imported."""
    by_module = Path(sys.argv[0]) == Path(__file__).with_name("__main__.py")
    program = ["python", "-m", "motionrnn_ext"] if by_module else ["motionrnn"]
    imports = [word for module in arguments.imports for word in ("--import", module)]
    return shlex.join([*program, name, *imports, *words])


def _as_argument(path: Path) -> str:
    """A path that no parser takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _config(arguments: argparse.Namespace) -> Config:
    """The settings of `train`: of the run to resume, or of --config, or the defaults; then the options given."""
    from ..training.resuming import Unchangeable, resumed
    from ..training.runs import RunError, last_step, resumable_config, settings_of

    given = {**_given(arguments), **_of_torchrun(arguments)}
    if arguments.resume:
        before = resumable_config(arguments.out)
        wanted = Config(**{**before.to_dict(), **given}).located()
        try:
            config = resumed(before, wanted, partial(last_step, arguments.out), given)
        except Unchangeable as error:
            raise RunError(f"{arguments.out} was started with {error}") from None
        return config
    start = Config() if arguments.config is None else Config.read(arguments.config)
    if "init_from" in given and arguments.config is None:
        start = settings_of(given["init_from"]) or start
    return start.changed(given)


def _of_torchrun(arguments: argparse.Namespace) -> dict[str, int]:
    """`devices` and `nodes` as torchrun has them, which need not be given a second time."""
    found = processes.of_torchrun()
    for name, value in found.items():
        if getattr(arguments, name, value) != value:
            raise ValueError(
                f"--{name} is {getattr(arguments, name)}, and torchrun has started {value}; leave it out"
            )
    return found


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that are given as options."""
    given = {
        entry.name: getattr(arguments, entry.name)
        for entry in fields(Config)
        if hasattr(arguments, entry.name)
    }
    for name in given.keys() & {"overrides", "cell_options"}:
        given[name] = dict(_named_value(text) for text in given[name])
    return given


def _named_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--override and --cell-option must be NAME=VALUE; got {text!r}")
    try:
        return name, json.loads("null" if value == "None" else value)
    except json.JSONDecodeError:
        return name, value


def _evaluate(arguments: argparse.Namespace) -> None:
    from ..evaluation.evaluate import evaluate
    from ..evaluation.tables import print_protocol, print_results
    from ..training.folders import held_new
    from ..training.runs import checkpoint_file, checkpoint_home

    for path in arguments.checkpoints:
        checkpoint_file(path)

    def show(results: Any) -> None:
        print_results(results, per_lead=True)
        print_protocol(results)

    names = ("n_output", "digits", "split", "batch_size", "pictures", "device", *DATA_OPTIONS)
    options = {name: getattr(arguments, name) for name in names}
    options |= {"n_clips": arguments.clips, "model": _model(arguments)}
    protocol, home = _protocol(arguments), checkpoint_home(arguments.checkpoints[0])
    with held_new(arguments.out, home / "evaluation") as folder:
        _, written = evaluate(arguments.checkpoints, folder, protocol=protocol, show=show, **options)
        _conclude(written)


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of MotionRNN that are given for a file of weights alone."""
    given = {name: value for name, value in _given(arguments).items() if name in MODEL_OPTIONS}
    if given.get("compat") == "none":
        given["compat"] = None
    overrides = given.pop("overrides", {})
    return {**given, **overrides}


def _conclude(written: Pictures) -> None:
    """Name what was written, and by NotDrawn what was not."""
    from ..evaluation.tables import print_paths

    print_paths(written)
    written.check()


def _protocol(arguments: argparse.Namespace) -> Any:
    """What to measure: a preset of values, changed by what is given for them, and its thresholds unless others are."""
    from ..metrics import PRESET_THRESHOLDS, PRESETS, Protocol, Values

    scale, offset = arguments.value_scale, arguments.value_offset
    values = PRESETS.get(arguments.values)
    if values is not None and (scale is not None or offset is not None or arguments.value_bytes):
        raise ValueError(
            "--values names scale and offset; leave out --value-scale, --value-offset, --value-bytes"
        )
    if scale is not None:
        values = Values(scale, offset or 0.0, arguments.value_bytes)
    thresholds = tuple(arguments.thresholds or PRESET_THRESHOLDS.get(arguments.values, ()))
    if thresholds and values is None:
        raise ValueError("--thresholds needs what a pixel stands for: --values NAME, or --value-scale S")
    if not thresholds and (values is not None or offset is not None or arguments.value_bytes):
        raise ValueError("values are for CSI and FAR: give --thresholds too")
    names = ("convention", "ssim", "lpips", "fvd", "fvd_context", "device")
    options = {name: getattr(arguments, name) for name in names}
    return Protocol(thresholds=thresholds, values=values, **options)


def _predict(arguments: argparse.Namespace) -> None:
    from ..evaluation.evaluate import write_prediction
    from ..training.folders import held_new
    from ..training.runs import checkpoint_home, load_run

    run = load_run(arguments.checkpoint, arguments.dataset, model=_model(arguments))
    with held_new(arguments.out, checkpoint_home(arguments.checkpoint) / "prediction") as folder:
        frames, n_input, n_output = _clip(arguments, run.config)
        drawn = write_prediction(run, frames, n_input, n_output, folder, arguments.device, pad=arguments.pad)
        _conclude(drawn)


def _clip(arguments: argparse.Namespace, config: Config) -> tuple[Any, int, int]:
    """The last of the user's own frames or a test clip, (T, C, H, W), how many of it a model is given, and how many it
    predicts."""
    from ..data import DATASETS
    from ..evaluation.clips import held_out_clip, last_frames, other_data
    from ..metrics import counted

    n_input, n_output = arguments.n_input or config.n_input, arguments.n_output or config.n_output
    options = {name: getattr(arguments, name) for name in DATA_OPTIONS}
    if arguments.frames is None:
        changes = other_data(**options)
        frames = held_out_clip(config, arguments.clip, n_input + n_output, **changes)
        _say_missing(frames[:n_input])
        return frames, n_input, n_output
    for name, value in options.items():
        if value is not None and name != "missing":
            raise ValueError(
                f"--{name.replace('_', '-')} is for clips of a data set; leave it out with --frames"
            )
    if arguments.missing is not None:
        config = replace(config, missing=arguments.missing)
    frames, n = last_frames(arguments.frames, n_input, DATASETS[config.dataset].colours, config.no_data)
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

    run = load_run(arguments.checkpoint, arguments.dataset, model=_model(arguments))
    options = {name: getattr(arguments, name) for name in ("interface", "times", "positions", "device")}
    with held_new(arguments.out, checkpoint_home(arguments.checkpoint) / "motion") as folder:
        frames, n_input, n_output = _clip(arguments, run.config)
        frames = fitting(run.model, frames, arguments.pad)
        _conclude(draw_motion(run, frames, n_input, n_output, folder, **options))


def _ablate(arguments: argparse.Namespace) -> None:
    from ..experiments import ablation

    _experiment(arguments, ablation)


def _compare(arguments: argparse.Namespace) -> None:
    from ..experiments import comparison

    _experiment(arguments, partial(comparison, predictors=arguments.predictors))


def _experiment(arguments: argparse.Namespace, plan: Callable[..., Any]) -> None:
    from ..experiments import PRESETS
    from ..experiments.run import run

    preset, name = PRESETS[arguments.preset], f"{arguments.command}-{arguments.preset}"
    start = preset.config
    if arguments.config is not None:
        start, name = Config.read(arguments.config), arguments.command
    config = start.changed(_given(arguments))
    seeds, test_clips = arguments.seeds or preset.seeds, arguments.test_clips or preset.test_clips
    planned = plan(config, seeds, test_clips, protocol=_protocol(arguments))
    try:
        folder = arguments.out or Path("runs") / name
        run(planned, folder, command=shlex.join(["motionrnn", *arguments.argv]), docs=arguments.docs)
    except KeyboardInterrupt:
        print("\ngo on with the same command", file=sys.stderr)
        raise


def _bench(arguments: argparse.Namespace) -> None:
    from ..benchmarks import bench

    if _is_the_program(arguments):
        bench.start_again_tuned(arguments)
    bench.bench(arguments)


def _info(arguments: argparse.Namespace) -> None:
    from . import info

    facts = info.collect()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print(info.markdown(facts) if arguments.markdown else info.text(facts))


def _demo(arguments: argparse.Namespace) -> None:
    from ..experiments.demo import demo

    demo(arguments.out, quick=arguments.quick)


_COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "visualize": _visualize,
    "ablate": _ablate,
    "compare": _compare,
    "bench": _bench,
    "info": _info,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
