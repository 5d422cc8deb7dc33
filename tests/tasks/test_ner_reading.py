"""Which shapes of model output are read, and what each repair is called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.tasks.ner import NerTask

INPUT = "acute : leukemia of"
GOLD = "acute : B\n: : I\nleukemia : I\nof : O"
TAGS = ("B", "I", "I", "O")


@pytest.mark.parametrize(
    ("text", "tags", "problems"),
    [
        (GOLD, TAGS, ()),
        (f" \n{GOLD} \n", TAGS, ()),
        (GOLD + "\n### Input: next", TAGS, ("cut_at_marker",)),
        (GOLD + "\n ### Input: next\nof : B", TAGS, ("cut_at_marker",)),
        (GOLD.replace("acute : B", "acute : B  "), TAGS, ("whitespace",)),
        (GOLD.replace("acute : B", " acute\t:  B"), TAGS, ("whitespace",)),
        (GOLD.replace("acute : B", "acute\u00a0 : B"), TAGS, ("whitespace",)),
        (GOLD.replace("leukemia : I", "\nleukemia : I"), TAGS, ("blank_line",)),
        (GOLD.replace("leukemia : I", "leukemia: I"), TAGS, ("no_space",)),
        (GOLD.replace("leukemia : I", "leukemia:I"), TAGS, ("no_space",)),
        (GOLD.replace("leukemia : I", "leukemia :I"), TAGS, ("no_space",)),
        (GOLD.replace("\n", " "), TAGS, ("merged_lines",)),
        (GOLD.replace("acute : B", "acute : O : B"), TAGS, ("double_tag",)),
        (GOLD.replace("acute", "the acute"), TAGS, ("unread_text",)),
        (GOLD + "\n : B", TAGS, ("whitespace", "no_token")),
        (GOLD.replace("acute : B", "acute : b"), TAGS, ("tag_case",)),
        (GOLD.replace("leukemia : I", "leukemia : X"), ("B", "I", "O", "O"), ("bad_tag",)),
        (GOLD.replace("leukemia : I", "leukemia : "), ("B", "I", "O", "O"), ("whitespace", "no_space", "bad_tag")),
        (GOLD.replace("leukemia : I", "leukemia"), ("B", "I", "O", "O"), ("no_separator", "missing_token")),
        (GOLD.replace("leukemia : I\n", ""), ("B", "I", "O", "O"), ("missing_token",)),
        (GOLD.replace("leukemia : I", "leukemia : I\nleukemia : B"), TAGS, ("extra_token",)),
        (GOLD.replace("leukemia", "leukaemia"), ("B", "I", "O", "O"), ("missing_token", "extra_token")),
    ],
)
def test_shapes_of_outputs_are_read_and_named(text, tags, problems):
    parsed = NerTask().parse(text, INPUT)
    assert parsed.annotation == (("acute", ":", "leukemia", "of"), tags)
    assert parsed.problems == problems
    assert parsed.status == ("repaired" if problems else "exact")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty_output"),
        (" \n\n", "empty_output"),
        ("### Output:\n" + GOLD, "cut_at_marker"),
        ("I cannot do that.", "no_separator"),
        ("acute : X\nof : Y", "bad_tag"),  # not one legal tag
        ("other : B\nwords : O", "extra_token"),  # not one token of the input
    ],
)
def test_nothing_usable_is_unparsable(text, kind):
    parsed = NerTask().parse(text, INPUT)
    assert parsed.annotation is None and parsed.status == "unparsable"
    assert kind in parsed.problems


def test_a_token_that_looks_like_the_marker_is_not_cut():
    task = NerTask()
    gold = (("###", "a", "###b"), ("O", "B", "O"))
    input, output = task.render(gold)
    assert task.parse(output, input).annotation == gold
    assert task.parse(output.replace("a :", "a  :"), input).annotation == gold


def test_typed_tags_are_read_and_their_case_repaired():
    task = NerTask(("PROBLEM", "CLINICAL_DEPT"))
    parsed = task.parse("renal : B-problem\nward : B-CLINICAL_DEPT\nx : B", "renal ward x")
    assert parsed.annotation[1] == ("B-PROBLEM", "B-CLINICAL_DEPT", "O")
    assert parsed.problems == ("tag_case", "bad_tag")


pieces = st.sampled_from(
    ["a", "b:c", ":", " : ", ":", " ", "\n", "B", "I", "O", "X", "###", "\u2028", "\u00a0", "\t", "\r"]
)


@given(st.lists(pieces, max_size=30).map("".join), st.lists(pieces, max_size=12).map("".join))
def test_parse_never_raises_and_always_echoes_the_input(text, input):
    task = NerTask()
    parsed = task.parse(text, input)
    if parsed.annotation is not None:
        assert parsed.annotation[0] == (tuple(input.split(" ")) if input else ())
        assert set(parsed.annotation[1]) <= set(task.tags)
    gold = (("a", "b:c"), ("B", "O"))
    assert (
        task.statistics(gold, task.parse(text, "a b:c"), "a b:c").keys()
        == task.statistics(gold, task.parse("", ""), "").keys()
    )


@given(st.text(), st.text())
def test_parse_never_raises_on_any_text(text, input):
    NerTask().parse(text, input)


tokens = st.text(min_size=1, max_size=6).filter(lambda token: " " not in token and "\n" not in token)
tags = st.sampled_from(["B", "I", "O"])


@given(st.lists(st.tuples(tokens, tags), max_size=10))
def test_any_tokens_without_space_and_line_feed_round_trip(pairs):
    task = NerTask()
    gold = (tuple(token for token, _ in pairs), tuple(tag for _, tag in pairs))
    input, output = task.render(gold)
    parsed = task.parse(output, input)
    assert parsed.annotation == gold and not parsed.problems


@pytest.mark.parametrize("unit", ["a:", " ", "a ", ":", " :", "x", "a : O ", "a : O\n", "\n", "B:"])
def test_100_kb_of_one_pattern_is_read_whole(unit):
    NerTask().parse("q" + unit * (100_000 // len(unit)) + "q", "a b " * 5000 + "c")
