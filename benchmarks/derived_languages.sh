#!/usr/bin/env bash
# ALIGN-MLM's experiment on real English at a size that two CPU cores can train: the result in docs/results/align_mlm.md.
#
#   benchmarks/derived_languages.sh DATA WORKDIR [PART...]
#
# DATA holds ud, wikiann, multi30k and bible in the forms of docs/pretraining.md. PART is one or more of main (four
# objectives on trans and trans+inv), seeds (trans+inv with two more), whole (the whole dictionary
# instead of half), long (main without NER, five times the steps), syntax (trans+syn, on the text that has trees);
# all by default. The same command goes on where it stopped. From the environment: STEPS of pretraining (1000).
set -euo pipefail
cd "$(dirname "$0")/.."
D=${1:?give the directory of the data} W=${2:?give a workdir}
PARTS=("${@:3}")
[[ ${#PARTS[@]} -gt 0 ]] || PARTS=(main seeds whole long syntax)
PYTHON=${PYTHON:-python} STEPS=${STEPS:-1000}
UD="$D/ud" WIKIANN="$D/wikiann"
TEXT="$UD/en_ewt-ud-train.conllu,$WIKIANN/train-en.tsv,$D/multi30k/train.en,$D/bible/engwebp.txt"

run() { # name, objectives, transformations, seeds, settings...
  $PYTHON -m ppa_jax.main --config=configs/align_mlm.py --workdir="$W/$1" --config.objectives="$2" \
    --config.transformations="$3" --config.seeds="$4" --config.dtype=float32 --config.data.text="$TEXT" \
    --config.pretraining.model.vocab_size=4000 --config.pretraining.model.hidden_size=128 \
    --config.pretraining.model.num_layers=2 --config.pretraining.model.num_heads=4 \
    --config.pretraining.data.max_length=64 --config.pretraining.train.steps="$STEPS" \
    --config.pretraining.train.batch_size=64 --config.pretraining.train.learning_rate=2e-3 \
    --config.pretraining.train.warmup=0.1 --config.pretraining.train.dropout=0.0 \
    --config.finetuning.data.max_length=64 --config.finetuning.train.learning_rate=5e-4 --config.finetuning.train.dropout=0.0 \
    --config.tasks.pos.train="$UD/en_ewt-ud-train.conllu" --config.tasks.pos.test="$UD/en_ewt-ud-test.conllu" \
    --config.tasks.pos.epochs=1.0 "${@:5}"
}

NER=(--config.tasks.ner.train="$WIKIANN/train-en.tsv" --config.tasks.ner.test="$WIKIANN/dev-en.tsv" --config.tasks.ner.epochs=1.0)
for part in "${PARTS[@]}"; do
  case $part in
    main) run main mlm,xlm,dict_mlm,align_mlm trans,trans+inv 0 "${NER[@]}" ;;
    seeds) run main mlm,xlm,dict_mlm,align_mlm trans+inv 0,1,2 "${NER[@]}" ;; # its report is of three seeds
    whole) run whole dict_mlm,align_mlm trans+inv 0 --config.data.dictionary_share=1.0 ;;
    long) STEPS=$((5 * STEPS)) run long mlm,xlm,dict_mlm,align_mlm trans+inv,trans 0 ;;
    syntax) run syntax mlm,align_mlm trans+syn 0 --config.data.text="$UD/en_ewt-ud-train.conllu" \
      --config.data.order_from="$UD/tr_pud-ud-test.conllu" ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
  esac
done
