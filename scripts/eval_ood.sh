#!/usr/bin/env bash
# Score finished runs on V2, Sketch, R and A: bash scripts/eval_ood.sh TRAINER DATASET SHOTS [KEY VALUE ...]
#   bash scripts/eval_ood.sh CoOp_DHO imagenet 16
# Every run below OUTPUT/DATASET/TRAINER with SHOTS shots (or, as 1%, percent; or `unlabeled`, for methods that look at no label) is
# evaluated with its own options into OUTPUT/evaluation/TRAINER/<config>_<SHOTS>shots<variant>/<set>/seed<S>. A set that is there
# already is skipped, unless the run is newer; KEY VALUE words stand in the name of the folder. SETS="imagenetv2 imagenet_a" takes these.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

USAGE="usage: bash scripts/eval_ood.sh TRAINER DATASET SHOTS [KEY VALUE ...]"
[ $# -ge 3 ] || die "$USAGE"
trainer=$1
set_data "$2"
if [ "$3" = unlabeled ]; then LABELED=unlabeled; else set_labeled "$3"; fi
shift 3
prefix=""
[ "$DATASET" != mini ] || prefix=mini_
[[ $DATASET = mini || $DATASET = imagenet ]] ||
  die "'$DATASET' has no shifted sets; the data sets that have are: imagenet mini"
read_options "" "$@"

shopt -s nullglob
runs=("$OUTPUT/$DATASET/$trainer/"*"_$LABELED"{,_*}/seed*/results.json)
[ ${#runs[@]} -gt 0 ] || die "no finished run is at $OUTPUT/$DATASET/$trainer/*_$LABELED*/seed*; train it first"
set_up
groups=() changed=""
for ((k = 0; k < ${#PAIRS[@]}; k += 2)); do changed+=_${PAIRS[k]##*.}_$(for_paths "${PAIRS[k + 1]}"); done
for results in "${runs[@]}"; do
  run=$(cd "$(dirname "$results")" && pwd)
  group=$OUTPUT/evaluation/$trainer/$(basename "$(dirname "$run")")$changed
  [[ " ${groups[*]} " == *" $group "* ]] || groups+=("$group")
  for target in ${SETS:-imagenetv2 imagenet_sketch imagenet_r imagenet_a}; do
    out=$group/$prefix$target/$(basename "$run")
    if [[ $out/results.json -nt $results ]]; then
      echo "$out is complete: skipped"
      continue
    fi
    # of two config files the second one wins: the run's own options, then the other data set
    background "$out" "${TRAIN[@]}" --root "$DATA" --trainer "$trainer" --eval-only --model-dir "$run" \
      --dataset-config-file "$run/config.json" --config-file "configs/datasets/$prefix$target.yaml" --output-dir "$out" \
      TEST.SHIFTED "()" TEST.SPLIT test TEST.FINAL_MODEL last_step TRAINER.DHO.SEARCH False \
      ${STUDENT_CKPT:+MODEL.BACKBONE.CKPT "$STUDENT_CKPT"} "${PAIRS[@]}"
  done
done
finish_jobs
show_table --evaluations "${groups[@]}"
