#!/usr/bin/env bash
# The paper's Figures 5, 6, 11 and 12, few-shot distillation on the ten fine-grained sets: bash scripts/fig5.sh [mini] [KEY VALUE ...]
#   bash scripts/fig5.sh mini                                                       mini-resnet-pretrained
#   GPUS="0 1" DATA=/path/to/datasets bash scripts/fig5.sh                          all ten sets, with ResNet-18 and MobileNetV2
# DATASETS="dtd eurosat", STUDENTS=mobilenetv2, SHOTS="1 16" and METHODS="CE CEKD DHO" take these only. Of the figures the paper prints no
# numbers; its Table 14 has DHO's mean over the ten sets with ResNet-18, which stands below ours.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/fig5.sh [mini] [KEY VALUE ...]"
if [ "${1:-}" = mini ]; then
  sets=mini student=mini-resnet-pretrained shots="1 4 16"
  shift
else
  sets=${DATASETS:-$TEN} student="resnet18 mobilenetv2" shots="1 2 4 8 16"
fi
read_options "" "$@"
distill_sets "$sets" "${STUDENTS:-${STUDENT:-$student}}" "${SHOTS:-$shots}" "${METHODS:-}" "${PAIRS[@]}"
mean=()
[ "$sets" = mini ] || mean=(--mean)
show_table "${SHOWN[@]}" "${mean[@]}"
