#!/usr/bin/env bash
# Builds the package for the GPU of this machine, proves it there, measures it, in under nine minutes and without a network:
#
#   benchmarks/on_gpu.sh [--dry-run] [--experiments] OUT
#
# on_gpu.py says what is needed, what is left in OUT, and what the options do. PYTHON names another python3.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/on_gpu.py" "$@"
