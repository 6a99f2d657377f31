"""Programs run one after the other or side by side against one clock, each with a time limit, a log and an outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


@dataclass
class Runner:
    """Runs steps against one clock; `outcomes` has (name, outcome, seconds) of each."""

    out: Path
    work: Path
    seconds: float
    started: float = field(default_factory=time.monotonic)
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def step(self, name: str, command: Sequence[object], limit: float, log: Path, **env: str) -> bool:
        """Run a command in a folder without a motionrnn_ext of its own; whether it passed."""
        began, limit = time.monotonic(), min(limit, self.left())
        if limit < 1:
            return self.record(name, "no time left")
        with log.open("ab") as output:
            try:
                process = self.start(command, output, **env)
            except OSError as error:
                return self.record(name, f"failed: {error}")
            try:
                status = process.wait(limit)
                outcome = "ok" if status == 0 else f"failed with {status}, see {log.name}"
            except subprocess.TimeoutExpired:
                outcome = f"stopped after {limit:.0f} s, see {log.name}"
            finally:
                stop(process)
        return self.record(name, outcome, time.monotonic() - began, log)

    def start(self, command: Sequence[object], output: BinaryIO, **env: str) -> subprocess.Popen[bytes]:
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "TRITON_CACHE_DIR": str(self.work / "triton"),
        }
        return subprocess.Popen(
            [str(part) for part in command], cwd=self.work, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **caches, **env},
        )  # fmt: skip

    def record(self, name: str, outcome: str, seconds: float = 0, log: Path | None = None) -> bool:
        with self.lock:
            self.outcomes.append((name, outcome, f"{seconds:.0f}"))
            steps = "".join("\t".join(step) + "\n" for step in self.outcomes)
            (self.out / "steps.tsv").write_text(steps)
            print(f"{name}: {outcome} ({seconds:.0f} s)", flush=True)
            if outcome != "ok" and log is not None:
                print(*[f"    {line[:180]}" for line in _last_lines(log)], sep="\n", flush=True)
        return outcome == "ok"

    def passed(self) -> bool:
        return all(outcome == "ok" or outcome.startswith("not run") for _, outcome, _ in self.outcomes)


def stop(process: subprocess.Popen[bytes]) -> None:
    """With all its children: they are a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_lines(log: Path, count: int = 12) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:]
