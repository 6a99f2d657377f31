"""Run programs one after the other or side by side against one clock, each with a time limit and a log."""

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


@dataclass
class Runner:
    """Runs steps; each leaves its log in the folder `logs`, and (name, outcome, seconds) in `outcomes`."""

    logs: Path
    work: Path
    seconds: float
    started: float = field(default_factory=time.monotonic)
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def step(self, name: str, command: Sequence[object], limit: float, **env: str) -> bool:
        """Run a command in the folder `work`, which has no motionrnn_ext of its own; return whether it passed."""
        began, limit = time.monotonic(), min(limit, self.left())
        if limit < 1:
            return self.record(name, "no time left")
        log = self.logs / f"{name.replace(' ', '-').replace('/', '-of-')}.log"
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    [str(part) for part in command], cwd=self.work, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **env},
                )  # fmt: skip
            except OSError as error:
                return self.record(name, f"failed: {error}")
            try:
                status = process.wait(limit)
                outcome = "ok" if status == 0 else f"failed with {status}, see {log.name}"
            except subprocess.TimeoutExpired:
                outcome = f"stopped after {limit:.0f} s, see {log.name}"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its session, children included
                process.wait()
        last_lines = log.read_text(errors="replace").splitlines()[-12:] if outcome != "ok" else []
        return self.record(name, outcome, time.monotonic() - began, last_lines)

    def record(self, name: str, outcome: str, seconds: float = 0, last_lines: Sequence[str] = ()) -> bool:
        with self.lock:
            self.outcomes.append((name, outcome, f"{seconds:.0f}"))
            print(f"{name}: {outcome} ({seconds:.0f} s)", flush=True)
            print("".join(f"    {line[:180]}\n" for line in last_lines), end="", flush=True)
        return outcome == "ok"

    def passed(self) -> bool:
        return all(outcome == "ok" or outcome.startswith("not run") for _, outcome, _ in self.outcomes)
