#!/usr/bin/env bash
# Every row of the paper's Table 13 that we have: bash scripts/table13.sh DATASET [SHOTS] [--placebo] [KEY VALUE ...]
#   bash scripts/table13.sh mini                                          the embedded benchmark, on CPU cores
#   GPUS="0 1 2 3" DATA=/path/to/datasets bash scripts/table13.sh imagenet   beside the paper's numbers
# SHOTS is 16 by default, and for LinearProbe on imagenet 1%, as in the paper; METHODS="CoOp VPT-3" runs these only; --placebo adds
# DHO with a placebo teacher. The run folders are those of the scripts of one method: nothing is run twice. Started once more beside
# itself (another machine, other GPUS, the same OUTPUT), each takes the runs that the other is not at.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

USAGE="usage: bash scripts/table13.sh DATASET [SHOTS] [--placebo] [KEY VALUE ...]"
[ $# -ge 1 ] || die "$USAGE"
set_data "$1"
shots=
shift
if [[ $# -gt 0 && ! $1 =~ ^[A-Z-] ]]; then
  shots=$1
  shift
fi
set_labeled "${shots:-16}"
read_options --placebo "$@"
depths="VPT-3 VPT-9"
[ "$DATASET" != mini ] || depths="VPT-1 VPT-3" # its student has three layers
read -ra methods <<<"${METHODS:-LinearProbe $depths CoOp PromptSRC}"
kinds="base labeled unlabeled" # the cheap ones first
[ $PLACEBO = no ] || kinds="$kinds placebo"
configs=()
for method in "${methods[@]}"; do
  config=$(config_of "$method")
  configs+=("$config")
done

set_up
count_runs ${#methods[@]} "$kinds"
zero_shots
for k in "${!methods[@]}"; do
  set_labeled "${shots:-16}"
  [[ $DATASET != imagenet || -n $shots || ${methods[k]} != LinearProbe ]] || set_labeled 1%
  train_kinds "${methods[k]%%-*}" "${configs[k]}" "$kinds" "${PAIRS[@]}"
done
finish_jobs
paper=()
[ "$DATASET" != imagenet ] || paper=(--paper)
show_table "$OUTPUT/$DATASET" --paired "${paper[@]}"
