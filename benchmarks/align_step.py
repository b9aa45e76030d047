"""Seconds per alignment step and pairs per second, on random pieces of given sentence lengths.

    python -m benchmarks.align_step --layers=6 --hidden=384 --heads=12 --batch=32 --lengths=lengths.npy

Prints one JSON line: s_per_step (median), real_tokens_per_s, pairs_per_s, nce, tlm; padding (share of the token
positions), mfu (operations of real tokens per second, relative to the matmul rate measured in the same run),
matmul_gflops, memory_gbs, compile_s, peak_memory_mib, input_s (to make a batch on one thread of the host, which the job
does during the step; not in s_per_step); and lower bounds of a step: floor_operations_s, the operations of real tokens
at the matmul rate, and floor_bytes_s, reading and writing the state once at the memory's rate. Progress is on stderr.
`lengths.npy` is int [n, 2], word pieces of both sides without special tokens. Requires only jax, flax, optax and
jaxtyping.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time

if not __package__:
    sys.exit("error: start it from the root of the checkout as python -m benchmarks.align_step")

import jax
import jax.numpy as jnp
import numpy as np

from ppa_jax.data.batches import PairBatches
from ppa_jax.data.schedule import Schedule
from ppa_jax.jobs.align.flops import batch_flops
from ppa_jax.jobs.align.method import make_step
from ppa_jax.jobs.align.settings import Method
from ppa_jax.jobs.align.state import State, init_state, state_shardings
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.heads import MaskedLMHead
from ppa_jax.training import optimizer, sharding
from ppa_jax.training.memory import keep_freed_memory


class RandomPairs:
    """A corpus of random pieces with given lengths; its own tokenizer."""

    cls_id, sep_id, mask_id, pad_id = 101, 102, 103, 0

    languages = ("en", "xx")

    def __init__(self, lengths: np.ndarray, vocab_size: int) -> None:
        self.lengths, self.vocab_size = lengths, vocab_size

    def read(self, indices: np.ndarray) -> list[tuple[str, str]]:
        """A text names its pair and side."""
        return [(f"{i} 0", f"{i} 1") for i in indices]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Random ordinary pieces, the same for the same text."""
        places = [tuple(map(int, text.split())) for text in texts]
        return [np.random.default_rng(p).integers(110, self.vocab_size, self.lengths[p]).tolist() for p in places]


def parse() -> argparse.Namespace:
    """Flags."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--hidden", type=int, default=384)
    p.add_argument("--heads", type=int, default=12)
    p.add_argument("--vocab", type=int, default=119_547)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--lengths", help="npy [n, 2]; without it log-normal lengths are drawn")
    p.add_argument("--maxlen", type=int, default=128)
    p.add_argument("--row-length", type=int, default=0, help="tokens of a packed row; 0: chosen as the job does")
    p.add_argument("--queue", type=int, default=32_000)
    p.add_argument("--proj", type=int, default=300)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--accumulate", type=int, default=1)
    p.add_argument("--device", default="", help="cpu, cuda or tpu; default: what there is")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--compile", action="store_true", help="does nothing: here the step always is")
    p.add_argument("--full-head", action="store_true", help="refused: only masked positions reach the vocabulary here")
    p.add_argument("--remat", action="store_true")
    p.add_argument("--scan", action="store_true")
    p.add_argument("--profile", default="", help="a folder for a trace of two more steps, for xprof or Perfetto")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    if a.full_head:
        p.error("--full-head: there is none here, only masked positions reach the vocabulary; compare without it")
    return a


def matmul_rate(dtype: jnp.dtype) -> float:
    """Operations a second of the best of ten matrix products: of a feed-forward layer's size on a CPU.

    On an accelerator 8192 x 8192 x 8192, because a small product ends before the host dispatches the next one. Normal
    numbers, as zeros and ones take less power and run faster.
    """
    m, k, n = (4096, 768, 3072) if jax.default_backend() == "cpu" else (8192, 8192, 8192)
    a = jax.random.normal(jax.random.key(0), (m, k), dtype)
    b = jax.random.normal(jax.random.key(1), (k, n), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * m * k * n / min(seconds)


def memory_rate() -> float:
    """Bytes a second of the best of ten passes that read 256 MiB and write as many."""
    x = jnp.ones(64 << 20, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    add(x).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        add(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(seconds)


def main() -> None:
    """Runs the steps and prints the JSON line."""
    a = parse()
    begun = time.perf_counter()

    def tell(what: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {what}", file=sys.stderr, flush=True)

    keep_freed_memory()
    if a.device:
        jax.config.update("jax_platforms", a.device)
    dtype = jnp.dtype("bfloat16" if a.bf16 else "float32")
    drawn = np.random.default_rng(1).lognormal(3.1, 0.55, (20_000, 2))
    lengths = np.load(a.lengths) if a.lengths else np.clip(drawn, 4, a.maxlen).astype(int)
    lengths = np.minimum(lengths, a.maxlen - 2)
    pairs = RandomPairs(lengths, a.vocab)
    longest = int(lengths.sum(axis=1).max()) + 3
    devices = sharding.make_mesh()
    batches = PairBatches(
        [pairs],
        Schedule([lengths], a.batch, a.seed),
        pairs,
        max_length=a.maxlen,
        row_length=a.row_length or -(-longest // 64) * 64,
        mask_rate=0.15,
        shards=devices.size,
        accumulate=a.accumulate,
    )
    config = EncoderConfig(
        vocab_size=a.vocab,
        hidden_size=a.hidden,
        num_layers=a.layers,
        num_heads=a.heads,
        intermediate_size=4 * a.hidden,
        hidden_dropout=a.dropout,
        attention_dropout=a.dropout,
    )
    method = Method(
        queue_size=a.queue,
        projection_dim=a.proj,
        layer=a.layers,
        max_tlm_length=longest,
        dtype=dtype,
        remat=a.remat,
        scan=a.scan,
    )
    tell(f"the device: {devices.devices.flat[0].device_kind}; batches of {batches.ladder.base}")
    adamw = optimizer.adamw(optimizer.schedule(3e-5, 0.1, 1000), weight_decay=0.01, clip=1.0)

    def init() -> State:
        token = jnp.zeros((1, 1), jnp.int32)
        params = {
            "encoder": Encoder(config).init(jax.random.key(a.seed), token, token, token)["params"],
            "mlm_head": MaskedLMHead(config).init(jax.random.key(a.seed + 1), jnp.zeros((1, a.hidden)))["params"],
        }
        return init_state(params, method, config, adamw, batch_size=a.batch, seed=a.seed)

    shardings = state_shardings(jax.eval_shape(init), sharding.RULES["replicated"], devices)
    state = jax.jit(init, out_shardings=shardings)()  # one program, not hundreds of small ones
    step = make_step(method, config, adamw, devices, shardings)
    tell("the model")

    start = time.perf_counter()
    made = [batches.make(t) for t in range(a.steps + 1)]
    input_s = (time.perf_counter() - start) / len(made)
    tell(f"{len(made)} batches")
    compiled: dict[tuple, object] = {}  # by shape: compiling is no part of a step
    compile_s, state_bytes = 0.0, 0
    seconds, metrics = [], {}
    for t, batch in enumerate(made):
        shape = jax.tree.structure(batch), *(x.shape for x in jax.tree.leaves(batch))
        on_device = sharding.put_batch(batch, devices)
        if shape not in compiled:
            start = time.perf_counter()
            compiled[shape] = step.lower(state, on_device).compile()
            compile_s += time.perf_counter() - start
            sizes = compiled[shape].memory_analysis()
            state_bytes = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            tell(f"a shape is compiled: {sizes.temp_size_in_bytes / 2**30:.1f} GiB of temporary memory")
        start = time.perf_counter()
        state, metrics = compiled[shape](state, on_device)
        metrics = jax.device_get(metrics)
        if t:
            seconds.append(time.perf_counter() - start)
    tell(f"{a.steps} steps")
    if a.profile:
        with jax.profiler.trace(a.profile, create_perfetto_trace=True):
            for batch in made[-2:]:
                shape = jax.tree.structure(batch), *(x.shape for x in jax.tree.leaves(batch))
                state, metrics = compiled[shape](state, sharding.put_batch(batch, devices))
            jax.block_until_ready(state)
    rows = [r for batch in made[1:] for r in (batch.rows, batch.key_rows)]
    real, places = sum(np.count_nonzero(r.segments) for r in rows), sum(r.segments.size for r in rows)
    rate, bandwidth = matmul_rate(dtype), memory_rate()
    operations = sum(batch_flops(method, config, batch) for batch in made[1:])
    memory = devices.devices.flat[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(json.dumps({
        "s_per_step": round(float(np.median(seconds)), 4),
        "real_tokens_per_s": round(real / sum(seconds), 1),
        "pairs_per_s": round(a.batch * len(seconds) / sum(seconds), 2),
        "nce": float(metrics["contrastive"]),
        "tlm": float(metrics["tlm"]),
        "padding": round(1 - real / places, 4),
        "mfu": round(operations / sum(seconds) / (rate * devices.size), 4),
        "matmul_gflops": round(rate / 1e9, 1),
        "memory_gbs": round(bandwidth / 1e9, 1),
        "floor_operations_s": round(operations / len(seconds) / (rate * devices.size), 4),
        "floor_bytes_s": round(state_bytes / bandwidth, 4),
        "compiled": len(compiled),
        "compile_s": round(compile_s, 1),
        "input_s": round(input_s, 4),
        "peak_memory_mib": round(peak / 2**20),
        "shape": dataclasses.asdict(batches.ladder.base),
        "device": devices.devices.flat[0].device_kind,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
