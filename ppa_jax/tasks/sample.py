"""Examples of the tasks from the built-in sample: written to a file, and read by the task's own reader."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ppa_jax.data import sample
from ppa_jax.errors import UserError
from ppa_jax.tasks import conllu
from ppa_jax.tasks.task import Task


def read(task: Task, source: str, *, language: str, field: str) -> list[Any]:
    """The examples A to B - 1 of a language, from `sample:A-B`. `de/en` gives the languages of the two sides (NLI, QA).

    Examples with the same number are translations of each other. Split the sample at multiples of 12: in NLI three
    neighbours share a hypothesis, in QA four share a context.

    Raises UserError for a source of another form, or a range, language or task that the sample does not have.
    """
    kind = getattr(task, "__name__", "").rsplit(".", 1)[-1]
    if kind not in _FILES:
        raise UserError(f"{field}: {source}: the built-in sample has examples of {', '.join(_FILES)}, not of {kind}")
    sides = language.split("/") if kind in ("nli", "qa") else [language]
    if not set(sides) <= set(sample.LANGUAGES):
        raise UserError(f"{field}: {source}: the built-in sample has {', '.join(sample.LANGUAGES)}, not {language}")
    lines, size = _FILES[kind]
    start, stop = sample.parse_range(source, size(), where=f"{field}: {source}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "sample"
        path.write_text("".join(f"{line}\n" for line in lines(sides[0], sides[-1], start, stop)), encoding="utf-8")
        return task.read(path, language=language, field=field)


def _nli(first: str, second: str, start: int, stop: int) -> Iterator[str]:
    yield "pairID\tsentence1\tsentence2\tgold_label"
    both = zip(sample.nli(first, start, stop), sample.nli(second, start, stop), strict=True)
    for number, ((premise, _, label), (_, hypothesis, _)) in enumerate(both, start):
        yield f"{number}\t{premise}\t{hypothesis}\t{label}"


def _qa(first: str, second: str, start: int, stop: int) -> Iterator[str]:
    paragraphs = []
    both = zip(sample.questions(first, start, stop), sample.questions(second, start, stop), strict=True)
    for number, (context, question) in enumerate(both, start):
        answers = [{"text": context.answer, "answer_start": context.start}]
        qas = [{"id": str(number), "question": question.question, "answers": answers}]
        paragraphs.append({"context": context.context, "qas": qas})
    yield json.dumps({"version": "1.1", "data": [{"title": "the built-in sample", "paragraphs": paragraphs}]})


def _tagging(language: str, _: str, start: int, stop: int) -> Iterator[str]:
    for tree in sample.trees(language, start, stop):
        yield from (f"{form}\t{tag}" for form, tag in zip(tree.forms, tree.tags, strict=True))
        yield ""


def _parsing(language: str, _: str, start: int, stop: int) -> Iterator[str]:
    for number, tree in enumerate(sample.trees(language, start, stop), start):
        yield f"# sent_id = {number}"
        yield from map("\t".join, conllu.table(tree.words, tree.tags, tree.heads, tree.relations))
        yield ""


# Task -> (lines in its format, from the languages of both sides, start and stop; the number of examples).
_FILES: dict[str, tuple[Callable[[str, str, int, int], Iterator[str]], Callable[[], int]]] = {
    "nli": (_nli, lambda: len(sample.nli("en"))),
    "qa": (_qa, lambda: len(sample.questions("en"))),
    "tagging": (_tagging, sample.size),
    "parsing": (_parsing, sample.size),
}
