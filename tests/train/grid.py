"""The cells over which the numbers of training must agree, and the program that runs them.

A cell does four updates and saves after the second. Then it takes up what another cell saved, on its own devices, and
does the last two updates from there.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from kills import REPOSITORY
from tiny_run import GRID_MODEL, ner_rows, settings
from together import PATIENCE, free_port

from medtune_jax.config import Config, MeshConfig
from medtune_jax.data.encode import encode_rows
from medtune_jax.data.loader import Batch, make_batch
from medtune_jax.data.packing import pack
from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.model.llama import abstract_params, init_params
from medtune_jax.model.lora import init_adapter
from medtune_jax.processes import is_first, joined
from medtune_jax.sharding import make_mesh
from medtune_jax.train.feed import put_rows
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.saved.checkpoints import Checkpoints
from medtune_jax.train.saved.formats import Identity
from medtune_jax.train.state import abstract_state, init_state
from medtune_jax.train.step import make_train_step
from medtune_jax.train.trainable import abstract_trainable

ROWS = 32  # of an update; so many sequences too, the last ones empty where rows are packed
UPDATES, SAVED = 4, 2
MESHES = {
    "one": MeshConfig(fsdp=1),
    "data": MeshConfig(data=8, fsdp=1),
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(fsdp=1, tensor=8),
    "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
}
FACTORS = {
    "tuning": ("full", "lora"),
    "rows": ("padded", "packed"),
    "accumulation": (1, 4),
    "mesh": tuple(MESHES),
    "processes": (1, 2),
}
_IDENTITY = Identity(base_weights="", tokenizer="", template="", data="", model={})


class Cell(NamedTuple):
    tuning: str
    rows: str
    accumulation: int
    mesh: str
    processes: int

    @property
    def name(self) -> str:
        return "-".join(map(str, self))

    @property
    def on_one_device(self) -> "Cell":
        return self._replace(mesh="one", processes=1)

    @property
    def reference(self) -> "Cell":
        """The cell that this one must agree with."""
        return Cell(self.tuning, "padded", 1, "one", 1)


Job = tuple[Cell, bool, Cell | None]  # a cell, whether from the beginning, and what it takes up


def every_cell() -> list[Cell]:
    """All combinations but two processes on one device."""
    cells = (Cell(*values) for values in product(*FACTORS.values()))
    return [cell for cell in cells if cell.processes == 1 or cell.mesh != "one"]


def pairs(cell: Cell) -> set[tuple[Any, ...]]:
    """The pairs of values of different factors that a cell holds."""
    return set(combinations(cell._asdict().items(), 2))


def cover() -> list[Cell]:
    """Few cells that hold every pair that any cell holds: greedily the one with most new ones, the first of equals."""
    cells, chosen = every_cell(), []
    left = set().union(*map(pairs, cells))
    while left:
        chosen.append(max(cells, key=lambda cell: len(pairs(cell) & left)))
        left -= pairs(chosen[-1])
    return chosen


def with_references(cells: Sequence[Cell]) -> list[Cell]:
    """`cells`, and those on one device that they are compared with or go on from."""
    return list(dict.fromkeys([*cells, *(c.reference for c in cells), *(c.on_one_device for c in cells)]))


def origin(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """What `cell` takes up: the same run of one device; on one device, one of `cells` over several, if there is one."""
    if cell.mesh != "one":
        return cell.on_one_device
    return next((other for other in cells[::-1] if other != cell and other.on_one_device == cell), None)


def config_of(cell: Cell) -> Config:
    lora = {"rank": 4, "alpha": 8.0} if cell.tuning == "lora" else {}
    return settings(
        model__lora=lora,
        data__packing=cell.rows == "packed",
        train__batch_size=ROWS,
        train__accumulation=cell.accumulation,
        train__steps=UPDATES,
        train__decision_weight=3.0,
        optimizer__warmup_steps=0,
    )


@cache
def encoded_rows(tokenizer: Path) -> Any:
    rows = ner_rows(UPDATES * ROWS, 0)
    return encode_rows(load_tokenizer(tokenizer), get_template("medtuned_train"), rows, decision_weight=3.0)[0]


def rows_of_update(cell: Cell, tokenizer: Path, update: int, rows: slice) -> Batch:
    """Returns sequences `rows` of an update: the same ROWS documents, one in each or packed."""
    encoded = encoded_rows(tokenizer)
    members = np.arange(update * ROWS, (update + 1) * ROWS)
    length = config_of(cell).data.max_length
    packs = pack(encoded.lengths, length, members) if cell.rows == "packed" else [(int(i),) for i in members]
    return make_batch(encoded, packs[rows], len(range(ROWS)[rows]), length, length)


def run(cell: Cell, tokenizer: Path, folder: Path, *, fresh: bool = True, start: Cell | None = None) -> None:
    """Runs a cell from the beginning, if `fresh`, and from what `start` saved, if given.

    Writes <folder>/<cell>.npz and <folder>/<cell>.moved.npz: losses; state<i>, the leaves of what was saved or taken
    up; final<i>, the parameters at the end.
    """
    config, optimizer = config_of(cell), make_optimizer(config_of(cell).optimizer, UPDATES)
    mesh = make_mesh(MESHES[cell.mesh], jax.devices()[:1] if cell.mesh == "one" else jax.devices())
    with jax.set_mesh(mesh):
        update = make_train_step(config, GRID_MODEL, optimizer, mesh)
        base = _placed(init_params(jax.random.key(7), GRID_MODEL), abstract_params(GRID_MODEL, jnp.float32, mesh))
        frozen = base if cell.tuning == "lora" else {}

        def finish(state: Any, name: str, checkpoints: Checkpoints | None) -> None:
            losses, found = [], {} if checkpoints else _leaves(state)
            for step in range(int(state.step), UPDATES):
                if checkpoints and step == SAVED:
                    found = _leaves(state)
                    checkpoints.save(step, state, config, _IDENTITY)
                batch = put_rows(partial(rows_of_update, cell, tokenizer, step), ROWS, mesh)
                state, metrics = update(state, frozen, batch)
                losses.append([float(metrics[name]) for name in ("loss", "weighted_loss", "grad_norm")])
            found |= {f"final{i}": leaf for i, leaf in enumerate(jax.tree.leaves(_whole(state.params)))}
            if is_first():
                np.savez(folder / f"{name}.npz", losses=np.array(losses), **found)

        if fresh:
            begun = base
            if cell.tuning == "lora":
                adapter = init_adapter(jax.random.key(1), GRID_MODEL, config.model.lora)
                begun = _placed(adapter, abstract_trainable(config, GRID_MODEL, mesh))
            with Checkpoints(folder / cell.name) as checkpoints:
                finish(init_state(begun, config, GRID_MODEL, optimizer, mesh), cell.name, checkpoints)
        if start is not None:
            with Checkpoints(folder / start.name) as checkpoints:
                abstract = abstract_state(config, GRID_MODEL, optimizer, mesh)
                state = checkpoints.restore(abstract, config, _IDENTITY)
            assert state is not None and int(state.step) == SAVED
            finish(state, f"{cell.name}.moved", None)


def _placed(tree: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place.sharding, np.asarray(x).__getitem__), tree, places
    )


def _whole(tree: Any) -> Any:
    """The arrays as every process sees them whole."""
    return jax.tree.map(lambda x: process_allgather(x, tiled=True) if jax.process_count() > 1 else np.asarray(x), tree)


def _leaves(state: Any) -> dict[str, np.ndarray]:
    return {f"state{i}": leaf for i, leaf in enumerate(jax.tree.leaves(_whole(state)))}


def run_jobs(jobs: Sequence[Job], processes: int, tokenizer: Path, folder: Path) -> None:
    """Runs `jobs` in one process of eight devices, or in two of four each; fails with their output."""
    environment = {
        **os.environ,
        # Compiling is nearly all of the work; what is compiled runs for milliseconds.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes} --xla_backend_optimization_level=0",
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent))),
    }
    port = free_port()
    logs = [folder / f"process{index}.log" for index in range(processes)]
    started = []
    for index, path in enumerate(logs):
        command = [sys.executable, __file__, str(index), str(processes), str(port), str(tokenizer), str(folder)]
        with path.open("w") as output:
            started.append(
                subprocess.Popen([*command, json.dumps(jobs)], stdout=output, stderr=output, env=environment)
            )
    try:
        statuses = [process.wait(PATIENCE + 60 * len(jobs)) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(statuses), "\n".join(path.read_text()[-4000:] for path in logs)


def distances(tree: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest relative L2 distance of the first array from the second of any pair."""
    return max(math.sqrt(((a - b) ** 2).sum() / max(1e-30, (b**2).sum())) for a, b in tree)


def _main(index: str, processes: str, port: str, tokenizer: str, folder: str, told: str) -> None:
    with joined("grid", f"127.0.0.1:{port}", int(processes), int(index), timeout=120):
        for cell, fresh, start in json.loads(told):
            taken_up = None if start is None else Cell(*start)
            run(Cell(*cell), Path(tokenizer), Path(folder), fresh=fresh, start=taken_up)


if __name__ == "__main__":
    _main(*sys.argv[1:])
