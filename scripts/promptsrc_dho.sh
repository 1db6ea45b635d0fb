#!/usr/bin/env bash
# PromptSRC + DHO: bash scripts/promptsrc_dho.sh DATASET SHOTS [--compare] [--few-shot] [KEY VALUE ...]
# --compare adds PromptSRC, PromptSRC + DHO on labeled images only, and PromptSRC + DHO with a placebo teacher.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
method_script PromptSRC "$@"
