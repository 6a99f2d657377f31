"""Which program has started this process as one of several, as its environment says, and what Lightning is told of it.

Lightning left to itself takes the variables of a SLURM allocation for those of a task that srun has started, and
installs handlers that write checkpoints into the working directory and put the job back into the queue. Here a process
counts as one of several only where the launcher's variables say so, and their number is the run's; what is left over of
another program, or describes the allocation alone, is passed over, and the processes are started by `processes.run`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from . import processes

# By launcher: the variables of a process's rank, its rank on its machine, and the number of all.
_VARIABLES = {
    "motionrnn": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
}
_FIRST_STEP_OF_SLURM_ITSELF = 0xFFFFFFF0  # such as that of a batch script


class Place(NamedTuple):
    """Where one of several processes stands."""

    launcher: str
    rank: int
    local_rank: int
    n_processes: int


def launched(devices: int, nodes: int) -> Place | None:
    """The place of this process among `devices * nodes`; None where no other program has started them.

    Raises:
        ValueError: a launcher has started another number of processes, or says nowhere how they find each other.
    """
    wanted, found = devices * nodes, _started_by()
    if wanted == 1 or found is None:
        return None
    if found.n_processes == wanted:
        if nodes > 1 and found.launcher in ("jsrun", "mpirun") and not os.environ.get("MASTER_ADDR"):
            raise ValueError(
                f"nodes is {nodes}, and MASTER_ADDR, the first machine's address, not in the environment of what "
                f"{found.launcher} has started"
            )
        return found
    if found.n_processes in (1, nodes):  # one on each machine starts the others
        return None
    raise ValueError(
        f"{found.launcher} has started {found.n_processes} processes, and the run has {wanted} (devices {devices}, "
        f"nodes {nodes}); start as many, or one alone"
    )


def _started_by() -> Place | None:
    launchers = []
    if processes.is_started():
        launchers.append("motionrnn")
    elif processes.of_torchrun():
        launchers.append("torchrun")
    else:
        launchers += ["srun"] if _is_task_of_srun() else []
        launchers += ["jsrun", "mpirun"]
    for launcher in launchers:
        rank, local_rank, size = _VARIABLES[launcher]
        if launcher == "srun" and not os.environ.get(size):
            size = "SLURM_NTASKS"
        if os.environ.get(rank) and os.environ.get(size):
            return Place(launcher, *(processes.whole(name) for name in (rank, local_rank, size)))
    return None


def _is_task_of_srun() -> bool:
    """Whether srun has started this process: a batch script has a SLURM_PROCID, too, but is no step of the job."""
    step = os.environ.get("SLURM_STEP_ID") or os.environ.get("SLURM_STEPID") or ""
    return bool(os.environ.get("SLURM_PROCID")) and (
        (step.isdecimal() and int(step) < _FIRST_STEP_OF_SLURM_ITSELF) or processes.whole("SLURM_PROCID") > 0
    )


def environment(place: Place | None) -> ClusterEnvironment:
    """What Lightning is to go by, never its own search for a scheduler."""
    return LightningEnvironment() if place is None else _Launched(place)


class _Launched(ClusterEnvironment):
    """The place of a process that is there already, for Lightning."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        rank_zero_only.rank = place.rank  # type: ignore[attr-defined]

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        given = os.environ.get("MASTER_ADDR")
        machines = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST")
        if given or self._place.launcher != "srun" or not machines:
            return given or "127.0.0.1"
        return SLURMEnvironment.resolve_root_node_address(machines)

    @property
    def main_port(self) -> int:
        if os.environ.get("MASTER_PORT"):
            return processes.whole("MASTER_PORT")
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("LSB_JOBID") or ""
        step = os.environ.get("SLURM_STEP_ID") or ""
        return 15000 + sum(int(number) for number in (job, step) if number.isdecimal()) % 10000

    @staticmethod
    def detect() -> bool:
        return _started_by() is not None

    def world_size(self) -> int:
        return self._place.n_processes

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        rank_zero_only.rank = rank  # type: ignore[attr-defined]

    def local_rank(self) -> int:
        return self._place.local_rank

    def node_rank(self) -> int:
        name = {"srun": "SLURM_NODEID", "torchrun": "GROUP_RANK"}.get(self._place.launcher, "NODE_RANK")
        return processes.whole(name)
