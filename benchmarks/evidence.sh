#!/usr/bin/env bash
# What alignment gains on a real encoder, and which blocks carry transfer: models, trainings and tests, in stages.
#
#   benchmarks/evidence.sh MODEL DATA WORKDIR [STAGE...]
#
# MODEL is a multilingual sentence encoder (a Hugging Face directory; multilingual-e5-small), base "a"; competent_base.py
# derives base "b" from it. DATA is that of competent_base.py, which_part_aligns.sh and transfer.sh. STAGE is one or more of
# STAGES below; default: all, in that order, the most informative first. Repeating the command resumes it: finished stages
# are skipped; a stage that fails is reported, and the next one starts. SIGTERM to the process group saves and exits.
# Environment variables: PYTHON, SMALLER (a directory of another encoder, for the table of the bases).
#
# Sized for about 30 CPU hours (an estimate): all seeds and controls, but fewer steps and test items.
set -uo pipefail
cd "$(dirname "$0")/.."
MODEL=${1:?give a Hugging Face directory} D=${2:?give the directory of the data} W=${3:?give a workdir}
export PYTHON=${PYTHON:-python} SEEDS=0,1,2 STEPS ITEMS

STAGES=(base_b align_b nli_b objectives_b bases pos_b ner_b measure_b nli_b_again ablation_pos_b align_a nli_a parsing_b align_b_cls nli_b_cls
  ablation_ner_b words_b nli_b_words code_switching_b pos_a ner_a qa_b pos_b_again ner_b_again measure_a ablation_pos_b_singles)
[[ $# -gt 3 ]] && STAGES=("${@:4}")
B="$W/base/run/export"
SETTINGS="--config.contrastive.layer=8 --config.contrastive.pooling=mean --config.train.accumulate=4
  --config.checkpoint.every=50 --config.checkpoint.keep=1"

# Trainings of the main job, on base a or b: two seeds each; the contrast is on the mean of layer 8 of 12. With four
# accumulation steps, because PPA would otherwise take 15 GB.
align() { # base, its directory, names, settings of which_part_aligns.sh...
  env STEPS=250 NAMES="$3" SETTINGS="$SETTINGS" "${@:4}" benchmarks/which_part_aligns.sh "$2" "$D" "$W/$1/parts" "0 1"
}

# NAME=DIR,... for a base and for trainings, which are named NAME-SEED.
models() { # base, its directory, trainings...
  printf "before=%s" "$2"
  for training in "${@:3}"; do printf ",%s=%s" "${training//-/_}" "$W/$1/parts/$training/export"; done
}

transfer() { # base, its directory, task, steps, items, trainings...
  STEPS=$4 ITEMS=$5 benchmarks/transfer.sh "$(models "$1" "$2" "${@:6}")" "$D" "$W/$1/transfer" "$3" || return
  rm -rf "$W/$1/transfer/$3"/*/seed-[1-9]*/export # the parameters are kept elsewhere, and one export of each is enough
}

ablate() { # base, its directory, task, ablations
  ABLATIONS=$4 STEPS=200 ITEMS=300 benchmarks/where_transfer_lives.sh "$(models "$1" "$2" ppa-0)" "$D" "$W/$1/ablation" "$3"
}

run() { # stage
  case $1 in
    base_b) $PYTHON -m benchmarks.competent_base --model="$MODEL" --data="$D" --workdir="$W/base" ;;
    bases) # as in which_part_aligns.sh, but for the bases
      mkdir -p "$W/ntrex"
      for file in "$D"/ntrex/???.txt "$D"/ntrex/zho-CN.txt; do head -n 1000 "$file" > "$W/ntrex/$(basename "$file")"; done
      $PYTHON -m ppa_jax.main --config=configs/evaluate.py --workdir="$W/bases" --config.max_length=64 \
        --config.models="a=$MODEL,b=$B${SMALLER:+,smaller=$SMALLER}" --config.tatoeba="$D/tatoeba" \
        --config.parallel="$W/ntrex,$D/ud" --config.word_alignment="$D/word_alignment" --config.word_alignment_method=argmax ;;
    align_b) align b "$B" "mlm ppa" MEASURE=no ;;
    objectives_b) # at equal cost; the control and PPA beside them are those of align_b, at equal steps
      mkdir -p "$W/b/objectives"
      for run in mlm-0 mlm-1 ppa-0 ppa-1; do ln -sfn "../parts/$run" "$W/b/objectives/$run"; done
      STEPS=250 SETTINGS="$SETTINGS" LOWER=embeddings,0-5 BASELINE=mlm,ppa benchmarks/which_objective.sh "$B" "$D" "$W/b/objectives" "0 1" ;;
    align_b_cls) align b "$B" "ppa_cls" MEASURE=no ;;
    align_a) align a "$MODEL" "mlm contrast ppa" MEASURE=no ;; # it has no masked-LM head, so the contrast alone is recommended
    words_b) align b "$B" "ppa_words" MEASURE=no ;;
    measure_b) align b "$B" "mlm ppa" ;;
    measure_a) align a "$MODEL" "mlm contrast ppa" ;;
    nli_b) transfer b "$B" nli 500 600 mlm-0 ppa-0 ;;
    nli_b_again) transfer b "$B" nli 500 600 mlm-0 ppa-0 mlm-1 ppa-1 ;;
    nli_b_cls) transfer b "$B" nli 500 600 mlm-0 ppa-0 mlm-1 ppa-1 ppa_cls-0 ;;
    nli_b_words) transfer b "$B" nli 500 600 mlm-0 ppa-0 mlm-1 ppa-1 ppa_cls-0 ppa_words-0 ;;
    nli_a) transfer a "$MODEL" nli 500 600 mlm-0 contrast-0 ppa-0 ;;
    pos_b) transfer b "$B" pos 200 500 mlm-0 ppa-0 ;;
    pos_b_again) transfer b "$B" pos 200 500 mlm-0 ppa-0 mlm-1 ppa-1 ;;
    pos_a) transfer a "$MODEL" pos 200 500 mlm-0 contrast-0 ppa-0 ;;
    ner_b) transfer b "$B" ner 200 1000 mlm-0 ppa-0 ;;
    ner_b_again) transfer b "$B" ner 200 1000 mlm-0 ppa-0 mlm-1 ppa-1 ;;
    ner_a) transfer a "$MODEL" ner 200 1000 mlm-0 contrast-0 ppa-0 ;;
    parsing_b) transfer b "$B" parsing 300 500 mlm-0 ppa-0 ;;
    qa_b) transfer b "$B" qa 150 100 mlm-0 ppa-0 ;;
    code_switching_b) # starts from the model fine-tuned on English
      STEPS=200 ITEMS=300 benchmarks/transfer.sh "ppa=$W/b/transfer/nli/ppa_0/seed-0/export" "$D" "$W/b/transfer" code_switching ;;
    ablation_pos_b) ablate b "$B" pos pairs ;;
    ablation_pos_b_singles) ablate b "$B" pos singles,pairs ;;
    ablation_ner_b) ablate b "$B" ner pairs ;;
    *) echo "unknown stage: $1" >&2; return 2 ;;
  esac
}

trap : TERM INT # the job saves and exits; then this script exits
log() { echo "$(date -u +"%F %T") $*" | tee -a "$W/log.txt"; }
mkdir -p "$W/done"
for stage in "${STAGES[@]}"; do
  [[ -e $W/done/$stage ]] && continue
  log "$stage: starts"
  began=$SECONDS
  run "$stage" >> "$W/$stage.log" 2>&1
  status=$?
  while ((status == 137)); do # killed, perhaps for lack of memory: resume from its last checkpoint
    log "$stage: killed"
    sleep 60
    run "$stage" >> "$W/$stage.log" 2>&1
    status=$?
  done
  log "$stage: status $status after $((SECONDS - began)) s"
  case $status in
    0) touch "$W/done/$stage" ;;
    130 | 143) exit $status ;;
  esac
done
