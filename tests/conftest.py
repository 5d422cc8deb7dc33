"""What every test shares: fake CPU devices, the compile cache, the path to real inputs."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora and checkpoints; tests that need it skip, with the reason, where it is absent."""
    folder = Path(os.environ.get("MEDTUNE_SHARED", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real inputs are absent: {folder} (set MEDTUNE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tpu_devices() -> Callable[..., list[Any]]:
    """A function from a topology, "v5e:2x2", to its devices, for the real TPU compiler; no TPU is needed.

    Tests that use it skip, with the reason, where libtpu is absent.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is absent: pip install libtpu (constraints.txt says which)")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server is asked what this machine is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it compiles only: no two processes share a TPU
    from jax.experimental import topologies

    def devices(name: str, **options: Any) -> list[Any]:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)

    return devices
