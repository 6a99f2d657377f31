"""Prints what the PTX interpreter reports of small kernels with a mistake each (mistakes.cu).

    python tests/ptx/mistakes.py FOLDER 80|90 NAME ...

FOLDER is the build of tests/ptx. The output is JSON: of each name, the reports with the mistake and those without it;
and under "wrong quotients" how many division.cu finds.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

from on_ptx import ptx_files, start

LIBRARY = "ptx_small_kernels"
THREADS, ALIGNMENT = 64, 256


def main(folder: Path, architecture: int, names: list[str]) -> None:
    ptx = start(folder, architecture)
    for path in ptx_files(folder, LIBRARY, architecture):
        ptx.load_file(path)
    library = ctypes.CDLL(str(folder / f"lib{LIBRARY}.so"))
    run = library.run_mistake
    run.restype, run.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]

    size = THREADS * ctypes.sizeof(ctypes.c_float)
    memory = ctypes.create_string_buffer(size + ALIGNMENT)
    address = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
    ptx.register(address, size)

    def reports(name: str, right: bool) -> list[str]:
        ctypes.memset(address, 0, size)
        message = run(name.encode(), right, address).decode()
        ctypes.CDLL(None).cudaGetLastError()  # of a launch that was refused, or the next would report it
        return [*map(str, ptx.reports()), *([message] if message else [])]

    found = {name: [reports(name, False), reports(name, True)] for name in names}
    ctypes.memset(address, 0, size)
    library.divide_by_all(ctypes.c_void_p(address))
    wrong = ctypes.c_float.from_address(address).value
    print(json.dumps({**found, "wrong quotients": [wrong, *map(str, ptx.reports())]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3:])
