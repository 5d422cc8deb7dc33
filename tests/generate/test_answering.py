"""Rows by ten thousands: what each permits is found, and planned, a group at a time, ahead of who works on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_engine import LongestMatch

from medtune_jax.data.prompts import Template, get_template
from medtune_jax.errors import UserError
from medtune_jax.generate import core as core_module
from medtune_jax.generate.answering import Way, answer_rows
from medtune_jax.generate.template import TemplateRequest
from medtune_jax.generate.templated import Planned, planned
from medtune_jax.tasks.base import Allowed
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import get_source

TRAIN = get_template("medtuned_train")
TOKENIZER = LongestMatch()
GROUP = 4
NER = "NCBI-disease"


@dataclass(frozen=True)
class Asked:
    input: str
    instruction: str = "Tag."
    source: str = NER


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The inputs whose allowed outputs were asked for, in that order."""
    inputs: list[str] = []
    task = get_source(NER).task
    plain = task.allowed

    def allowed(input: str) -> Allowed | None:
        inputs.append(input)
        return plain(input)

    monkeypatch.setattr(task, "allowed", allowed)
    monkeypatch.setattr(core_module, "_LEAST_GROUP", GROUP)
    monkeypatch.setattr(core_module, "_BATCHES", 1)
    yield inputs


def core() -> Any:
    return SimpleNamespace(tokenizer=TOKENIZER)


class Reader:
    """An engine that plans rows, and looks at how many were asked for what they permit."""

    tokenizer = TOKENIZER

    def __init__(self, found: list[str]):
        self.found, self.seen = found, [0]

    def decode_template(self, requests: Any, template: Template, **told: Any) -> None:
        self.seen = [len(self.found)]
        with closing(planned(core(), requests, template)) as groups:
            self.seen += [len(self.found) for _ in groups]


def test_what_rows_permit_is_found_at_most_a_group_ahead(found: list[str]) -> None:
    rows = [Asked("x " * n + "x") for n in range(5 * GROUP)]
    reader: Any = Reader(found)
    answer_rows(reader, TRAIN, rows, [Way("template", 0)] * len(rows), on_done=lambda *_: None)
    assert reader.seen[0] == 0
    assert all(seen <= GROUP * (turn + 2) for turn, seen in enumerate(reader.seen[1:]))
    assert found == [row.input for row in rows[::-1]], "each once, longest first"


def requests_of(count: int) -> list[TemplateRequest]:
    return [TemplateRequest("", "a " * n + "a", NerTask().allowed("a " * n + "a")) for n in range(count)]


@pytest.mark.usefixtures("found")
def test_groups_are_those_of_all_rows_whichever_are_skipped() -> None:
    def indices(groups: Iterator[Planned]) -> list[list[int]]:
        return [[index for index, _ in group] for group in groups]

    requests = requests_of(3 * GROUP)
    whole = indices(planned(core(), requests, TRAIN))
    assert [len(group) for group in whole] == [GROUP] * 3
    skip = {*whole[1], whole[2][0]}
    assert indices(planned(core(), requests, TRAIN, skip)) == [whole[0], whole[2]]


@pytest.mark.usefixtures("found")
def test_planning_ends_with_its_reader() -> None:
    with pytest.raises(KeyboardInterrupt), closing(planned(core(), requests_of(6 * GROUP), TRAIN)) as groups:
        next(groups)
        raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("planning")]


@pytest.mark.usefixtures("found")
def test_an_error_of_planning_comes_when_its_group_is_due() -> None:
    def damaged() -> Any:
        raise UserError("row 3 is damaged")

    requests = requests_of(3 * GROUP)
    requests[0] = TemplateRequest("", "", damaged)  # the shortest: in the last group
    groups = planned(core(), requests, TRAIN)
    assert len([next(groups), next(groups)]) == 2
    with pytest.raises(UserError, match="row 3"):
        next(groups)
