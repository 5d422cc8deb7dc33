"""Updates of adapters on a frozen base, without a run folder."""

from typing import Any

import jax
from tiny_run import settings

from medtune_jax.config import Config, MeshConfig
from medtune_jax.data.loader import Batch
from medtune_jax.model.llama import LlamaConfig, Params, init_params, param_shardings
from medtune_jax.model.lora import abstract_adapter, init_adapter
from medtune_jax.sharding import make_mesh
from medtune_jax.train.feed import put
from medtune_jax.train.optimizer import Optimizer, make_optimizer
from medtune_jax.train.state import TrainState, init_state, shardings
from medtune_jax.train.step import make_train_step


def lora_settings(*args: Any, rank: int = 4, alpha: float = 8.0, **changes: Any) -> Config:
    """Returns tiny_run's settings with adapters; changes as dropout=0.1 (of model.lora) or group__leaf=value."""
    own = {name: changes.pop(name) for name in ("dropout", "targets", "rslora", "base", "path") if name in changes}
    return settings(*args, model__lora={"rank": rank, "alpha": alpha, **own}, **changes)


def base_params(model: LlamaConfig) -> Params:
    return init_params(jax.random.key(7), model)


def random_adapter(config: Config, model: LlamaConfig) -> Params:
    """Returns adapters whose b is not zero."""
    fresh = init_adapter(jax.random.key(1), model, config.model.lora)
    keys = iter(jax.random.split(jax.random.key(2), 99))
    return jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(next(keys), leaf.shape), fresh)


def run_lora_steps(
    config: Config,
    model: LlamaConfig,
    batches: list[Batch],
    *,
    base: Params | None = None,
    adapter: Params | None = None,
    mesh: MeshConfig | None = None,
    optimizer: Optimizer | None = None,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Does one update per batch, on one device or over `mesh`; returns the state and each update's metrics."""
    placed = make_mesh(mesh or MeshConfig(fsdp=1), jax.devices() if mesh else jax.devices()[:1])
    optimizer = optimizer or make_optimizer(config.optimizer, config.train.steps or len(batches))
    base = base_params(model) if base is None else base
    adapter = jax.device_get(random_adapter(config, model) if adapter is None else adapter)  # the state is donated
    with jax.set_mesh(placed):
        update: Any = make_train_step(config, model, optimizer, placed)
        frozen = jax.device_put(base, param_shardings(model, placed))
        adapter = jax.device_put(adapter, shardings(abstract_adapter(model, config.model.lora, placed)))
        state = init_state(adapter, config, model, optimizer, placed)
        seen = []
        for batch in batches:
            state, metrics = update(state, frozen, put(batch, placed))
            seen.append({name: float(value) for name, value in metrics.items()})
    return state, seen
