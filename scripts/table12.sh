#!/usr/bin/env bash
# The paper's Table 12, the students of Table 4 (and ViT-B/16 taught by ViT-L/14) on the shifted sets:
#   bash scripts/table12.sh [imagenet|mini] [KEY VALUE ...]
# The runs are those of table4.sh: nothing is trained twice. STUDENTS and PERCENTS as there. The table is mixed at the runs' own beta of 0.5
# (Table 6), as the Val of Table 12 is Table 4's; as Table 11 names 1.0 for the shifted sets, the runs, and their means over seeds, stand
# below it at that beta.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/table12.sh [imagenet|mini] [KEY VALUE ...]"
table_words "$@"
low_shot_table 12 "vit_b16_from_l14 vit_b16 vit_l14_336"
mixed=()
for folder in "${SHOWN[@]}"; do
  for seed in $SEEDS; do
    [[ $folder != */Distill_DHO/* || ! -f $folder/seed$seed/results.json ]] || mixed+=("$folder/seed$seed")
  done
done
if [ ${#mixed[@]} -gt 0 ] && ! held_out; then
  echo -e "\nAt beta 1.0:"
  "$PYTHON" -m dho_plugin.ood "${mixed[@]}" --beta 1
fi
