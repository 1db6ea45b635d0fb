#!/usr/bin/env bash
# Learning rate and lambda of the methods that distil into a student, chosen on held-out labels; no test image is looked at:
#   bash scripts/tune_distill.sh DATASET SHOTS|PERCENT% STUDENT [KEY VALUE ...]
#   bash scripts/tune_distill.sh mini 4 mini-resnet
#   METHODS="DHO CEKD" RATES="3e-4 1e-3" LAMBDAS="0.1 0.5" bash scripts/tune_distill.sh dtd 16 resnet18
# Every rate is tried with the first of LAMBDAS, then the best rate with the others; methods without lambda try FURTHER_RATES in
# their place, so all have as many tries. VAL_SHOTS (32) images a class, of the validation split or else of the training images, are kept
# aside for it. The runs lie in OUTPUT/tuning.
source "$(dirname "${BASH_SOURCE[0]}")/distill_lib.sh"

USAGE="usage: bash scripts/tune_distill.sh DATASET SHOTS|PERCENT% STUDENT [KEY VALUE ...]"
[ $# -ge 3 ] || die "$USAGE"
set_data "$1"
set_labeled "$2"
student=$3
shift 3
read_options "" "$@"
set_student "$student"
RATES=${RATES:-3e-3 1e-2 3e-2} LAMBDAS=${LAMBDAS:-0.1 0.5 0.02} FURTHER_RATES=${FURTHER_RATES:-1e-3 1e-1}
OUTPUT=$OUTPUT/tuning SEEDS=${TUNING_SEED:-101}
methods=${METHODS:-CE KD CEKDFeature CEKD SSKD DHKD DHO}
check_methods $methods
for method in DHO-F $NON_LINEAR; do
  [[ " $methods " != *" $method "* ]] || die "$method has DHO's values: leave it out of METHODS"
done
held_out=(DATASET.NUM_VAL_SHOTS "${VAL_SHOTS:-32}" TEST.SPLIT val TEST.SHIFTED "()")
first=${LAMBDAS%% *}
read -ra others <<<"${LAMBDAS#"$first"}"

# with_lambda METHOD: whether a method balances two losses.
with_lambda() {
  [[ $1 != CE && $1 != KD* ]]
}

# try METHOD RATE [LAMBDA]: one run.
try() {
  local pairs=(OPTIM.LR "$2")
  [ -z "${3:-}" ] || pairs+=(TRAINER.DHO.LAMBDA "$3")
  train_seeds "Distill_$1" "$SETTING" "$VARIANT$(suffix "$2" "${3:-}")" "${STUDENT_PAIRS[@]}" "${pairs[@]}" "${held_out[@]}" "${PAIRS[@]}"
}

# suffix RATE [LAMBDA]: what a try's folder ends in.
suffix() {
  echo "_lr$1${2:+_lambda$2}"
}

# reached METHOD RATE [LAMBDA]: the accuracy of a finished try on the held-out labels, as the last words of its log say; nothing where
# its loss was no longer finite.
reached() {
  local log
  log=$OUTPUT/$DATASET/Distill_$1/${SETTING}_$LABELED$VARIANT$(suffix "$2" "${3:-}")/seed$SEEDS/log.txt
  [ -f "${log%/*}/results.json" ] || return 0
  sed -n 's/^\* accuracy: \([0-9.]*\)%$/\1/p' "$log" | tail -n 1
}

# best_rate METHOD: the rate with the highest accuracy at the first lambda.
best_rate() {
  local rate
  for rate in $RATES; do echo "$(reached "$1" "$rate" "$first" | grep . || echo -1) $rate"; done | LC_ALL=C sort -rn | sed -n '1s/.* //p'
}

# finish_tries: wait for all; what another process is at is not there to be compared.
finish_tries() {
  finish_jobs
  [ ${#LEFT[@]} -eq 0 ] || die "another process is at ${LEFT[*]}: start again when it has finished"
}

set_up
check_name
TRIES=yes
TOTAL=$(($(wc -w <<<"$methods") * ($(wc -w <<<"$RATES") + ${#others[@]})))
for method in $methods; do
  for rate in $RATES; do
    if with_lambda "$method"; then try "$method" "$rate" "$first"; else try "$method" "$rate"; fi
  done
done
finish_tries
declare -A BEST
for method in $methods; do
  if with_lambda "$method"; then
    BEST[$method]=$(best_rate "$method")
    for lambda in "${others[@]}"; do try "$method" "${BEST[$method]}" "$lambda"; done
  else
    for rate in $FURTHER_RATES; do try "$method" "$rate"; done
  fi
done
finish_tries

echo "accuracy on ${VAL_SHOTS:-32} held-out images a class, in percent:"
for method in $methods; do
  if with_lambda "$method"; then
    for rate in $RATES; do echo "$method lr $rate lambda $first: $(reached "$method" "$rate" "$first")"; done
    for lambda in "${others[@]}"; do
      echo "$method lr ${BEST[$method]} lambda $lambda: $(reached "$method" "${BEST[$method]}" "$lambda")"
    done
  else
    for rate in $RATES $FURTHER_RATES; do echo "$method lr $rate: $(reached "$method" "$rate")"; done
  fi
done
