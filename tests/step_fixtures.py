"""The alignment step on a tiny model and sentences of numbers; tests/jobs/align/conftest.py has the fixtures."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.data import packing
from ppa_jax.data.batches import PairBatches
from ppa_jax.data.dictionaries import WordPairs
from ppa_jax.data.schedule import Schedule
from ppa_jax.jobs.align.method import make_step
from ppa_jax.jobs.align.settings import Method
from ppa_jax.jobs.align.state import State, init_state, state_shardings
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.heads import MaskedLMHead
from ppa_jax.training import optimizer, sharding

CONFIG = EncoderConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=40)
METHOD = Method(queue_size=24, momentum=0.9, projection_dim=8, layer=2, max_tlm_length=31, mask_id=3)
BATCH = 16


@pytest.fixture
def hasty():
    """Compiling with few optimizations: it takes longer than the few steps that are run."""
    old = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", old)


@pytest.fixture(scope="module")
def params():
    token = jnp.zeros((1, 1), int)
    params = {
        "encoder": Encoder(CONFIG).init(jax.random.key(0), token, token, token)["params"],
        "mlm_head": MaskedLMHead(CONFIG).init(jax.random.key(1), jnp.zeros((1, 32)))["params"],
    }
    return jax.tree.map(np.asarray, params)  # the runs donate their own copies


@dataclasses.dataclass
class Setting:
    batches: PairBatches
    state: State
    step: object
    mesh: object
    method: Method


@pytest.fixture(scope="module")
def rows_of_several_widths():
    """Of 8, 16 and 32 tokens, in the small as 64, 128 and 256 are in a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "NARROWEST", 8)
        yield


@pytest.fixture(scope="module")
def make(params, number_pairs, number_tokenizer, rows_of_several_widths):
    """Builds a run of the step in memory: devices x model axis, accumulation, method, rules."""
    two = [number_pairs(300, seed=0), number_pairs(80, seed=1)]

    def build(
        devices=1, accumulate=1, method=METHOD, rules="replicated", config=CONFIG, rate=1e-2, joint=True,
        sources=two, languages=None, optimize=None, words=None, translations=None, sized=None, fsdp=-1,
    ):  # fmt: skip
        mesh = sharding.make_mesh(devices, fsdp, jax.devices()[:devices])
        plan = Schedule([s.lengths for s in sources], BATCH, seed=3, temperature=2.0)
        batches = PairBatches(
            sources,
            plan,
            number_tokenizer,
            max_length=16,
            row_length=32,
            languages=languages,
            mask_rate=0.15,
            joint=joint,
            contrast=method.pools,
            sides=method.sides,
            keys=method.has_keys,
            distill=method.distill_weight > 0,
            rtl_targets=("a",) if method.rtl_weight else (),
            tlm=method.tlm_weight > 0,
            shards=devices,
            accumulate=accumulate,
        )
        optimize = optimize or optimizer.adamw(optimizer.schedule(rate, 0.1, 20), weight_decay=0.01, clip=1.0)
        given = params if sized is None else with_words(params, sized)
        state = init_state(given, method, config, optimize, batch_size=BATCH, seed=0)
        shardings = state_shardings(state, sharding.RULES[rules], mesh)
        state = jax.device_put(state, shardings, may_alias=False)
        step = make_step(method, config, optimize, mesh, shardings, words, translations)
        return Setting(batches, state, step, mesh, method)

    return build


def with_words(params, count):
    """Parameters with so many word pieces, those beyond the first all alike."""
    more = copy.deepcopy(params)
    embeddings = more["encoder"]["embeddings"]["word_embeddings"]
    extra = count - len(embeddings["embedding"])
    embeddings["embedding"] = np.pad(embeddings["embedding"], ((0, extra), (0, 0)), mode="edge")
    more["mlm_head"]["bias"] = np.pad(more["mlm_head"]["bias"], (0, extra))
    return more


def dictionary_of_words():
    """Word 10 + i is translated by 25 + i; of the dictionary's words some are two pieces."""
    translations = np.full(50, -1, np.int32)
    translations[10:25], translations[25:40] = np.arange(25, 40), np.arange(10, 25)
    words = WordPairs(
        np.array([10, 25, 11, 12, 26, 27], np.int32), np.array([1, 1, 2, 1, 1], np.int32),
        np.array([[0, 1], [2, 3], [2, 4]], np.int32),
    )  # fmt: skip
    return words, translations


def run(setting, steps):
    state, losses = setting.state, []
    for t in range(steps):
        state, metrics = setting.step(state, sharding.put_batch(setting.batches.make(t), setting.mesh))
        losses.append({name: float(value) for name, value in metrics.items()})
    return state, losses


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)))), a, b)))
