"""Compares an answer with the gold answers, by the rules of SQuAD v1.1 or by those of MLQA for its language.

The rules are those of SQuAD's evaluate-v1.1.py (Rajpurkar et al. 2016) and of MLQA's mlqa_evaluation_v1.py (Lewis et
al. 2020), reimplemented. Both lowercase the text, delete punctuation, replace articles by a space, and split the rest
into tokens. They differ in:

- Punctuation: SQuAD deletes that of ASCII, MLQA that of all Unicode (categories P*) too.
- Articles: by language. The Arabic one is deleted wherever its two letters occur, also inside a word: so does MLQA's
  pattern, and the numbers should be comparable with published ones.
- Tokens: split at spaces; in Chinese every Han character is a token, and so is what is between them and spaces (mixed
  segmentation: a Latin word or a number stays whole).

A language that MLQA does not have gets its punctuation, no articles, and tokens between spaces. XTREME scores XQuAD and
TyDi by SQuAD's rules in every language.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter


def _words(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words.split())})\b")


_ARTICLES = {
    "en": _words("a an the"),
    "es": _words("un una unos unas el la los las"),
    "de": _words("ein eine einen einem eines einer der die das den dem des"),
    "vi": _words("của là cái chiếc những"),
    "ar": re.compile("ال"),
}
SQUAD = "squad"  # rules that are of no language
_ARTICLES[SQUAD] = _ARTICLES["en"]
_HAN = "\u4e00-\u9fa5"  # the range of MLQA's scorer
_MIXED = re.compile(rf"[{_HAN}]|[^\s{_HAN}]+")


def normalize(text: str, rules: str) -> str:
    """The tokens of an answer, with a space between. `rules`: SQUAD, or a language, for MLQA's ("zh-CN" is Chinese)."""
    code = re.split("[-_]", rules.lower())[0]
    text = "".join(letter for letter in text.lower() if not _is_punctuation(letter, code))
    if code in _ARTICLES:
        text = _ARTICLES[code].sub(" ", text)
    return " ".join(_MIXED.findall(text) if code == "zh" else text.split())


def _is_punctuation(letter: str, code: str) -> bool:
    return letter in string.punctuation or (code != SQUAD and unicodedata.category(letter).startswith("P"))


def exact(prediction: str, gold: str, rules: str) -> float:
    """1 if the two are the same once normalized, else 0."""
    return float(normalize(prediction, rules) == normalize(gold, rules))


def f1(prediction: str, gold: str, rules: str) -> float:
    """F1 of the tokens, as bags: twice the shared ones over those of both; 0 where nothing is shared, not even words
    to share (as SQuAD v1.1; later versions of it give 1 to two empty answers)."""
    found, wanted = normalize(prediction, rules).split(), normalize(gold, rules).split()
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0
