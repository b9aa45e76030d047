"""README.md of an export: what it was made from, what it scores, how to load it.

The front matter is the Hub's (https://huggingface.co/docs/hub/model-cards); its strings are written as JSON, which YAML
contains. Sources and settings name files without the folders of the machine they lay on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ppa_jax import markdown
from ppa_jax.interop import weight_files

# Of a model whose sentence vectors were trained, and of one that has none.
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
    languages: list[str],
    sources: list[str],
    settings: dict[str, Any],
    scores: list[dict[str, Any]],
) -> None:
    """Writes README.md.

    Args:
        directory: the export.
        title: of the training.
        losses: what was trained, in words.
        base_model: what training started from: a name on the Hub or a directory, of which the last part is shown;
            "" for one made from nothing.
        sentence_vectors: whether sentence-transformers loads it.
        languages: codes, in any order.
        sources: as in `data.pairs`, one each: "en-de=SOURCE".
        settings: name -> value, nested dictionaries allowed; None and empty values are left out.
        scores: one dictionary for each row, all with the same keys, the columns; may be empty.
    """
    base = base_name(base_model) if base_model else ""
    rows = [(name, _shown(name, value)) for name, value in _flatten(settings) if value not in (None, "")]
    front = {
        "language": sorted(set(languages)),
        **({"base_model": base} if base else {}),
        **(SENTENCES if sentence_vectors else WORDS),
    }
    parts = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
        "---",
        f"# {title}",
        "",
        f"Trained with ppa_jax: {losses}.",
        "",
        f"- Base model: `{base}`" if base else "- Base model: none, made from nothing",
        f"- Languages: {', '.join(sorted(set(languages)))}",
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
    path = Path(directory) / "README.md"
    with weight_files.replacing(path) as unfinished:
        unfinished.write_text("\n".join(parts), encoding="utf-8")


_SENTENCE_TRANSFORMERS = """
```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("path/to/this/directory")  # with the layer and pooling of the training
vectors = model.encode(["The cat sleeps.", "Die Katze schläft."])
```
"""
_LOADING = """
```python
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
encoder = AutoModel.from_pretrained("path/to/this/directory")  # or AutoModelForMaskedLM
```

```python
from ppa_jax.interop import huggingface
pretrained = huggingface.read("path/to/this/directory")
config, params = pretrained.config, pretrained.params  # for ppa_jax.model.bert.Encoder, in JAX
```
"""


def base_name(base_model: str) -> str:
    """The name on the Hub, or the last part of a directory."""
    local = Path(base_model).expanduser().exists() or not weight_files.is_hub_name(base_model)
    return Path(base_model).expanduser().resolve().name if local else base_model


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
        return "; ".join(_source_name(source) for source in value.split(","))
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
