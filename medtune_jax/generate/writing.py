"""The text of an answer while its tokens come: which part of it is final, and whether a stop string ended it.

An id has no text of its own: a byte is a part of a character, and a piece loses its leading space where nothing stands
before it. So ids are turned into text in groups that end with whole characters, each behind the group before it; every
id is decoded a bounded number of times, however long the answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medtune_jax.errors import UserError

_TORN = "\ufffd"  # what decoders put where bytes are no character (yet)
_CHARACTER = 4  # bytes at most

Added = Callable[[Sequence[int], Sequence[int]], str]


@dataclass(frozen=True)
class _Group:
    """Ids that were turned into text together; start: characters before them; first: ids before them."""

    context: Sequence[int]
    ids: Sequence[int]
    text: str
    start: int
    first: int


class Writing:
    """One answer as it grows.

    It ends before the stop string that is the first to be complete; of several that are complete with the same
    character, before the longest.

    Args:
      added: (ids before, ids) -> what the latter add to the text of the former (`Core.continuation`).
      prompt: ids before the answer; what stands in them stops nothing.
      stop: as `stop_strings` returns them.

    Attributes:
      stopped: a stop string has come.
    """

    def __init__(self, added: Added, prompt: Sequence[int], stop: Sequence[str] = ()):
        self.stopped = False
        self._added, self._stop = added, stop
        self._context = prompt
        self._pending: list[int] = []  # ids without text yet
        self._groups: list[_Group] = []
        self._final: list[str] = []
        self._open = ""  # decoded, and perhaps the beginning of a stop string
        self._stop_end = 0

    @property
    def text(self) -> str:
        """What of the answer is final."""
        return "".join(self._final)

    def add(self, ids: Sequence[int]) -> None:
        """Takes the next ids of the answer."""
        self._pending += ids

    def settle(self, new: int) -> str:
        """Turns what it can into text; returns what became final. new: ids that were added since the last call."""
        whole = next((at for at in range(len(self._pending), 0, -1) if self._is_whole(self._pending[at - 1])), 0)
        text = self._decode(whole)
        # A run of bytes: all but its end may be characters. One that is none is not looked at again until it ends.
        if 0 < len(self._pending) < new + _CHARACTER:
            for count in range(len(self._pending), max(0, len(self._pending) - _CHARACTER), -1):
                if _TORN not in (found := self._added(self._context, self._pending[:count])) and found:
                    text += self._decode(count)
                    break
        return self._release(text)

    def end(self) -> str:
        """Turns all that is left into text, as no more ids come; returns what became final."""
        found = self._release(self._decode(len(self._pending)))
        if self.stopped:
            return found
        self._final.append(self._open)
        return found + self._open

    def counts(self) -> tuple[int, int]:
        """Returns, where a stop string came, how many ids wrote the text, and how many the stop string as well; an id
        that wrote of both counts in both."""
        length = sum(map(len, self._final))
        return self._ids_for(length), self._ids_for(self._stop_end)

    def _is_whole(self, id_: int) -> bool:
        """Whether this id is no part of a character; of one without text (a space that is not written at the beginning,
        a special id) it cannot be told."""
        text = self._added((), (id_,))
        return text != "" and _TORN not in text

    def _decode(self, count: int) -> str:
        """Turns the first pending ids into a group."""
        if count == 0:
            return ""
        ids, self._pending = self._pending[:count], self._pending[count:]
        last = self._groups[-1] if self._groups else _Group((), (), "", 0, 0)
        text = self._added(self._context, ids)
        group = _Group(self._context, ids, text, last.start + len(last.text), last.first + len(last.ids))
        self._groups.append(group)
        # Behind ids without text the next would lose its space as at the beginning.
        self._context = ids if self._added((), ids) else [*self._context, *ids]
        return text

    def _release(self, text: str) -> str:
        """Returns what became final by more text: all up to a stop string or to what may become one."""
        text = self._open + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            end, final = min(found)
            self.stopped = True
            self._stop_end = sum(map(len, self._final)) + end
        else:
            final = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._open = text[final:]
        self._final.append(text[:final])
        return text[:final]

    def _ids_for(self, length: int) -> int:
        """Returns the fewest first ids whose text begins with the first `length` characters of the answer."""
        group = next((one for one in self._groups if one.start + len(one.text) >= length), None)
        if group is None or group.start == length:
            return 0 if group is None else group.first
        wanted = group.text[: length - group.start]
        counts = range(1, len(group.ids) + 1)
        return group.first + next(n for n in counts if self._added(group.context, group.ids[:n]).startswith(wanted))


def stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    """Returns the stop strings of a request.

    Raises:
      UserError: one is empty, or a string stands where a list of them belongs.
    """
    if isinstance(stop, str):
        raise UserError(f"stop {stop!r} is one string, and a list of them is asked for: [{stop!r}].")
    if "" in stop:
        raise UserError("A stop string is empty, and would end every answer before it begins.")
    return tuple(stop)


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that `stop` begins with, short of all of it."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
