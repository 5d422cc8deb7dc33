"""Precision policies by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from medtune_jax.config import Config


class Precision(NamedTuple):
    """A policy. What is trained, its gradients' sum and the second moment are float32 in each."""

    compute_dtype: Any  # of activations, of frozen weights, and of parameters as matmuls read them
    matmul: str  # jax.default_matmul_precision


PRECISIONS = {
    "float32": Precision(jnp.float32, "highest"),
    "bf16_compute": Precision(jnp.bfloat16, "default"),
}


def compute_dtype(config: Config) -> Any:
    """Returns the dtype of activations under the policy of `config`."""
    return PRECISIONS[config.train.precision].compute_dtype
