"""Fixtures shared by the tests of tagging and parsing."""

import pytest

from ppa_jax.data.tokenizer import load_tokenizer


@pytest.fixture
def read(request, tmp_path):
    """read(text) -> the examples of a file with this text, by the module's `TASK`."""

    def read_text(text):
        (tmp_path / "file").write_text(text)
        return request.module.TASK.read(tmp_path / "file", language="es", field="data.test")

    return read_text


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, add_tokenizer):
    """A word of n letters has n pieces."""
    directory = tmp_path_factory.mktemp("tokenizer")
    add_tokenizer(directory)
    return load_tokenizer(directory)
