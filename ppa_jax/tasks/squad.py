"""Data sets in the format of SQuAD v1.1: reading files and rows of datasets, mixing translations, writing predictions.

They include SQuAD, XQuAD, TyDi QA GoldP, and MLQA, where context and question may be in different languages.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from absl import logging

from ppa_jax.data.text_files import open_text, usable
from ppa_jax.errors import UserError

_Parts = tuple[str, str, str, list[tuple[str, int]]]  # id, question, context, (text, start) of the answers


@dataclass(frozen=True)
class Answer:
    """A gold answer."""

    text: str
    start: int  # of its first character in the context; -1 if it is not there: scored, but not trained on


@dataclass(frozen=True)
class Example:
    """A question."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]  # empty without gold
    language: str  # of the context, and thus of the answer
    question_language: str


def grid_languages(path: str | Path) -> tuple[str, str] | None:
    """The languages of (context, question) from a file name of MLQA, `...context-de-question-es.json`."""
    found = re.search(r"context-([^\W_]+)-question-([^\W_]+)", Path(path).name)
    return (found[1], found[2]) if found else None


def read(path: Path, *, language: str, field: str) -> list[Example]:
    """The questions of a SQuAD v1.1 file.

    `language` is that of contexts and questions, or context/question; MLQA's file names take precedence.

    An answer that is not at its `answer_start` is searched for in the rest of the context. A question without the key
    `answers`, or with empty answers, has no gold.

    Raises:
      UserError: not JSON, with the line; not SQuAD's keys, with the path to the first wrong one.
    """
    found = []
    for where, context, question in _questions(_load(path, field), f"{field}: {path}"):
        name = str(_get(question, "id", str | int, where))
        where += f" (id {name})"
        answers = []
        for i, answer in enumerate(_get(question, "answers", list, where) if "answers" in question else []):
            at = f"{where}.answers[{i}]"
            answers.append((_get(answer, "text", str, at), _get(answer, "answer_start", int, at)))
        found.append((name, _get(question, "question", str, where), context, answers))
    return _examples(found, path, grid_languages(path) or _two(language))


def from_rows(rows: Iterable[Any], *, where: str, language: str, field: str) -> list[Example]:
    """The questions of a dataset's rows: `id`, `question`, `context` and `answers` with `text` and `answer_start`."""

    def text(value: Any) -> str:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def parts(row: Any, number: int) -> _Parts | str:
        try:
            gold = row.get("answers") or {"text": [], "answer_start": []}
            answers = [(text(x), int(y)) for x, y in zip(gold["text"], gold["answer_start"], strict=True)]
            return text(row.get("id", number)), text(row["question"]), text(row["context"]), answers
        except (AttributeError, KeyError, TypeError, ValueError):
            return row if isinstance(row, str) else "no question, context and answers"

    found = ((number, parts(row, number)) for number, row in enumerate(rows, 1))
    expected = "the columns are those of SQuAD v1.1"
    return _examples(usable(found, where, field=field, expected=expected), where, _two(language))


def _two(language: str) -> tuple[str, str]:
    """The languages of context and question."""
    context, _, question = language.partition("/")
    return context, question or context


def _examples(found: Iterable[_Parts], path: Path | str, languages: tuple[str, str]) -> list[Example]:
    """`languages` are those of context and question."""
    examples, counts = [], Counter()
    for name, question, context, gold in found:
        answers = []
        for text, start in gold:
            if text.strip():
                found_at = _locate(context, text, start)
                counts["answers"] += 1
                counts["moved"] += found_at not in (start, -1)
                counts["lost"] += found_at == -1
                spaces = len(text) - len(text.lstrip())
                answers.append(Answer(text.strip(), -1 if found_at == -1 else found_at + spaces))
        counts["unanswered"] += not answers
        examples.append(Example(name, question, context, tuple(answers), *languages))
    if 0 < counts["unanswered"] < len(examples):  # as in SQuAD 2.0; a test set may have no gold at all
        message = "%s: %d of %d questions have no answer; they are neither trained on nor scored"
        logging.warning(message, path, counts["unanswered"], len(examples))
    if counts["moved"] or counts["lost"]:
        message = (
            "%s: %d of %d answers are not at their answer_start; %d were found elsewhere in the context, "
            "%d nowhere (these are scored but not trained on)"
        )
        wrong = counts["moved"] + counts["lost"]
        logging.warning(message, path, wrong, counts["answers"], counts["moved"], counts["lost"])
    return examples


def mix(first: Example, second: Example) -> Example:
    """The context of one example, with its answers, and the question of its translation (see code_switching.py).

    Raises UserError if their ids differ: nothing else shows that they are the same question.
    """
    if first.id != second.id:
        raise UserError(f"code-switching: questions {first.id} ({first.language}) and {second.id} ({second.language}) "
                        "are in one row; give translations that share their ids")  # fmt: skip
    return replace(first, question=second.question, question_language=second.language)


def _load(path: Path, field: str) -> Any:
    try:
        with open_text(path) as stream:
            text = stream.read().decode("utf-8")
        return json.loads(text)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{field}: {path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); give a SQuAD v1.1 file"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{field}: {path}:{line}: not UTF-8; convert the file (iconv -t UTF-8)") from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{field}: {path}: damaged or cut short ({error}); copy the file again") from None


def _questions(content: Any, file: str) -> Iterator[tuple[str, str, Any]]:
    """(path for messages, context, question) of all questions in a file."""
    for i, article in enumerate(_get(content, "data", list, file)):
        at_article = f"{file}: data[{i}]"
        for j, paragraph in enumerate(_get(article, "paragraphs", list, at_article)):
            at_paragraph = f"{at_article}.paragraphs[{j}]"
            context = _get(paragraph, "context", str, at_paragraph)
            for k, question in enumerate(_get(paragraph, "qas", list, at_paragraph)):
                yield f"{at_paragraph}.qas[{k}]", context, question


def _get(record: Any, key: str, kind: Any, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise UserError(f"{where}: no key {key!r}; give a SQuAD v1.1 file (data, paragraphs, context, qas)")
    if not isinstance(record[key], kind):
        raise UserError(f"{where}: {key!r} is {str(record[key])[:40]!r}, which SQuAD v1.1 does not allow; correct it")
    return record[key]


def _locate(context: str, text: str, start: int) -> int:
    """The position of the text in the context: `start`, or the nearest one to it, or -1."""
    if start >= 0 and context.startswith(text, start):
        return start
    positions = [found.start() for found in re.finditer(f"(?={re.escape(text)})", context)]
    return min(positions, key=lambda position: abs(position - start), default=-1)


def write(path: Path, examples: Sequence[Example], predictions: Sequence[str]) -> None:
    """Writes {id: answer}, which the scorers of SQuAD and MLQA read."""
    answers = {example.id: answer for example, answer in zip(examples, predictions, strict=True)}
    if len(answers) < len(examples):
        logging.warning("%s: several questions have the same id; only the answer to the last one is written", path)
    path.write_text(json.dumps(answers, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
