#!/usr/bin/env bash
# The paper's Tables 14 and 15, DHO with non-linear heads: bash scripts/table14.sh [imagenet|mini|ten] [KEY VALUE ...]
#   bash scripts/table14.sh mini                                                    mini-resnet
#   GPUS="0 1" DATA=/path/to/datasets bash scripts/table14.sh                       ResNet-18 from scratch, beside the paper's numbers
#   GPUS="0 1" DATA=/path/to/datasets bash scripts/table14.sh ten                   the ten fine-grained sets and their mean
# STUDENTS, SHOTS="1 16" and, of the ten sets, DATASETS="dtd eurosat" take these only. The first rows, DHO as it is, are the runs of table1.sh
# and fig5.sh: nothing is trained twice.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/table14.sh [imagenet|mini|ten] [KEY VALUE ...]"
[ -z "${METHODS:-}" ] || die "METHODS is '$METHODS'; these rows are those of DHO $NON_LINEAR: leave it out"
students=resnet18 shots="1 2 4 8 16" options=(--heads --paired)
if [ "${1:-}" = ten ]; then
  sets=${DATASETS:-$TEN}
  read_options "" "${@:2}"
  options+=(--mean)
else
  table_words "$@"
  sets=$SET
  [ "$DATASET" != mini ] || students=mini-resnet shots="1 4 16"
  options+=(--wide)
  [ "$DATASET" != imagenet ] || options+=(--paper-table 14)
fi
check_pairs "the rows" TRAINER.DISTILL.CE_HEAD TRAINER.DHO.KD_HEAD
distill_sets "$sets" "${STUDENTS:-$students}" "${SHOTS:-$shots}" "DHO $NON_LINEAR" "${PAIRS[@]}"
show_table "${SHOWN[@]}" "${options[@]}"
