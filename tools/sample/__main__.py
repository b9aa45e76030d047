"""Writes the files of `ppa_jax/data/sample` again, in about a minute:  python -m tools.sample [FOLDER]"""

import bz2
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from tools import sample

FOLDER = Path(__file__).parents[2] / "ppa_jax" / "data" / "sample"
# What the package's demos and documented results use. Retrieval takes the last sentences, training the first.
SENTENCES = [*range(32_000), *range(sample.size() - 1_000, sample.size())]
NLI = [number for number in range(sample.nli_size()) if sample.nli_kind(number) == "describe"]
QUESTIONS = [*range(12_000), *range(30_000, 30_600)]


def _tree(words: sample.Realisation, tree: sample.Tree) -> str:
    roles = map("+".join, words.links)
    columns = zip(words.forms, tree.tags, map(str, tree.heads), tree.relations, roles, strict=True)
    return " ".join(map("/".join, columns))


def lines(file: str, language: str, numbers: Iterable[int]) -> list[str]:
    """The lines of one file that stand for these numbers of the generator."""
    if file == "sentences":
        return [sample.sentence(number)[language].text for number in numbers]
    if file == "trees":
        return [_tree(sample.sentence(number)[language], sample.tree(number)[language]) for number in numbers]
    if file == "nli":
        found = map(sample.nli, numbers)
        return ["\t".join((*texts[language], label)) for texts, label in found]
    asked = (sample.question(number)[language] for number in numbers)
    return ["\t".join((said.question, said.context, said.answer)) for said in asked]


FILES: dict[str, Sequence[int]] = {"sentences": SENTENCES, "trees": SENTENCES, "nli": NLI, "questions": QUESTIONS}


def dictionary(first: str, second: str) -> list[str]:
    return ["\t".join(pair) for pair in sample.dictionary(first, second)]


def write(path: Path, found: list[str]) -> None:
    path.write_bytes(bz2.compress("".join(f"{line}\n" for line in found).encode()))


def main(folder: Path) -> None:
    for language in sample.LANGUAGES:
        for file, numbers in FILES.items():
            write(folder / f"{file}.{language}.bz2", lines(file, language, numbers))
    for first, second in combinations(sample.LANGUAGES, 2):
        write(folder / f"dictionary.{first}-{second}.bz2", dictionary(first, second))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
