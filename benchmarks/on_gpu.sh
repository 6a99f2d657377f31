#!/usr/bin/env bash
# Build the package for the GPU of this machine, test, sanitize and measure it, and print the targets:
#
#   benchmarks/on_gpu.sh [--dry-run] [--seconds 520] OUT
#
# gpu/on_gpu.py says what is needed and what is left in OUT. The variable PYTHON names another python3.
set -euo pipefail
# The program runs as a module of the repository, which need not be installed; the programs that it starts do not see it.
exec "${PYTHON:-python3}" -c 'import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("benchmarks.gpu.on_gpu", run_name="__main__", alter_sys=True)' "$(dirname "${BASH_SOURCE[0]}")/.." "$@"
