#!/usr/bin/env bash
# Lint, format check and all tests: bash scripts/test.sh [pytest arguments]
# With arguments (some tests only) they run in one process, else in two.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

setup_python "[test,export]" pytest xdist hypothesis ruff onnx onnxscript onnxruntime
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
if [ $# -eq 0 ]; then
  set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder # tests/conftest.py says which files come first
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of each
fi
"$PYTHON" -m pytest "$@"
