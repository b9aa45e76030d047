"""The step: against PyTorch, on other numbers of devices, accumulated, with parts switched off."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_fixtures import BATCH, CONFIG, METHOD, dictionary_of_words, largest_difference, run

from ppa_jax.data import packing
from ppa_jax.jobs.align.collectives import collectives
from ppa_jax.jobs.align.flops import flops
from ppa_jax.model.heads import MaskedLMHead
from ppa_jax.objectives import contrastive, masked_lm, masking
from ppa_jax.training import optimizer, sharding

STEPS = 20


@pytest.fixture(scope="module")
def reference(make):
    return run(make(rate=1e-3), STEPS)


@pytest.mark.parametrize(
    "devices, accumulate, rules, fsdp",
    [
        (8, 1, "replicated", -1),
        (8, 1, "fsdp", -1),
        (1, 4, "replicated", -1),
        (2, 2, "replicated", -1),
        (4, 2, "fsdp", 2),
    ],
)
def test_devices_rules_and_accumulation_change_nothing(make, reference, devices, accumulate, rules, fsdp):
    """With dropout on: masks and dropout belong to the sequence, not to its place. Tolerance: float32 sums reordered,
    after 20 steps of AdamW, whose first steps turn a rounding of a tiny gradient into a share of the rate (1e-3)."""
    state, losses = run(make(devices, accumulate, rules=rules, rate=1e-3, fsdp=fsdp), STEPS)
    expected_state, expected = reference
    for got, want in zip(losses, expected, strict=True):
        assert got.keys() == want.keys()
        np.testing.assert_allclose([*got.values()], [*want.values()], rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(state.queue.hashes, expected_state.queue.hashes)
    np.testing.assert_allclose(state.queue.keys, expected_state.queue.keys, atol=2e-4)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("objective", ["align_mlm", "dict_mlm", "xlm"])
@pytest.mark.parametrize("where, rules", [((4, 1), "fsdp"), ((2, 2), "replicated")])
def test_devices_change_nothing_in_pretraining(make, objective, where, rules):
    """One step of SGD: the gradient of every parameter."""
    words, translations = dictionary_of_words()
    is_xlm = objective == "xlm"
    method = dataclasses.replace(
        METHOD, contrastive_weight=0.0, dict_mlm="input" if objective == "dict_mlm" else "",
        word_alignment_weight=10.0 * (objective == "align_mlm"),
    )  # fmt: skip
    given = {
        "method": method, "joint": is_xlm, "languages": ("a", "b") if is_xlm else None, "optimize": optax.sgd(1.0),
        "words": words, "translations": translations,
    }  # fmt: skip
    expected_state, expected = run(make(**given), 1)
    state, losses = run(make(*where, **given, rules=rules), 1)
    assert largest_difference(state.params, expected_state.params) < 1e-5
    assert losses[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_and_scan_change_no_result(make, reference, monkeypatch, scan):
    """The same masks and the same dropout in the second computation: to the tolerance of the test above."""
    monkeypatch.setattr(masked_lm, "CHUNK", 5)  # several to a shard, the last one not full
    products = {}
    for remat in (False, True):
        method = dataclasses.replace(METHOD, remat=remat, scan=scan)
        setting = make(2, accumulate=2, method=method, rate=1e-3)
        batch = sharding.put_batch(setting.batches.make(0), setting.mesh)
        products[remat] = setting.step.lower(setting.state, batch).as_text().count("dot_general")
    blocks = 1 if scan else CONFIG.num_layers  # in the program
    assert products[True] >= products[False] + 6 * blocks, "the dense layers of each block"
    _, losses = run(setting, 4)
    for got, want in zip(losses, reference[1][:4], strict=True):
        np.testing.assert_allclose([*got.values()], [*want.values()], rtol=2e-4, atol=1e-5)


@pytest.mark.usefixtures("hasty")
def test_in_batch_negatives_are_the_same_on_devices_and_accumulated(make):
    method = dataclasses.replace(METHOD, in_batch=True)
    _, expected = run(make(method=method), 3)
    assert expected[0]["contrastive"] > 1  # there are negatives from the first step on
    _, losses = run(make(2, accumulate=2, method=method), 3)
    for got, want in zip(losses, expected, strict=True):
        np.testing.assert_allclose([*got.values()], [*want.values()], rtol=2e-4, atol=1e-5)


@pytest.mark.usefixtures("hasty")
def test_three_steps_equal_pytorch(make, params, tmp_path):
    """The whole recipe in PyTorch, as its users write it: losses and every parameter after three steps of AdamW."""
    import torch
    import torch.nn.functional as F
    import transformers

    from ppa_jax.interop import huggingface

    config = dataclasses.replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    setting = make(config=config, rate=1e-3)
    start = jax.tree.map(np.asarray, setting.state.params)
    huggingface.write(tmp_path, huggingface.Pretrained(config, start, {}, {}))
    query = transformers.BertForMaskedLM.from_pretrained(tmp_path).train()
    projection = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    with torch.no_grad():
        for layer, name in ((projection[0], "hidden"), (projection[2], "output")):
            layer.weight.copy_(torch.tensor(start["projection"][name]["kernel"].T))
            layer.bias.copy_(torch.tensor(start["projection"][name]["bias"]))
    key, key_projection = copy.deepcopy(query), copy.deepcopy(projection)
    named = [*query.named_parameters(), *((f"projection.{n}", p) for n, p in projection.named_parameters())]
    decays = [p for n, p in named if p.ndim == 2]
    others = [p for n, p in named if p.ndim == 1]
    adamw = torch.optim.AdamW([{"params": decays, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}])
    rates = optimizer.schedule(1e-3, 0.1, 20)

    def pad(rows):
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return ids, (torch.arange(ids.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]).long()

    def unpack(rows, number):
        """The sequence `number` of packed rows (its segment less one)."""
        return rows.ids.reshape(-1)[rows.segments.reshape(-1) == number + 1].tolist()

    def vectors(model, head, rows):
        ids, mask = pad(rows)
        return F.normalize(head(model.bert(ids, mask).last_hidden_state[:, 0]), dim=1)

    state, queue, queue_hashes = setting.state, [], []
    for t in range(3):
        batch = setting.batches.make(t)
        # Which tokens are masked is drawn by the project (its own test is elsewhere); all the rest is PyTorch's.
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), t)
        flat = lambda tree: jax.tree.map(lambda x: x[0, 0], tree)  # noqa: E731
        masked = masking.mask_tokens(
            jax.random.split(step_key, 3)[0],
            batch.rows.ids[0, 0].reshape(-1),
            flat(batch.sequences),
            flat(batch.slots),
            longest=31,
            mask_id=3,
            vocab_size=50,
        )
        labels = np.full(batch.rows.ids[0, 0].size, -100)
        used = np.asarray(masked.weights) == 1
        labels[np.asarray(masked.at)[used]] = np.asarray(masked.labels)[used]
        corrupted = dataclasses.replace(flat(batch.rows), ids=np.asarray(masked.ids))
        numbers = [BATCH + n for n in range(BATCH)]
        ids, mask = pad([unpack(corrupted, n) for n in numbers])
        wanted, _ = pad([(unpack(dataclasses.replace(corrupted, ids=labels), n)) for n in numbers])
        wanted[mask == 0] = -100
        tlm = F.cross_entropy(query(ids, mask).logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)

        zq = vectors(query, projection, [unpack(flat(batch.rows), n) for n in range(BATCH)])
        with torch.no_grad():
            zk = vectors(key, key_projection, [unpack(flat(batch.key_rows), n) for n in range(BATCH)])
        logits = [(zq * zk).sum(1, keepdim=True)]
        hashes = torch.tensor(batch.hashes[0, 0].astype(np.int64))
        if queue:
            negative = zq @ torch.cat(queue[-2:]).T
            duplicate = torch.cat(queue_hashes[-2:])[None] == hashes[:, None]
            logits.append(negative.masked_fill(duplicate, -torch.inf))
        nce = F.cross_entropy(torch.cat(logits, 1) / 0.05, torch.zeros(BATCH, dtype=torch.long))

        adamw.zero_grad()
        (tlm + nce).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for group in adamw.param_groups:
            group["lr"] = float(rates(t))
        adamw.step()
        with torch.no_grad():
            for slow, fast in ((key, query), (key_projection, projection)):
                for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
                    a.lerp_(b, 0.1)
        queue.append(zk)
        queue_hashes.append(hashes)

        state, metrics = setting.step(state, sharding.put_batch(batch, setting.mesh))
        assert np.isclose(float(metrics["tlm"]), tlm.item(), rtol=1e-5)
        assert np.isclose(float(metrics["contrastive"]), nce.item(), rtol=1e-4, atol=1e-5)
    for tree, model in ((state.params, query), (state.key_params, key)):
        tensors = dict(model.named_parameters())
        for name, path in huggingface.tensor_names(config).items():
            if name in tensors and path[0] in tree:
                ours = tree
                for k in path:
                    ours = ours[k]
                ours = np.asarray(ours).T if path[-1] == "kernel" else np.asarray(ours)
                # AdamW's first steps have the size of the rate (1e-3) whatever the gradient: allow a hundredth of one,
                # and the key bias, whose true gradient is zero, moves by the sign of rounding errors.
                if not name.endswith("key.bias"):
                    np.testing.assert_allclose(ours, tensors[name].detach().numpy(), atol=2e-5, err_msg=name)
    np.testing.assert_allclose(state.queue.keys[0], queue[2].numpy(), atol=1e-4)  # two slots: step 2 wrote over step 0


@pytest.mark.parametrize("objective", ["mlm", "xlm", "dict_mlm, input", "dict_mlm, label", "align_mlm"])
@pytest.mark.usefixtures("hasty")
def test_loss_and_gradient_of_every_objective_equal_pytorch(make, tmp_path, objective):
    """Of the whole step, by one step of gradient descent at rate 1. Masks and their translations are the project's draw
    (tests/objectives has their content); all the rest is PyTorch's."""
    import torch
    import torch.nn.functional as F
    import transformers

    from ppa_jax.interop import huggingface

    config = dataclasses.replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    name, _, form = objective.partition(", ")
    words, translations = dictionary_of_words()
    method = dataclasses.replace(
        METHOD, contrastive_weight=0.0, dict_mlm=form, word_alignment_weight=10.0 * (name == "align_mlm")
    )
    setting = make(
        config=config, method=method, joint=name == "xlm", languages=("a", "b") if name == "xlm" else None,
        optimize=optax.sgd(1.0), words=words, translations=translations,
    )  # fmt: skip
    start = jax.tree.map(np.array, setting.state.params)
    huggingface.write(tmp_path, huggingface.Pretrained(config, start, {}, {}))
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path).train()

    batch = setting.batches.make(0)
    step_key = jax.random.fold_in(jax.random.wrap_key_data(setting.state.rng), 0)
    flat = lambda tree: jax.tree.map(lambda x: x[0, 0], tree)  # noqa: E731
    rows = jax.tree.map(lambda x: x.reshape(-1), flat(batch.rows))
    masked = masking.mask_tokens(
        jax.random.split(step_key, 3)[0], rows.ids, flat(batch.sequences), flat(batch.slots), longest=31, mask_id=3,
        vocab_size=50, translations=jnp.asarray(translations) if form else None, form=form,
    )  # fmt: skip
    labels, used = np.full(rows.ids.size, -100), np.asarray(masked.weights) == 1
    labels[np.asarray(masked.at)[used]] = np.asarray(masked.labels)[used]
    types = np.zeros_like(rows.ids) if batch.types is None else flat(batch.types).reshape(-1)
    columns = {
        "input_ids": np.asarray(masked.ids), "position_ids": rows.positions, "token_type_ids": types, "labels": labels
    }  # fmt: skip
    total, count = 0, int(used.sum())
    for number in sorted(set(rows.segments.tolist()) - {0}):  # one sequence at a time: none sees another
        given = {key: torch.tensor(x[rows.segments == number])[None].long() for key, x in columns.items()}
        wanted = given.pop("labels")
        logits = theirs(**given).logits
        total = total + F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum")
    loss = total / count
    if name == "align_mlm":
        E = theirs.bert.embeddings.word_embeddings.weight
        vectors = [E[10], E[25], (E[11] + E[12]) / 2, E[26], E[27]]
        cosines = [F.cosine_similarity(vectors[i], vectors[j], dim=0) for i, j in ((0, 1), (2, 3), (2, 4))]
        loss = loss - 10 * torch.stack(cosines).mean()
    loss.backward()
    if form == "label":
        asked = np.asarray(masked.labels)[used] != rows.ids[np.asarray(masked.at)[used]]
        assert 0.2 < asked.mean() < 0.5, "half of those that have a translation, which are 6 of 10"

    state, metrics = setting.step(setting.state, sharding.put_batch(batch, setting.mesh))
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    tensors, compared = dict(theirs.named_parameters()), 0
    for tensor, path in huggingface.tensor_names(config).items():
        if tensor in tensors and path[0] in start:
            before, after = start, state.params
            for k in path:
                before, after = before[k], after[k]
            gradient = np.asarray(before) - np.asarray(after)
            wanted = tensors[tensor].grad.numpy()
            wanted = wanted.T if path[-1] == "kernel" else wanted
            np.testing.assert_allclose(gradient, wanted, atol=1e-5, rtol=1e-4, err_msg=tensor)
            compared += 1
    assert compared > 35


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("frozen", "where", "options"),
    [
        (("embeddings", "layer_0"), (1, 1, "replicated"), {}),
        (("embeddings", "layer_0"), (4, 2, "fsdp"), {"scan": True, "remat": True}),
        (("layer_0",), (2, 1, "fsdp"), {"scan": True, "pooling": "mean"}),  # gradients pass through it
    ],
)
def test_what_is_frozen_stays_and_the_rest_trains_as_if_its_gradient_were_zero(make, frozen, where, options):
    """Against the step that trains all, whose gradients and updates of these leaves are set to 0; with dropout."""
    descent = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))

    def is_frozen(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[1].key in frozen, tree)

    zero = optax.masked(optax.set_to_zero(), is_frozen)
    method = dataclasses.replace(METHOD, pooling=options.get("pooling", "cls"))
    everything = make(method=method, optimize=optax.chain(zero, descent, zero))
    start = jax.tree.map(np.array, everything.state.params)
    wanted, expected = run(everything, 3)
    devices, accumulate, rules = where
    method = dataclasses.replace(method, frozen=frozen, **options)
    setting = make(devices, accumulate, method=method, rules=rules, optimize=descent)
    state, losses = run(setting, 3)
    for name in ("loss", "tlm", "contrastive"):
        values = [[record[name] for record in records] for records in (losses, expected)]
        np.testing.assert_allclose(*values, rtol=2e-5, atol=2e-6, err_msg=name)
    assert largest_difference(state.params, wanted.params) < 1e-5
    for name in frozen:
        jax.tree.map(np.testing.assert_array_equal, state.params["encoder"][name], start["encoder"][name])
    trained = set(start["encoder"]) - {*frozen}
    assert set(state.key_params["encoder"]) == trained and set(state.opt_state[1][0].trace["encoder"]) == trained
    kept = {name: wanted.key_params["encoder"][name] for name in trained}
    assert largest_difference(state.key_params["encoder"], kept) < 1e-5


def test_what_is_frozen_costs_less_as_counted(make):
    """The compiled step saves the operations that the plan leaves out, and some that it never counts: LayerNorm's."""
    found = {}
    for frozen in ((), ("embeddings", "layer_0"), ("layer_0",), ("layer_1",)):
        setting = make(method=dataclasses.replace(METHOD, frozen=frozen))
        batch = setting.batches.make(0)
        compiled = setting.step.lower(setting.state, batch).compile().cost_analysis()["flops"]
        found[frozen] = np.array([compiled, flops(setting.method, CONFIG, setting.batches, steps=1)])
    everything = found.pop(())
    for frozen, costs in found.items():
        compiled, counted = everything - costs
        assert 0.85 < compiled / counted < 1.4, frozen


OBJECTIVES = {
    "ranking": {"objective": "ranking", "margin": 0.2, "learn_temperature": True, "layer": 1, "pooling": "mean"},
    "symmetric": {"symmetric": True, "in_batch": True, "learn_temperature": True},
}
WITH_RTL = {
    "rtl, ranking": {"objective": "ranking", "rtl_weight": 0.5},  # its states are those of the last block
    "rtl, momentum": {"in_batch": True, "rtl_weight": 0.5, "layer": 1},
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.usefixtures("hasty")
def test_both_directions_of_the_contrast_equal_pytorch(make, tmp_path, name):
    """Loss, gradients (one step of gradient descent at rate 1) and queues, each sentence encoded by itself."""
    import torch
    import torch.nn.functional as F
    import transformers

    from ppa_jax.interop import huggingface

    config = dataclasses.replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    method = dataclasses.replace(METHOD, tlm_weight=0.0, **OBJECTIVES[name])
    setting = make(config=config, method=method, optimize=optax.sgd(1.0))
    rng, batch = np.random.default_rng(0), setting.batches.make(0)
    hashes = batch.hashes[0, 0].reshape(2, BATCH)  # of the second sentences, and of the first
    hashes[:, 3] = hashes[:, 5]  # duplicates
    texts, _ = setting.batches._texts(setting.batches.schedule.batch(0), np.arange(BATCH))
    texts = [texts[n] for n in range(BATCH)]
    state, past = setting.state, []
    if name == "symmetric":  # two full slots a direction; the key side differs from the query side
        for side in range(2):
            keys = rng.normal(size=(2, BATCH, 8)).astype("f")
            past.append(
                (keys / np.linalg.norm(keys, axis=2, keepdims=True), rng.permuted(np.stack([hashes[side]] * 2)))
            )
        queue, first_queue = (contrastive.Queue(*map(jnp.asarray, x)) for x in past)
        moved = jax.tree.map(lambda x: 1.1 * x, state.key_params)
        state = state.replace(queue=queue, first_queue=first_queue, key_params=moved, step=jnp.int32(2))
    else:
        assert state.queues == () and state.key_params == {} and batch.key_rows is None, "no memory for them"
    start, key_start = jax.tree.map(np.array, (state.params, state.key_params))

    def in_torch(params):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        huggingface.write(directory, huggingface.Pretrained(config, params | {"mlm_head": head}, {}, {}))
        model = transformers.BertForMaskedLM.from_pretrained(directory).train()
        projection = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        with torch.no_grad():
            for layer, part in ((projection[0], "hidden"), (projection[2], "output")):
                layer.weight.copy_(torch.tensor(params["projection"][part]["kernel"].T))
                layer.bias.copy_(torch.tensor(params["projection"][part]["bias"]))
        return model, projection

    def vectors(model, projection, side):
        found = []
        for pair in texts:
            ids = torch.tensor([[1, *map(int, pair[side].split()), 2]])
            states = model.bert(ids, output_hidden_states=True).hidden_states[method.layer][0]
            found.append(states[0] if method.pooling == "cls" else states.mean(0))
        return F.normalize(projection(torch.stack(found)), dim=1)

    head = MaskedLMHead(CONFIG).init(jax.random.key(1), jnp.zeros((1, 32)))["params"]
    query, projection = in_torch(start)
    log_temperature = torch.tensor(np.log(np.float32(0.05)), requires_grad=True)
    ours = [vectors(query, projection, side) for side in range(2)]
    if name == "ranking":
        keys = ours[::-1]
    else:
        with torch.no_grad():
            key_side = in_torch(key_start)
            keys = [vectors(*key_side, side) for side in (1, 0)]
    loss = 0
    for direction in range(2):
        own, others = torch.tensor(hashes[direction].astype(np.int64)), keys[direction]
        known = own
        if past:  # step 2 writes slot 0: one slot of the past is left, and the batch itself
            others = torch.cat([others, torch.tensor(past[direction][0][1])])
            known = torch.cat([own, torch.tensor(past[direction][1][1].astype(np.int64))])
        logits = (ours[direction] @ others.T - method.margin * torch.eye(BATCH, len(others))) / log_temperature.exp()
        same = (known[None] == own[:, None]) & ~torch.eye(BATCH, len(others), dtype=torch.bool)
        assert same.any()
        loss = loss + F.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(BATCH)) / 2
    loss.backward()

    state, metrics = setting.step(state, sharding.put_batch(batch, setting.mesh))
    assert float(metrics["contrastive"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(metrics["temperature"]) == pytest.approx(0.05)
    moved = start["log_temperature"] - log_temperature.grad.item()
    assert float(state.params["log_temperature"]) == pytest.approx(max(moved, np.log(0.01)), rel=1e-4)
    tensors, compared = dict(query.named_parameters()), 0
    for tensor, path in huggingface.tensor_names(config).items():
        if tensor in tensors and tensors[tensor].grad is not None:
            gradient = np.asarray(get(start, path)) - np.asarray(get(state.params, path))
            wanted = tensors[tensor].grad.numpy()
            wanted = wanted.T if path[-1] == "kernel" else wanted
            np.testing.assert_allclose(gradient, wanted, atol=3e-5, rtol=1e-4, err_msg=tensor)
            compared += 1
    assert compared == 5 + 16 * method.layer
    for layer, part in ((projection[0], "hidden"), (projection[2], "output")):
        gradient = start["projection"][part]["kernel"] - np.asarray(state.params["projection"][part]["kernel"])
        np.testing.assert_allclose(gradient, layer.weight.grad.numpy().T, atol=3e-5, rtol=1e-4)
    for queue, found in zip(state.queues, keys, strict=False):
        np.testing.assert_allclose(queue.keys[0], found.numpy(), atol=1e-5)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.usefixtures("hasty")
def test_rtl_equals_pytorch(make, tmp_path, alone):
    """Loss and gradients, pair by pair: two of transformers' blocks over [source states; embeddings of [MASK]].

    Alone it reads the last states; beside ranking those of layer 1, below which only the contrast trains.
    """
    import torch
    import torch.nn.functional as F
    import transformers

    from ppa_jax.interop import huggingface

    config = dataclasses.replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    others = {"contrastive_weight": 0.0} if alone else {"objective": "ranking", "layer": 1}
    method = dataclasses.replace(METHOD, tlm_weight=0.0, rtl_weight=1.0, **others)
    setting = make(config=config, method=method, optimize=optax.sgd(1.0))
    start = jax.tree.map(np.array, setting.state.params)
    head = start["rtl_head"]["mlm_head"]
    jax.tree.map(np.testing.assert_array_equal, start["rtl_head"]["encoder"]["layer_1"], start["encoder"]["layer_1"])

    def in_torch(encoder):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        pretrained = huggingface.Pretrained(config, {"encoder": encoder, "mlm_head": head}, {}, {})
        huggingface.write(directory, pretrained)
        return transformers.BertForMaskedLM.from_pretrained(directory).train()

    base, theirs = in_torch(start["encoder"]), in_torch(start["encoder"])
    plan = setting.batches.schedule.batch(0)
    texts, _ = setting.batches._texts(plan, np.arange(BATCH))
    assert 0 < plan.sides[:, 0].sum() < BATCH, "either side is the target"
    total, count = 0, 0
    for n in range(BATCH):
        sides = dict(zip(plan.sides[n].tolist(), texts[n], strict=True))
        target, source = ([int(word) for word in sides[side].split()] for side in (0, 1))
        ids = torch.tensor([[1, *source, 2]])
        states = base.bert(ids, output_hidden_states=True).hidden_states[method.layer][:, 1:]
        masks = base.bert.embeddings(torch.full((1, len(target)), 3), position_ids=1 + torch.arange(len(target))[None])
        x = torch.cat([states, masks], dim=1)
        for block in theirs.bert.encoder.layer:
            x = block(x)
            x = x if torch.is_tensor(x) else x[0]
        transformed = theirs.cls.predictions.transform(x[0, -len(target) :])
        logits = transformed @ base.bert.embeddings.word_embeddings.weight.T + theirs.cls.predictions.bias
        total = total + F.cross_entropy(logits, torch.tensor(target), reduction="sum")
        count += len(target)
    loss = total / count
    state, metrics = setting.step(setting.state, sharding.put_batch(setting.batches.make(0), setting.mesh))
    assert float(metrics["rtl"]) == pytest.approx(loss.item(), rel=1e-5)
    if not alone:
        return
    loss.backward()
    for ours, model, parts in (("", base, ("encoder",)), ("rtl_head", theirs, ("encoder", "mlm_head"))):
        tensors, compared = dict(model.named_parameters()), 0
        before, after = (tree[ours] if ours else tree for tree in (start, state.params))
        for tensor, path in huggingface.tensor_names(config).items():
            if tensor in tensors and path[0] in parts and not (ours and path[1] == "embeddings"):
                gradient = np.asarray(get(before, path)) - np.asarray(get(after, path))
                wanted = tensors[tensor].grad.numpy()
                wanted = wanted.T if path[-1] == "kernel" else wanted
                np.testing.assert_allclose(gradient, wanted, atol=1e-5, rtol=1e-4, err_msg=tensor)
                compared += 1
        assert compared == 32 + 5


def get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("name", OBJECTIVES | WITH_RTL)
@pytest.mark.usefixtures("hasty")
def test_both_directions_are_the_same_on_devices_and_accumulated(make, name):
    """With TLM, dropout and duplicates; the batch is the batch, whatever its parts (GradCache). Gradient descent."""
    given = {"method": dataclasses.replace(METHOD, **(OBJECTIVES | WITH_RTL)[name]), "optimize": optax.sgd(1e-2)}
    expected_state, expected = run(make(**given), 2)
    assert expected[0]["contrastive"] > 1 and 0 <= expected[0]["contrastive_accuracy"] <= 1
    for devices, accumulate, rules in ((1, 4, "replicated"), (2, 2, "fsdp"), (8, 1, "replicated")):
        state, losses = run(make(devices, accumulate, **given, rules=rules), 2)
        for got, want in zip(losses, expected, strict=True):
            assert got == pytest.approx(want, rel=2e-4, abs=1e-5)
        assert largest_difference(state.params, expected_state.params) < 1e-5
        for queue, wanted in zip(state.queues, expected_state.queues, strict=True):
            np.testing.assert_array_equal(queue.hashes, wanted.hashes)


def moved(setting):
    """Bytes of what the compiled step moves between devices, by kind."""
    batch = sharding.put_batch(setting.batches.make(0), setting.mesh)
    found: dict[str, list[int]] = {}
    for x in collectives(setting.step.lower(setting.state, batch).compile().as_text()):
        found.setdefault(x.kind, []).append(x.bytes)
    return found


def test_parameters_that_are_split_split_no_states(make):
    """Each device gathers matrices and sums their gradients, and computes only its own sentences."""
    for fsdp in (4, 2):
        setting = make(4, rules="fsdp", fsdp=fsdp)
        kernel = setting.state.params["encoder"]["layer_0"]["feed_forward"]["intermediate"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (CONFIG.hidden_size // fsdp, CONFIG.intermediate_size)
        found = moved(setting)
        largest = max(leaf.size * 4 for leaf in jax.tree.leaves(setting.state.params))
        states = setting.batches.make(0).key_rows.ids.size * CONFIG.hidden_size * 4
        assert states > 2 * largest and max(size for sizes in found.values() for size in sizes) <= largest


def test_nothing_crosses_the_network_without_need(make):
    """Compiled for 8 devices: the queue stays where it is, the queries are gathered, a gradient is summed once."""
    method = dataclasses.replace(METHOD, queue_size=BATCH * 64)
    setting = make(8, method=method)
    found = moved(setting)
    queue = setting.state.queue.keys.size * 4
    assert BATCH * 8 * 4 in found["all-gather"]  # the queries
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert max(found.get(kind, [0])) < queue / 8
    gradients = {leaf.size * 4 for leaf in jax.tree.leaves(setting.state.params)}
    assert {size for size in found["all-reduce"] if size > BATCH * 4} <= gradients, "and a number for each pair"
    table = setting.state.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
    assert found["all-reduce"].count(table.size * 4) == 1, "look-ups and predictions are summed before they are sent"


@pytest.mark.parametrize("rules", ["replicated", "fsdp"])
def test_accumulation_sends_the_word_embeddings_no_more_often(make, rules):
    """Gathered before the loop over the parts where they are stored split; their gradient is summed after it."""
    config = dataclasses.replace(CONFIG, vocab_size=2000)
    table, sent = config.vocab_size * CONFIG.hidden_size * 4, {}
    for accumulate in (1, 4):
        setting = make(4, accumulate=accumulate, rules=rules, config=config, sized=config.vocab_size)
        batch = sharding.put_batch(setting.batches.make(0), setting.mesh)
        found = collectives(setting.step.lower(setting.state, batch).compile().as_text())
        sent[accumulate] = sorted(x for x in found if x.bytes >= table / 4 and x.devices > 1)
    assert sent[4] == sent[1] and all(x.turns == 1 for x in sent[1])
    assert 1 <= len(sent[1]) <= (3 if rules == "fsdp" else 1), "of the query and the key encoder, and the gradient"


def test_a_loss_of_weight_zero_is_not_computed(make):
    both = make()
    tlm = make(method=dataclasses.replace(METHOD, contrastive_weight=0.0))
    contrast = make(method=dataclasses.replace(METHOD, tlm_weight=0.0))
    flops = []
    for setting in (both, tlm, contrast):
        batch = sharding.put_batch(setting.batches.make(0), setting.mesh)
        setting.step = setting.step.lower(setting.state, batch).compile()
        flops.append(setting.step.cost_analysis()["flops"])
    assert flops[1] < 0.85 * flops[0] and flops[2] < 0.7 * flops[0]
    assert tlm.state.queue is None and not tlm.state.key_params and tlm.batches.make(0).key_rows is None
    assert "mlm_head" not in contrast.state.params and contrast.batches.make(0).slots is None
    for setting, absent in ((tlm, "contrastive"), (contrast, "tlm")):
        _, losses = run(setting, 1)
        assert absent not in losses[0]


@pytest.mark.usefixtures("hasty")
def test_the_contrast_is_of_its_layer_whatever_else_is_computed(make):
    """Without TLM the blocks above it are not run: the same loss, another one at the last layer, fewer operations."""
    losses = {}
    for layer, tlm in ((1, 1.0), (1, 0.0), (2, 0.0)):
        # The keys of the batch are negatives: without them the first loss is 0.
        setting = make(method=dataclasses.replace(METHOD, layer=layer, tlm_weight=tlm, in_batch=True))
        batch = sharding.put_batch(setting.batches.make(0), setting.mesh)
        operations = setting.step.lower(setting.state, batch).cost_analysis()["flops"]
        _, (found,) = run(setting, 1)
        losses[layer, tlm] = found["contrastive"], operations
        assert 0.5 * operations < flops(setting.method, CONFIG, setting.batches, steps=1) < operations
    assert losses[1, 1.0][0] == pytest.approx(losses[1, 0.0][0], rel=1e-5) != losses[2, 0.0][0]
    assert losses[1, 0.0][1] < 0.75 * losses[2, 0.0][1]


@pytest.mark.usefixtures("hasty")
def test_the_last_block_finishes_no_token_that_nobody_reads(make):
    """Its feed-forward products, in the program: of masked tokens and [CLS]; of all where their mean is pooled."""
    for pooling, blocks in (("cls", 1), ("mean", 2)):
        setting = make(method=dataclasses.replace(METHOD, pooling=pooling))
        batch = sharding.put_batch(setting.batches.make(0), setting.mesh)
        lowered = setting.step.lower(setting.state, batch).as_text()
        for rows, passes in ((batch.rows, 3), (batch.key_rows, 1)):  # forward and twice backward; forward
            products = [line for line in lowered.splitlines() if "dot_general" in line and "x64xf32>" in line]
            of_all = [line for line in products if f"<{rows.segments.shape[-1]}x" in line]
            assert len(of_all) == 2 * passes * blocks, (pooling, passes, len(of_all))


@pytest.mark.usefixtures("hasty")
def test_the_key_side_follows_and_the_queue_holds_its_keys(make):
    setting = make(rate=1e-2)
    before = jax.tree.map(np.asarray, {"key": setting.state.key_params, "query": setting.state.params})
    state, _ = run(setting, 1)
    for name in ("encoder", "projection"):
        expected = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * np.asarray(q), before["key"][name], state.params[name])
        assert largest_difference(state.key_params[name], expected) < 1e-6
    assert (
        largest_difference(before["query"]["encoder"], state.params["encoder"]) > 1e-3
    )  # there was something to follow
    np.testing.assert_allclose(np.linalg.norm(state.queue.keys[0], axis=-1), 1, atol=1e-5)
    assert not np.any(state.queue.keys[1])


def test_the_widths_of_rows_change_nothing(make, monkeypatch):
    """By gradient descent: AdamW's first step turns the rounding of a tiny gradient into a share of the rate."""
    several = make(optimize=optax.sgd(1e-2))
    assert len(several.batches.ladder.base.query) > 1
    monkeypatch.setattr(packing, "widths_for", lambda longest: [longest])
    one = make(optimize=optax.sgd(1e-2))
    assert len(one.batches.ladder.base.query) == 1
    (a, losses), (b, wanted) = run(several, 2), run(one, 2)
    for name in wanted[1]:
        assert losses[1][name] == pytest.approx(wanted[1][name], rel=1e-5, abs=1e-6), name
    assert largest_difference(a.params, b.params) < 1e-4
