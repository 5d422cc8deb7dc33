"""A model to run: from a Hugging Face directory or from a run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medtune_jax.config import LoraConfig, MeshConfig
from medtune_jax.config_values import from_dict, read_json
from medtune_jax.convert.hf_import import (
    check_template,
    load_params,
    read_config,
    read_template,
    warn_of_further_ends,
    weights_sha256,
)
from medtune_jax.data.tokenizer import Tokenizer, check_vocab, load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, Params, abstract_params
from medtune_jax.model.lora import abstract_adapter, merge
from medtune_jax.sharding import make_mesh
from medtune_jax.train.saved.checkpoints import Checkpoints

Placing = Mesh | Callable[[LlamaConfig], Mesh | None] | None  # a mesh, or what gives it for an architecture


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and what belongs to it.

    Attributes:
      params: the tree of model/llama.py.
      config, tokenizer: its own.
      template: the template that it was tuned with; None where its folder names none, or by force_template.
      sha256: identity of the weights; for a run, of what it was made from, its step and its checksums.
      lora: settings of the adapters that were merged into params; None where there were none.
      mesh: over which params lie; None = one device.
    """

    params: Params
    config: LlamaConfig
    tokenizer: Tokenizer
    template: str | None
    sha256: str
    lora: LoraConfig | None = None
    mesh: Mesh | None = None


def load_model(
    path: str | Path,
    dtype: Any = "float32",
    mesh: Placing = None,
    max_positions: int | None = None,
    *,
    force_template: bool = False,
) -> LoadedModel:
    """Loads a Hugging Face directory, or the newest checkpoint of a run folder (parameters only); RUN/best is one too.

    The adapters of a LoRA run are merged into its base, which is read from the run's model.path: W + scale a b in
    float32, then rounded to `dtype`. Where the base was quantised, W are the dequantised weights, which are those that
    the adapters were trained with (PEFT merges so too, and then quantises the sum again; here it is not).

    Every parameter is read straight into its shards: no device and no host ever holds the whole of what is split. The
    float32 of a run is read, verified and cast leaf by leaf.

    mesh: or a function from the architecture to it; None = one device.
    max_positions replaces the checkpoint's own where given; raising it is warned of. force_template: where this version
    does not have the model's template as it was, give None for it and no error.

    Raises:
      UserError: `path` is neither, its files are missing, damaged or do not belong together, its template is not the
        one of this version, or a LoRA run's base is absent or another.
    """
    folder = Path(path)
    dtype = jnp.dtype(dtype)
    if (folder / "checkpoints").is_dir():
        return _load_run(folder, dtype, mesh, max_positions, force_template)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder} is a PEFT adapter, not a model. Give the run that it was exported from, or merge it into "
                "its base with PEFT (merge_and_unload); --config.model.lora.path goes on training from it."
            )
        raise UserError(f"No model at {folder}: it is neither a Hugging Face directory nor a run folder.")
    config = read_config(folder, max_positions)
    tokenizer = load_tokenizer(folder)
    check_vocab(tokenizer, config.vocab_size)
    warn_of_further_ends(folder, tokenizer.eos_id)
    template = read_template(folder, force=force_template)
    placed = _placed(mesh, config)
    params = load_params(folder, config, dtype, placed)
    return LoadedModel(params, config, tokenizer, template, weights_sha256(folder), mesh=placed)


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """The adapters of a run and what belongs to them.

    Attributes:
      params: the tree of model/lora.py, float32; lora: its settings.
      base: folder of the base weights as the run knows it; base_sha256: their identity.
      config, tokenizer, template, sha256: as of LoadedModel.
    """

    params: Params
    lora: LoraConfig
    base: Path
    base_sha256: str
    config: LlamaConfig
    tokenizer: Tokenizer
    template: str | None
    sha256: str


def load_adapter(run: str | Path) -> LoadedAdapter:
    """Loads the adapters of a run's newest checkpoint; the base weights are not touched.

    Raises:
      UserError: `run` is no run folder, its run tunes all weights, or it is damaged.
    """
    folder = Path(run)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} is no run folder, and only a run has an adapter to take out.")
    found = _read_run(folder, jnp.float32, None, None)
    if not found.lora.rank:
        raise UserError(f"{folder} tuned all weights (model.lora.rank is 0): there is no adapter. Export the weights.")
    return LoadedAdapter(
        found.trained,
        found.lora,
        _base_folder(folder, found.meta),
        found.meta["identity"]["base_weights"],
        found.config,
        found.tokenizer,
        _template(folder, found.meta, force=False),
        found.sha256,
    )


class _Run(NamedTuple):
    """A run's newest checkpoint: `trained` are adapters where lora.rank is above 0, else all weights."""

    trained: Params
    lora: LoraConfig
    config: LlamaConfig
    tokenizer: Tokenizer
    meta: dict[str, Any]
    sha256: str
    mesh: Mesh | None


def _placed(mesh: Placing, config: LlamaConfig) -> Mesh | None:
    return mesh if mesh is None or isinstance(mesh, Mesh) else mesh(config)


def _one_device() -> Mesh:
    return make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])


def _read_run(folder: Path, dtype: Any, mesh: Placing, max_positions: int | None) -> _Run:
    config = read_config(folder / "model", max_positions)
    tokenizer = load_tokenizer(folder / "model")
    check_vocab(tokenizer, config.vocab_size)

    placed = _placed(mesh, config)
    on = placed or _one_device()

    def abstract(meta: dict[str, Any]) -> Params:
        lora = _lora(meta)
        return abstract_adapter(config, lora, on) if lora.rank else abstract_params(config, dtype, on)

    with Checkpoints(folder / "checkpoints") as checkpoints:
        trained, meta = checkpoints.read_params(abstract)
    lora = _lora(meta)
    told = {name: meta[name] for name in ("step", "identity", "checksums")}
    if lora.rank:
        told["lora"] = dataclasses.asdict(dataclasses.replace(lora, path=""))  # where it started from may move
    sha256 = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return _Run(trained, lora, config, tokenizer, meta, sha256, placed)


def _lora(meta: dict[str, Any]) -> LoraConfig:
    return from_dict(meta["config"]).model.lora


def _template(folder: Path, meta: dict[str, Any], *, force: bool) -> str | None:
    return check_template(meta["config"]["data"]["template"], meta["identity"]["template"], folder, force=force)


def _load_run(folder: Path, dtype: Any, mesh: Placing, max_positions: int | None, force_template: bool) -> LoadedModel:
    found = _read_run(folder, dtype, mesh, max_positions)
    template = _template(folder, found.meta, force=force_template)
    params, lora = found.trained, None
    if found.lora.rank:
        lora = found.lora
        base = _base_folder(folder, found.meta)
        _check_base(folder, base, found.meta["identity"]["base_weights"])
        quantize = None if found.lora.base == "compute" else found.lora.base
        weights = load_params(base, found.config, dtype, found.mesh or _one_device(), quantize=quantize)
        params = merge(weights, found.trained, found.lora, dtype)
    return LoadedModel(params, found.config, found.tokenizer, template, found.sha256, lora, found.mesh)


def _run_config(folder: Path) -> Path:
    """Returns where the run's config.json lies: for best/, one folder above."""
    beside = (folder.parent / "checkpoints").is_dir() and not (folder / "config.json").is_file()
    return (folder.parent if beside else folder) / "config.json"


def _base_folder(folder: Path, meta: dict[str, Any]) -> Path:
    """Returns model.path as the run's config.json says it now, or said it when the checkpoint was written."""
    written = _run_config(folder)
    return Path((read_json(written) if written.is_file() else from_dict(meta["config"])).model.path)


def _check_base(folder: Path, base: Path, sha256: str) -> None:
    """Raises UserError where `base` does not hold the weights that the adapters of run `folder` were trained on."""
    mend = f"Write where the base weights lie into model.path of {_run_config(folder)}."
    if not (base / "config.json").is_file():
        raise UserError(
            f"{folder} holds adapters; the weights that they change were read from {base}, which is no Hugging Face "
            f"directory (any more). {mend}"
        )
    found = weights_sha256(base)
    if found != sha256:
        raise UserError(
            f"{folder} holds adapters for other weights than those in {base} (SHA-256 {sha256[:12]}, not "
            f"{found[:12]}). {mend}"
        )
