#!/usr/bin/env bash
# A linear probe + DHO: bash scripts/linear_probe_dho.sh DATASET SHOTS [--compare] [--few-shot] [KEY VALUE ...]
# --compare adds the probe alone, with DHO on labeled images only, and with a placebo teacher.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
method_script LinearProbe "$@"
