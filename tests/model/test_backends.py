"""Which attention backend a mesh gets, and what a user is told who asked for another."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medtune_jax.config import Config, MeshConfig, ModelConfig
from medtune_jax.errors import UserError
from medtune_jax.model import backends
from medtune_jax.model.attention import attention
from medtune_jax.model.backends import Site, choose, resolve, verified
from medtune_jax.model.kernels import cudnn, triton
from medtune_jax.sharding import make_mesh

HOPPER = Site("gpu", (9, 0), sequence=4096, head_dim=128, dtype=jnp.dtype(jnp.bfloat16))
TPU = dataclasses.replace(HOPPER, platform="tpu", capability=None)
CPU = dataclasses.replace(HOPPER, platform="cpu", capability=None)


@pytest.mark.parametrize(
    ("site", "changes", "name", "reason"),
    [
        (TPU, {}, "splash", "on TPUs"),
        (TPU, {"dtype": jnp.dtype(jnp.float32), "head_dim": 8}, "splash", "on TPUs"),
        (CPU, {}, "xla", "on CPUs"),
        (HOPPER, {}, "cudnn", "on GPUs"),
        (HOPPER, {"documents": 64}, "cudnn", "on GPUs"),
        (HOPPER, {"documents": 65}, "triton", "holds up to 65 documents, and it takes 64"),
        (HOPPER, {"capability": (8, 0)}, "triton", "not cudnn: compute capability 8.0 is below 9.0"),
        (HOPPER, {"missing": {"cudnn": "cuDNN is not found"}}, "triton", "not cudnn: cuDNN is not found"),
        (HOPPER, {"missing": {"cudnn": "not found", "triton": "gone"}}, "xla", "not triton: gone"),
        (HOPPER, {"capability": (7, 5)}, "xla", "not triton: compute capability 7.5 is below 8.0"),
        (HOPPER, {"dtype": jnp.dtype(jnp.float32)}, "xla", "computes in 16 bit, not in float32"),
        (HOPPER, {"head_dim": 256}, "xla", "heads of width 256"),
        (HOPPER, {"head_dim": 8}, "xla", "heads of width 8"),
        (HOPPER, {"capability": None}, "xla", "kernel for NVIDIA GPUs"),
    ],
)
def test_auto_takes_the_fastest_that_can_run_and_says_why_not_the_others(
    site: Site, changes: dict[str, Any], name: str, reason: str
):
    backend = resolve("auto", dataclasses.replace(site, **changes))
    assert backend.name == name
    assert reason in backend.reason


@pytest.mark.parametrize("site", [TPU, CPU, HOPPER])
def test_xla_runs_everywhere(site: Site):
    assert str(resolve("xla", site)) == "xla (as configured)"


@pytest.mark.parametrize(
    ("name", "site", "words"),
    [
        ("splash", HOPPER, ["TPU kernel", "Choose cudnn"]),
        ("splash", CPU, ["TPU kernel", "Choose xla"]),
        ("cudnn", TPU, ["NVIDIA", "Choose splash"]),
        ("triton", CPU, ["NVIDIA", "Choose xla"]),
        ("cudnn", dataclasses.replace(HOPPER, capability=(8, 6)), ["8.6 is below 9.0", "Choose triton"]),
        ("cudnn", dataclasses.replace(HOPPER, documents=100), ["100 documents", "Choose triton"]),
        ("flash", TPU, ["'flash'", "splash"]),
    ],
)
def test_a_backend_named_where_it_cannot_run_is_the_users_error(name: str, site: Site, words: list[str]):
    with pytest.raises(UserError) as error:
        resolve(name, site)
    assert all(word in str(error.value) for word in ["model.attention", *words])


@pytest.mark.parametrize(("name", "site"), [("splash", TPU), ("cudnn", HOPPER), ("triton", HOPPER)])
def test_a_backend_named_where_it_can_run_is_taken(name: str, site: Site):
    assert str(resolve(name, site)) == f"{name} (as configured)"


def mesh_of(**device: Any) -> Any:
    return SimpleNamespace(devices=np.array([SimpleNamespace(**device)] * 4).reshape(2, 2))


def test_the_devices_of_the_mesh_decide_and_not_those_of_this_machine():
    """A mesh of described TPUs on a laptop: what is compiled for them is what will run on them."""
    sizes: dict[str, Any] = {"sequence": 128, "head_dim": 64, "dtype": jnp.bfloat16}
    assert choose("auto", mesh_of(platform="tpu"), **sizes).name == "splash"
    assert choose("auto", make_mesh(MeshConfig()), **sizes).name == "xla"
    ampere = choose("auto", mesh_of(platform="gpu", compute_capability="8.0"), **sizes)
    assert ampere.name == "triton" and "compute capability 8.0" in ampere.reason
    assert choose("auto", mesh_of(platform="gpu", compute_capability="gfx942"), **sizes).name == "xla"


def test_what_is_compiled_for_gpus_elsewhere_takes_cudnn_to_be_there_and_says_so():
    hopper = mesh_of(platform="gpu", compute_capability="9.0")
    backend = choose("auto", hopper, sequence=128, head_dim=64, dtype=jnp.bfloat16)
    assert backend.name == "cudnn" and "taking cuDNN to be where it will run" in backend.reason
    assert verified(backend, hopper, heads=4, kv_heads=2) == backend  # nothing can be run on what is described


# ------------------------------------------------------------------------------- a kernel is run before it is trusted


def plain(q: Any, k: Any, v: Any, segments: Any) -> Any:
    return attention(q, k, v, segments, implementation="xla")


def leaking(q: Any, k: Any, v: Any, segments: Any) -> Any:
    """By so little that its distance from the right one is within the tolerance."""
    return plain(q, k, v, segments) + 2.0**-6 * v.mean((1, 2), keepdims=True)


def sees_all(q: Any, k: Any, v: Any, segments: Any) -> Any:
    return plain(q, k, v, jnp.ones_like(segments))


def without_gradient(q: Any, k: Any, v: Any, segments: Any) -> Any:
    return plain(q, jax.lax.stop_gradient(k), v, segments)


def nan_on_padding(q: Any, k: Any, v: Any, segments: Any) -> Any:
    return jnp.where((segments > 0)[:, :, None, None], plain(q, k, v, segments), jnp.nan)


def raising(q: Any, k: Any, v: Any, segments: Any) -> Any:
    raise NotImplementedError("no such call\nin this cuDNN")


def check(asked: str, stand_ins: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Verifies for a Hopper GPU, on this CPU, with functions in the place of kernels."""
    for module, attend in stand_ins.items():
        monkeypatch.setattr(module, "attend", attend)
    site = dataclasses.replace(HOPPER, sequence=64, head_dim=16)
    return verified(resolve(asked, site), make_mesh(MeshConfig()), heads=4, kv_heads=2)


def test_a_kernel_that_computes_what_plain_operations_do_is_kept(monkeypatch: pytest.MonkeyPatch):
    assert str(check("auto", {cudnn: plain}, monkeypatch)) == "cudnn (on GPUs; computes what xla does here)"


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (leaking, "a document's output changes with what its neighbours hold"),
        (sees_all, "its output is .*% away"),
        (without_gradient, "its dk is 100.0% away"),
        (nan_on_padding, "its output is not finite"),
        (raising, "it fails on cpu: NotImplementedError: no such call$"),
    ],
)
def test_a_kernel_that_is_wrong_is_refused_with_the_reason(attend: Any, reason: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=rf"model\.attention=cudnn cannot run: {reason.rstrip('$')}.*Choose triton"):
        check("cudnn", {cudnn: attend}, monkeypatch)


def test_auto_passes_over_what_is_wrong_to_the_next_that_is_right(monkeypatch: pytest.MonkeyPatch):
    backend = check("auto", {cudnn: sees_all, triton: plain}, monkeypatch)
    assert backend.name == "triton" and "not cudnn: its output is" in backend.reason
    backend = check("auto", {cudnn: raising, triton: raising}, monkeypatch)
    assert backend.name == "xla" and backend.reason.count("NotImplementedError") == 2


def test_a_kernel_that_is_wrong_for_one_process_is_used_by_none(monkeypatch: pytest.MonkeyPatch):
    told = iter([[False, True], [False, False]])
    monkeypatch.setattr(backends, "process_allgather", lambda own: np.array(next(told)))
    monkeypatch.setattr(backends.check, "why_wrong", lambda *_, **__: None)
    backend = check("auto", {}, monkeypatch)
    assert backend.name == "triton" and "not cudnn: it is wrong on the device of another process" in backend.reason


def test_a_run_verifies_the_backend_that_it_chose(monkeypatch: pytest.MonkeyPatch):
    from medtune_jax.train import loop

    asked = []
    monkeypatch.setattr(loop, "attention_backend", lambda *_, documents: documents)
    monkeypatch.setattr(loop, "verified", lambda chosen, mesh, **heads: asked.append((chosen, heads)))
    inputs: Any = SimpleNamespace(
        evaluation=[{"segment_ids": np.array([[1, 2, 3]])}],
        data=SimpleNamespace(documents=2),
        model=SimpleNamespace(num_heads=8, num_kv_heads=4),
    )
    loop._attention_backend(Config(), inputs, make_mesh(MeshConfig()))
    assert asked == [(3, {"heads": 8, "kv_heads": 4})]


def test_the_step_resolves_its_own_configuration(monkeypatch: pytest.MonkeyPatch):
    from medtune_jax.train.step import attention_backend

    config = dataclasses.replace(Config(), model=ModelConfig(path="model", attention="splash"))
    model: Any = SimpleNamespace(head_dim=64)
    with pytest.raises(UserError, match=r"model\.attention=splash cannot run: it is a TPU kernel"):
        attention_backend(config, model, make_mesh(MeshConfig()))
    assert attention_backend(config, model, mesh_of(platform="tpu")).name == "splash"
