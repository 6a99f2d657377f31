"""The processes of a training: where this one stands among them, and `run`, which starts and watches this machine's.

`run` is the parent of all that it starts. Lightning's own launcher is one of the processes itself: when that one is
lost nobody is left to say so, and the others are orphans.
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

LOST = 3  # exit code of a process that lost another, and of the program then
_STARTED_BY_RUN = "MOTIONRNN_EXT_PARENT"
# By launcher: the variables of a process's rank, its rank on its machine, and the number of all. srun is the last: what
# mpirun starts on other machines is started by srun there.
_VARIABLES = {
    "motionrnn": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's
    "mpiexec": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),  # MPICH's and Intel MPI's
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
}
MPI = ("mpirun", "mpiexec")
_FIRST_STEP_OF_SLURM_ITSELF = 0xFFFFFFF0  # such as that of a batch script
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
_SECONDS_TO_STOP = 10  # after Ctrl-C, before a process is killed


class Place(NamedTuple):
    """Where one of several processes stands."""

    launcher: str
    rank: int
    local_rank: int
    n_processes: int


class LostProcess(ConnectionError):
    """A process of the training ended by itself or cannot be reached any more."""


def is_first() -> bool:
    """Whether this is the process that makes the run's folder and tells the user how it goes."""
    return not any(_ranks().values()) and not is_started()


def started_by() -> Place | None:
    """The place that the program which started this process among several has given it; None where none has."""
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
    """Whether srun has started this process: a batch script has a SLURM_PROCID, too, but is no step of the job."""
    step = variable("SLURM_STEP_ID") or variable("SLURM_STEPID")
    return bool(variable("SLURM_PROCID")) and (
        (step.isdecimal() and int(step) < _FIRST_STEP_OF_SLURM_ITSELF) or whole("SLURM_PROCID") > 0
    )


def check_first(n_processes: int) -> None:
    """A ValueError where the environment says that this is a later one of several: it would train in silence."""
    for name, rank in _ranks().items():
        if rank:
            has = "the run has one" if n_processes == 1 else f"this one is to start all {n_processes}"
            raise ValueError(
                f"{name} is {rank} in the environment, as in one of several processes, and {has}; unset it, "
                "or give the --devices and --nodes that there are"
            )


def _ranks() -> dict[str, int]:
    """What the environment says of this process, by variable."""
    one = [name for name in dict.fromkeys(rank for rank, *_ in _VARIABLES.values()) if variable(name)][:1]
    return {name: whole(name) for name in one or ("NODE_RANK", "LOCAL_RANK")}


def variable(name: str) -> str:
    """What an environment variable holds; "" where it is not set, empty or blank."""
    return os.environ.get(name, "").strip()


def whole(name: str) -> int:
    """The number that an environment variable holds, 0 where it is not set or blank. ValueError for anything else."""
    value = variable(name) or "0"
    if not (value.isascii() and value.isdecimal()):
        raise ValueError(f"{name} is {value!r} in the environment; it should be a whole number from 0 on")
    return int(value)


def is_started() -> bool:
    """Whether `run` of another process started this one."""
    return bool(variable(_STARTED_BY_RUN))


def of_torchrun() -> dict[str, int]:
    """The settings `devices` and `nodes` of processes that torchrun started; empty in others."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return {}
    here, all_of_them = map(whole, ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    # torchrun sets all three: one alone is left over of another program.
    return {"devices": here, "nodes": all_of_them // here} if here and all_of_them else {}


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether torch.distributed raised this because of another process; gloo's errors have no type of their own."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def run(command: Sequence[str], devices: int, nodes: int) -> None:
    """Run `command` in `devices` processes, with the environment that Lightning reads its ranks from, to the end.

    With several nodes each has a `run` of its own. A process that fails ends them all; each is in a session of its own,
    and ends when this process does.

    Raises:
        ValueError: `find_place` does not find this machine's.
        LostProcess: one was killed, or another node's cannot be reached.
        SystemExit: one failed, and has said why.
        KeyboardInterrupt: when all have stopped.
    """
    first_rank, address = find_place(devices, nodes)
    processes = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # what a scheduler sends first, is for the processes as Ctrl-C is
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for local_rank in range(devices):
            variables = {
                **address, "WORLD_SIZE": devices * nodes, "RANK": first_rank + local_rank, "LOCAL_RANK": local_rank,
                _STARTED_BY_RUN: os.getpid(),
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
    """In a process that `run` started: end when the parent does, however that ended; DataLoader's processes too."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End one of several processes that has done its part. In the interpreter's own end torch.distributed takes down
    threads of gloo that may still run, and then aborts: what was finished would count as lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def find_place(devices: int, nodes: int) -> tuple[int, dict[str, str]]:
    """The rank of this machine's first process, and how all find each other: of several nodes from MASTER_ADDR,
    MASTER_PORT and NODE_RANK in the environment. A ValueError where these are missing or do not fit."""
    if nodes == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return 0, dict(zip(_ADDRESS, ("127.0.0.1", str(free.getsockname()[1]), "0")))
    missing = [name for name in _ADDRESS if not variable(name)]
    if missing:
        raise ValueError(
            f"nodes is {nodes}, and {', '.join(missing)} not in the environment: the first machine's address, a "
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
    """Until all have ended or one has failed; exit codes, 0 of those that are still running."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            time.sleep(0.5)  # what failed because of another failed with it
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
    """With what they started; SIGTERM would not end one that waits for another."""
    for process in processes:
        if process.returncode != 0:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
