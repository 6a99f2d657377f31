"""Training on several devices and machines, here processes: the numbers of one with the joined batch, and how it ends.

What a process does by itself is in test_train.py, what DDP and FSDP do to a model in test_distributed.py.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from features import feature
from repository import ROOT

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from trainings import BEST, LAST, TINY, assert_same_training, checkpoint

from motionrnn_ext.training import launchers, processes
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.train import train

PROGRAM = ("-m", "motionrnn_ext.cli", "train")
TWO = replace(TINY, devices=2)
# A module for --import: the process of rank $RANK_TO_STOP is killed in the eighth step, or Ctrl-C is pressed.
STOPPING = """
import os, signal, time
from motionrnn_ext.training.module import Training

true_step = Training.training_step

def step(self, frames, index):
    if self.global_step == 7 and os.environ.get("RANK_TO_STOP") == str(self.global_rank):
        if "CTRL_C" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    return true_step(self, frames, index)

Training.training_step = step
"""


# ---- What `run` makes of processes, of any kind


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time; rank = int(os.environ['RANK'])\n{code}"]


def test_run_places_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "RANK LOCAL_RANK NODE_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT"
    write = f"open(sys.argv[1] + str(rank), 'w').write(' '.join(os.environ[n] for n in '{names}'.split()))"
    processes.run_processes([*python(write), str(tmp_path / "one")], 2, 1)
    ports = set()
    for rank in (0, 1):
        *place, port = (tmp_path / f"one{rank}").read_text().split()
        assert place == [str(rank), str(rank), "0", "2", "127.0.0.1"]
        ports.add(port)
    assert len(ports) == 1
    for name, value in {"MASTER_ADDR": "first", "MASTER_PORT": "123", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    processes.run_processes([*python(write), str(tmp_path / "two")], 2, 2)
    for rank in (2, 3):
        assert (tmp_path / f"two{rank}").read_text() == f"{rank} {rank - 2} 1 4 first 123"


@pytest.mark.parametrize(
    ("code", "nodes", "error", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)", 1, processes.LostProcess,
         r"the process of rank 1 was lost \(killed by SIGKILL\)"),
        ("sys.exit(3) if rank else os.kill(os.getpid(), signal.SIGSEGV)", 1, processes.LostProcess,
         r"the process of rank 0 was lost \(killed by SIGSEGV\)"),
        ("sys.exit(3) if rank else time.sleep(60)", 1, processes.LostProcess, "^a process was lost"),
        ("sys.exit(3) if rank else time.sleep(60)", 2, processes.LostProcess, "on another machine was lost"),
        ("sys.exit(3 - rank)", 1, SystemExit, "^2$"),
        ("sys.exit(rank)", 1, SystemExit, "^1$"),
    ],
)  # fmt: skip
def test_one_that_fails_ends_all(
    code: str, nodes: int, error: type[BaseException], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message):
        processes.run_processes(python(code), 2, nodes)


def test_several_nodes_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "first")
    with pytest.raises(ValueError, match="nodes is 2, but the environment lacks MASTER_PORT, NODE_RANK"):
        processes.run_processes(["true"], 1, 2)


@pytest.mark.parametrize(
    "number, message", [("2", "it should be from 0 to 1 with 2 nodes"), ("x", "a whole number")]
)
def test_a_machines_number_is_checked(number: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "first", "MASTER_PORT": "1", "NODE_RANK": number}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        processes.run_processes(["true"], 1, 2)


def test_what_would_fail_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address of the other machine; the rank of another process, which would train in silence."""
    with pytest.raises(ValueError, match="nodes is 2"):
        train(replace(TINY, nodes=2), tmp_path / "run", command=["true"])
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="RANK is 1 in the environment, as in one of several processes"):
        train(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_end_with_their_parent_and_so_do_theirs(tmp_path: Path) -> None:
    code = (
        "import subprocess; from motionrnn_ext.training import processes; processes.end_with_parent()\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open(sys.argv[1] + str(rank), 'w').write(f'{os.getpid()} {child.pid} ')\n"
        "time.sleep(60)"
    )
    command = [*python(code), str(tmp_path / "pids")]
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from motionrnn_ext.training import processes; processes.run_processes({command}, 2, 1)",
        ]
    )
    files = [tmp_path / f"pids{rank}" for rank in (0, 1)]
    wait_until(lambda: all(file.exists() and file.read_text().endswith(" ") for file in files))
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert all(map(is_running, pids))
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(is_running, pids)))


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),  # Lightning
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"RANK": "0", "MOTIONRNN_EXT_PARENT": "1"}, False),
        ({"SLURM_PROCID": "0", "OMPI_COMM_WORLD_RANK": "1"}, False),  # mpirun in a batch script
        ({"PMI_RANK": "1"}, False),
        ({"RANK": " ", "MOTIONRNN_EXT_PARENT": " "}, True),
    ],
)
def test_the_first_process(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*MPI, *MPICH, "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "MOTIONRNN_EXT_PARENT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.is_first() == first


# ---- Who has started this process

# A batch script of SLURM's; what srun adds for its tasks.
BATCH = {
    "SLURM_JOB_ID": "77123", "SLURM_JOB_NAME": "mine", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "host[3-4]",
}  # fmt: skip
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
MPICH = {"PMI_RANK": "1", "MPI_LOCALRANKID": "1", "PMI_SIZE": "2"}
STALE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "gone", "MASTER_PORT": "1"}


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*BATCH, *STEP, *MPI, *MPICH, *STALE, "MOTIONRNN_EXT_PARENT", "TORCHELASTIC_RUN_ID"}:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "place"),
    [
        ({}, 2, 1, None),
        (BATCH, 1, 1, None),
        (BATCH, 2, 1, None),
        ({**BATCH, "SLURM_STEP_ID": "4294967291"}, 2, 1, None),  # the script as newer versions number it
        ({"SLURM_NTASKS": "2"}, 2, 1, None),
        (STEP, 1, 1, None),
        (STEP, 2, 1, ("srun", 0, 0, 2)),
        (STEP, 1, 2, ("srun", 0, 0, 2)),
        (STEP, 4, 2, None),  # a task on each machine
        ({**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, 2, 1, ("srun", 1, 1, 2)),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, 2, 1, None),
        (MPI, 2, 1, ("mpirun", 1, 1, 2)),
        ({**BATCH, **MPI}, 2, 1, ("mpirun", 1, 1, 2)),
        # What starts mpirun's tasks on another machine is a task of srun, too.
        ({**STEP, **MPI, "SLURM_STEP_NUM_TASKS": "1", "MASTER_ADDR": "first"}, 1, 2, ("mpirun", 1, 1, 2)),
        (MPICH, 2, 1, ("mpiexec", 1, 1, 2)),
        ({**STEP, "PMI_RANK": "0", "PMI_SIZE": "2"}, 2, 1, ("srun", 0, 0, 2)),  # srun --mpi=pmi2
        ({"TORCHELASTIC_RUN_ID": "x", **STALE}, 2, 1, None),  # torchrun's name alone
        (STALE, 2, 1, None),
        ({**STALE, "RANK": "", "SLURM_PROCID": ""}, 2, 1, None),
        ({**STALE, **STEP, "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, 2, 1, ("torchrun", 0, 0, 2)),
        ({**STALE, **STEP, "MOTIONRNN_EXT_PARENT": "1"}, 2, 1, ("motionrnn", 0, 0, 2)),
    ],
)
def test_what_counts_as_launched(
    environment: dict[str, str],
    devices: int,
    nodes: int,
    place: tuple[object, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launchers.launched(devices, nodes) == place


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "message"),
    [
        (
            STEP,
            3,
            1,
            r"srun has started 2 processes, and the run has 3 \(devices 3, nodes 1\); start as many",
        ),
        ({**STEP, "SLURM_LOCALID": "x"}, 2, 1, "SLURM_LOCALID is 'x' in the environment"),
        (MPI, 1, 2, "nodes is 2, but MASTER_ADDR"),
    ],
)
def test_launched_otherwise(
    environment: dict[str, str], devices: int, nodes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        launchers.launched(devices, nodes)


@pytest.mark.usefixtures("no_launcher")
def test_what_lightning_is_told_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_PROCID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    told = launchers.environment(launchers.launched(1, 2))
    assert (told.global_rank(), told.local_rank(), told.node_rank(), told.world_size()) == (1, 0, 1, 2)
    assert told.creates_processes_externally
    assert (told.main_address, told.main_port) == ("host3", 15000 + 77128 % 10000)
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "123")
    assert (told.main_address, told.main_port) == ("first", 123)


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize("environment", [BATCH, STALE])
def test_an_allocation_changes_nothing(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run's checkpoint lies where Lightning would take it from and write one to."""
    before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    weights = checkpoint(train(replace(TINY, steps=2), tmp_path / "plain", progress=False))["state_dict"]
    torch.save({"state_dict": {}}, tmp_path / "hpc_ckpt_3.ckpt")
    there = sorted(os.listdir(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = checkpoint(train(replace(TINY, steps=2), tmp_path / "run", progress=False))["state_dict"]
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert sorted(os.listdir(tmp_path)) == [*there, "run"]
    for name, value in before.items():
        assert os.environ.get(name) == environment.get(name, value)


def test_a_rank_left_over_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="RANK is 1 .*, but this one should start all 2; unset it"):
        train(TWO, tmp_path / "run", command=["true"])
    assert not (tmp_path / "run").exists()


# ---- Trainings


def start(*command: str, here: Path, **environment: object) -> subprocess.Popen[str]:
    """`motionrnn train` and the like, in `here`, which has the module `stopping`."""
    (here / "stopping.py").write_text(STOPPING)
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, *command], cwd=here, env={**os.environ, **path, **given}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def options(config: Config, here: Path, name: str = "run") -> list[str]:
    config.write(here / "settings.json")
    return ["--config", "settings.json", "--out", name, "--no-progress"]


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, errors = process.communicate(timeout=200)
    assert process.returncode == code, errors
    return errors if code else out


def assert_same_numbers(folder: Path, joined: Path) -> None:
    """Compare weights and validations in float32: 3e-8 is measured."""
    for name in (LAST, BEST):
        found, expected = (checkpoint(home / name)["state_dict"] for home in (folder, joined))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key)
    found, expected = (
        [row for row in csv.DictReader((home / "metrics.csv").open()) if row["val/mse"]]
        for home in (folder, joined)
    )
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected):
        for name in ("val/mse", "val/mae", "val/psnr", "val/ssim", "val/loss"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5), name


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, with the batches of two."""
    folder = tmp_path_factory.mktemp("runs") / "joined"
    train(replace(TINY, batch_size=2 * TINY.batch_size), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("runs")
    out = finish(start(*PROGRAM, *options(TWO, here), here=here))
    assert out.count("11 steps of 2 clips in each of 2 processes; everything goes to run") == 1
    assert out.count("next: motionrnn evaluate run") == 1
    return here / "run"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["none", pytest.param("srun", marks=pytest.mark.nightly)])
def test_two_devices_in_an_allocation(launcher: str, unbroken: Path, tmp_path: Path) -> None:
    """A batch script without srun, where the run starts its own processes; and two tasks of srun, taken as they are."""
    command = [*PROGRAM, *options(TWO, tmp_path)]
    places = (
        [BATCH] if launcher == "none" else [{**STEP, "SLURM_PROCID": r, "SLURM_LOCALID": r} for r in "01"]
    )
    here = {"SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_ID": str(os.getpid())}
    started = [start(*command, here=tmp_path, **{**place, **here}) for place in places]
    told = [finish(process) for process in started]
    assert "next: motionrnn evaluate run" in told[0] and told[1:] in ([], [""])
    assert_same_training(unbroken, tmp_path / "run")


@pytest.mark.slow
@feature("ddp", on=["cpu"])
def test_two_devices_have_the_numbers_of_one_with_the_joined_batch(unbroken: Path, joined: Path) -> None:
    assert_same_numbers(unbroken, joined)


@pytest.mark.slow
def test_torchrun_says_how_many_there_are(tmp_path: Path) -> None:
    """MIM with two frames leaves parameters without a gradient."""
    config = replace(TINY, predictor="mim", n_input=1, n_output=1)
    train(replace(config, batch_size=2 * TINY.batch_size), tmp_path / "joined", progress=False)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finish(start(*torchrun, *PROGRAM, *options(config, tmp_path), here=tmp_path))
    assert Config.read(tmp_path / "run" / "config.json") == replace(config, devices=2)
    assert_same_numbers(tmp_path / "run", tmp_path / "joined")


def test_torchrun_is_not_contradicted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from motionrnn_ext.cli import main

    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}.items():
        monkeypatch.setenv(name, value)
    assert processes.of_torchrun() == {"devices": 2, "nodes": 3}
    assert main(["train", "--devices", "1"]) == 2
    assert "--devices is 1, and torchrun has started 2; leave it out" in capsys.readouterr().err


@pytest.fixture
def two_nodes() -> Iterator[list[dict[str, object]]]:
    """The variables that Lightning reads a machine's place from."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": rank} for rank in (0, 1)]


@pytest.mark.nightly
def test_two_machines(two_nodes: list[dict[str, object]], joined: Path, tmp_path: Path) -> None:
    command = [*PROGRAM, *options(replace(TINY, nodes=2), tmp_path)]
    for process in [start(*command, here=tmp_path, **place) for place in two_nodes]:
        finish(process)
    assert_same_numbers(tmp_path / "run", joined)


@pytest.mark.slow
def test_two_machines_and_one_loses_its_process(two_nodes: list[dict[str, object]], tmp_path: Path) -> None:
    command = [*PROGRAM, "--import", "stopping", *options(replace(TINY, nodes=2), tmp_path)]
    kill = {"RANK_TO_STOP": 1}
    first, second = (
        finish(process, processes.LOST)
        for process in [start(*command, here=tmp_path, **place, **kill) for place in two_nodes]
    )
    kept = (
        "the last checkpoint is of step 6; go on with: motionrnn train --import stopping --out run --resume"
    )
    assert f"a process on another machine was lost or cannot be reached; {kept} (on every machine)\n" in first
    assert f"the process of rank 1 was lost (killed by SIGKILL); {kept} (on every machine)\n" in second


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_lost_process_ends_the_training_in_one_line_and_it_resumes_to_the_same_bits(
    rank: int, unbroken: Path, tmp_path: Path
) -> None:
    command = [*PROGRAM, "--import", "stopping", *options(TWO, tmp_path)]
    process = start(*command, here=tmp_path, RANK_TO_STOP=rank)
    errors = finish(process, processes.LOST)
    lost = f"the process of rank {rank} was lost (killed by SIGKILL); the last checkpoint is of step 6"
    line = re.escape(f"motionrnn train: error: {lost}; go on with: motionrnn ") + r"(train .* --resume)\n"
    told = re.fullmatch(line, errors)
    assert told, errors
    finish(start("-m", "motionrnn_ext.cli", *shlex.split(told[1]), "--no-progress", here=tmp_path))
    assert_same_training(unbroken, tmp_path / "run")


@pytest.mark.slow
def test_interrupted(unbroken: Path, tmp_path: Path) -> None:
    """Ctrl-C is for the parent, its processes are in sessions of their own; one of them waits for the other here."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored after a &
    )
    program += "from motionrnn_ext.cli import main; sys.exit(main())"
    (tmp_path / "program.py").write_text(program)
    command = ("program.py", "train", "--import", "stopping")
    process = start(*command, *options(TWO, tmp_path), here=tmp_path, RANK_TO_STOP=1, CTRL_C=1)
    errors = finish(process, 130)
    assert errors == "\ngo on with: motionrnn train --import stopping --out run --resume\n\nstopped\n"
    finish(start(*command, "--out", "run", "--resume", "--no-progress", here=tmp_path))
    assert_same_training(unbroken, tmp_path / "run")
