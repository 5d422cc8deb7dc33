"""The mesh that a model is decoded on, as a user asks for it."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.generate.weights import decoding_mesh
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.processes import barrier
from medtune_jax.sharding import MESH_AXES, count_slices, make_mesh


def parse_mesh(asked: str) -> MeshConfig | None:
    """Returns the axes of "data=2,tensor=4" (those not named are 1; -1 once = all that remain); None for auto and none.

    Raises:
      UserError: not of that form.
    """
    if asked in ("auto", "none"):
        return None
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in asked.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in MESH_AXES:
            raise UserError(f"--mesh={asked}: no axis is called '{axis}'.{did_you_mean(axis, MESH_AXES)}")
        if not size.removeprefix("-").isdecimal():
            raise UserError(f"--mesh={asked}: the size of '{axis}' is a number, as in data=2,tensor=4; or auto, none.")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def mesh_for(asked: str, config: LlamaConfig) -> Mesh | None:
    """Returns the mesh that `asked` means for a model of this architecture; None = one device.

    `auto`: all devices of all processes, as `decoding_mesh` shares them out; alone, a device needs no mesh. `none`: the
    first device. Else see `parse_mesh`. Of several processes all call it: they meet here, see `_meet`.

    Raises:
      UserError: not of that form, or sizes that the devices or the model's dimensions do not divide by; `none` with
        several processes.
    """
    sizes = parse_mesh(asked)
    if sizes is None and asked == "none" and jax.process_count() > 1:
        raise UserError(f"--mesh=none is one device, and there are {jax.process_count()} processes: start one.")
    if sizes is None and (asked == "none" or jax.device_count() == 1):
        return None
    if sizes is None:
        slices = count_slices(jax.devices())
        slices = slices if jax.device_count() % slices == 0 else 1
        mesh = decoding_mesh(make_mesh(MeshConfig(dcn_data=slices)), config)
    else:
        mesh = make_mesh(sizes)
        _check_divides(asked, mesh.shape["tensor"], config)
    if jax.process_count() > 1:
        _meet(mesh)
    return mesh


def _check_divides(asked: str, tensor: int, config: LlamaConfig) -> None:
    heads = {"num_key_value_heads": config.num_kv_heads} if config.num_kv_heads > tensor else {}
    sizes = {"num_attention_heads": config.num_heads, "intermediate_size": config.intermediate_size, **heads}
    indivisible = [f"{name} ({size})" for name, size in sizes.items() if size % tensor]
    if config.padded_vocab % tensor:
        indivisible.append(f"the vocabulary, padded to {config.padded_vocab},")
    if indivisible:
        raise UserError(
            f"--mesh={asked}: tensor={tensor} does not divide {' and '.join(indivisible)} of this model. "
            "Choose another size, or --mesh=auto."
        )


def _meet(mesh: Mesh) -> None:
    """Has every group of devices that the mesh's axes make join hands once, while all processes are here.

    On the CPU, Gloo connects a group at its first collective, and gives up where its members come more than 30 s apart;
    no setting changes that. Later, one process may still read or compile while another is done.
    """
    barrier("mesh")
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    groups = [group for count in range(1, len(axes) + 1) for group in itertools.combinations(axes, count)]

    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    def together(one: jax.Array) -> jax.Array:
        for group in groups:
            one = jax.lax.pmax(one, group)
        return one

    with jax.set_mesh(mesh):
        jax.block_until_ready(jax.jit(together)(jnp.ones(())))
