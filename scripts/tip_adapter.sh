#!/usr/bin/env bash
# Few-shot teachers, Tip-Adapter and Tip-Adapter-F: bash scripts/tip_adapter.sh DATASET SHOTS [--config NAME] [KEY VALUE ...]
#   bash scripts/tip_adapter.sh mini 16                              the embedded benchmark, a minute or two on 2 CPU cores
#   DATA=/path/to/datasets bash scripts/tip_adapter.sh imagenet 16   CLIP RN50, the few-shot teacher of the paper's Table 1
# --config names a file of configs/trainers/TipAdapterF: rn50 (default), vit_b16, vit_l14_336; on mini: mini (the teacher,
# default), mini_student. Each run's folder holds tip_adapter.pt, of which TRAINER.DHO.TEACHER.TYPE few_shot makes a teacher.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

USAGE="usage: bash scripts/tip_adapter.sh DATASET SHOTS [--config NAME] [KEY VALUE ...]"
[ $# -ge 2 ] || die "$USAGE"
set_data "$1"
set_labeled "$2"
shift 2
read_options "--config" "$@"
set_adapter_config
set_up
TOTAL=$((1 + 2 * $(wc -w <<<"$SEEDS")))
zero_shot ZeroshotCLIP2 "$CONFIG" "${TEACHER_CKPT:-}"
train_adapters TipAdapter "${PAIRS[@]}"
train_adapters TipAdapterF "${PAIRS[@]}"
finish_jobs
show_table "$OUTPUT/$DATASET"/{ZeroshotCLIP2/"$CONFIG",TipAdapter/"${CONFIG}_$LABELED",TipAdapterF/"${CONFIG}_$LABELED"}
