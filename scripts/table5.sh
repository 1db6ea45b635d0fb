#!/usr/bin/env bash
# The paper's Table 5, what language-aware initialization and the alignment of the KD head give a CLIP student with 1% of the labels:
#   bash scripts/table5.sh mini                                                     the mini student, all of it trained
#   GPUS="0 1 2 3" DATA=/path/to/datasets bash scripts/table5.sh                    beside the paper's numbers
# The first row is the run of table12.sh: nothing is trained twice. PERCENTS="1% 10%" takes other amounts.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/table5.sh [imagenet|mini] [KEY VALUE ...]"
table_words "$@"
student=vit_b16_from_l14 paper=(--paper-table 5)
[ "$DATASET" != mini ] || student=mini-student
[ "$DATASET" = imagenet ] || paper=()
[ -z "${METHODS:-}${STUDENTS:-}" ] ||
  die "METHODS and STUDENTS are of other tables: these rows are DHO's, into $student; leave them out (PERCENTS takes other amounts)"
check_pairs "the rows" TRAINER.DHO.KD_HEAD TRAINER.DHO.INIT TRAINER.DISTILL.INIT
percents=${PERCENTS:-1%}
check_percents $percents
set_student "$student"
set_up
count_distilled $((4 * $(wc -w <<<"$percents"))) 1
SHOWN=()
reference ZeroshotCLIP2 "$TEACHER" "${TEACHER_CKPT:-}"

# without VARIANT [KEY VALUE ...]: DHO with some of it taken away.
without() {
  local percent variant=$1
  shift
  for percent in $percents; do
    set_labeled "$percent"
    train_seeds Distill_DHO "$SETTING" "$variant" "${STUDENT_PAIRS[@]}" "$@" "${PAIRS[@]}"
    show_folder "$OUTPUT/$DATASET/Distill_DHO/${SETTING}_$LABELED$variant"
  done
}

without ""
without _not_aligned TRAINER.DHO.KD_HEAD linear
without _init_ce TRAINER.DHO.KD_HEAD linear TRAINER.DHO.INIT kaiming
without _init_none TRAINER.DHO.KD_HEAD linear TRAINER.DHO.INIT kaiming TRAINER.DISTILL.INIT kaiming
finish_jobs
show_table "${SHOWN[@]}" --paired "${paper[@]}"
