"""README.md of an export: what it was trained from and on, what it scores, how to load it.

Sources and settings name files without their directories, which are of no use elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, try_to_load_from_cache

from ppa_jax.config import entries
from ppa_jax.evaluation.report import markdown
from ppa_jax.interop import hub
from ppa_jax.training.provenance import made_with
from ppa_jax.training.workdir import atomic

# Of a model whose sentence vectors were trained, and of one without.
SENTENCES = {
    "library_name": "sentence-transformers",
    "pipeline_tag": "sentence-similarity",
    "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "multilingual", "cross-lingual"],
}
WORDS = {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["multilingual", "cross-lingual"]}


def write_card(
    directory: str | Path,
    *,
    title: str,
    losses: str,
    base_model: str,
    sentence_vectors: bool,
    languages: Sequence[str],
    sources: Sequence[str],
    settings: dict[str, Any],
    scores: Sequence[Mapping[str, Any]],
    training_time: str,
) -> None:
    """Writes README.md.

    Args:
        directory: the export.
        title: of the training.
        losses: what was trained, in words.
        base_model: what training started from: a name on the Hub or a directory, of which the last part is shown;
            "" for a model trained from scratch.
        sentence_vectors: whether sentence-transformers loads it.
        languages: codes, in any order.
        sources: as in `data.pairs`, one each: "en-de=SOURCE".
        settings: name -> value, nested dictionaries allowed; None and empty values are left out.
        scores: records of scores.json, of retrieval; may be empty.
        training_time: "1:02:03".
    """
    base = base_name(base_model) if base_model else ""
    base_license = _license(base_model) if base_model else None
    data = ModelCardData(
        language=sorted(set(languages)),
        license=base_license,
        base_model=base or None,
        datasets=_datasets(sources) or None,
        model_name=title,
        eval_results=[_result(score) for score in scores if score["direction"] == "both"] or None,
        **(SENTENCES if sentence_vectors else WORDS),
    )
    made = made_with()
    rows = [(name, _shown(name, value)) for name, value in _flatten(settings) if value not in (None, "")]
    parts = [
        "---",
        data.to_yaml(),
        "---",
        f"# {title}",
        "",
        f"Trained with ppa_jax: {losses}.",
        "",
        f"- Base model: `{base}`" if base else "- Base model: none, trained from scratch",
        f"- Languages: {', '.join(sorted(set(languages)))}",
        *([f"- License: {base_license}, as of the base model; those of the data apply, too"] if base_license else []),
        f"- Made with ppa_jax {made['ppa_jax']}, in {training_time} of training on {made['processor']}",
        "",
        "## Load it",
        f"{_SENTENCE_TRANSFORMERS if sentence_vectors else ''}{_LOADING}",
        "## Data",
        "",
        *(f"- {_source_name(source)}" for source in sources),
        "",
        "## Scores",
        "",
        markdown.table(list(scores[0]), [list(score.values()) for score in scores])
        if scores
        else "Not measured in this run.",
        "",
        "## Settings",
        "",
        markdown.table(["setting", "value"], [(f"`{name}`", value) for name, value in rows]),
        "",
    ]
    with atomic(Path(directory) / "README.md") as unfinished:
        ModelCard("\n".join(parts)).save(unfinished)


_SENTENCE_TRANSFORMERS = f"""
```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("{hub.HERE}")  # with the layer and pooling of the training
vectors = model.encode(["The cat sleeps.", "Die Katze schläft."])
```

```python
from ppa_jax import Encoder  # the same vectors in JAX
encoder = Encoder.from_pretrained("{hub.HERE}")
```
"""
_LOADING = f"""
```python
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{hub.HERE}")
encoder = AutoModel.from_pretrained("{hub.HERE}")  # or AutoModelForMaskedLM
```
"""


def base_name(base_model: str) -> str:
    """The name on the Hub, or the last part of a directory's path."""
    local = Path(base_model).expanduser().exists() or not hub.is_name(base_model)
    return Path(base_model).expanduser().resolve().name if local else base_model


def _license(base_model: str) -> str | None:
    """The license that the base model's own card names, if that card is on this machine."""
    try:
        directory = Path(base_model).expanduser()
        if directory.is_dir():
            card = hub.resolve(directory) / "README.md"
        elif hub.is_name(base_model):
            card = try_to_load_from_cache(base_model, "README.md")
        else:
            card = None
        return (metadata_load(card) or {}).get("license") if card and Path(card).is_file() else None
    except Exception as error:  # whatever is wrong with someone else's README must not end a finished training
        logging.info("%s: no license read from its model card (%s)", base_model, type(error).__name__)
        return None


def _datasets(sources: Iterable[str]) -> list[str]:
    """The datasets of the Hub among the sources."""
    locations = {re.split(r"[@\[]", source.partition("=hf:")[2])[0] for source in sources}
    names = {"/".join(location.split("/")[:2]) for location in locations if not Path(location).exists()}
    return sorted(name for name in names if hub.is_name(name))


def _result(score: Mapping[str, Any]) -> EvalResult:
    """A row of the card's model-index, from a record of retrieval in both directions."""
    return EvalResult(
        task_type="translation",
        task_name="Translation retrieval",
        dataset_type=score["task"],
        dataset_name=f"{score['task']} ({score['language']})",
        dataset_config=score["language"],
        metric_type=score["metric"],
        metric_name=f"{score['metric']}, both directions, layer {score['layer']}, {score['pooling']} pooling (%)",
        metric_value=score["value"],
    )


def _source_name(source: str) -> str:
    """ "en-de=/data/a.txt|/data/b.txt" -> "en-de: a.txt, b.txt"."""
    pair, equals, place = source.partition("=")
    if not equals:
        pair, place = "", source
    if not place.startswith(("tfds:", "hf:")):
        place = ", ".join(Path(part).name for part in place.split("|"))
    return f"{pair}: {place}" if pair else place


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return json.dumps(value, default=str, ensure_ascii=False)
    if name.rsplit(".", 1)[-1] == "pairs":
        return "; ".join(_source_name(source) for source in entries(value))
    if name == "init":
        return base_name(value)
    # Anything else that looks like a path of this machine keeps its last part.
    return Path(value).name if re.match(r"[/~.]|[A-Za-z]:\\", value) else value


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
