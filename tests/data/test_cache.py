"""What several want at once is prepared once."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ppa_jax.data import cache


def prepare(directory: Path, kind: str) -> None:
    """Takes its time, and leaves a mark each time it really writes."""

    def mark() -> None:
        (directory / f"made-{time.monotonic_ns()}").touch()
        time.sleep(0.5)

    def fill(work: Path) -> None:
        mark()
        (work / "text").write_text("all of it")

    def rows():
        mark()
        yield np.arange(3)

    if kind == "folder":
        cache.publish(directory / "it", fill)
        assert (directory / "it/text").read_text() == "all of it"
    else:
        cache.write_array(directory / "it", rows(), np.dtype(np.int64), (3,))
        assert np.load(directory / "it").tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_one_prepares_and_the_others_wait(tmp_path, kind):
    """Threads here: the lock belongs to an open file, so they are to it as processes are."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare(tmp_path, kind), range(4)))
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_one_that_failed_lets_the_next_prepare(tmp_path):
    def fail(work: Path) -> None:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cache.publish(tmp_path / "it", fail)
    prepare(tmp_path, "folder")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("made")) == [".it.lock", "it"]
