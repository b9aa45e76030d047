"""Pairs per second of fine-tuning on NLI: this package's step, or the loop that a PyTorch user would write.

    python -m benchmarks.compare --rounds=3 \\
        "python -m benchmarks.finetune --framework=torch --model=MODEL --data=taxinli10k.tsv --steps=12" \\
        "python -m benchmarks.finetune --framework=jax --model=MODEL --data=taxinli10k.tsv"

Both train on the same features in float32 with the model's dropout, AdamW and clipping. The PyTorch loop uses shuffled
batches, padded to their longest pair, and transformers' AutoModelForSequenceClassification. This package sorts windows
of 32 batches by length, so whole windows are timed. Prints a JSON line: pairs_per_s, s_per_step, the share of real
tokens. Loading, compilation and the first steps are not timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.jobs.finetune import setup as finetune_setup
from ppa_jax.tasks.batches import WINDOW, FeatureBatches
from ppa_jax.training import optimizer, sharding

RECIPE = Path(__file__).parents[1] / "configs" / "xnli.py"


def open_setup(a: argparse.Namespace) -> finetune_setup.Setup:
    """Of configs/xnli.py with this model and these data, in float32."""
    spec: Any = importlib.util.spec_from_file_location("recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config()
    config.init, config.dtype, config.data.train, config.train.batch_size = a.model, "float32", f"en={a.data}", a.batch
    (model,) = finetune_setup.open_models(config, Path("unused"))
    return model.setup


def jax_seconds(a: argparse.Namespace, setup: finetune_setup.Setup, features: list) -> Iterable[tuple[float, Any]]:
    """(seconds, batch) of each step."""
    from ppa_jax.interop import huggingface
    from ppa_jax.training.memory import keep_freed_memory

    keep_freed_memory()  # as the job does
    batches = FeatureBatches(features, a.batch, 0, setup.tokenizer.pad_id, setup.sizes.max_length)
    made = list(batches.iterate(0, a.steps))
    adamw = optimizer.adamw(lambda step: 2e-5, weight_decay=0.01, clip=1.0)
    encoder = huggingface.read(Path(a.model)).params["encoder"]
    params = {"encoder": encoder, "head": setup.network.init_head(0, made[0])}

    def init(params: Any) -> finetune.State:
        return finetune.init_state(params, adamw, 0)

    shardings = sharding.tree_shardings(jax.eval_shape(init, params), sharding.RULES["replicated"], setup.mesh)
    state = jax.jit(init, out_shardings=shardings)(params)
    step = finetune.make_step(setup.network, setup.task, adamw, setup.mesh, shardings, dropout=True)
    one_of_each_shape = {batch["ids"].shape: batch for batch in made}
    for batch in one_of_each_shape.values():
        state, metrics = step(state, setup.put(batch))
        jax.block_until_ready(metrics)
    for batch in made:
        start = time.perf_counter()
        state, metrics = step(state, setup.put(batch))
        jax.block_until_ready(metrics)
        yield time.perf_counter() - start, batch


def torch_seconds(a: argparse.Namespace, setup: finetune_setup.Setup, features: list) -> Iterable[tuple[float, Any]]:
    """(seconds, batch) of each step."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(a.model, num_labels=len(setup.labels)).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    order = np.random.default_rng(0).permutation(len(features))
    for t in range(a.steps + 2):
        start = time.perf_counter()
        rows = [features[i] for i in order[t * a.batch : (t + 1) * a.batch]]

        def padded(sequences: Iterable[Any], value: int) -> Any:
            return pad_sequence([torch.tensor(list(x)) for x in sequences], batch_first=True, padding_value=value)

        batch = {
            "input_ids": padded((x.ids for x in rows), setup.tokenizer.pad_id),
            "token_type_ids": padded((x.types for x in rows), 0),
            "attention_mask": padded(([1] * len(x.ids) for x in rows), 0),
        }
        loss = model(**batch, labels=torch.tensor([x.values["label"] for x in rows])).loss
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        if t >= 2:
            yield time.perf_counter() - start, {"mask": batch["attention_mask"].numpy()}


def main() -> None:
    """Runs the steps and prints the JSON line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--framework", choices=("jax", "torch"), required=True)
    p.add_argument("--model", required=True, help="a Hugging Face directory")
    p.add_argument("--data", required=True, help="NLI pairs, as config.data.train takes them")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--steps", type=int, default=WINDOW)
    a = p.parse_args()
    setup = open_setup(a)
    features = setup.training_features(0)
    steps = (jax_seconds if a.framework == "jax" else torch_seconds)(a, setup, features)
    seconds, masks = zip(*((s, batch["mask"]) for s, batch in steps), strict=True)
    print(json.dumps({
        "pairs_per_s": round(a.batch * len(seconds) / sum(seconds), 2),
        "s_per_step": round(sum(seconds) / len(seconds), 4),
        "real_tokens": round(sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
