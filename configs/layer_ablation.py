"""Layer ablation: which blocks of an encoder carry transfer (First Align, then Predict; arXiv 2101.11109).

    python -m ppa_jax.main --config=configs/layer_ablation.py --workdir=runs/l --config.init=before=DIR,after=DIR \\
        --config.data.train=en=en_ewt-ud-train.conllu --config.data.test={lang}_pud-ud-test.conllu \\
        --config.parallel=ud

For each set of blocks in `ablations`, these blocks are re-initialised and the model is fine-tuned on the source
language and tested on all. `task` is that of configs/tagging.py, parsing.py, xnli.py or mlqa.py; the other settings are
those of configs/finetune.py.
Expect report.md: what the targets lose beyond the source, a heat map, CKA by layer, how far fine-tuning moves each
block, and up to which block the model is an aligner.
"""

from typing import Any

from ml_collections import config_dict

from ppa_jax.config import load


def get_config(mode: str = "") -> Any:
    """The recipe, tagging by default; mode "demo" for the built-in sample."""
    c = load("finetune")
    c.task = "tagging"
    c.job = "ablate_layers"
    c.ablations = "pairs"  # and singles, upwards (from each block to the last), or sets of blocks from 1: 3, 1-2, 1+4
    c.keep_layer_norm = False  # in re-initialised blocks; the paper re-initialises them
    c.parallel = ""  # n-way parallel text (a directory, or PUD), or sample:A-B; empty: no similarity
    c.similarity = config_dict.create(
        measure="cka_linear_debiased",  # shown: cka_linear, cka_rbf (the paper's), either with _debiased, or retrieval
        batch=256,  # sentences; values depend on it
        sentences=512,  # from the top of the parallel text
    )
    c.train.update(epochs=3.0, batch_size=32, learning_rate=5e-5)
    if mode == "demo":
        c.align_first, c.dtype = "ppa:demo_words", "float32"
        c.data.test = ",".join(f"{language}=sample:30000-30500" for language in ("en", "de", "es", "ru", "zh"))
        c.ablations, c.parallel, c.similarity.sentences = "singles", "sample:31000-31256", 256
        c.data.update(train="en=sample:20000-22000", max_length=64)
        c.seeds = "0,1"
        c.train.update(epochs=3.0, batch_size=64, learning_rate=1e-3, warmup=0.1, dropout=0.0)
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there is: demo")
    return c
