#!/usr/bin/env bash
# The paper's Tables 14 and 15 and Figure 14, DHO with non-linear heads: bash scripts/table14.sh [imagenet|mini|ten] [KEY VALUE ...]
#   bash scripts/table14.sh mini                                                    mini-resnet
#   GPUS="0 1" DATA=/path/to/datasets bash scripts/table14.sh                       ResNet-18 from scratch, beside the paper's numbers
#   GPUS="0 1" DATA=/path/to/datasets bash scripts/table14.sh ten                   the ten fine-grained sets and their mean
# STUDENTS, SHOTS="1 16" and, of the ten sets, DATASETS="dtd eurosat" take these only. The rows of linear heads are the runs of table1.sh
# and fig5.sh: nothing is trained twice.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/table14.sh [imagenet|mini|ten] [KEY VALUE ...]"
[ -z "${METHODS:-}" ] || die "METHODS is of other tables: the methods of this one are DHO $NON_LINEAR; leave it out"
methods="DHO $NON_LINEAR"
if [ "${1:-}" = ten ]; then
  METHODS=$methods STUDENTS=${STUDENTS:-resnet18} exec bash scripts/fig5.sh "${@:2}"
fi
table_words "$@"
students=${STUDENTS:-resnet18} shots="1 2 4 8 16" paper=(--paper-table 14)
[ "$DATASET" != mini ] || students=${STUDENTS:-mini-resnet} shots="1 4 16"
[ "$DATASET" = imagenet ] || paper=()
distill_grid "$students" "${SHOTS:-$shots}" "$methods" "${PAIRS[@]}"
show_table "${SHOWN[@]}" --wide --heads "${paper[@]}"
