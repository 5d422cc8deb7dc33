"""A model to run: from a Hugging Face directory or from a run folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medtune_jax.config import MeshConfig
from medtune_jax.convert.hf_import import check_template, load_params, read_config, read_template, weights_sha256
from medtune_jax.data.tokenizer import Tokenizer, check_vocab, load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, Params, abstract_params
from medtune_jax.sharding import make_mesh
from medtune_jax.train.checkpoints import Checkpoints


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and what belongs to it.

    Attributes:
      params: the tree of model/llama.py.
      config, tokenizer: its own.
      template: the template that it was tuned with; None where its folder names none, or by force_template.
      sha256: identity of the weights; for a run, of what it was made from, its step and its checksums.
    """

    params: Params
    config: LlamaConfig
    tokenizer: Tokenizer
    template: str | None
    sha256: str


def load_model(
    path: str | Path,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    max_positions: int | None = None,
    *,
    force_template: bool = False,
) -> LoadedModel:
    """Loads a Hugging Face directory, or the newest checkpoint of a run folder (parameters only).

    max_positions replaces the checkpoint's own where given; raising it is warned of. force_template: where this version
    does not have the model's template as it was, give None for it and no error.

    Raises:
      UserError: `path` is neither, its files are missing, damaged or do not belong together, or its template is not
        the one of this version.
    """
    folder = Path(path)
    dtype = jnp.dtype(dtype)
    if (folder / "checkpoints").is_dir():
        return _load_run(folder, dtype, mesh, max_positions, force_template)
    if not (folder / "config.json").is_file():
        raise UserError(f"No model at {folder}: it is neither a Hugging Face directory nor a run folder.")
    config = read_config(folder, max_positions)
    tokenizer = load_tokenizer(folder)
    check_vocab(tokenizer, config.vocab_size)
    template = read_template(folder, force=force_template)
    params = load_params(folder, config, dtype, mesh)
    return LoadedModel(params, config, tokenizer, template, weights_sha256(folder))


def _load_run(
    folder: Path, dtype: Any, mesh: Mesh | None, max_positions: int | None, force_template: bool
) -> LoadedModel:
    config = read_config(folder / "model", max_positions)
    tokenizer = load_tokenizer(folder / "model")
    check_vocab(tokenizer, config.vocab_size)
    if mesh is None:
        mesh = make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])
    with Checkpoints(folder / "checkpoints") as checkpoints:
        params, meta = checkpoints.read_params(abstract_params(config, dtype, mesh))
    told = {name: meta[name] for name in ("step", "identity", "checksums")}
    identity = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    name, wording = meta["config"]["data"]["template"], meta["identity"]["template"]
    template = check_template(name, wording, folder, force=force_template)
    return LoadedModel(params, config, tokenizer, template, identity)
