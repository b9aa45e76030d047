"""Sentences to vectors: any number of them, several layers and poolings in one forward pass, one compiled program.

Sentences are packed into blocks of one static shape, [R, W] tokens with at most k sentences a row, so that a program is
compiled once for a set of requests, whatever the sentences and whatever the parameters: these are arguments. Memory is
that of one block, one chunk of text, and the vectors asked for.

Axes: N sentences, R rows of a block, W row width, k sentences of a row, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.data import packing
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model.bert import Encoder, EncoderConfig

Request = tuple[int, str]  # (layer, pooling): layer 0 is the embeddings' output, `num_layers` the last
Vectors = dict[Request, np.ndarray]

POOLINGS = ("cls", "mean", "mean_without_special")
CHUNK = 16_384  # sentences tokenised and packed together
SHORTEST = 8  # tokens that a sentence takes of a row at least: it bounds the sentences of a row to W / 8


class Block(NamedTuple):
    """One call of the encoder."""

    ids: np.ndarray  # [R, W]
    positions: np.ndarray  # [R, W]
    segments: np.ndarray  # [R, W]
    start: np.ndarray  # [R, k] first token of each sentence in its row
    length: np.ndarray  # [R, k] with special tokens; 0: no sentence


def pool_spans(hidden: jax.Array, start: jax.Array, length: jax.Array, pooling: str) -> jax.Array:
    """One vector a sentence, [R, k, D] float32, from the states [R, W, D] of packed rows.

    `cls` is the state of the first token; `mean` that of all tokens, [CLS] and [SEP] included, as XTREME and
    SentenceTransformer have it; `mean_without_special` leaves these two out (and gives zeros for an empty sentence).
    """
    if pooling == "cls":
        length = jnp.minimum(length, 1)
    elif pooling == "mean_without_special":
        start, length = start + 1, jnp.maximum(length - 2, 0)
    token = jnp.arange(hidden.shape[1])
    inside = (token >= start[..., None]) & (token < (start + length)[..., None])  # [R, k, W]
    # A product with zeros and ones: unlike a gather it needs no copy of the states for each sentence.
    total = jnp.einsum("rkw,rwd->rkd", inside.astype(jnp.float32), hidden.astype(jnp.float32), precision="highest")
    return total / jnp.maximum(length, 1)[..., None]


class Embedder:
    """Embeds sentences with an encoder whose parameters come with every call.

    One instance serves before, during and after training: its programs are compiled once for each set of requests.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        mesh: Mesh | None = None,
        dtype: Any = jnp.float32,
        rows: int = 16,
        width: int | None = None,
    ) -> None:
        """
        Args:
          config: of the encoder.
          tokenizer: of the same model.
          max_length: word pieces of a sentence with its special tokens; longer ones are cut.
          mesh: splits the rows over its axis `data`; None computes where the parameters are.
          dtype: of the matrix products.
          rows: R for each device along `data`.
          width: W; by default max_length rounded up to a multiple of 64.

        Raises:
          UserError: a max_length that the encoder cannot number, or without room for a word piece.
        """
        if not 3 <= max_length <= config.max_length:
            raise UserError(f"max_length={max_length}: this encoder takes 3 to {config.max_length} word pieces")
        self.config, self.tokenizer, self.max_length, self.mesh = config, tokenizer, max_length, mesh
        self.width = -(-max_length // 64) * 64 if width is None else width
        if self.width < max_length:
            raise ValueError(f"rows of {self.width} tokens cannot hold sentences of {max_length}")
        self.rows = rows * (mesh.shape["data"] if mesh is not None else 1)
        self.row_sentences = max(1, self.width // SHORTEST)
        self._encoder = Encoder(config, dtype)
        self._programs: dict[tuple[Request, ...], Callable[..., tuple[jax.Array, ...]]] = {}

    def embed(self, params: Any, sentences: Sequence[str], requests: Sequence[Request]) -> Vectors:
        """The vectors [N, D], float32, of every (layer, pooling) asked for, in the order of the sentences.

        Args:
          params: the encoder's parameters (`params["encoder"]`), on the host or on devices, sharded or not.
          sentences: any number; an empty one is [CLS] [SEP]. Equal sentences of a chunk are embedded once.
          requests: for example [(6, "cls"), (4, "mean")].

        Raises:
          UserError: a layer that the encoder lacks, or an unknown pooling.
        """
        requests = tuple(dict.fromkeys((int(layer), pooling) for layer, pooling in requests))
        self._check(requests)
        D = self.config.hidden_size
        vectors = {request: np.empty((len(sentences), D), np.float32) for request in requests}
        if not requests or not len(sentences):
            return vectors
        params = jax.tree.map(self._place, params)
        for begin in range(0, len(sentences), CHUNK):
            chunk = sentences[begin : begin + CHUNK]
            number = {text: i for i, text in enumerate(dict.fromkeys(chunk))}
            distinct = {request: np.empty((len(number), D), np.float32) for request in requests}
            for numbers, slots, pooled in self._run(params, list(number), requests):
                for request, vectors_RxkxD in zip(requests, pooled, strict=True):
                    distinct[request][numbers] = np.asarray(vectors_RxkxD).reshape(-1, D)[slots]
            which = [number[text] for text in chunk]
            for request in requests:
                vectors[request][begin : begin + len(chunk)] = distinct[request][which]
        return vectors

    def _check(self, requests: tuple[Request, ...]) -> None:
        for layer, pooling in requests:
            if not 0 <= layer <= self.config.num_layers:
                raise UserError(f"layer {layer}: this encoder has layers 1 to {self.config.num_layers}")
            if pooling not in POOLINGS:
                raise UserError(f"pooling {pooling!r}: choose from {', '.join(POOLINGS)}")

    def _run(self, params: Any, texts: list[str], requests: tuple[Request, ...]) -> Iterator[tuple[Any, Any, Any]]:
        """Results of block t - 1 are handed out while block t is being computed."""
        program = self._program(requests)
        waiting = None
        for numbers, slots, block in self._blocks(texts):
            dispatched = numbers, slots, program(params, *(self._put(array) for array in block))
            if waiting is not None:
                yield waiting
            waiting = dispatched
        if waiting is not None:
            yield waiting

    def _blocks(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray, Block]]:
        """(numbers [n] of the sentences in the block, their places [n] in its R * k, the block)."""
        R, W, k = self.rows, self.width, self.row_sentences
        cls, sep, pad = self.tokenizer.cls_id, self.tokenizer.sep_id, self.tokenizer.pad_id
        tokens = [[cls, *ids[: self.max_length - 2], sep] for ids in self.tokenizer.encode(texts)]
        lengths = np.array([len(sequence) for sequence in tokens])
        starts, used = packing.pack(np.maximum(lengths, W // k), W)
        order = np.argsort(starts, kind="stable")
        bounds = np.searchsorted(starts[order], np.arange(0, used + R, R) * W)
        for block, (low, high) in enumerate(itertools.pairwise(bounds)):
            numbers = order[low:high]
            if not len(numbers):
                continue
            here = starts[numbers] - block * R * W
            rows = packing.fill(here, [tokens[i] for i in numbers], np.arange(len(numbers)), R, W, pad)
            row = here // W
            slots = row * k + np.arange(len(numbers)) - np.searchsorted(row, row)  # the n-th sentence of its row
            start, length = np.zeros(R * k, np.int32), np.zeros(R * k, np.int32)
            start[slots], length[slots] = here % W, lengths[numbers]
            yield numbers, slots, Block(*rows, start.reshape(R, k), length.reshape(R, k))

    def _program(self, requests: tuple[Request, ...]) -> Callable[..., tuple[jax.Array, ...]]:
        if requests not in self._programs:

            def pooled(params, ids, positions, segments, start, length):
                states: Any = self._encoder.apply(
                    {"params": params}, ids, positions, segments,
                    all_hidden=True, layers=max(layer for layer, _ in requests),
                )  # fmt: skip
                return tuple(pool_spans(states[layer], start, length, pooling) for layer, pooling in requests)

            # Replicated: with several processes, each can then read all of it.
            out = None if self.mesh is None else NamedSharding(self.mesh, P())
            self._programs[requests] = jax.jit(pooled, out_shardings=out)
        return self._programs[requests]

    def _put(self, array: np.ndarray) -> Any:
        if self.mesh is None:
            return array
        return jax.make_array_from_callback(
            array.shape, NamedSharding(self.mesh, P("data")), lambda index: array[index]
        )

    def _place(self, leaf: Any) -> Any:
        """A parameter on the devices: left where it is if that is the mesh, else copied there once."""
        if self.mesh is None:
            return jnp.asarray(leaf)
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(self.mesh.devices.flat):
            return leaf
        return jax.device_put(leaf, NamedSharding(self.mesh, P()))
