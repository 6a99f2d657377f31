"""Wrong instructions: a kernel's PTX with one instruction changed, to find out whether tests notice it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

Change = tuple[str, str]  # what kind of mistake, and the line with it


@dataclass(frozen=True)
class Mutant:
    kind: str
    line: int  # of the kernel's text, from 0
    before: str
    after: str
    source: str  # the .loc before it: file, line and column of the source

    def apply(self, ptx: str) -> str:
        lines = ptx.split("\n")
        lines[self.line] = self.after
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.kind} | {self.before.strip()} | {self.after.strip()} | {self.source}"


# One operation for another, as an author could confuse them.
_CONFUSED = (
    (r"\badd\.f32", "sub.f32"),
    (r"\bsub\.f32", "add.f32"),
    (r"\bmul\.f32", "add.f32"),
    (r"\bneg\.f32", "abs.f32"),
    (r"\badd\.s(32|64)", r"sub.s\1"),
    (r"\bmax\.", "min."),
    (r"\bmin\.", "max."),
    (r"\bsetp\.lt", "setp.le"),
    (r"\bsetp\.le", "setp.lt"),
    (r"\bsetp\.gt", "setp.ge"),
    (r"\bsetp\.ge", "setp.gt"),
    (r"\bsetp\.eq", "setp.ne"),
    (r"\bsetp\.ne", "setp.eq"),
    (r"\band\.pred", "or.pred"),
    (r"\bor\.pred", "and.pred"),
    (r"\bshr\.s", "shr.u"),
    (r"\bshr\.u", "shr.s"),
    (r"@(%p\d+)", r"@!\1"),
    (r"@!(%p\d+)", r"@\1"),
)


def _confused(line: str, draw: random.Random) -> Iterator[Change]:
    for pattern, other in _CONFUSED:
        yield "operation", re.sub(pattern, other, line, count=1)


def _dropped(line: str, draw: random.Random) -> Iterator[Change]:
    """An instruction that has an effect other than on its own registers, and the one that sums matrices."""
    if re.match(r"\s*(@!?%p\d+ )?(st\.|red\.|atom\.|bar\.|mma\.)", line):
        yield "dropped", ""


def _moved(line: str, draw: random.Random) -> Iterator[Change]:
    """An address, by an element."""
    access = re.match(
        r"\s*(?:@!?%p\d+ )?(?:ld|st|red|atom)\.(?:global|shared)\S*?(\.v[24])?\.[a-z]+(\d+)\s", line
    )
    address = re.search(r"\[(%\w+)(?:\+(-?\d+))?\]", line)
    if access and address:
        elements = int((access[1] or ".v1")[2:])
        step = elements * int(access[2]) // 8
        offset = int(address[2] or 0) + draw.choice((-step, step))
        yield "address", f"{line[: address.start()]}[{address[1]}+{offset}]{line[address.end() :]}"


def _swapped(line: str, draw: random.Random) -> Iterator[Change]:
    """Two operands of one instruction, or two registers of a vector or fragment."""
    vectors = list(re.finditer(r"\{([^{}]+)\}", line))
    for vector in vectors[1:3] if line.lstrip().startswith("mma") else vectors[:1]:
        registers = [r.strip() for r in vector[1].split(",")]
        if len(set(registers)) > 1:
            i, j = draw.sample(range(len(registers)), 2)
            registers[i], registers[j] = registers[j], registers[i]
            yield "registers", f"{line[: vector.start(1)]}{', '.join(registers)}{line[vector.end(1) :]}"
    yield "operands", re.sub(r"\b(sub|selp|cvt)(\.\S+\s+\S+), (\S+), (\S+?)([,;])", r"\1\2, \4, \3\5", line)


def _other_number(line: str, draw: random.Random) -> Iterator[Change]:
    if re.match(r"\s*shfl", line):
        yield "lane", re.sub(r", (\d+), (\d+), (\S+);", lambda m: f", {int(m[1]) ^ 3}, {m[2]}, {m[3]};", line)
    elif number := re.search(r", (-?\d+);", line):
        value = int(number[1]) + draw.choice((-1, 1))
        yield "number", f"{line[: number.start()]}, {value};{line[number.end() :]}"
    if re.match(r"\s*fma\.rn\.f32", line):
        yield "addend", re.sub(r", (%f\d+);", ", 0f00000000;", line)


_MAKERS: tuple[Callable[[str, random.Random], Iterator[Change]], ...] = (
    _confused, _dropped, _moved, _swapped, _other_number,
)  # fmt: skip
_ADDEND = re.compile(r"\s*fma\.rn\.f32 .*, (%f\d+);")


@cache
def _zeros(ptx: str) -> set[str]:
    """Return the registers of floats to which a kernel assigns nothing but 0: another 0 for them changes nothing."""
    assigned: dict[str, set[str]] = {}
    for line in ptx.split("\n"):
        # The first operand, of which matrix instructions and loads have several in braces.
        if found := re.match(r"\s*(?:@!?%p\d+ )?(\S+)\s+(\{[^}]*\}|%f\d+),?(.*)", line):
            value = found[3].strip(" ;") if found[1] == "mov.f32" else line
            for register in re.findall(r"%f\d+", found[2]):
                assigned.setdefault(register, set()).add(value)
    return {register for register, values in assigned.items() if values == {"0f00000000"}}


# They carry values from place to place; what depends on them is changed elsewhere.
_LEFT_ALONE = re.compile(r"\s*(@!?%p\d+ )?(ld\.param|mov\.|cvta|bra|ret)|\s*[.{}/$]|\s*$")


def draw_mutant(ptx: str, draw: random.Random) -> Mutant:
    """Return a mutant of a kernel, an instruction and then a change of it drawn at random."""
    lines = ptx.split("\n")
    while True:
        number = draw.randrange(len(lines))
        line = lines[number]
        if _LEFT_ALONE.match(line):
            continue
        changes = [change for make in _MAKERS for change in make(line, draw) if change[1] != line]
        if (addend := _ADDEND.match(line)) and addend[1] in _zeros(ptx):
            changes = [change for change in changes if change[0] != "addend"]
        if changes:
            kind, after = draw.choice(changes)
            above = reversed(lines[:number])
            source = next((text.strip() for text in above if text.lstrip().startswith(".loc")), "")
            return Mutant(kind, number, line, after, source)
