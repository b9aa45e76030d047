#!/usr/bin/env bash
# ALIGN-MLM's experiment on real English, at a size that two CPU cores can train; results: docs/results/align_mlm.md.
#
#   benchmarks/derived_languages.sh DATA WORKDIR [PART...]
#
# DATA holds ud, wikiann and bible in the forms of docs/pretraining.md. PART is one or more of main (four objectives on
# trans and trans+inv), seeds (trans+inv with two more seeds of mlm and align_mlm), half (half of the dictionary), syntax
# (trans+syn, on the text that has trees); default: all. Repeating the command resumes it. Environment variables: STEPS of
# pretraining (5000), and OBJECTIVES, TRANSFORMATIONS and SEEDS, to run only a part of the work.
set -euo pipefail
cd "$(dirname "$0")/.."
D=${1:?give the directory of the data} W=${2:?give a workdir}
PARTS=("${@:3}")
[[ ${#PARTS[@]} -gt 0 ]] || PARTS=(main seeds half syntax)
PYTHON=${PYTHON:-python} STEPS=${STEPS:-5000}
UD="$D/ud" WIKIANN="$D/wikiann"
EWT="$UD/en_ewt-ud-train.conllu"

run() { # workdir, objectives, transformations, seeds, settings...
  $PYTHON -m ppa_jax.main --config=configs/align_mlm.py --workdir="$W/$1" --config.objectives="${OBJECTIVES:-$2}" \
    --config.transformations="${TRANSFORMATIONS:-$3}" --config.seeds="${SEEDS:-$4}" --config.dtype=float32 \
    --config.data.text="$EWT,$D/bible/engwebp.txt" --config.data.dictionary_share=1.0 \
    --config.pretraining.model.vocab_size=2000 --config.pretraining.model.hidden_size=64 \
    --config.pretraining.model.num_layers=3 --config.pretraining.model.num_heads=1 \
    --config.pretraining.data.max_length=64 --config.pretraining.train.steps="$STEPS" \
    --config.pretraining.train.batch_size=64 --config.pretraining.train.learning_rate=2e-3 \
    --config.pretraining.train.warmup=0.05 --config.pretraining.train.dropout=0.1 \
    --config.finetuning.data.max_length=64 --config.finetuning.train.learning_rate=5e-4 --config.finetuning.train.dropout=0.1 \
    --config.tasks.pos.train="$EWT" --config.tasks.pos.test="$UD/en_ewt-ud-test.conllu" --config.tasks.pos.epochs=2.0 \
    --config.tasks.ner.train="$WIKIANN/train-en.tsv" --config.tasks.ner.test="$WIKIANN/dev-en.tsv" \
    --config.tasks.ner.epochs=2.0 "${@:5}"
}

for part in "${PARTS[@]}"; do
  case $part in
    main) run main mlm,xlm,dict_mlm,align_mlm trans,trans+inv 0 ;;
    seeds) run main mlm,align_mlm trans+inv 0,1,2 ;; # its report includes the part main
    half) run half dict_mlm,align_mlm trans,trans+inv 0 --config.data.dictionary_share=0.5 ;;
    syntax) run syntax mlm,align_mlm trans+syn 0 --config.data.text="$EWT" --config.data.order_from="$UD/tr_pud-ud-test.conllu" ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
  esac
done
