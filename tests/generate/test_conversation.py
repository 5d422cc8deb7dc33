"""The history of a session: whole documents before the new prompt, the oldest forgotten where the context is full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_engine import LongestMatch

from medtune_jax.data.encode import encode_prompt
from medtune_jax.data.prompts import get_template
from medtune_jax.errors import UserError
from medtune_jax.generate.conversation import Conversation, render

TOKENIZER = LongestMatch()
FORM = get_template("medtuned_eval")
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id


def session(max_positions: int = 400, max_new_tokens: int = 20, **changes: object) -> Conversation:
    return Conversation(TOKENIZER, FORM, max_positions, max_new_tokens, **changes)  # type: ignore[arg-type]


def test_earlier_turns_stand_before_the_prompt_as_they_stood_in_training() -> None:
    conversation = session(instruction="Tag.")
    first = conversation.ask("a b")
    assert first.tokens == encode_prompt(TOKENIZER, FORM, "Tag.", "a b") and not first.dropped
    conversation.record(first, TOKENIZER.encode("a : O"))
    conversation.instruction = None
    second = conversation.ask("Why?")
    turn = [BOS, *TOKENIZER.encode(FORM.prompt("Tag.", "a b") + FORM.completion("a : O")), EOS]
    assert second.tokens == [*turn, *encode_prompt(TOKENIZER, FORM, "Why?", "")]


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 30)), min_size=1, max_size=12))
def test_prompt_and_room_for_the_answer_always_fit_and_no_turn_is_forgotten_without_need(
    turns: list[tuple[int, int]],
) -> None:
    conversation = Conversation(TOKENIZER, None, 128, 30)
    for length, answer in turns:
        before = [len(turn) for turn in conversation.turns]
        asked = conversation.ask("x" * length)
        room = min(30, 128 - len(asked.document))
        assert len(asked.tokens) + room <= 128
        assert len(conversation.turns) == len(before) - asked.dropped
        if asked.dropped:
            assert len(asked.tokens) + before[asked.dropped - 1] + room > 128
        conversation.record(asked, TOKENIZER.encode("y" * answer))


def test_a_prompt_that_alone_fills_the_context_is_refused_and_forgets_nothing() -> None:
    conversation = Conversation(TOKENIZER, None, 64, 10)
    conversation.record(conversation.ask("short"), [5])
    with pytest.raises(UserError, match=r"64 tokens .* 64 positions"):
        conversation.ask("x" * 63)
    assert len(conversation.turns) == 1


def test_without_a_template_the_text_is_as_it_is_and_an_instruction_has_no_place() -> None:
    assert render(None, "as it is", None) == "as it is"
    with pytest.raises(UserError, match="--template"):
        render(None, "text", "Tag.")
