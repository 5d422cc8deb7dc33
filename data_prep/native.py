"""What every reader of a native corpus file is asked for and returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.classification import LabelTask
from medtune_jax.tasks.rows import read_text
from medtune_jax.tasks.source import Layout

GadPolarity = Literal["association", "legacy"]


@dataclass(frozen=True)
class Record:
    """One annotated example.

    Attributes:
      annotation: what its task renders.
      id: the corpus's own name of it (PMID, sentence id), "" where it has none; it goes into the row's meta.
      group: what belongs together (document, patient), "" where unknown.
      instruction: the example's own, where the corpus brings one; else a wording of the source is chosen.
      meta: further facts, JSON-ready.
    """

    annotation: Any
    id: str = ""
    group: str = ""
    instruction: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class NativeFile:
    """The examples of one split in file order, and why anything in the file is not among them."""

    records: list[Record] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def annotations(self) -> list[Any]:
        return [record.annotation for record in self.records]


@dataclass(frozen=True)
class Ask:
    """What is to be read.

    Attributes:
      split: train, validation or test, for files that hold several.
      layout: the form in which the files lie there.
      gad_polarity: `association` (label 1 is Positive) or `legacy` (inverted, as the Llama2-MedTuned authors have it).
    """

    split: str
    layout: Layout
    gad_polarity: GadPolarity = "association"


ANY = Ask("train", Layout("", {}))  # for readers of files that hold one split in one form
Reader = Callable[[Path, Task, Ask], NativeFile]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end); lines end at LF or CRLF and at nothing else.

    Raises:
      UserError: the file is not UTF-8 or cannot be read.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        yield number, line.removesuffix("\r")


def not_empty(found: NativeFile, path: Path, expected: str) -> NativeFile:
    """Returns `found`.

    Raises:
      UserError: nothing was read from the file.
    """
    if not found.records:
        raise UserError(f"{path}: empty, no {expected} in it.")
    return found


def label_of(text: str, labels: Mapping[str, str] | Sequence[str], where: str, what: str = "label") -> str:
    """Returns what a label in a file, in any case, stands for.

    Args:
      labels: the task's labels, or label in the file -> label of the task.
      where: its file and line.
      what: what it is called there, for the error.

    Raises:
      UserError: it is none of them.
    """
    by_name = labels if isinstance(labels, Mapping) else {label: label for label in labels}
    for name, label in by_name.items():
        if text.strip().casefold() == name.casefold():
            return label
    raise UserError(f"{where}: unknown {what} '{text}'.{did_you_mean(text, by_name)}")


def with_negative(task: Task) -> tuple[LabelTask, str]:
    """Returns a task and its negative label, for formats in which a pair may have no relation.

    Raises:
      UserError: it has none (a user's own source may lack it).
    """
    if not isinstance(task, LabelTask) or task.negative is None:
        raise UserError("This format has pairs without a relation: the task needs a `negative` label for them.")
    return task, task.negative
