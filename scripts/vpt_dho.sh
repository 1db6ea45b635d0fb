#!/usr/bin/env bash
# VPT + DHO: bash scripts/vpt_dho.sh DATASET SHOTS [--depth N] [--compare] [--few-shot] [KEY VALUE ...]
# --depth N: prompts in the first N layers of the image tower, default 3; there is a config file a depth.
# --compare adds VPT, VPT + DHO on labeled images only, and VPT + DHO with a placebo teacher.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
method_script VPT "$@"
