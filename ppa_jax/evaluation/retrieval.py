"""Sentence retrieval: is the nearest sentence of the other language the translation?

The Tatoeba test of LASER and XTREME: cosine similarity, top-1, accuracy in percent. A query counts as right when the
index found is its own; so where the same text stands twice among the targets, one of the two must fail, and of targets
that are equally near the first is taken. XTREME counts the same way.

Axes: N queries, M targets, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder, Request

Sets = Mapping[str, tuple[Sequence[str], Sequence[str]]]  # language -> (English sentences, their translations)

PIVOT = "en"
FORM = "tatoeba.xxx-eng.xxx and tatoeba.xxx-eng.eng"
_NAME = re.compile(r"tatoeba\.([a-z]{3})-eng\.([a-z]{3})")

_CODES = """
afr=af amh=am ara=ar aze=az bel=be ben=bn bos=bs bre=br bul=bg cat=ca ces=cs cmn=zh cor=kw cym=cy dan=da deu=de ell=el
epo=eo est=et eus=eu fao=fo fin=fi fra=fr fry=fy gla=gd gle=ga glg=gl heb=he hin=hi hrv=hr hun=hu hye=hy ido=io ile=ie
ina=ia ind=id isl=is ita=it jav=jv jpn=ja kat=ka kaz=kk khm=km kor=ko kur=ku lat=la lit=lt lvs=lv mal=ml mar=mr mkd=mk
mon=mn nld=nl nno=nn nob=nb oci=oc pes=fa pol=pl por=pt ron=ro rus=ru slk=sk slv=sl spa=es sqi=sq srp=sr swe=sv swh=sw
tam=ta tat=tt tel=te tgl=tl tha=th tuk=tk tur=tr uig=ug ukr=uk urd=ur uzb=uz vie=vi xho=xh yid=yi zsm=ms
"""
# ISO 639-3, as in the names of the files, to ISO 639-1. A language that is not here keeps its three letters.
LANGUAGES: dict[str, str] = {code[:3]: code[4:] for code in _CODES.split()}


def read_tatoeba(directory: str | Path, *, field: str = "eval.tatoeba") -> dict[str, tuple[list[str], list[str]]]:
    """All test sets of a directory: ISO 639-1 code -> (English sentences, their translations), in order of the code.

    Raises:
      UserError: no such directory, no file of the form in it, a file without its other side, sides of unequal length,
        an empty file, text that is not UTF-8. `field` names the setting in the message.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise UserError(f"{field}: no such directory: {directory}; give one with files {FORM}")
    found = sorted({match[1] for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))})
    if not found:
        raise UserError(f"{field}: {directory} has no files {FORM}")
    sets = {}
    for code in found:
        paths = [directory / f"tatoeba.{code}-eng.{side}" for side in ("eng", code)]
        english, foreign = (_read_lines(path, field) for path in paths)
        if len(english) != len(foreign):
            raise UserError(
                f"{field}: {paths[0]} has {len(english)} lines and {paths[1].name} has {len(foreign)}; "
                "line i of one must translate line i of the other"
            )
        if not english:
            raise UserError(f"{field}: {paths[0]} and {paths[1].name} are empty; remove them or give their text")
        sets[LANGUAGES.get(code, code)] = english, foreign
    return dict(sorted(sets.items()))


def _read_lines(path: Path, field: str) -> list[str]:
    if not path.is_file():
        raise UserError(f"{field}: no such file: {path}, though its other side is there")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{field}: cannot read {path}: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{field}: {path}:{line}: not UTF-8; convert the file (iconv -t UTF-8)") from error
    # Only a line feed ends a line: a U+2028 within a sentence must not shift all that follow.
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def retrieve(queries: np.ndarray, targets: np.ndarray, *, block: int = 4096) -> np.ndarray:
    """Index [N] of the target nearest to each query by cosine; of equally near ones the first. Memory: block squared.

    Args:
      queries: [N, D]; a vector of zeros is equally far from everything.
      targets: [M, D], M at least 1.
    """
    if not len(targets):
        raise ValueError("nothing to retrieve from: targets is empty")
    nearest = np.zeros(len(queries), np.int64)
    for q in range(0, len(queries), block):
        query = _normalised(queries[q : q + block])
        best = np.full(len(query), -np.inf, np.float32)
        for t in range(0, len(targets), block):
            similarity = query @ _normalised(targets[t : t + block]).T
            index = similarity.argmax(1)
            value = similarity[np.arange(len(query)), index]
            better = value > best  # not >=: the first of equals stays
            nearest[q : q + block][better] = t + index[better]
            best = np.maximum(best, value)
    return nearest


def _normalised(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def accuracy(nearest: np.ndarray) -> float:
    """Percentage of queries i that found target i."""
    return 100.0 * float(np.mean(nearest == np.arange(len(nearest))))


def evaluate_tatoeba(
    embedder: Embedder,
    params: Any,
    sets: str | Path | Sets,
    requests: Sequence[Request],
    *,
    model: str = "",
    task: str = "tatoeba",
) -> list[dict[str, Any]]:
    """Retrieval accuracy in percent, for each language, direction and (layer, pooling).

    Args:
      embedder: made for the model.
      params: the encoder's parameters.
      sets: a directory (see `read_tatoeba`) or sentences in memory; any language facing English.
      requests: (layer, pooling) pairs, as in `Embedder.embed`.
      model: the name under which the scores stand.
      task: likewise.

    Returns:
      Records with the keys model, task, language, direction, layer, pooling, metric, value, count. The direction
      `en-de` has English queries and German targets; `both` is the average of the two. The language `mean` averages the
      languages, each with the same weight: `en-xx`, `xx-en` and `both`. `count` is the number of queries.
    """
    sets = read_tatoeba(sets) if isinstance(sets, (str, Path)) else sets
    records = []
    for language, (english, foreign) in sets.items():
        if len(english) != len(foreign) or not len(english):
            raise ValueError(f"{task}, {language}: {len(english)} English and {len(foreign)} foreign sentences")
        _note_duplicates(task, language, english, foreign)
        vectors = embedder.embed(params, [*english, *foreign], requests)
        for (layer, pooling), both in vectors.items():
            there, back = both[: len(english)], both[len(english) :]
            shared = {"model": model, "task": task, "language": language, "layer": layer, "pooling": pooling}
            forth = accuracy(retrieve(there, back))
            home = accuracy(retrieve(back, there))
            records += [
                _record(shared, f"{PIVOT}-{language}", forth, len(english)),
                _record(shared, f"{language}-{PIVOT}", home, len(english)),
                _record(shared, "both", (forth + home) / 2, 2 * len(english)),
            ]
    return records + _means(records)


def _record(shared: dict[str, Any], direction: str, value: float, count: int) -> dict[str, Any]:
    order = ("model", "task", "language", "direction", "layer", "pooling", "metric", "value", "count")
    record = shared | {"direction": direction, "metric": "accuracy", "value": round(value, 4), "count": count}
    return {key: record[key] for key in order}


def _means(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each request and direction, averaged over the languages."""
    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for record in records:
        source, _, target = record["direction"].partition("-")
        kind = "both" if not target else f"{PIVOT}-xx" if source == PIVOT else f"xx-{PIVOT}"
        groups.setdefault((record["layer"], record["pooling"], kind), []).append(record)
    return [
        _record(
            group[0] | {"language": "mean"},
            kind,
            float(np.mean([record["value"] for record in group])),
            sum(record["count"] for record in group),
        )
        for (_, _, kind), group in groups.items()
    ]


def _note_duplicates(task: str, language: str, english: Sequence[str], foreign: Sequence[str]) -> None:
    for code, side in ((PIVOT, english), (language, foreign)):
        repeated = len(side) - len(set(side))
        if repeated:
            logging.info(
                "%s, %s: %d of %d %s sentences repeat an earlier one; as targets at most one of equals can be found",
                task, language, repeated, len(side), code,
            )  # fmt: skip
