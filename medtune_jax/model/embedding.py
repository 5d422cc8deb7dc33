"""The lookup of token embeddings in a table that is split over devices.

Dimensions: B batch, S sequence, D model width, V vocabulary.

Left alone, the compiler copies the table, or all activations, to every device when both axes of the table are split.
Here each device reads its own columns of its own tokens' rows: what travels is the size of the activations.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from medtune_jax.sharding import BATCH_AXES, RULES, constrain, rows_divide


def embed(table_VD: jax.Array, tokens_BS: jax.Array, dtype: Any) -> jax.Array:
    """Returns table[tokens], [B, S, D] in `dtype`; the gradient of the table has the table's dtype.

    The cast follows the lookup, so that a token's occurrences are added up in the table's dtype.
    """
    if rows_divide(tokens_BS.shape[0]):
        x_BSD = jax.shard_map(
            lambda table_VD, tokens_BS: _local(table_VD, tokens_BS, dtype),
            in_specs=(PartitionSpec(RULES["vocab"], RULES["embed"]), PartitionSpec(BATCH_AXES)),
            out_specs=PartitionSpec(BATCH_AXES),
        )(table_VD, tokens_BS)
    else:
        x_BSD = table_VD[tokens_BS].astype(dtype)
    return constrain(x_BSD, "batch", "sequence", "act_embed")


def _local(table_VD: jax.Array, tokens_BS: jax.Array, dtype: Any) -> jax.Array:
    """One device's share: the rows of its fsdp group's tokens from its block of the table, then columns for rows."""
    group_BS = jax.lax.all_gather(tokens_BS, "fsdp", axis=0, tiled=True)
    row_BS = group_BS - jax.lax.axis_index("tensor") * table_VD.shape[0]
    mine_BS = (row_BS >= 0) & (row_BS < table_VD.shape[0])
    x_BSD = jnp.where(mine_BS[..., None], table_VD[jnp.where(mine_BS, row_BS, 0)], 0).astype(dtype)
    x_BSD = jax.lax.all_to_all(x_BSD, "fsdp", split_axis=0, concat_axis=2, tiled=True)
    return jax.lax.psum(x_BSD, "tensor")  # exact: one term is not 0
