"""What a source of instruction rows is: its task, licence, files, official splits and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medtune_jax.tasks.base import Task

SPLITS = ("train", "validation", "test", "test2", "test3")
UNSTATED = "unstated"
UNKNOWN_LICENCE = "unknown"


def is_unknown_licence(licence: str) -> bool:
    """Returns whether a licence only says that none is known: it begins with "unknown", as "Unknown (asked)" does."""
    return licence.strip().casefold().startswith(UNKNOWN_LICENCE)


@dataclass(frozen=True)
class Published:
    """A figure from a paper, comparable only on the rows that it was computed on.

    Attributes:
      value: in 0..1.
      split: the official split it was computed on as far as is known, else `unstated`.
      n: rows of that split; 0 where unstated.
      cited: where the figure stands, and what is known of its rows and scoring.
      protocol: the protocol of evaluate/protocols.py that it was computed by; "" where that is not known.
      inferred: whether split and protocol are our inference (`cited` says from what), not what its authors state.
    """

    model: str
    metric: str
    value: float
    split: str
    n: int
    cited: str
    protocol: str = ""
    inferred: bool = False


@dataclass(frozen=True)
class Layout:
    """One form in which a corpus is distributed.

    Attributes:
      format: the native format, a key of data_prep's READERS.
      files: split (train, validation, test) -> file or folder in the raw folder; a file may serve several splits, its
        reader then picks the split's rows.
      also: further files that the reader needs, for every split.
      columns: what the reader looks for -> name of the column in the file, where the format leaves names open.
      label_names: a label or tag in the file -> the task's, where they differ (format `table`).
      separator: what stands between the values in a cell that holds several; "" where it holds a list (format `table`).
      answer_form: how the answer of a choice is given: letter, index0, index1 or text (format `table`).
    """

    format: str
    files: Mapping[str, str]
    also: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    label_names: Mapping[str, str] = field(default_factory=dict)
    separator: str = ""
    answer_form: str = "letter"


@dataclass(frozen=True)
class Source:
    """A corpus under its name.

    Attributes:
      layouts: the forms it is read in; the first of which a file is found counts.
      where: how to get it, said to users who lack it.
      folder: name of its raw folder, where it is not the source's own (several sources may share one).
      category: what its rows ask for (QA, IE, GEN, other), for mixtures; a row's meta may say otherwise.
      splits: gold_sha256 -> name of the official split (train, validation, test).
      expected: split -> count of what was published (`rows`, `mentions`, `positives`), compared by `prepare`.
      wordings: instructions of a source that a user defined; those of the built-in ones are data_prep's.
      definition: what a user's source was made from (`definition.source_of`); None for a built-in one.
    """

    name: str
    task: Task
    layouts: tuple[Layout, ...]
    licence: str
    credentialed: bool
    description: str
    where: str
    folder: str = ""
    category: str = "IE"
    splits: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    aliases: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()
    definition: Mapping[str, Any] | None = None
