"""A PEFT adapter folder (adapter_model.safetensors, adapter_config.json) and the tree of model/lora.py, both ways.

PEFT stores lora_A [R, in] and lora_B [out, R] of each layer; the tree holds a [L, in, R] and b [L, R, out]. Of what a
PEFT configuration can say, only plain LoRA of one rank on all layers is read; the rest is refused by the field's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medtune_jax.config import LORA_TARGETS, LoraConfig
from medtune_jax.convert.folder import new_folder, write_companions, write_json
from medtune_jax.convert.origin import Origin
from medtune_jax.convert.safetensors_file import FLOAT_DTYPES, Tensor, read_header, read_rows, write_file
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, Params
from medtune_jax.model.lora import PROJECTIONS, abstract_adapter, targets

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_UNREAD = (  # says nothing of the function that the adapter computes
    *("auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode", "layers_pattern"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config"),
)
_READ = (
    *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"),
    *("init_lora_weights", "bias"),
)
_DEFAULTS = {"task_type": None, "bias": "none", "use_rslora": False, "init_lora_weights": True, "lora_dropout": 0.0}
_REFUSED = {  # unless it is null, false, empty
    "rank_pattern": "every layer has the same rank here",
    "alpha_pattern": "every layer has the same alpha here",
    "layers_to_transform": "all layers are adapted here, or none",
    "layer_replication": "it changes the base model's layers",
    "modules_to_save": "whole modules are not tuned beside adapters here",
    "trainable_token_indices": "embeddings are not tuned beside adapters here",
    "target_parameters": "adapters are on projections here",
    "use_dora": "DoRA also learns the magnitude of each column",
    "use_qalora": "QA-LoRA pools the adapters' inputs",
    "use_bdlora": "block-diagonal adapters are another function",
    "lora_bias": "adapters have no bias here",
    "fan_in_fan_out": "Llama's kernels are stored as [out, in]",
    "alora_invocation_tokens": "an activated LoRA is switched on by tokens",
    "arrow_config": "routing between adapters is another function",
    "loftq_config": "LoftQ changes the base's weights",
    "corda_config": "CorDA changes the base's weights",
    "lora_ga_config": "LoRA-GA changes the base's weights",
    "kasa_config": "KaSA changes the base's weights",
}
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")  # initial values that leave the base as it is


class _Stored(NamedTuple):
    """One tensor of the folder, and the slice of the tree that it is, transposed."""

    name: str
    projection: str
    part: str
    layer: int


def export_adapter(
    adapter: Params,
    lora: LoraConfig,
    config: LlamaConfig,
    folder: str | Path,
    *,
    base: str = "",
    base_sha256: str | None = None,
    tokenizer: Tokenizer | None = None,
    template: str | None = None,
    origin: Origin | None = None,
) -> None:
    """Writes the folder that `peft.PeftModel.from_pretrained` reads, float32, complete or not at all.

    Args:
      adapter: the tree of model/lora.py; config: the base's architecture.
      folder: absent, or empty.
      base: where PEFT will look for the base model, an id on the hub or an absolute path; base_sha256: the identity of
        its weights (convert/hf_import.py), for the card.
      tokenizer, template, origin: as in convert/hf_export.py.

    Raises:
      UserError: the folder holds something, the disk is full or not writable, or this is one process of several.
    """
    if jax.process_count() > 1:
        raise UserError("Export runs in one process; call `medtune export` on one machine.")
    names = [row.keys[1] for row in targets(lora)]
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "target_modules": names,
        "use_rslora": lora.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    about = {
        "adapter": f"LoRA of rank {lora.rank}, alpha {alpha}{' (rsLoRA)' if lora.rslora else ''}, on {', '.join(names)}"
    }
    if lora.base != "compute":
        about["trained on"] = f"the base quantised to {lora.base}: on other weights it computes something else"
    if base_sha256:
        about["base weights"] = f"SHA-256 {base_sha256} over the names, dtypes, shapes and bytes of all tensors"
    stored = _stored(config, names)
    shapes = abstract_adapter(config, lora)["layers"]
    entries = [(one.name, "F32", shapes[one.projection][one.part].shape[:0:-1]) for one in stored]
    with new_folder(Path(folder), private=bool(origin and origin.credentialed)) as spool:
        write_file(spool / WEIGHTS_FILE, entries, _tensors(adapter, stored))
        write_json(spool / CONFIG_FILE, described)
        write_companions(spool, tokenizer=tokenizer, template=template, origin=origin, about=about, library="peft")


def hub_id(base: Path) -> str | None:
    """Returns owner/name of a base checkpoint on the hub, None where its folder does not say.

    The hub's own cache says it in the folder's path. Elsewhere `_name_or_path` of config.json counts only where it ends
    in the folder's name: a checkpoint that was tuned from another often still has that one's.
    """
    base = base.absolute()
    for part in reversed(base.parts):
        if cached := re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", part):
            return "/".join(cached.groups())
    try:
        name = json.loads((base / "config.json").read_text(encoding="utf-8"))["_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if re.fullmatch(rf"[\w.-]*\w/{re.escape(base.name)}", str(name)) else None


def read_adapter(folder: str | Path, config: LlamaConfig) -> tuple[Params, LoraConfig]:
    """Reads a PEFT adapter of a base with architecture `config`.

    Returns:
      (the tree of model/lora.py as float32 numpy arrays, its settings; `base` of them is the default).

    Raises:
      UserError: a file is missing or damaged, a field asks for what is not computed here, or the tensors are not those
        of plain LoRA on this architecture; field or tensor are named.
    """
    folder = Path(folder)
    lora = read_adapter_config(folder)
    found = read_header(_weights_file(folder))
    shapes = abstract_adapter(config, lora)["layers"]
    tree: Params = {
        name: {part: np.empty(leaf.shape, np.float32) for part, leaf in parts.items()} for name, parts in shapes.items()
    }
    for one in _stored(config, list(shapes)):
        leaf = tree[one.projection][one.part][one.layer]
        leaf[...] = _read(folder, one.name, found, leaf.shape[::-1]).T
    if found:
        raise UserError(
            f"{folder / WEIGHTS_FILE} holds {next(iter(found))} ({len(found)} such tensors), which is no adapter of "
            f"{', '.join(shapes)} in {config.num_layers} layers."
        )
    return {"layers": tree}, lora


def read_adapter_config(folder: Path) -> LoraConfig:
    """Returns the settings in adapter_config.json; raises UserError naming the field that is not computed here."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no PEFT adapter: it has no {CONFIG_FILE}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        described = {**_DEFAULTS, **found}
        _refuse_others(path, described)
        lora = LoraConfig(
            rank=_number(path, described, "r", int),
            alpha=float(_number(path, described, "lora_alpha", (int, float))),
            dropout=float(_number(path, described, "lora_dropout", (int, float))),
            targets=_targets(path, described["target_modules"], folder),
            rslora=bool(described["use_rslora"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error!r}.") from None
    if lora.rank < 1:
        raise UserError(f"{path}: r is {lora.rank}; it must be 1 or more.")
    try:
        lora.check()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return lora


def adapter_sha256(folder: str | Path) -> str:
    """Returns the SHA-256 of the adapter's weights as they are stored; raises UserError where there are none."""
    with _weights_file(Path(folder)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_matching_adapter(lora: LoraConfig, config: LlamaConfig) -> Params:
    """Reads the adapter of `lora.path` to go on from; raises UserError where its settings are not those of `lora`.

    Dropout is not compared: it is of the training to come.
    """
    adapter, found = read_adapter(lora.path, config)
    wanted, stored = ([row.keys[1] for row in targets(one)] for one in (lora, found))
    differ = [
        f"model.lora.{name} is {ours}, the adapter's {theirs}"
        for name, ours, theirs in (
            ("rank", lora.rank, found.rank),
            ("alpha", lora.alpha, found.alpha),
            ("rslora", lora.rslora, found.rslora),
            ("targets", ",".join(wanted), ",".join(stored)),
        )
        if ours != theirs
    ]
    if differ:
        raise UserError(f"Cannot go on from the adapter {lora.path}: {'; '.join(differ)}. Set the adapter's own.")
    return adapter


def verify_adapter(adapter: Params, lora: LoraConfig, config: LlamaConfig, folder: str | Path) -> int:
    """Reads `folder` back and compares every tensor bit for bit with `adapter`, and the settings with `lora`.

    Returns:
      The number of tensors compared.

    Raises:
      RuntimeError: something that was read is not what was written.
    """
    found, settings = read_adapter(folder, config)
    for name in ("rank", "alpha", "dropout", "rslora"):
        if getattr(settings, name) != getattr(lora, name):
            raise RuntimeError(f"{folder}/{CONFIG_FILE}: {name} does not read back as it was exported.")
    if targets(settings) != targets(lora):
        raise RuntimeError(f"{folder}/{CONFIG_FILE}: target_modules do not read back as they were exported.")
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(adapter), jax.tree.leaves(found), strict=True):
        if np.asarray(ours).tobytes() != theirs.tobytes():
            raise RuntimeError(f"{folder}: {jax.tree_util.keystr(path)} does not read back as it was exported.")
    return len(_stored(config, list(found["layers"])))


def _weights_file(folder: Path) -> Path:
    if (folder / WEIGHTS_FILE).is_file():
        return folder / WEIGHTS_FILE
    pickled = (folder / "adapter_model.bin").is_file()
    raise UserError(
        f"{folder} is no PEFT adapter with {WEIGHTS_FILE}."
        + (" adapter_model.bin is a pickle, which is not read: save it again with PEFT." if pickled else "")
    )


def _stored(config: LlamaConfig, names: list[str]) -> list[_Stored]:
    stored = []
    for name in names:
        for layer in range(config.num_layers):
            module = PROJECTIONS[name].hf.format(l=layer).removesuffix(".weight")
            for part, letter in (("a", "A"), ("b", "B")):
                stored.append(_Stored(f"base_model.model.{module}.lora_{letter}.weight", name, part, layer))
    return stored


def _tensors(adapter: Params, stored: list[_Stored]) -> Iterator[np.ndarray]:
    for one in stored:
        yield np.asarray(adapter["layers"][one.projection][one.part][one.layer], np.float32).T


def _read(folder: Path, name: str, found: dict[str, Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """Takes tensor `name` out of `found` and returns it, [rows, columns] as stored."""
    if name not in found:
        held = f"it holds {next(iter(found))}" if found else "it holds nothing else"
        raise UserError(
            f"{folder / WEIGHTS_FILE} lacks {name} ({held}): {CONFIG_FILE} and the base's config.json ask for it."
        )
    tensor = found.pop(name)
    if tensor.shape != shape:
        raise UserError(
            f"{folder}: {name} has shape {list(tensor.shape)}; the base model and r ask for {list(shape)}. Was the "
            "adapter made for another base?"
        )
    if tensor.dtype not in FLOAT_DTYPES:
        raise UserError(f"{folder}: {name} is stored as {tensor.dtype}; {', '.join(FLOAT_DTYPES)} are read.")
    return read_rows(tensor, 0, shape[0])


def _refuse_others(path: Path, found: dict[str, Any]) -> None:
    if found["peft_type"] != "LORA":
        raise UserError(f"{path}: peft_type is {found['peft_type']!r}; only LORA is read.")
    if found["task_type"] not in (None, "CAUSAL_LM"):
        raise UserError(f"{path}: task_type is {found['task_type']!r}; only CAUSAL_LM is tuned here.")
    if found["bias"] != "none":
        raise UserError(f"{path}: bias is {found['bias']!r}; Llama has no biases to tune.")
    if found["init_lora_weights"] not in _KEEPS_BASE:
        raise UserError(
            f"{path}: init_lora_weights is {found['init_lora_weights']!r}, which changes the base's weights. Convert "
            "the adapter with PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    for name, value in found.items():
        neutral = value is None or value is False or value in ([], {}, "")  # 0 is a layer, not False
        if name not in (*_READ, *_UNREAD) and not neutral:
            reason = _REFUSED.get(name, "this version does not know the field")
            raise UserError(f"{path}: {name} is {json.dumps(value)}, which is not supported: {reason}.")


def _number(path: Path, found: dict[str, Any], name: str, kinds: Any) -> Any:
    value = found[name]
    if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"{path}: {name} is {json.dumps(value)}, not a number.")
    return value


def _targets(path: Path, modules: Any, folder: Path) -> tuple[str, ...]:
    """Returns the projections that target_modules means; for a pattern, those that the stored tensors belong to."""
    if isinstance(modules, str):  # a regular expression, or "all-linear"
        names = {name.split(".")[-3] for name in read_header(_weights_file(folder)) if name.count(".") >= 2}
    else:
        names = {str(module).rsplit(".", 1)[-1] for module in modules}
    for name in sorted(names - set(LORA_TARGETS)):
        raise UserError(
            f"{path}: target_modules has '{name}', which is not adapted here: only {', '.join(LORA_TARGETS)} are."
        )
    return tuple(name for name in LORA_TARGETS if name in names)
