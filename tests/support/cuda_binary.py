"""Reads a library's CUDA kernels: what each takes of a multiprocessor, and what instructions it is made of."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from repository import ROOT, TESTS

Row = dict[str, Any]  # of a kernel on an architecture
Table = dict[str, dict[str, Row]]  # by kernel, then architecture


class ToolMissing(Exception):
    """The library cannot be read here; the message says what is missing."""


# ---- kernels -----------------------------------------------------------------------------------------------

# Instructions that are counted, by the start of their SASS name; an LDG.128 is an LDG, too.
COUNTED = {
    "LDG": r"LDG",
    "LDG.64": r"LDG\S*\.64",
    "LDG.128": r"LDG\S*\.128",
    "STG": r"STG",
    "STG.128": r"STG\S*\.128",
    "LDS": r"LDS",
    "STS": r"STS",
    "HMMA": r"HMMA",
    "FFMA": r"FFMA",
    "MUFU": r"MUFU",
    "SHFL": r"SHFL",
    "RED": r"RED",
    "RED.vector": r"REDG?\S*x[248]\b",
    "ATOM": r"ATOM",
    "LDL/STL": r"LDL|STL",
    "BAR": r"BAR",
}
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


@functools.cache
def counted_as(instruction: str) -> list[str]:
    return ["instructions", *(name for name, pattern in COUNTED.items() if re.match(pattern, instruction))]


BRANCHES = ("BRA", "BRX", "JMP", "JMX", "BREAK", "EXIT", "CALL", "RET")


class Convergence:
    """The convergence regions of a function, as its SASS is read line by line.

    BSSY names the barrier where lanes of a warp meet again. Between the first branch after it and that place they may
    be apart. WARPSYNC and BAR.SYNC bring them together before.
    """

    LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*)")

    def __init__(self) -> None:
        # By barrier, the address where its region ends: of those before their first branch, and behind it.
        self.begun: dict[str, int] = {}
        self.apart: dict[str, int] = {}

    def is_divided(self, line: str) -> bool:
        """Return whether the line is an instruction of the whole warp at which lanes may be apart."""
        found = self.LINE.match(line)
        if not found:
            return False
        address, opcode, operands = int(found[1], 16), found[2].split(".")[0], found[3]
        self.apart = {barrier: end for barrier, end in self.apart.items() if end > address}
        if opcode == "BSSY":
            barrier, end = re.findall(r"\bB\d+|0x[0-9a-f]+", operands)
            self.begun[barrier] = int(end, 16)
        elif opcode in BRANCHES:
            self.apart |= self.begun
            self.begun = {}
        elif opcode == "BSYNC":
            barrier = re.findall(r"\bB\d+", operands)[0]
            self.begun.pop(barrier, None), self.apart.pop(barrier, None)
        elif opcode in ("WARPSYNC", "BAR"):
            self.begun, self.apart = {}, {}
        return opcode in ("HMMA", "MOVM") and bool(self.apart)


class Kernel(NamedTuple):
    """A kernel's name taken apart: warp_forward<float, 32, true> is ("warp_forward", ("float", "32", "true"))."""

    stem: str
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, name: str) -> Kernel:
        stem, _, rest = name.partition("<")
        return cls(stem, tuple(rest.removesuffix(">").split(", ")) if rest else ())


def find_tool(name: str) -> str:
    """NVIDIA's disassembler: on PATH, in the CUDA toolkit, or in an installed triton, which brings its own."""
    folders = [
        os.environ.get("PATH", ""),
        os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"),
    ]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise ToolMissing(f"{name} is neither on PATH nor in CUDA_HOME nor in an installed triton")
    return found


def run(*command: str, feed: str | None = None) -> str:
    """Return what a command prints. cuobjdump finds nvdisasm on PATH only."""
    env = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(command[0]), os.environ.get("PATH", "")])}
    done = subprocess.run(command, input=feed, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{os.path.basename(command[0])} failed: {done.stderr.strip()}")
    return done.stdout


def short_names(mangled: set[str]) -> dict[str, str]:
    """Demangled, without namespaces and parameters."""
    demangler = shutil.which("c++filt")
    if demangler is None:
        raise ToolMissing("c++filt is not on PATH (package binutils)")
    names = sorted(mangled)
    return {
        name: shorten(full) for name, full in zip(names, run(demangler, feed="\n".join(names)).splitlines())
    }


def shorten(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"motionrnn_ext::(\w+::)?", "", name)
    depth = 0
    for i, character in enumerate(name):  # the parameters begin at the first ( outside of < >
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            name = name[:i]
            break
    return name.replace("__nv_bfloat16", "bf16").replace("__half", "half")


def read_library(library: Path) -> tuple[str, Table]:
    """The nvcc that compiled a library and, for every kernel and architecture in it, its row."""
    cuobjdump = find_tool("cuobjdump")
    find_tool("nvdisasm")
    rows: dict[tuple[str, str], Row] = {}
    compilers = set()
    for key, line in sections(run(cuobjdump, "-res-usage", str(library)), r"Function (\S+):"):
        if found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            registers, stack, shared = map(int, found.groups())
            # Since sm_90 this counts what the system keeps in every block.
            shared -= RESERVED_SHARED if int(key[1]) >= 90 and shared >= RESERVED_SHARED else 0
            rows[key] = {"registers": registers, "stack": stack, "shared": shared, "block": 1024}
    attribute = ""
    for key, line in sections(run(cuobjdump, "-elf", str(library)), r"^\.nv\.info\.(\S+)"):
        if found := re.search(r"Tool Version:.* V([\d.]+)", line):
            compilers.add(found[1])
        if found := re.search(r"Attribute:\s+(\S+)", line):
            attribute = found[1]
        if attribute == "EIATTR_MAX_THREADS" and (found := re.search(r"Value:\s+0x(\w+)", line)):
            rows[key]["block"] = int(found[1], 16)  # of __launch_bounds__
    counts: dict[tuple[str, str], Counter[str]] = {key: Counter() for key in rows}
    regions = {key: Convergence() for key in rows}
    for key, line in sections(run(cuobjdump, "-sass", str(library)), r"Function : (\S+)"):
        if (found := INSTRUCTION.match(line)) and found[1] != "NOP":
            counts[key].update(counted_as(found[1]))
            counts[key]["divided"] += regions[key].is_divided(line)
    if not rows:
        raise ToolMissing(f"{library.name} has no compiled kernels")
    names, launches = short_names({mangled for mangled, _ in rows}), launch_shapes()
    table: Table = {}
    for key in sorted(rows, key=lambda key: (names[key[0]], int(key[1]))):
        name, row = names[key[0]], rows[key]
        for launch in [launch for start, launch in launches.items() if re.match(rf"{start}\b", name)]:
            row["block"], row["shared"] = launch.threads, row["shared"] + launch.dynamic_shared
        fraction, limit = occupancy(int(key[1]), row["block"], row["registers"], row["shared"])
        row |= {"occupancy": round(fraction, 3), "limit": limit}
        found = {what: n for what in ("instructions", "divided", *COUNTED) if (n := counts[key][what])}
        table.setdefault(name, {})[key[1]] = row | found
    return ", ".join(sorted(compilers)), table


def sections(text: str, heading: str) -> Iterator[tuple[tuple[str, str], str]]:
    """The lines of a cuobjdump, each with the (function, architecture) that it is about."""
    pattern = re.compile(heading)
    function = architecture = ""
    for line in text.splitlines():
        if line.startswith("arch = sm_"):
            architecture = line.removeprefix("arch = sm_")
        elif found := pattern.search(line):
            function = found[1]
        else:
            yield (function, architecture), line


# ---- occupancy ---------------------------------------------------------------------------------------------

RESERVED_SHARED = 1024  # per block, since sm_80


class Multiprocessor(NamedTuple):
    """The CUDA programming guide's technical specifications per compute capability."""

    warps: int
    blocks: int
    shared: int


MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 164 * 1024),
    86: Multiprocessor(48, 16, 100 * 1024),
    89: Multiprocessor(48, 24, 100 * 1024),
    90: Multiprocessor(64, 32, 228 * 1024),
    100: Multiprocessor(64, 32, 228 * 1024),
    103: Multiprocessor(64, 32, 228 * 1024),
    120: Multiprocessor(48, 24, 100 * 1024),
    121: Multiprocessor(48, 24, 100 * 1024),
}


def occupancy(architecture: int, block: int, registers: int, shared: int) -> tuple[float, str]:
    """The share of a multiprocessor's warps that can be resident, and what limits it."""
    has = MULTIPROCESSORS[architecture]
    warps = -(-block // 32)
    per_warp = -(-max(registers, 1) * 32 // 256) * 256  # allocated in units of 256
    warps_by_registers = 65536 // 4 // per_warp * 4  # each of the four schedulers has its own
    if -(-warps // 4) * 4 * per_warp > 65536:  # refused by the hardware
        warps_by_registers = 0
    per_block = -(-(shared + RESERVED_SHARED) // 128) * 128
    blocks = {
        "warps": has.warps // warps,
        "blocks": has.blocks,
        "registers": warps_by_registers // warps,
        "shared memory": has.shared // per_block,
    }
    limit = min(blocks, key=lambda name: blocks[name])
    return blocks[limit] * warps / has.warps, limit


class Launch(NamedTuple):
    threads: int
    dynamic_shared: int


def launch_shapes() -> dict[str, Launch]:
    """Return what launch_shapes.cu, compiled from the kernels' own headers, prints, by the start of a kernel's name."""
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "launch_shapes")
        flags = ("-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_80", f"-I{ROOT / 'csrc'}", "-o", program)
        run(find_tool("nvcc"), *flags, str(TESTS / "support" / "launch_shapes.cu"))
        lines = [line.split(" ", 2) for line in run(program).splitlines()]
    return {start: Launch(int(threads), int(shared)) for threads, shared, start in lines}
