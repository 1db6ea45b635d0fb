# Shared by the scripts that distil into compact students (sourced).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BASELINES="KD KDFeature CE CEKDFeature CEKD SSKD DHKD" # and DHO; in the order of the paper's Table 1
NON_LINEAR="DHO+NL-Head-CE DHO+NL-Head-KD DHO+NL-Head-CE+KD" # DHO with other heads, as the paper's Table 14 calls them
TEN="caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"

ALONE=yes # whether one student is asked for, which STUDENT_CKPT is then for
CHECKED= # names of timm's that were looked up

# set_student STUDENT: the config of a student on the data set. Sets SETTING (the file's name), TEACHER (its teacher's zero-shot
# config), BEFORE (its own, as it is before it learns, of a CLIP), VARIANT (what the run folders add), STUDENT_PAIRS, and BY_NAME
# (the name, where timm is to know it).
set_student() {
  local name=$1
  VARIANT='' STUDENT_PAIRS=() TEACHER=rn50 BEFORE='' BY_NAME=''
  case $DATASET:$name in
    mini:mini-student) SETTING=mini_student TEACHER=mini BEFORE=mini ;;
    mini:mini-resnet | mini:mini-resnet-pretrained) SETTING=${name//-/_} TEACHER=mini ;;
    mini:*) die "'$name' is no student of mini; there are: mini-resnet mini-resnet-pretrained mini-student. $USAGE" ;;
    *:mini-*) die "'$name' is a student of mini alone; on $DATASET it is one of $(students), or timm's name of a model. $USAGE" ;;
    *:vit_b16) SETTING=vit_b16_ep32 TEACHER=vit_h14_378 BEFORE=vit_b16 ;;
    *:vit_b16_from_l14) SETTING=vit_b16_from_l14_ep32 TEACHER=vit_l14_336 BEFORE=vit_b16 ;;
    *:vit_l14_336) SETTING=vit_l14_336_ep32 TEACHER=vit_h14_378 ;;
    imagenet:resnet18) SETTING=resnet18_scratch_ep20 ;;
    imagenet:resnet50) SETTING=dino_resnet50_ep20 ;;
    imagenet:mobilenetv2) # from scratch, as its weights have seen the labels
      SETTING=resnet18_scratch_ep20 VARIANT=_mobilenetv2 STUDENT_PAIRS=(MODEL.BACKBONE.NAME mobilenetv2_100)
      ;;
    *:resnet18) SETTING=resnet18_ep200 ;;
    *:mobilenetv2) SETTING=mobilenetv2_ep200 ;;
    *: | *:-* | "$DATASET":[A-Z]*) die "STUDENT is '$name'; it is one of $(students), or timm's name of a model. $USAGE" ;;
    *) # of timm, by name; on ImageNet from scratch, as its weights have seen the labels
      SETTING=$([ "$DATASET" = imagenet ] && echo resnet18_scratch_ep20 || echo resnet18_ep200)
      VARIANT=_$(for_paths "$name") STUDENT_PAIRS=(MODEL.BACKBONE.NAME "$name")
      [ "$name" = resnet50 ] || BY_NAME=$name
      ;;
  esac
  # Weights in the place of random ones make another student, with runs of its own.
  [[ $SETTING != *scratch* || $ALONE = no || -z ${STUDENT_CKPT:-} ]] || VARIANT+=_from_$(for_paths "$(basename "$STUDENT_CKPT")")
  # The paper warms up on ImageNet only; 5000 steps are more than the whole training of a small set.
  [[ $SETTING != vit_* || $DATASET = imagenet ]] || STUDENT_PAIRS+=(OPTIM.WARMUP_STEPS 0)
}

# check_name: whether there is a student that goes by timm's name; a slip is one message before anything is trained.
check_name() {
  local close
  [[ -n $BY_NAME && " $CHECKED " != *" $BY_NAME "* ]] || return 0
  close=$("$PYTHON" -c 'import sys
from dho_plugin.models.backbones import close_names, is_backbone
name, *ours = sys.argv[1:]
if not is_backbone(name):
    print(*close_names(name, ours) or ["(none)"])' "$BY_NAME" $(students))
  [ -z "$close" ] || die "STUDENT is '$BY_NAME', which is neither one of $(students) nor timm's name of a model; close to it are: $close"
  CHECKED+=" $BY_NAME"
}

# The names that STUDENT may have beside timm's.
students() {
  echo "resnet18 resnet50 mobilenetv2 vit_b16 vit_b16_from_l14 vit_l14_336; on mini: mini-resnet mini-resnet-pretrained mini-student"
}

# set_tuned METHOD: in TUNED the learning rate and lambda of a method on mini's compact students, the best of as many tries each on
# held-out labels (scripts/tune_distill.sh; docs/MINI_STUDENTS.md); DHO-F and DHO with non-linear heads have DHO's, untried. All other
# students have the paper's, which their config file says.
set_tuned() {
  local values
  case $DATASET:$SETTING:$1 in
    mini:mini_resnet:CEKD | mini:mini_resnet:SSKD) values="3e-2 0.02" ;;
    mini:mini_resnet:CE) values="3e-2" ;;
    mini:mini_resnet_pretrained:CE) values="1e-1" ;;
    mini:mini_resnet:KD*) values="1e-2" ;; # KDFeature was not tried
    mini:mini_resnet_pretrained:KD*) values="3e-2" ;;
    mini:mini_resnet*:DHKD) values="1e-2 0.1" ;;
    mini:mini_resnet*) values="3e-2 0.1" ;;
    *) TUNED=() && return ;;
  esac
  read -ra TUNED <<<"$values"
  TUNED=(OPTIM.LR "${TUNED[0]}" ${TUNED[1]:+TRAINER.DHO.LAMBDA "${TUNED[1]}"})
}

# set_method METHOD: what its runs are. Sets RUNS_AS (the trainer), SUFFIX (what their folders add) and HEADS (the options of other heads).
set_method() {
  RUNS_AS=Distill_$1 SUFFIX='' HEADS=()
  case $1 in
    DHO-F) RUNS_AS=Distill_DHO SUFFIX=_few_shot ;;
    DHO+NL-*)
      RUNS_AS=Distill_DHO SUFFIX=${1#DHO+NL-Head-}
      [[ $SUFFIX != CE* ]] || HEADS+=(TRAINER.DISTILL.CE_HEAD mlp TRAINER.DISTILL.INIT kaiming)
      [[ $SUFFIX != *KD ]] || HEADS+=(TRAINER.DHO.KD_HEAD mlp TRAINER.DHO.INIT kaiming)
      SUFFIX=_nl_${SUFFIX,,}
      SUFFIX=${SUFFIX/+/_}
      ;;
  esac
}

# distill_methods "METHOD ..." [KEY VALUE ...]: the runs of some methods on the student, of as many labeled images as set_labeled says.
# KD and KDFeature look at no label: one run a seed does for all numbers of them.
distill_methods() {
  local methods=$1 method own STUDENT_CKPT=${STUDENT_CKPT:-}
  shift
  [[ $SETTING != *scratch* || $ALONE = yes ]] || STUDENT_CKPT=''
  for method in $methods; do
    set_tuned "$method"
    set_method "$method"
    own=("${STUDENT_PAIRS[@]}" "${TUNED[@]}" "${HEADS[@]}")
    case $method in
      KD | KDFeature)
        without_labels "$method" "${own[@]}" "$@"
        continue
        ;;
      DHO-F) # its few-shot teachers are there
        CONFIG=$TEACHER name_teachers
        own+=("${TEACHER_PAIRS[@]}")
        ;;
    esac
    train_seeds "$RUNS_AS" "$SETTING" "$VARIANT$SUFFIX" "${own[@]}" "$@"
  done
}

# without_labels METHOD KEY VALUE ...: the runs of a method that looks at no label; a shot is drawn all the same.
without_labels() {
  local method=$1 LABELED=unlabeled LABELED_PAIRS=(DATASET.NUM_SHOTS 1)
  shift
  train_seeds "Distill_$method" "$SETTING" "$VARIANT" "$@"
}

# teachers_first "TEACHER ..." "LABELED ...": train DHO-F's few-shot teachers, all side by side: their students wait for them.
teachers_first() {
  local TEACHER amount
  for TEACHER in $1; do
    for amount in $2; do
      set_labeled "$amount"
      CONFIG=$TEACHER train_teachers
    done
  done
  finish_jobs
}

# default_methods "STUDENT ..." METHOD...: these, and DHO-F where there is a config for the few-shot teacher of each student.
default_methods() {
  local student
  for student in $1; do
    set_student "$student"
    [ -f "configs/trainers/TipAdapterF/$TEACHER.yaml" ] || { echo "${@:2}" && return; }
  done
  echo "${@:2}" DHO-F
}

# check_methods METHOD...: whether there are such methods.
check_methods() {
  local method known="$BASELINES DHO DHO-F $NON_LINEAR"
  for method; do
    [[ " $known " = *" $method "* ]] || die "unknown method '$method'; there are: $known"
  done
}

# check_pairs WHAT KEY...: whether PAIRS leaves alone what the rows of a table differ in.
check_pairs() {
  local what=$1 key
  shift
  for key; do
    [[ " ${PAIRS[*]} " != *" $key "* ]] || die "$key is among the options, and $what differ in it: leave it out"
  done
}

# check_percents PERCENT% ...: whether each is a percentage, as a number alone would be shots, beside the paper's percentages.
check_percents() {
  local percent
  for percent; do
    [[ $percent = *% ]] || die "PERCENTS has '$percent'; each of its words ends in %, as in PERCENTS=\"1% 10%\""
    set_labeled "$percent"
  done
}

# count_distilled RUNS ZERO_SHOT_ROWS: how many runs the script has; RUNS are those of one seed.
count_distilled() {
  TOTAL=$((STARTED + $1 * $(wc -w <<<"$SEEDS") + $2))
}

# reference TRAINER CONFIG WEIGHTS: a zero-shot row of the table; the folders that it is made of are in SHOWN.
reference() {
  zero_shot "$@"
  show_folder "$OUTPUT/$DATASET/$1/$2"
}

# distill_grid "STUDENT ..." "LABELED ..." "METHOD ..." [KEY VALUE ...]: all runs of a table, the reference rows first; those of the
# students, too, where STUDENT_ROWS is yes. Sets SHOWN, the folders that the table is made of.
distill_grid() {
  local students=$1 amounts=$2 methods=$3 student amount zero=() before=() once="" each="" method weights=0 teachers=0 each_amount
  shift 3
  [ "$(wc -w <<<"$students")" = 1 ] || ALONE=no
  check_methods $methods
  for method in $methods; do
    if [[ $method = KD* ]]; then once+=" $method"; else each+=" $method"; fi
    [ "$method" != DHO-F ] || teachers=1
  done
  for student in $students; do
    set_student "$student"
    [[ " ${zero[*]} " = *" $TEACHER "* ]] || zero+=("$TEACHER")
    [[ ${STUDENT_ROWS:-no} = no || -z $BEFORE || " ${before[*]} " = *" $BEFORE "* ]] || before+=("$BEFORE")
    [ $teachers = 0 ] || CONFIG=$TEACHER set_adapter_config
    [[ $SETTING = *scratch* ]] || weights=$((weights + 1))
  done
  [ -z "${STUDENT_CKPT:-}" ] || [ $weights -le 1 ] ||
    die "STUDENT_CKPT is one student's file, and $students are asked for: name one of them in STUDENTS"
  [ -z "${TEACHER_CKPT:-}" ] || [ ${#zero[@]} -eq 1 ] ||
    die "TEACHER_CKPT is one teacher's file, and $students have several (${zero[*]}): name one of them in STUDENTS"
  for amount in $amounts; do set_labeled "$amount"; done # a slip is one message before anything is trained
  set_up
  for student in $students; do
    set_student "$student"
    check_name
  done
  each_amount=$(($(wc -w <<<"$students") * $(wc -w <<<"$each") + teachers * ${#zero[@]}))
  count_distilled $(($(wc -w <<<"$students") * $(wc -w <<<"$once") + $(wc -w <<<"$amounts") * each_amount)) \
    $((${#before[@]} + ${#zero[@]}))
  SHOWN=()
  for BEFORE in "${before[@]}"; do reference ZeroshotCLIP "$BEFORE" "${STUDENT_CKPT:-}"; done
  for TEACHER in "${zero[@]}"; do reference ZeroshotCLIP2 "$TEACHER" "${TEACHER_CKPT:-}"; done
  [ $teachers = 0 ] || teachers_first "${zero[*]}" "$amounts"
  for student in $students; do
    set_student "$student"
    distill_methods "$once" "$@"
    for amount in $amounts; do
      set_labeled "$amount"
      distill_methods "$each" "$@"
    done
  done
  finish_jobs
  shown_folders "$students" "$amounts" "$methods"
}

# distill_sets "SET ..." "STUDENT ..." "LABELED ..." "METHOD ..." [KEY VALUE ...]: distill_grid on each of some data sets. Without methods
# those of the paper's Figure 5. Sets SHOWN.
distill_sets() {
  local sets=$1 students=$2 amounts=$3 asked=$4 data=$DATA one student methods all=()
  shift 4
  for one in $sets; do # a slip is one message before anything is trained
    set_data "$one"
    for student in $students; do set_student "$student"; done
  done
  for one in $sets; do
    DATA=$data # a folder of one's own has changed it
    set_data "$one"
    methods=${asked:-$(default_methods "$students" KD CE CEKDFeature CEKD DHO)}
    distill_grid "$students" "$amounts" "$methods" "$@"
    all+=("${SHOWN[@]}")
  done
  SHOWN=("${all[@]}")
}

# shown_folders "STUDENT ..." "LABELED ..." "METHOD ...": add to SHOWN where the runs lie.
shown_folders() {
  local student amount method
  for student in $1; do
    set_student "$student"
    for method in $3; do
      set_method "$method"
      for amount in $2; do
        set_labeled "$amount"
        [[ $method != KD* ]] || LABELED=unlabeled
        [ "$method" != DHO-F ] || show_folder "$OUTPUT/$DATASET/TipAdapterF/${TEACHER}_$LABELED" # the teachers
        show_folder "$OUTPUT/$DATASET/$RUNS_AS/${SETTING}_$LABELED$VARIANT$SUFFIX"
      done
    done
  done
}

# show_folder FOLDER: add it to SHOWN, once.
show_folder() {
  [[ " ${SHOWN[*]} " = *" $1 "* ]] || SHOWN+=("$1")
}

# table_words WORD...: the data set and the KEY VALUE words of a table's script. Sets SET (the word for it), DATASET and PAIRS; COMPARE and
# others as in lib.sh.
table_words() {
  SET=imagenet
  if [[ $# -gt 0 && ! $1 =~ ^(-|[A-Z]) ]]; then
    SET=$1
    shift
  fi
  set_data "$SET"
  read_options "" "$@"
}

# low_shot_table NUMBER "STUDENT ...": Table 4 or 12; on mini its own student.
low_shot_table() {
  local students=$2 paper=(--paper-table "$1")
  [ "$DATASET" != mini ] || students=mini-student
  [ "$DATASET" = imagenet ] || paper=()
  check_percents ${PERCENTS:-1% 10%}
  STUDENT_ROWS=yes
  distill_grid "${STUDENTS:-$students}" "${PERCENTS:-1% 10%}" "${METHODS:-DHO}" "${PAIRS[@]}"
  show_table "${SHOWN[@]}" "${paper[@]}"
}
