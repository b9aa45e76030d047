"""ALIGN-MLM's experiment (Tang et al. 2022, arXiv 2211.08547): alignment of word embeddings and zero-shot transfer.

    python -m ppa_jax.main --config=configs/align_mlm.py --workdir=runs/derived \\
        --config.data.text=english.txt,en.conllu \\
        --config.tasks.pos.train=en_ewt-ud-train.conllu --config.tasks.pos.test=en_ewt-ud-test.conllu

For every derived language (`transformations`) each objective is pretrained from scratch with every seed, on English and
its derivation, then fine-tuned on either and tested on the derived language. `:demo` runs a small version on the
built-in sample in a few minutes. The groups `pretraining` and `finetuning` have the settings of configs/pretrain.py and
configs/tagging.py.
Expect BS, BZ, their gap and the alignment in report.md, beside the paper's.
"""

from typing import Any

from ml_collections import config_dict

from ppa_jax.config import leave_out, load
from ppa_jax.studies.align_mlm.setup import OWN


def get_config(mode: str = "") -> Any:
    """The recipe, with the model of the paper's code; mode "demo" for the built-in sample."""
    c: Any = config_dict.create(
        job="align_mlm",  # what is run
        objectives="mlm,xlm,dict_mlm,align_mlm",  # of pretraining; they are compared
        transformations="trans,trans+inv",  # also trans+perm, trans+syn (ppa_jax/studies/align_mlm/derivation.py)
        seeds="0,1,2",  # of pretraining, one model each
        dtype="bfloat16",  # of the matmuls; on a CPU float32
        data=dict(
            text="",  # English files, comma-separated: .conllu (with trees), .tsv of tagged words, else a text per line
            order_from="",  # for trans+syn: CoNLL-U of the language whose word order is used, or a .tsv of rules
            dictionary_share=0.5,  # of the tokens, for dict_mlm and align_mlm; the paper tries 0.25, 0.5 and 1
            seed=0,  # of the dictionary and of trans+perm
        ),
        tasks=dict(  # run if they have files (joined by |); epochs are the paper's, from its code
            pos=dict(task="tagging", train="", test="", epochs=10.0),
            ner=dict(task="tagging", train="", test="", epochs=10.0),
            nli=dict(task="nli", train="", test="", epochs=5.0),
            parsing=dict(task="parsing", train="", test="", epochs=10.0),  # not the paper's
        ),
    )
    c.pretraining = load("pretrain")
    c.finetuning = load("finetune")
    for group, own in OWN.items():
        leave_out(c[group], own)
    c.finetuning.seeds = "0"
    c.finetuning.train.update(batch_size=32, learning_rate=2e-5)
    if mode == "demo":
        c.dtype = "float32"
        c.transformations, c.seeds = "trans+inv", "0"
        c.data.text = "sample:0-20000"
        c.tasks.pos.update(train="sample:20000-22000", test="sample:30000-30500", epochs=3.0)
        small(c, vocab_size=600, width=128, layers=2, steps=200)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there is: demo")
    return c


def small(c: Any, *, vocab_size: int, width: int, layers: int, steps: int) -> None:
    """Sizes that a laptop can train."""
    c.pretraining.model.update(vocab_size=vocab_size, hidden_size=width, num_layers=layers, num_heads=width // 32)
    c.pretraining.data.max_length = 64
    c.pretraining.train.update(steps=steps, batch_size=64, learning_rate=2e-3, warmup=0.1, dropout=0.0)
    c.finetuning.data.max_length = 64
    c.finetuning.train.update(learning_rate=5e-4, dropout=0.0)
