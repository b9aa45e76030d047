"""Trains a subword vocabulary for a new model: WordPiece or byte-level BPE, written in the Hugging Face format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.interop.weights import write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = 1000  # letters of a WordPiece vocabulary, at most; rarer ones become [UNK]


def train_wordpiece(texts: Iterable[str], vocab_size: int, directory: Path) -> int:
    """Trains a cased WordPiece vocabulary like mBERT's, writes the tokenizer files, and returns the vocabulary's size.

    Deterministic: letters inside words are given in sorted order, because the trainer would number them differently in
    every run, and their numbers break ties between equally frequent merges.
    """
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    texts = list(texts)
    letters: Counter[str] = Counter()
    within: set[str] = set()  # letters that occur inside a word
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            letters.update(word)
            within.update(word[1:])
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[:LETTERS]
    tokenizer.train_from_iterator(
        texts, vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in sorted(within.intersection(alphabet)))],
    )  # fmt: skip
    numbers = tokenizer.get_vocab()
    pieces = sorted(numbers, key=numbers.__getitem__)
    (directory / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    settings = '{"tokenizer_class": "BertTokenizerFast", "do_lower_case": false, "strip_accents": false}\n'
    (directory / "tokenizer_config.json").write_text(settings)
    return len(pieces)


def train_bpe(texts: Iterable[str], vocab_size: int, directory: Path) -> int:
    """Trains a byte-level BPE vocabulary like RoBERTa's, with BERT's special tokens; as `train_wordpiece`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=True
    )  # the first word is encoded like any other
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))  # fmt: skip
    numbers = [(token, tokenizer.token_to_id(token)) for token in (special["cls"], special["sep"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=numbers
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {f"{role}_token": token for role, token in special.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's
    write_json(directory / "tokenizer_config.json", settings)
    return tokenizer.get_vocab_size()


def leave_out_token_types(directory: Path) -> None:
    """Rewrites a trained tokenizer without them, as a tokenizer.json: what transformers reads for ModernBERT."""
    tokenizer = load_tokenizer(directory)
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    write_json(directory / "tokenizer_config.json", settings)


TRAINERS = {"wordpiece": train_wordpiece, "bpe": train_bpe}
