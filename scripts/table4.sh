#!/usr/bin/env bash
# The paper's Table 4, low-shot distillation into CLIP students: bash scripts/table4.sh [imagenet|mini] [KEY VALUE ...]
#   bash scripts/table4.sh mini                                                     the mini student, all of it trained
#   GPUS="0 1 2 3" DATA=/path/to/datasets bash scripts/table4.sh                    beside the paper's numbers
# STUDENTS="vit_b16" and PERCENTS="1% 10%" take these only.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/table4.sh [imagenet|mini] [KEY VALUE ...]"
table_words "$@"
low_shot_table 4 "vit_b16 vit_l14_336"
