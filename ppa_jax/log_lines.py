"""Logging of the command-line programs: plain lines on stderr; a user's mistake is the last one."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

import absl.logging

from ppa_jax.errors import UserError


class LogLine(logging.Formatter):
    """The time and the message; from warnings on, with its level."""

    def format(self, record: logging.LogRecord) -> str:
        """`12:30:59 text`, or `12:30:59 warning: text`."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{super().format(record)}"


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows this project's log, and warnings of all packages, as plain lines on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogLine())
    # tensorflow-datasets logs every step of opening a dataset through absl, at the level of this project.
    handler.addFilter(lambda record: record.levelno > logging.INFO or "tensorflow_datasets" not in record.pathname)
    absl.logging.set_verbosity(absl.logging.INFO)
    root = logging.getLogger()
    # absl installs a handler that would show every line twice if it logs before any handler is set up.
    others = [other for other in root.handlers if type(other) is logging.StreamHandler and other.stream is sys.stderr]
    for other in others:
        root.removeHandler(other)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for other in others:
            root.addHandler(other)


def answer(work: Callable[[], int]) -> int:
    """Runs `work` and returns its exit status, or 2 after printing a UserError as one line."""
    with log_to_stderr():
        try:
            return work()
        except UserError as error:
            print(f"error: {error}".replace("\n", " "), file=sys.stderr)
            return 2
