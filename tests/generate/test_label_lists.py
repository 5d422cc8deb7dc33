"""Lists of labels, whose slots adjoin, and outputs that are the same for every row: exact, in few pieces, read once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_engine import LongestMatch, allowed_outputs, constrained_greedy, tiny_engine

from medtune_jax.data.prompts import TEMPLATES, Template, get_template
from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.generate import planning
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.template import TemplateRequest
from medtune_jax.tasks.base import Allowed, Slot
from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.classification import LabelTask
from medtune_jax.tasks.labels import LabelsTask

TASK = LabelsTask(("alpha", "alphabet", "beta (b)", "gamma"))  # one label begins another
TOKENIZERS = {
    "characters": (LongestMatch(), 4),
    "words": (LongestMatch(["alpha", "alphabet", "beta", "None", " alpha", " gamma"]), 4),
    # "," merges with the space behind it: no cut, one piece of all 16 outputs.
    "commas and spaces": (LongestMatch([", ", "alpha", " (b)"]), 1),
    # It merges with some labels only; their order decides which slots can be parted.
    "commas and labels": (LongestMatch(["a,", ", b", "gamma"]), 1),
    "ends": (LongestMatch(["gamma \n", "a \n", "None \n", "t,"]), 4),
}


def inputs(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(("fever", "alpha", "beta", ",", "no"), k=draw.randint(0, 6))) for _ in range(count)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_label_lists_equal_token_by_token_constrained_greedy(name: str) -> None:
    tokenizer, pieces = TOKENIZERS[name]
    template = get_template("medtuned_train")
    requests = [TemplateRequest(f"Which? {i}", text, TASK.allowed(text)) for i, text in enumerate(inputs(8))]
    assert {len(Planner(tokenizer, template).plan(request).pieces) for request in requests} == {pieces}
    texts = set()
    for seed in (0, 3):
        engine, params = tiny_engine(tokenizer, seed=seed)
        for request, answer in zip(requests, engine.decode_template(requests, template), strict=True):
            expected = constrained_greedy(params, engine.config, tokenizer, template, request)
            assert list(answer.tokens) == expected[:-1]
            assert TASK.parse(answer.text, request.input).status == "exact"
            assert answer.decisions == max(1, answer.text.count(",") + 1)
            texts.add(answer.text)
    assert len({text.count(",") for text in texts}) > 1, "a model that never goes on would test nothing"


@pytest.mark.parametrize("name", ["characters", "letters and line breaks"])
def test_letters_of_a_choice_equal_constrained_greedy(name: str) -> None:
    tokenizer = LongestMatch(["A \n", ":\n", "B", "\nC", " D"] if name != "characters" else [])
    template, task = get_template("medtuned_train"), ChoiceTask()
    engine, params = tiny_engine(tokenizer, seed=2)
    inputs_of = [
        task.render((text or "?", ("one", "two", "three", "four", "five")[: 2 + i % 4], "A"))[0]
        for i, text in enumerate(inputs(10, seed=4))
    ]
    requests = [TemplateRequest("Answer with the letter.", text, allowed_of(task, text)) for text in inputs_of]
    answers = engine.decode_template(requests, template)
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer.tokens) == constrained_greedy(params, engine.config, tokenizer, template, request)[:-1]
        assert task.parse(answer.text, request.input).status == "exact"
    assert len({answer.text for answer in answers}) > 1


def allowed_of(task: ChoiceTask, text: str) -> Allowed:
    allowed = task.allowed(text)
    assert allowed is not None
    return allowed


def test_every_list_is_canonical_whatever_is_chosen() -> None:
    """Over all outputs and templates: the pieces together are the joint encoding, and no output is missing."""
    allowed = TASK.allowed("")
    for tokenizer, _ in TOKENIZERS.values():
        for template in TEMPLATES.values():
            planner = Planner(tokenizer, template)
            for text in inputs(4, seed=2):
                row = planner.plan(TemplateRequest("Which?", text, allowed))
                found = {}
                ways: list[tuple[str | None, list[int]]] = [(None, [])]
                for piece in row.pieces:
                    ways = [
                        (piece.options[index][-1], [*chosen, index])
                        for last, chosen in ways
                        for index in piece.permitted(last)
                    ]
                for _, row.draft in ways:
                    found[allowed.text(row.options)] = [*row.prompt, *row.tokens]
                prompt = template.prompt("Which?", text)
                assert found == {
                    output: [1, *tokenizer.encode(prompt + template.completion(output)), 2]
                    for output in allowed_outputs(allowed)
                }
                assert row.longest == max(map(len, found.values()))


class Counting(LongestMatch):
    """Counts the texts that it encodes."""

    texts = 0

    def encode_batch_with_offsets(self, texts):  # type: ignore[no-untyped-def]
        self.texts += len(texts)
        return super().encode_batch_with_offsets(texts)


def plan_all(tokenizer: Counting, template: Template, requests: list[TemplateRequest]) -> list[int]:
    """Returns how many texts each row's plan encodes; each is the plan that the row would have on its own."""
    planner, counts = Planner(tokenizer, template), []
    for request in requests:
        tokenizer.texts = 0
        row = planner.plan(request)
        counts.append(tokenizer.texts)
        alone = Planner(tokenizer, template).plan(request)
        assert row.prompt == alone.prompt and row.longest == alone.longest
        assert [piece.tokens for piece in row.pieces] == [piece.tokens for piece in alone.pieces]
    return counts


def test_outputs_that_do_not_depend_on_the_row_are_read_once() -> None:
    for template in TEMPLATES.values():
        requests = [TemplateRequest("Which?", text, TASK.allowed(text)) for text in inputs(5)]
        first, *others = plan_all(Counting(["alpha", "### "]), template, requests)
        assert first > 10 and others == [1, 1, 1, 1]


def test_equal_outputs_are_read_once_and_others_for_themselves() -> None:
    template = get_template("alpaca")
    four, five = ([TemplateRequest("", str(i), Allowed((Slot(tuple("ABCDE"[:n])),))) for i in range(3)] for n in (4, 5))
    mixed = [request for pair in zip(four, five, strict=True) for request in pair]
    assert plan_all(Counting(), template, mixed) == [5, 6, 1, 1, 1, 1]


def test_few_sets_of_outputs_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_KEPT", 2)
    requests = [TemplateRequest("", "", LabelTask("label", ("x", letter)).allowed("")) for letter in "abacb"]
    assert [count > 1 for count in plan_all(Counting(), get_template("alpaca"), requests)] == [
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_row_whose_prompt_runs_into_its_output_is_planned_on_its_own() -> None:
    """No place in the template's end can be cut, or the end is read otherwise than in the first row."""
    cut_nowhere = Template("short", "{instruction}{input}|", "{output}")
    requests = [TemplateRequest("", text, TASK.allowed(text)) for text in ("x", "xx", "")]
    assert all(count > 1 for count in plan_all(Counting(), cut_nowhere, requests))
    # "ab|>" is one piece: where the input ends in "a" it swallows the template's own text.
    merging = Template("merging", "{input}b|>", "{output}")
    requests = [TemplateRequest("", text, TASK.allowed(text)) for text in ("x", "xa", "y", "a")]
    counts = plan_all(Counting(["ab", "b|", "ab|>"]), merging, requests)
    assert all(count > 1 for count in counts)


class ReadsBehindZ(Counting):
    """Reads the template's end otherwise in a prompt that holds a "z", though no piece spans the place."""

    def encode_batch_with_offsets(self, texts):  # type: ignore[no-untyped-def]
        encoded = super().encode_batch_with_offsets(texts)
        for text, (ids, _) in zip(texts, encoded, strict=True):
            if "z" in text:
                ids[ids == self._ids[":"]] = self._ids["<:>"]
        return encoded


def test_a_row_that_is_read_otherwise_is_found_out() -> None:
    requests = [TemplateRequest("", text, LabelTask("label", ("p", "q")).allowed(text)) for text in ("x", "z", "y")]
    assert plan_all(ReadsBehindZ(["<:>"]), get_template("alpaca"), requests)[1] > 1


@pytest.mark.parametrize("folder", ["models/stories260K", "tokenizers/llama2"])
def test_real_tokenizers_part_the_labels_of_a_list(folder: str, shared_data: Path) -> None:
    tokenizer: Tokenizer = load_tokenizer(shared_data / folder)
    task = LabelsTask(("cell death (CD)", "angiogenesis (A)", "growth (G)", "immune (I)", "repair (R)", "energy (E)"))
    draw = random.Random(0)
    for template in TEMPLATES.values():
        planner = Planner(tokenizer, template)
        for text in ("", "Some text ( 5 µg ) .", "  two  spaces ", "ends in a line break\n", "\u3000 α-synuclein"):
            request = TemplateRequest("Which hallmarks?", text, task.allowed(text))
            row = planner.plan(request)
            assert len(row.pieces) == len(task.labels)
            for _ in range(20):
                row.draft, last = [], None
                for piece in row.pieces:
                    row.draft.append(draw.choice(piece.permitted(last)))
                    last = piece.options[row.draft[-1]][-1]
                whole = template.prompt(request.instruction, text) + template.completion(
                    request.allowed.text(row.options)
                )
                assert [*row.prompt, *row.tokens] == [tokenizer.bos_id, *tokenizer.encode(whole), tokenizer.eos_id]
