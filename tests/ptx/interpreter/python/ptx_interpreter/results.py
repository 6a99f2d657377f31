"""What the interpreter found: mistakes, launches, counts of every instruction, instructions that were executed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """A mistake of a kernel, with the first place where it was seen and how often it was."""

    kind: str
    kernel: str
    instruction: str
    detail: str
    file: str
    line: int
    count: int

    def __str__(self) -> str:
        place = f"{Path(self.file).name}:{self.line}" if self.file else ""
        parts = (self.kind, self.kernel, self.instruction, place, self.detail, f"{self.count} times")
        return " | ".join(part for part in parts if part)


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int

    @property
    def blocks(self) -> int:
        x, y, z = self.grid
        return x * y * z


@dataclass(frozen=True)
class InstructionCounts:
    """What one instruction did in all launches.

    issued: times that a warp issued it. lanes: active lanes, summed. requests: times with at least one active lane.
    sectors: of 32 bytes, that its global accesses touched, and `ideal_sectors` that dense ones would have. lines: of
    128 bytes. wavefronts: passes over shared memory, and `ideal_wavefronts` that accesses without bank conflicts take.
    """

    place: int
    kind: str
    issued: int
    lanes: int
    requests: int
    sectors: int
    ideal_sectors: int
    wavefronts: int
    ideal_wavefronts: int
    lines: int
    line: int
    file: str
    text: str


@dataclass(frozen=True)
class KernelCounts:
    kernel: str
    launches: int
    blocks: int
    warps: int
    instructions: list[InstructionCounts]

    def total(self, what: str, kinds: Iterable[str] | None = None) -> int:
        """Return the sum of a count over the instructions of these kinds, or over all."""
        return sum(getattr(i, what) for i in self.instructions if kinds is None or i.kind in kinds)


@dataclass
class Kernel:
    """How much of a kernel has been executed."""

    launched: bool
    instructions: int
    missed: dict[int, str]  # place of an instruction that was never executed -> its text and line of source


@dataclass
class Coverage:
    """Which of the loaded kernels have been launched, and how much of them has been executed, by kernel."""

    kernels: dict[str, Kernel] = field(default_factory=dict)

    def merge(self, other: Coverage) -> None:
        """Add what another run executed of the same kernels."""
        for name, kernel in other.kernels.items():
            mine = self.kernels.setdefault(name, kernel)
            mine.launched = mine.launched or kernel.launched
            mine.missed = {place: text for place, text in mine.missed.items() if place in kernel.missed}

    @property
    def never_launched(self) -> list[str]:
        return sorted(name for name, kernel in self.kernels.items() if not kernel.launched)

    @property
    def any_launched(self) -> bool:
        return len(self.never_launched) < len(self.kernels)

    @property
    def share(self) -> float:
        """The share of all instructions that has been executed, those of kernels that were never launched included."""
        count = sum(kernel.instructions for kernel in self.kernels.values())
        return 1 - sum(len(kernel.missed) for kernel in self.kernels.values()) / max(count, 1)

    def __str__(self) -> str:
        launched = len(self.kernels) - len(self.never_launched)
        return (
            f"{launched} of {len(self.kernels)} kernels launched, {self.share:.1%} of instructions executed"
        )

    def as_json(self) -> dict[str, Any]:
        return {name: [k.launched, k.instructions, k.missed] for name, k in self.kernels.items()}

    @classmethod
    def from_json(cls, kernels: dict[str, Any]) -> Coverage:
        return cls({
            name: Kernel(launched, instructions, {int(place): text for place, text in missed.items()})
            for name, (launched, instructions, missed) in kernels.items()
        })  # fmt: skip
