"""Sentence retrieval: is the nearest sentence of the other language the translation?

The Tatoeba test of LASER and XTREME: cosine similarity, top-1, accuracy in percent. A query is correct if the index
found is its own. If a text appears twice among the targets, the first one is found, so the query of the second fails;
XTREME searches all targets, and either of the two fails.

Axes: N queries, M targets, D width.
"""

from __future__ import annotations

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

# From ISO 639-3, used in the file names, to ISO 639-1. Other languages keep their three letters.
_CODES = """
afr=af amh=am ara=ar aze=az bel=be ben=bn bos=bs bre=br bul=bg cat=ca ces=cs cmn=zh cor=kw cym=cy dan=da deu=de ell=el
epo=eo est=et eus=eu fao=fo fin=fi fra=fr fry=fy gla=gd gle=ga glg=gl heb=he hin=hi hrv=hr hun=hu hye=hy ido=io ile=ie
ina=ia ind=id isl=is ita=it jav=jv jpn=ja kat=ka kaz=kk khm=km kor=ko kur=ku lat=la lit=lt lvs=lv mal=ml mar=mr mkd=mk
mon=mn nld=nl nno=nn nob=nb oci=oc pes=fa pol=pl por=pt ron=ro rus=ru slk=sk slv=sl spa=es sqi=sq srp=sr swe=sv swh=sw
tam=ta tat=tt tel=te tgl=tl tha=th tuk=tk tur=tr uig=ug ukr=uk urd=ur uzb=uz vie=vi xho=xh yid=yi zsm=ms
"""
LANGUAGES: dict[str, str] = {code[:3]: code[4:] for code in _CODES.split()}


def read_tatoeba(directory: str | Path, *, field: str = "eval.tatoeba") -> dict[str, tuple[list[str], list[str]]]:
    """All test sets of a directory: ISO 639-1 code -> (English sentences, their translations), sorted by code.

    Pairs with a blank side are left out and counted in the log.

    Raises:
      UserError: no such directory, no file of this form in it, a file without its other side, sides of different
        length, an empty file, no usable pair, text that is not UTF-8. `field` names the setting in the message.
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
        pairs = list(zip(*text_files.read_aligned(paths, field=field), strict=True))
        usable = [pair for pair in pairs if all(text.strip() for text in pair)]
        if not usable:
            raise UserError(f"{field}: {paths[0]} and {paths[1].name}: no line has text in both; copy the files again")
        if len(usable) < len(pairs):
            logging.info("%s: %s: left out %d pairs with a blank side", field, paths[1], len(pairs) - len(usable))
        english, foreign = map(list, zip(*usable, strict=True))
        sets[LANGUAGES.get(code, code)] = english, foreign
    return dict(sorted(sets.items()))


def sample_sets(count: int) -> dict[str, tuple[list[str], list[str]]]:
    """Language -> (English, translations): the last sentences of the built-in sample, on which no recipe trains."""
    start = sample.size() - count
    english = sample.sentences("en", start)
    return {language: (english, sample.sentences(language, start)) for language in sample.LANGUAGES[1:]}


def evaluate_retrieval(
    embedder: Embedder | Remembered, params: Any, sets: Sets, requests: Sequence[Request], *, task: str = "tatoeba"
) -> list[Score]:
    """Retrieval accuracy in percent, for each language, direction and (layer, pooling).

    Args:
      embedder: of the model.
      params: the encoder's parameters.
      sets: any language paired with English. English that is the same in all of them is embedded once.
      requests: (layer, pooling) pairs, as in `Embedder.embed`.
      task: the task's name in the scores.

    Returns:
      Scores by direction: `en-de` has English queries and German targets, `both` is the average of the two directions.
      The language `mean` averages the languages with equal weights: `en-xx`, `xx-en` and `both`. `count` is the number
      of queries.
    """
    scores: list[Score] = []
    shared = len({tuple(english) for english, _ in sets.values()}) == 1  # n-way text: the same sentences in all
    english_vectors: Vectors = {}
    for language, (english, foreign) in sets.items():
        if len(english) != len(foreign) or not len(english):
            raise ValueError(f"{task}, {language}: {len(english)} English and {len(foreign)} foreign sentences")
        for code, side in ((PIVOT, english), (language, foreign)):
            if repeated := len(side) - len(set(side)):
                message = "%s, %s: %d of %d %s sentences repeat an earlier one, and only the first can be found"
                logging.info(message, task, language, repeated, len(side), code)
        if not (shared and english_vectors):
            english_vectors = embedder.embed(params, english, requests)
        foreign_vectors = embedder.embed(params, foreign, requests)
        own = np.arange(len(english))
        (_, english_first, _), (_, foreign_first, _) = distinct(english), distinct(foreign)
        for layer, pooling in foreign_vectors:
            X, Y = english_vectors[layer, pooling], foreign_vectors[layer, pooling]
            forth = foreign_first[nearest(X, Y[foreign_first])] == own
            back = english_first[nearest(Y, X[english_first])] == own
            for direction, hits, queries in (
                (f"{PIVOT}-{language}", forth, 1),
                (f"{language}-{PIVOT}", back, 1),
                ("both", forth.astype(int) + back, 2),
            ):
                group, count = (hits.astype(float), np.full(len(own), float(queries))), queries * len(own)
                where = task, language, direction, layer, pooling
                scores.append(Score(*where, "accuracy", (group,), count, shared_items=shared))
    return scores + means(scores, any_language)


def means(scores: Sequence[Score], direction_of: Callable[[Score], str]) -> list[Score]:
    """Means over the languages, for each layer, pooling, metric and direction; `direction_of` names the latter."""
    groups: dict[tuple[Any, ...], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.layer, score.pooling, score.metric, direction_of(score)), []).append(score)
    return [mean_over_languages(group, direction) for (*_, direction), group in groups.items()]


def any_language(score: Score) -> str:
    """The direction with `xx` for the language: `en-xx` for `en-de`, `xx-en` for `de-en`; others are unchanged."""
    names = {f"{PIVOT}-{score.language}": f"{PIVOT}-xx", f"{score.language}-{PIVOT}": f"xx-{PIVOT}"}
    return names.get(score.direction, score.direction)


def language_of(pair: str) -> str:
    """`de` for `de-en` and `en-de`; a pair without English, like `de-fr`, unchanged."""
    return "-".join(code for code in pair.split("-") if code != PIVOT)
