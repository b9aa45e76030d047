"""Examples of the tasks from the built-in sample, by way of the tasks' own files."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ppa_jax.data import world
from ppa_jax.errors import UserError
from ppa_jax.tasks.task import Task

_RANGE = re.compile(r"world:(\d+)-(\d+)(?::(\w+))?")


def read(task: Task, source: str, *, language: str, field: str) -> list[Any]:
    """The examples A to B - 1 of a language, from `world:A-B`; of NLI and questions also `de/en`, the sides' languages.

    Examples of one number are translations of each other. Cut at multiples of 12: neighbours share a hypothesis (NLI,
    three of them) or a context (questions, four). `world:A-B:KIND` keeps of the NLI pairs those whose hypothesis is of
    a kind (`world.nli_kind`). Raises UserError for a source of another form, a range or a language that
    the sample has not, a task that it has no examples for.
    """
    kind = getattr(task, "__name__", "").rsplit(".", 1)[-1]
    found = _RANGE.fullmatch(source)
    if kind not in _FILES:
        raise UserError(f"{field}: {source}: the built-in sample has examples of {', '.join(_FILES)}, not of {kind}")
    sides = language.split("/") if kind in _TWO_SIDES else [language]
    if not set(sides) <= set(world.LANGUAGES):
        raise UserError(f"{field}: {source}: the built-in sample has {', '.join(world.LANGUAGES)}, not {language}")
    start, stop = map(int, found.groups()[:2]) if found else (0, 0)
    size, lines = _FILES[kind]
    if not start < stop <= size():
        raise UserError(f"{field}: {source}: write world:A-B, with numbers up to {size()}")
    numbers = range(start, stop)
    if found and found[3]:
        if kind != "nli" or found[3] not in _NLI_KINDS:
            raise UserError(f"{field}: {source}: only NLI has kinds: {', '.join(_NLI_KINDS)}")
        numbers = [number for number in numbers if world.nli_kind(number) == found[3]]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "sample"
        path.write_text("".join(f"{line}\n" for line in lines(language, numbers)), encoding="utf-8")
        return task.read(path, language=language, field=field)


def _sides(language: str) -> tuple[str, str]:
    first, _, second = language.partition("/")
    return first, second or first


def _nli(language: str, numbers: Iterable[int]) -> Iterable[str]:
    yield "pairID\tsentence1\tsentence2\tgold_label"
    for number in numbers:
        texts, label = world.nli(number)
        premise, hypothesis = _sides(language)
        yield "\t".join([str(number), texts[premise][0], texts[hypothesis][1], label])


def _tagging(language: str, numbers: Iterable[int]) -> Iterable[str]:
    for number in numbers:
        said = world.sentence(number)[language]
        yield from (f"{word}\t{tag}" for word, tag in zip(said.forms, said.tags, strict=True))
        yield ""


def _parsing(language: str, numbers: Iterable[int]) -> Iterable[str]:
    for number in numbers:
        tree = world.tree(number)[language]
        yield f"# sent_id = {number}"
        for i, row in enumerate(zip(tree.words, tree.tags, tree.heads, tree.relations, strict=True), start=1):
            form, tag, head, relation = row
            yield f"{i}\t{form}\t_\t{tag}\t_\t_\t{head}\t{relation}\t_\t_"
        yield ""


def _qa(language: str, numbers: Iterable[int]) -> Iterable[str]:
    paragraphs = []
    for number in numbers:
        context, question = (world.question(number)[side] for side in _sides(language))
        answers = [{"text": context.answer, "answer_start": context.start}]
        qas = [{"id": str(number), "question": question.question, "answers": answers}]
        paragraphs.append({"context": context.context, "qas": qas})
    yield json.dumps({"version": "1.1", "data": [{"title": "the built-in sample", "paragraphs": paragraphs}]})


_TWO_SIDES = ("nli", "qa")
_NLI_KINDS = ("act", "describe", "describe_not", "locate", "locate_not", "compare", "compare_not")
_FILES: dict[str, tuple[Callable[[], int], Callable[[str, Iterable[int]], Iterable[str]]]] = {
    "nli": (world.nli_size, _nli),
    "qa": (world.question_size, _qa),
    "tagging": (world.size, _tagging),
    "parsing": (world.size, _parsing),
}
