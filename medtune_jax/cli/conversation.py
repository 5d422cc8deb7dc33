"""`medtune generate --interactive`: prompts line by line, answers as they are written."""

from __future__ import annotations

import contextlib
import io
import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TextIO

from medtune_jax.cli.main import reader_may_leave
from medtune_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medtune_jax.generate.conversation import Conversation
    from medtune_jax.generate.results import Generation

COMMANDS = {
    "/instruction": "/instruction TEXT  what the next prompts are asked about (nothing: each prompt is its own)",
    "/reset": "/reset             forget the conversation so far",
    "/help": "/help              this list",
    "/quit": "/quit              end, as Ctrl-D does",
}
_HELP = "\n".join(
    [*COMMANDS.values(), "Ctrl-C stops an answer. A prompt that starts with a slash is written after a space."]
)


class Answer(Protocol):
    """Answers token ids; `on_text` is given the text as it comes, `turn` counts the prompts of the session."""

    def __call__(self, tokens: list[int], *, turn: int, on_text: Callable[[str], None]) -> Generation: ...


def converse(
    conversation: Conversation, answer: Answer, describe: Callable[[str, Generation], dict[str, Any]], out: TextIO
) -> list[dict[str, Any]]:
    """Answers the lines of stdin until it ends, or /quit.

    An answer that Ctrl-C stops is kept in the history as far as it was written.

    Args:
      describe: from a prompt and its answer to what the result says of it.
      out: where answers are streamed to; what else is to be told goes to stderr.

    Returns:
      what `describe` gives for each finished answer.

    Raises:
      KeyboardInterrupt: SIGTERM came.
    """
    results: list[dict[str, Any]] = []
    turns = itertools.count()
    with _noticing_sigterm() as terminated, reader_may_leave(out):
        for line in _lines(terminated):
            prompt = line.strip()
            if not prompt:
                continue
            if line.startswith("/"):
                if not _command(prompt, conversation):
                    break
                continue
            try:
                asked = conversation.ask(prompt)
            except UserError as error:
                _tell(str(error))
                continue
            if asked.dropped:
                _tell(f"(The context is full: the oldest {_turns(asked.dropped)} forgotten.)")
            written: list[str] = []

            def write(text: str, written: list[str] = written) -> None:
                written.append(text)
                print(text, end="", file=out, flush=True)

            try:
                generation = answer(asked.tokens, turn=next(turns), on_text=write)
            except UserError as error:  # such as a cache that has no room for so long a history
                print(end="\n" if written else "", file=out, flush=True)
                _tell(str(error))
                continue
            except KeyboardInterrupt:
                print(file=out, flush=True)
                if terminated.is_set():
                    raise
                _tell("(stopped)")
                conversation.record(asked, conversation.tokenizer.encode("".join(written)))
                continue
            print("" if written else generation.text, file=out, flush=True)
            conversation.record(asked, generation.tokens)
            results.append(describe(prompt, generation))
    return results


def _command(line: str, conversation: Conversation) -> bool:
    """Does what a line that starts with a slash says; returns whether the session goes on."""
    name, _, text = line.partition(" ")
    if name == "/quit":
        return False
    if name == "/reset":
        conversation.turns.clear()
    elif name == "/instruction" and text and conversation.template is None:
        _tell("An instruction needs a template to be written into: start with --template.")
    elif name == "/instruction":
        conversation.instruction = text.strip() or None
    elif name == "/help":
        _tell(_HELP)
    else:
        _tell(f"Unknown command '{name}'.{did_you_mean(name, COMMANDS)}")
    return True


def _lines(terminated: threading.Event) -> Iterator[str]:
    """Yields the lines of stdin; on a terminal with a prompt, line editing, and this session's lines to go back to."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 cost a letter, not the session
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - imported, it edits the lines of input(); its history is never written to a file
    _tell("Ctrl-D ends, /help lists the commands.")
    while True:
        try:
            yield input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:  # a line that was begun is given up, as in a shell
            print(file=sys.stderr)
            if terminated.is_set():
                raise


@contextlib.contextmanager
def _noticing_sigterm() -> Iterator[threading.Event]:
    """Yields what is set when SIGTERM came, which ends the session; Ctrl-C, which looks alike, stops an answer only."""
    terminated = threading.Event()

    def end(number: int, frame: FrameType | None) -> NoReturn:
        terminated.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)


def _turns(count: int) -> str:
    return "turn is" if count == 1 else f"{count} turns are"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
