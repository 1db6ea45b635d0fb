#!/usr/bin/env bash
# Lint, format check and all tests: bash scripts/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

setup_python "[test,export]" pytest hypothesis ruff onnx onnxscript onnxruntime
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest "$@"
