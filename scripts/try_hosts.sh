#!/usr/bin/env bash
# Run the real CoOp, PromptSRC and MaPLe, unedited, with _DHO trainers: bash scripts/try_hosts.sh HOSTS_DIR [TRAINER ...]
# HOSTS_DIR holds clones named CoOp, PromptSRC, multimodal-prompt-learning and Dassl.pytorch. Each trainer is trained for three
# epochs on a tiny ImageNet with tiny CLIPs of random weights (both are generated, so accuracies mean nothing), evaluated,
# evaluated on A and R, and resumed after its second epoch. WORK=/some/folder keeps what it writes.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -ge 1 ] || die "usage: bash scripts/try_hosts.sh HOSTS_DIR [TRAINER ...]"
HOSTS=$(cd "$CALLED_FROM" && cd "$1" && pwd) || die "no such folder: $1"
shift
# trainer, its host, its config file, what it needs on CLIPs of two layers
TRIALS=(
  "CoOp_DHO CoOp CoOp/vit_b16_ep50 TRAINER.COOP.N_CTX 4"
  "CoOp_DHO_twin CoOp CoOp/vit_b16_ep50 TRAINER.COOP.N_CTX 4"
  "CoCoOp_DHO CoOp CoCoOp/vit_b16_c4_ep10_batch1_ctxv1"
  "PromptSRC_DHO PromptSRC PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx
    TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2 TRAINER.PROMPTSRC.GPA_MEAN 2"
  "PromptSRC_DHO_twin PromptSRC PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx
    TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2 TRAINER.PROMPTSRC.GPA_MEAN 2"
  "MaPLe_DHO multimodal-prompt-learning MaPLe/vit_b16_c2_ep5_batch4_2ctx TRAINER.MAPLE.PROMPT_DEPTH 2"
  "IVLP_DHO multimodal-prompt-learning IVLP/vit_b16_c2_ep5_batch4_2+2ctx
    TRAINER.IVLP.PROMPT_DEPTH_VISION 2 TRAINER.IVLP.PROMPT_DEPTH_TEXT 2"
  "VPT_DHO_twin multimodal-prompt-learning VPT/vit_b16_c2_ep5_batch4_4 TRAINER.VPT.PROMPT_DEPTH_VISION 2"
)

for name in CoOp PromptSRC multimodal-prompt-learning Dassl.pytorch; do
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
COMMON=(INPUT.SIZE "(32,32)" DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 3 TRAIN.CHECKPOINT_FREQ 1 DATALOADER.NUM_WORKERS 0
  OPTIM.LR 0.0002 DATALOADER.TRAIN_U.SAME_AS_X False DATALOADER.TRAIN_U.BATCH_SIZE 8 TRAINER.DHO.TEACHER.CKPT "$WORK/teacher.pt")

# host LOG HOST SCRIPT CONFIG SET OUT WORD...: run a script in a host; what it prints goes into a log
host() {
  local log=$WORK/log/$1.txt host=$2 script=$3 config=$4 set=$5 out=$6
  shift 6
  (
    cd "$HOSTS/$host"
    PYTHONPATH=$PWD:${PYTHONPATH:-} "$PYTHON" -W ignore -m dho_plugin.hosts --dassl "$HOSTS/Dassl.pytorch" --weights "$WORK/student.pt" \
      "$script" --root "$WORK/data" --seed 1 --dataset-config-file "configs/datasets/$set.yaml" \
      --config-file "configs/trainers/$config.yaml" --output-dir "$out" "$@" "${COMMON[@]}" "${MORE[@]}"
  ) >"$log" 2>&1 || { tail -n 15 "$log"; die "failed, see $log"; }
}

# accuracy LOG: the last accuracy of a log
accuracy() {
  sed -n 's/^\* accuracy: //p' "$WORK/log/$1.txt" | tail -n 1
}

# rate LOG: the learning rate in the first line of the third epoch
rate() {
  sed -n 's|^epoch \[3/3\].* lr \([^ ]*\) .*|\1|p' "$WORK/log/$1.txt" | head -n 1
}

for trial in "${TRIALS[@]}"; do
  read -ra words <<<"${trial//$'\n'/ }"
  trainer=${words[0]} name=${words[1]} config=${words[2]}
  MORE=("${words[@]:3}")
  [[ $# -eq 0 || " $* " == *" $trainer "* ]] || continue
  run=$WORK/run/$trainer/seed1
  rm -rf "$WORK/run/$trainer" "$WORK/resumed/$trainer"
  began=$SECONDS
  host "$trainer" "$name" train.py "$config" imagenet "$run" --trainer "$trainer"
  for set in imagenet imagenet_a imagenet_r; do
    host "$trainer.$set" "$name" train.py "$config" "$set" "$WORK/eval/$trainer/$set" --trainer "$trainer" \
      --eval-only --model-dir "$run" --load-epoch 3
  done
  mkdir -p "$WORK/resumed/$trainer"
  cp -r "$run" "$WORK/resumed/$trainer/seed1"
  for last in "$WORK/resumed/$trainer/seed1/"*/model.pth.tar-3; do
    rm "$last"
    [ ! -f "${last%/*}/checkpoint" ] || echo model.pth.tar-2 >"${last%/*}/checkpoint" # Dassl's note of the last one
  done
  host "$trainer.resumed" "$name" train.py "$config" imagenet "$WORK/resumed/$trainer/seed1" --trainer "$trainer"
  grep -q "will resume training" "$WORK/log/$trainer.resumed.txt" || die "$trainer was not resumed"
  [ "$(rate "$trainer")" = "$(rate "$trainer.resumed")" ] || die "$trainer was resumed with another learning rate"
  [ "$(accuracy "$trainer")" = "$(accuracy "$trainer.imagenet")" ] || die "$trainer: the evaluation gives another accuracy"
  (cd "$HOSTS/$name" && PYTHONPATH=$HOSTS/Dassl.pytorch "$PYTHON" -W ignore parse_test_res.py --test-log "$WORK/run/$trainer") \
    >"$WORK/log/$trainer.parse.txt" 2>&1 || die "$name's parse_test_res.py cannot read $run/log.txt"
  echo "$trainer in $name $(git -C "$HOSTS/$name" rev-parse --short HEAD): val $(accuracy "$trainer"), A" \
    "$(accuracy "$trainer.imagenet_a"), R $(accuracy "$trainer.imagenet_r"), resumed $(accuracy "$trainer.resumed")" \
    "($((SECONDS - began)) s)"
done

# first_steps LOG HOST CONFIG WORD...: compare two ways to the same first steps, see host_first_steps.py
first_steps() {
  local log=first_steps.$1 name=$2 config=$3
  shift 3
  rm -rf "$WORK/run/$log"
  host "$log" "$name" "$PWD/scripts/host_first_steps.py" "$config" imagenet "$WORK/run/$log" "$@"
  echo "$* in $name: $(grep "^first steps" "$WORK/log/$log.txt")"
}

if [[ $# -eq 0 || " $* " == *" first_steps "* ]]; then
  MORE=(TRAINER.COOP.N_CTX 4 TRAINER.COOP.PREC fp32 OPTIM.WARMUP_EPOCH 0 OPTIM.LR 0.002)
  first_steps coop CoOp CoOp/vit_b16_ep50 own
  MORE=(TRAINER.MAPLE.PROMPT_DEPTH 2 OPTIM.WARMUP_EPOCH 0)
  first_steps maple multimodal-prompt-learning MaPLe/vit_b16_c2_ep5_batch4_2ctx routes MaPLe_DHO
  MORE=(TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2 OPTIM.WARMUP_EPOCH 0)
  first_steps promptsrc PromptSRC "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx" routes PromptSRC_DHO_twin
fi
for name in CoOp PromptSRC multimodal-prompt-learning Dassl.pytorch; do
  [ -z "$(git -C "$HOSTS/$name" status --porcelain --untracked-files=no)" ] || die "$HOSTS/$name was changed"
done
echo "Dassl $(git -C "$HOSTS/Dassl.pytorch" rev-parse --short HEAD), $("$PYTHON" -c 'import platform, torch; print(
  "torch", torch.__version__, "Python", platform.python_version())'); no file of the hosts was changed; logs: $WORK/log"
