"""Template decoding agrees with the same constraint taken token by token; where it does not, the check says so."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny_engine import LongestMatch, constrained_greedy, tiny_config, tiny_engine

from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.errors import UserError
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.template import TemplateRequest
from medtune_jax.model.llama import init_params
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.labels import LabelsTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.rows import read_rows

TEMPLATE = get_template("medtuned_train")
TOKENIZER = LongestMatch([" : O", "fever", "O\n", "-PRO", "BLEM", "a,", "None", "A \n"])
WORDS = ("fever", "of", "T-cell", "ataxia", ":", "B", "O", "x", "no")
KINDS: tuple[Task, ...] = (
    NerTask(),
    NerTask(("PROBLEM", "PROCEDURE", "TEST")),
    NliTask(),
    LabelTask("relation", ("a", "ab", "abc", "No Relations"), negative="No Relations"),
    LabelsTask(("alpha", "alphabet", "beta (b)")),
    ChoiceTask(),
)


def requests_of(count: int) -> list[TemplateRequest]:
    """Rows of every kind in turn."""
    draw, rows = random.Random(0), []
    for number in range(count):
        task, text = KINDS[number % len(KINDS)], " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))
        if isinstance(task, ChoiceTask):
            text = task.render((text, ("one", "two", "three")[: 2 + number % 2], "A"))[0]
        allowed = task.allowed(text)
        assert allowed is not None
        rows.append(TemplateRequest(f"Row {number}.", text, allowed))
    return rows


def test_every_task_is_decoded_as_token_by_token_and_the_check_takes_the_slow_references_way() -> None:
    engine, params = tiny_engine(TOKENIZER, seed=1)
    requests = requests_of(90)
    answers = engine.decode_template(requests, TEMPLATE)
    found = engine.check_template(requests, TEMPLATE, answers, batch_size=16)
    assert (found.rows, found.differences) == (90, ())
    assert found.decisions > 150
    assert len({answer.text for answer in answers}) > 30
    for request, answer in list(zip(requests, answers, strict=True))[:12]:
        assert [*answer.tokens, 2] == constrained_greedy(params, engine.config, TOKENIZER, TEMPLATE, request)


def test_a_difference_is_told_with_its_place_its_options_and_its_gap() -> None:
    engine, _ = tiny_engine(TOKENIZER, seed=1)
    text = "fever of ataxia"
    request = TemplateRequest("Tag.", text, NerTask().allowed(text))
    [answer] = engine.decode_template([request], TEMPLATE)
    lines = answer.text.split("\n")
    right = lines[1][-1]
    wrong = "B" if right == "O" else "O"
    changed = "\n".join([lines[0], lines[1][:-1] + wrong, lines[2][:-1] + "O"])
    ids = TOKENIZER.encode(TEMPLATE.prompt("Tag.", text) + TEMPLATE.completion(changed))
    begin = len(TOKENIZER.encode(TEMPLATE.prompt("Tag.", text)))
    found = engine.check_template(
        [request, request], TEMPLATE, [answer, replace(answer, tokens=tuple(ids[begin:]), text=changed)]
    )
    [difference] = found.differences
    assert (difference.row, difference.decision, difference.options) == (1, 1, (wrong, right))
    at = difference.position
    assert difference.tokens == (ids[begin + at], answer.tokens[at]) and ids[begin : begin + at] == [
        *answer.tokens[:at]
    ]
    assert difference.gap > 0


def test_ties_go_to_the_lowest_id_either_way_and_rows_that_did_not_fit_are_left_out() -> None:
    config = tiny_config(TOKENIZER.vocab_size, max_positions=160)
    engine = Engine(jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), config)), config, TOKENIZER)
    requests = [TemplateRequest("", text, NerTask().allowed(text)) for text in ("a b c", " ".join(["a"] * 60))]
    answers = engine.decode_template(requests, TEMPLATE)
    assert [answer.finish_reason for answer in answers] == ["constrained", "prompt_too_long"]
    found = engine.check_template(requests, TEMPLATE, answers)
    assert (found.rows, found.differences) == (1, ())
    assert answers[0].text == "a : B\nb : B\nc : B"
    assert engine.check_template(requests[1:], TEMPLATE, answers[1:]).rows == 0


def test_bfloat16_is_checked_in_bfloat16() -> None:
    """Close decisions may fall otherwise; the gap of each that did is within what bfloat16 rounds."""
    _, params = tiny_engine(TOKENIZER, seed=1)
    engine = Engine(params, tiny_config(TOKENIZER.vocab_size), TOKENIZER, dtype="bfloat16")
    requests = requests_of(30)
    found = engine.check_template(requests, TEMPLATE, engine.decode_template(requests, TEMPLATE), batch_size=16)
    assert found.rows == 30
    assert all(0 <= difference.gap < 0.5 for difference in found.differences)


def test_a_model_that_computes_no_numbers_is_an_error() -> None:
    engine, params = tiny_engine(TOKENIZER, seed=1)
    requests = requests_of(1)
    answers = engine.decode_template(requests, TEMPLATE)
    params["norm"]["scale"] = params["norm"]["scale"].at[3].set(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        Engine(params, engine.config, TOKENIZER).check_template(requests, TEMPLATE, answers)


@pytest.mark.slow
def test_real_rows_with_the_llama_2_tokenizer_agree(shared_data: Path, tmp_path: Path) -> None:
    sources = ("NCBI-disease", "JNLPBA", "hoc", "PubMedQA", "MedQA", "GAD")
    prepare(tmp_path / "rows", raw_dir=shared_data / "raw", sources=sources, contamination="off")
    tokenizer = load_tokenizer(shared_data / "tokenizers/llama2")
    changes = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "num_kv_heads": 1}
    engine, _ = tiny_engine(tokenizer, max_positions=4096, **changes)
    rows = [row for split in ("test", "validation") for row in read_rows(tmp_path / "rows", split)]
    requests = []
    for source in sources:
        task = get_source(source).task
        for row in random.Random(0).sample([row for row in rows if row.source == source], 50):
            allowed = task.allowed(row.input)
            assert allowed is not None
            requests.append(TemplateRequest(row.instruction, row.input, allowed, name=row.source))
    answers = engine.decode_template(requests, TEMPLATE)
    found = engine.check_template(requests, TEMPLATE, answers, batch_size=32)
    assert (found.rows, found.differences) == (300, ())
    for request, answer in zip(requests, answers, strict=True):
        assert get_source(request.name).task.parse(answer.text, request.input).status == "exact"
    assert found.decisions > 3000
