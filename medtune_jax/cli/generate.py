"""Answers one prompt, or every prompt of a file.

A tuned model is asked with the template that it was tuned with; a model that names none is given the text as it is.
Where a template is used and --instruction is given, the prompt is the input that the instruction is about; without
--instruction the prompt itself is the instruction. In --input_file every line is a prompt; in a .jsonl file every line
is an object with "prompt" and optionally its own "instruction".

It runs on one device, which must hold the model: 4 bytes a parameter, 2 with --dtype=bfloat16. A run's checkpoint is
read as the float32 that it is, so of a large model's run give what `medtune export --dtype=bfloat16` wrote of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from medtune_jax.cli.arguments import refuse_given
from medtune_jax.errors import UserError

if TYPE_CHECKING:
    from medtune_jax.data.prompts import Template
    from medtune_jax.generate.sampling import Method

SUMMARY = "answer prompts with a checkpoint or a run"

OF_SAMPLE = ("temperature", "top_k", "top_p", "seed")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `medtune generate`."""
    text, number = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    text("model", None, "Hugging Face directory or run folder.", required=True, flag_values=flags)
    text("prompt", None, "The prompt.", flag_values=flags)
    text("input_file", None, "Prompts instead of --prompt: a text file or a .jsonl file.", flag_values=flags)
    text("instruction", None, "What is asked about the prompt.", flag_values=flags)
    text(
        "template", None, "Prompt template, or none = the text as it is; the model's own without it.", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "force_template", False, "Ask with --template even if the model was tuned with another.", flag_values=flags
    )
    absl_flags.DEFINE_enum("method", "greedy", ["greedy", "sample"], "How tokens are chosen.", flag_values=flags)
    number("max_new_tokens", 256, "Most tokens of an answer.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_float("temperature", 1.0, "Of --method=sample.", flag_values=flags)
    number("top_k", 0, "Of --method=sample; 0 = all tokens.", flag_values=flags)
    absl_flags.DEFINE_float("top_p", 1.0, "Of --method=sample.", flag_values=flags)
    number("seed", 0, "Of --method=sample.", lower_bound=0, flag_values=flags)
    absl_flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Type of weights and arithmetic.", flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> dict[str, Any] | list[dict[str, Any]]:
    """Returns {"prompt", "generated", "finish_reason"}, for a file one per prompt."""
    from medtune_jax.launchers import refuse_several

    refuse_several("generate")
    asked = _prompts(flags)
    method = _method(flags)

    from medtune_jax.compilation_cache import use_compilation_cache
    from medtune_jax.generate.engine import Engine
    from medtune_jax.train.load import load_model

    use_compilation_cache()
    forced = flags.force_template and flags.template is not None
    loaded = load_model(flags.model, dtype=flags.dtype, force_template=forced)
    template = _template(flags, loaded.template)
    if template is None and any(instruction is not None for _, instruction in asked):
        raise UserError("An instruction needs a template to be written into: give --template.")
    texts = [_text(template, prompt, instruction) for prompt, instruction in asked]
    prompts = [[loaded.tokenizer.bos_id, *loaded.tokenizer.encode(text)] for text in texts]
    for index, ids in enumerate(prompts):
        if len(ids) >= loaded.config.max_positions:
            where = "--prompt" if flags.prompt is not None else f"{flags.input_file}, prompt {index + 1}"
            raise UserError(
                f"{where} has {len(ids)} tokens with its template; {flags.model} has {loaded.config.max_positions} "
                "positions for prompt and answer together. Shorten it."
            )
    engine = Engine(loaded.params, loaded.config, loaded.tokenizer, dtype=flags.dtype)
    answers = engine.generate(
        prompts,
        method=method,
        max_new_tokens=flags.max_new_tokens,
        seed=flags.seed,
        progress="generate" if len(prompts) > 1 else None,
    )
    results = [
        {"prompt": prompt, "generated": answer.text, "finish_reason": answer.finish_reason}
        for (prompt, _), answer in zip(asked, answers, strict=True)
    ]
    return results[0] if flags.prompt is not None else results


def human(result: dict[str, Any] | list[dict[str, Any]]) -> str:
    """Returns the answers as text; those of a file below their prompts."""
    if isinstance(result, dict):
        return str(result["generated"])
    return "\n\n".join(f"> {one['prompt']}\n{one['generated']}" for one in result)


def _prompts(flags: absl_flags.FlagValues) -> list[tuple[str, str | None]]:
    """Returns (prompt, instruction or None) of each prompt asked."""
    if (flags.prompt is None) == (flags.input_file is None):
        raise UserError("Give either --prompt or --input_file.")
    if flags.prompt is not None:
        return [(flags.prompt, flags.instruction)]
    path = Path(flags.input_file)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028, which may stand in a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input_file: {path} cannot be read as text: {error}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"--input_file: {path} holds no prompt.")
    if path.suffix != ".jsonl":
        return [(line, flags.instruction) for _, line in numbered]
    return [_json_prompt(line, f"{path}, line {number}", flags.instruction) for number, line in numbered]


def _json_prompt(line: str, where: str, instruction: str | None) -> tuple[str, str | None]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise UserError(f'{where}: expected an object with the string "prompt".')
    own = found.get("instruction", instruction)
    if own is not None and not isinstance(own, str):
        raise UserError(f'{where}: "instruction" is not a string.')
    return found["prompt"], own


def _method(flags: absl_flags.FlagValues) -> Method:
    from medtune_jax.generate.sampling import Greedy, Sample

    if flags.method == "sample":
        return Sample(flags.temperature, flags.top_k, flags.top_p)
    refuse_given(flags, OF_SAMPLE, "--method=greedy", "--method=sample")
    return Greedy()


def _template(flags: absl_flags.FlagValues, own: str | None) -> Template | None:
    """Returns the template to ask with; None = the text as it is."""
    from medtune_jax.data.prompts import choose_name, get_template

    name = choose_name(own, flags.template, flags.force_template, flags.model) or "none"
    return None if name == "none" else get_template(name)


def _text(template: Template | None, prompt: str, instruction: str | None) -> str:
    if template is None:
        return prompt
    return template.prompt(prompt, "") if instruction is None else template.prompt(instruction, prompt)
