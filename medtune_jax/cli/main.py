"""The command `medtune <verb> --flags`: reads the verb's flags, runs it, turns its outcome into an exit status.

A verb is the module medtune_jax/cli/<verb>.py with
  SUMMARY            its one-liner,
  define_flags(f)    defines its flags on the absl FlagValues f,
  run(f) or run(f, config) if TAKES_CONFIG   does the work and returns a JSON-ready object,
  base_config(f)     optional, with TAKES_CONFIG: the Config that overrides change where --config is not given,
  human(result)      optional: what is printed on stdout without --json,
  MANY_VALUES        optional: names of repeatable flags that also take their values in a row, `--scores A B`.
Its docstring and flags are its help. Nothing of a verb is imported before it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, TextIO

from medtune_jax.cli import arguments
from medtune_jax.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    Interrupted,
    UserError,
    did_you_mean,
)


class Verb(NamedTuple):
    summary: str
    example: str


VERBS = {
    "prepare": Verb(
        "native corpora -> instruction rows, a manifest and a card",
        "medtune prepare --raw_dir=raw --sources=NCBI-disease --out=rows",
    ),
    "preview": Verb(
        "rows as text, token ids and loss mask; lengths; what would be cut",
        "medtune preview --data=rows --model=Llama-2-7b-hf",
    ),
    "train": Verb(
        "tune a checkpoint on prepared rows; again on the same folder resumes",
        "medtune train --config=llama2_7b_medtuned --workdir=runs/7b --config.model.path=Llama-2-7b-hf"
        " --config.data.path=rows",
    ),
    "generate": Verb(
        "answer prompts with a checkpoint or a run",
        "medtune generate --model=runs/7b --prompt='Is aspirin an NSAID?'",
    ),
    "evaluate": Verb(
        "run a model over held-out rows, score it and write the report",
        "medtune evaluate --model=runs/7b --data=rows --split=test --out=runs/7b/evaluation/test",
    ),
    "score": Verb(
        "score existing predictions, no model needed",
        "medtune score --predictions=runs/7b/evaluation/test/predictions.jsonl --out=scores",
    ),
    "compare": Verb(
        "put scores side by side, with paired intervals",
        "medtune compare --scores base/scores.json tuned/scores.json",
    ),
    "export": Verb(
        "write a run as a Hugging Face directory or PEFT adapter, verified by reading it back",
        "medtune export --run=runs/7b --out=exported",
    ),
}


# The verbs whose work can be continued however early it is stopped. Others raise Interrupted where something is kept.
RESUMABLE = ("train", "evaluate")


def main() -> NoReturn:
    """Runs the command line of this process and exits with its status."""
    signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: what was begun is removed or saved; train and evaluate do more
    sys.exit(dispatch(sys.argv[1:]))


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def dispatch(argv: Sequence[str]) -> int:
    """Runs `medtune *argv` and returns its exit status (errors.py); prints as documented, never raises."""
    name = "medtune"
    try:
        if not argv or argv[0] in arguments.HELP:
            if argv:
                say(general_help())
            else:
                print(general_help(), file=sys.stderr)
            return EXIT_DONE if argv else EXIT_USER_ERROR
        verb = argv[0]
        if verb not in VERBS:
            raise UserError(f"Unknown verb '{verb}'.{did_you_mean(verb, VERBS)} See `medtune --help`.")
        name = f"medtune {verb}"
        set_environment()
        module = importlib.import_module(f"medtune_jax.cli.{verb}")
        flags, config = arguments.parse(module, argv[1:])
        if flags is None:
            say(arguments.verb_help(module, verb, VERBS[verb].example))
            return EXIT_DONE
        result = module.run(flags, config) if config is not None else module.run(flags)
        if result is not None:  # of several processes one speaks
            say(as_text(module, result, as_json=flags.json))
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"{name}: interrupted. {stop}".rstrip(), file=sys.stderr)
        resumable = isinstance(stop, Interrupted) or name.split()[-1] in RESUMABLE
        return EXIT_INTERRUPTED if resumable else EXIT_FAILURE
    except Exception:
        traceback.print_exc()
        return EXIT_FAILURE
    return EXIT_DONE


def say(text: str) -> None:
    """Prints on stdout; where its reader has seen enough and gone (`| head`), nowhere."""
    with reader_may_leave(sys.stdout):
        print(text, flush=True)


@contextlib.contextmanager
def reader_may_leave(out: TextIO) -> Iterator[None]:
    """Ends the block, quietly, at a write to `out` that nobody reads any more."""
    try:
        yield
    except BrokenPipeError:
        # What is still buffered must have a place to go, or the interpreter fails when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def general_help() -> str:
    """Returns what `medtune --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return f"""medtune: instruction tuning of biomedical language models, from raw corpora to scores.

Usage: medtune VERB --flag=value ...      (medtune VERB --help explains one verb)

{verbs}

Examples:
  {VERBS["prepare"].example}
  {VERBS["evaluate"].example}

Every verb takes --json: its result as one JSON object on the last line of stdout; logs go to stderr.
Exit status: 0 done, 2 a mistake in the call or its input, 75 interrupted but resumable, 1 a failure
or interrupted with nothing kept."""


def set_environment() -> None:
    """Keeps libraries' chatter down (never their warnings or errors) and sends our log to stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # XLA: warnings and above
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns after every fork
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("medtune_jax").setLevel(logging.INFO)


def as_text(module: ModuleType, result: Any, *, as_json: bool) -> str:
    """Returns what a finished verb prints on stdout: one JSON line, or the verb's own text."""
    if as_json:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    human = getattr(module, "human", None)
    return human(result) if human else json.dumps(result, ensure_ascii=False, indent=2)
