"""The processes of a training: the rank of this one, and `run_processes`, which starts and watches those of a machine.

`run_processes` runs in a parent process that does not train. Lightning's own launcher is one of the training processes:
if that one is lost, nothing reports it and nothing ends the others.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

import torch

LOST = 3  # exit code of a process that lost contact with another, and then of the program
_PARENT = "MOTIONRNN_EXT_PARENT"
# The variables, by launcher, of a process's rank, its rank on its machine, and the number of all processes. srun comes
# last, because mpirun may use srun to start its processes on other machines.
_VARIABLES = {
    "motionrnn": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's
    "mpiexec": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),  # MPICH's and Intel MPI's
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
}
MPI = ("mpirun", "mpiexec")
# SLURM gives its own steps, such as a batch script, numbers from here on.
_FIRST_INTERNAL_STEP = 0xFFFFFFF0
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
_SECONDS_TO_STOP = 10  # from Ctrl-C until a process is killed


class Place(NamedTuple):
    """The rank of one of several processes, and the program that started them."""

    launcher: str
    rank: int
    local_rank: int
    n_processes: int


class LostProcess(ConnectionError):
    """A process of the training ended unexpectedly or can no longer be reached."""


def is_first() -> bool:
    """Return whether this is the process that makes the run's folder and prints its progress."""
    return not any(_ranks().values()) and not is_started()


def started_by() -> Place | None:
    """Return the place of this process among those that a launcher started, or None if no launcher started it."""
    if is_started():
        launchers = ["motionrnn"]
    elif of_torchrun():
        launchers = ["torchrun"]
    else:
        launchers = ["jsrun", *MPI, *(["srun"] if _is_task_of_srun() else [])]
    for launcher in launchers:
        rank, local_rank, size = _VARIABLES[launcher]
        if launcher == "srun" and not variable(size):
            size = "SLURM_NTASKS"
        if all(map(variable, (rank, local_rank, size))):
            return Place(launcher, *map(whole, (rank, local_rank, size)))
    return None


def _is_task_of_srun() -> bool:
    """Return whether srun started this process. A batch script has a SLURM_PROCID too, but is no task of a step."""
    step = variable("SLURM_STEP_ID") or variable("SLURM_STEPID")
    return bool(variable("SLURM_PROCID")) and (
        (step.isdecimal() and int(step) < _FIRST_INTERNAL_STEP) or whole("SLURM_PROCID") > 0
    )


def check_first(n_processes: int) -> None:
    """Raise ValueError if the environment says that this process is not the first of several.

    Such a process prints nothing and makes no folder, so it would train without a visible result.
    """
    for name, rank in _ranks().items():
        if rank:
            has = "the run has only one" if n_processes == 1 else f"this one should start all {n_processes}"
            raise ValueError(
                f"{name} is {rank} in the environment, as in one of several processes, but {has}; unset it, "
                "or give the right --devices and --nodes"
            )


def _ranks() -> dict[str, int]:
    """Return the ranks of this process in the environment, by variable: that of a launcher, or else Lightning's."""
    one = [name for name in dict.fromkeys(rank for rank, *_ in _VARIABLES.values()) if variable(name)][:1]
    return {name: whole(name) for name in one or ("NODE_RANK", "LOCAL_RANK")}


def variable(name: str) -> str:
    """Return the value of an environment variable without blanks around it, or "" if it is not set."""
    return os.environ.get(name, "").strip()


def whole(name: str) -> int:
    """Return the whole number in an environment variable, or 0 if it is not set. Raise ValueError for other text."""
    value = variable(name) or "0"
    if not (value.isascii() and value.isdecimal()):
        raise ValueError(f"{name} is {value!r} in the environment; it should be a whole number from 0 on")
    return int(value)


def is_started() -> bool:
    """Return whether `run_processes` of another process started this one."""
    return bool(variable(_PARENT))


def of_torchrun() -> dict[str, int]:
    """Return the settings `devices` and `nodes` if torchrun started this process, or else an empty dict."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return {}
    here, all_of_them = map(whole, ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    # torchrun sets both. A single one was left behind by another program.
    return {"devices": here, "nodes": all_of_them // here} if here and all_of_them else {}


def is_lost_contact(error: RuntimeError) -> bool:
    """Return whether torch.distributed raised `error` because of another process. gloo's errors have no own type."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def run_processes(command: Sequence[str], devices: int, nodes: int) -> None:
    """Run `command` in `devices` processes until all have ended, with the variables that Lightning reads ranks from.

    On several nodes each calls this function. If one process fails, all are ended. Each process has its own session
    and ends when this process ends.

    Raises:
        ValueError: `find_place` finds no place for this machine.
        LostProcess: a process was killed, or one on another node cannot be reached.
        SystemExit: a process failed and has printed its error.
        KeyboardInterrupt: the user stopped the training; raised after all processes have stopped.
    """
    first_rank, address = find_place(devices, nodes)
    processes = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # schedulers send SIGTERM first; treat it as Ctrl-C
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for local_rank in range(devices):
            variables = {
                **address, "WORLD_SIZE": devices * nodes, "RANK": first_rank + local_rank, "LOCAL_RANK": local_rank,
                _PARENT: os.getpid(),
            }  # fmt: skip
            environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
            )
        codes = _wait(processes)
    except KeyboardInterrupt:
        _stop(processes)
        raise
    finally:
        _kill(processes)
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
    for rank, code in enumerate(codes, first_rank):
        if code < 0:
            name = signal.Signals(-code).name
            raise LostProcess(f"the process of rank {rank} was lost (killed by {name})")
    failed = [code for code in codes if code]
    if failed and set(failed) == {LOST}:
        where = "a process" if nodes == 1 else "a process on another machine"
        raise LostProcess(f"{where} was lost or cannot be reached")
    if failed:
        raise SystemExit(next(code for code in failed if code != LOST))


def end_with_parent() -> None:
    """End this process and its DataLoader's when the parent ends in any way. For processes of `run_processes`."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End one of several processes that has finished, without the interpreter's own cleanup.

    In that cleanup torch.distributed may abort while threads of gloo still run; the finished process would then count
    as lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def find_place(devices: int, nodes: int) -> tuple[int, dict[str, str]]:
    """Return the rank of this machine's first process, and the variables by which the processes find each other.

    With several nodes these are MASTER_ADDR, MASTER_PORT and NODE_RANK of the environment. Raise ValueError if they are
    missing or do not fit.
    """
    if nodes == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return 0, dict(zip(_ADDRESS, ("127.0.0.1", str(free.getsockname()[1]), "0")))
    missing = [name for name in _ADDRESS if not variable(name)]
    if missing:
        raise ValueError(
            f"nodes is {nodes}, but the environment lacks {', '.join(missing)}: the first machine's address, a "
            f"free port of it, and this machine's number from 0 to {nodes - 1} (or start it with torchrun)"
        )
    address = {name: variable(name) for name in _ADDRESS}
    number = whole("NODE_RANK")
    if number >= nodes:
        raise ValueError(
            f"NODE_RANK is {number} in the environment; it should be from 0 to {nodes - 1} with {nodes} nodes"
        )
    return devices * number, address


def _wait(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Wait until all processes have ended or one has failed. Return the exit codes, 0 for those still running."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            time.sleep(0.5)  # let processes that fail because of this one end too
            return [process.poll() or 0 for process in processes]
        if None not in codes:
            return [0] * len(processes)
        time.sleep(0.1)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    until = time.monotonic() + _SECONDS_TO_STOP
    while time.monotonic() < until and None in [process.poll() for process in processes]:
        time.sleep(0.1)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill the processes and their children. SIGTERM would not end one that waits for another."""
    for process in processes:
        if process.returncode != 0:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
