"""What another system (a BERT tagger or classifier) predicted, beside its gold, as rows that `medtune score` scores.

The rows are those that `prepare` renders from the same gold, so that their hash is that of the official split and runs
can be compared as pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from medtune_jax.data_prep.readers.conll import MARKERS, conll_sentences, read_conll
from medtune_jax.data_prep.readers.indexed_tsv import Line, read_lines
from medtune_jax.errors import UserError
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import quoted
from medtune_jax.tasks.rows import Row, read_rows
from medtune_jax.tasks.source import Source

Answered = tuple[Row, str]  # a gold row, and what was predicted for it in the form of its output

_Sentence = list[tuple[int, str, str]]  # (line number, token, tag)


def read_conll_pair(gold: Path, predicted: Path, source: Source) -> list[Answered]:
    """Returns the sentences of two CoNLL files of the same tokens; predictions may hold an I without its B.

    Raises:
      UserError: the source is not one of entities; a file is not `token<TAB>tag` lines; a tag that the task does not
        have; the first place where the two files differ in tokens or sentences, by file and line.
    """
    task = source.task
    if not isinstance(task, NerTask):
        raise UserError(f"--conll is for entities, but {source.name} is of task {task.kind}: give --labels GOLD PRED.")
    records = read_conll(gold, task).records
    pairs = zip_longest(_without_markers(gold), _without_markers(predicted))
    answered = []
    for number, (expected, found) in enumerate(pairs, 1):
        if expected is None or found is None:
            path, other, at = (gold, predicted, found) if expected is None else (predicted, gold, expected)
            raise UserError(
                f"{path} has {number - 1:,} sentences, but {other}:{at[0][0]} begins another: both files must hold the "
                "same sentences."
            )
        _check_tokens(gold, expected, predicted, found, source)
        tokens, tags = records[number - 1].annotation
        input, output = task.render((tokens, tags))
        predicted_tags = tuple(_tag(task, tag, f"{predicted}:{line}", source) for line, _, tag in found)
        row = Row("", input, output, source.name, group=records[number - 1].group)
        answered.append((row, task.render((tokens, predicted_tags))[1]))
    return answered


def _without_markers(path: Path) -> list[_Sentence]:
    return [one for one in conll_sentences(path) if not (len(one) == 1 and one[0][1].startswith(MARKERS))]


def _check_tokens(gold: Path, expected: _Sentence, predicted: Path, found: _Sentence, source: Source) -> None:
    def shown(token: str) -> str:
        return quoted(token, source.name)

    for one, other in zip_longest(expected, found):
        if one is not None and other is not None and one[1] == other[1]:
            continue
        if one is None:
            problem = f"{predicted}:{other[0]}: token {shown(other[1])}, but {gold}:{expected[-1][0]} ends the sentence"
        elif other is None:
            problem = f"{predicted}:{found[-1][0]}: the sentence ends, but {gold}:{one[0]} goes on with {shown(one[1])}"
        else:
            problem = f"{predicted}:{other[0]}: token {shown(other[1])}, but {gold}:{one[0]} has {shown(one[1])}"
        raise UserError(f"{problem}. Both files must hold the same tokens, one tag each.")


def _tag(task: NerTask, tag: str, where: str, source: Source) -> str:
    if not task.labels and tag[:2] in ("B-", "I-"):
        tag = tag[0]
    if tag not in task.tags:
        raise UserError(f"{where}: bad tag {quoted(tag, source.name)}; expected one of {', '.join(task.tags)}.")
    return tag


def read_label_pair(gold: Path, predicted: Path, source: Source) -> list[Answered]:
    """Returns gold rows with the label, or the labels as the source joins them, that a TSV file predicts for each.

    Args:
      gold: rows as `prepare` writes them (.parquet, .jsonl, .csv; those of the source are taken), or a .tsv of
        `sentence<TAB>label` or `index<TAB>sentence<TAB>label` with the task's own labels.
      predicted: a .tsv of `id<TAB>label`, `sentence<TAB>label` or `index<TAB>sentence<TAB>label`, one line per gold
        row, in any order; of several rows with the same sentence the first line is the first row's.

    Raises:
      UserError: with file and line, a line that is not in this form or answers no gold row, a label that is none of
        the task's; a gold row without an answer.
    """
    rows = _gold_of_tsv(gold, source) if gold.suffix == ".tsv" else read_rows(gold, sources=[source.name])
    ids = [row.id for row in rows]
    lines = list(read_lines(predicted))
    by_id = len(set(ids)) == len(ids) and bool(lines) and _key(lines[0]) in ids
    waiting: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        waiting.setdefault(row.id if by_id else row.input, []).append(at)
    answers: dict[int, str] = {}
    for line in lines:
        key = _key(line) if by_id else line.sentence
        if not waiting.get(key):
            more = "a second answer to" if key in waiting else "no row of the gold has"
            raise UserError(
                f"{line.where}: {more} the {'id' if by_id else 'sentence'} {quoted(key, source.name)}; one line per "
                f"row of {gold}, by its id or its sentence, is expected."
            )
        at = waiting[key].pop(0)
        _check_label(line, rows[at], source)
        answers[at] = line.label
    for at, row in enumerate(rows):
        if at not in answers:
            asked = quoted(row.id if by_id else row.input, source.name)
            raise UserError(f"{predicted} has no line for row {at} of {gold}, {asked}.")
    return [(row, answers[at]) for at, row in enumerate(rows)]


def _check_label(line: Line, row: Row, source: Source) -> None:
    """Raises UserError where a label is not just as the task writes it: unread, it would count as a wrong answer.

    Of several labels any order will do.
    """
    read = source.task.parse(line.label, row.input)
    if read.annotation is None or not {*read.problems} <= {"order"}:
        raise UserError(
            f"{line.where}: {quoted(line.label, source.name)} is no label of {source.name}"
            f"{_expected(source)}. Write the labels as the task does."
        )


def _expected(source: Source) -> str:
    return f" ({', '.join(source.task.labels)})" if source.task.labels else ""


def _key(line: Line) -> str:
    return line.index or line.sentence


def _gold_of_tsv(path: Path, source: Source) -> Sequence[Row]:
    rows = []
    for line in read_lines(path):
        annotation = source.task.gold(line.label, line.sentence, {}).annotation
        if annotation is None:
            raise UserError(
                f"{line.where}: {quoted(line.label, source.name)} is no label of {source.name}{_expected(source)}. "
                "Give the rows that `medtune prepare` writes of this file instead."
            )
        rows.append(Row("", line.sentence, source.task.render(annotation)[1], source.name, id=line.index))
    return rows
