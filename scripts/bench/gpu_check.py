"""Does this system compute the right thing on the GPU at hand: the checks of scripts/bench/gpu.py.

    python scripts/bench/gpu_check.py --check=cudnn --out=cudnn.json
    python scripts/bench/gpu_check.py --check=runs --out=runs.json

An attention backend by name: its output and gradients beside the float32 XLA path, that no document sees another, its
time forward and backward at the shape of the benchmark. `runs`: `medtune train`'s own function on a tiny model, all
weights and adapters on bfloat16 and nf4 bases: the loss falls; a run that lost its last checkpoint resumes to the same
parameters.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from gpu_work import SHAPES, batches

_CHECK = flags.DEFINE_enum("check", "runs", ["cudnn", "triton", "xla", "runs"], "A backend, or runs.")
_SHAPE = flags.DEFINE_enum("shape", "llama2_7b", list(SHAPES), "The model whose attention is timed.")
_OUT = flags.DEFINE_string("out", None, "Where the findings go as JSON.", required=True)

_TOLERANCE = 2e-2  # relative L2 of bfloat16 beside float32; measured 3e-3 to 6e-3 for a right kernel elsewhere
_PACKS = 2
_REPEATS = 10
_STEPS = 8


def main(_: list[str]) -> None:
    findings: dict[str, Any] = {}

    def tell(**found: Any) -> None:
        findings.update(found)
        Path(_OUT.value).write_text(json.dumps(findings, indent=2) + "\n")

    try:
        check_runs(tell) if _CHECK.value == "runs" else check_attention(_CHECK.value, tell)
    except Exception as error:  # a kernel that cannot run here, or does not work: the report says so
        tell(error=f"{type(error).__name__}: {str(error)[:400]}")


def check_attention(name: str, tell: Callable[..., None]) -> None:
    """Tells `right` (parity and no leak), the distances, and `seconds` of forward and backward."""
    import jax
    import jax.numpy as jnp

    from medtune_jax.config import MeshConfig
    from medtune_jax.model import backends
    from medtune_jax.model.attention import attention
    from medtune_jax.sharding import make_mesh

    shape = SHAPES[_SHAPE.value]
    width = shape.hidden // shape.heads
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    segments_BS = next(batches(shape, _PACKS))["segment_ids"]
    chosen = backends.choose(
        name,
        mesh,
        sequence=shape.sequence,
        head_dim=width,
        dtype=jnp.bfloat16,
        documents=int(segments_BS.max()),
    )
    tell(backend=str(chosen), device=jax.devices()[0].device_kind)
    keys = jax.random.split(jax.random.key(0), 4)
    size = (_PACKS, shape.sequence, shape.heads, width)
    q, k, v, seed = (jax.random.normal(key, size, jnp.bfloat16) for key in keys)
    real_BS11 = (segments_BS > 0)[:, :, None, None]
    seed = jnp.where(real_BS11, seed, 0)  # padding's output is nobody's

    def both(implementation: str, dtype: Any) -> Callable[..., Any]:
        def run(q: Any, k: Any, v: Any, segments: Any) -> Any:
            out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, segments, implementation=implementation), q, k, v)
            return out, pull(seed.astype(dtype))

        def of(*x: Any) -> Any:
            return compiled(*(a.astype(dtype) for a in x), segments_BS)

        compiled = jax.jit(run)
        return of

    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        expected = both("xla", jnp.float32)(q, k, v)
    with jax.set_mesh(mesh):
        run = both(name, jnp.bfloat16)
        found = run(q, k, v)
        names = ("output", "d_q", "d_k", "d_v")
        pairs = zip(names, (found[0], *found[1]), (expected[0], *expected[1]), strict=True)
        distances = {what: distance(ours, theirs, real_BS11) for what, ours, theirs in pairs}
        first = (segments_BS == 1)[:, :, None, None]
        other = run(*(jnp.where(first, x, -x) for x in (q, k, v)))  # every other document changes
        leaks = not bool(jnp.array_equal(jnp.where(first, found[0], 0), jnp.where(first, other[0], 0)))
        right = not leaks and all(value < _TOLERANCE for value in distances.values())
        tell(right=right, leaks=leaks, distances=distances)
        seconds = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            jax.block_until_ready(run(q, k, v))
            seconds.append(time.perf_counter() - began)
        tell(seconds=statistics.median(seconds), packs=_PACKS)


def distance(ours: Any, theirs: Any, real: Any) -> float:
    """Returns the relative L2 distance where `real`."""
    import jax.numpy as jnp

    ours, theirs = (jnp.where(real, x.astype(jnp.float32), 0) for x in (ours, theirs))
    return float(jnp.linalg.norm((ours - theirs).ravel()) / jnp.linalg.norm(theirs.ravel()))


def check_runs(tell: Callable[..., None]) -> None:
    """Tells of each tiny run whether its loss fell, and of the resumed one how far its parameters are."""
    import jax
    import jax.numpy as jnp

    from medtune_jax.config import Config, LoraConfig
    from medtune_jax.convert.tiny import write_tiny_model
    from medtune_jax.tasks.rows import Row, write_rows
    from medtune_jax.train.load import load_model
    from medtune_jax.train.loop import train

    words = "fever gout cough heart lung bone skin liver with after the of severe mild acute"
    said = [" ".join(words.split()[i % 5 : i % 5 + 4 + i % 3]) for i in range(64)]
    rows = [Row("Repeat the text.", text, text, "gpu-check", id=str(i)) for i, text in enumerate(said)]
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        write_tiny_model(home / "model", [words, "### Instruction: Repeat the text. ### Input: ### Output:"])
        (home / "data").mkdir()
        write_rows(home / "data" / "train.parquet", rows)
        plain = Config()
        base = dataclasses.replace(
            plain,
            model=dataclasses.replace(plain.model, path=str(home / "model")),
            data=dataclasses.replace(plain.data, path=str(home / "data"), max_length=256),
            train=dataclasses.replace(plain.train, steps=_STEPS, batch_size=2),
            optimizer=dataclasses.replace(plain.optimizer, learning_rate=3e-3),
            checkpoint=dataclasses.replace(plain.checkpoint, every_steps=_STEPS // 2),
            evaluation=dataclasses.replace(plain.evaluation, every_steps=0),
            log=dataclasses.replace(plain.log, every_steps=1, tensorboard=False),
        )
        for name, lora in (
            ("full", LoraConfig()),
            ("lora", LoraConfig(rank=8)),
            ("qlora", LoraConfig(rank=8, base="nf4")),
        ):
            config = dataclasses.replace(base, model=dataclasses.replace(base.model, lora=lora))
            train(config, home / name)
            lines = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
            losses = [line["loss"] for line in lines if "loss" in line]
            tell(**{name: {"right": losses[-1] < losses[0], "losses": losses}})
            if name == "full":
                whole = load_model(home / name).params
                shutil.rmtree(home / name / "checkpoints" / str(_STEPS))  # as if it had ended before
                again = train(config, home / name)
                pairs = zip(jax.tree.leaves(load_model(home / name).params), jax.tree.leaves(whole), strict=True)
                furthest = max(float(jnp.abs(ours - theirs).max()) for ours, theirs in pairs)
                right = again.resumed_from == _STEPS // 2 and furthest < 1e-3
                tell(resumed={"right": right, "from": again.resumed_from, "largest_difference": furthest})


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    app.run(main)
