"""Cutting the file list into shards of nearly equal cost."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

COST_PER_FILE: Final = 16 * 1024
"""What a file costs beside its bytes, in bytes: opening, closing and its share of messages take some 50 µs, in
which a core would read and count 16 KiB."""


def cut(sizes: pa.Array | pa.ChunkedArray, shards: int) -> pa.Array:
    """Return the shard (int32) of each file, given the sizes (int64, bytes) in the order of the plan.

    Shards are contiguous and of nearly equal cost: a file belongs to the shard in which the middle of its
    cost lies, so no shard differs from its equal share by more than the cost of one file (half of it at
    either end).
    """
    costs = sizes.to_numpy().astype(np.float64) + COST_PER_FILE
    if not len(costs):
        return pa.array([], pa.int32())
    ends = np.cumsum(costs)
    middles = ends - costs / 2
    found = np.minimum(middles * shards / ends[-1], shards - 1).astype(np.int32)
    return pa.array(found)
