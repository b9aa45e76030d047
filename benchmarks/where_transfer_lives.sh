#!/usr/bin/env bash
# Which blocks carry transfer, before and after alignment; results: docs/results/layer_ablation.md.
#
#   benchmarks/where_transfer_lives.sh MODELS DATA WORKDIR [TASK...]
#
# MODELS is "before=DIR,after=DIR"; DATA holds ud, wikiann and ntrex; TASK is pos, ner or both. Repeating the command
# resumes it. Environment variables: SEEDS (0,1,2), ABLATIONS (singles,pairs), STEPS of fine-tuning (200) and ITEMS of each
# test set (300): one to two minutes per training on one CPU core, 30 trainings per model of six blocks and task. Models
# may run in parallel, each with its own command in the same workdir; the command with both then writes the report.
set -euo pipefail
cd "$(dirname "$0")/.."
MODELS=${1:?give NAME=DIR,...} D=${2:?give the directory of the data} W=${3:?give a workdir}
TASKS=("${@:4}")
[[ ${#TASKS[@]} -gt 0 ]] || TASKS=(pos ner)
PYTHON=${PYTHON:-python} SEEDS=${SEEDS:-0,1,2} ABLATIONS=${ABLATIONS:-singles,pairs} STEPS=${STEPS:-200} ITEMS=${ITEMS:-300}

run() { # name, settings...
  $PYTHON -m ppa_jax.main --config=configs/layer_ablation.py --workdir="$W/$1" --config.init="$MODELS" \
    --config.seeds="$SEEDS" --config.ablations="$ABLATIONS" --config.parallel="$D/ud" --config.dtype=float32 \
    --config.train.epochs=0 --config.train.steps="$STEPS" --config.train.batch_size=16 --config.train.warmup=0.1 \
    --config.train.learning_rate=2e-4 --config.similarity.sentences=256 --config.checkpoint.every=0 \
    --config.test_batch_size=32 --config.data.test_examples="$ITEMS" "${@:2}"
}

for task in "${TASKS[@]}"; do
  case $task in
    pos) run pos --config.data.train="en=$D/ud/en_ewt-ud-train.conllu" --config.data.test="$D/ud/{lang}_pud-ud-test.conllu" ;;
    ner) run ner --config.data.train="en=$D/wikiann/train-en.tsv" --config.data.test="$D/wikiann/dev-{lang}.tsv" \
      --config.parallel="$D/ntrex" ;; # PUD lacks some of its languages
    *) echo "unknown task: $task" >&2; exit 2 ;;
  esac
done
