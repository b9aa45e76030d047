"""Natural language inference: fine-tune on one language (or its translations), test on all. XNLI and the like.

    python -m ppa_jax.main --config=configs/xnli.py --workdir=runs/n --config.init=runs/x/export \\
        --config.data.train=en=multinli.train.en.tsv --config.data.test=xnli/test.{lang}.tsv

The recipe is PPA's (arXiv 2010.12547), recalled: batch 32, length 128, 2 epochs, 5e-5, 1,000 steps of warm-up. Where
data.train has translations of the same rows, it is the paper's code-switched fine-tuning: data.code_switch=pivot=en
draws another language xx for each row, and its sides as en-en, xx-xx, en-xx or xx-en. If it is empty, training uses the
translations as they are.
Expect accuracy by language, mean and spread over the seeds, in report.md.
"""

from typing import Any

from ppa_jax.config import load


def get_config(mode: str = "") -> Any:
    """The recipe; mode "demo" for the built-in sample."""
    c = load("finetune")
    c.task = "nli"
    c.data.max_length = 128
    c.data.code_switch = "pivot=en"  # if there are training sets in several languages
    c.train.update(epochs=2.0, batch_size=32, learning_rate=5e-5, warmup=1000.0)
    if mode == "demo":
        c.align_first, c.dtype = "ppa:demo_words", "float32"
        c.data.test = ",".join(f"{language}=sample:6006-7443" for language in ("en", "de", "es", "ru", "zh"))
        c.data.update(train="en=sample:0-6006", max_length=64)
        c.seeds = "0,1"
        c.train.update(steps=400, epochs=0.0, batch_size=64, learning_rate=1e-3, warmup=0.1, dropout=0.0)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there is: demo")
    return c
