"""Free decoding: transformers' greedy text, whatever the batch; budgets, early exit, refilled slots, meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_engine import LongestMatch, next_logits, tiny_config, tiny_engine

from medtune_jax.config import MeshConfig
from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.data.prompts import get_template
from medtune_jax.generate import decode
from medtune_jax.generate import free as free_module
from medtune_jax.generate.cache import empty_cache
from medtune_jax.generate.engine import Engine, TemplateRequest
from medtune_jax.generate.sampling import Greedy, Sample, request_keys
from medtune_jax.generate.slots import round_up
from medtune_jax.generate.weights import decoding_weights
from medtune_jax.model.llama import init_params
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.ner import NerTask
from medtune_jax.train.load import load_model

SHAPES = {
    "multi-head, untied": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "grouped, untied": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "one kv-head, tied": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True},
}
TOKENIZER = LongestMatch()
PROMPTS = [[1, *range(5, 5 + n)] for n in (1, 30, 7, 64, 17)]


def transformers_greedy(model: Any, prompt: list[int], new: int) -> list[int]:
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )[0].tolist()[len(prompt) :]
    return out[: out.index(2)] if 2 in out else out


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_equals_transformers_alone_and_in_a_mixed_batch(shape: str, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields: dict[str, Any] = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        **fields,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    engine = Engine(load_params(tmp_path, ours, "float32"), ours, TOKENIZER)
    expected = [transformers_greedy(model, prompt, 24) for prompt in PROMPTS]
    for batch_size in (1, 3):
        answers = engine.generate(PROMPTS, method=Greedy(), max_new_tokens=24, batch_size=batch_size)
        assert [list(answer.tokens) for answer in answers] == expected


def test_stories260k_tells_transformers_story(shared_data: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = shared_data / "models/stories260K"
    loaded = load_model(folder)
    engine = Engine(loaded.params, loaded.config, loaded.tokenizer)
    prompt = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode("Once upon a time")]
    (answer,) = engine.generate([prompt], method=Greedy(), max_new_tokens=200)
    expected = transformers_greedy(LlamaForCausalLM.from_pretrained(folder).eval(), prompt, 200)
    assert list(answer.tokens) == expected
    assert answer.finish_reason == "length"
    assert answer.text == loaded.tokenizer.decode([*prompt, *expected])[len("Once upon a time") :]
    assert answer.text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")


def test_greedy_equals_a_whole_forward_pass_per_token() -> None:
    engine, params = tiny_engine(TOKENIZER)
    (answer,) = engine.generate([PROMPTS[2]], method=Greedy(), max_new_tokens=20)
    text = list(PROMPTS[2])
    for token in answer.tokens:
        assert token == next_logits(params, engine.config, text).argmax()
        text.append(token)


def test_every_token_is_drawn_with_the_key_of_its_row_and_step() -> None:
    engine, params = tiny_engine(TOKENIZER)
    method = Sample(0.8, 40)
    (answer,) = engine.generate([PROMPTS[2]], method=method, max_new_tokens=20, seed=3, rows=[6])
    text = list(PROMPTS[2])
    for step, token in enumerate(answer.tokens):
        key = request_keys(3, jax.numpy.array([6]), jax.numpy.array([step]))
        behind = jax.numpy.asarray(next_logits(params, engine.config, text))
        assert token == method(key, behind[None])[0]
        text.append(token)


@pytest.mark.parametrize("method", [Greedy(), Sample(0.9), Sample(1.0, 8, 0.9)])
def test_an_answer_does_not_depend_on_the_batch_around_it(method: Greedy | Sample) -> None:
    engine, _ = tiny_engine(TOKENIZER)
    prompts = [[1, *(np.random.default_rng(i).integers(3, 90, 2 + 5 * i % 40).tolist())] for i in range(11)]
    limits = [3 + 7 * i % 29 for i in range(11)]
    together = engine.generate(prompts, method=method, max_new_tokens=limits, batch_size=4, seed=5)
    assert [len(answer.tokens) <= limit for answer, limit in zip(together, limits, strict=True)] == [True] * 11
    alone = engine.generate(
        [prompts[8], prompts[3]],
        method=method,
        max_new_tokens=[limits[8], limits[3]],
        seed=5,
        rows=[8, 3],
        batch_size=1,
    )
    assert alone == [together[8], together[3]]
    if isinstance(method, Sample):
        other = engine.generate(prompts, method=method, max_new_tokens=limits, batch_size=4, seed=6)
        assert [answer.tokens for answer in other] != [answer.tokens for answer in together]


def test_budgets_end_and_positions_end_and_prompts_that_fill_them_are_named() -> None:
    engine, _ = tiny_engine(TOKENIZER, max_positions=40)
    prompts = [[1, *[7] * (n - 1)] for n in (10, 39, 40, 41, 10, 38)]
    answers = engine.generate(prompts, method=Greedy(), max_new_tokens=[5, 9, 9, 9, 1, 9])
    for answer in answers:
        assert answer.finish_reason != "eos", "this test needs prompts that this model goes on with"
    assert [len(answer.tokens) for answer in answers] == [5, 1, 0, 0, 1, 2]
    assert [answer.finish_reason for answer in answers] == [
        "length",
        "length",
        "prompt_too_long",
        "prompt_too_long",
        "length",
        "length",
    ]


def test_eos_ends_a_row_and_decoding_stops_when_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = tiny_engine(TOKENIZER)
    (long,) = engine.generate([PROMPTS[1]], method=Greedy(), max_new_tokens=40)
    assert long.finish_reason == "length"
    third = long.tokens[2]
    assert third not in long.tokens[:2]
    monkeypatch.setattr(engine.tokenizer, "eos_id", third)
    calls = 0
    steps = free_module.decode.decode_steps

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return steps(*arguments, **named)

    monkeypatch.setattr(free_module.decode, "decode_steps", counted)
    (short,) = engine.generate([PROMPTS[1]], method=Greedy(), max_new_tokens=40)
    assert (short.tokens, short.finish_reason, short.passes) == (long.tokens[:2], "eos", 3)
    assert calls == 1


def test_rows_are_reported_once_each_as_they_finish() -> None:
    engine, _ = tiny_engine(TOKENIZER)
    limits = [40, 2, 2, 2, 2, 2]
    seen: list[int] = []
    answers = engine.generate(
        [PROMPTS[2]] * 6,
        method=Greedy(),
        max_new_tokens=limits,
        batch_size=4,
        on_done=lambda index, _: seen.append(index),
    )
    assert sorted(seen) == list(range(6))
    assert seen[-1] == 0, "short rows are answered, and their slots given on, while the long one goes on"
    assert all(answer.tokens == answers[0].tokens[:2] for answer in answers[1:])


def test_few_shapes_are_compiled() -> None:
    engine, _ = tiny_engine(TOKENIZER, intermediate_size=40)  # of no other test
    programs: list[Any] = [decode.decode_steps, decode._prefill_layer, decode.fill]
    before = [program._cache_size() for program in programs]
    prompts = [[1, *[5] * n] for n in range(1, 60)]
    engine.generate(prompts, method=Greedy(), max_new_tokens=8, batch_size=8)
    after = [program._cache_size() for program in programs]
    assert all(1 <= now - then <= 3 for then, now in zip(before, after, strict=True))


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}])
def test_eight_devices_write_what_one_writes(sizes: dict[str, int]) -> None:
    changes = {"num_heads": 8, "num_kv_heads": 4, "intermediate_size": 64}
    one, params = tiny_engine(TOKENIZER, **changes)
    mesh = make_mesh(MeshConfig(**{"fsdp": 1, **sizes}))
    many = Engine(params, one.config, TOKENIZER, mesh=mesh)
    assert many.generate(PROMPTS, method=Greedy(), max_new_tokens=12) == one.generate(
        PROMPTS, method=Greedy(), max_new_tokens=12
    )
    task = NerTask()
    requests = [TemplateRequest("Tag.", text, task.allowed(text)) for text in ("a b c", "fever of T-cell x", "ataxia")]
    template = get_template("alpaca")
    assert many.decode_template(requests, template) == one.decode_template(requests, template)


def test_no_step_copies_the_cache() -> None:
    config = tiny_config(TOKENIZER.vocab_size)
    weights = decoding_weights(init_params(jax.random.key(0), config), config, np.dtype("float32"), None)
    cache = empty_cache(config, 8, 4096, np.dtype("float32"))
    row = np.ones(8, np.int32)
    compiled: Any = decode.decode_steps.lower(
        weights, cache, *[row] * 5, np.uint32(0), config=config, method=Greedy(), eos_id=2, steps=16
    ).compile()
    one_layer = cache.k[0].values.nbytes + cache.v[0].values.nbytes
    assert compiled.memory_analysis().temp_size_in_bytes < one_layer


def test_sizes_are_rounded_up_by_less_than_a_step_or_a_quarter() -> None:
    assert [round_up(size, 8) for size in (0, 8, 9, 57, 65, 81, 129, 1000)] == [8, 8, 16, 64, 80, 96, 160, 1024]
    assert all(size <= round_up(size, 8) < max(size + 8, 1.25 * size) for size in range(1, 3000))
    assert len({round_up(size, 8) for size in range(4096)}) == 32


def test_bfloat16_runs_and_mostly_agrees() -> None:
    one, params = tiny_engine(TOKENIZER)
    half = Engine(params, one.config, TOKENIZER, dtype="bfloat16")
    short = [a.tokens[:2] for a in one.generate(PROMPTS, method=Greedy(), max_new_tokens=2)]
    also = [a.tokens[:2] for a in half.generate(PROMPTS, method=Greedy(), max_new_tokens=2)]
    assert sum(a == b for a, b in zip(short, also, strict=True)) >= 3
    assert {leaf.dtype for leaf in jax.tree.leaves(half._core.weights)} == {jax.numpy.dtype("bfloat16")}
