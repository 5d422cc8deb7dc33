"""Log-likelihoods of candidates are transformers' sums, and the same to the last bit whichever rows are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_engine import LongestMatch, next_logits, tiny_config, tiny_engine

from medtune_jax.config import MeshConfig
from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.data.prompts import Template, get_template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.generate.engine import Engine, TemplateRequest
from medtune_jax.generate.likelihood import Candidates
from medtune_jax.generate.planning import Planner
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.base import Allowed, Slot
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.train.load import load_model

TOKENIZER = LongestMatch(["En", "tail", "ment", "No", "Treats", " :", "A", "AB"])
LETTERS = Allowed((Slot(("A", "B", "C")),))
TEXTS = ["fever of unknown origin", "x", "no : fever", "a b c d e f g h i j", ""]


def requests(*allowed: Allowed) -> list[TemplateRequest]:
    return [TemplateRequest("Decide.", text, one) for text in TEXTS for one in allowed]


MIXED = requests(
    NliTask().allowed(""),
    LabelTask("relation", ("Treats", "Treats well", "No Relations", "No"), negative="No").allowed(""),
    LETTERS,
)


def transformers_sums(
    model: Any, tokenizer: Tokenizer, template: Template, request: TemplateRequest
) -> dict[str, float]:
    """Sums log-softmax over the tokens behind the longest prefix that all joint encodings share with the prompt."""
    import torch

    prompt = template.prompt(request.instruction, request.input)
    alone = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    outputs = list(request.allowed.slots[0].options)
    whole = {o: [tokenizer.bos_id, *tokenizer.encode(prompt + template.completion(o))] for o in outputs}
    begin = min(
        next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), len(alone))
        for ids in whole.values()
    )
    sums = {}
    for output, ids in whole.items():
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums[output] = sum(float(logprobs[i - 1, ids[i]]) for i in range(begin, len(ids)))
    return sums


def check(engine: Engine, folder: Path, template: Template, asked: list[TemplateRequest]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = engine.loglikelihoods(asked, template, batch_size=4)
    for index, request in enumerate(asked):
        expected = transformers_sums(model, engine.tokenizer, template, request)
        found = answers[index].loglikelihoods
        assert found is not None and list(found) == list(request.allowed.slots[0].options)
        np.testing.assert_allclose([*found.values()], [expected[text] for text in found], atol=1e-4, rtol=0)
        assert answers[index].text == max(expected, key=lambda text: expected[text])
        assert answers[index].finish_reason == "constrained"


@pytest.mark.parametrize("template", ["medtuned_train", "medtuned_eval"])
def test_values_are_those_of_transformers(template: str, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    engine = Engine(load_params(tmp_path, ours, "float32"), ours, TOKENIZER)
    check(engine, tmp_path, get_template(template), MIXED[:9])


def test_values_of_stories260k_are_those_of_transformers(shared_data: Path) -> None:
    folder = shared_data / "models/stories260K"
    loaded = load_model(folder)
    engine = Engine(loaded.params, loaded.config, loaded.tokenizer)
    check(engine, folder, get_template("alpaca"), MIXED[:4])


def test_candidates_that_share_their_beginnings_share_a_pass() -> None:
    template = get_template("alpaca")
    planner = Planner(TOKENIZER, template)

    def contexts(*options: str) -> set[str]:
        row = planner.plan(TemplateRequest("", "x", Allowed((Slot(options),))))
        return {TOKENIZER.decode(context) for context in Candidates(0, row).contexts}

    assert contexts("A", "B", "C") == {""}
    assert contexts("No", "Now", "None") == {"Non"}
    assert contexts("Treats", "Treats well", "No Relations") == {"Treats wel", "No Relation"}
    engine, _ = tiny_engine(TOKENIZER)
    answers = engine.loglikelihoods(requests(LETTERS), template)
    assert {answer.passes for answer in answers} == {1}


def test_a_value_is_the_same_to_the_last_bit_whichever_rows_are_skipped() -> None:
    engine, _ = tiny_engine(TOKENIZER)
    template = get_template("alpaca")
    whole = engine.loglikelihoods(MIXED, template, batch_size=4)
    assert len(whole) == len(MIXED)
    for kept in ({3}, {0, 14}, set(range(0, 15, 2))):
        seen: list[int] = []
        found = engine.loglikelihoods(
            MIXED,
            template,
            batch_size=4,
            skip=set(range(len(MIXED))) - kept,
            on_done=lambda index, _, seen=seen: seen.append(index),  # type: ignore[misc]
        )
        assert found == [whole[index] for index in sorted(kept)]
        assert sorted(seen) == sorted(kept)


def test_eight_devices_compute_what_one_computes() -> None:
    one, params = tiny_engine(TOKENIZER, num_heads=8, num_kv_heads=4, intermediate_size=64)
    many = Engine(params, one.config, TOKENIZER, mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    template = get_template("alpaca")
    sharded = many.loglikelihoods(MIXED[:5], template)
    for found, answer in zip(sharded, one.loglikelihoods(MIXED[:5], template), strict=True):
        assert (found.text, found.tokens) == (answer.text, answer.tokens)
        assert found.loglikelihoods == pytest.approx(answer.loglikelihoods, abs=1e-4)


def test_of_equal_values_the_first_candidate_is_taken() -> None:
    template = get_template("alpaca")
    engine, params = tiny_engine(TOKENIZER, tie_embeddings=False)
    kernel = params["lm_head"]["kernel"]
    a, b, c = (TOKENIZER.encode(letter)[0] for letter in "ABC")
    params["lm_head"]["kernel"] = kernel.at[:, b].set(kernel[:, a]).at[:, c].set(kernel[:, a])
    engine = Engine(params, engine.config, TOKENIZER)
    for options in ("ABC", "CAB"):
        (answer,) = engine.loglikelihoods([TemplateRequest("", "x", Allowed((Slot(tuple(options)),)))], template)
        assert len(set((answer.loglikelihoods or {}).values())) == 1
        assert answer.text == options[0]


def test_rows_that_do_not_fit_are_named_and_the_others_are_scored() -> None:
    template = get_template("alpaca")
    asked = [TemplateRequest("", text, LETTERS) for text in ("x", "y" * 200, "z")]
    engine, params = tiny_engine(TOKENIZER, max_positions=256)
    answers = engine.loglikelihoods(asked, template)
    assert [answers[i].finish_reason for i in range(3)] == ["constrained", "prompt_too_long", "constrained"]
    assert (answers[1].text, answers[1].loglikelihoods) == ("", None)
    behind = next_logits(params, tiny_config(TOKENIZER.vocab_size), Planner(TOKENIZER, template).plan(asked[0]).prompt)
    found: Any = answers[0].loglikelihoods
    assert found["A"] - found["B"] == pytest.approx(
        float(behind[TOKENIZER.encode("A")[0]] - behind[TOKENIZER.encode("B")[0]]), abs=1e-4
    )


def test_tasks_of_several_decisions_are_refused() -> None:
    engine, _ = tiny_engine(TOKENIZER)
    asked = [TemplateRequest("", "a b", NerTask().allowed("a b"), name="corpus, row 3")]
    with pytest.raises(ValueError, match="corpus, row 3 allows more than the options of one slot"):
        engine.loglikelihoods(asked, get_template("alpaca"))
