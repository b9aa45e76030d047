#!/usr/bin/env bash
# Which blocks carry transfer, before and after alignment: the result in docs/results/layer_ablation.md.
#
#   benchmarks/where_transfer_lives.sh MODELS DATA WORKDIR [TASK...]
#
# MODELS is "before=DIR,after=DIR"; DATA holds ud and wikiann; TASK is pos, ner or both. The same command goes on where it
# stopped. From the environment: SEEDS (0,1,2), STEPS of fine-tuning (150) and ITEMS of each test set (300).
set -euo pipefail
cd "$(dirname "$0")/.."
MODELS=${1:?give NAME=DIR,...} D=${2:?give the directory of the data} W=${3:?give a workdir}
TASKS=("${@:4}")
[[ ${#TASKS[@]} -gt 0 ]] || TASKS=(pos ner)
PYTHON=${PYTHON:-python} SEEDS=${SEEDS:-0,1,2} STEPS=${STEPS:-150} ITEMS=${ITEMS:-300}

run() { # name, settings...
  $PYTHON -m ppa_jax.main --config=configs/layer_ablation.py --workdir="$W/$1" --config.init="$MODELS" \
    --config.seeds="$SEEDS" --config.ablations=singles,pairs --config.parallel="$D/ud" --config.dtype=float32 \
    --config.train.epochs=0 --config.train.steps="$STEPS" --config.train.warmup=0.1 --config.train.learning_rate=1e-4 \
    --config.checkpoint.every=0 --config.test_batch_size=32 --config.data.test_examples="$ITEMS" "${@:2}"
}

for task in "${TASKS[@]}"; do
  case $task in
    pos) run pos --config.data.train="en=$D/ud/en_ewt-ud-train.conllu" --config.data.test="$D/ud/{lang}_pud-ud-test.conllu" ;;
    ner) run ner --config.data.train="en=$D/wikiann/train-en.tsv" --config.data.test="$D/wikiann/dev-{lang}.tsv" \
      --config.parallel="" ;; # the languages of PUD are others
    *) echo "unknown task: $task" >&2; exit 2 ;;
  esac
done
