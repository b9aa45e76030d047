"""The teacher of a distillation: its vectors of one sentence of every pair, computed once and kept with the corpus."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from ppa_jax.config import Config
from ppa_jax.data import cache
from ppa_jax.data.corpora import LanguagePair
from ppa_jax.encoder import Encoder
from ppa_jax.errors import UserError
from ppa_jax.evaluation.embed import CHUNK
from ppa_jax.interop import hub, huggingface, sentence_transformers


class Teacher(NamedTuple):
    """A model whose vectors are learned."""

    encoder: Encoder
    width: int  # of its vectors
    identity: str  # of all that they depend on


def open_teacher(config: Config, width: int) -> Teacher:
    """The model of `distill.teacher`. Raises UserError if it cannot be read, or its vectors are not `width` wide."""
    directory = hub.resolve(config.distill.teacher)
    encoder = Encoder.from_pretrained(directory, dtype=config.dtype)
    dense, activation = (encoder.dense or {}).get((encoder.layer, encoder.pooling), ({}, ""))
    own = len(dense["bias"]) if dense else encoder.config.hidden_size
    if own != width:
        raise UserError(
            f"config.distill.teacher={config.distill.teacher}: its vectors have {own} numbers, the student's {width}; "
            "they are compared as they are: take a teacher, or a model to train, of the other's width"
        )
    facts = [huggingface.digest(sentence_transformers.encoder_directory(directory)), encoder.tokenizer.fingerprint]
    facts += [encoder.layer, encoder.pooling, encoder.max_length, encoder.normalize, config.dtype]
    facts += [activation, *(zlib.crc32(np.ascontiguousarray(dense[name]).tobytes()) for name in sorted(dense))]
    return Teacher(encoder, own, f"{zlib.crc32(repr(facts).encode()):08x}")


def teacher_vectors(teacher: Teacher, pair: LanguagePair, language: str) -> np.ndarray:
    """The teacher's vectors of every pair, [n, E] float16, memory-mapped.

    It reads the sentence in `language`; where the pair, or a line of several languages, lacks it, the first one.
    """
    side = pair.languages.index(language) if language in pair.languages else 0
    path = pair.directory / f"teacher-{teacher.identity}-{side}.npy"

    def rows() -> Iterator[np.ndarray]:
        for start in range(0, len(pair), CHUNK):
            logging.info("distillation: the teacher's vectors of %s, %d of %d", pair.name, start, len(pair))
            lines = pair.read(range(start, min(start + CHUNK, len(pair))))
            vectors = teacher.encoder.encode([line[side] or next(filter(None, line)) for line in lines])
            if np.abs(vectors).max() > np.finfo(np.float16).max:
                raise UserError("config.distill.teacher: its vectors have numbers beyond 65,504; normalise them")
            yield vectors

    cache.write_array(path, rows(), np.dtype(np.float16), (len(pair), teacher.width))
    return np.load(path, mmap_mode="r")
