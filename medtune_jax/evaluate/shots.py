"""k-shot prompting: solved rows of the train split, written before a row's prompt.

All rows of a source have the same demonstrations, so that the engine computes them once; a row that they leave too
little room has fewer, the last ones dropped. They are written in the model's own template, prompt and completion, with
SEPARATOR behind each. That no end of sequence stands between them, the separator, their order and their balance are
our assumptions: neither paper says how it shows an untuned model what is asked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medtune_jax.data.packing import order
from medtune_jax.data.prompts import Template
from medtune_jax.errors import UserError
from medtune_jax.generate.answering import Question, Way, longest_answer
from medtune_jax.generate.template import common_prefix
from medtune_jax.tasks.reading import read_gold
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row, registered_name

if TYPE_CHECKING:
    from medtune_jax.data.tokenizer import Tokenizer

SEPARATOR = "\n\n"
LARGEST_SHARE = 0.25  # of the context: a longer demonstration is passed over for the next
_SEAM = 8  # tokens by which texts may be longer encoded jointly than apart


@dataclass(frozen=True)
class Candidates:
    """The training rows of one source that may be shown, in the order of choice.

    Attributes:
      rows: (index among the training rows of the source, row).
      asked_too: training rows left out because their input is asked here; group_asked: because their group is.
    """

    rows: tuple[tuple[int, Row], ...]
    asked_too: int
    group_asked: int


@dataclass(frozen=True)
class Demonstrations:
    """What is shown before the rows of one source.

    Attributes:
      texts: each with the separator behind it; gated where the source is credentialed.
      rows: of each, its index among the training rows of the source.
      tokens: of each, alone.
      asked_too, group_asked: see `Candidates`.
      too_long: candidates passed over because they are longer than LARGEST_SHARE.
    """

    texts: tuple[str, ...]
    rows: tuple[int, ...]
    tokens: tuple[int, ...]
    asked_too: int
    group_asked: int
    too_long: int

    def that_fit(self, tokens: int, max_positions: int) -> int:
        """Returns how many leave room for `tokens`: BOS, a row's prompt and its longest answer."""
        ends = itertools.accumulate(self.tokens)
        return sum(end + tokens + _SEAM <= max_positions for end in ends)

    def provenance(self, rows_by_shots: Mapping[int, int]) -> dict[str, Any]:
        """Returns what may be told of them, no text, and how many rows are shown how many, JSON-ready."""
        return {
            "training_rows": list(self.rows),
            "sha256": hashlib.sha256(json.dumps(self.texts).encode()).hexdigest(),
            "training_rows_asked_too": self.asked_too,
            "training_rows_of_asked_groups": self.group_asked,
            "passed_over_as_too_long": self.too_long,
            "rows_by_shots": {str(shots): rows_by_shots[shots] for shots in sorted(rows_by_shots)},
        }


def candidates(train: Sequence[Row] | None, asked: Sequence[Row], seed: int, data: str) -> dict[str, Candidates]:
    """Returns, for each source of `asked`, the training rows that may be shown, balanced over their classes.

    Args:
      train: rows of the train split, None where there is none.
      asked: the rows of the split that is evaluated, all of them, so that a limit does not change what is shown.
      seed: of the order, an integer hash.
      data: name of the data, for errors.

    Raises:
      UserError: there is no train split, or none of its rows of a source can be shown.
    """
    if train is None:
        raise UserError(
            f"--shots shows rows of the train split, which {data} does not have: give a folder with train.parquet, as "
            "`medtune prepare` writes it, or leave --shots out."
        )
    questions: dict[str, set[str]] = defaultdict(set)
    groups: dict[str, set[str]] = defaultdict(set)
    for row in asked:
        questions[registered_name(row.source)].add(_question(row))
        groups[registered_name(row.source)].add(row.group)
    own: dict[str, list[Row]] = defaultdict(list)
    for row in train:
        own[registered_name(row.source)].append(row)
    return {
        name: _candidates(name, own[name], questions[name], groups[name] - {""}, seed, data)
        for name in sorted(questions)
    }


def _candidates(name: str, own: Sequence[Row], asked: set[str], groups: set[str], seed: int, data: str) -> Candidates:
    """Returns what may be shown of a source; asked, groups: questions and groups of the rows that are asked.

    A document's number may begin anew in each file, or a group be a whole collection: where all training rows are of
    asked groups, these name no documents and leave nothing out.
    """
    asked_too = group_asked = 0
    heeded = groups if any(row.group not in groups for row in own) else set()
    seen: set[str] = set()  # no question is shown twice
    classes: dict[int, tuple[str, ...]] = {}
    for index in order(len(own), seed, epoch=0).tolist():
        question = _question(own[index])
        asked_too += question in asked
        if question in asked or question in seen:
            continue
        if own[index].group in heeded:
            group_asked += 1
            continue
        seen.add(question)
        if (of_row := _classes(index, own[index])) is not None:
            classes[index] = of_row
    if not classes:
        why = "it has no such rows" if not own else f"{asked_too:,} of its {len(own):,} rows there are asked here"
        why += f", {group_asked:,} are of a document that is" if group_asked else ""
        why = why if find_source(name) else "the registry of sources does not know it"
        raise UserError(
            f"--shots shows rows of the train split of {data}, but of source '{name}' none can be shown: {why}. Choose "
            "other rows with --sources, or leave --shots out."
        )
    return Candidates(tuple((index, own[index]) for index in _balanced(classes)), asked_too, group_asked)


def show(
    found: Mapping[str, Candidates],
    shots: int,
    rows: Sequence[Question],
    ways: Sequence[Way],
    template: Template,
    tokenizer: Tokenizer,
    max_positions: int,
) -> tuple[list[str], dict[str, Any]]:
    """Returns (per row what is shown before its prompt, source -> what provenance says of it).

    Args:
      found: of which the first `shots` are shown that are not too long; a source that it lacks is shown nothing.
      ways: how each row is answered, with its budget: prompt and longest answer must fit behind what is shown.
    """
    demonstrations = {name: _write(of, shots, template, tokenizer, max_positions) for name, of in found.items()}
    prefaces = []
    joined: dict[tuple[str, int], str] = {}  # one text for all rows that are shown the same
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row, way in zip(rows, ways, strict=True):
        name = registered_name(row.source)
        if name not in demonstrations:
            prefaces.append("")
            continue
        own = demonstrations[name]
        prompt = tokenizer.encode(template.prompt(row.instruction, row.input))
        fitting = own.that_fit(1 + len(prompt) + longest_answer(row, way, template, tokenizer), max_positions)
        counts[name][fitting] += 1
        if (name, fitting) not in joined:
            joined[name, fitting] = "".join(own.texts[:fitting])
        prefaces.append(joined[name, fitting])
    return prefaces, {name: own.provenance(counts[name]) for name, own in demonstrations.items()}


def _write(
    found: Candidates, shots: int, template: Template, tokenizer: Tokenizer, max_positions: int
) -> Demonstrations:
    taken: list[tuple[int, str, int]] = []
    too_long = 0
    for index, row in found.rows:
        if len(taken) == shots:
            break
        text = template.prompt(row.instruction, row.input) + template.completion(row.output) + SEPARATOR
        size = len(tokenizer.encode(text))
        if size > LARGEST_SHARE * max_positions:
            too_long += 1
        else:
            taken.append((index, text, size))
    indices, texts, sizes = zip(*taken, strict=True) if taken else ((), (), ())
    return Demonstrations(texts, indices, sizes, found.asked_too, found.group_asked, too_long)


def stop_strings(template: Template) -> tuple[str, ...]:
    """Returns what a model writes that goes on to invent the next example: the line with which a prompt begins."""
    head, bare = (form.partition("{")[0] for form in (template.prompt_form, template.bare_form or template.prompt_form))
    begin = head[: common_prefix(head, bare)].rstrip()
    return (f"\n{begin}",) if begin else ()


def _question(row: Row) -> str:
    """Returns what makes two rows the same question: the input, or the instruction where all is said there.

    Case, white space and the forms of a letter (NFKC) make no other question.
    """
    text = row.input if row.input.strip() else row.instruction
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _classes(index: int, row: Row) -> tuple[str, ...] | None:
    """Returns the classes of which the row is an example; None where its answer is blank or cannot be read."""
    source = find_source(row.source)
    if not row.output.strip():
        return None
    if source is None:
        return ()
    try:
        return source.task.classes(read_gold(source.task, index, row).annotation)
    except UserError:
        return None


def _balanced(classes: Mapping[int, tuple[str, ...]]) -> list[int]:
    """Returns the rows in an order in which every class has its turn; rows of no class are the last one's turn.

    Classes take turns in the order in which they first occur: one demonstration alone shows a likely class, and a
    mention or label rather than none.

    Args:
      classes: row -> its classes; the order of rows is that of choice within a class.
    """
    queues: dict[str | None, deque[int]] = {}
    for row, of_row in classes.items():
        for name in of_row or (None,):
            queues.setdefault(name, deque()).append(row)
    if None in queues:
        queues[None] = queues.pop(None)  # now the last
    ranked: dict[int, None] = {}
    while queues:
        for name, queue in list(queues.items()):
            while queue and queue[0] in ranked:
                queue.popleft()
            if queue:
                ranked[queue.popleft()] = None
            else:
                del queues[name]
    return list(ranked)
