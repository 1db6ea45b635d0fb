#!/usr/bin/env bash
# CoOp + DHO: bash scripts/coop_dho.sh DATASET SHOTS [--compare] [--few-shot] [KEY VALUE ...]
#   bash scripts/coop_dho.sh mini 16 --compare                    the embedded benchmark, minutes on 2 CPU cores
#   DATA=/path/to/datasets bash scripts/coop_dho.sh imagenet 16   ViT-B/16 from ViT-L/14@336px, on a GPU
# --compare adds CoOp, CoOp + DHO on labeled images only, and CoOp + DHO with a placebo teacher.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
method_script CoOp "$@"
