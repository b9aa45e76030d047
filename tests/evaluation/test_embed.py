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
from ppa_jax.model.pooling import pool
from ppa_jax.training.sharding import make_mesh

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
@pytest.mark.parametrize("width", [16, 128])
def test_equals_each_sentence_by_itself_and_keeps_the_order(params, devices, width, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK", 50)  # several chunks, the last one partial
    monkeypatch.setattr(embed, "WIDTH", width)  # at 16, longer sentences need rows of another width
    mesh = None if devices is None else make_mesh(4)
    embedder = Embedder(CONFIG, Words(), max_length=24, mesh=mesh, rows=2)
    texts = sentences(120)
    finished = []
    vectors = embedder.embed(params, texts, REQUESTS, progress=finished.append)
    assert list(vectors) == REQUESTS
    assert {(v.shape, v.dtype) for v in vectors.values()} == {((122, 32), np.dtype(np.float32))}
    expected = {text: alone(params, text, 24) for text in set(texts)}
    for request in REQUESTS:
        np.testing.assert_allclose(vectors[request], [expected[t][request] for t in texts], atol=1e-5)
    assert sum(finished) == len(texts)


@pytest.mark.parametrize("devices", [None, 4])
def test_token_states_are_those_of_each_sentence_by_itself(params, devices, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK", 9)
    monkeypatch.setattr(embed, "WIDTH", 16)
    pieces = Words().encode(sentences(20))
    mesh = None if devices is None else make_mesh(4)
    embedder = Embedder(CONFIG, Words(), max_length=24, mesh=mesh, rows=2)
    got = dict(embedder.token_states(params, pieces, [3, 0]))
    assert sorted(got) == list(range(len(pieces)))
    for number, states in got.items():
        row = np.array([[1, *pieces[number][:22], 2]])
        alone = one_by_one({"params": params}, row, np.arange(row.size)[None], np.ones_like(row))
        assert list(states) == [3, 0]
        for layer in states:
            np.testing.assert_allclose(states[layer], alone[layer][0, 1:-1], atol=1e-5)


def test_few_compilations_serve_all_sentences_and_all_parameters(params):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    params = jax.tree.map(jax.numpy.asarray, params)
    embedder = Embedder(CONFIG, Words(), max_length=60, rows=16)
    before = embedder.embed(params, ["a b c"], REQUESTS)
    assert len(compiled) == 1
    trained = jax.tree.map(np.zeros_like, params)  # and from the host, at that
    after = embedder.embed(trained, ["a b c"], REQUESTS)
    for texts in ([], [""], sentences(77, 1), sentences(400, 2), ["x " * 500]):
        embedder.embed(params, texts, REQUESTS)
    assert not np.allclose(before[3, "cls"], after[3, "cls"]), "parameters must not be frozen into the program"
    compiled_for_blocks = sum(f._cache_size() for f in embedder.programs.values())
    assert 2 < compiled_for_blocks <= 6, "one row of 16, 32 or more tokens, and 1, 4 or 16 rows"


@pytest.mark.parametrize("words, tokens", [([3], 16), ([9, 8], 32), ([60], 64), ([126], 128), ([60] * 2, 128)])
def test_a_few_short_sentences_take_one_short_row(words, tokens):
    embedder = Embedder(dataclasses.replace(CONFIG, max_positions=200), Words(), max_length=150)
    blocks = list(embedder.blocks([[7] * n for n in words]))
    assert [block.ids.shape for _, _, block in blocks] == [(1, tokens)]


def test_many_sentences_leave_little_padding(monkeypatch):
    monkeypatch.setattr(embed.os, "cpu_count", lambda: 64)  # as many rows as are asked for
    lengths = np.random.default_rng(0).lognormal(3, 0.6, 4000).astype(int)
    embedder = Embedder(dataclasses.replace(CONFIG, max_positions=512), Words(), max_length=512)
    blocks = [block for _, _, block in embedder.blocks([[7] * n for n in lengths])]
    assert np.mean(np.concatenate([block.segments.ravel() > 0 for block in blocks])) > 0.95
    assert len({block.ids.shape for block in blocks}) <= 6
    assert max(block.ids.size for block in blocks) == 16 * 128


@pytest.mark.parametrize(
    "cores, devices, rows, wide",
    [(2, None, 8, 1), (1, None, 4, 1), (8, None, 32, 4), (64, None, 32, 8), (4, 4, 4, 1), (2, 8, 1, 1)],
)
def test_blocks_fit_the_caches_of_a_cpu(cores, devices, rows, wide, monkeypatch):
    """Rows of 128 and of 512 for each device, of 32 x 128 tokens that are asked for.

    512 tokens a core, or 256 in rows of 512; but at least one row.
    """
    monkeypatch.setattr(embed.os, "cpu_count", lambda: cores)
    mesh = None if devices is None else make_mesh(devices, 1, jax.devices()[:devices])
    embedder = Embedder(dataclasses.replace(CONFIG, max_positions=512), Words(), max_length=512, mesh=mesh, rows=32)
    blocks = [block for _, _, block in embedder.blocks([[7] * 126] * 300 + [[7] * 510] * 10)]
    assert blocks[0].ids.shape == (rows * (devices or 1), 128)
    assert max(block.ids.shape[0] for block in blocks if block.ids.shape[1] == 512) == wide * (devices or 1)


@pytest.mark.parametrize("sentences, rows", [(8, [8]), (9, [8, 1]), (11, [8, 4]), (14, [8, 8])])
def test_the_last_block_is_the_smallest_that_holds_the_rest(sentences, rows, monkeypatch):
    monkeypatch.setattr(embed.os, "cpu_count", lambda: 2)
    embedder = Embedder(dataclasses.replace(CONFIG, max_positions=512), Words(), max_length=128)
    assert [block.ids.shape[0] for _, _, block in embedder.blocks([[7] * 126] * sentences)] == rows


def test_pooling_by_hand():
    hidden = np.arange(20, dtype=np.float32).reshape(1, 10, 2)
    start, length = np.array([[0, 3, 0]]), np.array([[3, 5, 0]])
    expected = {
        "cls": [[0, 1], [6, 7]],
        "mean": [[2, 3], [10, 11]],  # rows 0-2; rows 3-7
        "mean_without_special": [[2, 3], [10, 11]],
    }
    for pooling, vectors in expected.items():
        got = np.asarray(pool(hidden, start, length, pooling))
        np.testing.assert_allclose(got[0, :2], vectors, atol=1e-6)
    lopsided = np.asarray(pool(hidden**2, start, length, "mean_without_special"))
    np.testing.assert_allclose(lopsided[0, :2, 0], [2**2, (8**2 + 10**2 + 12**2) / 3], atol=1e-4)


def test_equal_sentences_have_equal_vectors_to_the_bit(params):
    texts = sentences(60)
    vectors = Embedder(CONFIG, Words(), max_length=24, rows=2).embed(params, texts, [(3, "mean")])[3, "mean"]
    assert np.array_equal(vectors[0], vectors[-1])


def test_long_texts_are_tokenised_a_few_at_a_time(params, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK_CHARACTERS", 100)
    texts = ["x" * 30] * 7 + ["y" * 500] + ["z"] * 3
    assert list(embed.chunks(texts)) == [(0, 3), (3, 6), (6, 7), (7, 8), (8, 11)]
    words = ["a b", "c " * 60, "d"]
    vectors = Embedder(CONFIG, Words(), max_length=24).embed(params, words, [(3, "mean")])[3, "mean"]
    for text, vector in zip(words, vectors, strict=True):
        whole = Embedder(CONFIG, Words(), max_length=24).embed(params, [text], [(3, "mean")])[3, "mean"][0]
        np.testing.assert_allclose(vector, whole, atol=1e-5)


@pytest.mark.parametrize("dtype, exact", [("float32", True), ("bfloat16", False)])
def test_float32_is_float32_on_every_device(params, dtype, exact):
    embedder = Embedder(CONFIG, Words(), max_length=24, dtype=dtype)
    _, _, block = next(embedder.blocks([[7] * 5]))
    for pooling in ("cls", ""):
        lines = embedder.program(((3, pooling),)).lower(params, *block).as_text().splitlines()
        products = [line for line in lines if "stablehlo.dot_general" in line]
        assert len(products) == 3 * 8  # a layer's: four of the attention, two within it, two of the feed-forward
        assert [line for line in products if ("precision = [HIGHEST, HIGHEST]" in line) != exact] == []


def test_states_that_are_not_finite_are_reported(params):
    broken = jax.tree.map(np.array, params)
    broken["layer_1"]["feed_forward"]["output"]["bias"][3] = np.nan
    embedder = Embedder(CONFIG, Words(), max_length=24, dtype="bfloat16")
    said = "layer 2: the model's weights, or dtype=bfloat16, give values that are not finite"
    with pytest.raises(UserError, match=said):
        embedder.embed(broken, ["a b"], [(1, "mean"), (2, "cls")])
    with pytest.raises(UserError, match=said):
        list(embedder.token_states(broken, [[7, 8]], [1, 2]))


def test_nothing_in_nothing_out(params):
    embedder = Embedder(CONFIG, Words(), max_length=24)
    assert embedder.embed(params, [], [(3, "mean")])[3, "mean"].shape == (0, 32)
    assert embedder.embed(params, ["a"], []) == {}


@pytest.mark.parametrize(
    "request_, said",
    [
        ((4, "cls"), "layers 0 to 3"),
        ((-1, "cls"), "layer -1"),
        ((3, "max"), "'max': choose from cls"),
        ((2.7, "cls"), "layer=2.7: must be a whole number"),
    ],
)
def test_requests_the_encoder_cannot_serve(params, request_, said):
    with pytest.raises(UserError, match=said):
        Embedder(CONFIG, Words(), max_length=24).embed(params, ["a"], [request_])


@pytest.mark.parametrize("max_length, said", [(2, "3 to 64"), (65, "3 to 64"), ("8", "max_length='8'")])
def test_lengths_the_encoder_cannot_number(max_length, said):
    with pytest.raises(UserError, match=said):
        Embedder(CONFIG, Words(), max_length=max_length)


def test_remembered_vectors_are_those_of_the_embedder(params):
    embedder, texts = Embedder(CONFIG, Words(), max_length=16), sentences(40)
    once = embed.Remembered(embedder, params, texts, REQUESTS)
    asked = texts[30:] + texts[:5]
    expected = embedder.embed(params, asked, REQUESTS[:2])
    embedder.embed = None  # not asked again
    found = once.embed(None, asked, REQUESTS[:2])
    assert list(found) == REQUESTS[:2]
    for request in found:
        np.testing.assert_allclose(found[request], expected[request], rtol=1e-4, atol=1e-5)
