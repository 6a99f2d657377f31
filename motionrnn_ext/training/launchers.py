"""The launcher (torchrun, srun, ...) that started this process as one of several, and its description for Lightning.

Lightning's own detection mistakes the variables of a SLURM allocation for those of a task that srun has started. It
then installs handlers that write checkpoints to the working directory and requeue the job. Here a process counts as
one of several only if its launcher's variables say so and their number is the run's. Variables that another program
left behind, or that describe only the allocation, are ignored, and `processes.run_processes` starts the processes.
"""

from __future__ import annotations

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from . import processes
from .processes import variable


def launched(devices: int, nodes: int) -> processes.Place | None:
    """Return the place of this process among `devices * nodes`, or None if no launcher has started them.

    Raises:
        ValueError: a launcher has started another number of processes, or has not set the first machine's address.
    """
    wanted, found = devices * nodes, processes.started_by()
    if wanted == 1 or found is None:
        return None
    if found.n_processes == wanted:
        if nodes > 1 and found.launcher in ("jsrun", *processes.MPI) and not variable("MASTER_ADDR"):
            raise ValueError(
                f"nodes is {nodes}, but MASTER_ADDR, the first machine's address, is not set for the processes that "
                f"{found.launcher} has started"
            )
        return found
    if found.n_processes in (1, nodes):  # the one on each machine starts the others
        return None
    raise ValueError(
        f"{found.launcher} has started {found.n_processes} processes, and the run has {wanted} (devices {devices}, "
        f"nodes {nodes}); start as many, or one alone"
    )


def environment(place: processes.Place | None) -> ClusterEnvironment:
    """Return the environment for Lightning, which otherwise searches for a scheduler itself."""
    return LightningEnvironment() if place is None else _Launched(place)


class _Launched(ClusterEnvironment):
    """The place of a process that a launcher has started, in the form that Lightning reads."""

    def __init__(self, place: processes.Place) -> None:
        super().__init__()
        self._place = place
        rank_zero_only.rank = place.rank  # type: ignore[attr-defined]

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        given = variable("MASTER_ADDR")
        machines = variable("SLURM_STEP_NODELIST") or variable("SLURM_NODELIST")
        if given or self._place.launcher != "srun" or not machines:
            return given or "127.0.0.1"
        return SLURMEnvironment.resolve_root_node_address(machines)

    @property
    def main_port(self) -> int:
        if variable("MASTER_PORT"):
            return processes.whole("MASTER_PORT")
        job = variable("SLURM_JOB_ID") or variable("LSB_JOBID")
        step = variable("SLURM_STEP_ID")
        return 15000 + sum(int(number) for number in (job, step) if number.isdecimal()) % 10000

    @staticmethod
    def detect() -> bool:
        return processes.started_by() is not None

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
