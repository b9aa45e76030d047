#!/usr/bin/env bash
# Which objective aligns best at equal cost: trainings of one model on the same pairs, each with as many operations.
#
#   benchmarks/which_objective.sh MODEL DATA WORKDIR [SEEDS]
#
# Trains and measures with which_part_aligns.sh, which describes MODEL, DATA and SEEDS. Every training gets the operations
# of STEPS steps of PPA, by --config.plan: its steps are in WORKDIR/steps. The same command resumes where it stopped. From
# the environment: STEPS (400), NAMES (the trainings; those of which_part_aligns.sh), SETTINGS, LOWER, BASELINE, MEASURE and
# PYTHON as there.
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${1:?give a Hugging Face directory} D=${2:?give the directory of the data} W=${3:?give a workdir} SEEDS=${4:-0 1}
STEPS=${STEPS:-400}
export NAMES=${NAMES:-mlm tlm contrast ppa symmetric ranking ranking_margin ranking_frozen ranking_tlm ranking_rtl} SETTINGS=${SETTINGS:-}

train() { # name, settings of the main job...
  NAMES=$1 SETTINGS="$SETTINGS ${*:2}" MEASURE=no benchmarks/which_part_aligns.sh "$MODEL" "$D" "$W" "$SEEDS"
}

operations() { # of a step of a training, in GFLOP
  SEEDS=0 train "$1" --config.plan=true | sed -nE 's/,//g; s/.*operations of a step.*\| *([0-9.]+) TFLOP.*/\1/p' | awk '{print int(1000 * $1)}'
}

mkdir -p "$W/steps"
for name in ppa $NAMES; do
  [[ -s $W/steps/$name.gflop ]] || operations "$name" > "$W/steps/$name.gflop"
done
for name in $NAMES; do
  steps=$((STEPS * $(< "$W/steps/ppa.gflop") / $(< "$W/steps/$name.gflop")))
  echo "$steps" > "$W/steps/$name"
  STEPS=$steps train "$name"
done
benchmarks/which_part_aligns.sh "$MODEL" "$D" "$W" "$SEEDS"
