#!/usr/bin/env bash
# The paper's Table 1, few-shot distillation: bash scripts/table1.sh [imagenet|mini] [KEY VALUE ...]
#   bash scripts/table1.sh mini                                                     mini-resnet and mini-resnet-pretrained
#   GPUS="0 1" DATA=/path/to/datasets bash scripts/table1.sh   beside the paper's numbers
# STUDENTS="resnet18", SHOTS="1 16" and METHODS="CE CEKD DHO" take these only; DHO-F's few-shot teachers are trained first.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/table1.sh [imagenet|mini] [KEY VALUE ...]"
table_words "$@"
students="resnet18 resnet50" shots="1 2 4 8 16" paper=(--paper-table 1)
[ "$DATASET" != mini ] || students="mini-resnet mini-resnet-pretrained" shots="1 4 16"
[ "$DATASET" = imagenet ] || paper=()
students=${STUDENTS:-$students}
methods=${METHODS:-$(default_methods "$students" $BASELINES DHO)}
distill_grid "$students" "${SHOTS:-$shots}" "$methods" "${PAIRS[@]}"
show_table "${SHOWN[@]}" --wide --paired "${paper[@]}"
