"""Sentence retrieval: is the nearest sentence of the other language the translation?

The Tatoeba test of LASER and XTREME: cosine similarity, top-1, accuracy in percent. A query is correct if the index
found is its own. If a text appears twice among the targets, the first one is found, so the query of the second fails;
XTREME searches all targets, and either of the two fails.

Axes: N queries, M targets, D width.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ppa_jax import storage
from ppa_jax.data import sample, sources, text_files
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder, Remembered, Request, Vectors
from ppa_jax.evaluation.neighbours import distinct, nearest
from ppa_jax.evaluation.scores import Score, mean_over_languages

# (first, second language) -> (sentences, their translations); where English is one of the two, it is the first
Sets = Mapping[tuple[str, str], tuple[Sequence[str], Sequence[str]]]

FEWEST, MOST = 10, 100_000  # held-out pairs of two languages: fewer say nothing, more take hours
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


def read_tatoeba(directory: str | Path, *, field: str = "eval.tatoeba") -> Sets:
    """All test sets of a directory, by ISO 639-1 codes, sorted.

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
        sets[PIVOT, LANGUAGES.get(code, code)] = english, foreign
    return dict(sorted(sets.items()))


def sample_sets(count: int) -> Sets:
    """The last sentences of the built-in sample, on which no recipe trains."""
    start = sample.size() - count
    english = sample.sentences(PIVOT, start)
    return {(PIVOT, language): (english, sample.sentences(language, start)) for language in sample.LANGUAGES[1:]}


def read_pairs(spec: str, *, field: str) -> Sets:
    """Held-out pairs in the forms of `data.pairs`. Sources of the same two languages are merged.

    Of more languages, each is paired with English, or else with the first. Pairs that cannot be used are skipped and
    counted in the log.

    Raises:
      UserError: a source that cannot be read, or is of one language; fewer than FEWEST or more than MOST pairs of two
        languages. `field` names the setting in the message.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    with sources.errors_name(field):
        for source in sources.parse_pairs(spec):
            if len(source.languages) == 1:
                raise UserError(f"data.pairs: {source}: retrieval needs translations: lang1-lang2=SOURCE")
            sources.check(source)
            counts = sources.Counts()
            rows = list(itertools.islice(sources.read_pairs(source, sources.Cleaning(), counts), MOST + 1))
            if counts.skipped:
                reasons = dict(counts.skipped)
                logging.info(
                    "%s: %s: %d of %d skipped: %s", field, source, counts.read - counts.kept, counts.read, reasons
                )
            places = {language: i for i, language in enumerate(source.languages)}
            pivot = PIVOT if PIVOT in places else source.languages[0]
            for other in (language for language in places if language != pivot):
                first, second = (other, pivot) if (other, pivot) in found else (pivot, other)
                sides = [(row[places[first]], row[places[second]]) for row in rows]
                found.setdefault((first, second), []).extend(pair for pair in sides if all(pair))
        for (first, second), pairs in found.items():
            if not FEWEST <= len(pairs) <= MOST:
                number, instead = len(pairs), "give more"
                if number > MOST:
                    number, instead = f"more than {MOST:,}", "give fewer, such as head -n 2000"
                raise UserError(
                    f"data.pairs: {first}-{second}: {number} usable pairs, where retrieval needs {FEWEST} to {MOST:,}; "
                    f"{instead}"
                )
    return {languages: ([a for a, _ in pairs], [b for _, b in pairs]) for languages, pairs in found.items()}


def evaluate_retrieval(
    embedder: Embedder | Remembered, params: Any, sets: Sets, requests: Sequence[Request], *, task: str = "tatoeba"
) -> list[Score]:
    """Retrieval accuracy in percent, for each language, direction and (layer, pooling).

    Args:
      embedder: of the model.
      params: the encoder's parameters.
      sets: pairs of languages. If the first sides of all are the same sentences, they are embedded once.
      requests: (layer, pooling) pairs, as in `Embedder.embed`.
      task: the task's name in the scores.

    Returns:
      Scores by direction: `en-de` has English queries and German targets, `both` is the average of the two directions.
      The language is the one that is not English, or `de-fr` for two others. The language `mean` averages the languages
      with equal weights: `en-xx`, `xx-en` and `both`. `count` is the number of queries.
    """
    scores: list[Score] = []
    shared = len({tuple(first) for first, _ in sets.values()}) == 1  # n-way text: the same sentences in all
    first_vectors: Vectors = {}
    for codes, sides in sets.items():
        (first, second), language = sides, codes[1] if codes[0] == PIVOT else "-".join(codes)
        if len(first) != len(second) or not len(first):
            raise ValueError(f"{task}, {language}: {len(first)} and {len(second)} sentences")
        for code, side in zip(codes, sides, strict=True):
            if repeated := len(side) - len(set(side)):
                message = "%s, %s: %d of %d %s sentences repeat an earlier one, and only the first can be found"
                logging.info(message, task, language, repeated, len(side), code)
        if not (shared and first_vectors):
            first_vectors = embedder.embed(params, first, requests)
        second_vectors = embedder.embed(params, second, requests)
        own = np.arange(len(first))
        (_, first_found, _), (_, second_found, _) = distinct(first), distinct(second)
        for layer, pooling in second_vectors:
            X, Y = first_vectors[layer, pooling], second_vectors[layer, pooling]
            forth = second_found[nearest(X, Y[second_found])] == own
            back = first_found[nearest(Y, X[first_found])] == own
            for direction, hits, queries in (
                ("-".join(codes), forth, 1),
                ("-".join(codes[::-1]), back, 1),
                ("both", forth.astype(int) + back, 2),
            ):
                group, count = (hits.astype(float), np.full(len(own), float(queries))), queries * len(own)
                where = task, language, direction, layer, pooling
                scores.append(Score(*where, "accuracy", (group,), count, shared_items=shared))
    averaged = (f"{PIVOT}-xx", f"xx-{PIVOT}", "both")
    return scores + means([score for score in scores if any_language(score) in averaged], any_language)


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
