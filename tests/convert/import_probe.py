"""A process that imports a checkpoint and tells what it took.

    python import_probe.py FOLDER DTYPE BASE COORDINATOR COUNT INDEX

BASE: int8, nf4, or compute (not quantised). COUNT processes, split over fsdp; of one, the default device. Prints a JSON
object: `resident` bytes of its shards, `peak` of its anonymous memory (RssAnon, Python and JAX too) while importing and
hashing, sampled every millisecond, `before` it, `read` and `hashed` bytes of the files, `sha256` of the weights.
"""

import json
import os
import re
import sys
import threading
from pathlib import Path

import jax

from medtune_jax.config import MeshConfig
from medtune_jax.convert.hf_import import load_params, read_config, weights_sha256
from medtune_jax.sharding import make_mesh


class Peak(threading.Thread):
    """Samples anonymous memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.highest = anonymous()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.001):
            self.highest = max(self.highest, anonymous())

    def stop(self) -> None:
        self._done.set()
        self.join()


def anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found.group(1))


def count_bytes(name: str, counts: dict[str, int]) -> None:
    """Makes os.<name> add up what it reads."""
    original = getattr(os, name)

    def counting(*args):
        result = original(*args)
        counts[name] = counts.get(name, 0) + (result if isinstance(result, int) else len(result))
        return result

    setattr(os, name, counting)


def main(folder: str, dtype: str, base: str, coordinator: str, count: str, index: str) -> None:
    counts: dict[str, int] = {}
    for name in ("preadv", "pread"):
        count_bytes(name, counts)
    mesh = None
    if int(count) > 1:
        jax.distributed.initialize(coordinator, int(count), int(index))
        mesh = make_mesh(MeshConfig(fsdp=int(count)))
    jax.device_put(0.0).block_until_ready()
    peak = Peak()
    peak.start()
    quantize = None if base == "compute" else base
    params = jax.block_until_ready(load_params(folder, read_config(folder), dtype, mesh, quantize=quantize))
    sha256 = weights_sha256(folder)
    peak.stop()
    shards = [shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
    told = {"resident": sum(shards), "before": peak.first, "peak": peak.highest, "sha256": sha256}
    print(json.dumps({**told, "read": counts["preadv"], "hashed": counts["pread"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
