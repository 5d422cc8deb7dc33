"""The ways in which a verb stops early on purpose; cli/main.py turns them into exit statuses."""

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75


class UserError(Exception):
    """A user's mistake: what is wrong, where, and how to mend it, in one or two sentences (exit 2)."""


class Interrupted(Exception):
    """The work was stopped by SIGTERM, Ctrl-C or preemption after its state was saved (exit 75)."""


class Stopped(KeyboardInterrupt):
    """The work was stopped by SIGTERM or Ctrl-C, and nothing of it is kept that could be continued (exit 1)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of `known`, else the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}."
