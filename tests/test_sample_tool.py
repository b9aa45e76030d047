"""The generator writes what the files of the built-in sample hold: one line in 60, and one dictionary whole."""

import bz2

import pytest

from tools import sample
from tools.sample.__main__ import FILES, FOLDER, dictionary, lines, write


def stored(name: str) -> list[str]:
    return bz2.decompress((FOLDER / f"{name}.bz2").read_bytes()).decode().splitlines()


@pytest.mark.parametrize("file", FILES)
def test_lines_agree(file):
    numbers = FILES[file]
    for language in sample.LANGUAGES:
        found = stored(f"{file}.{language}")
        assert len(found) == len(numbers)
        assert lines(file, language, numbers[::60]) == found[::60]


def test_a_whole_file_agrees_byte_for_byte(tmp_path):
    write(tmp_path / "file", dictionary("en", "de"))
    assert (tmp_path / "file").read_bytes() == (FOLDER / "dictionary.en-de.bz2").read_bytes()
