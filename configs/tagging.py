"""Tagging of words: parts of speech or named entities, fine-tuned on one language, tested on all.

    python -m ppa_jax.main --config=configs/tagging.py --workdir=runs/pos --config.init=runs/x/export \\
        --config.data.train=en=en_ewt-ud-train.conllu --config.data.test={lang}_pud-ud-test.conllu

The recipe is XTREME's (Hu et al. 2020), recalled: batch 32, length 128, 2e-5, 10 epochs. The files say which task
it is: CoNLL-U gives parts of speech and accuracy, tags with B- and I- give entities and F1.
"""

from typing import Any

from ppa_jax.jobs.finetune_defaults import defaults


def get_config(mode: str = "") -> Any:
    """The recipe; mode "demo" for the built-in sample."""
    c = defaults("tagging")
    c.train.update(epochs=10.0, batch_size=32, learning_rate=2e-5)
    if mode:
        raise ValueError(f"unknown mode {mode!r}")
    return c
