"""The tokenizer of a pretrained encoder: word pieces of many sentences at once, without special tokens."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppa_jax import storage
from ppa_jax.errors import UserError, reason

# One of these holds the vocabulary; without it, transformers silently builds a tokenizer of five special tokens.
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
# An export needs these, too, for `AutoTokenizer` to load the same tokenizer.
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
TOKENIZER_FILES = (*VOCABULARY_FILES, *_BESIDE)


@dataclass(frozen=True)
class Tokenizer:
    """Word pieces and the ids of special tokens.

    Safe to share between threads (the backend is Rust and keeps no state between calls) and to pickle.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    unk_id: int
    special_ids: tuple[int, ...]  # ascending; the five above and any other special token of the vocabulary
    vocab_size: int  # greatest id + 1, including added tokens
    fingerprint: str  # hex digest of vocabulary and settings, which names cached results
    files: list[Path]  # to copy into an export
    backend: Any = field(repr=False)  # tokenizers.Tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Word piece ids of each text: no special tokens, no truncation.

        Special tokens spelled out in a text ("[MASK]") are text like any other: a corpus cannot forge them, unless they
        are also pieces of the vocabulary, as XLM-R's are.
        """
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of word pieces of each text, as `encode` would give, without building the lists."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encoded]

    @functools.cached_property
    def doubles_separators(self) -> bool:
        """Whether two texts are joined as in XLM-R, <s> A </s></s> B </s>, with a single token type.

        BERT has [CLS] A [SEP] B [SEP], where B has token type 1; it is also assumed if the tokenizer has no template.
        """
        return self.backend.encode("", "", add_special_tokens=True).ids.count(self.sep_id) == 3

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.backend.encode_special_tokens = True  # the only setting that is not pickled


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face directory, local or in a bucket.

    Raises UserError: no such directory, no vocabulary in it, or one without one of the five special tokens.
    """
    directory = storage.local(directory, wanted=TOKENIZER_FILES.__contains__)
    if not directory.is_dir():
        what = "a file, not a Hugging Face directory" if directory.exists() else "no such directory"
        raise UserError(f"{directory}: {what}; give a Hugging Face directory")
    present = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    if not any(path.name in VOCABULARY_FILES for path in present):
        raise UserError(
            f"{directory}: no tokenizer here (looked for {', '.join(VOCABULARY_FILES)}); "
            "copy the tokenizer files of the model into the directory"
        )
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(directory), use_fast=True, local_files_only=True)
    except Exception as error:  # transformers lets through errors of json, tokenizers (bare Exception) and the hub
        message = f"the tokenizer cannot be read ({type(error).__name__}: {reason(error)})"
        raise UserError(f"{directory}: {message}") from error
    if getattr(loaded, "backend_tokenizer", None) is None:
        name = type(loaded).__name__
        raise UserError(f"{directory}: {name} has no fast backend; save the model with a tokenizer.json")
    return wrap(loaded, present, str(directory))


def wrap(loaded: Any, files: list[Path], shown: str) -> Tokenizer:
    """A `Tokenizer` around a fast tokenizer of transformers; errors begin with `shown`."""
    roles = {"cls": "[CLS] or <s>", "sep": "[SEP] or </s>", "mask": "[MASK]", "pad": "[PAD]", "unk": "[UNK]"}
    backend = loaded.backend_tokenizer
    # transformers appends special tokens that are missing from vocab.txt as new ids, for which no model has embeddings.
    # Only files that declare added tokens may do so.
    declared = {path.name for path in files} & {"tokenizer.json", "added_tokens.json"}
    allowed = backend.get_vocab(with_added_tokens=bool(declared))
    tokens = {role: getattr(loaded, f"{role}_token", None) for role in roles}
    around = backend.encode("", add_special_tokens=True).tokens
    if len(around) == 2:  # <bos> and <eos> of a tokenizer that names neither [CLS] nor [SEP], as Gemma's
        tokens["cls"], tokens["sep"] = tokens["cls"] or around[0], tokens["sep"] or around[1]
    missing = [f"{role} ({roles[role]})" for role, token in tokens.items() if token not in allowed]
    if missing:
        raise UserError(
            f"{shown}: the vocabulary has no special token for {', '.join(missing)}; "
            "give the model's own tokenizer files, or name the tokens in tokenizer_config.json (cls_token, ...)"
        )
    ids = {role: allowed[token] for role, token in tokens.items()}
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    vocabulary = backend.get_vocab(with_added_tokens=True)
    digest = hashlib.sha256(backend.to_str().encode())
    digest.update(repr(sorted(ids.items())).encode())
    return Tokenizer(
        **{f"{role}_id": number for role, number in ids.items()},
        special_ids=tuple(sorted(set(loaded.all_special_ids))),
        vocab_size=max(vocabulary.values()) + 1,
        fingerprint=digest.hexdigest()[:16],
        files=files,
        backend=backend,
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError if the tokenizer has ids beyond an embedding of `vocab_size` rows.

    Fewer ids than rows are fine: vocabularies are padded to round sizes.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"init: the tokenizer has ids up to {tokenizer.vocab_size - 1} but the model has only {vocab_size} "
            "embeddings; the tokenizer is of another model, or a special token is missing from the vocabulary file"
        )
