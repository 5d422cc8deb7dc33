"""Writes a tuned model as a Hugging Face directory: weights, config.json, tokenizer, its template.

The directory is read back and every tensor compared bit for bit with the model before the verb says that it is done.
float32 is what training holds, and loses nothing; bfloat16 is half the size, rounded.

Of a LoRA run, the directory holds the base weights with the adapters merged in (of a quantised base the dequantised
weights, which the adapters were trained with); --adapter writes the adapters alone, as PEFT's folder. That names its
base by the hub's id where the base's folder tells it, else by its path on this machine, which is not pushed.

It runs in one process, also after training on several machines; on the CPU, in the memory of the machine (a float32
7B model takes 27 GB, more than many accelerators have); JAX_PLATFORMS, where it is set, decides otherwise.

A model card names the licences of the base checkpoint and of all data. Where text under a data use agreement is among
it, the folder is its owner's only, and --push needs --i_may_release.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from medtune_jax.errors import UserError

if TYPE_CHECKING:
    from medtune_jax.convert.origin import Origin

SUMMARY = "write a run as a Hugging Face directory or PEFT adapter, verified by reading it back"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `medtune export`."""
    absl_flags.DEFINE_string(
        "run",
        None,
        "Run folder (its newest checkpoint), or a Hugging Face directory.",
        required=True,
        flag_values=flags,
    )
    absl_flags.DEFINE_string("out", None, "Folder to write; absent or empty.", required=True, flag_values=flags)
    absl_flags.DEFINE_bool("adapter", False, "Of a LoRA run: the adapters alone, for PEFT.", flag_values=flags)
    absl_flags.DEFINE_bool(
        "merge", False, "Of a LoRA run: the adapters merged into the base, which is the default.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "base_licence", None, "Licence of the base checkpoint, where its card does not say it.", flag_values=flags
    )
    absl_flags.DEFINE_string("push", None, "owner/name of a hub repository to upload the export to.", flag_values=flags)
    absl_flags.DEFINE_bool(
        "i_may_release",
        False,
        "The owner of the text under agreement that the model was tuned on allows its release.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Float type of the stored weights.", flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Exports, verifies, and returns what was written."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported
    from medtune_jax.launchers import refuse_several
    from medtune_jax.train.saved.disk import refuse_object_store

    refuse_several("export")
    refuse_object_store(flags.out, "--out")
    from medtune_jax.convert.folder import check_target
    from medtune_jax.convert.origin import read_origin
    from medtune_jax.convert.push import check_release, push
    from medtune_jax.tasks.source import is_unknown_licence

    if flags.adapter and flags.merge:
        raise UserError("--adapter and --merge are two exports: give one of them, with its own --out.")
    if flags.adapter and flags["dtype"].value != flags["dtype"].default:
        raise UserError("--dtype has no effect on an adapter, which is stored as float32: leave it out.")
    out = Path(flags.out)
    origin = read_origin(Path(flags.run))
    if flags.base_licence:
        if origin.base_licence != flags.base_licence and not is_unknown_licence(origin.base_licence):
            raise UserError(f"--base_licence={flags.base_licence}: the base's card says {origin.base_licence}.")
        origin = replace(origin, base_licence=flags.base_licence)
    check_target(out)  # before minutes are spent on loading
    if flags.push:
        check_release(origin, flags.push, flags.i_may_release)
    written = (_export_adapter if flags.adapter else _export_weights)(flags, out, origin)
    files = sorted(path for path in out.iterdir())
    return {
        "run": flags.run,
        "out": flags.out,
        **written,
        "licence": origin.licence,
        "credentialed": origin.credentialed,
        "pushed": push(out, flags.push) if flags.push else None,
        "bytes": sum(path.stat().st_size for path in files),
        "files": [path.name for path in files],
    }


def _export_weights(flags: absl_flags.FlagValues, out: Path, origin: Origin) -> dict[str, Any]:
    from medtune_jax.convert.hf_export import export_params, verify_export
    from medtune_jax.model.llama import num_params
    from medtune_jax.train.load import load_model

    model = load_model(flags.run, dtype=flags.dtype)
    if flags.merge and model.lora is None:
        raise UserError(f"{flags.run} holds whole weights: there is nothing to merge. Leave --merge out.")
    export_params(
        model.params,
        model.config,
        out,
        dtype=flags.dtype,
        tokenizer=model.tokenizer,
        template=model.template,
        origin=origin,
    )
    return {
        "kind": "weights" if model.lora is None else "merged weights",
        "dtype": flags.dtype,
        "template": model.template,
        "parameters": num_params(model.config),
        "tensors_verified": verify_export(model.params, model.config, out, tokenizer=model.tokenizer),
    }


def _export_adapter(flags: absl_flags.FlagValues, out: Path, origin: Origin) -> dict[str, Any]:
    import jax

    from medtune_jax.convert.peft_adapter import export_adapter, hub_id, verify_adapter
    from medtune_jax.train.load import load_adapter

    run = load_adapter(flags.run)
    base = hub_id(run.base)
    if flags.push and base is None:
        raise UserError(
            f"The adapter would name its base by a path of this machine, {run.base.absolute()}: nobody else has it. "
            f"Export it without --push, write the base's id on the hub into base_model_name_or_path of "
            f"{out / 'adapter_config.json'}, and upload the folder."
        )
    base = base or str(run.base.absolute())
    export_adapter(
        run.params,
        run.lora,
        run.config,
        out,
        base=base,
        base_sha256=run.base_sha256,
        tokenizer=run.tokenizer,
        template=run.template,
        origin=origin,
    )
    return {
        "kind": "adapter",
        "dtype": "float32",
        "base": base,
        "template": run.template,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "tensors_verified": verify_adapter(run.params, run.lora, run.config, out),
    }


def human(result: dict[str, Any]) -> str:
    """Returns what is printed: what was written, and that it was read back."""
    of = f" for {result['base']}" if "base" in result else ""
    return (
        f"{result['run']} -> {result['out']}: {result['kind']}{of}, {result['parameters']:,} parameters in "
        f"{result['dtype']}, {result['bytes'] / 1e6:,.1f} MB, template {result['template'] or 'unknown'}\n"
        f"read back: {result['tensors_verified']} tensors equal bit for bit\n"
        f"files: {', '.join(result['files'])}\n"
        f"licence: {result['licence']}" + (f"\npushed: {result['pushed']}" if result["pushed"] else "")
    )
