"""The loss falls on the completion and EOS, on nothing else, whatever the text and the tokenizer."""

import re
from dataclasses import replace

import numpy as np
import pytest
from data_samples import ner_row
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.data.encode import encode_prompt, encode_row, encode_rows
from medtune_jax.data.encoded import EncodedRows
from medtune_jax.data.prompts import TEMPLATES, Template, get_template
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import Row

TRAIN = get_template("medtuned_train")
ROW = ner_row("Familial/B Mediterranean/I fever/I is/O caused/O ./O")
FREE = Row("Answer.", "What is MEFV ?", "A gene .", "somebodys-corpus")
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(TEMPLATES)), instruction=LINE, input=LINE, output=LINE.filter(lambda text: text.strip())
)
def test_every_character_of_the_completion_bears_loss_and_so_does_eos(tokenizer, name, instruction, input, output):
    template = TEMPLATES[name]
    prompt, completion = template.prompt(instruction, input), template.completion(output)
    encoded = encode_row(tokenizer, template, Row(instruction, input, output, "x"))
    assert tokenizer.decode(encoded.tokens) == prompt + completion
    assert encoded.tokens[0] == tokenizer.bos_id
    assert encoded.tokens[-1] == tokenizer.eos_id
    assert encoded.weights[0] == 0
    assert encoded.weights[-1] == 1
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(encoded.tokens[1:-1].tolist())
    begin = encoded.prompt_length
    assert not encoded.weights[:begin].any()
    assert (encoded.weights[begin:] == 1).all()
    _, spans = tokenizer.encode_with_offsets(prompt + completion)
    assert all(end <= len(prompt) for _, end in spans[: begin - 1])  # no part of the completion is without loss
    assert encode_prompt(tokenizer, template, instruction, input)[:begin] == encoded.tokens[:begin].tolist()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_tokens_spell_the_completion(tokenizer, name):
    template = TEMPLATES[name]
    for row in (ROW, FREE):
        encoded = encode_row(tokenizer, template, row)
        prompt = encode_prompt(tokenizer, template, row.instruction, row.input)
        assert encoded.tokens[: encoded.prompt_length].tolist() == prompt
        bearing = encoded.tokens[encoded.weights > 0].tolist()
        # Decoded after the prompt: alone, sentencepiece would drop a leading space.
        assert tokenizer.decode(prompt + bearing) == tokenizer.decode(prompt) + template.completion(row.output)


def test_a_token_that_straddles_the_boundary_bears_loss(tmp_path):
    from tokenizers import Tokenizer, models

    vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", "a", "b", "c", "bc"])}
    Tokenizer(models.BPE(vocabulary, [("b", "c")])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    template = Template("joined", "{instruction}{input}", "{output}")
    encoded = encode_row(tokenizer, template, Row("a", "b", "ca", "x"))
    assert encoded.tokens.tolist() == [0, 2, 5, 2, 1]
    assert encoded.weights.tolist() == [0, 0, 1, 1, 1]
    assert encoded.prompt_length == 2
    assert encode_prompt(tokenizer, template, "a", "b") == [0, 2, 3]


def test_on_real_rows_the_prompt_is_a_token_prefix_of_the_training_text(real_tokenizer, ncbi_rows):
    rows, _ = encode_rows(real_tokenizer, TRAIN, ncbi_rows)
    for row, encoded in zip(ncbi_rows, rows, strict=True):
        prompt = encode_prompt(real_tokenizer, TRAIN, row.instruction, row.input)
        assert encoded.tokens[: encoded.prompt_length].tolist() == prompt
        assert encoded.weights[: encoded.prompt_length].max() == 0
        assert encoded.weights[encoded.prompt_length :].min() == 1


def test_on_real_rows_each_tag_is_one_decision_of_one_token(real_tokenizer, ncbi_rows):
    sample = ncbi_rows[:400]
    rows, report = encode_rows(real_tokenizer, TRAIN, sample, decision_weight=5.0)
    assert report.undecided == 0
    for row, encoded in zip(sample, rows, strict=True):
        decided = real_tokenizer.decode(encoded.tokens[encoded.weights == 5].tolist()).split()
        assert decided == [line.rsplit(" : ", 1)[1] for line in row.output.split("\n")]


def test_decision_tokens_weigh_more_and_nothing_else_changes(tokenizer):
    plain, weighed = encode_row(tokenizer, TRAIN, ROW), encode_row(tokenizer, TRAIN, ROW, 3.0)
    assert (plain.tokens == weighed.tokens).all()
    decides = weighed.weights == 3
    assert (weighed.weights[~decides] == plain.weights[~decides]).all()
    assert tokenizer.decode(weighed.tokens[decides].tolist()).split() == ["B", "I", "I", "O", "O", "O"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_token_is_a_decision_exactly_where_it_shares_a_character_with_one(tokenizer, name):
    template = TEMPLATES[name]
    label = Row("Which relation?", "Sentence 1: a\nSentence 2: b", "Contradiction", "sample-nli")
    for row, decides in ((label, [range(13)]), (ROW, [(m.start() + 3,) for m in re.finditer(" : ", ROW.output)])):
        prompt, completion = template.prompt(row.instruction, row.input), template.completion(row.output)
        at = len(prompt) + completion.index(row.output)
        characters = {at + character for span in decides for character in span}
        _, spans = tokenizer.encode_with_offsets(prompt + completion)
        touched = [bool(characters & set(range(*span))) for span in spans]
        assert sum(touched) >= len(decides)
        assert (encode_row(tokenizer, template, row, 3.0).weights == 3).tolist() == [False, *touched, False]


def test_a_decision_after_characters_of_many_bytes_is_found(tokenizer):
    weighed = encode_row(tokenizer, TRAIN, ner_row("α-β/B 🎉/O é́/O"), 3.0)
    assert tokenizer.decode(weighed.tokens[weighed.weights == 3].tolist()).split() == ["B", "O", "O"]


def test_a_label_is_decided_by_all_its_tokens(tokenizer):
    row = Row("Which relation?", "Sentence 1: a\nSentence 2: b", "Contradiction", "sample-nli")
    weighed = encode_row(tokenizer, TRAIN, row, 3.0)
    assert tokenizer.decode(weighed.tokens[weighed.weights == 3].tolist()).strip() == "Contradiction"


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_unknown_sources_keep_weight_one_and_are_counted_whatever_decisions_weigh(pieces, weight):
    rows, report = encode_rows(pieces, TRAIN, [FREE, ROW, FREE], decision_weight=weight)
    assert [rows[i].weights.max() for i in range(3)] == [1, weight, 1]
    assert report.unknown_sources == (("somebodys-corpus", 2),)


def test_an_output_that_its_task_would_not_write_is_counted_and_keeps_weight_one(pieces):
    odd = replace(ROW, output="no disease here")
    rows, report = encode_rows(pieces, TRAIN, [odd, ROW], decision_weight=4.0)
    assert report.undecided == 1
    assert (rows[0].weights.max(), rows[1].weights.max()) == (1, 4)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_decision_weight_that_is_not_above_zero_is_refused(pieces, weight):
    with pytest.raises(UserError, match="decision_weight"):
        encode_rows(pieces, TRAIN, [ROW], decision_weight=weight)


def test_many_rows_are_encoded_as_each_alone(tokenizer):
    given_rows = [ROW, FREE, replace(FREE, input="")]
    rows, report = encode_rows(tokenizer, TRAIN, given_rows, decision_weight=2.0)
    for row, encoded in zip(given_rows, rows, strict=True):
        alone = encode_row(tokenizer, TRAIN, row, 2.0)
        assert (encoded.tokens.tolist(), encoded.weights.tolist()) == (alone.tokens.tolist(), alone.weights.tolist())
        assert encoded.prompt_length == alone.prompt_length
    assert rows.lengths.tolist() == [len(encoded.tokens) for encoded in rows]
    assert rows.loss_tokens.tolist() == [np.count_nonzero(encoded.weights) for encoded in rows]
    assert (report.tokens, report.loss_tokens) == (rows.lengths.sum(), rows.loss_tokens.sum())
    joined = EncodedRows.of(list(rows))
    assert all((getattr(joined, name) == getattr(rows, name)).all() for name in ("tokens", "weights", "starts", "rows"))


def test_a_row_without_loss_tokens_is_refused_by_name(pieces):
    with pytest.raises(UserError, match=r"Row 1 \(source 'somebodys-corpus', id x7\) has an empty output"):
        encode_rows(pieces, TRAIN, [ROW, replace(FREE, output=" \n", id="x7")])


def test_text_that_is_not_unicode_is_refused_by_name(pieces):
    with pytest.raises(UserError, match=r"Row 1 \(source 'somebodys-corpus'\) holds half a surrogate pair"):
        encode_rows(pieces, TRAIN, [ROW, replace(FREE, input="a\ud800")])


def test_no_rows_are_refused(pieces):
    with pytest.raises(UserError, match="No rows"):
        encode_rows(pieces, TRAIN, [])


LONG = replace(FREE, input="the MEFV gene " * 30, id="long")


def test_an_overlong_row_is_refused_with_its_name_its_length_the_limit_and_what_mends_it(pieces):
    length = len(encode_row(pieces, TRAIN, LONG).tokens)
    with pytest.raises(UserError) as caught:
        encode_rows(pieces, TRAIN, [FREE, LONG, LONG], max_length=length - 1)
    message = str(caught.value)
    for part in (
        "Row 1 (source 'somebodys-corpus', id long)",
        f"{length} tokens",
        f"data.max_length={length - 1}",
        "2 of 3 rows",
        "data.overlong=drop or truncate_input",
    ):
        assert part in message


def test_a_row_of_exactly_the_limit_fits(pieces):
    length = len(encode_row(pieces, TRAIN, LONG).tokens)
    _, report = encode_rows(pieces, TRAIN, [LONG], max_length=length)
    assert (report.kept, report.longest) == (1, length)


def test_drop_leaves_overlong_rows_out_and_keeps_the_indices_of_the_others(pieces):
    rows, report = encode_rows(pieces, TRAIN, [LONG, ROW, LONG, FREE], max_length=150, overlong="drop")
    assert rows.rows.tolist() == [1, 3]
    assert (report.rows, report.kept, report.dropped, report.truncated) == (4, 2, 2, 0)
    with pytest.raises(UserError, match=r"All 1 rows are longer than data.max_length=20"):
        encode_rows(pieces, TRAIN, [LONG], max_length=20, overlong="drop")


@settings(max_examples=25, deadline=None)
@given(limit=st.integers(80, 400))
def test_truncation_cuts_whole_words_of_the_input_and_nothing_else(pieces, limit):
    rows, report = encode_rows(pieces, TRAIN, [LONG], max_length=limit, overlong="truncate_input")
    text = pieces.decode(rows[0].tokens)
    head, tail = text.split("### Input: ")
    shown, completion = tail.split("\n ### Output:")
    assert head == f"### Instruction: {LONG.instruction}\n "
    assert completion == TRAIN.completion(LONG.output)
    assert len(rows[0].tokens) <= limit
    words = LONG.input.split()
    kept = shown.split()
    assert kept == words[: len(kept)]
    assert report.truncated or kept == words
    if len(kept) < len(words):  # one word more would not have fitted
        longer = replace(LONG, input=" ".join(words[: len(kept) + 1]))
        assert len(encode_row(pieces, TRAIN, longer).tokens) > limit


def test_truncation_cuts_no_word_where_cutting_white_space_is_enough(pieces):
    row = replace(FREE, input="the MEFV gene\n\n\n\n")
    limit = len(encode_row(pieces, TRAIN, row).tokens) - 1
    rows, report = encode_rows(pieces, TRAIN, [row], max_length=limit, overlong="truncate_input")
    assert report.truncated == 1
    assert "### Input: the MEFV gene\n ###" in pieces.decode(rows[0].tokens)


def test_truncation_keeps_the_decisions_of_the_output(pieces):
    row = ner_row(" ".join(["fever/B of/O"] * 20))
    whole = encode_row(pieces, TRAIN, row, 5.0)
    limit = len(whole.tokens) - 20
    rows, _ = encode_rows(pieces, TRAIN, [row], max_length=limit, overlong="truncate_input", decision_weight=5.0)
    bearing = whole.weights > 0
    assert rows[0].tokens[rows[0].weights > 0].tolist() == whole.tokens[bearing].tolist()
    assert rows[0].weights[rows[0].weights > 0].tolist() == whole.weights[bearing].tolist()


def test_a_row_that_truncation_cannot_mend_is_refused_by_name(pieces):
    row = replace(FREE, output="breast cancer " * 30)
    with pytest.raises(UserError, match=r"Row 0 .* tokens even without its input; the limit is 60"):
        encode_rows(pieces, TRAIN, [row], max_length=60, overlong="truncate_input")
