"""CoNLL files: one `token<TAB>tag` per line, a blank line between sentences, no header."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty, numbered_lines
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.ner import NerTask

# One-token "sentences" that say where a document starts: CoNLL's own, and GENIA's.
MARKERS = ("-DOCSTART-", "###MEDLINE:")


def read_conll(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns the (tokens, tags) of every sentence; document markers are dropped and counted.

    After a marker the group is what it names (`###MEDLINE:95369245`), or the number of the document from 1.

    Tags must be the task's. A file of typed tags (`B-Disease`) also serves a task without types as long as it has one
    type, which is then left out.

    Raises:
      UserError: with file and line: missing or extra column, token with a space, bad tag, I without its B, second type;
        with the file: not UTF-8, no sentence.
    """
    assert isinstance(task, NerTask)
    found = NativeFile()
    only_type: str | None = None
    group = ""
    for sentence in conll_sentences(path):
        number, first, _ = sentence[0]
        if len(sentence) == 1 and first.startswith(MARKERS):
            found.dropped["document marker"] += 1
            group = first.partition(":")[2] or str(found.dropped["document marker"])
            continue
        tags: list[str] = []
        for number, token, tag in sentence:
            where = f"{path}:{number}"
            if not token or " " in token:
                raise UserError(
                    f"{where}: token '{token}' is empty or holds a space; one token<TAB>tag per line is expected."
                )
            if not task.labels and tag[:2] in ("B-", "I-") and tag[2:]:
                only_type = only_type or tag[2:]
                if tag[2:] != only_type:
                    raise UserError(
                        f"{where}: second entity type '{tag[2:]}' after '{only_type}'; this source has a single type, "
                        "so its tags are B, I, O or of one type."
                    )
                tag = tag[0]
            if tag not in task.tags:
                raise UserError(f"{where}: bad tag '{tag}'; expected one of {', '.join(task.tags)}.")
            previous = tags[-1] if tags else None
            if (previous, tag) not in task.follows:
                raise UserError(
                    f"{where}: orphan '{tag}' after {previous or 'the start of the sentence'}; "
                    f"it may only follow {tag.replace('I', 'B', 1)} or {tag}."
                )
            tags.append(tag)
        found.records.append(Record((tuple(token for _, token, _ in sentence), tuple(tags)), group=group))
    return not_empty(found, path, "sentences of token<TAB>tag lines")


def conll_sentences(path: Path) -> Iterator[list[tuple[int, str, str]]]:
    """Yields sentences of (line number, token, tag)."""
    sentence: list[tuple[int, str, str]] = []
    for number, line in numbered_lines(path):
        if not line.strip(" \t"):
            if sentence:
                yield sentence
            sentence = []
            continue
        columns = line.split("\t")
        if len(columns) == 1 and line.startswith(MARKERS):
            columns.append("O")
        if len(columns) != 2:
            hint = " (columns must be separated by a tab)" if len(columns) == 1 and " " in line else ""
            raise UserError(f"{path}:{number}: token<TAB>tag is expected, found {len(columns)} column(s){hint}.")
        sentence.append((number, columns[0], columns[1].strip(" ")))
    if sentence:
        yield sentence


READERS = {"conll": read_conll}
