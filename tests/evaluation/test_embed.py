"""Packed, sharded, cached: the vectors must be those of each sentence encoded by itself."""

import dataclasses
import functools
import zlib

import jax
import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.evaluation import embed
from ppa_jax.evaluation.embed import Embedder
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.training.mesh import make_mesh

CONFIG = EncoderConfig(
    vocab_size=60, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=64, max_positions=64,
    initializer_range=0.3,  # so that layers and sentences differ clearly
)  # fmt: skip
REQUESTS = [(3, "cls"), (2, "mean"), (3, "mean_without_special"), (0, "mean")]


@dataclasses.dataclass
class Words:
    """A tokenizer of one piece a word."""

    pad_id: int = 0
    cls_id: int = 1
    sep_id: int = 2

    def encode(self, texts):
        return [[5 + zlib.crc32(word.encode()) % 55 for word in text.split()] for text in texts]


@pytest.fixture(scope="module")
def params():
    one = np.ones((1, 4), int)
    return jax.jit(Encoder(CONFIG).init)(jax.random.key(3), one, one, one)["params"]


def sentences(n: int, seed: int = 0) -> list[str]:
    """Lengths from 0 words to more than are kept, in no order, with repetitions."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{rng.integers(200)}" for _ in range(rng.choice([0, 1, 5, 17, 40]))) for _ in range(n)]
    return [*texts, "", texts[0]]


one_by_one = jax.jit(functools.partial(Encoder(CONFIG).apply, all_hidden=True))


def alone(params, text: str, max_length: int) -> dict:
    """The same vectors without packing or batching: one sentence, one row, no padding."""
    tokenizer = Words()
    ids = [tokenizer.cls_id, *tokenizer.encode([text])[0][: max_length - 2], tokenizer.sep_id]
    row = np.array([ids])
    states = one_by_one({"params": params}, row, np.arange(row.size)[None], np.ones_like(row))
    states = [np.asarray(state[0]) for state in states]
    inner = states[3][1:-1].mean(0) if len(ids) > 2 else np.zeros(CONFIG.hidden_size)
    return dict(zip(REQUESTS, (states[3][0], states[2].mean(0), inner, states[0].mean(0)), strict=True))


@pytest.mark.parametrize("devices", [None, 4])
def test_equals_each_sentence_by_itself_and_keeps_the_order(params, devices, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK", 50)  # several chunks, the last one partial
    mesh = None if devices is None else make_mesh(4, 2)
    embedder = Embedder(CONFIG, Words(), max_length=24, mesh=mesh, rows=2, width=40)
    texts = sentences(120)
    vectors = embedder.embed(params, texts, REQUESTS)
    assert list(vectors) == REQUESTS
    assert {(v.shape, v.dtype) for v in vectors.values()} == {((122, 32), np.dtype(np.float32))}
    expected = {text: alone(params, text, 24) for text in set(texts)}
    for request in REQUESTS:
        np.testing.assert_allclose(vectors[request], [expected[t][request] for t in texts], atol=1e-5)


def test_one_compilation_serves_all_sentences_and_all_parameters(params):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    params = jax.tree.map(jax.numpy.asarray, params)
    embedder = Embedder(CONFIG, Words(), max_length=24, rows=2)
    before = embedder.embed(params, ["a b c"], REQUESTS)
    assert len(compiled) == 1
    trained = jax.tree.map(np.zeros_like, params)  # and from the host, at that
    after = embedder.embed(trained, ["a b c"], REQUESTS)
    for texts in ([], [""], sentences(77, 1), ["x " * 500]):
        embedder.embed(params, texts, REQUESTS)
    assert not np.allclose(before[3, "cls"], after[3, "cls"]), "parameters must not be frozen into the program"
    compiled_for_blocks = [f._cache_size() for f in embedder._programs.values()]
    assert compiled_for_blocks == [1]


def test_pools_as_the_training_does(params):
    from ppa_jax.data.pairs import Places
    from ppa_jax.jobs.align import pool

    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 10, 4)).astype(np.float32)
    start, length = np.array([[0, 3, 9], [2, 0, 0]]), np.array([[3, 5, 1], [8, 2, 0]])
    for pooling in ("cls", "mean"):
        got = np.asarray(embed.pool_spans(hidden, start, length, pooling))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.asarray(pool(hidden, Places(start, length), pooling, 8))
        real = length > 0
        np.testing.assert_allclose(got[real], expected[real], atol=1e-6)
        assert not got[~real].any()


def test_equal_sentences_have_equal_vectors_to_the_bit(params):
    texts = sentences(60)
    vectors = Embedder(CONFIG, Words(), max_length=24, rows=2).embed(params, texts, [(3, "mean")])[3, "mean"]
    assert np.array_equal(vectors[0], vectors[-1])


def test_nothing_in_nothing_out(params):
    embedder = Embedder(CONFIG, Words(), max_length=24)
    assert embedder.embed(params, [], [(3, "mean")])[3, "mean"].shape == (0, 32)
    assert embedder.embed(params, ["a"], []) == {}


@pytest.mark.parametrize(
    "request_, said", [((4, "cls"), "layers 1 to 3"), ((-1, "cls"), "layer -1"), ((3, "max"), "'max': choose from cls")]
)
def test_requests_the_encoder_cannot_serve(params, request_, said):
    with pytest.raises(UserError, match=said):
        Embedder(CONFIG, Words(), max_length=24).embed(params, ["a"], [request_])


@pytest.mark.parametrize("max_length", [2, 65])
def test_lengths_the_encoder_cannot_number(max_length):
    with pytest.raises(UserError, match="3 to 64"):
        Embedder(CONFIG, Words(), max_length=max_length)
