"""Every test runs on 8 CPU devices; tests on real data skip when the data is absent."""

import gc
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Tiny models: machine code takes longer to optimise than to run, and XLA's older emitters make it in half the time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import fake_storage
import numpy as np
import pytest

pytest_plugins = ["run_fixtures"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: none is left to one process when the others are done."""
    long = ("jobs", "studies", "test_notebook.py")
    items.sort(key=lambda item: not any(part in long for part in item.path.parts))


@pytest.fixture(autouse=True, scope="module")
def release_programs():
    """Gives back what a module compiled.

    Every program holds memory maps of the process, a training step some hundreds, and Linux grants 65,530. Without this
    the interpreter once crashed when all tests ran in one process; that the maps were the cause is likely, not proven.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def storage():
    """Buckets, for this process and those that it starts."""
    storage = fake_storage.Storage()
    os.environ |= storage.environment
    yield storage
    storage.close()


@pytest.fixture
def home(monkeypatch, tmp_path, storage):
    """A machine that has seen no run, and an empty bucket."""
    storage.objects.clear()
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real corpora and a small pretrained model, kept beside the checkout; never part of the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared: real data is not here")
    return SHARED


class NumberTokenizer:
    """A sentence is numbers with spaces between; each is its own id."""

    cls_id, sep_id, mask_id, pad_id = 1, 2, 3, 0

    def encode(self, texts):
        return [[int(word) for word in text.split()] for text in texts]


class NumberPairs:
    """A corpus in memory of random sentences; side b is side a plus 1, reversed: a translation one can learn."""

    def __init__(self, n, seed=0, vocab=50, longest=12):
        rng = np.random.default_rng(seed)
        sides = [rng.integers(5, vocab - 1, rng.integers(3, longest)) for _ in range(n)]
        self.texts = [(" ".join(map(str, a)), " ".join(map(str, a[::-1] + 1))) for a in sides]
        self.lengths = np.array([[len(a), len(a)] for a in sides])

        self.languages = ("a", "b")

    def read(self, indices):
        return [self.texts[int(i)] for i in indices]


@pytest.fixture(scope="session")
def number_tokenizer():
    return NumberTokenizer()


@pytest.fixture(scope="session")
def number_pairs():
    return NumberPairs


TINY = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 33,
}
OWN = {  # what else a family is given
    "Distil": {"hidden_dim": 40},
    "Modern": {"local_attention": 4, "pad_token_id": 1}
    | dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),  # above so small a vocabulary
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """tiny("BertForMaskedLM", **config fields) -> a model of transformers, in evaluation mode, seeded.

    Its weights are random everywhere, LayerNorm and biases too: a mix-up of any two shows.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def build(name: str, **fields: Any) -> Any:
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**(TINY | OWN.get(name[:6], {}) | fields)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.3)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def add_tokenizer() -> Callable[..., None]:
    """add_tokenizer(directory, pad=0): a WordPiece tokenizer of single letters; `pad` is the id of [PAD]."""

    def add(directory: Path, pad: int = 0) -> None:
        special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        special.insert(pad, "[PAD]")
        vocab = special + list(string.ascii_lowercase) + [f"##{letter}" for letter in string.ascii_lowercase]
        (directory / "vocab.txt").write_text("\n".join(vocab) + "\n")
        (directory / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "BertTokenizerFast", "do_lower_case": true}'
        )

    return add
