"""ModernBERT here and in transformers (PyTorch), with random weights in float32: differences, and the time of a step.

    python -m benchmarks.modernbert --size=base --lengths=48,200            # parity, sentences longer than the window
    python -m benchmarks.modernbert --size=mmbert-small --layers=4 --lengths=512,2048 --time

The vocabulary is reduced to --vocab, which affects neither. Prints the maximum of |torch - jax| / max |torch| for the
logits, the states after every layer, and each parameter's gradient. "Whole" computes the attention of all layers as
attention to all tokens, and masks what is outside the window.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ppa_jax.interop import huggingface
from ppa_jax.model import attention
from ppa_jax.model.bert import rows_from_mask
from ppa_jax.model.families import make_encoder, make_masked_lm_head
from ppa_jax.model.heads import decode
from ppa_jax.objectives import masked_lm

SIZES = {
    "base": dict(hidden_size=768, num_attention_heads=12, intermediate_size=1152),  # ModernBERT and mmBERT
    "mmbert-small": dict(
        hidden_size=384, num_attention_heads=6, intermediate_size=1152,
        rope_parameters={kind: {"rope_type": "default", "rope_theta": 160_000.0}
                         for kind in ("full_attention", "sliding_attention")},
    ),
}  # fmt: skip


def main() -> None:
    """Prints one line for each quantity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--vocab", type=int, default=2000)
    parser.add_argument("--lengths", default="48,200", help="of the sentences, which are rows of one batch each")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--time", action="store_true", help="the median of 5 steps in place of differences")
    a = parser.parse_args()

    import torch
    import transformers

    torch.manual_seed(0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    theirs = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            vocab_size=a.vocab, num_hidden_layers=a.layers, pad_token_id=0, **special, **SIZES[a.size]
        )
    ).eval()
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        pretrained = huggingface.read(directory)
    config, params, names = pretrained.config, pretrained.params, huggingface.tensor_names(pretrained.config)

    for length in map(int, a.lengths.split(",")):
        rng = np.random.default_rng(0)
        ids = rng.integers(5, a.vocab, (a.rows, length))
        mask = (np.arange(length) < length - np.arange(a.rows)[:, None] * (length // 4)).astype(int)
        labels = np.where((rng.random(ids.shape) < 0.3) & (mask == 1), ids, -100)
        given = {name: torch.from_numpy(x) for name, x in (("input_ids", ids), ("attention_mask", mask))}
        step = make_step(config, ids, mask, labels)

        def torch_step(hidden: bool, given: Any = given, labels: Any = labels) -> Any:
            theirs.zero_grad()
            out = theirs(**given, labels=torch.from_numpy(labels), output_hidden_states=hidden)
            out.loss.backward()
            return out

        if a.time:
            ours = median(lambda step=step: jax.block_until_ready(step(params)))
            with mock.patch.object(attention, "LONGEST_WHOLE", length):
                step = make_step(config, ids, mask, labels)
                whole = median(lambda step=step: jax.block_until_ready(step(params)))
            theirs_s = median(lambda step=torch_step: step(False))
            print(f"{length} tokens: a step takes {ours:.3f} s; whole {whole:.3f} s; in PyTorch {theirs_s:.3f} s")
            continue
        out = torch_step(True)
        (_, (states, logits)), gradients = step(params)
        first, *middle, last = out.hidden_states
        expected = [first, *map(theirs.model.final_norm, middle), last]
        real = mask == 1
        worst = max(difference(x[real], y[real]) for x, y in zip(expected, states, strict=True))
        print(f"{length} tokens: states {worst:.1e}, logits {difference(out.logits[real], logits[real]):.1e}", end=", ")
        by_name = {name: x for name, x in theirs.named_parameters() if x.grad is not None}
        worst = 0.0
        for name, x in by_name.items():
            ours = functools.reduce(lambda tree, key: tree[key], names[name], gradients)
            worst = max(worst, difference(x.grad, ours.T if names[name][-1] == "kernel" else ours))
        print(f"gradients {worst:.1e}")


def make_step(config: Any, *batch: Any) -> Any:
    """The loss with its gradients, of the parameters."""
    return jax.jit(jax.value_and_grad(functools.partial(loss, config, *batch), has_aux=True))


def loss(config: Any, ids: Any, mask: Any, labels: Any, params: Any) -> Any:
    """The masked-LM loss, and states and logits."""
    positions, segments = rows_from_mask(jnp.asarray(mask))
    states = make_encoder(config).apply({"params": params["encoder"]}, ids, positions, segments, all_hidden=True)
    words = params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    transformed, bias = make_masked_lm_head(config).apply({"params": params["mlm_head"]}, states[-1])
    nll = masked_lm.cross_entropy(transformed, bias, words, jnp.maximum(labels, 0))
    return jnp.sum(nll * (labels >= 0)) / jnp.sum(labels >= 0), (states, decode(transformed, bias, words))


def difference(expected: Any, found: Any) -> float:
    """The largest, over the largest that is expected."""
    expected = expected.detach().numpy()
    return float(np.abs(expected - np.asarray(found)).max() / np.abs(expected).max())


def median(step: Any) -> float:
    """Seconds of a step, after one that compiles."""
    step()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    main()
