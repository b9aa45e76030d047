"""The settings that all recipes of fine-tuning share: configs/xnli.py, mlqa.py, tagging.py, parsing.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import config_dict


def defaults(task: str) -> Any:
    """A configuration of the job `finetune`, to be changed by the recipe of a task."""
    return config_dict.create(
        job="finetune",
        task=task,  # nli, qa, tagging or parsing, or a Python file with a task (docs/finetuning.md)
        init="",  # Hugging Face directory or hub name, a run's export for example; NAME=DIR,NAME=DIR compares several
        align_first="",  # where init is empty: FILE:MODE of the main job, which makes the models before and after
        seeds="0,1,2",  # one training each
        dtype="bfloat16",  # of the matmuls; on a CPU float32
        data=dict(
            # LANGUAGE=FILE,... or LANGUAGE=FILE|FILE, or a path with {lang} in it (and {question} for MLQA's grid);
            # FILE may be tfds:NAME or hf:NAME with [/CONFIG][@SPLIT], or sample:A-B, the sample
            train="",
            dev="",  # likewise; for stopping early
            test="",  # likewise: every language is tested
            test_examples=0,  # of each test set, its first so many; 0: all
            max_length=128,  # tokens of a row, special ones included
            code_switch="",  # languages of the two sides: pivot=en (PPA's), uniform, en=0.5,de=0.5; empty: off
            switch_rate=0.5,  # of code_switch: how often the two sides differ in language (the paper's is not known)
        ),
        train=dict(
            steps=0,  # optimizer steps, or
            epochs=3.0,  # passes over the features
            batch_size=32,
            learning_rate=2e-5,  # peak
            warmup=0.1,  # share of the steps; from 1 on: steps
            weight_decay=0.01,  # not on biases and LayerNorm
            clip=1.0,  # global norm of the gradient; 0: none
            dropout=-1.0,  # of the encoder; -1: as pretrained, 0: none at all, the parser's own included
            remat=False,  # keep less for the backward pass and compute it again, as in configs/ppa.py
            scan=False,  # compile one block, and loop over the layers
        ),
        eval=dict(
            every=0,  # steps between scores of the dev set; 0: none
            patience=0,  # stop after so many without a better one, and take the best; 0: train to the end
        ),
        test_batch_size=64,
        mesh=dict(data=-1, model=1, rules="replicated", fsdp=-1, distributed=False),  # as in configs/ppa.py
        checkpoint=dict(every=500, keep=1),
        log=dict(tensorboard=True, wandb=""),
        profile=False,
    )


def demo(config: Any, align: Path, *, test: str, second: str = "") -> None:
    """Changes a recipe to the built-in sample: a small model before and after alignment, English to all languages.

    Args:
      config: of `defaults`.
      align: file of the main job's configuration, whose mode `demo_words` makes the two models.
      test: the range of the sample that is tested, as `sample:30000-30600`; none of it is trained on.
      second: language of the second side of what is tested; empty: that of the first.
    """
    config.align_first = f"{align}:demo_words"
    config.dtype = "float32"
    languages = ("en", "de", "es", "ru", "zh")
    sides = [language + (f"/{second}" if second and language != second else "") for language in languages]
    config.data.test = ",".join(f"{side}={test}" for side in sides)
    config.seeds = "0"
