"""Dependency parsing with a biaffine parser (Dozat and Manning 2017), fine-tuned on one language, tested on all.

    python -m ppa_jax.main --config=configs/parsing.py --workdir=runs/d --config.init=runs/x/export \\
        --config.data.train=en=en_ewt-ud-train.conllu --config.data.test={lang}_pud-ud-test.conllu

Batch 32, length 128, 5e-5, 10 epochs: common for mBERT, and from no particular paper.
"""

from typing import Any

from ppa_jax.config import load


def get_config(mode: str = "") -> Any:
    """The recipe; mode "demo" for the built-in sample."""
    c = load("finetune")
    c.task = "parsing"
    c.train.update(epochs=10.0, batch_size=32, learning_rate=5e-5)
    if mode == "demo":
        c.align_first, c.dtype, c.seeds = "ppa:demo_words", "float32", "0"
        c.data.test = ",".join(f"{language}=sample:30000-30500" for language in ("en", "de", "es", "ru", "zh"))
        c.data.update(train="en=sample:20000-24000", max_length=64)
        c.train.update(epochs=2.0, batch_size=64, learning_rate=1e-3, warmup=0.1, dropout=0.0)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there is: demo")
    return c
