"""A finished run over eight devices, to be restored, damaged and resumed; its fixtures are in conftest.py."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny_run import GRID_MODEL, settings, write_data, write_model

from medtune_jax.config import Config
from medtune_jax.sharding import make_mesh
from medtune_jax.train.inputs import read_inputs
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.saved.checkpoints import Checkpoints
from medtune_jax.train.state import TrainState, abstract_state


def write_home(folder: Path) -> Path:
    """Writes a model whose dimensions eight devices divide, and rows."""
    write_model(folder / "model", GRID_MODEL)
    write_data(folder / "data", train=200, validation=0)
    return folder


def run_settings(home: Path, **changes: Any) -> Config:
    """Returns six steps over fsdp=8, with checkpoints 4 and 6 in the end."""
    changes = {"evaluation__every_steps": 0, "train__batch_size": 8, "mesh__fsdp": 8, **changes}
    return settings(home / "model", home / "data", **changes)


def restore(config: Config, workdir: Path) -> TrainState:
    """Returns the state that a run of `config` would go on from."""
    mesh = make_mesh(config.mesh)
    inputs = read_inputs(config, mesh)
    target = abstract_state(config, inputs.model, make_optimizer(config.optimizer, inputs.data.total_steps), mesh)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(target, config, inputs.identity)
    assert state is not None
    return state


def arrays(state: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]
