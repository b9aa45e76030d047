"""What the command lines show on stderr: plain lines, the last of which tells of a mistake."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

import absl.logging

from ppa_jax.errors import UserError


class LogLine(logging.Formatter):
    """The message alone; anything graver than a fact says what it is."""

    def format(self, record: logging.LogRecord) -> str:
        """`text`, or `warning: text`."""
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows what this project logs, and the warnings of everyone else, as plain lines on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogLine())
    # Its play-by-play of every dataset that is opened comes through absl, too, at the level of this project's facts.
    handler.addFilter(lambda record: record.levelno > logging.INFO or "tensorflow_datasets" not in record.pathname)
    absl.logging.set_verbosity(absl.logging.INFO)
    root = logging.getLogger()
    # absl sets one up that shows every line a second time, when it is asked to log before anyone has done so.
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
    """The exit status of a command line: that of `work`, or 2 after the one line of a UserError."""
    with log_to_stderr():
        try:
            return work()
        except UserError as error:
            print(f"error: {error}".replace("\n", " "), file=sys.stderr)
            return 2
