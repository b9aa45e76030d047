"""Pretraining with alignment objectives: mlm, xlm, dict_mlm, align_mlm (Tang et al. 2022, arXiv 2211.08547).

    python -m ppa_jax.main --config=configs/pretrain.py --workdir=runs/p --config.objective=align_mlm \\
        --config.data.pairs=en=english.txt,de=german.txt --config.word_alignment.dictionaries=en-de.tsv

Starts from scratch, with a given vocabulary or one trained on the text, or from a checkpoint (`init`). The settings are
those of configs/ppa.py, which has their comments; only the differences are below. Model and recipe follow ALIGN-MLM's
code: 8 layers of width 512, 500,000 steps of 128 at 1e-4 with 10,000 of warm-up, word alignment x 10. The sequences
differ: the paper fills 512 tokens with text; here each line is a sequence of at most 128, so a step has fewer tokens.
Expect the model in runs/p/export, in the Hugging Face format, and the losses in runs/p/report.md.
"""

from typing import Any

from ppa_jax.config import leave_out, load

# Settings of the alignment that this job does not have: its losses of pairs, and what the objective determines.
WITHOUT = (
    "contrastive", "distill", "rtl", "pretrain", "export",
    "tlm.weight", "tlm.joint", "tlm.language_embeddings", "tlm.dict_mlm",
)  # fmt: skip


def get_config(mode: str = "") -> Any:
    """The recipe; there is no mode."""
    if mode:
        raise ValueError(f"unknown mode {mode!r}; there is none")
    c = load("ppa")
    c.job = "pretrain"
    c.objective = "mlm"  # or xlm, dict_mlm, align_mlm (described in docs/pretraining.md)
    c.dict_mlm_form = "input"  # of dict_mlm: input (ALIGN-MLM's authors) or label (the published DICT-MLM)
    # Text as en=FILE or en=FILE|FILE, one text per line; translations as in configs/ppa.py. A line of more than
    # max_characters is split at spaces, one of more than max_length tokens is truncated: choose both together.
    c.data.update(max_length=128, max_characters=500, min_pieces=1, max_pair_pieces=256)
    c.model.update(vocab_size=40_000, hidden_size=512, num_layers=8, num_heads=8)
    c.train.update(steps=500_000, epochs=0.0, batch_size=128, learning_rate=1e-4, warmup=10_000.0)
    leave_out(c, WITHOUT)
    c.word_alignment.update(weight=10.0, max_words=0)  # for align_mlm; all words, also those of lexicon tests
    c.checkpoint.every = 5_000
    return c
