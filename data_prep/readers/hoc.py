"""The Hallmarks of Cancer corpus: `document_id text labels`, a line per sentence, labels joined by `|`, no quoting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, label_of, not_empty, numbered_lines
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.sources.classification import HALLMARKS

_HEADER = "document_id\ttext\tlabels"
_EXPECTED = "document_id<TAB>text<TAB>labels"
_NONE = ("", "none")


def read_hoc(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (text, labels) of every sentence; `none` and nothing at all both say that it has no label.

    Labels stand in the order of the task, whatever their order in the file. The id is the sentence's, the group its
    document: what stands before the last `_` of `document_id`.

    Raises:
      UserError: with file and line: no header, not three columns, an empty text, an id not of the form
        `document_sentence`, an unknown label; with the file: not UTF-8, no sentence.
    """
    found = NativeFile()
    for _, document, sentence, text, labels in _sentences(path, task):
        found.records.append(Record((text, labels), id=f"{document}_{sentence}", group=document))
    return not_empty(found, path, f"{_EXPECTED} lines")


def read_hoc_documents(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (text, labels) of every document: its sentences in file order joined by a space, the union of their
    labels in the order of the task. Id and group are the document's.

    Raises:
      UserError: as `read_hoc`; or sentences of a document that do not stand together.
    """
    texts: dict[str, list[str]] = {}
    names: dict[str, set[str]] = {}
    last = ""
    for where, document, sentence, text, labels in _sentences(path, task):
        if document != last and document in texts:
            raise UserError(f"{where}: sentence {document}_{sentence} stands apart from the others of its document.")
        texts.setdefault(document, []).append(text)
        names.setdefault(document, set()).update(labels)
        last = document
    found = NativeFile()
    for document, sentences in texts.items():
        labels = tuple(label for label in task.labels if label in names[document])
        found.records.append(Record((" ".join(sentences), labels), id=document, group=document))
    return not_empty(found, path, f"{_EXPECTED} lines")


def _sentences(path: Path, task: Task) -> Iterator[tuple[str, str, str, str, tuple[str, ...]]]:
    """Yields (file:line, document, number of the sentence in it, text, labels in the order of the task)."""
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        if number == 1:
            if line != _HEADER:
                raise UserError(f"{where}: the header {_EXPECTED} is expected.")
            continue
        if not line:
            continue
        columns = line.split("\t")
        if len(columns) != 3 or not columns[1].strip():
            raise UserError(f"{where}: {_EXPECTED} is expected, found {len(columns)} column(s) or no text.")
        document, _, sentence = columns[0].rpartition("_")
        if not document or not sentence.isdigit():
            raise UserError(f"{where}: id '{columns[0]}' is not of the form document_sentence, as 22239943_0.")
        named = set()
        for name in columns[2].split("|"):
            if name.strip() in _NONE:
                continue
            named.add(label_of(name, HALLMARKS, where))
        yield where, document, sentence, columns[1], tuple(label for label in task.labels if label in named)


READERS = {"hoc_tsv": read_hoc, "hoc_documents": read_hoc_documents}
