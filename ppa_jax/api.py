"""The main job from Python: `from ppa_jax import align`."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from ppa_jax import config as configs
from ppa_jax.log_lines import log_to_stderr
from ppa_jax.main import as_workdir, run
from ppa_jax.training.memory import keep_freed_memory


def align(
    config: str | configs.Config, workdir: str | os.PathLike, overrides: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Aligns an encoder and returns its scores; in a notebook with a progress bar.

        scores = align("ppa", "runs/x", {"init": "xlm-roberta-base", "data.pairs": "en-de=europarl/de-en"})
        pandas.DataFrame(scores)

    Recipes of other jobs run, too. The same call resumes a run that was interrupted, and returns at once where it is
    done.

    Args:
      config: a recipe as for `--config`: a name ("ppa", "ppa:demo") or a Python file; or a ConfigDict, which is copied.
      workdir: for the files of the run, as `--workdir`.
      overrides: dotted field -> value, as `--config.field=value`.

    Returns:
      The records of workdir/scores.json; none where nothing was measured.

    Raises:
      UserError: a mistake in the input.
      KeyboardInterrupt: interrupted, with the state saved.
    """
    arguments = [f"--config.{name}={value}" for name, value in (overrides or {}).items()]
    if isinstance(config, str):
        config = configs.load(config, arguments)
    else:
        config = copy.deepcopy(config)
        configs.override(config, arguments)
    keep_freed_memory()
    with log_to_stderr():
        if run(config, as_workdir(workdir)):
            raise KeyboardInterrupt("stopped, with the state saved; the same call resumes the run")
    scores = epath.Path(as_workdir(workdir)) / "scores.json"
    return json.loads(scores.read_text()) if scores.exists() else []
