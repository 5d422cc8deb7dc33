"""i2b2 2012 events as entities: the XML files as distributed.

A file has a TEXT element, a sentence per line with tokens apart, and a TAGS element whose EVENT elements give start and
end offsets, the text at that place, and a type. The format was learned from public readers; the files themselves need a
data use agreement and were not at hand, so what is done about doubtful places is counted and reported.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.rows import read_text

# Some files hold `&` that is no entity, outside CDATA, and so are not well-formed.
_CDATA = re.compile(r"(<!\[CDATA\[.*?\]\]>)", re.DOTALL)
_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)")
# Public readers take offsets as counted from 0 in TEXT; counted from 1 in the text file they are the same where TEXT
# begins with a line feed. Which it is, is seen from the events' own texts.
_SHIFTS = (0, -1, 1)


@dataclass(frozen=True)
class Event:
    """An event's characters [start, end) in the text, and its type."""

    start: int
    end: int
    type: str


def read_xml_folder(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (tokens, tags) of every line that is not blank, of the `*.xml` files of a folder, in order of their names
    (numbers as numbers). The group is the file's stem, the id `STEM.LINE`, lines of TEXT counted from 1.

    Tokens are parted by white space; where a kept event begins or ends inside a token, the token is split there.
    Dropped and counted are events without a type, events whose text is not at their offsets, repeats of the same span
    and type, events that cross a line, and events that overlap a kept one: the one that starts first is kept, the
    longer of two that start together, then the first in the file.

    Raises:
      UserError: with the file: no XML files, not UTF-8, no TEXT or TAGS, texts of most events not at their offsets;
        with file and line: not well-formed, or an event without offsets, with offsets beyond the text, or of an unknown
        type.
    """
    assert isinstance(task, NerTask)
    found = NativeFile()
    files = [file for file in path.glob("*.xml") if file.is_file()]
    if not files:
        raise UserError(f"{path}: no .xml files; the documents of the i2b2 2012 distribution are expected.")
    for file in sorted(files, key=lambda file: (not file.stem.isdigit(), file.stem.zfill(9), file.name)):
        text, events = _read_document(file, task, found.dropped)
        start = 0
        for number, line in enumerate(text.split("\n"), 1):
            inside = [event for event in events if start <= event.start and event.end <= start + len(line)]
            tokens, tags = _tag(line, [Event(e.start - start, e.end - start, e.type) for e in inside])
            if tokens:
                found.records.append(Record((tokens, tags), id=f"{file.stem}.{number}", group=file.stem))
            start += len(line) + 1
    return not_empty(found, path, "lines of TEXT")


def _read_document(path: Path, task: NerTask, dropped: Counter[str]) -> tuple[str, list[Event]]:
    """Returns the text and the events to be tagged, which neither overlap nor cross a line."""
    raw = read_text(path).replace("\r\n", "\n")
    parts = _CDATA.split(raw)
    whole = "".join(part if i % 2 else _AMPERSAND.sub("&amp;", part) for i, part in enumerate(parts))
    try:
        root = ElementTree.fromstring(whole.encode())
    except ElementTree.ParseError as error:
        raise UserError(f"{path}:{error.position[0]}: not well-formed XML ({error}).") from error
    text_element, tags = root.find("TEXT"), root.find("TAGS")
    if text_element is None or tags is None:
        raise UserError(f"{path}: no {'TAGS' if text_element is not None else 'TEXT'} element in <{root.tag}>.")
    text = text_element.text or ""
    events = []
    for element in tags.iter("EVENT"):
        where = f"{path}:{_line_of(raw, element.get('id', ''))}"
        try:
            start, end = int(element.attrib["start"]), int(element.attrib["end"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{where}: EVENT {element.get('id')} needs whole numbers start and end.") from error
        if not 0 <= start < end <= len(text) + 1:
            raise UserError(f"{where}: offsets {start} to {end} are not in the {len(text)} characters of TEXT.")
        type = element.get("type", "").upper()
        if type and type not in task.labels:
            raise UserError(f"{where}: unknown type '{type}'.{did_you_mean(type, task.labels)}")
        events.append((Event(start, end, type), element.get("text", "")))
    return text, _kept(text, _placed(text, events, path, dropped), dropped)


def _line_of(raw: str, id: str) -> int:
    """Returns the line of the file that has this id, the first where none has."""
    return raw.count("\n", 0, max(raw.find(f'id="{id}"'), 0)) + 1


def _placed(text: str, events: Sequence[tuple[Event, str]], path: Path, dropped: Counter[str]) -> list[Event]:
    """Returns the events whose own text stands at their offsets, under the shift that fits most of the document's."""

    def fitting(shift: int) -> list[Event]:
        moved = [(Event(event.start + shift, event.end + shift, event.type), own) for event, own in events]
        return [event for event, own in moved if _same(text[max(event.start, 0) : max(event.end, 0)], own)]

    best = max((fitting(shift) for shift in _SHIFTS), key=len)
    if 2 * len(best) < len(events):
        raise UserError(
            f"{path}: the text of {len(events) - len(best)} of {len(events)} events is not at their offsets in TEXT; "
            "are TEXT and TAGS of the same document, as distributed?"
        )
    if len(best) < len(events):
        dropped["event whose text is not at its offsets"] += len(events) - len(best)
    return best


def _same(one: str, other: str) -> bool:
    return one.casefold().split() == other.casefold().split() and bool(one.strip())


def _kept(text: str, events: Sequence[Event], dropped: Counter[str]) -> list[Event]:
    kept: list[Event] = []
    seen = set()
    for event in sorted(events, key=lambda event: (event.start, -event.end)):  # stable: file order on ties
        reason = ""
        if not event.type:
            reason = "event without a type"
        elif event in seen:
            reason = "repeated event"
        elif "\n" in text[event.start : event.end].strip():
            reason = "event across lines"
        elif kept and event.start < kept[-1].end:
            reason = "event that overlaps another"
        seen.add(event)
        if reason:
            dropped[reason] += 1
        else:
            # White space at the edges of an event belongs to no token.
            own = text[event.start : event.end]
            start = event.start + len(own) - len(own.lstrip())
            kept.append(Event(start, start + len(own.strip()), event.type))
    return kept


def _tag(line: str, events: Sequence[Event]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the tokens of a line and their tags; events are of this line, in order, and do not overlap."""
    edges = sorted({edge for event in events for edge in (event.start, event.end)})
    tokens: list[str] = []
    tags: list[str] = []
    for match in re.finditer(r"\S+", line):
        inner = [edge for edge in edges if match.start() < edge < match.end()]
        cuts = [match.start(), *inner, match.end()]
        for start, end in pairwise(cuts):
            event = next((event for event in events if event.start <= start < event.end), None)
            tokens.append(line[start:end])
            tags.append("O" if event is None else f"{'B' if start == event.start else 'I'}-{event.type}")
    return tuple(tokens), tuple(tags)


READERS = {"i2b2_2012_xml": read_xml_folder}
