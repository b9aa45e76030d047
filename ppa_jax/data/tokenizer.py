"""The tokenizer of a pretrained encoder: word pieces of many sentences at once, without special tokens."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppa_jax import storage
from ppa_jax.errors import UserError, reason

# One of these holds the vocabulary; without one, transformers silently builds a tokenizer of five special tokens.
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
# What an exported checkpoint needs so that `AutoTokenizer` gives back the same tokenizer.
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
TOKENIZER_FILES = (*VOCABULARY_FILES, *_BESIDE)


@dataclass(frozen=True)
class Tokenizer:
    """Word pieces and the ids with a meaning of their own.

    Safe to share between threads (the backend is Rust and holds no state of a call) and to pickle.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    unk_id: int
    special_ids: tuple[int, ...]  # ascending; the five above and any other special token of the vocabulary
    vocab_size: int  # greatest id + 1, added tokens included
    fingerprint: str  # hex digest of vocabulary and settings: what was computed with another tokenizer is not reused
    files: list[Path]  # to copy into an export
    backend: Any = field(repr=False)  # tokenizers.Tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Word piece ids of each text: no special tokens, no truncation.

        Special tokens spelled out in a text ("[MASK]") are text like any other: a corpus cannot forge them.
        """
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of word pieces of each text, as `encode` would give, without building the lists."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encoded]

    @functools.cached_property
    def doubles_separators(self) -> bool:
        """Whether two texts stand in a row as XLM-R has them, <s> A </s></s> B </s>, with one token type.

        BERT has [CLS] A [SEP] B [SEP], where B has token type 1. A tokenizer that does not say is taken for BERT's.
        """
        return self.backend.encode("", "", add_special_tokens=True).ids.count(self.sep_id) == 3

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.backend.encode_special_tokens = True  # the one setting that the backend does not pickle

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def load_tokenizer(directory_or_name: str | Path) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face directory, or of a model of the hub by its name.

    Raises UserError: no such directory, a directory without a vocabulary, a vocabulary that lacks one of the five
    special tokens, a name of the hub that cannot be reached.
    """
    source = str(directory_or_name)
    directory = storage.local(source, wanted=TOKENIZER_FILES.__contains__)
    if directory.is_dir():
        present = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
        if not any(path.name in VOCABULARY_FILES for path in present):
            raise UserError(
                f"{directory}: no tokenizer here (looked for {', '.join(VOCABULARY_FILES)}); "
                "copy the tokenizer files of the model into the directory"
            )
        return wrap(_load_fast(str(directory), str(directory), local=True), present, str(directory))
    if directory.exists():
        raise UserError(f"{directory}: a file, not a Hugging Face directory; give the directory that holds it")
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or not source:
        raise UserError(f"{source or 'init'}: no such directory; give a Hugging Face directory or a name of the hub")
    try:
        fast = _load_fast(source, source, local=True)
    except UserError:
        check_hub_reachable(source)
        fast = _load_fast(source, source, local=False)
    from transformers.utils import cached_file  # pyright: ignore[reportPrivateImportUsage]

    paths = [
        cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        for name in TOKENIZER_FILES
    ]
    return wrap(fast, [Path(path) for path in paths if path], source)


def _load_fast(name: str, shown: str, *, local: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, use_fast=True, local_files_only=local)
    except Exception as error:  # transformers lets through errors of json, tokenizers (bare Exception) and the hub
        raise UserError(f"{shown}: the tokenizer cannot be read ({type(error).__name__}: {reason(error)})") from error
    if getattr(loaded, "backend_tokenizer", None) is None:
        raise UserError(f"{shown}: {type(loaded).__name__} has no fast backend; save the model with a tokenizer.json")
    return loaded


def check_hub_reachable(name: str) -> None:
    """Raises UserError if the hub's name cannot be looked up: its client would retry for most of a minute."""
    import os
    import socket
    from urllib.parse import urlparse
    from urllib.request import getproxies

    # A proxy looks names up itself; an offline client (HF_HUB_OFFLINE=1) reads its cache and fails at once.
    if getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise UserError(
            f"{name}: no directory of this name, and {host} cannot be reached; give the path of a downloaded copy, "
            "or set HF_HUB_OFFLINE=1 if the local cache of the hub has it"
        ) from error


def wrap(loaded: Any, files: list[Path], shown: str) -> Tokenizer:
    """A `Tokenizer` around a fast tokenizer of transformers; `shown` names it in errors."""
    roles = {"cls": "[CLS] or <s>", "sep": "[SEP] or </s>", "mask": "[MASK]", "pad": "[PAD]", "unk": "[UNK]"}
    backend = loaded.backend_tokenizer
    # transformers gives a special token that vocab.txt lacks a fresh id behind its end, for which no model has an
    # embedding. Only files that declare added tokens may put one there.
    declared = {path.name for path in files} & {"tokenizer.json", "added_tokens.json"}
    allowed = backend.get_vocab(with_added_tokens=bool(declared))
    ids = {role: getattr(loaded, f"{role}_token_id", None) for role in roles}
    missing = [
        f"{role} ({roles[role]})"
        for role in roles
        if ids[role] is None or getattr(loaded, f"{role}_token") not in allowed
    ]
    if missing:
        raise UserError(
            f"{shown}: the vocabulary has no special token for {', '.join(missing)}; "
            "give the model's own tokenizer files, or name the tokens in tokenizer_config.json (cls_token, ...)"
        )
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    vocabulary = backend.get_vocab(with_added_tokens=True)
    digest = hashlib.sha256(backend.to_str().encode())
    digest.update(repr(sorted(ids.items())).encode())
    return Tokenizer(
        **{f"{role}_id": int(number) for role, number in ids.items() if number is not None},
        special_ids=tuple(sorted(set(loaded.all_special_ids))),
        vocab_size=max(vocabulary.values()) + 1,
        fingerprint=digest.hexdigest()[:16],
        files=files,
        backend=backend,
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError if the tokenizer has ids for which an embedding of `vocab_size` rows has no row.

    Fewer ids than rows is fine: vocabularies are padded to round sizes.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"init: the tokenizer has ids up to {tokenizer.vocab_size - 1} but the model has only {vocab_size} "
            "embeddings; the tokenizer belongs to another model, or a special token is missing from the vocabulary file"
        )
