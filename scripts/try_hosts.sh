#!/usr/bin/env bash
# Run the real CoOp, PromptSRC and MaPLe, unedited, with _DHO trainers: bash scripts/try_hosts.sh HOSTS_DIR [TRAINER ...]
# HOSTS_DIR holds clones named CoOp, PromptSRC, multimodal-prompt-learning and Dassl.pytorch. Each trainer is trained for three
# epochs on a tiny ImageNet with tiny CLIPs of random weights (both are generated, so accuracies mean nothing), evaluated,
# evaluated on A and R, and resumed after its second epoch; a table says what passed. Two more words stand for checks of their
# own: first_steps (two ways to the same steps) and unchanged (CoOp with and without the plugin). WORK=/some/folder keeps what
# is written.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -ge 1 ] || die "usage: bash scripts/try_hosts.sh HOSTS_DIR [TRAINER ...]"
HOSTS=$(cd "$CALLED_FROM" && cd "$1" && pwd) || die "no such folder: $1"
shift
MAPLE=multimodal-prompt-learning
# trainer, its host, its config file (below configs/trainers there; ours/... below ours), what it needs on CLIPs of two layers
TRIALS=(
  "CoOp_DHO CoOp CoOp/vit_b16_ep50 TRAINER.COOP.N_CTX 4"
  "CoOp_DHO_twin CoOp CoOp/vit_b16_ep50 TRAINER.COOP.N_CTX 4"
  "CoCoOp_DHO CoOp CoCoOp/vit_b16_c4_ep10_batch1_ctxv1"
  "LinearProbe_DHO CoOp ours/LinearProbe_DHO/vit_b16_ep20 OPTIM.WARMUP_STEPS 0"
  "PromptSRC_DHO PromptSRC PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx
    TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2 TRAINER.PROMPTSRC.GPA_MEAN 2"
  "PromptSRC_DHO_twin PromptSRC PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx
    TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2 TRAINER.PROMPTSRC.GPA_MEAN 2"
  "MaPLe_DHO $MAPLE MaPLe/vit_b16_c2_ep5_batch4_2ctx TRAINER.MAPLE.PROMPT_DEPTH 2"
  "IVLP_DHO $MAPLE IVLP/vit_b16_c2_ep5_batch4_2+2ctx
    TRAINER.IVLP.PROMPT_DEPTH_VISION 2 TRAINER.IVLP.PROMPT_DEPTH_TEXT 2"
  "VPT_DHO $MAPLE VPT/vit_b16_c2_ep5_batch4_4 TRAINER.VPT.PROMPT_DEPTH_VISION 2"
  "VPT_DHO_twin $MAPLE VPT/vit_b16_c2_ep5_batch4_4 TRAINER.VPT.PROMPT_DEPTH_VISION 2"
)
KNOWN=" $(printf '%s\n' "${TRIALS[@]}" | sed -n 's/^\([A-Z][A-Za-z_]*\) .*/\1/p' | tr '\n' ' ')first_steps unchanged "
for word; do [[ $KNOWN == *" $word "* ]] || die "nothing to try is called '$word'; there are:$KNOWN"; done
ASKED=" $* "

for name in CoOp PromptSRC $MAPLE Dassl.pytorch; do
  [ -d "$HOSTS/$name" ] || die "$HOSTS/$name is missing: clone it there (see docs/HOSTS.md)"
  [ -z "$(git -C "$HOSTS/$name" status --porcelain --untracked-files=no)" ] || die "$HOSTS/$name is edited: git checkout it"
done
setup_python ""
needed=""
for module in ftfy regex tqdm yacs sklearn tabulate tensorboard scipy; do
  "$PYTHON" -c "import $module" 2>/dev/null || needed="$needed ${module/sklearn/scikit-learn}"
done
[ -z "$needed" ] || die "the hosts need packages that are missing: $PYTHON -m pip install$needed"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONDONTWRITEBYTECODE=1
WORK=${WORK:-$(mktemp -d)}
mkdir -p "$WORK/log"
[ -f "$WORK/teacher.pt" ] || "$PYTHON" scripts/host_world.py "$WORK"
COMMON=(INPUT.SIZE "(32,32)" DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 3 TRAIN.CHECKPOINT_FREQ 1 DATALOADER.NUM_WORKERS 0 OPTIM.LR 0.0002)
DHO=(DATALOADER.TRAIN_U.SAME_AS_X False DATALOADER.TRAIN_U.BATCH_SIZE 8 TRAINER.DHO.TEACHER.CKPT "$WORK/teacher.pt")
LAUNCH=(-m dho_plugin.hosts --dassl "$HOSTS/Dassl.pytorch" --weights "$WORK/student.pt")

# host LOG HOST SCRIPT CONFIG SET OUT WORD...: run a script in a host with LAUNCH; what it prints goes into a log
host() {
  local log=$WORK/log/$1.txt host=$2 script=$3 config=configs/trainers/$4.yaml set=$5 out=$6
  [[ $4 != ours/* ]] || config=$PWD/configs/trainers/${4#ours/}.yaml
  shift 6
  (
    cd "$HOSTS/$host"
    PYTHONPATH=$PWD:${PYTHONPATH:-}:$HOSTS/Dassl.pytorch "$PYTHON" -W ignore "${LAUNCH[@]}" "$script" --root "$WORK/data" --seed 1 \
      --dataset-config-file "configs/datasets/$set.yaml" --config-file "$config" --output-dir "$out" "$@" "${COMMON[@]}" "${MORE[@]}"
  ) >"$log" 2>&1 || { tail -n 15 "$log" && failed "see $log"; }
}

failed() {
  echo "FAILED: $*" >&2
  FAILURES=$((FAILURES + 1))
  return 1
}

# result LOG: the last result of a log; accuracy LOG: its accuracy; rate LOG: the learning rate in the third epoch's first line
result() { tac "$WORK/log/$1.txt" | sed '/^=> result/q' | grep -E '^\* (total|correct|accuracy|error|macro_f1)'; }
accuracy() { result "$1" | sed -n 's/^\* accuracy: //p'; }
rate() { sed -n 's|^epoch \[3/3\].* lr \([^ ]*\) .*|\1|p' "$WORK/log/$1.txt" | head -n 1; }

# trial TRAINER HOST CONFIG WORD...: all that is tried with a trainer; CELLS are what its row of the table says
trial() {
  local trainer=$1 name=$2 config=$3 run=$WORK/run/$1/seed1 again=$WORK/resumed/$1/seed1 set last
  MORE=("${@:4}" "${DHO[@]}")
  rm -rf "${run%/*}" "${again%/*}"
  host "$trainer" "$name" train.py "$config" imagenet "$run" --trainer "$trainer" || return 1
  CELLS+=("$(accuracy "$trainer")")
  for set in imagenet imagenet_a imagenet_r; do
    host "$trainer.$set" "$name" train.py "$config" "$set" "$WORK/eval/$trainer/$set" --trainer "$trainer" \
      --eval-only --model-dir "$run" --load-epoch 3 || return 1
    if [ "$set" = imagenet ] && [ "$(result "$trainer")" != "$(result "$trainer.imagenet")" ]; then
      failed "$trainer: the evaluation gives another result than the training"
      return 1
    fi
    CELLS+=("$(accuracy "$trainer.$set")")
  done
  mkdir -p "${again%/*}"
  cp -r "$run" "$again"
  for last in "$again"/*/model.pth.tar-3; do
    rm "$last"
    [ ! -f "${last%/*}/checkpoint" ] || echo model.pth.tar-2 >"${last%/*}/checkpoint" # Dassl's note of the last one
  done
  host "$trainer.resumed" "$name" train.py "$config" imagenet "$again" --trainer "$trainer" || return 1
  grep -q "will resume training" "$WORK/log/$trainer.resumed.txt" || { failed "$trainer was not resumed" || return 1; }
  [ "$(rate "$trainer")" = "$(rate "$trainer.resumed")" ] || { failed "$trainer resumed with another rate" || return 1; }
  CELLS+=("$(accuracy "$trainer.resumed")")
  (cd "$HOSTS/$name" && PYTHONPATH=$HOSTS/Dassl.pytorch "$PYTHON" -W ignore parse_test_res.py --test-log "${run%/*}") \
    >"$WORK/log/$trainer.parse.txt" 2>&1 || { failed "$name's parse_test_res.py cannot read $run/log.txt" || return 1; }
  CELLS+=("yes")
}

# row WORD...: a row of the table
row() {
  printf -v LINE '%-19s %-35s %8s %10s %8s %8s %8s %7s %8s' "$@"
  echo "$LINE"
}

ROWS=() CHECKS=() FAILURES=0
for spec in "${TRIALS[@]}"; do
  read -ra words <<<"${spec//$'\n'/ }"
  [[ $# -eq 0 || $ASKED == *" ${words[0]} "* ]] || continue
  began=$SECONDS CELLS=()
  trial "${words[@]}" || CELLS+=(FAILED)
  while [ ${#CELLS[@]} -lt 6 ]; do CELLS+=(-); done
  commit=$(git -C "$HOSTS/${words[1]}" rev-parse --short HEAD)
  row "${words[0]}" "${words[1]} $commit" "${CELLS[@]}" "$((SECONDS - began))"
  ROWS+=("$LINE")
done

# first_steps LOG HOST CONFIG WORD...: compare two ways to the same first steps, see host_first_steps.py
first_steps() {
  local log=first_steps.$1 name=$2 config=$3
  shift 3
  rm -rf "$WORK/run/$log"
  host "$log" "$name" "$PWD/scripts/host_first_steps.py" "$config" imagenet "$WORK/run/$log" "$@" || return 0
  CHECKS+=("$* in $name: $(grep "^first steps" "$WORK/log/$log.txt")")
}

if [[ $# -eq 0 || $ASKED == *" first_steps "* ]]; then
  MORE=(TRAINER.COOP.N_CTX 4 TRAINER.COOP.PREC fp32 OPTIM.WARMUP_EPOCH 0 OPTIM.LR 0.002 "${DHO[@]}")
  first_steps coop CoOp CoOp/vit_b16_ep50 own
  MORE=(TRAINER.MAPLE.PROMPT_DEPTH 2 OPTIM.WARMUP_EPOCH 0 "${DHO[@]}")
  first_steps maple $MAPLE MaPLe/vit_b16_c2_ep5_batch4_2ctx routes MaPLe_DHO
  MORE=(TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2 OPTIM.WARMUP_EPOCH 0 "${DHO[@]}")
  first_steps promptsrc PromptSRC "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx" routes PromptSRC_DHO_twin
fi

# printed LOG: what of a log two runs must have in common: losses, rates, results, a sum over the saved weights
printed() { grep -oE "^\* .*|saved weights: .*|^epoch .*batch [^ ]*| (loss|acc) [0-9.]* .*lr [^ ]*" "$WORK/log/$1.txt"; }

if [[ $# -eq 0 || $ASKED == *" unchanged "* ]]; then
  MORE=(TRAINER.COOP.N_CTX 4 TRAINER.COOP.PREC fp32 OPTIM.WARMUP_EPOCH -1 OPTIM.LR 0.02 DATALOADER.TRAIN_X.BATCH_SIZE 8)
  for kind in plain plugin; do
    LAUNCH=("$PWD/scripts/host_plain.py" "$kind" "$WORK/student.pt")
    rm -rf "$WORK/run/$kind"
    host "unchanged.$kind" CoOp train.py CoOp/vit_b16_ep50 imagenet "$WORK/run/$kind" --trainer CoOp || true
  done
  if [ "$(printed unchanged.plain)" = "$(printed unchanged.plugin)" ] && printed unchanged.plain | grep -q "saved weights"; then
    CHECKS+=("CoOp with and without the import: the same $(printed unchanged.plain | grep -c loss) losses, results and weights")
  else
    failed "CoOp prints other numbers with the plugin: compare $WORK/log/unchanged.*.txt" || true
  fi
fi
for name in CoOp PromptSRC $MAPLE Dassl.pytorch; do
  [ -z "$(git -C "$HOSTS/$name" status --porcelain --untracked-files=no)" ] || failed "$HOSTS/$name was changed" || true
done

echo
row trainer "host and commit" trained evaluated A R resumed parsed seconds
[ ${#ROWS[@]} -eq 0 ] || printf '%s\n' "${ROWS[@]}"
[ ${#CHECKS[@]} -eq 0 ] || printf '%s\n' "${CHECKS[@]}"
echo "Dassl $(git -C "$HOSTS/Dassl.pytorch" rev-parse --short HEAD), $("$PYTHON" -c 'import platform, numpy, open_clip, torch; print(
  f"torch {torch.__version__}, open_clip {open_clip.__version__}, NumPy {numpy.__version__}, Python {platform.python_version()}, "
  + (torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"))'); logs: $WORK/log"
[ "$FAILURES" -eq 0 ] || die "$FAILURES checks failed, see above"
echo "All passed; no file of the hosts was changed"
