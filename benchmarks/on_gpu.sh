#!/usr/bin/env bash
# Builds the package for the GPU of this machine, proves it there, measures it, in under nine minutes and without a network:
#
#   benchmarks/on_gpu.sh [--dry-run] [--experiments] OUT
#
# gpu/on_gpu.py says what is needed, what is left in OUT, and what the options do. PYTHON names another python3.
set -euo pipefail
# As the module of a package that need not be installed, which no program that it starts sees.
exec "${PYTHON:-python3}" -c 'import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("benchmarks.gpu.on_gpu", run_name="__main__", alter_sys=True)' "$(dirname "${BASH_SOURCE[0]}")/.." "$@"
