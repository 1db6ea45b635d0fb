#!/usr/bin/env bash
# CoOp + DHO: bash scripts/coop_dho.sh DATASET SHOTS [--compare] [KEY VALUE ...]
#   bash scripts/coop_dho.sh mini 16 --compare                    the embedded benchmark, minutes on 2 CPU cores
#   DATA=/path/to/datasets bash scripts/coop_dho.sh imagenet 16   ViT-B/16 from ViT-L/14@336px, on a GPU
# --compare adds CoOp, CoOp + DHO on labeled images only, and CoOp + DHO with a placebo teacher.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage="usage: bash scripts/coop_dho.sh DATASET SHOTS [--compare] [KEY VALUE ...]"
[ $# -ge 2 ] || die "$usage"
dataset=$1 shots=$2
shift 2
compare=no
if [ "${1:-}" = --compare ]; then
  compare=yes
  shift
fi
[ -f "configs/datasets/$dataset.yaml" ] || die "unknown data set '$dataset'; there are: $(cd configs/datasets && echo *.yaml)"
[[ $shots =~ ^[1-9][0-9]*$ ]] || die "SHOTS is '$shots'; it is a number of images a class. $usage"

setup_python ""
prepare_data "$dataset"
if [ "$dataset" = mini ]; then
  config=mini_ep10 student=mini teacher=mini
  side_by_side
else
  config=vit_b16_ep50_ctxv1 student=vit_b16 teacher=vit_l14_336
fi

zero_shot "$dataset" ZeroshotCLIP "$student" "${STUDENT_CKPT:-}"
zero_shot "$dataset" ZeroshotCLIP2 "$teacher" "${TEACHER_CKPT:-}"
train_seeds "$dataset" "$shots" CoOp_DHO "$config" "" "$@"
if [ $compare = yes ]; then
  train_seeds "$dataset" "$shots" CoOp "$config" "" "$@"
  train_seeds "$dataset" "$shots" CoOp_DHO "$config" _labeled TRAINER.DHO.UNLABELED False "$@"
  train_seeds "$dataset" "$shots" CoOp_DHO "$config" _placebo TRAINER.DHO.TEACHER.TYPE placebo "$@"
fi
finish_jobs
"$PYTHON" -m dho_plugin.tables "$OUTPUT/$dataset"
