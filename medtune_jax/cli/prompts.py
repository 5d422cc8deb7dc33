"""The prompts of `medtune generate`: the one on the command line or those of a file, and the answering of a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medtune_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medtune_jax.generate.engine import Engine
    from medtune_jax.generate.results import Generation

_log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A prompt, and what is asked about it; None = the prompt is itself what is asked."""

    prompt: str
    instruction: str | None


def read_prompts(prompt: str | None, file: str | None, instruction: str | None) -> list[Asked]:
    """Returns the prompt, or without one those of the file: each line, or in a .jsonl file each line's object.

    Raises:
      UserError: the file cannot be read, holds no prompt, or a line is not of that form.
    """
    if prompt is not None or file is None:
        return [Asked(prompt or "", instruction)]
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028, which may stand in a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input_file: {path} cannot be read as text: {error}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"--input_file: {path} holds no prompt.")
    if path.suffix != ".jsonl":
        return [Asked(line, instruction) for _, line in numbered]
    return [_json_prompt(line, f"{path}, line {number}", instruction) for number, line in numbered]


def _json_prompt(line: str, where: str, instruction: str | None) -> Asked:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise UserError(f'{where}: expected an object with the string "prompt".')
    for name in found.keys() - {"prompt", "instruction"}:
        raise UserError(f"{where}: unknown key '{name}'.{did_you_mean(name, ('prompt', 'instruction'))}")
    own = found.get("instruction", instruction)
    if own is not None and not isinstance(own, str):
        raise UserError(f'{where}: "instruction" is not a string.')
    return Asked(found["prompt"], own)


def answer_prompts(
    engine: Engine,
    texts: Sequence[str],
    done: Callable[[int, Generation], dict[str, Any]],
    *,
    generate: Callable[..., Any],
    out: str | None,
    identity: Sequence[Any],
    **options: Any,
) -> list[dict[str, Any]]:
    """Answers texts; where they are to be kept in the file `out`, those that an earlier call answered are not asked.

    Of several processes all call it; the first keeps the file, and all skip what that one holds.

    Args:
      done: called with the index of a text and its answer as it comes; returns the result, JSON-ready.
      generate: Engine.generate, or what is called like it.
      identity: what else decides an answer, JSON-ready.
      options: of `generate`.

    Returns:
      the results in order; in a process other than the first those of now.

    Raises:
      UserError: see `AnswerFile`; a process asks something else than the first.
      KeyboardInterrupt: Ctrl-C; what was answered is in the file.
    """
    from medtune_jax.evaluate.answer_file import AnswerFile
    from medtune_jax.processes import everyones, is_first
    from medtune_jax.train.agreement import require_same

    first, tokenizer = is_first(), engine.tokenizer
    keys = [_key([index, text, *identity]) for index, text in enumerate(texts)]
    results: dict[int, dict[str, Any]] = {}
    require_same({"prompts, template or model": keys})
    with AnswerFile(Path(out), keys) if out and first else contextlib.nullcontext() as file:

        def keep(index: int, answer: Generation) -> None:
            results[index] = done(index, answer)
            if file is not None:
                file.add(index, results[index])

        answered = everyones("answered", [] if file is None else file.answered)[0]
        if answered:
            _log.info("%d of %d prompts are answered already.", len(answered), len(texts))
        generate(
            [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts],
            **options,
            skip=frozenset(answered),
            on_done=keep,
            progress="generate" if first else None,
        )
        long = sorted(index for index, one in results.items() if one["finish_reason"] == "prompt_too_long")
        if long:
            _log.warning(
                "Prompts that with their template are too long for the model: %d, the first is prompt %d.",
                len(long),
                long[0] + 1,
            )
        return [results[index] for index in sorted(results)] if file is None else file.finish()


def _key(asked: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
