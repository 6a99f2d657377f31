"""Prints what the PTX interpreter reports of small kernels with a mistake each (tests/support/emulator_mistakes.cu).

    python tests/ptx/mistakes.py FOLDER 80|90 NAME ...

FOLDER is the build of tests/ptx. The output is JSON: of each name, the reports with the mistake and those without it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

from on_ptx import ptx_files, start

LIBRARY = "ptx_mistakes"
THREADS, ALIGNMENT = 64, 256


def main(folder: Path, architecture: int, names: list[str]) -> None:
    ptx = start(folder, architecture)
    for path in ptx_files(folder, LIBRARY, architecture):
        ptx.load_file(path)
    run = ctypes.CDLL(str(folder / f"lib{LIBRARY}.so")).run_mistake
    run.restype, run.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]

    size = THREADS * ctypes.sizeof(ctypes.c_float)
    memory = ctypes.create_string_buffer(size + ALIGNMENT)
    address = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
    ptx.register(address, size)

    def reports(name: str, right: bool) -> list[str]:
        ctypes.memset(address, 0, size)
        message = run(name.encode(), right, address).decode()
        return [*map(str, ptx.reports()), *([message] if message else [])]

    print(json.dumps({name: [reports(name, False), reports(name, True)] for name in names}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3:])
