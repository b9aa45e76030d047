"""Tagging of words: parts of speech or named entities, fine-tuned on one language, tested on all.

    python -m ppa_jax.main --config=configs/tagging.py --workdir=runs/pos --config.init=runs/x/export \\
        --config.data.train=en=en_ewt-ud-train.conllu --config.data.test={lang}_pud-ud-test.conllu

The recipe is XTREME's (Hu et al. 2020; its scripts/train_udpos.sh and train_panx.sh): batch 32, length 128, 2e-5, 10
epochs, no warm-up, no weight decay. It also scores English dev data every 500 steps and uses the best: set data.dev,
eval.every=500 and an eval.patience that is never reached. The files determine the task: CoNLL-U gives parts of speech
and accuracy, tags with B- and I- give entities and F1.
"""

from typing import Any

from ppa_jax.config import load


def get_config(mode: str = "") -> Any:
    """The recipe; mode "demo" for the built-in sample."""
    c = load("finetune")
    c.task = "tagging"
    c.train.update(epochs=10.0, batch_size=32, learning_rate=2e-5, warmup=0.0, weight_decay=0.0)
    if mode == "demo":
        c.align_first, c.dtype = "ppa:demo_words", "float32"
        c.data.test = ",".join(f"{language}=sample:30000-30500" for language in ("en", "de", "es", "ru", "zh"))
        c.data.update(train="en=sample:20000-24000", max_length=64)
        c.seeds = "0,1,2"
        c.train.update(epochs=3.0, batch_size=64, learning_rate=1e-3, warmup=0.1, weight_decay=0.01, dropout=0.0)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there is: demo")
    return c
