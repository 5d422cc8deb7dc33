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


# The files that take longest begin first, so that two processes end at about the same time (`--no-loadscope-reorder`).
_LONGEST = (
    *("train/test_grid.py", "train/test_processes.py", "train/test_kills.py", "test_readme.py", "train/test_best.py"),
    *("evaluate/test_every_source.py", "train/test_resume.py", "train/test_bad_step.py", "train/test_damage.py"),
    *("data_prep/test_mixture.py", "test_your_own_corpus.py", "test_tpu_compile.py", "train/test_lora_parity.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files in front, and keeps the order otherwise."""

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(REPOSITORY / "tests").as_posix()
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=rank)
