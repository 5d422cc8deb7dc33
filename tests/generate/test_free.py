"""Free decoding: the repetition penalty, stop strings, streaming, and answers that no skipped row changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_engine import LongestMatch, tiny_engine

from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.errors import UserError
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.results import Generation
from medtune_jax.generate.sampling import Beam, Greedy, Sample

TOKENIZER = LongestMatch(["ab", "##", "b c"])
RANDOM = np.random.default_rng(0)
PROMPTS = [[1, *RANDOM.integers(3, TOKENIZER.vocab_size, count).tolist()] for count in (0, 30, 7, 64, 17, 3, 3, 40)]
NEW = 24


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(TOKENIZER)[0]


@pytest.fixture(scope="module")
def plain(engine: Engine) -> list[Generation]:
    return engine.generate(PROMPTS, method=Greedy(), max_new_tokens=NEW, batch_size=4)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_greedy_with_a_repetition_penalty_equals_transformers_alone_and_in_a_mixed_batch(
    penalty: float, tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    expected = []
    for prompt in PROMPTS:
        options = {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0, "repetition_penalty": penalty}
        out: Any = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            **options,
        )
        written = out[0].tolist()[len(prompt) :]
        expected.append(written[: written.index(2)] if 2 in written else written)
    ours = read_config(tmp_path)
    engine = Engine(load_params(tmp_path, ours, "float32"), ours, TOKENIZER)
    unpenalised = engine.generate(PROMPTS, method=Greedy(), max_new_tokens=NEW, batch_size=4)
    assert [list(answer.tokens) for answer in unpenalised] != expected
    for batch_size in (1, 4):
        answers = engine.generate(PROMPTS, method=Greedy(penalty), max_new_tokens=NEW, batch_size=batch_size)
        assert [list(answer.tokens) for answer in answers] == expected


def test_a_penalised_draw_does_not_depend_on_the_batch_around_it(engine: Engine) -> None:
    method = Sample(1.0, 20, 0.95, 0.01, 1.3)
    together = engine.generate(PROMPTS, method=method, max_new_tokens=NEW, batch_size=4, seed=5)
    alone = engine.generate([PROMPTS[4]], method=method, max_new_tokens=NEW, batch_size=1, seed=5, rows=[4])
    assert alone == [together[4]]


def cut(answer: Generation, stop: list[str]) -> str:
    found = [(answer.text.index(one) + len(one), answer.text.index(one)) for one in stop if one in answer.text]
    return answer.text[: min(found)[1]] if found else answer.text


def stops_of(plain: list[Generation]) -> list[str]:
    """Returns stop strings that lie across tokens, within one, and nowhere."""
    return [plain[1].text[3:7], plain[2].text[9:11], plain[4].text[-2:], "never~~"]


def test_a_text_ends_before_its_stop_string_and_its_tokens_are_greedys(engine: Engine, plain: list[Generation]) -> None:
    stop = stops_of(plain)
    answers = engine.generate(PROMPTS, method=Greedy(), max_new_tokens=NEW, batch_size=4, stop=stop)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    for answer, whole, prompt in zip(answers, plain, PROMPTS, strict=True):
        assert answer.text == cut(whole, stop)
        if answer.finish_reason != "stop":
            assert answer == whole
            continue
        assert answer.tokens == whole.tokens[: len(answer.tokens)]
        assert engine._core.continuation(prompt, answer.tokens).startswith(answer.text)
        assert len(answer.tokens) == answer.decisions <= answer.passes <= whole.passes


def test_a_stop_string_in_the_prompt_ends_nothing(engine: Engine, plain: list[Generation]) -> None:
    for row in (1, 3, 7):
        inside = next(
            text
            for text in (TOKENIZER.decode(PROMPTS[row])[at : at + 2] for at in range(20))
            if text not in plain[row].text
        )
        (answer,) = engine.generate([PROMPTS[row]], method=Greedy(), max_new_tokens=NEW, batch_size=4, stop=[inside])
        assert (answer.text, answer.finish_reason) == (plain[row].text, "length")


@pytest.mark.parametrize("stopped", [False, True])
def test_streamed_pieces_make_up_each_text(engine: Engine, plain: list[Generation], stopped: bool) -> None:
    stop = stops_of(plain) if stopped else []
    pieces: dict[int, list[str]] = {index: [] for index in range(len(PROMPTS))}
    seen: list[int] = []

    def on_text(index: int, text: str) -> None:
        assert text and index not in seen
        pieces[index].append(text)

    options: dict[str, Any] = {"method": Greedy(), "max_new_tokens": NEW, "batch_size": 4, "stop": stop}
    streamed = engine.generate(
        PROMPTS, **options, skip=[3], on_text=on_text, on_done=lambda index, _: seen.append(index)
    )
    expected = engine.generate(PROMPTS, **options)
    assert streamed == expected[:3] + expected[4:]
    assert pieces.pop(3) == [], "a row that needs no answer is not heard of"
    assert {index: "".join(found) for index, found in pieces.items()} == {
        index: answer.text for index, answer in enumerate(expected) if index != 3
    }
    assert max(map(len, pieces.values())) >= 5, "text comes while it is written"


def test_stop_strings_that_cannot_be_are_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="empty"):
        engine.generate([[1]], method=Greedy(), max_new_tokens=2, stop=[""])
    with pytest.raises(UserError, match="takes no stop strings"):
        engine.generate([[1]], method=Beam(), max_new_tokens=2, stop=["a"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "method", [Greedy(), Sample(1.0, min_p=0.02, repetition_penalty=1.1)], ids=["greedy", "sample"]
)
def test_an_answer_is_the_same_to_the_last_bit_whichever_rows_are_skipped(
    dtype: str, method: Greedy | Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are compared too: of a bfloat16 model the next choice may hang on the last bit of any."""
    from medtune_jax.generate import core, decode

    monkeypatch.setattr(core, "_LEAST_GROUP", 8)
    monkeypatch.setattr(core, "_BATCHES", 2)
    one, params = tiny_engine(TOKENIZER)
    engine = Engine(params, one.config, TOKENIZER, dtype=dtype)
    prompts = [[1, *RANDOM.integers(3, TOKENIZER.vocab_size, 2 + 7 * i % 50).tolist()] for i in range(20)]
    limits = [5 + 11 * i % 23 for i in range(20)]
    caches: list[dict[bytes, bytes]] = []
    steps = decode.decode_steps

    def noted(*arguments: Any, **named: Any) -> Any:
        cache, chosen = steps(*arguments, **named)
        text = np.asarray(chosen).tobytes() + np.asarray(arguments[6]).tobytes() + np.asarray(arguments[4]).tobytes()
        caches[-1][text] = np.asarray(cache.k[-1].values).tobytes()
        return cache, chosen

    monkeypatch.setattr(decode, "decode_steps", noted)

    def answers(skip: set[int]) -> dict[int, Generation]:
        caches.append({})
        found = engine.generate(prompts, method=method, max_new_tokens=limits, batch_size=4, seed=1, skip=skip)
        return dict(zip((index for index in range(20) if index not in skip), found, strict=True))

    whole = answers(set())
    for skip in ({0}, set(range(0, 20, 2)), set(range(20)) - {7}):
        again = answers(skip)
        assert again == {index: whole[index] for index in again}
        assert caches[-1].items() <= caches[0].items(), "every cache is one of the undisturbed run's"
    assert len(caches[-1]) < len(caches[0]), "a group of which every row is skipped is not computed"
