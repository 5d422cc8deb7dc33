"""Exact speculation: greedy's text, whatever was drafted, in as few passes as the drafts are good."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import LongestMatch, learn_by_heart, tiny_config, tiny_engine

from medtune_jax.data.encode import encode_prompt, encode_row
from medtune_jax.data.prompts import Template, get_template
from medtune_jax.errors import UserError
from medtune_jax.generate.drafts import Guess, Lookup
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.results import Generation
from medtune_jax.generate.sampling import Beam, Greedy, Sample
from medtune_jax.generate.template import TemplateRequest
from medtune_jax.tasks.base import Allowed, Slot
from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.labels import LabelsTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.rows import Row

TRAIN = get_template("medtuned_train")
SHORT = Template("short", "{input}|", "{output}")
TOKENIZER = LongestMatch([" : O", " : B", "fever", "O\n", "Out", "B\n"])
NER = NerTask()
WORDS = ("fever", "of", "the", "T-cell", "ataxia", ":", "x", "no")


def sentences(count: int, longest: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def requests_of(texts: Sequence[str]) -> list[TemplateRequest]:
    """A row of every shape of output for each text: lines, labels, a letter."""
    labels, choice = LabelsTask(("alpha", "alphabet", "beta (b)")), ChoiceTask()
    rows = []
    for number, text in enumerate(texts):
        question = choice.render((text, ("one", "two", "three"), "A"))[0]
        letters = choice.allowed(question)
        assert letters is not None
        kinds = [(text, NER.allowed(text)), (text, labels.allowed(text)), (question, letters)]
        input, allowed = kinds[number % len(kinds)]
        rows.append(TemplateRequest(f"Answer {number}.", input, allowed))
    return rows


def told(answers: Sequence[Generation]) -> list[tuple[object, ...]]:
    return [(answer.tokens, answer.text, answer.finish_reason, answer.decisions) for answer in answers]


@pytest.fixture(scope="module")
def random_model() -> Engine:
    return tiny_engine(TOKENIZER)[0]


@pytest.fixture(scope="module")
def by_heart() -> tuple[Engine, list[TemplateRequest]]:
    """A model that writes a few NER rows freely as the template has them."""
    texts = sentences(6, 4, seed=7)
    tags = {word: "BO"[index % 2] for index, word in enumerate(WORDS)}
    outputs = [NER.render((tuple(text.split()), tuple(tags[word] for word in text.split())))[1] for text in texts]
    rows = [Row("", text, output, "") for text, output in zip(texts, outputs, strict=True)]
    config = tiny_config(TOKENIZER.vocab_size, initializer_range=0.1)
    params = learn_by_heart(config, [encode_row(TOKENIZER, SHORT, row) for row in rows])
    return Engine(params, config, TOKENIZER), [TemplateRequest("", text, NER.allowed(text)) for text in texts]


def prompts_of(requests: Sequence[TemplateRequest], template: Template) -> list[list[int]]:
    return [encode_prompt(TOKENIZER, template, request.instruction, request.input) for request in requests]


def test_text_and_ending_are_greedys_in_every_task_and_mixed_batches(random_model: Engine) -> None:
    requests = requests_of(sentences(24, 6))
    prompts = prompts_of(requests, TRAIN)
    limits = [1 + 9 * index % 41 for index in range(len(prompts))]  # one token, and budgets that end within a draft
    greedy = random_model.generate(prompts, method=Greedy(), max_new_tokens=limits, batch_size=8)
    looked_up = random_model.generate(prompts, method=Greedy(), max_new_tokens=limits, batch_size=8, draft="prompt")
    assert told(looked_up) == told(greedy)
    templated = random_model.speculate_template(requests, TRAIN, max_new_tokens=limits, batch_size=8)
    assert told(templated) == told(greedy)
    for answer in (*looked_up, *templated):
        written = len(answer.tokens) + (answer.finish_reason == "eos")
        assert answer.accepted <= answer.drafted and answer.passes == written - answer.accepted


def test_a_model_that_writes_the_template_needs_few_passes(by_heart: tuple[Engine, list[TemplateRequest]]) -> None:
    engine, requests = by_heart
    greedy = engine.generate(prompts_of(requests, SHORT), method=Greedy(), max_new_tokens=80)
    decoded = engine.decode_template(requests, SHORT)
    canonical = [i for i, answer in enumerate(greedy) if answer.text == decoded[i].text]
    assert len(canonical) >= 4, "this test needs a model that has learnt its rows"
    assert all(greedy[i].finish_reason == "eos" for i in canonical)
    speculated = engine.speculate_template(requests, SHORT, max_new_tokens=80)
    assert told(speculated) == told(greedy)
    for i in canonical:
        # Template decoding counts a pass in which nothing changes any more; here each pass writes on.
        assert speculated[i].passes <= decoded[i].passes + 1
    assert sum(speculated[i].passes for i in canonical) < sum(greedy[i].passes for i in canonical) / 3
    assert engine.work.accepted == sum(answer.accepted for answer in speculated)


@pytest.mark.parametrize("kind", ["right", "wrong", "sometimes right", "too long"])
def test_no_draft_changes_the_text(kind: str, random_model: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(requests_of(sentences(6, 5, seed=3)), TRAIN)
    greedy = random_model.generate(prompts, method=Greedy(), max_new_tokens=30, batch_size=4)
    texts = {tuple(prompt): answer.tokens for prompt, answer in zip(prompts, greedy, strict=True)}
    draw = random.Random(1)

    class Drafted(Guess):
        def __init__(self, prompt: Sequence[int], row: None):
            super().__init__(prompt, row)
            self.right = [*texts[tuple(prompt)]]

        def draft(self, most: int) -> list[int]:
            tokens = self.right[len(self._written) :][:most]
            if kind == "too long":
                tokens = [*tokens, *[7] * most][:most]
            share = {"wrong": 0.0, "sometimes right": 0.9}.get(kind, 1.0)
            return [token if draw.random() < share else 3 + (token + 1) % 90 for token in tokens]

    monkeypatch.setattr("medtune_jax.generate.speculative.Guess", Drafted)
    answers = random_model.generate(prompts, method=Greedy(), max_new_tokens=30, batch_size=4, draft="prompt")
    assert told(answers) == told(greedy)
    for answer, plain in zip(answers, greedy, strict=True):
        if kind == "wrong":
            assert (answer.accepted, answer.passes) == (0, plain.passes)
        elif kind in ("right", "too long"):
            assert answer.passes == 1


def test_a_stopped_run_continues_with_the_same_answers(random_model: Engine) -> None:
    prompts = prompts_of(requests_of(sentences(9, 5, seed=4)), TRAIN)
    whole = random_model.generate(prompts, method=Greedy(), max_new_tokens=20, batch_size=8, draft="prompt")
    rest = random_model.generate(
        prompts, method=Greedy(), max_new_tokens=20, batch_size=8, draft="prompt", skip={0, 1, 2, 5}
    )
    assert rest == [answer for index, answer in enumerate(whole) if index not in {0, 1, 2, 5}]


def test_stop_strings_and_streaming_are_greedys(random_model: Engine) -> None:
    prompts = prompts_of(requests_of(sentences(6, 5, seed=5)), TRAIN)
    free = random_model.generate(prompts, method=Greedy(), max_new_tokens=30, batch_size=8)
    stop = [free[0].text[5:7], free[1].text[3]]
    greedy = random_model.generate(prompts, method=Greedy(), max_new_tokens=30, batch_size=8, stop=stop)
    assert "stop" in {answer.finish_reason for answer in greedy}
    pieces = [""] * len(prompts)

    def on_text(index: int, piece: str) -> None:
        pieces[index] += piece

    drafted = random_model.generate(
        prompts, method=Greedy(), max_new_tokens=30, batch_size=8, stop=stop, draft="prompt", on_text=on_text
    )
    assert told(drafted) == told(greedy)
    assert pieces == [answer.text for answer in greedy]


@pytest.mark.parametrize("method", [Sample(0.5), Beam(), Greedy(repetition_penalty=1.2)])
def test_a_method_that_is_not_plain_greedy_has_no_drafts(method: Sample | Beam | Greedy, random_model: Engine) -> None:
    with pytest.raises(UserError, match="Drafts serve greedy decoding"):
        random_model.generate([[1, 5]], method=method, max_new_tokens=3, draft="prompt")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 9))
def test_a_look_up_goes_on_behind_the_latest_place_of_the_longest_ngram(text: list[int], most: int) -> None:
    lookup = Lookup()
    for token in text:
        lookup.extend([token])
    expected: list[int] = []
    for size in (1, 2, 3):
        ends = [end for end in range(size, len(text)) if text[end - size : end] == text[len(text) - size :]]
        expected = text[ends[-1] : ends[-1] + most] if ends else expected
    assert lookup.following(most) == expected


def test_drafts_follow_the_models_choices_and_return_to_a_template_that_was_left() -> None:
    slot = Slot(("O", "B"))
    parts = tuple(part for word in ("\none :", "\ntwo :", "\nthree :", "\nfour :") for part in (word, slot))
    request = TemplateRequest("", "x", Allowed(parts))
    tokenizer = LongestMatch()
    plan = Planner(tokenizer, SHORT).plan(request)
    guess = Guess(plan.prompt, plan)

    def written(text: str) -> list[int]:
        return [*tokenizer.encode(text)]

    text = "\none :O\ntwo :O\nthree :O\nfour :O"
    assert guess.draft(100) == written(text)
    # The model agrees up to the second label, and behind the draft of the fourth it would choose B as well.
    greedy = written("\none :O\ntwo :B\nthree :O\nfour :B")
    guess.learn(written(text), [*greedy, 0], greedy[:14])
    assert guess.draft(100) == written("\nthree :O\nfour :B")
    # It misspells a word: the template is left, and taken up again where the text agrees with it.
    guess.learn(written("\nthree :O\nfour :B"), [], written("\nthe"))
    guess.learn(guess.draft(100), [], written("y :O"))
    assert guess.draft(100) == written("\nfour :B")


def test_a_prompt_whose_end_is_read_otherwise_before_an_output_is_a_prompt_still() -> None:
    tokenizer = LongestMatch(["|B", "|Out"])
    request = TemplateRequest("", "x", Allowed((Slot(("Out", "B")),)))
    plan, prompt = Planner(tokenizer, SHORT).plan(request), encode_prompt(tokenizer, SHORT, "", "x")
    assert plan.prompt == prompt[:-1], "this test needs a token that spans prompt and output"
    assert Guess(prompt, plan).draft(10) == []
