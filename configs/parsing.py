"""Dependency parsing with a biaffine parser (Dozat and Manning 2017), fine-tuned on one language, tested on all.

    python -m ppa_jax.main --config=configs/parsing.py --workdir=runs/d --config.init=runs/x/export \\
        --config.data.train=en=en_ewt-ud-train.conllu --config.data.test={lang}_pud-ud-test.conllu

Batch 32, length 128, 5e-5, 10 epochs: usual with mBERT; no paper of this project states its own.
"""

from pathlib import Path
from typing import Any

from ppa_jax.jobs.finetune_defaults import defaults, demo

ALIGN = Path(__file__).with_name("ppa.py")


def get_config(mode: str = "") -> Any:
    """The recipe; mode "demo" for the built-in sample."""
    c = defaults("parsing")
    c.train.update(epochs=10.0, batch_size=32, learning_rate=5e-5)
    if mode == "demo":
        demo(c, ALIGN, test="sample:30000-30500")
        c.data.update(train="en=sample:20000-24000", max_length=64)
        c.train.update(epochs=2.0, batch_size=64, learning_rate=1e-3, warmup=0.1, dropout=0.0)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there is: demo")
    return c
