# Shared by all scripts (sourced): Python set-up, data, runs over seeds, the table.
# Settings from the environment: DATA (default data), OUTPUT (default output), SEEDS (default "1 2 3"),
# JOBS (runs side by side, default 1; on mini the number of cores, at most 4), PYTHON (interpreter to start from, default python3),
# STUDENT_CKPT and TEACHER_CKPT (local weight files in place of the hub's).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}
JOBS=${JOBS:-}

die() {
  echo "error: $*" >&2
  exit 2
}

# has MODULE...: whether $PYTHON has them installed. dho_plugin alone would be found in this folder by any Python;
# dho_plugin.trainers is found only where the package is installed.
has() {
  "$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' \
    dho_plugin.trainers torch "$@" 2>/dev/null
}

# setup_python EXTRAS MODULE...: use the active Python if it has the package and the modules; else make .venv with both.
setup_python() {
  local extras=$1
  shift
  PYTHON=${PYTHON:-python3}
  if has "$@"; then return; fi
  if [ ! -x .venv/bin/python ]; then
    command -v "$PYTHON" >/dev/null || die "no $PYTHON found: install Python 3.10 or newer"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$("$PYTHON" --version) is too old: 3.10 or newer"
    echo "Creating .venv ..."
    "$PYTHON" -m venv .venv || die "cannot create .venv: on Debian and Ubuntu, install python3-venv"
  fi
  PYTHON=$PWD/.venv/bin/python
  if has "$@"; then return; fi
  echo "Installing dho-plugin and what it needs into .venv (several GB with CUDA; once) ..."
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".$extras" || die "the installation failed, see above"
}

# Make the embedded benchmark's images where they are asked for and not there yet.
prepare_data() {
  [ "$1" != mini ] || "$PYTHON" -m dho_plugin.data.mini --root "$DATA/mini"
}

# run_dir DATASET TRAINER CONFIG VARIANT SHOTS SEED
run_dir() {
  echo "$OUTPUT/$1/$2/$3_$5shots$4/seed$6"
}

# train_seeds DATASET SHOTS TRAINER CONFIG VARIANT [KEY VALUE ...]: one run a seed; finished ones are skipped.
train_seeds() {
  local dataset=$1 shots=$2 trainer=$3 config=$4 variant=$5 seed dir
  shift 5
  for seed in $SEEDS; do
    dir=$(run_dir "$dataset" "$trainer" "$config" "$variant" "$shots" "$seed")
    background "$dir" "$PYTHON" -m dho_plugin.train --root "$DATA" --seed "$seed" --trainer "$trainer" \
      --dataset-config-file "configs/datasets/$dataset.yaml" \
      --config-file "configs/trainers/$trainer/$config.yaml" --output-dir "$dir" \
      DATASET.NUM_SHOTS "$shots" ${STUDENT_CKPT:+MODEL.BACKBONE.CKPT "$STUDENT_CKPT"} \
      ${TEACHER_CKPT:+TRAINER.DHO.TEACHER.CKPT "$TEACHER_CKPT"} "$@"
  done
}

# zero_shot DATASET TRAINER CONFIG WEIGHTS: evaluate a CLIP as it is, from a local file if WEIGHTS is not empty.
zero_shot() {
  local dir=$OUTPUT/$1/$2/$3
  background "$dir" "$PYTHON" -m dho_plugin.train --root "$DATA" --seed 1 --trainer "$2" --eval-only \
    --dataset-config-file "configs/datasets/$1.yaml" --config-file "configs/trainers/$2/$3.yaml" --output-dir "$dir" \
    ${4:+MODEL.BACKBONE.CKPT "$4"}
}

# Small models use several cores better in several runs than in several threads.
side_by_side() {
  local cores
  cores=$(nproc)
  JOBS=${JOBS:-$((cores < 4 ? cores : 4))}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))}
}

# background LABEL COMMAND...: run a command, at most JOBS at a time; the first one that fails ends the script.
background() {
  local label=$1
  shift
  if [ "${JOBS:-1}" -le 1 ]; then
    "$@"
    return
  fi
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
  echo "$label: started"
  set -m # a process group for every run, so that stop_runs reaches all of it
  in_short "$label" "$@" &
  set +m
}

# Nothing goes on behind a script that has ended, failed or was interrupted.
stop_runs() {
  local group
  for group in $(jobs -rp); do kill -- "-$group" 2>/dev/null || true; done
}
trap stop_runs EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Run a command and show the main lines of what it prints, with its label; all of it stands in the run's log.txt.
in_short() {
  local label=$1
  shift
  PYTHONUNBUFFERED=1 "$@" 2> >(cat >&2) |
    { grep --line-buffered -E '^epoch |accuracy: |is complete|will resume|left out' || true; } | sed -u "s|^|$label: |"
}

# Wait for everything that `background` started.
finish_jobs() {
  while [ -n "$(jobs -p)" ]; do
    wait -n || die "a run failed, see above; finished runs are kept, and the same command goes on where it stopped"
  done
}
