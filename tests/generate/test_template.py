"""Template decoding is constrained greedy, whatever the tokenizer does at the edges of a decision."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_engine import (
    LongestMatch,
    allowed_outputs,
    constrained_greedy,
    learn_by_heart,
    tiny_config,
    tiny_engine,
)

from medtune_jax.data.encode import encode_prompt, encode_row
from medtune_jax.data.prompts import TEMPLATES, Template, get_template
from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.planning import Planner
from medtune_jax.generate.sampling import Greedy, Sample
from medtune_jax.generate.template import Row as TemplateRow
from medtune_jax.generate.template import TemplateRequest
from medtune_jax.model.llama import init_params
from medtune_jax.tasks.base import Allowed, Slot
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.rows import Row

TRAIN = get_template("medtuned_train")
WORDS = ("fever", "of", "the", "T-cell", "leukaemia", ":", "(", "B", "O", "I", "ataxia", "x", "mild", "no")


def sentences(count: int, longest: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


TOKENIZERS = {
    "characters": LongestMatch(),
    "words": LongestMatch([" : O", " : B", " : I", " : ", "fever", "ataxia", "T-", "-PRO", "BLEM", "TEST"]),
    # The label merges with what follows, with what precedes, and across the line.
    "tags and line breaks": LongestMatch([": O\n", ": B\n", " O\nf", " B\nfe", "O\nthe", " I \n", " : O \n"]),
    # How one line is read decides how the next one is: there is no place to cut.
    "pairs": LongestMatch([a + b for a in "OBI \n:" for b in "OBI \n:aeftx(mn"]),
    "whole lines": LongestMatch(["fever : O\n", "of : O\nthe : O\n", ": O\nfever : B\n", " : O\n"]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ner_equals_token_by_token_constrained_greedy(name: str) -> None:
    tokenizer, task = TOKENIZERS[name], NerTask()
    engine, params = tiny_engine(tokenizer)
    requests = [TemplateRequest("Tag it.", text, task.allowed(text)) for text in sentences(16, 5)]
    answers = engine.decode_template(requests, TRAIN, batch_size=4)
    different = 0
    for request, answer in zip(requests, answers, strict=True):
        expected = constrained_greedy(params, engine.config, tokenizer, TRAIN, request)
        assert list(answer.tokens) == expected[:-1]
        assert answer.finish_reason == "constrained"
        parsed = task.parse(answer.text, request.input)
        assert parsed.status == "exact"
        assert parsed.annotation and task.render(parsed.annotation) == (request.input, answer.text)
        different += answer.text.count("B") + answer.text.count("I")
    assert different > 8, "a model that only says O would test nothing"


@pytest.mark.parametrize("name", ["characters", "words"])
def test_typed_labels_of_several_tokens_equal_constrained_greedy(name: str) -> None:
    tokenizer, task = TOKENIZERS[name], NerTask(("PROBLEM", "PROCEDURE", "TEST"))
    engine, params = tiny_engine(tokenizer, seed=5)
    requests = [TemplateRequest("Tag it.", text, task.allowed(text)) for text in sentences(12, 4, seed=1)]
    answers = engine.decode_template(requests, TRAIN, batch_size=8)
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer.tokens) == constrained_greedy(params, engine.config, tokenizer, TRAIN, request)[:-1]
        assert task.parse(answer.text, request.input).status == "exact"
    assert len({line.split(" : ")[1] for answer in answers for line in answer.text.split("\n")}) >= 4


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["characters", "words", "pairs"])
def test_label_tasks_equal_constrained_greedy_under_every_template(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]
    engine, params = tiny_engine(tokenizer, seed=1)
    form = get_template(template)
    tasks = [
        NliTask(),
        LabelTask("relation", ("TrIP", "TrAP", "TrNAP", "No Relations"), negative="No Relations"),
        LabelTask("relation", ("a", "ab", "abc", "b")),  # one label begins another
    ]
    labels = set()
    for task in tasks:
        requests = [TemplateRequest("Decide.", text, task.allowed(text)) for text in sentences(6, 6)]
        for request, answer in zip(requests, engine.decode_template(requests, form), strict=True):
            assert list(answer.tokens) == constrained_greedy(params, engine.config, tokenizer, form, request)[:-1]
            assert task.parse(answer.text, request.input).status == "exact"
            labels.add(answer.text)
    assert len(labels) >= 3


def test_free_greedy_that_is_canonical_is_the_template_text() -> None:
    """A model that has learnt its rows by heart writes them freely; decoded by template, it writes the same."""
    tokenizer, task = LongestMatch([" : "]), NerTask()
    template = Template("short", "{input}|", "{output}")
    texts = sentences(8, 3, seed=7)
    tags = {word: "BO"[index % 2] for index, word in enumerate(WORDS)}
    outputs = [task.render((tuple(text.split()), tuple(tags[word] for word in text.split())))[1] for text in texts]
    rows = [Row("", text, output, "") for text, output in zip(texts, outputs, strict=True)]
    config = tiny_config(tokenizer.vocab_size, initializer_range=0.1)
    params = learn_by_heart(config, [encode_row(tokenizer, template, row) for row in rows])
    engine = Engine(params, config, tokenizer)
    free = engine.generate(
        [encode_prompt(tokenizer, template, "", text) for text in texts], method=Greedy(), max_new_tokens=80
    )
    forced = engine.decode_template([TemplateRequest("", text, task.allowed(text)) for text in texts], template)
    canonical = [i for i, text in enumerate(texts) if free[i].text in allowed_outputs(task.allowed(text))]
    assert len(canonical) >= 4
    for i in canonical:
        assert free[i].finish_reason == "eos"
        assert (forced[i].text, forced[i].tokens) == (free[i].text, free[i].tokens)
        assert forced[i].passes < free[i].passes


def test_an_option_that_begins_another_competes_with_what_follows_the_slot() -> None:
    tokenizer = LongestMatch(["A-", "B\n"])
    engine, params = tiny_engine(tokenizer, seed=5)
    slot = Slot(("A", "A-B", "A-BC", "B"))
    shapes = [
        ("one ", slot, "-", slot, "\ntwo ", slot, slot, "."),
        ("one ", slot, "-:x", slot, "-:"),  # where the text could be cut, "A-" begins "A-B-"
    ]
    requests = [TemplateRequest("", "x" * n, Allowed(shape)) for n in range(1, 9) for shape in shapes]
    answers = engine.decode_template(requests, TRAIN)
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer.tokens) == constrained_greedy(params, engine.config, tokenizer, TRAIN, request)[:-1]
    assert len({answer.text for answer in answers}) > 4


def test_follows_that_leads_nowhere_is_never_entered() -> None:
    engine, params = tiny_engine(LongestMatch(), seed=2)
    slot = Slot(("a", "b", "c"))
    follows = frozenset({(None, "a"), (None, "b"), ("a", "a"), ("a", "b"), ("b", "c"), ("a", "c")})  # nothing after c
    allowed = Allowed(("1", slot, " 2", slot, " 3", slot), follows)
    for seed in range(6):
        request = TemplateRequest(str(seed), "", allowed)
        (answer,) = engine.decode_template([request], TRAIN)
        expected = constrained_greedy(params, engine.config, engine.tokenizer, TRAIN, request)
        assert list(answer.tokens) == expected[:-1]


def test_an_output_without_decisions_is_echoed() -> None:
    engine, _ = tiny_engine(LongestMatch())
    answers = engine.decode_template([TemplateRequest("", "", Allowed(("just this",)))], TRAIN)
    assert [answer.text for answer in answers] == ["just this"]


def test_of_equal_logits_the_lowest_id_is_chosen() -> None:
    tokenizer, task = LongestMatch(), NerTask()
    config = tiny_config(tokenizer.vocab_size)
    params = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), config))
    request = TemplateRequest("", "a b c", task.allowed("a b c"))
    (answer,) = Engine(params, config, tokenizer).decode_template([request], TRAIN)
    assert list(answer.tokens) == constrained_greedy(params, config, tokenizer, TRAIN, request)[:-1]
    assert answer.text == "a : B\nb : B\nc : B"  # "B" comes before "I" and "O" in the vocabulary


def test_passes_are_few_and_a_single_decision_takes_one() -> None:
    engine, _ = tiny_engine(LongestMatch())
    task = LabelTask("relation", ("Yes", "No"))
    (label,) = engine.decode_template([TemplateRequest("", "text", task.allowed("text"))], TRAIN)
    assert label.passes == 1
    text = " ".join(WORDS)
    (tags,) = engine.decode_template([TemplateRequest("", text, NerTask().allowed(text))], TRAIN)
    assert 1 <= tags.passes <= len(WORDS) + 1


def test_a_row_that_does_not_fit_is_named_and_the_others_are_answered() -> None:
    engine, _ = tiny_engine(LongestMatch(), max_positions=160)
    task = NerTask()
    texts = ["fever of T-cell leukaemia", " ".join(["leukaemia"] * 9), "x"]
    seen = []
    answers = engine.decode_template(
        [TemplateRequest("", text, task.allowed(text)) for text in texts],
        TRAIN,
        on_done=lambda index, answer: seen.append((index, answer)),
    )
    assert [answer.finish_reason for answer in answers] == ["constrained", "prompt_too_long", "constrained"]
    assert (answers[1].text, answers[1].tokens, answers[1].passes) == ("", (), 0)
    assert sorted(index for index, _ in seen) == [0, 1, 2]
    assert all(answers[index] is answer for index, answer in seen)


def canonical(tokenizer: Tokenizer, template: Template, request: TemplateRequest, row: TemplateRow) -> bool:
    text = template.prompt(request.instruction, request.input)
    text += template.completion(request.allowed.text(row.options))
    return [*row.prompt, *row.tokens] == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def check_random_choices(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Whatever is chosen, the pieces together are the joint encoding; and they are as many as the decisions."""
    draw = random.Random(0)
    for template in TEMPLATES.values():
        planner = Planner(tokenizer, template)
        for text in texts:
            request = TemplateRequest("Tag the diseases.", text, NerTask(("PROBLEM", "PRO")).allowed(text))
            row = planner.plan(request)
            assert len(row.pieces) == len(text.split(" "))
            for _ in range(5):
                row.draft = [draw.randrange(len(piece.options)) for piece in row.pieces]
                assert canonical(tokenizer, template, request, row)


def test_the_longest_allowed_output_must_fit_to_the_last_position() -> None:
    request = TemplateRequest("", "text", LabelTask("relation", ("Yes", "Perhaps")).allowed("text"))
    text = TRAIN.prompt("", "text") + TRAIN.completion("Perhaps")
    positions = len(LongestMatch().encode(text)) + 2  # BOS and EOS
    for length, reason in ((positions, "constrained"), (positions - 1, "prompt_too_long")):
        engine, _ = tiny_engine(LongestMatch(), max_positions=length)
        (answer,) = engine.decode_template([request], TRAIN)
        assert answer.finish_reason == reason
        assert engine.loglikelihoods([request], TRAIN)[0].finish_reason == reason


@pytest.mark.parametrize("folder", ["models/stories260K", "tokenizers/llama2"])
def test_real_tokenizers_read_every_line_by_itself(folder: str, shared_data: Path) -> None:
    blocks = (shared_data / "raw/JNLPBA/test.tsv").read_text().split("\n\n")[:25]
    texts = [" ".join(line.split("\t")[0] for line in block.splitlines()) for block in blocks]
    check_random_choices(load_tokenizer(shared_data / folder), texts)


@pytest.mark.parametrize("split", ["llama3", "none"])
def test_byte_level_tokenizers_trained_on_such_outputs_are_cut_right(split: str, tmp_path: Path) -> None:
    """With Llama 3's way to split words, and with none: then tokens span words, lines and labels."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    steps: list[Any] = [pre_tokenizers.Split(words, "isolated")] if split == "llama3" else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    learner.pre_tokenizer = pre_tokenizers.Sequence(steps)
    learner.decoder = decoders.ByteLevel()
    texts = [*sentences(60, 12), "naïve α-synuclein – 5 µg / ml \u3000 été"]
    corpus = ["\n".join(f"{word} : {'OBI'[i % 3]}" for i, word in enumerate(text.split(" "))) for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    if split == "llama3":
        check_random_choices(tokenizer, texts[-12:])
        return
    engine, params = tiny_engine(tokenizer, seed=1)
    requests = [TemplateRequest("", text, NerTask().allowed(text)) for text in sentences(12, 5, seed=9)]
    for request, answer in zip(requests, engine.decode_template(requests, TRAIN), strict=True):
        assert list(answer.tokens) == constrained_greedy(params, engine.config, tokenizer, TRAIN, request)[:-1]


def test_decisions_that_cannot_be_parted_and_are_too_many_are_refused() -> None:
    tokenizer = LongestMatch(["\nO", "O ", " :", ": ", "O\n"])
    engine, _ = tiny_engine(tokenizer)
    text = " ".join(["O"] * 12)
    with pytest.raises(UserError, match=r"Template decoding of my corpus, row 7: .*--decode=greedy"):
        engine.decode_template([TemplateRequest("", text, NerTask().allowed(text), name="my corpus, row 7")], TRAIN)


class LooksBack(LongestMatch):
    """Reads "x" as a piece of its own wherever the line before ends in "c", though a piece begins there in any case."""

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = super().encode_batch_with_offsets(texts)
        for text, (ids, spans) in zip(texts, encoded, strict=True):
            for i, (start, end) in enumerate(spans):
                if text[start:end] == "x" and text[max(0, start - 3) : start] == "c.\n":
                    ids[i] = self._ids["<x>"]
        return encoded


def test_sides_of_a_cut_that_are_not_independent_are_not_parted() -> None:
    engine, params = tiny_engine(LooksBack(["<x>"]), seed=3)
    first, second = Slot(("a", "b", "c")), Slot(("x", "y"))
    requests = [TemplateRequest("", "z" * n, Allowed((first, ".\n", second, ".\n", second))) for n in range(1, 13)]
    answers = engine.decode_template(requests, TRAIN)
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer.tokens) == constrained_greedy(params, engine.config, engine.tokenizer, TRAIN, request)[:-1]
    assert any("c.\nx" in answer.text for answer in answers)


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_model_that_computes_no_numbers_is_an_error_and_not_an_answer(damage: float) -> None:
    tokenizer, task = LongestMatch(), NerTask()
    config = tiny_config(tokenizer.vocab_size)
    params = init_params(jax.random.key(0), config)
    params["norm"]["scale"] = params["norm"]["scale"].at[3].set(damage)
    engine = Engine(params, config, tokenizer)
    with pytest.raises(UserError, match="not finite"):
        engine.decode_template([TemplateRequest("", "a b", task.allowed("a b"))], TRAIN)
    for method in (Greedy(), Sample(), Sample(top_k=3)):
        with pytest.raises(UserError, match="not finite"):
            engine.generate([[1, 5, 6]], method=method, max_new_tokens=3)
