"""How similarly an encoder represents parallel sentences of two languages, by layer: CKA and retrieval.

CKA (Kornblith et al. 2019) compares the similarities among the sentences of a batch in one language with those in the
other: it is 1 if the two sets of vectors differ only by rotation, translation and scale. First Align, then Predict
(Muller et al. 2021) follows it through the layers of mBERT with the RBF kernel; the linear kernel is more common.

The usual estimator is biased upwards if a batch has few sentences for the width D: independent Gaussian matrices of 256
sentences and D = 384 have a linear CKA of 0.6, not 0. So report the batch size with every value, and compare models
at equal batch sizes and widths. `cka_linear_debiased` and `cka_rbf_debiased` use the unbiased estimator of HSIC (Song
et al. 2012; for CKA Nguyen et al. 2021), which is around 0 for independent matrices.

CKA ignores where the two sets of vectors are. `retrieval` is the share of sentences whose nearest neighbour in the
other language is their translation: it is low for sets that are far apart or rotated.

N-way parallel text is {language: sentences}; it also serves for retrieval.

Axes: N sentences of a batch, D width (X and Y may differ in it).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ppa_jax import storage
from ppa_jax.config import entries
from ppa_jax.data import text_files
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import Embedder, Remembered
from ppa_jax.evaluation.neighbours import nearest
from ppa_jax.evaluation.retrieval import LANGUAGES, PIVOT, any_language, means
from ppa_jax.evaluation.scores import Score, per_item
from ppa_jax.tasks import conllu

Texts = Mapping[str, Sequence[str]]  # language -> sentences, line i of each a translation of line i of the others

FORM = "a directory with one file per language (deu.txt, zho-CN.txt, eng.txt) or the CoNLL-U files of PUD"
_CODES = """
arb=ar bod=bo guj=gu hau=ha ibo=ig fas=fa lao=lo lav=lv ltz=lb mlt=mt mri=mi msa=ms mya=my nep=ne nor=no npi=ne orm=om
pan=pa pus=ps sin=si smo=sm sna=sn snd=sd som=so ssw=ss swa=sw tgk=tg tir=ti tsn=tn ven=ve wol=wo yor=yo zho=zh
zul=zu
"""
# The codes in Tatoeba's file names, and those of other test sets.
CODES = LANGUAGES | {"eng": PIVOT} | {code[:3]: code[4:] for code in _CODES.split()}
_TEXT = re.compile(r"(?:.+\.)?([a-z]{2,3})((?:[-_][A-Za-z]+)*)\.txt")
_CONLLU = re.compile(r"([a-z]{2,3})(_)[a-z]+-ud-[a-z]+\.conllu")
_COMMENT = re.compile(r"#\s*(sent_id|parallel_id|text)\s*=\s*(.*)")
_CHUNK = 4096  # sentences embedded together


def read_parallel(spec: str | Path, *, field: str = "parallel") -> dict[str, list[str]]:
    """N-way parallel text: language code -> sentences, sorted by code, the same number for every language.

    Plain text is parallel by line. CoNLL-U is parallel by `parallel_id` (the part after `/`), or else by `sent_id`,
    whose letter in PUD distinguishes news from Wikipedia. A sentence that is missing or blank in one language is left
    out of all and counted in the log. If a language has several files (`fra`, `fra-CA`), their codes include the
    variant: `fr`, `fr-CA`.

    Args:
      spec: a directory (its PUD files if it has any, otherwise its text files), or comma-separated files of one of the
        two forms.
      field: the setting, for error messages.

    Raises:
      UserError: no such file, names without a language code, English missing or alone, languages of different length,
        text that is not UTF-8, a sentence id that appears twice, no sentence that all languages have.
    """
    paths, pattern = _paths(spec, field)
    files = _languages(paths, pattern, field)
    if PIVOT not in files or len(files) < 2:
        raise UserError(f"{field}: {spec}: found {', '.join(files)}; give English and at least one other language")
    if pattern is _CONLLU:
        found = {language: _read_conllu(path, field) for language, path in files.items()}
        numbers = list(dict.fromkeys(itertools.chain(found[PIVOT], *found.values())))  # in the order of English
        rows = {language: [texts.get(number, "") for number in numbers] for language, texts in found.items()}
    else:
        rows = dict(zip(files, text_files.read_aligned(list(files.values()), field=field), strict=True))
    complete = [i for i, row in enumerate(zip(*rows.values(), strict=True)) if all(text.strip() for text in row)]
    dropped = len(rows[PIVOT]) - len(complete)
    if not complete:
        raise UserError(f"{field}: {spec}: no sentence exists in all of {', '.join(files)}; leave a language out")
    if dropped:
        logging.info("%s: left out %d sentences that are missing in one of %s", spec, dropped, ", ".join(files))
    return {language: [lines[i] for i in complete] for language, lines in sorted(rows.items())}


def _paths(spec: str | Path, field: str) -> tuple[list[Path], re.Pattern[str]]:
    """The files, and the pattern of their names."""
    paths = [storage.local(part) for part in entries(str(spec))]
    if len(paths) == 1 and paths[0].is_dir():
        names = sorted(paths[0].iterdir())
        if pud := [path for path in names if _CONLLU.fullmatch(path.name) and "_pud-" in path.name]:
            return pud, _CONLLU
        if text := [path for path in names if _TEXT.fullmatch(path.name)]:
            return text, _TEXT
    for path in paths:
        if not path.is_file():
            raise UserError(f"{field}: {path}: nothing to read; give {FORM}")
    pattern = _CONLLU if paths and paths[0].suffix == ".conllu" else _TEXT
    return paths, pattern


def _languages(paths: Sequence[Path], pattern: re.Pattern[str], field: str) -> dict[str, Path]:
    """Code -> file, English first."""
    files: dict[str, Path] = {}
    found = []
    for path in paths:
        match = pattern.fullmatch(path.name)
        if not match:
            raise UserError(f"{field}: {path}: no language code in the name; give {FORM}")
        found.append((CODES.get(match[1], match[1]), match[2].replace("_", "-"), path))
    for code, variant, path in found:
        others = [other for other in found if other[0] == code and other[2] != path]
        full = code + variant if others else code
        if full in files:
            raise UserError(f"{field}: {files[full]} and {path.name} are both {full}; leave one out")
        files[full] = path
    return dict(sorted(files.items(), key=lambda item: (item[0] != PIVOT, item[0])))


def _read_conllu(path: Path, field: str) -> dict[str, str]:
    """Id -> text, for every sentence that has both."""
    sentences: dict[str, str] = {}
    for start, lines in conllu.blocks(path, field=field):
        about = {match[1]: match[2].strip() for line in lines if (match := _COMMENT.fullmatch(line))}
        identity = about.get("parallel_id", "").partition("/")[2] or about.get("sent_id", "")
        if identity in sentences:
            raise UserError(f"{field}: {path}:{start}: the id {identity} appears twice; remove one sentence")
        if identity and about.get("text"):
            sentences[identity] = about["text"]
    if not sentences:
        raise UserError(f"{field}: {path}: no sentence has `# sent_id = ` and `# text = `; is this CoNLL-U?")
    return sentences


def cka_linear(X: np.ndarray, Y: np.ndarray, *, debiased: bool = False) -> float:
    """CKA with the linear kernel of X [N, D] and Y [N, D'], rows paired; in float64, memory N squared.

    From 0 to 1, or slightly below 0 if `debiased`, which needs N >= 4. 0 if all rows of one side are equal.
    """
    return _alignment(_linear(X), _linear(Y), debiased)


def cka_rbf(X: np.ndarray, Y: np.ndarray, *, debiased: bool = False) -> float:
    """CKA with the kernel exp(-d^2 / (2 s^2)) of the distances d between rows; otherwise as `cka_linear`.

    s^2 is the median of the nonzero d^2, for each side separately.
    """
    return _alignment(_rbf(X), _rbf(Y), debiased)


def retrieval(X: np.ndarray, Y: np.ndarray) -> float:
    """Share of rows of X [N, D] whose nearest row of Y [N, D] by cosine has the same index; mean of both directions.

    From 0 to 1; 1/N by chance, so it depends on N, as CKA does.
    """
    own = np.arange(len(X))
    return float(np.mean([nearest(X, Y) == own, nearest(Y, X) == own]))


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {  # of X and Y, rows paired
    "cka_linear": cka_linear,
    "cka_rbf": cka_rbf,
    "cka_linear_debiased": functools.partial(cka_linear, debiased=True),
    "cka_rbf_debiased": functools.partial(cka_rbf, debiased=True),
    "retrieval": retrieval,
}


def _linear(X: np.ndarray) -> np.ndarray:
    """Gram matrix [N, N] of the rows, centred because a large common part would cost precision."""
    X = np.asarray(X, np.float64)
    centred = X - X.mean(0)
    if np.linalg.norm(centred) <= 1e-12 * np.linalg.norm(X):
        centred = np.zeros_like(X)  # equal rows up to rounding
    return centred @ centred.T


def _rbf(X: np.ndarray) -> np.ndarray:
    gram = _linear(X)
    squares = np.diag(gram)
    distances = np.maximum(squares[:, None] + squares - 2 * gram, 0)
    np.fill_diagonal(distances, 0)
    apart = distances[distances > 1e-12 * distances.max()]
    return np.exp(-distances / (2 * np.median(apart))) if len(apart) else np.ones_like(gram)


def _alignment(K: np.ndarray, L: np.ndarray, debiased: bool) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    if len(K) != len(L) or len(K) < (4 if debiased else 2):
        raise ValueError(f"CKA of {len(K)} and {len(L)} rows: need equal numbers, at least {4 if debiased else 2}")
    K, L = _centred(K, debiased), _centred(L, debiased)
    scale = np.linalg.norm(K) * np.linalg.norm(L)
    return float(np.sum(K * L) / scale) if scale > 0 else 0.0


def _centred(K: np.ndarray, debiased: bool) -> np.ndarray:
    """H K H with H = I - 1/N: products of two such matrices sum to a multiple of the biased HSIC.

    `debiased`: the U-centred matrix (Szekely & Rizzo 2014), whose products sum to N (N - 3) times the unbiased HSIC.
    """
    N = len(K)
    if debiased:
        K = K - np.diag(np.diag(K))
        sums = K.sum(0) / (N - 2)
        centred = K - sums - sums[:, None] + K.sum() / ((N - 1) * (N - 2))
        np.fill_diagonal(centred, 0)
    else:
        centred = K - K.mean(0) - K.mean(1)[:, None] + K.mean()
    # Only rounding errors remain of a constant matrix.
    return centred if np.linalg.norm(centred) > 1e-12 * np.linalg.norm(K) else np.zeros_like(K)


def evaluate_similarity(
    embedder: Embedder | Remembered,
    params: Any,
    texts: Texts,
    layers: Sequence[int],
    *,
    batch: int = 256,
    measures: Sequence[str] = ("cka_linear", "cka_rbf"),
    pooling: str = "mean_without_special",
    task: str = "cka",
    seed: int = 0,
) -> list[Score]:
    """Similarity of English with every other language, by layer: an item is a batch, the value is their mean.

    The sentences are shuffled (neighbouring lines often come from one document) and split into disjoint batches, the
    same for all languages, layers and models; an incomplete batch is left out. Memory: the vectors of 4,096 sentences
    (or of a batch, if larger) in two languages at all layers, and matrices of batch x batch.

    Args:
      embedder: of the model.
      params: the encoder's parameters.
      texts: see `read_parallel`.
      layers: 0 is the embeddings' output.
      batch: sentences, N; report it with every score, because the value depends on it (see above).
      measures: of MEASURES, the metrics of the scores.
      pooling: of the tokens' states.
      task: the task's name in the scores.
      seed: of the shuffle.

    Returns:
      Scores for each language, layer and measure, direction `en-de`; then the means over the languages, `en-xx`.

    Raises:
      UserError: fewer sentences than a batch.
    """
    layers, N = list(dict.fromkeys(layers)), len(texts[PIVOT])
    if any(len(sentences) != N for sentences in texts.values()):
        raise ValueError(f"not parallel: { ({language: len(sentences) for language, sentences in texts.items()}) }")
    if not 4 <= batch <= N:
        raise UserError(f"similarity in batches of {batch} sentences: there are {N}; choose 4 to {N}")
    order: list[int] = np.random.default_rng(seed).permutation(N)[: N // batch * batch].tolist()
    step = max(1, _CHUNK // batch) * batch
    requests = [(layer, pooling) for layer in layers]
    others = [language for language in texts if language != PIVOT]
    values = {(language, layer, measure): [] for layer in layers for measure in measures for language in others}
    for begin in range(0, len(order), step):
        chunk = {code: [sentences[i] for i in order[begin : begin + step]] for code, sentences in texts.items()}
        english = embedder.embed(params, chunk[PIVOT], requests)
        for language in others:
            foreign = embedder.embed(params, chunk[language], requests)
            for layer, first in itertools.product(layers, range(0, len(chunk[PIVOT]), batch)):
                X, Y = (vectors[layer, pooling][first : first + batch] for vectors in (english, foreign))
                for measure in measures:
                    values[language, layer, measure].append(MEASURES[measure](X, Y))
    scores = [
        Score(
            task, language, f"{PIVOT}-{language}", layer, pooling, measure, (per_item(np.array(items)),), len(items),
            scale=1.0, shared_items=True, batches=True,
        )
        for (language, layer, measure), items in values.items()
    ]  # fmt: skip
    return scores + means(scores, any_language)
