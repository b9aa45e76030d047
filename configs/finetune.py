"""Fine-tuning: the settings that configs/xnli.py, mlqa.py, tagging.py and parsing.py share, with their comments.

    python -m ppa_jax.main --config=configs/finetune.py --workdir=runs/t --config.task=topics.py --config.init=DIR \\
        --config.data.train=en=train.tsv --config.data.test=test.{lang}.tsv

As a recipe it is for a task of your own (docs/finetuning.md). Expect scores by language in report.md.
"""

from typing import Any

from ml_collections import config_dict

from ppa_jax.config import load


def get_config(mode: str = "") -> Any:
    """The settings; there are no modes."""
    if mode:
        raise ValueError(f"unknown mode {mode!r}; this configuration has none")
    c: Any = config_dict.create(
        job="finetune",  # what is run
        task="",  # nli, qa, tagging or parsing, or a Python file with a task (docs/finetuning.md)
        init="",  # Hugging Face directory or hub name, e.g. a run's export; NAME=DIR,NAME=DIR compares several
        align_first="",  # if init is empty: FILE:MODE of the main job, which makes the models before and after
        seeds="0,1,2",  # one training each
        dtype="bfloat16",  # of the matmuls; on a CPU float32
        data=dict(
            # LANGUAGE=FILE,... or LANGUAGE=FILE|FILE, or a path with {lang} in it (and {question} for MLQA's grid);
            # FILE may be tfds:NAME or hf:NAME with [/CONFIG][@SPLIT], or sample:A-B, the sample
            train="",  # LANGUAGE=FILE,... or a path with {lang}
            dev="",  # likewise; for early stopping
            test="",  # likewise: every language is tested
            test_examples=0,  # only the first examples of each test set; 0: all
            max_length=128,  # tokens of a row, including special tokens
            code_switch="",  # languages of the two sides: pivot=en (PPA's), uniform, en=0.5,de=0.5; empty: off
            switch_rate=0.5,  # with code_switch: how often the two sides differ in language (the paper's is unknown)
        ),
        train=dict(
            steps=0,  # optimizer steps; 0: by epochs
            epochs=3.0,  # passes over the features
            batch_size=32,  # features, global
            learning_rate=2e-5,  # peak
            warmup=0.1,  # share of the steps; 1 or more: number of steps
            weight_decay=0.01,  # not on biases and LayerNorm
            clip=1.0,  # global norm of the gradient; 0: none
            dropout=-1.0,  # of the encoder; -1: as pretrained; 0: none, also not in the parser
            freeze="",  # what is not trained of the encoder: embeddings, blocks from 0 as 0-5, or embeddings,0-5
            remat=False,  # recompute activations in the backward pass instead of keeping them
            scan=False,  # compile one block and loop over the layers
        ),
        eval=dict(
            every=0,  # steps between scores of the dev set; 0: none
            patience=0,  # stop after this many scores without improvement, and use the best; 0: never
        ),
        test_batch_size=64,  # features, global
        mesh=load("ppa").mesh,
        checkpoint=load("ppa").checkpoint,
        log=load("ppa").log,
        profile=False,  # trace steps 10 to 14 into workdir/profile
    )
    c.checkpoint.keep = 1  # newest checkpoints
    return c
