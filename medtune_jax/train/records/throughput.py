"""How much arithmetic a token of training takes, and how much of a device's peak that is. Pure formulas.

Model FLOPs utilisation (MFU), as Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B) define it: the observed
tokens per second over those of a machine that did nothing but the model's matrix products, at its peak rate. Per token,
forward and backward,

    6 N + 6 L HE S                all weights trained
    4 N + 6 A + 6 L HE S          adapters trained (A weights) on N frozen ones

where N counts the weights that multiply activations: the projections and the output projection, not the embedding,
which is looked up; S is the length of a training sequence (a pack), L layers, HE heads x width. A product takes two
operations per weight going forward and four going back, of which two are the gradient of the weight: frozen ones have
none. Attention is causal: half of PaLM's 12 L HE S, as MaxText counts it too.

What the formula credits by convention, so that figures can be laid beside those of others: every position of the batch,
padding included; the output projection at every position, though the loss here computes it at loss tokens only; the
whole causal triangle of a pack, though documents do not attend one another. What it does not credit: recomputation
(`model.remat`), norms, softmax, the optimizer. The peak is that of dense bfloat16 whatever the precision policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax

from medtune_jax.config import LoraConfig
from medtune_jax.model.llama import LlamaConfig, parameter_rows
from medtune_jax.model.lora import abstract_adapter

_FORWARD, _ACTIVATION_GRADIENT, _WEIGHT_GRADIENT = 2, 2, 2  # operations per weight and token

# Peak FLOP/s of one JAX device in bfloat16, dense, without sparsity. The longest name that begins a kind holds.
# TPU: https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "peak compute per chip"; a chip of these is one device.
# NVIDIA: the product's datasheet; where it prints the figure with sparsity, half of that.
PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989.4e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA GH200": 989.4e12,
    "NVIDIA H200": 989.4e12,  # SXM
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
}


def matmul_parameters(model: LlamaConfig) -> int:
    """Returns N: weights of the projections and of the output projection (the embedding where the two are tied)."""
    projections = (row for row in parameter_rows(model) if row.path.endswith("_proj/kernel"))
    return sum(math.prod(row.shape(model)) for row in projections) + model.hidden_size * model.vocab_size


def flops_per_token(model: LlamaConfig, lora: LoraConfig, sequence: int) -> float:
    """Returns the FLOPs of a token's forward and backward pass by the formula above; `sequence` is S."""
    attention = 6 * model.num_layers * model.num_heads * model.head_dim * sequence
    weights = matmul_parameters(model)
    if not lora.rank:
        return float((_FORWARD + _ACTIVATION_GRADIENT + _WEIGHT_GRADIENT) * weights + attention)
    adapters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_adapter(model, lora)))
    trained = (_FORWARD + _ACTIVATION_GRADIENT + _WEIGHT_GRADIENT) * adapters
    return float((_FORWARD + _ACTIVATION_GRADIENT) * weights + trained + attention)


def peak_flops(kind: str) -> float | None:
    """Returns the peak FLOP/s of a device by its `device_kind`; None where it is not known (a CPU's is not)."""
    names = [name for name in PEAK_FLOPS if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return PEAK_FLOPS[max(names, key=len)] if names else None


@dataclass(frozen=True)
class Work:
    """What an update computes on.

    Attributes:
      flops_per_token: of forward and backward, per position of the batch.
      devices: all of the mesh, whatever process they belong to.
      peak_flops: of one device per second; None where it is not known.
    """

    flops_per_token: float
    devices: int
    peak_flops: float | None

    def mfu(self, tokens_per_second: float) -> float | None:
        """Returns the model FLOPs utilisation, in [0, 1], of so many positions per second over all devices."""
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.devices * self.peak_flops)


def device_memory() -> int | None:
    """Returns the most bytes in use so far on any device of this process; None where the backend does not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else None
