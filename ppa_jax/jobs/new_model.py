"""A new encoder for `init=""`: a vocabulary and random weights, pretrained by masked LM alone.

The same sentences as data.pairs, each on its own (`tlm.joint=False`) and without contrast: the model never learns which
sentences translate each other. It is what an aligned model is compared with.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from ppa_jax import storage
from ppa_jax.config import POSITIVE, Config, check, one_of
from ppa_jax.data import prepare, sources
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.interop import huggingface
from ppa_jax.interop.huggingface import Pretrained
from ppa_jax.interop.names import config_to_hf
from ppa_jax.interop.weights import write_json
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.heads import MaskedLMHead
from ppa_jax.training import loop
from ppa_jax.training.workdir import check_identity, write_identity

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MADE_OF = "made_of"  # what a random model was made of
LETTERS = 1000  # of a WordPiece vocabulary, at most: rarer ones are unknown
VOCABULARY_SENTENCES = 400_000  # to train the vocabulary on, at most; from each source alike


def pretrain(config: Config, workdir: Path, run: Callable[[Config, Path], None]) -> Config:
    """Pretrains a new model in workdir/new_model, unless that is done, and returns the config that aligns it.

    `run` trains by a config in a workdir. Whatever it raises comes through: a signal stops the pretraining as it stops
    the alignment.
    """
    random, trained = workdir / "new_model" / "random", workdir / "new_model" / "run"
    if not loop.as_first((trained / "report.md").exists()):  # written last
        if jax.process_index() == 0:
            make_random(config, random)
        loop.wait_for_hosts("a new model")
        first = copy.deepcopy(config)
        first.init = str(random)
        first.contrastive.weight, first.tlm.weight, first.tlm.joint = 0.0, 1.0, False
        first.word_alignment.weight, first.tlm.dict_mlm, first.tlm.language_embeddings = 0.0, "", False
        first.train.update(steps=config.pretrain.steps, epochs=0.0, batch_size=config.pretrain.batch_size)
        first.train.learning_rate = config.pretrain.learning_rate
        first.eval.update(tatoeba="", sample=0)
        logging.info("pretraining a new model by masked LM, %d steps", first.train.steps)
        run(first, trained)
        loop.wait_for_hosts("its export")
    else:
        is_made(config, random)  # of these settings, or it is refused
    aligned = copy.deepcopy(config)
    aligned.init = str(trained / "export")
    return aligned


def validate(config: Config) -> None:
    """Checks what the new model is made from. Raises UserError naming the field."""
    sizes = dict.fromkeys(("model.vocab_size", "model.hidden_size", "model.num_layers", "model.num_heads"), POSITIVE)
    check(config, sizes | {"model.vocabulary": one_of(*VOCABULARIES)})
    width, heads = config.model.hidden_size, config.model.num_heads
    if width % heads:
        raise UserError(f"config.model.hidden_size={width}: must divide by model.num_heads={heads}")


def encoder_config(config: Config, vocab_size: int) -> EncoderConfig:
    """The sizes of the new model."""
    languages = sources.languages_of(config.data.pairs)
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=config.model.hidden_size,
        num_layers=config.model.num_layers,
        num_heads=config.model.num_heads,
        intermediate_size=4 * config.model.hidden_size,
        type_vocab_size=max(2, len(languages)) if config.tlm.language_embeddings else 2,
    )


def is_random(directory: str | Path) -> bool:
    """Whether `make_random` made it, and nothing has been trained."""
    return (Path(directory) / MADE_OF).is_dir()


def made_of(config: Config) -> dict[str, Any]:
    """The settings of a new model, its pretraining's included where this is part of the job."""
    described = {"model": config.model.to_dict(), "seed": config.seed, "languages": config.tlm.language_embeddings}
    described["data"] = {name: config.data[name] for name in ("pairs", "max_characters", "skip_lines")}
    return described | ({"pretrain": config.pretrain.to_dict()} if "pretrain" in config else {})


def is_made(config: Config, directory: Path) -> bool:
    """Whether `make_random` is done in the directory. Raises UserError if it was with other settings."""
    return check_identity(directory / MADE_OF, made_of(config))


def make_random(config: Config, directory: Path) -> None:
    """`write_random`, unless the directory has this model. Raises UserError if it has one of other settings."""
    if is_made(config, directory):
        return
    logging.info("a new model with random weights")
    shutil.rmtree(directory, ignore_errors=True)
    write_random(config, directory)
    write_identity(directory / MADE_OF, made_of(config))  # last


def write_random(config: Config, directory: Path) -> None:
    """Writes an untrained model with its tokenizer, in the Hugging Face format."""
    directory.mkdir(parents=True, exist_ok=True)
    if config.model.tokenizer:
        vocab_size = copy_tokenizer(config.model.tokenizer, directory)
    else:
        train = VOCABULARIES[config.model.vocabulary]
        vocab_size = train(sentences(config), config.model.vocab_size, directory)
    sizes = encoder_config(config, vocab_size)
    encoder_key, head_key = jax.random.split(jax.random.key(config.seed))
    token = jnp.zeros((1, 1), jnp.int32)
    params = {
        "encoder": Encoder(sizes).init(encoder_key, token, token, token)["params"],
        "mlm_head": MaskedLMHead(sizes).init(head_key, jnp.zeros((1, sizes.hidden_size)))["params"],
    }
    huggingface.write(directory, Pretrained(sizes, params, hf_config=config_to_hf(sizes)))


def sentences(config: Config) -> Iterator[str]:
    """Sentences of all sources, both sides, an equal number from each source."""
    markers = (marker.strip() for marker in config.data.skip_lines.split(","))
    cleaning = sources.Cleaning(config.data.max_characters, tuple(filter(None, markers)))
    cache = storage.on_disk(config.data.cache or storage.cache_directory(), "config.data.cache=")
    given = sources.parse_pairs(config.data.pairs)
    for source in given:
        sources.check(source)
        prepared = prepare.prepare(source, cleaning, cache)
        texts = (text for block in prepared.blocks() for pair in prepare.decode(block) for text in pair)
        yield from itertools.islice(texts, VOCABULARY_SENTENCES // len(given))


def copy_tokenizer(given: str, directory: Path) -> int:
    """Copies the tokenizer files of a Hugging Face directory or name; returns the size of its vocabulary."""
    tokenizer = load_tokenizer(given)
    for file in tokenizer.files:
        shutil.copy(file, directory / file.name)
    return tokenizer.vocab_size


def train_wordpiece(texts: Iterable[str], vocab_size: int, directory: Path) -> int:
    """Trains a cased WordPiece vocabulary as mBERT's, writes its files, and returns its size.

    The same text gives the same vocabulary: left to itself the trainer numbers letters within words in another order
    every time, which decides what is merged first among pairs that are equally frequent.
    """
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    texts = list(texts)
    letters: Counter[str] = Counter()
    within: set[str] = set()  # letters that do not begin a word
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            letters.update(word)
            within.update(word[1:])
    kept = sorted(letters, key=lambda letter: (-letters[letter], letter))[:LETTERS]
    tokenizer.train_from_iterator(
        texts, vocab_size=vocab_size, show_progress=False, initial_alphabet=kept, limit_alphabet=len(kept),
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in sorted(within.intersection(kept)))],
    )  # fmt: skip
    numbers = tokenizer.get_vocab()
    pieces = sorted(numbers, key=numbers.__getitem__)
    (directory / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    settings = '{"tokenizer_class": "BertTokenizerFast", "do_lower_case": false, "strip_accents": false}\n'
    (directory / "tokenizer_config.json").write_text(settings)
    return len(pieces)


def train_bpe(texts: Iterable[str], vocab_size: int, directory: Path) -> int:
    """Trains a byte-level BPE vocabulary as RoBERTa's, with BERT's special tokens, as `train_wordpiece`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # the first word is like any other
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


VOCABULARIES = {"wordpiece": train_wordpiece, "bpe": train_bpe}
