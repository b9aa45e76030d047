"""Collectives are read from HLO text as compilers write it."""

from ppa_jax.training.collectives import collective_bytes


def test_bytes_by_kind_of_plain_combined_and_asynchronous_collectives():
    hlo = """
      %ag = f32[16,8]{1,0} all-gather(%x), dimensions={0}
      %ar = (f32[10]{0}, bf16[4,4]{1,0}) all-reduce(%a, %b), to_apply=%add
      %s = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), dimensions={0}
      %d = f32[16,8]{1,0} all-gather-done(%s)
      %n = f32[99]{0} add(%all-gather.1, %y)
      %p = s32[] collective-permute(%z), source_target_pairs={{0,1}}
    """
    assert collective_bytes(hlo) == {
        "all-gather": [512, 512],
        "all-reduce": [40, 32],
        "collective-permute": [4],
    }
