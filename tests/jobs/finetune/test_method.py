"""Fine-tuning against transformers in PyTorch: one loss curve, and an export that loads and gives the same logits."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ppa_jax.interop import huggingface
from ppa_jax.jobs.align.collectives import collectives
from ppa_jax.jobs.finetune import method as finetune
from ppa_jax.jobs.finetune import run as finetune_run
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.families import make_encoder
from ppa_jax.tasks import nli, qa, tagging
from ppa_jax.training import optimizer, sharding

TASKS = {  # name -> (module, transformers' class after the model's name, labels)
    "nli": (nli, "ForSequenceClassification", ("entailment", "neutral", "contradiction")),
    "tagging": (tagging, "ForTokenClassification", ("ADJ", "NOUN", "PRON", "VERB", "X")),
    "qa": (qa, "ForQuestionAnswering", ()),
}
MODELS = {"bert": "Bert", "xlm-roberta": "XLMRoberta", "distilbert": "DistilBert", "modernbert": "ModernBert"}
STEPS, RATE = 20, 1e-2


@pytest.fixture(scope="module", autouse=True)
def _compilation(compilation):
    return compilation


def make_batch(task: str, labels, pad_id: int, seed: int) -> dict[str, np.ndarray]:
    """Eight rows of 5 to 12 tokens. Those of questions are full: transformers lets answers begin at padding."""
    rng = np.random.default_rng(seed)
    B, L = 8, 12
    lengths = np.full(B, L) if task == "qa" else rng.integers(5, L + 1, B)
    mask = (np.arange(L) < lengths[:, None]).astype(int)
    batch = {"ids": np.where(mask, rng.integers(5, 64, (B, L)), pad_id), "types": np.zeros((B, L), int), "mask": mask}
    if task == "nli":
        batch["label"] = batch["ids"][:, 0] % len(labels)  # by the first word: it can be learned
    elif task == "tagging":
        batch["labels"] = np.where(mask, batch["ids"] % (len(labels) + 1) - 1, -1)  # by the word: it can be learned
    else:
        batch |= {"start": rng.integers(0, 5, B), "end": rng.integers(5, L, B)}
    return {name: x.astype(np.int32) for name, x in batch.items()}


def torch_loss(model: Any, batch: dict[str, np.ndarray]) -> Any:
    import torch

    t = {name: torch.tensor(x, dtype=torch.long) for name, x in batch.items()}
    given = {"input_ids": t["ids"], "attention_mask": t["mask"]}  # token types are 0
    if "start" in t:
        return model(**given, start_positions=t["start"], end_positions=t["end"])
    labels = t["label"] if "label" in t else t["labels"].masked_fill(t["labels"] == -1, -100)
    return model(**given, labels=labels)


def torch_curve(model: Any, batches: list[dict[str, np.ndarray]], schedule: Any) -> list[float]:
    import torch

    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=RATE, eps=1e-8
    )
    losses = []
    for t in range(STEPS):
        for group in adamw.param_groups:
            group["lr"] = float(np.asarray(schedule(t)))
        adamw.zero_grad()
        loss = torch_loss(model, batches[t % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_the_same_loss_curve_and_an_export_with_the_same_logits(task, model_type, tiny, tmp_path):
    """AdamW from the same weights on the same batches, no dropout; what comes out, through files, in transformers."""
    import torch
    import transformers

    module, architecture, labels = TASKS[task]
    fields: dict[str, Any] = {"num_labels": len(labels)} if labels else {}
    theirs = tiny(f"{MODELS[model_type]}{architecture}", num_hidden_layers=1, **fields)
    theirs.save_pretrained(tmp_path / "before")
    pretrained = huggingface.read(tmp_path / "before")
    head: dict[str, Any] = {}
    for path, name in module.TRANSFORMERS[model_type][1].items():
        layer = theirs.get_submodule(name)
        leaves = {"scale" if x.ndim == 1 else "kernel": x.T for x in [layer.weight.detach().numpy().copy()]}
        if layer.bias is not None:
            leaves["bias"] = layer.bias.detach().numpy().copy()
        *outer, inner = path.split("/")
        tree = head.setdefault(*outer, {}) if outer else head
        tree[inner] = leaves
    batches = [make_batch(task, labels, theirs.config.pad_token_id, seed) for seed in range(4)]
    batch = batches[0]

    network = finetune.Network(module, make_encoder(pretrained.config), labels)
    schedule = optimizer.schedule(RATE, 0.1, STEPS)
    adamw = optimizer.adamw(schedule, weight_decay=0.01, clip=1.0)
    params = {"encoder": pretrained.params["encoder"], "head": head}
    state = jax.jit(lambda p: finetune.init_state(p, adamw, 0))(params)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shardings = sharding.tree_shardings(jax.eval_shape(lambda: state), sharding.RULES["replicated"], mesh)
    step = finetune.make_step(network, module, adamw, mesh, shardings, dropout=False)
    ours = []
    for t in range(STEPS):
        state, metrics = step(state, {name: jnp.asarray(x) for name, x in batches[t % len(batches)].items()})
        ours.append(float(metrics["loss"]))
    curve = torch_curve(theirs, batches, schedule)
    np.testing.assert_allclose(ours, curve, atol=1e-3)
    assert np.mean(curve[-4:]) < 0.9 * np.mean(curve[:4]), "nothing was learned: the curves say little"

    setup: Any = SimpleNamespace(task=module, labels=labels)
    finetune_run.export(setup, pretrained, tmp_path / "after", sharding.to_host(state.params), tmp_path / "before")
    loaded, info = getattr(transformers, f"AutoModel{architecture}").from_pretrained(
        tmp_path / "after", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not labels or loaded.config.id2label == dict(enumerate(labels))
    with torch.no_grad():
        found = torch_loss(loaded.eval(), batch)
    outputs = network.apply(state.params, {name: jnp.asarray(x) for name, x in batch.items()})
    for name, x in outputs.items():
        logits = found.logits if name == "logits" else found[f"{name}_logits"]
        there = batch["mask"] == 1 if logits.shape[:2] == batch["mask"].shape else slice(None)  # of padding: nothing
        np.testing.assert_allclose(x[there], logits.numpy()[there], atol=1e-4)


def test_the_last_block_computes_what_the_head_reads(monkeypatch):
    """With dropout on: outputs and gradients are those of all tokens, for fewer operations."""
    sizes = EncoderConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=128, max_positions=16
    )
    batch = make_batch("nli", nli.LABELS, 0, seed=0)
    encoder = Encoder(sizes)
    params = {"encoder": encoder.init(jax.random.key(0), *(jnp.ones((1, 1), jnp.int32),) * 3)["params"]}
    found = {}
    for first_alone in (True, False):
        monkeypatch.setattr(nli.Head, "first_alone", first_alone)
        network = finetune.Network(nli, encoder, nli.LABELS)
        params["head"] = network.init_head(0, batch)

        def loss(params, network=network):
            return nli.loss(network.apply(params, batch, jnp.uint32(7)), batch)[0]

        program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        found[first_alone] = program(params), program.cost_analysis()["flops"]
    assert found[True][1] < 0.8 * found[False][1]
    for one, other in zip(*(jax.tree.leaves(values) for values, _ in found.values()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_parameters_that_are_split_split_no_states():
    """As in the alignment: each device gathers matrices, sums their gradients, and computes its own rows alone."""
    sizes = EncoderConfig(
        vocab_size=50, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, max_positions=16
    )
    rows = {"ids": (64, 12), "types": (64, 12), "mask": (64, 12), "label": (64,)}
    batch = {name: np.ones(shape, np.int32) for name, shape in rows.items()}
    mesh = sharding.make_mesh(4)
    network = finetune.Network(nli, Encoder(sizes), nli.LABELS)
    adamw = optimizer.adamw(lambda step: 1e-3, weight_decay=0.0, clip=1.0)

    def init():
        encoder = Encoder(sizes).init(jax.random.key(0), *(jnp.ones((1, 1), jnp.int32),) * 3)["params"]
        return finetune.init_state({"encoder": encoder, "head": network.init_head(0, batch)}, adamw, 0)

    state = jax.eval_shape(init)
    shardings = sharding.tree_shardings(state, sharding.RULES["fsdp"], mesh)
    step = finetune.make_step(network, nli, adamw, mesh, shardings, dropout=False)
    moved = collectives(step.lower(state, batch).compile().as_text())
    largest = max(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    assert 8 * largest < 64 * 12 * 32 * 4 and max(x.bytes for x in moved) <= largest


def test_what_is_frozen_stays_and_the_rest_moves_as_ever():
    """One step of descent, on two devices that split the parameters; a frozen module has no moments."""
    sizes = EncoderConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_positions=16
    )
    batch, mesh, after = make_batch("nli", nli.LABELS, 0, seed=0), sharding.make_mesh(2), {}
    encoder = Encoder(sizes).init(jax.random.key(0), *(jnp.ones((1, 1), jnp.int32),) * 3)["params"]
    encoder = jax.tree.map(np.asarray, encoder)  # each step donates its own copy
    for frozen in ((), ("embeddings", "layer_0")):
        network = finetune.Network(nli, Encoder(sizes, frozen=frozen), nli.LABELS)
        params = {"encoder": encoder, "head": network.init_head(0, batch)}
        descent = optax.sgd(100.0, momentum=0.9)  # the gradients of a new model are small
        shapes = jax.eval_shape(lambda p, f=frozen: finetune.init_state(p, descent, 0, f), params)  # noqa: B023
        shardings = sharding.tree_shardings(shapes, sharding.RULES["fsdp"], mesh)
        state = jax.device_put(finetune.init_state(params, descent, 0, frozen), shardings, may_alias=False)
        step = finetune.make_step(network, nli, descent, mesh, shardings, dropout=True)
        after[frozen], _ = step(state, sharding.put_whole(batch, mesh, P(sharding.BATCH_AXES)))
    every, part = after.values()
    assert set(part.opt_state[0].trace["encoder"]) == {"layer_1"}
    for name in encoder:
        wanted = every.params["encoder"] if name == "layer_1" else encoder
        for one, other in zip(*map(jax.tree.leaves, (part.params["encoder"][name], wanted[name])), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 if name == "layer_1" else 0)
    kernels = (tree["layer_0"]["attention"]["query"]["kernel"] for tree in (encoder, every.params["encoder"]))
    assert np.abs(np.subtract(*kernels)).max() > 1e-4, "without freezing it moves"
