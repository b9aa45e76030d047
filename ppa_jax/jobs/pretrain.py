"""Pretraining with masked LM and its relatives, from scratch or from a checkpoint: mlm, xlm, dict_mlm, align_mlm.

It trains like jobs/align/, without the contrastive loss. The four objectives are those compared in ALIGN-MLM (Tang et
al. 2022), on text of each language (`en=FILE`) and, for xlm, on translations (`en-xx=...`):

- `mlm`: masked LM; each line of text is one sequence. Both sides of a translation are lines of text.
- `xlm`: masked LM on text, TLM on translations: both sentences in one sequence, with language embeddings, and positions
  that restart in the second sentence.
- `dict_mlm`: mlm, but half of the masked tokens that have a translation are paired with it: as input (in the code of
  ALIGN-MLM's authors) or as the label (the published form). Only words of a single token have a translation.
- `align_mlm`: mlm, with a loss that pulls the embeddings of dictionary translations together.
"""

from __future__ import annotations

import copy

from etils import epath

from ppa_jax.config import POSITIVE, Config, check, one_of
from ppa_jax.data import sources
from ppa_jax.errors import UserError
from ppa_jax.jobs import new_model
from ppa_jax.jobs.align import run as align_run
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.jobs.align.setup import MAY_CHANGE, Losses, check_new_model

__all__ = ["MAY_CHANGE", "OBJECTIVES", "check_new_model", "run", "validate"]

OBJECTIVES = ("mlm", "xlm", "dict_mlm", "align_mlm")


def run(config: Config, workdir: str) -> None:
    """Runs the job."""
    losses = validate(config)
    align_setup.connect(config)
    if not config.init:
        check_new_model(config, losses)
        config = copy.deepcopy(config)
        config.init = str(epath.Path(workdir) / "random")
        new_model.make_random(config, epath.Path(config.init), align_setup.token_types(config, losses))
    align_run.train_model(config, losses, epath.Path(workdir))


def validate(config: Config) -> Losses:
    """Checks all settings before anything is opened, and returns the losses. Raises UserError naming the field."""
    check(config, {"objective": one_of(*OBJECTIVES), "dict_mlm_form": one_of("input", "label")})
    align_setup.check_shared(config)
    objective, dictionaries = config.objective, "config.word_alignment.dictionaries"
    if objective in ("mlm", "xlm") and config.word_alignment.dictionaries:
        raise UserError(
            f"{dictionaries}: {objective} does not use them; leave them out, or give objective=align_mlm or dict_mlm"
        )
    if objective in ("dict_mlm", "align_mlm") and not config.word_alignment.dictionaries:
        raise UserError(
            f"{dictionaries} is empty: {objective} needs them; give a directory with files en-xx.tsv, or objective=mlm"
        )
    if objective == "align_mlm":
        wanted = POSITIVE._replace(wanted="greater than 0: without it align_mlm is mlm; the paper's is 10")
        check(config, {"word_alignment.weight": wanted})
    pairs = sources.parse_pairs(config.data.pairs)
    if objective == "xlm" and all(len(source.languages) == 1 for source in pairs):
        raise UserError("config.data.pairs: xlm needs translations, as en-xx=SOURCE, beside the text of each language")
    return Losses(
        tlm=1.0,
        joint=objective == "xlm",
        language_embeddings=objective == "xlm",
        dict_mlm=config.dict_mlm_form if objective == "dict_mlm" else "",
        word_alignment=config.word_alignment.weight if objective == "align_mlm" else 0.0,
    )
