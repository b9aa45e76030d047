"""Embeds any number of sentences, at several layers and poolings in one forward pass, with few compiled programs.

Sentences are sorted by length and packed into blocks of a few static shapes, [R, W] tokens with at most W / 8 sentences
per row: full blocks, then a shorter one for the rest. A program is compiled once per shape and set of requests;
sentences and parameters are arguments. Memory: one block, one chunk of text, and the requested vectors.

Axes: N sentences, R rows of a block, W row width, k sentences of a row, D width.
"""

from __future__ import annotations

import bisect
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.data import packing
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model.bert import products_in
from ppa_jax.model.families import EncoderConfig, make_encoder
from ppa_jax.model.pooling import POOLINGS, dense, pool
from ppa_jax.training.sharding import BATCH_AXES, put_whole

Request = tuple[int, str]  # (layer, pooling): layer 0 is the embeddings' output, `num_layers` the last layer
Vectors = dict[Request, np.ndarray]
Program = Callable[..., tuple[jax.Array, ...]]

CHUNK = 16_384  # maximum number of sentences tokenised and packed together
CHUNK_CHARACTERS = 1 << 22  # maximum number of their characters
SHORTEST = 8  # tokens; a shorter sentence takes as much of a row, which bounds the sentences per row to W / 8
WIDTH = 128  # tokens of a row; longer sentences have wider rows
SINGLE_ROWS = (16, 32, 64)  # widths for input that fits one row: a single short sentence need not cost 128 tokens
TOKENS_PER_CORE = 512  # of a block on CPUs; the activations of more would not fit a core's caches
WIDEST_FULL = 256  # tokens; in wider rows the attention scores of as many tokens would not fit, so blocks are smaller


class Block(NamedTuple):
    """One call of the encoder."""

    ids: np.ndarray  # [R, W]
    positions: np.ndarray  # [R, W]
    segments: np.ndarray  # [R, W]
    start: np.ndarray  # [R, k] first token of each sentence in its row
    length: np.ndarray  # [R, k] with special tokens; 0: no sentence


def chunks(sentences: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the sentences tokenised together: bounded in number and characters, at least one sentence."""
    begin, characters = 0, 0
    for i, sentence in enumerate(sentences):
        characters += len(sentence)
        if i - begin == CHUNK or (characters > CHUNK_CHARACTERS and i > begin):
            yield begin, i
            begin, characters = i, len(sentence)
    if begin < len(sentences):
        yield begin, len(sentences)


def cpu_rows(width: int, devices: int) -> int:
    """Rows of a block per device, such that most of a core's share fits its caches."""
    tokens = TOKENS_PER_CORE * (os.cpu_count() or 1) // devices
    return max(1, tokens * min(width, WIDEST_FULL) // width**2)


def whole_number(name: str, value: Any) -> int:
    """`value` as an int. Raises UserError, with `name`, unless it is a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name}={value!r}: must be a whole number") from None


class Embedder:
    """Embeds sentences with an encoder whose parameters are passed with every call.

    So one instance serves before, during and after training; it compiles its programs once per set of requests.
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
        dense: Mapping[Request, tuple[Any, str]] | None = None,
    ) -> None:
        """
        Args:
          config: of the encoder.
          tokenizer: of the same model.
          max_length: maximum subword tokens per sentence, including special tokens; longer sentences are truncated.
          mesh: the rows are split over its devices; None: computes on the default device.
          dtype: of the matrix products; float32 is full precision on every device, unlike JAX's default.
          rows: of 128 tokens in a full block, per device; of wider rows there are accordingly fewer. On CPUs an upper
            bound (`cpu_rows`).
          dense: {(layer, pooling): (parameters, activation)} where a SentenceTransformer's Dense module follows.

        Raises:
          UserError: max_length is larger than the encoder's, or leaves no room for a word piece.
        """
        max_length = whole_number("max_length", max_length)
        if not 3 <= max_length <= config.max_length:
            raise UserError(f"max_length={max_length}: must be in 3 to {config.max_length} for this encoder")
        self.config = config
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.mesh = mesh
        self.rows = rows
        self.dense = dict(dense or {})
        devices = jax.devices()[:1] if mesh is None else mesh.local_devices
        # Several processes may have different numbers of cores, but must agree on the shapes of blocks.
        self._cpus = len(devices) if devices[0].platform == "cpu" and jax.process_count() == 1 else 0
        self._shards = mesh.size if mesh is not None else 1
        widest = -(-max_length // SHORTEST) * SHORTEST
        self._widths = [min(WIDTH, widest)]
        while self._widths[-1] < widest:
            self._widths.append(min(4 * self._widths[-1], widest))
        self._dtype = jnp.dtype(dtype)
        self._encoder = make_encoder(config, self._dtype)
        self.programs: dict[Any, Program] = {}

    def embed(
        self,
        params: Any,
        sentences: Sequence[str],
        requests: Sequence[Request],
        *,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> Vectors:
        """The vectors [N, D], float32, for every requested (layer, pooling), in the order of the sentences.

        Where `dense` has the request, they are the Dense module's output, of its width.

        Args:
          params: the encoder's parameters (`params["encoder"]`), on the host or on devices, sharded or not.
          sentences: any number; an empty one becomes [CLS] [SEP]. Equal sentences of a chunk are embedded once.
          requests: for example [(6, "cls"), (4, "mean")].
          progress: called with the number of sentences just finished.

        Raises:
          UserError: a layer that the encoder does not have, an unknown pooling, or states that are not finite.
        """
        requests = self.check_requests(requests)
        D = self.config.hidden_size
        vectors = {request: np.empty((len(sentences), D), np.float32) for request in requests}
        if not requests or not len(sentences):
            return vectors
        params = self.place_params(params)
        for begin, end in chunks(sentences):
            chunk = sentences[begin:end]
            number = {text: i for i, text in enumerate(dict.fromkeys(chunk))}
            which = np.array([number[text] for text in chunk])
            repeats = np.bincount(which)
            distinct = {request: np.empty((len(number), D), np.float32) for request in requests}
            for numbers, slots, _, pooled in self._run(requests, params, self.tokenizer.encode(list(number))):
                for request, vectors_RxkxD in zip(requests, pooled, strict=True):
                    found = np.asarray(vectors_RxkxD).reshape(-1, D)[slots]
                    self._check_finite(request[0], found)
                    distinct[request][numbers] = found
                progress(int(repeats[numbers].sum()))
            for request in requests:
                vectors[request][begin:end] = distinct[request][which]
        for request in self.dense.keys() & vectors.keys():
            parameters, activation = self.dense[request]
            vectors[request] = np.array(dense(parameters, jnp.asarray(vectors[request]), activation))
        return vectors

    def token_states(
        self, params: Any, sequences: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> Iterator[tuple[int, dict[int, np.ndarray]]]:
        """(index of the sequence, {layer: [n, D]}): the states of all subword tokens, without [CLS] and [SEP].

        Args:
          params: the encoder's parameters.
          sequences: token ids without special tokens, which are added; truncated at max_length - 2 tokens.
          layers: from 0, the embeddings' output.

        Yields every sequence once, in no particular order.

        Raises:
          UserError: a layer that the encoder does not have, or states that are not finite.
        """
        layers = [layer for layer, _ in self.check_requests([(layer, "mean") for layer in layers])]
        requests = tuple((layer, "") for layer in layers)
        params = self.place_params(params)
        for begin in range(0, len(sequences), CHUNK):
            for numbers, slots, block, states in self._run(requests, params, sequences[begin : begin + CHUNK]):
                states_RxWxD = dict(zip(layers, map(np.asarray, states), strict=True))
                for layer, found in states_RxWxD.items():
                    self._check_finite(layer, found)
                k = block.start.shape[1]
                for number, slot in zip(numbers, slots, strict=True):
                    start, length = block.start.flat[slot], block.length.flat[slot]
                    inner = slice(start + 1, start + length - 1)
                    yield begin + int(number), {x: found[slot // k, inner] for x, found in states_RxWxD.items()}

    def check_requests(self, requests: Iterable[tuple[Any, Any]]) -> tuple[Request, ...]:
        """The requests without repetitions. Raises UserError for an unknown layer or pooling."""
        checked = []
        for given, pooling in requests:
            layer = whole_number("layer", given)
            if not 0 <= layer <= self.config.num_layers:
                raise UserError(f"layer {layer}: this encoder has layers 0 to {self.config.num_layers}")
            if pooling not in POOLINGS:
                raise UserError(f"pooling {pooling!r}: choose from {', '.join(POOLINGS)}")
            checked.append((layer, pooling))
        return tuple(dict.fromkeys(checked))

    def _check_finite(self, layer: int, found: np.ndarray) -> None:
        if not np.isfinite(found).all():
            raise UserError(
                f"layer {layer}: the model's weights, or dtype={self._dtype}, give values that are not finite; "
                "check the weights, or use another dtype"
            )

    def _run(
        self, requests: tuple[Request, ...], params: Any, pieces: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Any, Any, Block, tuple[jax.Array, ...]]]:
        """(*block, results) for each of `blocks`. Block t is already being computed when t - 1 is yielded."""
        waiting = None
        for block in self.blocks(pieces):
            arrays = block[-1] if self.mesh is None else [put_whole(x, self.mesh, P(BATCH_AXES)) for x in block[-1]]
            dispatched = *block, self.program(requests)(params, *arrays)
            if waiting is not None:
                yield waiting
            waiting = dispatched
        if waiting is not None:
            yield waiting

    def blocks(self, pieces: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray, Block]]:
        """(numbers [n] of the sequences in the block, their indices [n] in its R * k slots, the block)."""
        cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
        tokens = [[cls, *ids[: self.max_length - 2], sep] for ids in pieces]
        lengths = np.maximum([len(sequence) for sequence in tokens], SHORTEST)
        width = self._widths[0]
        if len(lengths) and self._shards == 1 and (total := lengths.sum()) <= width:
            width = next((w for w in SINGLE_ROWS if total <= w < width), width)
        longer_than = 0
        for W in (width, *(w for w in self._widths if w > width)):
            numbers = np.flatnonzero((lengths > longer_than) & (lengths <= W))
            longer_than = W
            # All used rows but one are more than half full.
            starts = packing.pack(lengths[numbers], ((2 * int(lengths[numbers].sum()) // W + 1, W),))
            assert starts is not None
            used = int(starts.max(initial=-1)) // W + 1
            order = np.argsort(starts, kind="stable")
            row = 0
            for R in self._row_counts(used, W):
                low, high = np.searchsorted(starts[order], (row * W, (row + R) * W))
                here = order[low:high]
                yield self._block(numbers[here], starts[here] - row * W, tokens, R, W)
                row += R

    def _row_counts(self, used: int, width: int) -> list[int]:
        """The number of rows of each block: full blocks, then the smallest of four sizes that holds the rest."""
        rows = max(1, self.rows * WIDTH // max(width, WIDTH))
        if self._cpus:
            rows = min(rows, cpu_rows(max(width, WIDTH), self._cpus))
        full = rows * self._shards
        sizes = sorted({max(1, rows // part) * self._shards for part in (16, 4, 2, 1)})
        counts = [full] * (used // full)
        rest = used % full
        return [*counts, sizes[bisect.bisect_left(sizes, rest)]] if rest else counts

    def _block(self, numbers: np.ndarray, starts: np.ndarray, tokens: list, R: int, W: int) -> tuple[Any, Any, Block]:
        k = max(1, W // SHORTEST)
        chosen = [tokens[i] for i in numbers]
        rows = packing.fill(starts, chosen, np.arange(len(numbers)), ((R, W),), self.tokenizer.pad_id)
        row = starts // W
        slots = row * k + np.arange(len(numbers)) - np.searchsorted(row, row)  # the n-th sentence of its row
        start, length = np.zeros(R * k, np.int32), np.zeros(R * k, np.int32)
        start[slots], length[slots] = starts % W, [len(sequence) for sequence in chosen]
        arrays = rows.ids, rows.positions, rows.segments
        return numbers, slots, Block(*(x.reshape(R, -1) for x in (*arrays, start, length)))

    def program(self, requests: tuple[Request, ...]) -> Program:
        """The jitted forward pass: for each request, vectors [R, k, D], or with pooling "" the states [R, W, D]."""

        def compute(params, ids, positions, segments, start, length):
            layers = max(layer for layer, _ in requests)
            with products_in(self._dtype):
                states = self._encoder.apply(
                    {"params": params}, ids, positions, segments, all_hidden=True, layers=layers
                )
            return tuple(
                pool(states[layer], start, length, pooling) if pooling else states[layer].astype(jnp.float32)
                for layer, pooling in requests
            )

        if requests not in self.programs:
            # Replicated, so that each of several processes can read the whole result.
            out = None if self.mesh is None else NamedSharding(self.mesh, P())
            self.programs[requests] = jax.jit(compute, out_shardings=out)
        return self.programs[requests]

    def place_params(self, params: Any) -> Any:
        """Parameters on the mesh's devices; copied only if they are not there already."""

        def place(leaf: Any) -> Any:
            if self.mesh is None:
                return jnp.asarray(leaf)
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(self.mesh.devices.flat):
                return leaf
            return put_whole(leaf, self.mesh)

        return jax.tree.map(place, params)


class Remembered:
    """Vectors of some sentences, computed once for several measures; used in place of the embedder."""

    def __init__(self, embedder: Embedder, params: Any, sentences: Iterable[str], requests: Sequence[Request]) -> None:
        """Embeds all `sentences` for all `requests`. Memory: distinct sentences x requests x width x 4 bytes."""
        self._row = {text: i for i, text in enumerate(dict.fromkeys(sentences))}
        self._vectors = embedder.embed(params, list(self._row), requests)

    def embed(self, params: Any, sentences: Sequence[str], requests: Sequence[Request]) -> Vectors:
        """Like `Embedder.embed`, but `params` are ignored: the vectors have been computed."""
        rows = [self._row[text] for text in sentences]
        return {request: self._vectors[request][rows] for request in requests}
