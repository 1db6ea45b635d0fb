# Shared by all scripts (sourced): Python set-up, data, runs over seeds, the table.
# Settings from the environment: DATA (default data), OUTPUT (default output), SEEDS (default "1 2 3"),
# GPUS ("0 1 2 3": every run gets one of these devices), JOBS (runs side by side, default the number of GPUS, else 1; on mini the
# number of cores, at most 4), PROCESSES (of one run, each on a device of its own; torchrun starts them), PYTHON (interpreter to
# start from, default python3), STUDENT_CKPT and TEACHER_CKPT (local weight files in place of the hub's). Paths are the caller's.
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 2
}

# To an older bash an empty array is unset.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "this is bash $BASH_VERSION; start the scripts with 4.4 or newer"

shopt -s globasciiranges # of 4.4 [A-Z] is else a small letter, too

CALLED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# settle_paths: the caller's relative paths as the repository's folder reads them, where everything runs; asked for in that folder
# they stay as they are, and so do the options of runs that have them. A weights file that is not there is named here, before any run.
settle_paths() {
  local name path
  if [[ ${PYTHON:-} = */* && $PYTHON != /* ]]; then PYTHON=$CALLED_FROM/$PYTHON; fi
  for name in DATA OUTPUT STUDENT_CKPT TEACHER_CKPT; do
    path=${!name:-}
    path=${path/#"~/"/"$HOME/"} # in quotes the shell leaves it
    [[ -z $path || $path = /* || $CALLED_FROM -ef . ]] || path=$CALLED_FROM/$path
    [[ $name != *_CKPT || -z $path || -f $path ]] ||
      die "$name is '${!name}', and there is no file $path; it is a local file of weights, or empty for the hub's"
    printf -v "$name" %s "$path"
  done
}
settle_paths
DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}
read -ra DEVICES <<<"${GPUS:-}"
if [ ${#DEVICES[@]} -gt 0 ]; then JOBS=${JOBS:-${#DEVICES[@]}}; fi
PROCESSES=${PROCESSES:-1}
if [ "$PROCESSES" != 1 ]; then JOBS=${JOBS:-1}; fi
JOBS=${JOBS:-}

# has MODULE...: whether $PYTHON has them installed. dho_plugin alone would be found in this folder by any Python;
# dho_plugin.trainers is found only where the package is installed, and is this folder's where it was installed from here (pip -e).
has() {
  "$PYTHON" -c 'import os, sys; from importlib.util import find_spec
found = list(map(find_spec, sys.argv[1:]))
sys.exit(not (all(found) and os.path.samefile(os.path.dirname(found[0].origin), "trainers")))' \
    dho_plugin.trainers torch "$@" 2>/dev/null
}

# setup_python EXTRAS MODULE...: use the active Python if it has the package and the modules; else make .venv with both.
setup_python() {
  local extras=$1
  shift
  PYTHON=${PYTHON:-python3}
  if has "$@"; then return; fi
  mkdir -p .venv
  exec 9>.venv/.lock
  if command -v flock >/dev/null; then flock 9; fi # scripts that are started side by side set it up once
  make_venv "$extras" "$@"
  exec 9>&-
}

# make_venv EXTRAS MODULE...: .venv with the package and the modules, where it is not there yet.
make_venv() {
  local extras=$1
  shift
  if PYTHON=$PWD/.venv/bin/python has "$@"; then # whatever made it
    PYTHON=$PWD/.venv/bin/python
    return
  fi
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # not there, or somebody interrupted its making
    command -v "$PYTHON" >/dev/null || die "no $PYTHON found: install Python 3.10 or newer"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$("$PYTHON" --version) is too old: 3.10 or newer"
    echo "Creating .venv ..."
    "$PYTHON" -m venv .venv || die "cannot create .venv: on Debian and Ubuntu, install python3-venv"
  fi
  PYTHON=$PWD/.venv/bin/python
  echo "Installing dho-plugin and what it needs into .venv (several GB with CUDA; once) ..."
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".$extras" || die "the installation failed, see above"
}

# --- What the scripts are asked for ---

# read_options ALLOWED WORD...: fill the array PAIRS with the KEY VALUE words, and COMPARE, PLACEBO, FEW_SHOT, DEPTH and CONFIG
# with the options.
read_options() {
  local allowed=$1
  shift
  PAIRS=() COMPARE=no PLACEBO=no FEW_SHOT=no DEPTH='' CONFIG=''
  while [ $# -gt 0 ]; do
    if [[ $1 == -* && " $allowed " != *" $1 "* ]]; then die "unknown option '$1'; there are: ${allowed:-none}. $USAGE"; fi
    case $1 in
      --compare) COMPARE=yes ;;
      --placebo) PLACEBO=yes ;;
      --few-shot) FEW_SHOT=yes ;;
      --config)
        CONFIG=${2:-}
        [[ $CONFIG =~ ^[A-Za-z0-9_.+]+$ ]] || die "--config is '$CONFIG'; it is the name of a config file. $USAGE"
        shift
        ;;
      --depth)
        DEPTH=${2:-}
        [[ $DEPTH =~ ^[1-9][0-9]*$ ]] || die "--depth is '$DEPTH'; it is a number of layers. $USAGE"
        shift
        ;;
      *)
        [[ $1 =~ ^[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*$ ]] || die "'$1' is neither an option nor a config key. $USAGE"
        [ $# -ge 2 ] || die "$1 has no value. $USAGE"
        PAIRS+=("$1" "$2")
        shift
        ;;
    esac
    shift
  done
}

# set_data DATASET: a file of configs/datasets, a folder of one's own (train/<class>/..., see docs/OWN_DATA.md) or a CSV of one's own.
# Sets DATASET (its name in paths), DATASET_FILE and DATASET_PAIRS; for own data also DATA.
set_data() {
  local home
  [ -n "$1" ] || die "no data set is named; there are: $(data_sets), and any folder or .csv file of yours. $USAGE"
  DATASET=$1 DATASET_FILE=configs/datasets/$1.yaml DATASET_PAIRS=()
  if [[ $1 != */* && $1 != folder && -f $DATASET_FILE ]]; then return; fi # ./imagenet is a folder of one's own
  home=$1
  [[ $home = /* ]] || home=$CALLED_FROM/$home
  [ -d "$home" ] || [[ $home = *.csv && -f $home ]] ||
    die "unknown data set '$1'; there are: $(data_sets), and any folder or .csv file of yours"
  [ -d "$home" ] || DATASET_PAIRS=(DATASET.CSV "$(basename "$home")")
  [ -d "$home" ] || home=$(dirname "$home")
  home=$(cd "$home" && pwd)
  DATASET_FILE=configs/datasets/folder.yaml DATA=$(dirname "$home") DATASET=$(basename "$home")
  DATASET_PAIRS+=(DATASET.PREFIX "$DATASET")
  [[ $1 != *.csv ]] || DATASET=${DATASET}_$(basename "$1" .csv)
  DATASET=${DATASET//[^[:alnum:]._-]/_}
  [ ! -f "configs/datasets/$DATASET.yaml" ] || DATASET=own_$DATASET # output/imagenet stays ImageNet's
}

# The names that DATASET may have.
data_sets() {
  (cd configs/datasets && printf '%s\n' *.yaml | sed 's/\.yaml$//' | grep -vx 'folder\|mini_.*' | paste -sd ' ')
}

# set_labeled SHOTS|PERCENT%: how many training images are labeled. Sets LABELED (as in the runs' folders) and LABELED_PAIRS.
set_labeled() {
  if [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    LABELED=${1}shots LABELED_PAIRS=(DATASET.NUM_SHOTS "$1")
  elif [[ $1 =~ ^[0-9]+(\.[0-9]+)?%$ ]] && LC_ALL=C awk -v p="${1%\%}" 'BEGIN { exit !(p > 0 && p <= 100) }'; then
    LABELED=$(LC_ALL=C awk -v p="${1%\%}" 'BEGIN { printf "%.10g", p }') # 1.0% is 1%, and C has no decimal comma
    LABELED_PAIRS=(DATASET.NUM_SHOTS -1 DATASET.LABELED_PERCENT "$LABELED")
    LABELED+=percent
  else
    die "SHOTS is '$1'; it is a number of images a class, or a percentage up to 100 as 1%. $USAGE"
  fi
}

# config_of METHOD: the config file's name of a method; VPT-3 is VPT with prompts in three layers.
config_of() {
  local trainer=${1%%-*} depth= config
  [[ $1 != VPT-* ]] || depth=_depth${1#VPT-}
  case $trainer in
    LinearProbe | VPT) config=vit_b16_ep20 ;;
    CoOp) config=vit_b16_ep50_ctxv1 ;;
    PromptSRC) config=vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets ;;
    *) die "unknown method '$1'; there are: LinearProbe VPT-<depth> CoOp PromptSRC" ;;
  esac
  [ "$DATASET" != mini ] || config=mini_ep10
  [ -f "configs/trainers/${trainer}_DHO/$config$depth.yaml" ] ||
    die "there is no $config$depth.yaml for '$1'; there are: $(cd "configs/trainers/${trainer}_DHO" && echo "$config"*.yaml)"
  echo "$config$depth"
}

# --- Runs ---

# Python and, where they are asked for and not there yet, the embedded benchmark's images. Sets TRAIN, the command of a run.
set_up() {
  [[ $PROCESSES =~ ^[1-9][0-9]*$ ]] || die "PROCESSES is '$PROCESSES'; it is the number of processes of one run"
  [[ $JOBS =~ ^([1-9][0-9]*)?$ ]] || die "JOBS is '$JOBS'; it is the number of runs side by side"
  [[ ${GPUS:-} != *,* ]] || die "GPUS is '$GPUS'; its devices stand with spaces between, as \"0 1\": every run gets one"
  [ "$PROCESSES" = 1 ] || [ ${#DEVICES[@]} -eq 0 ] || die "GPUS gives every run one device, PROCESSES several: set one of them"
  setup_python ""
  TRAIN=("$PYTHON")
  [ "$PROCESSES" = 1 ] || TRAIN+=(-m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
  TRAIN+=(-m dho_plugin.train)
  [ "$DATASET" = mini ] || return 0
  "$PYTHON" -m dho_plugin.data.mini --root "$DATA/mini"
  side_by_side
}

# method_script METHOD DATASET SHOTS [--compare] [--few-shot] [KEY VALUE ...]: all that the script of one method does; VPT also has
# [--depth N].
method_script() {
  local method=$1 options="--compare --few-shot" depth="" kinds=unlabeled config
  shift
  if [ "$method" = VPT ]; then options+=" --depth" depth="[--depth N] "; fi
  USAGE="usage: bash scripts/$(basename "$0") DATASET SHOTS ${depth}[--compare] [--few-shot] [KEY VALUE ...]"
  [ $# -ge 2 ] || die "$USAGE"
  set_data "$1"
  set_labeled "$2"
  shift 2
  read_options "$options" "$@"
  [ "$method" != VPT ] || method=VPT-${DEPTH:-3}
  config=$(config_of "$method")
  [ $COMPARE = no ] || kinds="unlabeled base labeled placebo"
  set_up
  [ $FEW_SHOT = no ] || kinds+=" few_shot"
  count_runs 1 "$kinds"
  zero_shots
  [ $FEW_SHOT = no ] || few_shot_teachers
  train_kinds "${method%%-*}" "$config" "$kinds" "${PAIRS[@]}"
  finish_jobs
  show_table "$OUTPUT/$DATASET"
}

# count_runs METHODS "KIND ...": how many runs the script has, the two zero-shot rows among them.
count_runs() {
  local kinds seeds
  read -ra kinds <<<"$2"
  read -ra seeds <<<"$SEEDS"
  TOTAL=$((2 + $1 * ${#kinds[@]} * ${#seeds[@]}))
  [[ " $2 " != *" few_shot "* ]] || TOTAL=$((TOTAL + ${#seeds[@]})) # the teachers
}

# train_kinds METHOD CONFIG "KIND ..." [KEY VALUE ...]: the runs of each kind, which is base (without DHO), labeled (DHO on labeled
# images only), unlabeled (DHO) or placebo (DHO with a teacher that knows nothing new).
train_kinds() {
  local method=$1 config=$2 kinds=$3 kind
  shift 3
  # The paper warms up on ImageNet only (Table 6); 5000 steps are more than the whole training of a small set.
  [[ $method != @(LinearProbe|VPT) || $DATASET = @(imagenet|mini) ]] || set -- OPTIM.WARMUP_STEPS 0 "$@"
  for kind in $kinds; do
    case $kind in
      base) train_seeds "$method" "$config" "" "$@" ;;
      labeled) train_seeds "${method}_DHO" "$config" _labeled TRAINER.DHO.UNLABELED False "$@" ;;
      unlabeled) train_seeds "${method}_DHO" "$config" "" "$@" ;;
      placebo) train_seeds "${method}_DHO" "$config" _placebo TRAINER.DHO.TEACHER.TYPE placebo "$@" ;;
      few_shot) train_seeds "${method}_DHO" "$config" _few_shot "${TEACHER_PAIRS[@]}" "$@" ;;
    esac
  done
}

# train_seeds TRAINER CONFIG VARIANT [KEY VALUE ...]: one run a seed; finished ones are skipped.
train_seeds() {
  local trainer=$1 config=$2 variant=$3 folder=$1 seed dir
  shift 3
  [[ $trainer != Distill_* ]] || folder=Distill # one file for all methods that distil
  for seed in $SEEDS; do
    dir=$OUTPUT/$DATASET/$trainer/${config}_$LABELED$variant/seed$seed
    background "$dir" "${TRAIN[@]}" --root "$DATA" --seed "$seed" --trainer "$trainer" \
      --dataset-config-file "$DATASET_FILE" --config-file "configs/trainers/$folder/$config.yaml" --output-dir "$dir" \
      "${DATASET_PAIRS[@]}" "${LABELED_PAIRS[@]}" ${STUDENT_CKPT:+MODEL.BACKBONE.CKPT "$STUDENT_CKPT"} \
      ${TEACHER_CKPT:+TRAINER.DHO.TEACHER.CKPT "$TEACHER_CKPT"} "$@"
  done
}

# --- Few-shot teachers ---

# set_adapter_config: the config file of Tip-Adapter in CONFIG, the teacher of the data set's other runs where none is named, and
# in ADAPTER_PAIRS what the released implementation has of its own for a data set.
set_adapter_config() {
  local published
  [ -n "$CONFIG" ] || CONFIG=$([ "$DATASET" = mini ] && echo mini || echo "${1:-rn50}")
  [ -f "configs/trainers/TipAdapterF/$CONFIG.yaml" ] ||
    die "there is no configs/trainers/TipAdapterF/$CONFIG.yaml; there are: $(cd configs/trainers/TipAdapterF && echo *.yaml)"
  case $DATASET in # weight of the cache model in training; largest beta, alpha of the search; epochs
    caltech101) published="3.0 (12.0,5.0) 20" ;;
    dtd) published="2.0 (13.0,13.0) 20" ;;
    eurosat) published="2.0 (12.0,10.0) 100" ;;
    fgvc_aircraft) published="5.0 (30.0,30.0) 20" ;;
    food101) published="1.17 (10.0,10.0) 20" ;;
    oxford_flowers) published="10.0 (50.0,50.0) 20" ;;
    stanford_cars) published="3.0 (20.0,10.0) 20" ;;
    sun397) published="1.17 (12.0,10.0) 20" ;;
    ucf101) published="3.0 (7.0,3.0) 20" ;;
    *) ADAPTER_PAIRS=() && return ;;
  esac
  read -ra published <<<"$published"
  ADAPTER_PAIRS=(TRAINER.TIPADAPTER.ALPHA "${published[0]}" TRAINER.TIPADAPTER.SEARCH_SCALE "${published[1]}")
  ADAPTER_PAIRS+=(OPTIM.MAX_EPOCH "${published[2]}" INPUT.VIEWS "${published[2]}") # each epoch draws views of its own
}

# train_adapters TRAINER [KEY VALUE ...]: Tip-Adapter on the teacher's CLIP, one run a seed, each with its own shots.
train_adapters() {
  local trainer=$1
  shift
  STUDENT_CKPT=${TEACHER_CKPT:-} TEACHER_CKPT='' train_seeds "$trainer" "$CONFIG" "" "${ADAPTER_PAIRS[@]}" "$@"
}

# few_shot_teachers: a Tip-Adapter-F of each seed on the method's own teacher, which is then DHO's.
few_shot_teachers() {
  train_teachers
  finish_jobs
  name_teachers
}

# train_teachers: start them.
train_teachers() {
  set_adapter_config vit_l14_336
  set_image_pairs TRAINER.DHO.TEACHER
  train_adapters TipAdapterF "${IMAGE_PAIRS[@]}"
}

# name_teachers: in TEACHER_PAIRS what makes the finished ones the teachers (DHO-F), with the paper's alpha for few-shot teachers.
name_teachers() {
  local seed dir
  set_adapter_config vit_l14_336
  for seed in $SEEDS; do
    dir=$OUTPUT/$DATASET/TipAdapterF/${CONFIG}_$LABELED/seed$seed
    [ -f "$dir/results.json" ] || die "the few-shot teacher $dir is another process's: start again when it is finished"
  done
  TEACHER_PAIRS=(TRAINER.DHO.TEACHER.TYPE few_shot TRAINER.DHO.ALPHA 0.2)
  TEACHER_PAIRS+=(TRAINER.DHO.TEACHER.ADAPTER "$OUTPUT/$DATASET/TipAdapterF/${CONFIG}_$LABELED/seed{seed}")
  echo "few-shot teacher (DHO-F): ${TEACHER_PAIRS[*]}"
}

# What says which images and names are scored, and how they are read.
IMAGE_KEYS="DATASET.TEST_SETS DATASET.TEMPLATES DATASET.CSV DATASET.SUBSAMPLE_CLASSES DATASET.UNREADABLE DATASET.NUM_VAL_SHOTS"
IMAGE_KEYS+=" TEST.SPLIT INPUT.UPRIGHT INPUT.JPEG_GAP DATALOADER.NUM_WORKERS USE_CUDA"

# set_image_pairs NODE: in IMAGE_PAIRS those of PAIRS that hold for other models on the same images, too, and which CLIP it is that NODE
# (MODEL.BACKBONE or TRAINER.DHO.TEACHER) names.
set_image_pairs() {
  local k key
  IMAGE_PAIRS=()
  for ((k = 0; k < ${#PAIRS[@]}; k += 2)); do
    key=${PAIRS[k]}
    case $key in
      "$1".NAME | "$1".TAG | "$1".CKPT) IMAGE_PAIRS+=("MODEL.BACKBONE.${key##*.}" "${PAIRS[k + 1]}") ;;
      *) [[ " $IMAGE_KEYS " != *" $key "* ]] || IMAGE_PAIRS+=("${PAIRS[@]:k:2}") ;;
    esac
  done
}

# for_paths TEXT: the text as part of a folder's name.
for_paths() {
  echo "${1//[^[:alnum:]._-]/_}"
}

# zero_shot TRAINER CONFIG WEIGHTS: evaluate a CLIP as it is, the student's (ZeroshotCLIP) or the teacher's (ZeroshotCLIP2), from a local
# file if WEIGHTS is not empty.
zero_shot() {
  local dir=$OUTPUT/$DATASET/$1/$2
  if [ "$1" = ZeroshotCLIP ]; then set_image_pairs MODEL.BACKBONE; else set_image_pairs TRAINER.DHO.TEACHER; fi
  background "$dir" "${TRAIN[@]}" --root "$DATA" --seed 1 --trainer "$1" --eval-only \
    --dataset-config-file "$DATASET_FILE" --config-file "configs/trainers/$1/$2.yaml" --output-dir "$dir" \
    "${DATASET_PAIRS[@]}" ${3:+MODEL.BACKBONE.CKPT "$3"} "${IMAGE_PAIRS[@]}"
}

# The reference rows of the student and of the teacher.
zero_shots() {
  local student=vit_b16 teacher=vit_l14_336
  if [ "$DATASET" = mini ]; then student=mini teacher=mini; fi
  zero_shot ZeroshotCLIP "$student" "${STUDENT_CKPT:-}"
  zero_shot ZeroshotCLIP2 "$teacher" "${TEACHER_CKPT:-}"
}

# held_out: whether validation images are scored, in the place of all test sets.
held_out() {
  [[ " ${PAIRS[*]} " = *" TEST.SPLIT val "* ]]
}

# show_table WORD...: dho_plugin.tables, then the runs that another process was at.
show_table() {
  local code=0 label state
  if held_out; then
    echo "TEST.SPLIT val: the figures on validation images stand in each run's log.txt; no table is made of them"
    return
  fi
  "$PYTHON" -m dho_plugin.tables "$@" || code=$?
  for label in "${LEFT[@]}"; do
    state="not finished yet: start this command again when it is"
    [ ! -f "$label/results.json" ] || state="finished since"
    echo "$label was left to another process ($state)" >&2
  done
  return $code
}

# --- Running side by side ---

# Small models use several cores better in several runs than in several threads.
side_by_side() {
  local cores
  cores=$(nproc)
  JOBS=${JOBS:-$((cores < 4 ? cores : 4))}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))}
}

STARTED=0 TOTAL= # runs so far, and of the whole script
PIDS=() LABELS=() # of the runs in progress, by slot
LEFT=() # runs that another process was at
TRIES=no

# background LABEL COMMAND...: run a command, at most JOBS at a time; the first one that fails ends the script. LABEL is the run's
# folder. Slot k has the device DEVICES[k], counted round.
background() {
  local label=$1 slot=0 shown=(in_short "$1")
  shift
  STARTED=$((STARTED + 1))
  collect
  while [ ${#PIDS[@]} -ge "${JOBS:-1}" ]; do
    sleep 0.2
    collect
  done
  while [ -n "${PIDS[slot]:-}" ]; do slot=$((slot + 1)); done
  if [ "${JOBS:-1}" = 1 ]; then shown=(); else echo "$label: started${TOTAL:+ ($STARTED of $TOTAL)}"; fi
  set -m # a process group for every run, so that stop_runs reaches all of it
  "${shown[@]}" on_device "$slot" "$@" &
  set +m
  PIDS[slot]=$! LABELS[slot]=$label
  [ ${#shown[@]} -gt 0 ] || await "$slot"
}

# await SLOT: wait for the run of a slot, without asking again and again.
await() {
  local code=0
  wait "${PIDS[$1]}" || code=$?
  unset "PIDS[$1]"
  note_end "${LABELS[$1]}" $code
}

# on_device SLOT COMMAND...: run a command on the slot's device, where GPUS names devices.
on_device() {
  local slot=$1
  shift
  if [ ${#DEVICES[@]} -eq 0 ]; then
    "$@"
  else
    CUDA_VISIBLE_DEVICES=${DEVICES[slot % ${#DEVICES[@]}]} "$@"
  fi
}

# Note how the runs in the background that have ended went.
collect() {
  local slot running
  running=$(jobs -rp)
  for slot in "${!PIDS[@]}"; do
    if grep -qx "${PIDS[slot]}" <<<"$running"; then continue; fi
    await "$slot"
  done
}

# note_end LABEL CODE: a run that another process is at (exit code 3, of which torchrun makes a 1) is left to it; one whose loss was
# no longer finite (4) ends the script but where TRIES=yes says that it is one of many; any other failure ends the script.
note_end() {
  if [ "$2" = 1 ] && [ "$PROCESSES" != 1 ] && in_use "$1"; then set -- "$1" 3; fi
  if [ "$2$TRIES" = 4yes ]; then
    echo "$1: its loss was no longer finite: a try without a result"
    return
  fi
  case $2 in
    0) ;;
    3)
      echo "$1: another process is at it, left to it"
      LEFT+=("$1")
      ;;
    *)
      [ ! -f "$1/log.txt" ] || echo "the log of the failed run: $1/log.txt" >&2
      die "$1 failed (exit code $2), see above; finished runs are kept, and the same command goes on where it stopped"
      ;;
  esac
}

# in_use LABEL: whether a process is at a run; those of one that has failed may take seconds to end.
in_use() {
  [ -f "$1/.lock" ] && command -v flock >/dev/null && ! flock --wait 10 "$1/.lock" true
}

# Nothing goes on behind a script that has ended, failed or was interrupted.
stop_runs() {
  local group
  for group in "${PIDS[@]}"; do kill "-$STOP_WITH" -- "-$group" 2>/dev/null || true; done # also where its first process is gone
  if [ "$STOP_WITH" = INT ]; then wait; fi # what it has to say
}
STOP_WITH=TERM
trap stop_runs EXIT
trap '[ "${JOBS:-1}" != 1 ] || STOP_WITH=INT; exit 130' INT
trap 'exit 143' TERM

# Run a command and show the main lines of what it prints, with its label; all of it stands in the run's log.txt.
in_short() {
  local label=$1
  shift
  PYTHONUNBUFFERED=1 "$@" 2> >(cat >&2) |
    { grep --line-buffered -E '^epoch |accuracy: |is complete|will resume|left out' || true; } |
    while IFS= read -r line; do printf '%s: %s\n' "$label" "$line"; done
}

# Wait for everything that `background` started.
finish_jobs() {
  collect
  while [ ${#PIDS[@]} -gt 0 ]; do
    sleep 0.2
    collect
  done
}
