"""Compares models side by side: how well are their languages aligned?

    python -m ppa_jax.main --config=configs/evaluate.py --workdir=runs/e \\
        --config.models=before=bert-base-multilingual-cased,after=runs/x --config.tatoeba=tatoeba/v1

Each part is measured if its data is given. Expect scores.json, differences.json (every model against the baseline, by
paired bootstrap), report.md and its pictures in the workdir.
"""

from typing import Any

from ml_collections import config_dict


def get_config(mode: str = "") -> Any:
    """The settings; there are no modes."""
    if mode:
        raise ValueError(f"unknown mode {mode!r}; this configuration has none")
    c: Any = config_dict.create(
        job="evaluate",  # what is run
        models="",  # directories, workdirs of runs or hub names: A,B,... or NAME=A; NAME=A|B: trainings of one model
        baseline="",  # names of models that the others are compared with, A,B,...; empty: the first model
        # The data of each part; empty: not measured.
        tatoeba="",  # retrieval: a directory of tatoeba.xxx-eng.xxx and .eng
        pairs="",  # retrieval: your own held-out pairs, in the forms of data.pairs: en-de=dev.tsv
        sample=0,  # retrieval among this many sentences at the end of the built-in sample
        mining="",  # bitext mining: a directory of xx-en.dev.xx, .en and .gold, or their prefix
        word_alignment="",  # a directory of xx-yy/ with test.xx, test.yy and gold links
        dictionaries="",  # lexicon induction: a directory of en-xx.tsv or .txt
        parallel="",  # CKA and retrieval: directories of n-way parallel text, or of PUD as CoNLL-U, A,B,...
        layer=-1,  # of the main scores; -1: two thirds of the depth, 8 of 12 as in XTREME
        every_layer=True,  # retrieval, word alignment and CKA at every layer, too, for the curves
        max_length=0,  # tokens of a sentence, the same for all models; 0: the most that all of them accept
        word_alignment_method="softmax",  # as awesome-align; "argmax": as SimAlign, independent of the norms
        word_base=-1,  # whether gold links count words from 0 or 1; -1: detected from the file
        sentence_base=-1,  # likewise for the sentences of gold with a line for each link
        dictionary_words=20_000,  # the most frequent source words of each dictionary; 0: all. Fewer are easier
        cka_batch=256,  # sentences; the value of CKA depends on it
        batch_size=32,  # rows of 128 tokens computed at once, on each device
        dtype="float32",  # of the matmuls: float32 or bfloat16
    )
    return c
