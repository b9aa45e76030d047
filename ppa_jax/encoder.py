"""Sentence vectors from an aligned encoder, or from any BERT, XLM-R or ModernBERT in the Hugging Face format.

    from ppa_jax import Encoder
    encoder = Encoder.from_pretrained("runs/x/export")
    vectors = encoder.encode(["Good morning", "Guten Morgen"])  # float32 [2, D]

From the shell, with one sentence per line; `--input=-` reads standard input:

    python -m ppa_jax.encoder --model=runs/x/export --input=sentences.txt --output=vectors.npy
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm.auto import tqdm

from ppa_jax import storage
from ppa_jax.data.text_files import read_lines
from ppa_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError, disk_errors
from ppa_jax.evaluation.embed import Embedder, Request, whole_number
from ppa_jax.evaluation.neighbours import unit
from ppa_jax.interop import hub, huggingface, sentence_transformers
from ppa_jax.log_lines import answer
from ppa_jax.model.families import EncoderConfig
from ppa_jax.training.memory import device_memory, keep_freed_memory
from ppa_jax.training.sharding import check_platform, make_mesh
from ppa_jax.training.workdir import atomic

DTYPES = ("float32", "bfloat16")
NORMALIZED = 16_384  # vectors normalised at a time, to bound the memory


class Encoder:
    """A pretrained encoder that turns sentences into vectors. Load one with `from_pretrained`.

    Attributes:
      config: the sizes of the model.
      tokenizer: of the model.
      params: the encoder's parameter tree, on the devices.
      layer: default layer whose states are pooled; the last is `config.num_layers`.
      pooling: default pooling: "cls", "mean" or "mean_without_special".
      max_length: maximum word pieces per sentence, including special tokens; longer sentences are truncated.
      normalize: whether vectors are scaled to length 1 by default.
      dense: {(layer, pooling): (parameters, activation)} of a SentenceTransformer's Dense module; vectors of another
        layer or pooling have the encoder's width.
      prompts: name -> text that precedes a sentence, such as E5's "query: "; of a SentenceTransformer.
      default_prompt_name: the prompt that `encode` uses by default; None: none.
      directory: where it was loaded from; None for parameters in memory.
      batch_size: rows of 128 tokens computed at once on each device; an upper bound on CPUs.
    """

    directory: Path | None = None

    def __init__(
        self,
        config: EncoderConfig,
        params: Any,
        tokenizer: Tokenizer,
        *,
        layer: int,
        pooling: str,
        max_length: int,
        normalize: bool = False,
        dense: Mapping[Request, tuple[Any, str]] | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
        devices: Sequence[Any] | None = None,
    ) -> None:
        """For parameters in memory; the arguments are the attributes, and those of `from_pretrained`."""
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
        self.config, self.tokenizer = config, tokenizer
        self.max_length, self.normalize, self.batch_size = max_length, normalize, batch_size
        self.prompts, self.default_prompt_name = dict(prompts or {}), default_prompt_name
        self._pools_prompt = True
        devices = jax.local_devices() if devices is None else list(devices)
        self._mesh = make_mesh(devices=devices) if devices != jax.devices()[:1] else None
        self._dtype = jnp.dtype(dtype)
        self._embedders: dict[int, Embedder] = {}
        self.dense = dense
        [(self.layer, self.pooling)] = self.embedder.check_requests([(layer, pooling)])
        self.params = self.embedder.place_params(params)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        layer: int | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
        devices: Sequence[Any] | None = None,
    ) -> Encoder:
        """Loads a Hugging Face or SentenceTransformer directory, a model on the Hub, or the export of a workdir.

        Args:
          source: a directory, a name on the Hub, or the workdir of a run.
          layer: from 1 (after the first block) to the number of blocks, or 0, the embeddings. By default the one that
            the model was trained with, if its directory records it, else the last.
          pooling: "cls", "mean" or "mean_without_special". By default as trained, else "mean".
          max_length: maximum word pieces per sentence, including special tokens. By default as trained, else the
            model's maximum.
          batch_size: rows of 128 tokens computed at once on each device; several short sentences share a row. On CPUs
            an upper bound: fewer rows are computed at once if more would not fit the caches.
          dtype: of the matrix products, "float32" (full precision on TPUs and GPUs, too) or "bfloat16".
          devices: to split the batches over; all local ones by default.

        Raises:
          UserError: no such model; damaged files, or an unsupported architecture; a SentenceTransformer with modules
            other than truncation, pooling and normalisation (give `layer` and `pooling` to use its encoder only); a
            tokenizer that does not fit the model.
        """
        directory = hub.resolve(source)
        try:
            settings = sentence_transformers.read_settings(directory, default_prompt=True)
        except UserError as error:
            if layer is None or pooling is None:
                raise UserError(f"{error}; to use its encoder only, give layer and pooling") from error
            settings = None
        files = sentence_transformers.encoder_directory(directory)
        pretrained, tokenizer = huggingface.read(files), load_tokenizer(files)
        sizes = pretrained.config
        check_vocabulary(tokenizer, sizes.vocab_size)
        own = settings or sentence_transformers.Settings(sizes.num_layers, "mean", sizes.max_length)
        dense = {(own.layer, own.pooling): (sentence_transformers.read_dense(directory), own.dense)}
        encoder = cls(
            sizes,
            pretrained.params["encoder"],
            tokenizer,
            layer=own.layer if layer is None else layer,
            pooling=own.pooling if pooling is None else pooling,
            max_length=min(own.max_length, sizes.max_length) if max_length is None else max_length,
            normalize=sentence_transformers.normalizes(directory),
            dense=dense if own.dense else None,
            prompts=own.options.get("prompts"),
            default_prompt_name=own.options.get("default_prompt_name"),
            batch_size=batch_size,
            dtype=dtype,
            devices=devices,
        )
        encoder.directory, encoder._pools_prompt = directory, own.include_prompt
        return encoder

    def __repr__(self) -> str:
        sizes = self.config
        settings = f"layer={self.layer}, pooling={self.pooling!r}, max_length={self.max_length}"
        if self.normalize:
            settings += ", normalize=True"
        if self.prompts:
            settings += f", prompts={self.prompts}"
        model = f"{sizes.model_type}, {sizes.num_layers} x {sizes.hidden_size}, vocabulary of {sizes.vocab_size:,}"
        return f"Encoder({self.directory or 'in memory'}: {model}; {settings})"

    @property
    def embedder(self) -> Embedder:
        """Computes several layers and poolings at once, or token states, for parameters passed with each call."""
        return self._embedder(self.batch_size)

    def _embedder(self, rows: int) -> Embedder:
        rows = whole_number("batch_size", rows)
        if rows < 1:
            raise UserError(f"batch_size={rows}: must be at least 1")
        if rows not in self._embedders:
            self._embedders[rows] = Embedder(
                self.config, self.tokenizer, max_length=self.max_length, mesh=self._mesh, dtype=self._dtype, rows=rows,
                dense=self.dense,
            )  # fmt: skip
        return self._embedders[rows]

    def encode(
        self,
        sentences: Sequence[str] | str,
        *,
        layer: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_size: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """The vectors of sentences, float32 [N, D], in order; [D] for one string.

        Special tokens in a sentence are treated as text, as in training: "[MASK]" becomes the word pieces of its
        letters and brackets. sentence-transformers reads the special token, so vectors of such sentences differ.

        Args:
          sentences: any number; longer ones than `max_length` word pieces are truncated.
          layer: from 0 (the embeddings) to the number of blocks; default: `self.layer`.
          pooling: "cls", "mean" or "mean_without_special"; default: `self.pooling`.
          normalize: to length 1, so that dot products are cosines; default: `self.normalize`.
          batch_size: as in `from_pretrained`; default: `self.batch_size`.
          prompt_name: which of `self.prompts` precedes each sentence; default: `self.default_prompt_name`.
          prompt: text that precedes each sentence instead, such as "query: "; "": none.
          progress: show a progress bar on stderr.

        Raises:
          UserError: an unknown layer, pooling or prompt, a batch size below 1, a sentence that is not a string or not
            valid Unicode, weights that produce NaN or infinity.
        """
        is_single = isinstance(sentences, str)
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise UserError(f"sentence {i} is {type(sentence).__name__}, not str; give a list of strings")
            try:
                sentence.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"sentence {i}: {sentence[error.start]!r} is a lone surrogate, half a character; replace it: "
                    'text.encode("utf-8", "replace").decode()'
                ) from None
        if prefix := self._prompt(prompt_name, prompt):
            sentences = [prefix + sentence for sentence in sentences]
        request = (self.layer if layer is None else layer, self.pooling if pooling is None else pooling)
        embedder = self._embedder(self.batch_size if batch_size is None else batch_size)
        with tqdm(total=len(sentences), disable=not progress, unit=" sentences", file=sys.stderr) as bar:
            (vectors,) = embedder.embed(self.params, sentences, [request], progress=bar.update).values()
        if self.normalize if normalize is None else normalize:
            for i in range(0, len(vectors), NORMALIZED):
                vectors[i : i + NORMALIZED] = unit(vectors[i : i + NORMALIZED])
        return vectors[0] if is_single else vectors

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        """The text before each sentence. Raises UserError for an unknown name, or if its tokens must not be pooled."""
        if prompt is None:
            name = self.default_prompt_name if name is None else name
            if name is not None and name not in self.prompts:
                raise UserError(f"prompt_name={name!r}: the model has {', '.join(self.prompts) or 'no prompts'}")
            prompt = "" if name is None else self.prompts[name]
        if prompt and not self._pools_prompt:
            raise UserError("prompt: the model leaves a prompt out of its pooling (include_prompt), which is not "
                            'supported; encode without one (prompt="")')  # fmt: skip
        return prompt

    def similarity(self, a: np.ndarray | Sequence[str], b: np.ndarray | Sequence[str]) -> np.ndarray:
        """The cosine of every sentence, or vector [N, D], of `a` with every one of `b`: float32 [N, M]."""
        one, other = (x if isinstance(x, np.ndarray) else self.encode(x) for x in (a, b))
        return unit(np.array(one, np.float32, ndmin=2)) @ unit(np.array(other, np.float32, ndmin=2)).T

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Uploads the directory that was loaded, with its model card, as `repo` ("owner/name"); returns the address.

        Raises UserError as `ppa_jax.interop.hub.push`, and for an encoder made in memory.
        """
        if self.directory is None:
            raise UserError("push_to_hub: an encoder made in memory; write it to a directory and load that")
        return hub.push(self.directory, repo, private=private)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(
        prog="python -m ppa_jax.encoder",
        description="Writes the vector of every line of a text file as a NumPy array [lines, width].",
    )
    parser.add_argument("--model", required=True, help="a Hugging Face directory, a name on the Hub, a run's workdir")
    parser.add_argument(
        "--input", required=True, help="a UTF-8 text file, one sentence per line, or .gz; -: standard input"
    )
    parser.add_argument("--output", required=True, help="the .npy file to write")
    parser.add_argument("--layer", type=int, help="default: as trained, else the last")
    parser.add_argument("--pooling", help="cls, mean or mean_without_special; default: as trained, else mean")
    parser.add_argument("--max-length", type=int, help="maximum word pieces per sentence; default: as trained")
    parser.add_argument("--prompt", help='text before each sentence, such as "query: "; default: the model\'s own')
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of 128 tokens computed at once")
    parser.add_argument("--dtype", default="float32", help="of the matrix products: float32 or bfloat16")
    args = parser.parse_args(argv)
    keep_freed_memory()
    return answer(lambda: _encode_file(args))


def _encode_file(args: argparse.Namespace) -> int:
    output = storage.on_disk(args.output, "--output=")
    if output.suffix != ".npy":
        raise UserError(f"--output={output}: must end in .npy")
    with disk_errors(f"--output={output}", way_out="give another file"):  # before the work, not after it
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            output.open("ab").close()
        tempfile.TemporaryFile(dir=output.parent).close()
    source = Path("/dev/stdin") if args.input == "-" else storage.local(args.input)
    sentences = read_lines(source, field="--input")
    check_platform()
    with device_memory("lower --batch-size or --max-length"):
        encoder = Encoder.from_pretrained(
            args.model, layer=args.layer, pooling=args.pooling, max_length=args.max_length, dtype=args.dtype,
            batch_size=args.batch_size,
        )  # fmt: skip
        vectors = encoder.encode(
            sentences, normalize=args.normalize or None, prompt=args.prompt, progress=sys.stderr.isatty()
        )
    with atomic(output, vectors.nbytes) as unfinished, unfinished.open("wb") as file:
        np.save(file, vectors)
    logging.info("layer %d, %s pooling, at most %d pieces", encoder.layer, encoder.pooling, encoder.max_length)
    print(f"written: {output}, {len(vectors)} x {encoder.config.hidden_size} float32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
