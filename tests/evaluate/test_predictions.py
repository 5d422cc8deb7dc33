"""Predictions survive being stopped anywhere, and what is wrong in a file is said by line."""

import json
import os
from dataclasses import asdict, replace

import pytest
from evaluate_samples import perfect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medtune_jax.errors import UserError
from medtune_jax.evaluate.predictions import FINAL, PARTIAL, PredictionLog, prediction_key, read_predictions

TEXTS = ["plain", "two\nlines", "ünïcode \u2028 ✓", "", '"quoted" \\', "\ud800 alone"]


def _questions(count=6):
    row = perfect()[0]
    return [
        replace(row, row=i, generated="", finish_reason="", generated_tokens=0, key=f"{i:032x}") for i in range(count)
    ]


def _answer(log, order=None, stop_after=None):
    for done, index in enumerate(order or log.missing):
        if done == stop_after:
            return
        if index in log.missing:
            log.add(index, TEXTS[index % len(TEXTS)], "eos", index)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with PredictionLog(folder, _questions()) as log:
        _answer(log)
        log.flush()
        partial = (folder / PARTIAL).read_bytes()
        log.finish()
    return partial, (folder / FINAL).read_bytes()


def test_a_tail_torn_at_any_byte_ends_in_the_same_bytes(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)
    partial, final = undisturbed
    last_line = partial[:-1].rindex(b"\n") + 1
    for cut in range(last_line, len(partial) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / PARTIAL).write_bytes(partial[:cut])
        with PredictionLog(folder, _questions()) as log:
            assert log.dropped_torn == (last_line < cut < len(partial))
            assert log.missing == ([] if cut == len(partial) else [5])
            _answer(log)
            log.finish()
        assert (folder / FINAL).read_bytes() == final
        assert not (folder / PARTIAL).exists()


@given(st.permutations(range(6)), st.integers(0, 6), st.integers(0, 400), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_and_any_stop_end_in_the_same_bytes(tmp_path_factory, undisturbed, order, stop, torn, stop_again):
    folder = tmp_path_factory.mktemp("stopped")
    with PredictionLog(folder, _questions()) as log:
        _answer(log, order, stop)
    with open(folder / PARTIAL, "r+b") as file:
        file.truncate(max(0, file.seek(0, 2) - torn))
    if stop_again:
        with PredictionLog(folder, _questions()) as log:
            _answer(log, order[::-1], 1)
    with PredictionLog(folder, _questions()) as log:
        _answer(log)
        log.finish()
    assert (folder / FINAL).read_bytes() == undisturbed[1]


def test_a_finished_run_is_taken_over_whole(tmp_path, undisturbed):
    (tmp_path / FINAL).write_bytes(undisturbed[1])
    with PredictionLog(tmp_path, _questions()) as log:
        assert log.missing == []
        log.finish()
    assert (tmp_path / FINAL).read_bytes() == undisturbed[1]


@pytest.mark.parametrize("name", [PARTIAL, FINAL])
def test_a_folder_with_answers_to_other_questions_is_refused_and_left_as_it_is(tmp_path, undisturbed, name):
    data = undisturbed[name == FINAL]
    (tmp_path / name).write_bytes(data)
    questions = _questions()
    questions[2] = replace(questions[2], key="another")
    for asked, lost in ((questions, 1), (_questions()[:2], 4)):
        with pytest.raises(UserError, match=f"holds {lost} answers that this call would lose.*another --out"):
            PredictionLog(tmp_path, asked)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: data}
    with PredictionLog(tmp_path, _questions(8)) as log:
        assert log.missing == [6, 7]


def test_a_damaged_line_in_the_middle_costs_only_its_row(tmp_path, undisturbed):
    lines = undisturbed[0].split(b"\n")
    (tmp_path / PARTIAL).write_bytes(b"\n".join([*lines[:3], b"\0\0\0", *lines[4:]]))
    with PredictionLog(tmp_path, _questions()) as log:
        assert (log.missing, log.dropped_torn) == ([3], True)


def test_a_write_that_failed_midway_is_repeated_from_the_last_good_end(tmp_path, undisturbed, monkeypatch):
    log = PredictionLog(tmp_path, _questions())
    _answer(log, stop_after=2)
    log.flush()
    _answer(log)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log.flush()
    with log:
        pass
    assert (tmp_path / PARTIAL).read_bytes() == undisturbed[0]


def test_the_memory_of_the_first_start_is_that_of_the_whole_run(tmp_path):
    with PredictionLog(tmp_path, _questions()) as log:
        assert log.first_memory(5e9) == 5e9
    with PredictionLog(tmp_path, _questions()) as log:
        assert log.first_memory(6e9) == 6e9, "nothing was answered in the batches of the first"
        _answer(log, stop_after=2)
    with PredictionLog(tmp_path, _questions()) as log:
        assert log.first_memory(2**62) == 6e9
        _answer(log)
        log.finish()
    assert not list(tmp_path.glob("*.memory.json"))


def test_gold_mended_between_attempts_is_todays(tmp_path, undisturbed):
    (tmp_path / PARTIAL).write_bytes(undisturbed[0])
    with PredictionLog(tmp_path, [replace(one, output="mended") for one in _questions()]) as log:
        assert {one.output for one in log.finish()} == {"mended"}


def test_an_unfinished_log_cannot_be_finished(tmp_path):
    with PredictionLog(tmp_path, _questions()) as log, pytest.raises(ValueError, match="6 rows have no answer"):
        log.finish()


def test_private_files_are_for_their_owner_only(tmp_path):
    with PredictionLog(tmp_path, _questions(), private=True) as log:
        assert (tmp_path / PARTIAL).stat().st_mode & 0o777 == 0o600
        _answer(log)
        log.finish()
    assert (tmp_path / FINAL).stat().st_mode & 0o777 == 0o600


def test_what_is_written_is_read_back(tmp_path, undisturbed):
    (tmp_path / FINAL).write_bytes(undisturbed[1])
    read = read_predictions(tmp_path)
    assert [one.generated for one in read] == TEXTS
    assert list(asdict(read[0]))[:-1] == list(json.loads(undisturbed[1].split(b"\n")[0]))


def test_loglikelihoods_are_the_last_field_and_written_only_where_they_were_computed(tmp_path):
    values = {"No": -12.345678901234567, "Yes": -1e-07}
    with PredictionLog(tmp_path, _questions(2)) as log:
        log.add(0, "Yes", "constrained", 1, values)
        log.add(1, "", "prompt_too_long", 0)
        written = log.finish()
    lines = [json.loads(line) for line in (tmp_path / FINAL).read_bytes().splitlines()]
    assert list(lines[0])[-1] == "loglikelihoods" and list(lines[0]["loglikelihoods"].items()) == list(values.items())
    assert "loglikelihoods" not in lines[1]
    assert read_predictions(tmp_path) == written
    before = (tmp_path / FINAL).read_bytes()
    with PredictionLog(tmp_path, _questions(2)) as log:
        assert log.missing == []
        log.finish()
    assert (tmp_path / FINAL).read_bytes() == before


def test_four_keys_are_enough(tmp_path):
    line = json.dumps({"source": "s", "input": "i", "output": "o", "generated": "g", "id": None})
    (tmp_path / "p.jsonl").write_text(f"{line}\n\n{line}")
    read = read_predictions(tmp_path / "p.jsonl")
    assert [(one.row, one.id, one.finish_reason) for one in read] == [(0, "", ""), (1, "", "")]


def test_what_other_tools_add_is_ignored_and_meta_may_be_an_object(tmp_path):
    line = {"source": "s", "input": "i", "output": "o", "generated": "g", "logprob": -1.5, "meta": {"b": "é", "a": 1}}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    (read,) = read_predictions(tmp_path / "p.jsonl")
    assert (read.generated, read.meta) == ("g", '{"a": 1, "b": "é"}')


@pytest.mark.parametrize("name", ["generated", "row", "loglikelihoods", "finish_reason"])
def test_no_message_shows_what_stands_in_the_line(tmp_path, name):
    line = {"source": "s", "input": "i", "output": "o", "generated": "g", name: ["Mr Secret"]}
    for value in (["Mr Secret"], {"Mr Secret": "Mr Secret"}, *([] if name == "generated" else ["Mr Secret"])):
        (tmp_path / "p.jsonl").write_text(json.dumps(line | {name: value}))
        with pytest.raises(UserError) as caught:
            read_predictions(tmp_path / "p.jsonl")
        assert "Secret" not in str(caught.value) and "p.jsonl:1" in str(caught.value)


GOOD = {"source": "s", "input": "i", "output": "o", "generated": "g"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p\.jsonl:2 is not JSON"),
        ("\0\0", r"p\.jsonl:2 is not JSON"),
        ("[]", r"p\.jsonl:2 is list"),
        (json.dumps({**GOOD, "generated": None}), r"p\.jsonl:2: 'generated' is of type NoneType; expected text"),
        (json.dumps({key: GOOD[key] for key in ("source", "input", "output")}), r"p\.jsonl:2 lacks 'generated'"),
        (json.dumps({**GOOD, "finish_reason": "eso"}), r"p\.jsonl:2: unknown finish_reason.*'eos'"),
        (json.dumps({**GOOD, "row": "1"}), r"p\.jsonl:2: 'row' is of type str; expected an integer"),
        (json.dumps({**GOOD, "meta": [1]}), r"p\.jsonl:2: 'meta' is of type list; expected text"),
        (
            json.dumps({**GOOD, "loglikelihoods": [1.0]}),
            r"p\.jsonl:2: 'loglikelihoods' is of type list; expected an object",
        ),
        (
            json.dumps({**GOOD, "loglikelihoods": {"Yes": -1, "No": float("nan")}}),
            r"p\.jsonl:2: .* candidate 2 is not a finite number",
        ),
        (json.dumps({**GOOD, "loglikelihoods": {"Yes": True}}), r"p\.jsonl:2: .* candidate 1 is not a finite number"),
        (json.dumps({**GOOD, "row": True}), r"p\.jsonl:2: 'row' is of type bool; expected an integer"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.jsonl")


def test_missing_empty_and_unfinished_files_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_predictions(tmp_path)
    (tmp_path / PARTIAL).write_bytes(b"")
    with pytest.raises(UserError, match="unfinished run"):
        read_predictions(tmp_path)
    (tmp_path / FINAL).write_bytes(b"\n")
    with pytest.raises(UserError, match="holds no predictions"):
        read_predictions(tmp_path)


def test_everything_that_decides_an_answer_enters_its_key():
    base = {
        "row": 1,
        "id": "a",
        "source": "s",
        "model": "m",
        "prompt": "p",
        "decoding": {"method": "greedy"},
        "template": "t",
    }
    other = {
        "row": 2,
        "id": "b",
        "source": "v",
        "model": "n",
        "prompt": "q",
        "decoding": {"method": "sample"},
        "template": "u",
    }
    keys = {prediction_key(**base)} | {prediction_key(**{**base, name: other[name]}) for name in base}
    assert len(keys) == 8
