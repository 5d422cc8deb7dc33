"""Beam search: transformers' texts and scores, whatever the batch; slots, skipped rows, meshes, refusals."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import LongestMatch, tiny_config, tiny_engine

from medtune_jax.config import MeshConfig
from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.errors import UserError
from medtune_jax.generate.beam_steps import beam_steps, likeliest
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.sampling import Beam, Greedy
from medtune_jax.model.llama import init_params
from medtune_jax.sharding import make_mesh
from medtune_jax.train.load import load_model

SHAPES = {
    "multi-head, untied": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "multi-head, tied": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "grouped, untied": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "one kv-head, tied": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True},
}
BEAMS = [
    Beam(beams, penalty, early, n_best=beams)
    for beams, penalty, early in itertools.product((1, 2, 4), (0.6, 1.0, 2.0), (False, True, "never"))
]
TOKENIZER = LongestMatch()
PROMPTS = [[1, *range(5, 5 + n)] for n in (1, 30, 7, 17)]
NEW = 20


@functools.cache
def pair(shape: str) -> tuple[Any, Engine]:
    """Returns transformers' model and an engine with its weights; texts end after some tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    fields: dict[str, Any] = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.4,
        **fields,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_id] *= 1.6
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = read_config(folder)
        return model, Engine(load_params(folder, ours, "float32"), ours, TOKENIZER)


def transformers_beams(model: Any, prompt: list[int], beam: Beam, new: int) -> tuple[list[tuple[int, ...]], Any]:
    """Returns the n best texts and their scores; of one beam, which is greedy there, no score."""
    import torch

    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            num_beams=beam.num_beams,
            length_penalty=beam.length_penalty,
            early_stopping=beam.early_stopping,
            num_return_sequences=beam.n_best,
            eos_token_id=2,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    texts = [text[len(prompt) :] for text in out.sequences.tolist()]
    return [tuple(text[: text.index(2)] if 2 in text else text) for text in texts], out.get("sequences_scores")


def check(
    model: Any, engine: Engine, prompts: Sequence[list[int]], beam: Beam, new: int, batch_sizes: Sequence[int]
) -> set[str]:
    """Holds every row of every batch against transformers on that row alone; returns the reasons why texts ended."""
    expected = [transformers_beams(model, prompt, beam, new) for prompt in prompts]
    reasons: set[str] = set()
    for batch_size in batch_sizes:
        answers = engine.generate(prompts, method=beam, max_new_tokens=new, batch_size=batch_size)
        for answer, (texts, scores) in zip(answers, expected, strict=True):
            assert [one.tokens for one in answer.alternatives] == texts
            if scores is not None:
                np.testing.assert_allclose([one.score for one in answer.alternatives], scores.numpy(), atol=1e-4)
            assert (answer.tokens, answer.text) == (texts[0], answer.alternatives[0].text)
        reasons |= {answer.finish_reason for answer in answers}
    return reasons


@pytest.mark.parametrize(
    ("shape", "beam"),
    [
        ("multi-head, untied", Beam(4, 1.0, False, n_best=4)),
        ("grouped, untied", Beam(4, 0.6, "never", n_best=4)),
        ("grouped, untied", Beam(4, 2.0, "never", n_best=4)),
        ("grouped, untied", Beam(2, 1.0, True, n_best=2)),
        ("one kv-head, tied", Beam(4, 2.0, False, n_best=3)),
    ],
)
def test_texts_and_scores_equal_transformers_in_a_mixed_batch(shape: str, beam: Beam) -> None:
    check(*pair(shape), PROMPTS, beam, NEW, batch_sizes=[3])


def test_texts_equal_transformers_alone_and_end_both_ways() -> None:
    assert check(*pair("grouped, untied"), PROMPTS, Beam(4, n_best=4), NEW, batch_sizes=[1, 3]) == {"eos", "length"}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beam", BEAMS, ids=str)
def test_every_option_equals_transformers_on_every_shape(shape: str, beam: Beam) -> None:
    check(*pair(shape), PROMPTS, beam, NEW, batch_sizes=[1, 3])


def check_stories(shared_data: Path, beams: Sequence[Beam], new: int) -> None:
    from transformers import LlamaForCausalLM

    folder = shared_data / "models/stories260K"
    loaded = load_model(folder)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    engine = Engine(loaded.params, loaded.config, loaded.tokenizer)
    starts = ("Once upon a time", "Lily", "The dog was big. He saw", "")
    prompts = [[loaded.tokenizer.bos_id, *loaded.tokenizer.encode(start)] for start in starts]
    for beam in beams:
        check(model, engine, prompts, beam, new, batch_sizes=[3])


def test_stories260k_tells_transformers_story(shared_data: Path) -> None:
    check_stories(shared_data, [Beam(4, n_best=4)], 40)


@pytest.mark.slow
@pytest.mark.parametrize("beam", BEAMS, ids=str)
def test_stories260k_tells_transformers_story_by_every_option(shared_data: Path, beam: Beam) -> None:
    check_stories(shared_data, [beam], 120)


def test_one_beam_writes_what_greedy_writes() -> None:
    _, engine = pair("grouped, untied")
    greedy = engine.generate(PROMPTS, method=Greedy(), max_new_tokens=NEW, batch_size=3)
    beams = engine.generate(PROMPTS, method=Beam(1, 2.0, "never"), max_new_tokens=NEW, batch_size=3)
    assert [(one.tokens, one.text, one.finish_reason, one.passes) for one in beams] == [
        (one.tokens, one.text, one.finish_reason, one.passes) for one in greedy
    ]


def test_rows_pass_through_few_slots_with_budgets_of_their_own() -> None:
    _, engine = pair("grouped, untied")
    prompts = [[1, *np.random.default_rng(i).integers(3, 90, 2 + 5 * i % 40).tolist()] for i in range(9)]
    limits = [3 + 7 * i % 17 for i in range(9)]
    beam = Beam(4, n_best=2)
    before, slots = engine.work.busy_slot_passes, 3
    seen: dict[int, Any] = {}
    together = engine.generate(prompts, method=beam, max_new_tokens=limits, batch_size=slots, on_done=seen.__setitem__)
    assert [seen[index] for index in range(9)] == together
    assert engine.work.busy_slot_passes - before == sum(one.passes for one in together)
    assert [one.passes <= limit for one, limit in zip(together, limits, strict=True)] == [True] * 9
    for index in (2, 7):
        (alone,) = engine.generate([prompts[index]], method=beam, max_new_tokens=limits[index], batch_size=slots)
        assert [one.tokens for one in alone.alternatives] == [one.tokens for one in together[index].alternatives]
    some = engine.generate(prompts, method=beam, max_new_tokens=limits, batch_size=slots, skip={0, 4, 5})
    assert some == [together[index] for index in range(9) if index not in (0, 4, 5)], "to the last bit"


def test_a_search_ends_with_the_positions_and_names_prompts_that_fill_them() -> None:
    engine, _ = tiny_engine(TOKENIZER, max_positions=40)
    prompts = [[1, *[7] * (n - 1)] for n in (10, 39, 40)]
    answers = engine.generate(prompts, method=Beam(2), max_new_tokens=[4, 9, 9], batch_size=3)
    assert [len(answer.tokens) for answer in answers] == [4, 1, 0]
    assert [answer.finish_reason for answer in answers] == ["length", "length", "prompt_too_long"]


def test_neither_penalty_nor_prompt_nor_budget_compiles_anew() -> None:
    _, engine = pair("grouped, untied")
    engine.generate(PROMPTS, method=Beam(4, 1.0), max_new_tokens=NEW, batch_size=3)
    before = beam_steps._cache_size()  # type: ignore[attr-defined]
    engine.generate(PROMPTS[:3], method=Beam(4, 0.3, "never", n_best=2), max_new_tokens=NEW - 3, batch_size=3)
    assert beam_steps._cache_size() == before  # type: ignore[attr-defined]


def test_eight_devices_write_what_one_writes() -> None:
    changes = {"num_heads": 8, "num_kv_heads": 4, "intermediate_size": 64}
    one, params = tiny_engine(TOKENIZER, **changes)
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))
    eight = Engine(params, one.config, TOKENIZER, mesh=mesh)
    answers = [
        engine.generate(PROMPTS, method=Beam(4, n_best=2), max_new_tokens=12, batch_size=4) for engine in (one, eight)
    ]
    assert [[best.tokens for best in answer.alternatives] for answer in answers[0]] == [
        [best.tokens for best in answer.alternatives] for answer in answers[1]
    ]


def test_an_int8_cache_moves_scores_little() -> None:
    exact, params = tiny_engine(TOKENIZER)
    small = Engine(params, exact.config, TOKENIZER, cache_dtype="int8")
    best = [
        [one.alternatives[0].score for one in engine.generate(PROMPTS, method=Beam(4), max_new_tokens=12)]
        for engine in (exact, small)
    ]
    assert best[0] != best[1]
    np.testing.assert_allclose(*best, atol=0.05)


def test_logits_that_are_not_finite_are_an_error() -> None:
    config = tiny_config(TOKENIZER.vocab_size)
    params = init_params(jax.random.key(0), config)
    params["norm"]["scale"] = params["norm"]["scale"].at[0].set(np.nan)
    engine = Engine(params, config, TOKENIZER)
    with pytest.raises(UserError, match="finite"):
        engine.generate(PROMPTS, method=Beam(4), max_new_tokens=NEW, batch_size=3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 0}, "num_beams 0"),
        ({"length_penalty": float("nan")}, "length_penalty nan"),
        ({"early_stopping": "always"}, "early_stopping 'always'"),
        ({"num_beams": 2, "n_best": 3}, "n_best 3 is not in 1..2"),
        ({"n_best": 0}, "n_best 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Beam(**options)


def test_more_beams_than_tokens_to_tell_them_apart_are_refused() -> None:
    _, engine = pair("grouped, untied")
    with pytest.raises(UserError, match="num_beams 60 is more than half of the 99 tokens"):
        engine.generate(PROMPTS[:1], method=Beam(60), max_new_tokens=2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 8, 20]), st.sampled_from([2, 30, 10**6]))
def test_the_likeliest_are_those_of_a_full_sort(seed: int, count: int, values: int) -> None:
    logits_RV = np.random.default_rng(seed).integers(0, values, (3, 1024)).astype(np.float32)
    top_Rc, token_Rc = likeliest(logits_RV, count)
    np.testing.assert_array_equal(np.take_along_axis(logits_RV, np.asarray(token_Rc), axis=1), top_Rc)
    np.testing.assert_array_equal(top_Rc, -np.sort(-logits_RV, axis=1)[:, :count])
    assert all(len(set(row)) == count for row in token_Rc.tolist())


@pytest.mark.parametrize("penalty", [150.0, -150.0])
def test_a_length_penalty_that_float32_does_not_hold_is_refused(penalty: float) -> None:
    engine = tiny_engine(TOKENIZER)[0]
    with pytest.raises(UserError, match=r"length_penalty -?150.0.* up to 200 tokens"):
        engine.generate([[1, 5]], method=Beam(2, penalty, early_stopping="never"), max_new_tokens=200)
