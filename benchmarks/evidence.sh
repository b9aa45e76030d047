#!/usr/bin/env bash
# What alignment gains on a real encoder, and where transfer lives: bases, trainings and tests in one resumable list.
#
#   benchmarks/evidence.sh MODEL DATA WORKDIR [STAGE...]
#
# MODEL is a multilingual sentence encoder (a Hugging Face directory; multilingual-e5-small), base "a"; base "b" is made of
# it by competent_base.py. DATA is that of competent_base.py, which_part_aligns.sh and transfer.sh. STAGE is one or more of
# STAGES below, all by default in that order: what says most comes first. The same command goes on where it stopped;
# stages that are done are skipped, one that fails is told and passed over. SIGTERM to the process group saves and ends.
# From the environment: PYTHON, SMALLER (a directory of another encoder, for the table of the bases).
#
# The sizes are for some 30 CPU hours (an estimate): seeds and controls are whole, steps and test items are cut.
set -uo pipefail
cd "$(dirname "$0")/.."
MODEL=${1:?give a Hugging Face directory} D=${2:?give the directory of the data} W=${3:?give a workdir}
export PYTHON=${PYTHON:-python} SEEDS=0,1,2 STEPS ITEMS

STAGES=(base_b align_b nli_b bases pos_b ner_b measure_b nli_b_again ablation_pos_b align_a nli_a parsing_b align_b_cls nli_b_cls
  ablation_ner_b words_b nli_b_words code_switching_b pos_a ner_a qa_b pos_b_again ner_b_again measure_a ablation_pos_b_singles)
[[ $# -gt 3 ]] && STAGES=("${@:4}")
B="$W/base/run/export"

# Trainings of the main job, on base a or b: two seeds each, the mean of layer 8 of 12 where it contrasts. In four passes a
# step, or PPA takes 15 GB.
align() { # base, its directory, names, settings of which_part_aligns.sh...
  env STEPS=250 NAMES="$3" SETTINGS="--config.contrastive.layer=8 --config.contrastive.pooling=mean
    --config.train.accumulate=4 --config.checkpoint.every=50 --config.checkpoint.keep=1" "${@:4}" benchmarks/which_part_aligns.sh "$2" "$D" "$W/$1/parts" "0 1"
}

# NAME=DIR,... of a base as it is and of trainings, named NAME-SEED.
models() { # base, its directory, trainings...
  printf "before=%s" "$2"
  for training in "${@:3}"; do printf ",%s=%s" "${training//-/_}" "$W/$1/parts/$training/export"; done
}

transfer() { # base, its directory, task, steps, items, trainings...
  STEPS=$4 ITEMS=$5 benchmarks/transfer.sh "$(models "$1" "$2" "${@:6}")" "$D" "$W/$1/transfer" "$3" || return
  rm -rf "$W/$1/transfer/$3"/*/seed-[1-9]*/export # parameters are kept beside it, and one of each is enough
}

ablate() { # base, its directory, task, ablations
  ABLATIONS=$4 STEPS=200 ITEMS=300 benchmarks/where_transfer_lives.sh "$(models "$1" "$2" ppa-0)" "$D" "$W/$1/ablation" "$3"
}

run() { # stage
  case $1 in
    base_b) $PYTHON -m benchmarks.competent_base --model="$MODEL" --data="$D" --workdir="$W/base" ;;
    bases) # the part that MEASURE=no leaves out, of models without training: as by which_part_aligns.sh
      mkdir -p "$W/ntrex"
      for file in "$D"/ntrex/???.txt "$D"/ntrex/zho-CN.txt; do head -n 1000 "$file" > "$W/ntrex/$(basename "$file")"; done
      $PYTHON -m ppa_jax.main --config=configs/evaluate.py --workdir="$W/bases" --config.max_length=64 \
        --config.models="a=$MODEL,b=$B${SMALLER:+,smaller=$SMALLER}" --config.tatoeba="$D/tatoeba" \
        --config.parallel="$W/ntrex,$D/ud" --config.word_alignment="$D/word_alignment" --config.word_alignment_method=argmax ;;
    align_b) align b "$B" "mlm ppa" MEASURE=no ;;
    align_b_cls) align b "$B" "ppa_cls" MEASURE=no ;;
    align_a) align a "$MODEL" "mlm contrast ppa" MEASURE=no ;; # it has no head: the contrast alone is advised for it
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
    code_switching_b) # goes on from the model fine-tuned on English
      STEPS=200 ITEMS=300 benchmarks/transfer.sh "ppa=$W/b/transfer/nli/ppa_0/seed-0/export" "$D" "$W/b/transfer" code_switching ;;
    ablation_pos_b) ablate b "$B" pos pairs ;;
    ablation_pos_b_singles) ablate b "$B" pos singles,pairs ;;
    ablation_ner_b) ablate b "$B" ner pairs ;;
    *) echo "unknown stage: $1" >&2; return 2 ;;
  esac
}

trap : TERM INT # the job saves and ends; then the list ends
tell() { echo "$(date -u +"%F %T") $*" | tee -a "$W/log.txt"; }
mkdir -p "$W/done"
for stage in "${STAGES[@]}"; do
  [[ -e $W/done/$stage ]] && continue
  tell "$stage: starts"
  began=$SECONDS
  run "$stage" >> "$W/$stage.log" 2>&1
  status=$?
  while ((status == 137)); do # killed outright, for memory perhaps: on from its last checkpoint
    tell "$stage: killed"
    sleep 60
    run "$stage" >> "$W/$stage.log" 2>&1
    status=$?
  done
  tell "$stage: status $status after $((SECONDS - began)) s"
  case $status in
    0) touch "$W/done/$stage" ;;
    130 | 143) exit $status ;;
  esac
done
