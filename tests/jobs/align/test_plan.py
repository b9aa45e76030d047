"""`config.plan`: what a run would take, from the compiled step of the user's own settings; and that nothing is left."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from ppa_jax.interop import huggingface
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.jobs.align.flops import flops
from ppa_jax.main import main, parse

pytestmark = pytest.mark.usefixtures("compilation")


def planned(capsys, arguments):
    assert main(arguments) == 0
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return {name.strip(): value.strip() for name, value in rows[2:]}


def test_tells_parameters_memory_operations_and_traffic(command, shelf, tmp_path, capsys):
    table = planned(capsys, command(tmp_path / "run", {"plan": "true"}))
    params = huggingface.read(shelf / "model").params
    trained = sum(x.size for name in ("encoder", "mlm_head") for x in jax.tree.leaves(params[name]))
    trained += 32 * 32 + 32 + 32 * 8 + 8  # the projection of the tests' settings
    assert table["parameters trained"] == f"{trained:,}" and table["devices"] == "8 x cpu"
    state, _ = (
        int(re.fullmatch(r"(\d+) MiB", table[f"memory of a device{name}"])[1])
        for name in (": state and batch", ": temporary")
    )
    assert state > 0 and "memory of a device, at the peak" not in table, "a CPU's is no peak"
    assert "MiB in" in table["all-reduce, a device and step"]
    reduced = float(table["all-reduce, a device and step"].split()[0])
    assert float(table["sent by a device in a step"].split()[0]) >= 1.75 * reduced - 0.2, "a ring of 8 sends 2 x 7/8"
    assert not list((tmp_path / "run").glob("*")), "nothing is written"
    alone = planned(capsys, command(tmp_path / "run", {"plan": "true", "mesh.data": 1}))
    assert alone["sent by a device in a step"] == "nothing" and alone["devices"] == "1 x cpu"


def test_operations_are_those_of_real_tokens(command, tmp_path):
    """Counted sequence by sequence: products with its tokens, scores among them, predictions; forward and backward."""
    config, _ = parse(command(tmp_path))
    run = align_setup.open_run(config, align_setup.validate(config), tmp_path)
    c, batch = run.pretrained.config, run.batches.make(0)
    D, own, total = c.hidden_size, 2 * c.hidden_size * (c.hidden_size + 2 * c.intermediate_size), 0.0
    for rows, times in ((batch.rows, 3), (batch.key_rows, 1)):
        segments = np.asarray(rows.segments).reshape(rows.segments.shape[1], -1)
        for shard in segments:
            for number in set(shard.tolist()) - {0}:
                n = int((shard == number).sum())
                total += times * (c.num_layers * (n * (6 * D * D + own) + 4 * n * n * D) - n * own)
    masked, pairs = (np.asarray(batch.slots.rank) >= 0).sum(), batch.query.start.size
    total += 3 * masked * 2 * D * (D + c.vocab_size)
    read = own * (3 * (masked + pairs) + pairs)  # in the last block: masked tokens, [CLS] of queries and of keys
    assert flops(run.method, c, run.batches, steps=1) == pytest.approx(total + read)
    mean = dataclasses.replace(run.method, pooling="mean")
    everything = sum(k * np.count_nonzero(r.segments) for k, r in ((3, batch.rows), (1, batch.key_rows)))
    assert flops(mean, c, run.batches, steps=1) == pytest.approx(total + own * everything)


def test_operations_of_ranking(command, tmp_path):
    """Both sides forward and backward, no keys; in parts, all vectors are computed once more."""
    whole = {}
    for accumulate in (1, 2):
        fields = {"contrastive.objective": "ranking", "train.accumulate": accumulate, "mesh.data": 2, "tlm.weight": 0}
        config, _ = parse(command(tmp_path, fields))
        run = align_setup.open_run(config, align_setup.validate(config), tmp_path / str(accumulate))
        c, batch = run.pretrained.config, run.batches.make(0)
        lengths = batch.query.length.reshape(-1)
        assert len(lengths) == 2 * config.train.batch_size
        whole[accumulate] = flops(run.method, c, run.batches, steps=1)
        expected = (2 + accumulate) * c.flops(lengths, read=len(lengths))
        assert whole[accumulate] == pytest.approx(expected)
    assert whole[2] == pytest.approx(4 / 3 * whole[1])
    fields |= {"train.accumulate": 1, "rtl.weight": 1}
    config, _ = parse(command(tmp_path, fields))
    run = align_setup.open_run(config, align_setup.validate(config), tmp_path / "rtl")
    pairs, plan = run.batches.schedule.batch(0).lengths, run.batches.schedule.batch(0)
    targets = pairs[plan.sides == 0].sum()  # English; the model has one block, and so has the head
    prediction = 2 * c.hidden_size * (c.hidden_size + c.vocab_size)  # the transform and the vocabulary
    head = c.flops(pairs.sum(axis=1) + 1, read=targets) + targets * prediction
    expected = 3 * (c.flops(lengths) + head)  # the last states of all tokens are read
    assert flops(run.method, c, run.batches, steps=1) == pytest.approx(expected)


def test_mistakes(command, tmp_path, error_line, monkeypatch):
    from jax.experimental import topologies

    def none(name, platform):
        raise RuntimeError("no\nlibtpu")

    monkeypatch.setattr(topologies, "get_topology_desc", none)
    for given, said in (
        ({"plan": "8"}, "config.plan=8: write true"),
        ({"plan": "v5e:2x4"}, "config.plan=v5e:2x4: the TPU compiler does not take it (no libtpu)"),
        ({"plan": "true", "init": None, "pretrain.steps": 3}, "config.plan: give config.init"),
    ):
        assert main(command(tmp_path, given)) == 2
        assert said in error_line()
