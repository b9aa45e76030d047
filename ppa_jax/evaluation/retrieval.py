"""Sentence retrieval: is the nearest sentence of the other language the translation?

The Tatoeba test of LASER and XTREME: cosine similarity, top-1, accuracy in percent. A query counts as right when the
index found is its own. Where the same text stands twice among the targets, the first is the one found, so the query of
the other fails; XTREME, which searches among all, lets one of the two fail as well.

Axes: N queries, M targets, D width.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ppa_jax import storage
from ppa_jax.data import sample, text_files
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder, Remembered, Request, Vectors
from ppa_jax.evaluation.neighbours import distinct, nearest
from ppa_jax.evaluation.scores import Score, mean_over_languages

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

    Pairs with a blank side are left out, and counted in the log.

    Raises:
      UserError: no such directory, no file of the form in it, a file without its other side, sides of unequal length,
        an empty file or no pair in it, text that is not UTF-8. `field` names the setting in the message.
    """
    directory = storage.local(directory)
    if not directory.is_dir():
        raise UserError(f"{field}: no such directory: {directory}; give one with files {FORM}")
    found = sorted({match[1] for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))})
    if not found:
        raise UserError(f"{field}: {directory} has no files {FORM}")
    sets = {}
    for code in found:
        paths = [directory / f"tatoeba.{code}-eng.{side}" for side in ("eng", code)]
        english, foreign = (_read(path, field) for path in paths)
        if len(english) != len(foreign):
            raise UserError(
                f"{field}: {paths[0]} has {len(english)} lines and {paths[1].name} has {len(foreign)}; "
                "line i of one must translate line i of the other"
            )
        kept = [i for i, pair in enumerate(zip(english, foreign, strict=True)) if all(text.strip() for text in pair)]
        if not kept:
            raise UserError(f"{field}: {paths[0]} and {paths[1].name}: no line has text in both; copy the files again")
        if len(kept) < len(english):
            logging.info("%s: %s: left out %d pairs with a blank side", field, paths[1], len(english) - len(kept))
        sets[LANGUAGES.get(code, code)] = [english[i] for i in kept], [foreign[i] for i in kept]
    return dict(sorted(sets.items()))


def sample_sets(count: int) -> dict[str, tuple[list[str], list[str]]]:
    """Sentences from the end of the built-in sample, which training ranges do not reach: language -> (en, language)."""
    start = sample.size() - count
    english = sample.sentences("en", start)
    return {language: (english, sample.sentences(language, start)) for language in sample.LANGUAGES[1:]}


def _read(path: Path, field: str) -> list[str]:
    if not path.is_file():
        raise UserError(f"{field}: no such file: {path}, though its other side is there")
    return text_files.read_lines(path, field=field)


def evaluate_retrieval(
    embedder: Embedder | Remembered,
    params: Any,
    sets: str | Path | Sets,
    requests: Sequence[Request],
    *,
    task: str = "tatoeba",
) -> list[Score]:
    """Retrieval accuracy in percent, for each language, direction and (layer, pooling).

    Args:
      embedder: made for the model.
      params: the encoder's parameters.
      sets: a directory (see `read_tatoeba`) or sentences in memory; any language facing English. English that is the
        same in all of them is embedded once.
      requests: (layer, pooling) pairs, as in `Embedder.embed`.
      task: the name under which the scores stand.

    Returns:
      Scores whose direction `en-de` has English queries and German targets; `both` is the average of the two. The
      language `mean` averages the languages, each with the same weight: `en-xx`, `xx-en` and `both`. `count` is the
      number of queries.
    """
    sets = read_tatoeba(sets) if isinstance(sets, (str, Path)) else sets
    scores: list[Score] = []
    shared = len({tuple(english) for english, _ in sets.values()}) == 1  # n-way text: the same sentences everywhere
    there: Vectors = {}
    for language, (english, foreign) in sets.items():
        if len(english) != len(foreign) or not len(english):
            raise ValueError(f"{task}, {language}: {len(english)} English and {len(foreign)} foreign sentences")
        _note_duplicates(task, language, english, foreign)
        if not (shared and there):
            there = embedder.embed(params, english, requests)
        back = embedder.embed(params, foreign, requests)
        own = np.arange(len(english))
        (_, first, _), (_, foreign_first, _) = distinct(english), distinct(foreign)
        for layer, pooling in back:
            X, Y = there[layer, pooling], back[layer, pooling]
            forth = foreign_first[nearest(X, Y[foreign_first])] == own
            home = first[nearest(Y, X[first])] == own
            for direction, hits, queries in (
                (f"{PIVOT}-{language}", forth, 1),
                (f"{language}-{PIVOT}", home, 1),
                ("both", forth.astype(int) + home, 2),
            ):
                group = hits.astype(float), np.full(len(own), float(queries))
                count = queries * len(own)
                score = Score(task, language, direction, layer, pooling, "accuracy", (group,), count)
                scores.append(dataclasses.replace(score, shared_items=shared))
    return scores + means(scores, way)


def means(scores: Sequence[Score], direction_of: Callable[[Score], str]) -> list[Score]:
    """Means over the languages: one for each layer, pooling, metric, and direction as `direction_of` calls it."""
    groups: dict[tuple[Any, ...], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.layer, score.pooling, score.metric, direction_of(score)), []).append(score)
    return [mean_over_languages(group, direction) for (*_, direction), group in groups.items()]


def way(score: Score) -> str:
    """`en-xx` for the direction `en-de` of the language `de`, `xx-en` for `de-en`; another one stays as it is."""
    ways = {f"{PIVOT}-{score.language}": f"{PIVOT}-xx", f"{score.language}-{PIVOT}": f"xx-{PIVOT}"}
    return ways.get(score.direction, score.direction)


def language_of(pair: str) -> str:
    """`de` of `de-en` and of `en-de`; `de-fr`, without English, as a whole."""
    return "-".join(code for code in pair.split("-") if code != PIVOT)


def _note_duplicates(task: str, language: str, english: Sequence[str], foreign: Sequence[str]) -> None:
    for code, side in ((PIVOT, english), (language, foreign)):
        repeated = len(side) - len(set(side))
        if repeated:
            logging.info(
                "%s, %s: %d of %d %s sentences repeat an earlier one; as targets only the first of equals is found",
                task, language, repeated, len(side), code,
            )  # fmt: skip
