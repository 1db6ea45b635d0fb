#!/usr/bin/env bash
# Distillation into a compact student: bash scripts/distill.sh DATASET SHOTS|PERCENT% STUDENT [--compare] [KEY VALUE ...]
#   bash scripts/distill.sh mini 16 mini-resnet --compare                            the embedded benchmark, on CPU cores
#   DATA=/path/to/datasets bash scripts/distill.sh dtd 16 resnet18 --compare         pretrained on ImageNet, CLIP RN50 teaches
#   STUDENT_CKPT=dino_resnet50_pretrain.pth bash scripts/distill.sh imagenet 16 resnet50   without the file it is fetched; on imagenet
#                                                                                   the paper's numbers for the same rows stand beside
# STUDENT: resnet18 resnet50 mobilenetv2 vit_b16 vit_b16_from_l14 vit_l14_336, on mini mini-resnet mini-resnet-pretrained mini-student,
# or timm's name of a model. --compare adds the seven methods that DHO is compared with; METHODS="CE DHO DHO-F" takes these.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/distill.sh DATASET SHOTS|PERCENT% STUDENT [--compare] [KEY VALUE ...]"
[[ $# -ge 3 && -n ${2// /} && -n ${3// /} ]] || die "$USAGE"
set_data "$1"
amount=$2 student=$3
shift 3
read_options "--compare" "$@"
methods=${METHODS:-DHO}
[ $COMPARE = no ] || [ -z "${METHODS:-}" ] || die "--compare says which methods, and METHODS does: leave one of them out"
[ $COMPARE = no ] || methods="$BASELINES DHO"
distill_grid "$student" "$amount" "$methods" "${PAIRS[@]}"
paper=(--paper-table own)
[ "$DATASET" = imagenet ] || paper=()
show_table "${SHOWN[@]}" --paired "${paper[@]}"
