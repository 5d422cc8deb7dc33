"""What of each layer the forward pass keeps for the backward pass, by name.

| name | kept of a layer, per position | recomputed |
| --- | --- | --- |
| none | everything | nothing |
| dots | its input, the outputs of its seven projections and what splash attention names, on the device | the rest |
| offload | its input, in pinned host memory | the layer |
| full | its input, on the device | the layer |

Splash attention names its output and the logarithms of its denominators, which is all that its backward pass asks for
beside queries, keys and values. The other backends name nothing, so `dots` runs their forward pass again: the kernels
for GPUs do not let a caller name what they keep, and the plain one needs its scores, not its output.

None changes what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION = "attention"
_INPUT, _PROJECTION = "layer_input", "projection"
_policies = jax.checkpoint_policies
_POLICIES = {
    "dots": _policies.save_only_these_names(_PROJECTION, ATTENTION),
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": _policies.nothing_saveable,
}


def projected(y_BSo: jax.Array) -> jax.Array:
    """Returns y, known to the policies as the output of a projection."""
    return checkpoint_name(y_BSo, _PROJECTION)


def rematerialized(body: Callable[[jax.Array, Any], Any], name: str) -> Callable[[jax.Array, Any], Any]:
    """Returns the body (x_BSD, inputs) -> ... of a scan over layers under the policy `name`."""
    if name == "none":
        return body

    def named(x_BSD: jax.Array, inputs: Any) -> Any:
        return body(checkpoint_name(x_BSD, _INPUT), inputs)

    # a scan's body is not merged with its recomputation anyway, so the barrier against that would only cost
    return jax.checkpoint(named, policy=_POLICIES[name], prevent_cse=False)
