"""The languages there are, and saying a meaning in one of them."""

from tools.sample import chinese, english, german, russian, spanish
from tools.sample.meaning import Meaning
from tools.sample.words import Realisation

GRAMMARS = {"en": english, "de": german, "es": spanish, "ru": russian, "zh": chinese}
LANGUAGES = ("en", "de", "es", "ru", "zh")


def realise(what: Meaning, language: str) -> Realisation:
    """Say a meaning in one language; also for meanings that have no index."""
    if language not in GRAMMARS:
        raise ValueError(f"sample: no language {language!r}; there are {', '.join(LANGUAGES)}")
    return GRAMMARS[language].realise(what)


def join(texts: list[str], language: str) -> str:
    """Sentences in a row, as they are written in this language."""
    return ("" if language == "zh" else " ").join(texts)
