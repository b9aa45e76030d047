"""Pretraining by masked LM and its relatives, from nothing or from a checkpoint: mlm, xlm, dict_mlm, align_mlm.

The job is the alignment's (align.py, align_run.py) without contrast: an objective is a choice of its settings. The four
are those that ALIGN-MLM (Tang et al. 2022) compares, on text of each language (`en=FILE`) and, for xlm, on translations
(`en-xx=...`):

- `mlm`: masked LM, each line of text a sequence of its own. Translations count as lines of text.
- `xlm`: masked LM on text, TLM on translations: both sentences in one sequence, the language of every token as an
  embedding, positions that begin again in the second.
- `dict_mlm`: mlm, in which half of the masked pieces with a translation meet it: as input (the form of ALIGN-MLM's
  authors) or as what is predicted (the published form). A word of several pieces has none.
- `align_mlm`: mlm, and the embeddings of words that translate each other are drawn together.
"""

from __future__ import annotations

import copy
from pathlib import Path

import jax
from ml_collections import config_dict

from ppa_jax.config import Config, check, one_of
from ppa_jax.data import sources
from ppa_jax.errors import UserError
from ppa_jax.jobs import new_model
from ppa_jax.jobs.align import run as align_run
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.training import loop

# What the job sets itself: no contrast, which the alignment still wants settings of; and the objective's part.
NO_CONTRAST = dict(
    weight=0.0, queue_size=1, momentum=0.0, temperature=1.0, projection_dim=1, layer=-1, pooling="cls",
    mask_duplicates=False, in_batch=False, key_dropout=False,
)  # fmt: skip
OWN = ("contrastive", "pretrain", "tlm.weight", "tlm.joint", "tlm.language_embeddings", "tlm.dict_mlm")
OBJECTIVES = ("mlm", "xlm", "dict_mlm", "align_mlm")


def run(config: Config, workdir: str) -> int:
    """Runs the job; returns the exit status."""
    config = by_objective(config)
    if config.plan and not config.init:
        raise UserError("config.plan: give config.init; what a new model takes is not planned")
    if config.init:
        return align_run.run(config, workdir)
    config.init = str(Path(workdir) / "random")
    align_setup.validate(config)
    new_model.validate(config)
    if config.mesh.distributed:
        loop.initialize_hosts()
    # What is wrong with them shows before a model is made of settings that are about to be corrected.
    align_setup.check_lengths(config, new_model.encoder_config(config, config.model.vocab_size))
    align_setup.read_word_alignment(config)
    random = Path(config.init)
    if jax.process_index() == 0:
        new_model.make_random(config, random)
    loop.wait_for_hosts("a new model")
    return align_run.run(config, workdir)


def by_objective(config: Config) -> Config:
    """The settings of the alignment's job that the objective stands for. Raises UserError for what it lacks."""
    check(config, {"objective": one_of(*OBJECTIVES), "dict_mlm_form": one_of("input", "label")})
    config = copy.deepcopy(config)
    objective, is_xlm = config.objective, config.objective == "xlm"
    with config.unlocked():
        config.contrastive = config_dict.create(**NO_CONTRAST)
        config.tlm.update(weight=1.0, joint=is_xlm, language_embeddings=is_xlm)
        config.tlm.dict_mlm = config.dict_mlm_form if objective == "dict_mlm" else ""
    if objective in ("mlm", "xlm") and config.word_alignment.dictionaries:
        raise UserError(f"config.word_alignment.dictionaries: {objective} has no use for them; leave them out, "
                        "or give objective=align_mlm or dict_mlm")  # fmt: skip
    if objective in ("dict_mlm", "align_mlm") and not config.word_alignment.dictionaries:
        raise UserError(f"config.word_alignment.dictionaries is empty: {objective} needs them; give a directory with "
                        "files en-xx.tsv, or objective=mlm")  # fmt: skip
    if objective != "align_mlm":
        config.word_alignment.weight = 0.0
    elif not config.word_alignment.weight:
        raise UserError("config.word_alignment.weight=0: align_mlm is masked LM then; the paper's weight is 10")
    pairs = sources.parse_pairs(config.data.pairs)
    if objective == "xlm" and all(len(source.languages) == 1 for source in pairs):
        raise UserError("config.data.pairs: xlm needs translations, as en-xx=SOURCE, beside the text of each language")
    return config
