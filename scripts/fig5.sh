#!/usr/bin/env bash
# The paper's Figures 5, 6, 11 and 12, few-shot distillation on the ten fine-grained sets: bash scripts/fig5.sh [mini] [KEY VALUE ...]
#   bash scripts/fig5.sh mini                                                       mini-resnet-pretrained
#   GPUS="0 1" DATA=/path/to/datasets bash scripts/fig5.sh                          all ten sets, with ResNet-18 and MobileNetV2
# DATASETS="dtd eurosat", STUDENTS=mobilenetv2, SHOTS="1 16" and METHODS="CE CEKD DHO" take these only. Of the figures the paper prints no
# numbers; its Table 14 has DHO's mean over the ten sets with ResNet-18, which stands below ours.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/fig5.sh [mini] [KEY VALUE ...]"
ten="caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
if [ "${1:-}" = mini ]; then
  sets=mini student=mini-resnet-pretrained shots="1 4 16"
  shift
else
  sets=${DATASETS:-$ten} student="resnet18 mobilenetv2" shots="1 2 4 8 16"
fi
read_options "" "$@"
students=${STUDENTS:-${STUDENT:-$student}} data=$DATA all=()
for one in $sets; do # a slip is one message before anything is trained
  set_data "$one"
  for student in $students; do set_student "$student"; done
done
for one in $sets; do
  DATA=$data # a folder of one's own has changed it
  set_data "$one"
  methods=${METHODS:-$(default_methods "$students" KD CE CEKDFeature CEKD DHO)}
  distill_grid "$students" "${SHOTS:-$shots}" "$methods" "${PAIRS[@]}"
  all+=("${SHOWN[@]}")
done
mean=()
[ "$sets" = mini ] || mean=(--mean)
show_table "${all[@]}" "${mean[@]}"
