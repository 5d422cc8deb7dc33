"""The model as a Flax Linen module, for those who build on one: the same table, the same forward."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from medtune_jax.model.llama import LlamaConfig, Parameter, Params, forward, initializer, logits, parameter_rows


class Llama(nn.Module):
    """The same model as a Flax Linen module: `Llama(config).init(key, tokens)`, `.apply({"params": params}, tokens)`.

    Returns float32 logits [B, S, V]; its parameter tree is the one of model/llama.py.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, tokens_BS: jax.Array) -> jax.Array:
        groups: dict[str, tuple[Parameter, ...]] = {}
        for row in parameter_rows(self.config):
            groups[row.keys[0]] = (*groups.get(row.keys[0], ()), row)
        params = {name: _Declare(self.config, rows, 1, name=name)() for name, rows in groups.items()}
        positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        hidden_BSD = forward(params, self.config, tokens_BS, positions_BS=positions_BS)
        return logits(params, self.config, hidden_BSD)


class _Declare(nn.Module):
    """Declares the table's rows below one name of the tree."""

    config: LlamaConfig
    rows: tuple[Parameter, ...]
    depth: int

    @nn.compact
    def __call__(self) -> Params:
        tree: Params = {}
        for key in dict.fromkeys(row.keys[self.depth] for row in self.rows):
            below = tuple(row for row in self.rows if row.keys[self.depth] == key)
            if len(below[0].keys) == self.depth + 1:
                tree[key] = self.param(key, initializer(below[0], self.config), below[0].shape(self.config))
            else:
                tree[key] = _Declare(self.config, below, self.depth + 1, name=key)()
        return tree
