from __future__ import annotations

import pytest
import torch

from pocketdraft.export.kv_int8 import Int8KV, KVScales
from pocketdraft.export.step import Plain, StepKV

HEADS, SLOTS, SIZE, ROWS = 2, 16, 8, 3
SCALES = {4: KVScales.reaching(keys=4.0, values=3.0)}


def caches(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shapes = {"kv_cache_k_4": (1, HEADS, SLOTS, SIZE), "kv_cache_v_4": (1, HEADS, SIZE, SLOTS)}
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def both(context: int = SLOTS, start: int = 5) -> tuple[Int8KV, StepKV]:
    given = torch.tensor([start], dtype=torch.int32), torch.tensor([start + ROWS - 1], dtype=torch.int32), context
    return (
        Int8KV(caches(torch.int8), *given, Plain(), SCALES),
        StepKV(caches(torch.float32), *given, Plain()),
    )


def rows(seed: int) -> torch.Tensor:
    return torch.randn(1, HEADS, ROWS, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("context", "start"), [(SLOTS, 5), (64, 14)])  # the second is a ring that wraps around
def test_what_is_written_is_read_within_half_a_step(context, start):
    int8, plain = both(context, start)
    for kv in (int8, plain):
        kv.write(4, rows(0), rows(1))
    for ours, theirs, scale in zip(int8.read(4), plain.read(4), (SCALES[4].keys, SCALES[4].values), strict=True):
        assert (ours * scale - theirs).abs().max() <= scale * 0.5001
    assert all(tensor.dtype == torch.int8 for tensor in int8.tensors.values())


def test_attention_is_that_over_the_rounded_cache():
    int8, plain = both()
    key, value = rows(0), rows(1)
    int8.write(4, key, value)
    plain.write(
        4, (key / SCALES[4].keys).round() * SCALES[4].keys, (value / SCALES[4].values).round() * SCALES[4].values
    )
    query, mask = rows(2), torch.zeros(1, 1, ROWS, SLOTS)
    torch.testing.assert_close(
        int8.attend(query, *int8.read(4), mask), plain.attend(query, *plain.read(4), mask), rtol=1e-5, atol=1e-6
    )


def test_keys_beyond_their_scale_are_clipped_and_do_not_wrap_around():
    int8, _ = both()
    int8.write(4, torch.full((1, HEADS, ROWS, SIZE), 9.0), torch.full((1, HEADS, ROWS, SIZE), -9.0))
    keys, values = int8.read(4)
    assert keys.max() == 127
    assert values.min() == -127


def test_a_layer_that_shares_sees_what_was_written_after_it_was_read():
    int8, _ = both()
    assert not int8.read(4)[0].any()
    int8.write(4, rows(0), rows(1))
    assert int8.read(4)[0].any()
    assert int8.read(4)[0] is int8.read(4)[0]
