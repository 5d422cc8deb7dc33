"""The TPU's own compiler takes splash attention and its gradient, for a described topology and no TPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from medtune_jax.model.attention import attention
from medtune_jax.model.backends import choose
from medtune_jax.sharding import MESH_AXES, batch_sharding

devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
mesh = Mesh(np.array(devices).reshape(1, 1, 1, 4), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
backend = choose("auto", mesh, sequence=200, head_dim=64, dtype=jnp.bfloat16)

def described(heads):
    return jax.ShapeDtypeStruct((2, 200, heads, 64), jnp.bfloat16, sharding=batch_sharding(mesh))

def loss(q, k, v, segments):
    return attention(q, k, v, segments, implementation=backend.name).astype(jnp.float32).sum()

segments = jax.ShapeDtypeStruct((2, 200), jnp.int32, sharding=batch_sharding(mesh))
with jax.set_mesh(mesh):
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(described(4), described(2), described(2), segments)
    calls = step.compile().as_text().count('custom_call_target="tpu_custom_call"')
print(json.dumps({"backend": str(backend), "default": jax.default_backend(), "calls": calls}))
"""


def test_splash_and_its_gradient_compile_for_a_described_tpu():
    """Heads of width 64, 200 positions, four devices of which two share a key-value head."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is absent: pip install libtpu")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is attached, so two processes may hold the library
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"backend": "splash (on TPUs)", "default": "cpu", "calls": 3}, "forward, dq, and dk with dv"
