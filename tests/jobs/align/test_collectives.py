"""Collectives are read from HLO text as compilers write it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.jobs.align.collectives import Collective, collectives


def test_bytes_by_kind_of_plain_combined_and_asynchronous_collectives():
    hlo = """
      %ag = f32[16,8]{1,0} all-gather(%x), dimensions={0}
      %ar = (f32[10]{0}, bf16[4,4]{1,0}) all-reduce(%a, %b), to_apply=%add
      %s = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), dimensions={0}
      %d = f32[16,8]{1,0} all-gather-done(%s)
      %rs = ((f32[1024]{0}), f32[128]{0}) reduce-scatter-start(%x), replica_groups=[1,8]<=[8], dimensions={0}
      %two = ((f32[2]{0}, bf16[3]{0}), (f32[16]{0}, bf16[24]{0})) all-gather-start(%x, %y), dimensions={0}
      %m = (s32[5]{0}, s32[5]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1}}
      %n = f32[99]{0} add(%all-gather.1, %y)
      %p = s32[] collective-permute(%z), source_target_pairs={{0,1}}
    """
    assert [(x.kind, x.bytes) for x in collectives(hlo)] == [
        ("all-gather", 512), ("all-gather", 512), ("reduce-scatter", 512), ("all-gather", 64), ("all-gather", 48),
        ("all-reduce", 40), ("all-reduce", 32), ("collective-permute", 20), ("collective-permute", 4),
    ]  # fmt: skip


def test_what_a_device_sends_by_the_groups():
    hlo = """
      %a = f32[100]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
      %b = f32[10]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
      %c = f32[40]{0} all-gather(%x), replica_groups=mesh['x'=4,'y'=2] {'x','y'}, dimensions={0}
      %d = f32[5]{0} all-reduce(%x), to_apply=%add
    """
    sent = {x.bytes: x.sent for x in collectives(hlo)}
    assert sent == {400: 2 * 400 * 3 / 4, 40: 40 * 3, 160: 160 * 7 / 8, 20: 2 * 20}


def test_in_loops_every_turn_counts():
    """A gather in a loop of six, in a loop of three: the compiled program has it once."""
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    split, whole = NamedSharding(mesh, P(None, "data")), NamedSharding(mesh, P())

    def layer(x, w):
        return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

    def turns(w, x):
        return jax.lax.scan(lambda x, _: (jax.lax.scan(layer, x, w)[0], None), x, None, length=3)[0]

    w = jax.device_put(np.ones((6, 16, 16), np.float32), split)
    x = jax.device_put(np.ones((8, 16), np.float32), NamedSharding(mesh, P("data")))
    hlo = jax.jit(turns).lower(w, x).compile().as_text()
    assert collectives(hlo) == [Collective("all-gather", 16 * 16 * 4, 4, 18)]


def test_as_the_compiler_of_tpus_writes_it():
    """A gather that begins in one fusion, runs beside a second, ends in a third; a fused reduce-scatter; a loop whose
    turns stand in its condition alone."""
    hlo = """
%begin (p: bf16[8,4]) -> (bf16[8,4], bf16[64,4]) {
  %g.1 = bf16[64,4]{1,0:T(8,128)} all-gather(%p), replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}
  ROOT %c.1 = (bf16[8,4], bf16[64,4]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}
%beside (p: bf16[8,4]) -> (f32[2], bf16[64,4]) {
  %g.2 = bf16[64,4]{1,0:T(8,128)} all-gather(%p), replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}
  ROOT %t = (f32[2], bf16[64,4]) tuple(%y, %g.2)
}
%end (p: bf16[8,4]) -> bf16[64,4] {
  %g.3 = bf16[64,4]{1,0:T(8,128)} all-gather(%p), replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}
  ROOT %c.2 = bf16[64,4] custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.1 (p: f32[80]) -> f32[10] {
  %r = f32[80]{0:T(128)} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %s = f32[10]{0} dynamic-slice(%r, %at), dynamic_slice_sizes={10}
}
%condition (state: (s32[], f32[6])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %state = (s32[]{:T(128)}, f32[6]) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}
%body (state: (s32[], f32[6])) -> (s32[], f32[6]) {
  %sum = f32[6]{0} all-reduce(%x), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
}
ENTRY %main (a: f32[80]) -> f32[10] {
  %f.1 = (bf16[8,4], bf16[64,4]) fusion(%w), kind=kCustom, calls=%begin
  %f.2 = (f32[2], bf16[64,4]) fusion(%f.1), kind=kOutput, calls=%beside
  %f.3 = bf16[64,4] fusion(%f.2), kind=kCustom, calls=%end
  %loop = (s32[], f32[6]) while(%first), condition=%condition, body=%body
  ROOT %f.4 = f32[10]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert collectives(hlo) == [
        Collective("all-gather", 512, 8, 1), Collective("reduce-scatter", 40, 8, 1), Collective("all-reduce", 24, 8, 4)
    ]  # fmt: skip
