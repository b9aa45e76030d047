"""MTEB's benchmarks with an encoder in JAX; results in MTEB's own files. Needs `pip install mteb`.

    python -m ppa_jax.evaluate_mteb --model=runs/x --tasks=Tatoeba,BUCC.v2,FloresBitextMining --output=runs/mteb

The same command measures only what is missing. docs/evaluation.md says how MTEB's protocol differs from ours.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppa_jax.config import entries
from ppa_jax.encoder import Encoder
from ppa_jax.errors import UserError, reason
from ppa_jax.evaluation.neighbours import unit
from ppa_jax.interop import hub, huggingface
from ppa_jax.interop.sentence_transformers import encoder_directory
from ppa_jax.log_lines import answer
from ppa_jax.training.memory import device_memory, keep_freed_memory
from ppa_jax.training.sharding import check_platform


class MtebEncoder:
    """An `Encoder` behind `mteb.EncoderProtocol`: pass it to `mteb.evaluate`."""

    def __init__(self, encoder: Encoder, name: str, revision: str, prompts: Mapping[str, str] | None = None) -> None:
        """Args:
        encoder: computes the vectors.
        name: "owner/model", the folder of MTEB's results.
        revision: identifies the weights; results of another revision are not reused.
        prompts: name of a task or of its type, "query" or "document", or "TASK-query" -> text before each sentence;
          by default the model's own.
        """
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        self.encoder, self.prompts = encoder, dict(encoder.prompts if prompts is None else prompts)
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "max_tokens": encoder.max_length,
                "embed_dim": encoder.config.hidden_size,
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["Sentence Transformers"],
                "use_instructions": any(self.prompts.values()),
            }
        )

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """The vectors [N, D] of MTEB's batches of {"text": [...]}, each sentence after the prompt for the task."""
        from mteb.models.abs_encoder import get_prompt

        sentences = [sentence for batch in inputs for sentence in batch["text"]]
        prompt = get_prompt(self.prompts, task_metadata, prompt_type)  # None: the model's default
        return self.encoder.encode(sentences, prompt=prompt)

    def similarity(self, a: Any, b: Any) -> np.ndarray:
        """Cosines [N, M]."""
        return self.encoder.similarity(np.asarray(a), np.asarray(b))

    def similarity_pairwise(self, a: Any, b: Any) -> np.ndarray:
        """Cosines [N] of vector i of `a` and vector i of `b`."""
        return np.sum(unit(np.array(a, np.float32)) * unit(np.array(b, np.float32)), axis=-1)


def evaluate(encoder: MtebEncoder, tasks: Sequence[Any], output: str | Path) -> list[dict[str, Any]]:
    """Runs MTEB's tasks; returns {"task", "subset", "split", "main_score"} of each subset, the score from 0 to 1.

    Raises UserError if a task fails, for example because its data cannot be downloaded; what is done is kept.
    """
    import mteb

    model: Any = encoder  # MTEB's protocol names torch's tensors; NumPy's arrays serve as well
    try:
        result = mteb.evaluate(model, tasks, cache=mteb.ResultCache(output))
    except Exception as error:  # of a task, whatever it is
        raise UserError(f"--tasks: {type(error).__name__}: {reason(error)}; the same command goes on") from error
    return [
        {"task": task.task_name, "subset": found["hf_subset"], "split": split, "main_score": found["main_score"]}
        for task in result.task_results
        for split, subsets in task.scores.items()
        for found in subsets
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="python -m ppa_jax.evaluate_mteb", description="MTEB's benchmarks in JAX.")
    parser.add_argument("--model", required=True, help="a Hugging Face directory, a name on the Hub, a run's workdir")
    parser.add_argument("--tasks", required=True, help="names of MTEB's tasks, with commas between them")
    parser.add_argument("--languages", default="", help="only their subsets: deu,fra (ISO 639-3); default: all")
    parser.add_argument("--output", default="runs/mteb", help="where MTEB writes results/; default: runs/mteb")
    parser.add_argument("--name", default="", help="owner/model in the results; default: local/DIRECTORY")
    parser.add_argument("--prompt", action="append", default=[], help="NAME=TEXT; default: the model's own prompts")
    parser.add_argument("--layer", type=int, help="default: as trained, else the last")
    parser.add_argument("--pooling", help="cls, mean or mean_without_special; default: as trained, else mean")
    parser.add_argument("--max-length", type=int, help="maximum word pieces per sentence; default: as trained")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of 128 tokens computed at once")
    parser.add_argument("--dtype", default="float32", help="of the matrix products: float32 or bfloat16")
    args = parser.parse_args(argv)
    keep_freed_memory()
    return answer(lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> int:
    try:
        import mteb
    except ImportError:
        raise UserError("the package mteb is not installed; pip install mteb") from None
    try:
        tasks = mteb.get_tasks(tasks=entries(args.tasks), languages=entries(args.languages) or None)
    except (KeyError, ValueError) as error:
        raise UserError(f"--tasks={args.tasks}: {reason(error)}") from error
    prompts = dict(entry.partition("=")[::2] for entry in args.prompt) or None
    check_platform()
    directory = hub.resolve(args.model)
    with device_memory("lower --batch-size or --max-length"):
        encoder = Encoder.from_pretrained(
            directory, layer=args.layer, pooling=args.pooling, max_length=args.max_length, dtype=args.dtype,
            batch_size=args.batch_size,
        )  # fmt: skip
        revision = f"{huggingface.digest(encoder_directory(directory))}-{encoder.layer}-{encoder.pooling}"
        model = MtebEncoder(encoder, args.name or default_name(args.model), revision, prompts)
        print(f"{encoder}\nresults: {args.output}/results/{model.mteb_model_meta.model_name_as_path()}/{revision}")
        for score in evaluate(model, tasks, args.output):
            print("{task} {subset} {split}: {main_score:.4f}".format(**score))
    return 0


def default_name(model: str) -> str:
    """The name on the Hub, or `local/x` of runs/x or runs/x/export."""
    if "/" in model and hub.is_name(model) and not Path(model).exists():
        return model
    parts = [part for part in Path(model).resolve().parts if part != "export"]
    return "local/" + re.sub(r"[^\w.-]", "-", parts[-1])


if __name__ == "__main__":
    sys.exit(main())
