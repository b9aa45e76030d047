"""Extractive question answering: fine-tune on SQuAD, test on MLQA, XQuAD, TyDi QA.

    python -m ppa_jax.main --config=configs/mlqa.py --workdir=runs/q --config.init=runs/x/export \\
        --config.data.train=en=squad/train-v1.1.json --config.data.test=xquad/xquad.{lang}.json

The recipe is PPA's (arXiv 2010.12547), recalled: length 386, 3e-5. The rest is XTREME's (Hu et al. 2020; its
scripts/train_qa.sh): batch 32, 3 epochs, 500 steps of warm-up, weight decay 1e-4.
"""

from typing import Any

from ppa_jax.config import load


def get_config(mode: str = "") -> Any:
    """The recipe; mode "demo" for the built-in sample."""
    c = load("finetune")
    c.task = "qa"
    c.data.max_length = 384  # recalled: 386; rows are a multiple of 128 here
    c.train.update(epochs=3.0, batch_size=32, learning_rate=3e-5, warmup=500.0, weight_decay=1e-4)
    if mode == "demo":
        # The words of the questions are not in the aligned text, so all questions are in English.
        c.align_first, c.dtype, c.seeds = "ppa:demo_words", "float32", "0"
        c.data.test = ",".join(f"{side}=sample:12000-12600" for side in ("en", "de/en", "es/en", "ru/en", "zh/en"))
        c.data.update(train="en=sample:0-12000", max_length=64)
        c.train.update(steps=450, epochs=0.0, batch_size=64, learning_rate=1e-3, warmup=0.1)
        c.train.update(weight_decay=0.01, dropout=0.0)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there is: demo")
    return c
