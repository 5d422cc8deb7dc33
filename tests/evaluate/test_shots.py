"""k-shot prompting: which training rows are shown, to which rows, and how they are written."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from evaluate_oracle import result_bytes
from evaluate_samples import NER, NLI, RELATION, perfect
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.cli import main
from medtune_jax.data.prompts import TEMPLATES, get_template
from medtune_jax.errors import UserError
from medtune_jax.evaluate.predictions import read_predictions
from medtune_jax.evaluate.run import evaluate
from medtune_jax.evaluate.shots import LARGEST_SHARE, SEPARATOR, _balanced, candidates, show, stop_strings
from medtune_jax.generate.answering import ways_of
from medtune_jax.generate.decoding import Decoding
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.rows import Row, write_rows

ALPACA = get_template("alpaca")
LABELS = get_source(NLI).task.labels


class Letters:
    """One token a character."""

    def encode(self, text):
        return list(map(ord, text))


def nli(premise, label):
    return Row("Which?", *get_source(NLI).task.render((premise, "He is ill .", label)), NLI)


def ner(text, tags):
    return Row("Tag.", *get_source(NER).task.render((tuple(text.split(" ")), tuple(tags.split(" ")))), NER)


TRAIN = [nli(f"Case {number} .", LABELS[number % 3 % 2]) for number in range(12)]  # two thirds are of one label
TRAIN += [nli(f"Rare {number} .", LABELS[2]) for number in range(2)]
ASKED = [nli("The man is well .", LABELS[0])]


def shown(train, asked, shots, *, seed=0, max_positions=100_000, decoding=Decoding()):  # noqa: B008
    found = candidates(train, asked, seed, "rows")
    ways = ways_of(asked, decoding)
    return show(found, shots, asked, ways, ALPACA, Letters(), max_positions)


def written(row):
    return ALPACA.prompt(row.instruction, row.input) + ALPACA.completion(row.output) + SEPARATOR


def test_the_labels_take_turns_and_all_rows_of_a_source_are_shown_the_same():
    asked = [*ASKED, nli("She sleeps .", LABELS[1])]
    prefaces, told = shown(TRAIN, asked, 6)
    assert prefaces[0] == prefaces[1]
    rows = [TRAIN[index] for index in told[NLI]["training_rows"]]
    assert prefaces[0] == "".join(map(written, rows))
    assert Counter(row.output for row in rows) == dict.fromkeys(LABELS, 2)
    assert {row.output for row in rows[:3]} == set(LABELS)
    fewer, _ = shown(TRAIN, asked, 2)
    assert prefaces[0].startswith(fewer[0])  # what is shared is computed once


def test_the_choice_depends_on_the_seed_alone():
    orders = [shown(TRAIN, ASKED, 4, seed=seed)[1][NLI]["training_rows"] for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1] == [0, 1, 13, 11]  # on any machine, with any library
    assert len(set(map(tuple, orders))) > 2


def test_rows_with_and_without_mentions_take_turns_a_mention_first():
    train = [ner(f"word{number} here", "O O") for number in range(9)] + [ner("old gout", "O B"), ner("gout", "B")]
    for seed in range(5):
        _, told = shown(train, [ner("Is it gout ?", "O O B O")], 4, seed=seed)
        assert [index >= 9 for index in told[NER]["training_rows"]] == [True, False, True, False]


def test_every_hallmark_has_its_turn_and_none_is_the_last():
    labels = get_source("hoc").task.labels
    sets = [labels[:1], labels[:1], labels[:2], labels[1:2], labels[2:4], ()]
    train = [Row("", f"text {i}", get_source("hoc").task.render(("", one))[1], "hoc") for i, one in enumerate(sets)]
    _, told = shown(train, [Row("", "asked", "None", "hoc")], 4)
    chosen = [sets[index] for index in told["hoc"]["training_rows"]]
    assert {label for one in chosen[:3] for label in one} == set(labels[:4]) and chosen[3] == ()


@given(st.lists(st.lists(st.sampled_from("abc"), unique=True, max_size=2).map(tuple), max_size=20))
def test_every_row_has_one_place_and_classes_of_single_labels_stay_within_one_of_each_other(classes):
    ranked = _balanced(dict(enumerate(classes)))
    assert sorted(ranked) == list(range(len(classes)))
    single = {index: of[:1] for index, of in enumerate(classes) if of}
    ranked = _balanced(single)
    totals = Counter(single.values())
    for end in range(len(ranked)):
        taken = Counter(single[index] for index in ranked[:end])
        open_ = [taken[name] for name in totals if taken[name] < totals[name]]
        assert not open_ or max(taken.values(), default=0) - min(open_) <= 1


def test_a_question_that_is_asked_is_never_shown_nor_one_twice():
    asked = [nli("cASE  \uff11 .", LABELS[0])]  # the same but for case, white space and the form of a letter
    train = [*TRAIN, *TRAIN]
    _, told = shown(train, asked, 20)
    rows = told[NLI]["training_rows"]
    assert told[NLI]["training_rows_asked_too"] == 2
    assert len({train[index].input for index in rows}) == len(rows) == 13
    assert not any("Case 1 ." in train[index].input for index in rows)


def test_rows_of_a_document_that_is_asked_are_not_shown():
    train = [replace(row, group=group) for row, group in zip(TRAIN[:4], ("d1", "d2", "", "d1"), strict=True)]
    _, told = shown(train, [replace(ASKED[0], group="d1")], 4)
    assert (sorted(told[NLI]["training_rows"]), told[NLI]["training_rows_of_asked_groups"]) == ([1, 2], 2)
    everywhere = [replace(row, group="d1") for row in train]  # no name of a document
    assert len(shown(everywhere, [replace(ASKED[0], group="d1")], 4)[1][NLI]["training_rows"]) == 4


def test_questions_without_input_are_told_apart_by_their_instruction():
    asked = [Row("What helps ?", "", "Rest.", "iCliniq")]
    train = [Row("What helps?", "", "Rest.", "iCliniq"), Row("Who are you?", "", "A doctor.", "iCliniq")]
    _, told = shown(train, asked, 2)
    assert (told["iCliniq"]["training_rows"], told["iCliniq"]["training_rows_asked_too"]) == ([1], 1)


def test_rows_that_cannot_be_read_or_say_nothing_are_not_shown():
    train = [Row("", TRAIN[0].input, "Perhaps", NLI), Row("", TRAIN[1].input, "", NLI), TRAIN[2]]
    assert shown(train, ASKED, 3)[1][NLI]["training_rows"] == [2]


def test_what_does_not_fit_is_dropped_from_the_end_row_by_row():
    long = nli("well " * 200, LABELS[1])
    asked = [*ASKED, long]
    size = [len(written(TRAIN[index])) for index in shown(TRAIN, ASKED, 4)[1][NLI]["training_rows"]]
    positions = 8 * max(size)
    prefaces, told = shown(TRAIN, asked, 4, max_positions=positions)
    counts = [sum(preface.count(row.input) for row in TRAIN) for preface in prefaces]
    assert counts[0] == 4 and 0 < counts[1] < 4
    assert prefaces[0].startswith(prefaces[1])
    assert told[NLI]["rows_by_shots"] == {str(counts[1]): 1, "4": 1}
    for row, preface in zip(asked, prefaces, strict=True):  # with the longest answer there is room left
        answer = max(len(ALPACA.completion(label)) for label in LABELS)
        assert 1 + len(preface + ALPACA.prompt(row.instruction, row.input)) + answer < positions


def test_the_budget_of_free_text_is_kept_free():
    train, asked = [Row("", "My toe aches.", "Rest.", "iCliniq")], [Row("", "My head aches.", "Rest.", "iCliniq")]
    size = len(written(train[0])) + len(ALPACA.prompt("", asked[0].input))
    for budget, shots in ((300, "1"), (2000, "0")):
        decoding = Decoding("greedy", max_new_tokens=budget)
        _, told = shown(train, asked, 1, max_positions=size + 1000, decoding=decoding)
        assert told["iCliniq"]["rows_by_shots"] == {shots: 1}


def test_a_demonstration_that_takes_too_much_of_the_context_is_passed_over():
    train = [nli("long " * 400, LABELS[0]), *TRAIN[:3]]
    for seed in range(4):
        _, told = shown(train, ASKED, 4, seed=seed, max_positions=int(len(written(train[0])) / LARGEST_SHARE) - 4)
        assert 0 not in told[NLI]["training_rows"] and told[NLI]["passed_over_as_too_long"] == 1


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "train split, which rows does not have"),
        ([], f"of source '{NLI}' none can be shown: it has no such rows"),
        (ASKED, f"of source '{NLI}' none can be shown: 1 of its 1 rows there are asked here"),
    ],
)
def test_what_is_missing_is_named(train, message):
    with pytest.raises(UserError, match=message):
        candidates(train, ASKED, 0, "rows")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_model_that_goes_on_with_the_next_example_is_stopped_before_it(name):
    template = TEMPLATES[name]
    [stop] = stop_strings(template)
    for row in (TRAIN[0], Row("Say it.", "", "It.", "iCliniq")):
        again = (
            template.completion("It is.\n### Findings: none") + SEPARATOR + template.prompt(row.instruction, row.input)
        )
        assert again.split(stop)[0].strip() == "It is.\n### Findings: none"


def test_an_answer_is_written_behind_the_demonstrations_and_both_are_told(tmp_path, data, oracle):
    train = [nli("New case .", label) for label in LABELS[:1]] + [ner("An ulcer .", "O B O")]
    relation = Row("Which?", *get_source(RELATION).task.render(("Water helps .", "Treats")), RELATION)
    write_rows(data / "train.parquet", [*train, relation])
    how = {"sources": [NLI, NER], "shots": 2, "shot_seed": 5}
    seen = []
    plain = oracle.decode_template
    oracle.decode_template = lambda requests, template, **more: (
        seen.extend(requests),
        plain(requests, template, **more),
    )
    evaluate("m", data, "test", tmp_path / "out", **how)
    assert {one.preface for one in seen} == {written(train[0]), written(train[1])}
    assert all(one.prompt(ALPACA).startswith(one.preface) for one in seen)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_bytes())
    assert (provenance["shots"], provenance["shot_seed"]) == (2, 5)
    assert provenance["decoding"]["shots"] == 2
    assert provenance["demonstrations"][NLI]["rows_by_shots"] == {"1": 4}
    assert "New case" not in (tmp_path / "out" / "provenance.json").read_text()
    assert "2-shot" in (tmp_path / "out" / "report.md").read_text()
    for other in ({}, {"shots": 1}, {"shots": 2, "shot_seed": 6}):
        with pytest.raises(UserError, match="answers that this call would lose"):
            evaluate("m", data, "test", tmp_path / "out", sources=[NLI, NER], **other)


def test_a_limit_changes_neither_what_is_shown_nor_what_is_kept(tmp_path, data, oracle):
    write_rows(data / "train.parquet", [*TRAIN, Row("", perfect(NLI)[3].input, "Neutral", NLI)])
    how = {"sources": [NLI], "shots": 3}
    evaluate("m", data, "test", tmp_path / "out", limit=1, **how)
    evaluate("m", data, "test", tmp_path / "out", **how)
    assert len(oracle.calls[-1]) == 3


def test_free_answers_end_before_an_invented_example_however_they_are_decoded(tmp_path, data, oracle):
    write_rows(data / "train.parquet", TRAIN)
    stops = []
    plain = oracle.generate
    oracle.generate = lambda *args, stop=(), draft=None, **more: (stops.append(stop), plain(*args, **more))
    for one in perfect(NLI):
        oracle.gold[one.input] = f"{one.output}\n\n{ALPACA.prompt('More?', 'x')}"
    for decoding in (Decoding("greedy", draft="prompt"), Decoding("beam")):
        evaluate("m", data, "test", tmp_path / decoding.method, sources=[NLI], shots=1, decoding=decoding)
    assert stops == [stop_strings(ALPACA), ()]  # beam search takes none: its texts are cut
    found = read_predictions(tmp_path / "beam")
    assert {(one.generated.strip() == one.output, one.finish_reason) for one in found} == {(True, "stop")}


def test_the_command_shows_training_rows_and_refuses_a_seed_without_them(tmp_path, data, oracle, capsys):
    command = ["evaluate", "--model=m", f"--data={data}", f"--out={tmp_path / 'out'}", f"--sources={NLI}"]
    assert main.dispatch([*command, "--shot_seed=3"]) == 2
    assert "--shot_seed has no effect on --shots=0" in capsys.readouterr().err
    assert main.dispatch([*command, "--shots=1"]) == 2
    assert f"of source '{NLI}' none can be shown" in capsys.readouterr().err
    write_rows(data / "train.parquet", TRAIN)
    assert main.dispatch([*command, "--shots=1"]) == 0
    assert result_bytes(tmp_path / "out", "scores.json")
