"""Which attention backend runs where, and why: decided once, from the devices of the mesh, before anything is traced.

| backend | runs on | what it is |
| --- | --- | --- |
| xla | everything | blocks of queries in plain operations (model/attention.py) |
| splash | TPU | jax's splash attention |
| cudnn | NVIDIA, Hopper or later, 16 bit | cuDNN's flash attention, packed layout |
| triton | NVIDIA, Ampere or later, 16 bit | jax's Pallas flash attention |

"auto" takes splash on TPU; cudnn, else triton on GPU; xla where none of them can run. The order of cudnn and triton is
our assumption; scripts/bench/gpu.sh times each by name. On attached devices a run asks `verified`: the kernel is run
once beside xla, and one that is wrong there is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.model.kernels import check, cudnn

Name = Literal["xla", "splash", "cudnn", "triton"]
_PREFERRED: dict[str, tuple[Name, ...]] = {"tpu": ("splash", "xla"), "gpu": ("cudnn", "triton", "xla"), "cpu": ("xla",)}
_DEVICES = {"tpu": "TPUs", "gpu": "GPUs", "cpu": "CPUs"}


@dataclass(frozen=True)
class Site:
    """What decides which backends can run.

    Attributes:
      platform: "cpu", "gpu" or "tpu"; capability: CUDA compute capability (9, 0), None where there is none.
      sequence, head_dim: sizes; dtype: of queries, keys and values.
      documents: the most documents that any sequence holds, None where it is not known.
      missing: kernels that this installation lacks or computes wrongly, to why.
    """

    platform: str
    capability: tuple[int, int] | None
    sequence: int
    head_dim: int
    dtype: Any
    documents: int | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    """A backend that can run, by the name that `attention` takes, and why it was taken.

    Attributes:
      asked: what was resolved ("auto", or a name), at `site`.
    """

    name: Name
    reason: str
    asked: str
    site: Site

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose(
    implementation: str, mesh: Mesh, *, sequence: int, head_dim: int, dtype: Any, documents: int | None = None
) -> Backend:
    """Returns the backend for the devices of `mesh`, which need not be attached; see `resolve`.

    Where they are not, what is compiled here will run elsewhere: cuDNN is taken to be there, and the reason says so.
    """
    device, attached = mesh.devices.flat[0], _attached(mesh)
    capability = _capability(device) if device.platform == "gpu" else None
    missing = _missing(attached) if capability is not None else {}
    site = Site(device.platform, capability, sequence, head_dim, jnp.dtype(dtype), documents, missing)
    backend = resolve(implementation, site)
    if backend.name == "cudnn" and not attached:
        return replace(backend, reason=f"{backend.reason}; taking cuDNN to be where it will run")
    return backend


def verified(backend: Backend, mesh: Mesh, *, heads: int, kv_heads: int) -> Backend:
    """Returns `backend` if its kernel computes the right thing on the devices of `mesh`, else the next that does.

    Each process runs it once on one of its devices (kernels/check.py), and all agree; a kernel that is wrong on one is
    used by none. Nothing is run for xla, nor where the devices are only described.

    Raises:
      UserError: the backend was configured by name, and is wrong.
    """
    while backend.name != "xla" and _attached(mesh):
        site = backend.site
        why = check.why_wrong(
            backend.name,
            next(device for device in mesh.devices.flat if device.process_index == jax.process_index()),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=site.head_dim,
            sequence=site.sequence,
            dtype=site.dtype,
        )
        if not np.any(process_allgather(np.array(why is not None))):
            return replace(backend, reason=f"{backend.reason}; computes what xla does here")
        missing = {**site.missing, backend.name: why or "it is wrong on the device of another process"}
        backend = resolve(backend.asked, replace(site, missing=missing))
    return backend


def resolve(implementation: str, site: Site) -> Backend:
    """Returns the backend that `implementation` ("auto", or a backend by name) stands for at `site`.

    Raises:
      UserError: a backend that was named cannot run there; says why and what to choose.
    """
    able: dict[Name, str | None] = {name: _why_not(name, site) for name in _PREFERRED[site.platform]}
    best = next(name for name, why in able.items() if why is None)  # xla is always able
    if implementation == "auto":
        refused = [f"not {name}: {why}" for name, why in able.items() if why is not None]
        return Backend(best, "; ".join([f"on {_DEVICES[site.platform]}", *refused]), implementation, site)
    for name in get_args(Name):
        if name == implementation:
            why = _why_not(name, site)
            if why is not None:
                raise UserError(f"model.attention={name} cannot run: {why}. Choose {best}, or auto.")
            return Backend(name, "as configured", implementation, site)
    raise UserError(
        f"model.attention: no backend '{implementation}'.{did_you_mean(implementation, ('auto', *get_args(Name)))}"
    )


def _why_not(name: Name, site: Site) -> str | None:
    """Returns why a backend cannot run at `site`, None if it can."""
    if name == "xla":
        return None
    if name == "splash":
        return site.missing.get(name) if site.platform == "tpu" else "it is a TPU kernel"
    if site.platform != "gpu" or site.capability is None:
        return "it is a kernel for NVIDIA GPUs"
    least = {"cudnn": (9, 0), "triton": (8, 0)}[name]
    if site.capability < least:
        return "compute capability {}.{} is below {}.{}".format(*site.capability, *least)
    if site.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in 16 bit, not in {site.dtype}"
    if site.head_dim > 128 or site.head_dim % 8 or site.head_dim < 16:
        return f"heads of width {site.head_dim} are not a multiple of 8 from 16 to 128"
    if name in site.missing:
        return site.missing[name]
    if name == "triton":
        return None
    most = cudnn.most_documents(site.sequence)
    if site.documents is not None and site.documents > most:
        return f"a sequence of {site.sequence} positions holds up to {site.documents} documents, and it takes {most}"
    return None


def _attached(mesh: Mesh) -> bool:
    """Returns whether the devices of `mesh` are real, and not those that a topology describes."""
    return mesh.devices.flat[0] in jax.devices()


def _missing(attached: bool) -> dict[str, str]:
    """Returns the GPU kernels that this installation lacks, to why; cuDNN itself is looked for where GPUs are."""
    found = {"cudnn": cudnn.why_not(library=attached)}
    if find_spec("jax.experimental.pallas.ops.gpu.attention") is None:
        found["triton"] = f"jax {jax.__version__} no longer has it"
    return {name: why for name, why in found.items() if why is not None}


def _capability(device: Any) -> tuple[int, int] | None:
    """Returns an NVIDIA GPU's compute capability; None for another maker's."""
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
