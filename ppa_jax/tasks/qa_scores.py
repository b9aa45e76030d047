"""Compares an answer with the gold ones by the rules of SQuAD v1.1, or by those of MLQA for a language.

The rules reimplement SQuAD's evaluate-v1.1.py (Rajpurkar et al. 2016) and MLQA's mlqa_evaluation_v1.py (Lewis et al.
2020). Both lowercase the text, delete punctuation, replace articles by a space, and split the rest into tokens. They
differ in:

- Punctuation: SQuAD deletes ASCII punctuation, MLQA also that of Unicode (categories P*).
- Articles: by language. The Arabic article is deleted wherever its two letters occur, even inside a word, as in MLQA's
  scorer, so that the numbers are comparable with published ones.
- Tokens: separated by spaces. In Chinese every Han character is a token (mixed segmentation: Latin words and numbers
  stay whole).

Languages that MLQA does not cover get its punctuation, no articles, and tokens separated by spaces. XTREME scores XQuAD
and TyDi by SQuAD's rules in every language.
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
SQUAD = "squad"  # its rules do not depend on the language
_ARTICLES[SQUAD] = _ARTICLES["en"]
_HAN = "\u4e00-\u9fa5"  # the range of MLQA's scorer
_MIXED = re.compile(rf"[{_HAN}]|[^\s{_HAN}]+")


def normalize(text: str, rules: str) -> str:
    """The tokens of an answer, separated by spaces. `rules`: SQUAD, or a language for MLQA's ("zh-CN" is Chinese)."""
    code = re.split("[-_]", rules.lower())[0]
    text = "".join(letter for letter in text.lower() if not _is_punctuation(letter, code))
    if code in _ARTICLES:
        text = _ARTICLES[code].sub(" ", text)
    return " ".join(_MIXED.findall(text) if code == "zh" else text.split())


def _is_punctuation(letter: str, code: str) -> bool:
    return letter in string.punctuation or (code != SQUAD and unicodedata.category(letter).startswith("P"))


def exact(prediction: str, gold: str, rules: str) -> float:
    """1 if the two are equal after normalization, else 0."""
    return float(normalize(prediction, rules) == normalize(gold, rules))


def f1(prediction: str, gold: str, rules: str) -> float:
    """F1 of the two bags of tokens: twice the number of shared tokens over the number of all.

    Two empty answers score 0, as in SQuAD v1.1; later versions give them 1.
    """
    found, wanted = normalize(prediction, rules).split(), normalize(gold, rules).split()
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0
