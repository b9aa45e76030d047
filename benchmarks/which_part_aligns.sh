#!/usr/bin/env bash
# Which part of the method aligns: five trainings of one model on the same pairs and for the same steps, and all measures.
#
#   benchmarks/which_part_aligns.sh MODEL DATA WORKDIR [SEEDS]
#
# MODEL is a Hugging Face directory, DATA holds multi30k, bible, tldr, tatoeba, word_alignment, dictionaries, bucc, ntrex
# and ud, in the forms of docs/data.md and docs/evaluation.md; SEEDS is "0 1" by default. About 25 minutes per training on
# two CPU cores. Repeating the command resumes it. Environment variables:
#
#   NAMES     the trainings (mlm tlm contrast ppa ppa_unshuffled). ppa_words is PPA with the loss of ALIGN-MLM on MUSE's
#             dictionaries, ppa_words_small with lower-case words only, ppa_cls PPA as in the paper: [CLS] of the last
#             layer, regardless of SETTINGS; symmetric and ranking* are the objectives of docs/objectives.md
#   LOWER     what ranking_frozen freezes (embeddings,0-2: half of 6 blocks)
#   STEPS     of each training (400)
#   SETTINGS  of the main job, for every training
#   BASELINE  of the evaluation (before,mlm,ppa)
#   MEASURE   yes, or no: train and do not evaluate
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${1:?give a Hugging Face directory} D=${2:?give the directory of the data} W=${3:?give a workdir} SEEDS=${4:-0 1}
PYTHON=${PYTHON:-python}
B=$D/bible
PAIRS="en-de=$D/multi30k/train,en-fr=$D/multi30k/train,en-de=$B/engwebp.txt|$B/deu1912.txt,en-es=$B/engwebp.txt|$B/spaRV1909.txt"
PAIRS+=",en-zh=$B/engwebp.txt|$B/cmn-cu89s.txt,en-sw=$B/engwebp.txt|$B/swhulb.txt,en-tr=$B/engwebp.txt|$B/turobt.txt"
PAIRS+=",en-ru=$B/eng_nt_BSB.txt|$B/org_nt_RUSSYN.txt,en-de=$D/tldr/en-de.tsv,en-fr=$D/tldr/en-fr.tsv,en-es=$D/tldr/en-es.tsv"

declare -A CHANGES=(
  [mlm]="--config.contrastive.weight=0 --config.tlm.joint=false" # the control: the same sentences, never as pairs
  [tlm]="--config.contrastive.weight=0"
  [contrast]="--config.tlm.weight=0"
  [ppa]=""
  [ppa_unshuffled]="--config.data.shuffle_sides=false"
  [ppa_cls]="--config.contrastive.layer=-1 --config.contrastive.pooling=cls"
  [ppa_words]="--config.word_alignment.weight=10 --config.word_alignment.dictionaries=$D/dictionaries"
  [ppa_words_small]="--config.word_alignment.weight=10 --config.word_alignment.dictionaries=$D/dictionaries
    --config.word_alignment.capitalised=false"
  [symmetric]="--config.tlm.weight=0 --config.contrastive.symmetric=true"
  [ranking]="--config.tlm.weight=0 --config.contrastive.objective=ranking"
  [ranking_margin]="--config.tlm.weight=0 --config.contrastive.objective=ranking --config.contrastive.margin=0.3"
  [ranking_frozen]="--config.tlm.weight=0 --config.contrastive.objective=ranking --config.train.freeze=${LOWER:-embeddings,0-2}"
  [ranking_tlm]="--config.contrastive.objective=ranking"
  [ranking_rtl]="--config.tlm.weight=0 --config.contrastive.objective=ranking --config.rtl.weight=1"
)
NAMES=${NAMES:-mlm tlm contrast ppa ppa_unshuffled}
for seed in $SEEDS; do
  for name in $NAMES; do
    if [[ -f $W/$name-$seed/report.md ]]; then continue; fi
    # shellcheck disable=SC2086 # several words
    $PYTHON -m ppa_jax.main --config=configs/ppa.py --workdir="$W/$name-$seed" --config.init="$MODEL" \
      --config.dtype=float32 --config.data.pairs="$PAIRS" --config.data.max_length=64 --config.data.min_pieces=1 \
      --config.data.max_pair_pieces=128 --config.data.temperature=2 --config.train.steps="${STEPS:-400}" \
      --config.train.batch_size=64 --config.train.learning_rate=1e-4 --config.contrastive.queue_size=8192 \
      --config.contrastive.momentum=0.99 --config.seed="$seed" ${SETTINGS:-} ${CHANGES[$name]}
  done
done
[[ ${MEASURE:-yes} == yes ]] || exit 0
MODELS="before=$MODEL"
for name in $NAMES; do
  RUNS=""
  for seed in $SEEDS; do RUNS+="|$W/$name-$seed"; done
  MODELS+=",$name=${RUNS#|}"
done
mkdir -p "$W/ntrex" # half of it, for lack of time on a CPU
for file in "$D"/ntrex/*.txt; do head -n 1000 "$file" > "$W/ntrex/$(basename "$file")"; done
$PYTHON -m ppa_jax.main --config=configs/evaluate.py --workdir="$W/measured" --config.models="$MODELS" \
  --config.baseline="${BASELINE:-before,mlm,ppa}" --config.max_length=64 --config.tatoeba="$D/tatoeba" --config.mining="$D/bucc" \
  --config.parallel="$W/ntrex,$D/ud" --config.word_alignment="$D/word_alignment" \
  --config.word_alignment_method=softmax,argmax --config.dictionaries="$D/dictionaries" --config.dictionary_words=6500
