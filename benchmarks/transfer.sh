#!/usr/bin/env bash
# Zero-shot transfer before and after alignment: all tasks, models side by side; and code-switching.
#
#   benchmarks/transfer.sh MODELS DATA WORKDIR [TASK...]
#
# MODELS is "before=DIR,after=DIR,...", DATA holds ud, wikiann, nli_train, xnli, tydiqa_goldp, xquad and mlqa in the forms of
# docs/finetuning.md; TASK is one or more of pos ner parsing nli qa code_switching code_switching_sample; default: all
# (the last uses the built-in sample and a model of its own). Repeating the command resumes it. Environment variables: SEEDS
# (0,1,2), STEPS of training (200) and ITEMS of each test set (1000; 0: all). The defaults take some hours on two CPU cores;
# XTREME's recipes are far longer.
set -euo pipefail
cd "$(dirname "$0")/.."
MODELS=${1:?give NAME=DIR,...} D=${2:?give the directory of the data} W=${3:?give a workdir}
TASKS=("${@:4}")
[[ ${#TASKS[@]} -gt 0 ]] || TASKS=(pos ner parsing nli qa code_switching code_switching_sample)
PYTHON=${PYTHON:-python} SEEDS=${SEEDS:-0,1,2} STEPS=${STEPS:-200} ITEMS=${ITEMS:-1000}

run() { # name, configuration, settings...
  $PYTHON -m ppa_jax.main --config="configs/$2.py" --workdir="$W/$1" --config.init="$MODELS" --config.seeds="$SEEDS" \
    --config.dtype=float32 --config.checkpoint.every=100 --config.test_batch_size=32 --config.train.epochs=0 \
    --config.train.steps="$STEPS" --config.train.warmup=0.1 --config.train.learning_rate=1e-4 \
    --config.data.test_examples="$ITEMS" "${@:3}"
}

UD="$D/ud" WIKIANN="$D/wikiann" NLI="$D/nli_train"
for task in "${TASKS[@]}"; do
  case $task in
    pos) run pos tagging --config.data.train="en=$UD/en_ewt-ud-train.conllu" --config.data.test="$UD/{lang}_pud-ud-test.conllu" ;;
    ner) run ner tagging --config.data.train="en=$WIKIANN/train-en.tsv" --config.data.test="$WIKIANN/dev-{lang}.tsv" ;;
    parsing) run parsing parsing --config.data.train="en=$UD/en_ewt-ud-train.conllu" \
      --config.data.test="$UD/{lang}_pud-ud-test.conllu" ;;
    nli) run nli xnli --config.data.test="$D/xnli/dev.{lang}.tsv" \
      --config.data.train="en=$NLI/taxinli10k.tsv|$NLI/cad_all_combined_train.tsv|$NLI/SICK.txt" ;;
    qa)
      QA=(--config.data.train="en=$D/tydiqa_goldp/tydiqa.goldp.en.train.json" --config.data.max_length=256
        --config.train.batch_size=16)
      run qa mlqa "${QA[@]}" --config.data.test="$D/xquad/xquad.{lang}.json"
      cp "$W/qa/report.md" "$W/qa/xquad.md" # MLQA is tested with the same trained models, in a separate report
      MLQA=$(for lang in de en es zh; do printf ",%s-mlqa=%s" $lang "$D/mlqa/dev-context-$lang-question-$lang.json"; done)
      run qa mlqa "${QA[@]}" --config.data.test="${MLQA#,}" ;;
    code_switching)
      # XNLI's dev sets are translations of each other, with three hypotheses per premise: split by premise.
      mkdir -p "$W/xnli_split"
      for file in "$D"/xnli/dev.??.tsv; do
        name=$(basename "$file") # lines 1-1650 of every language for training, the rest for testing
        head -n 1650 "$file" > "$W/xnli_split/train.${name#dev.}"
        tail -n +1651 "$file" > "$W/xnli_split/test.${name#dev.}"
      done
      # Test sets in which premise and hypothesis differ in language, for a few languages.
      TEST="$W/xnli_split/test.{lang}.tsv"
      for lang in de hi ru sw zh; do
        foreign="$W/xnli_split/test.$lang.tsv" english="$W/xnli_split/test.en.tsv"
        paste <(cut -f1 "$foreign") <(cut -f2,3 "$english") > "$W/xnli_split/mixed.$lang-en.tsv"
        paste <(cut -f1 "$english") <(cut -f2,3 "$foreign") > "$W/xnli_split/mixed.en-$lang.tsv"
        TEST+=",$lang/en=$W/xnli_split/mixed.$lang-en.tsv,en/$lang=$W/xnli_split/mixed.en-$lang.tsv"
      done
      # In the second and third, half of the text is English; in the third, the sides of half of the rows also differ.
      SPLIT=(--config.data.train="$W/xnli_split/train.{lang}.tsv" --config.data.test="$TEST")
      run translate_train xnli "${SPLIT[@]}" --config.data.code_switch=
      run translate_train_half_english xnli "${SPLIT[@]}" --config.data.code_switch=pivot=en --config.data.switch_rate=0
      run translate_train_code_switched xnli "${SPLIT[@]}" --config.data.code_switch=pivot=en --config.data.switch_rate=0.5 ;;
    code_switching_sample)
      $PYTHON -m ppa_jax.main --config=configs/ppa.py:demo_words --workdir="$W/sample_model"
      train="" test=""
      for lang in en de es ru zh; do
        train+=",$lang=sample:0-6006" test+=",$lang=sample:6006-6667"
        [[ $lang == en ]] || test+=",$lang/en=sample:6006-6667,en/$lang=sample:6006-6667"
      done
      sample() { # name, settings...
        $PYTHON -m ppa_jax.main --config=configs/xnli.py:demo --workdir="$W/sample_$1" --config.align_first= \
          --config.init="after=$W/sample_model/export" --config.seeds="$SEEDS" --config.train.steps=1200 \
          --config.data.train="${train#,}" --config.data.test="${test#,}" "${@:2}"
      }
      sample translate_train --config.data.code_switch=
      sample half_english --config.data.code_switch=pivot=en --config.data.switch_rate=0
      sample code_switched --config.data.code_switch=pivot=en --config.data.switch_rate=0.5 ;;
    *) echo "unknown task: $task" >&2; exit 2 ;;
  esac
done
