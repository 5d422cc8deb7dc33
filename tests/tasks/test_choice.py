"""Multiple choice: options in the input, one letter out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from medtune_jax.tasks.base import Parsed, Slot
from medtune_jax.tasks.choice import ChoiceTask

TASK = ChoiceTask()
OPTIONS = ("Aspirin", "Heparin", "B cells", "Aspirin and heparin")
INPUT = "Which?\nA. Aspirin\nB. Heparin\nC. B cells\nD. Aspirin and heparin"
LETTERS = "ABCD"
one_line = st.text().filter(lambda text: "\n" not in text and "\r" not in text)


def totals(rows):
    return {key: np.array(sum(row[key] for row in rows)) for key in rows[0]}


def row(gold, answer):
    return TASK.statistics(("q", OPTIONS, gold), Parsed(None if answer is None else ("q", OPTIONS, answer)), INPUT)


@given(st.text(), st.lists(one_line, min_size=2, max_size=26), st.data())
def test_a_row_round_trips(question, options, data):
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]))
    annotation = (question, tuple(options), letter)
    input, output = TASK.render(annotation)
    assert output == letter and TASK.parse(output, input) == Parsed(annotation)
    assert TASK.gold(output, input, {}) == Parsed(annotation)


def test_a_row_is_the_question_and_a_line_per_option():
    assert TASK.render(("Which?", OPTIONS, "C")) == (INPUT, "C")


@pytest.mark.parametrize(
    "question", ["Which?\nA. one\nB. two\nC. three", "A. one\nB. two", "", "Which?\nA. one\n\n", "Q\nC. three"]
)
def test_the_last_block_of_lettered_lines_holds_the_options(question):
    input, _ = TASK.render((question, OPTIONS, "A"))
    assert TASK.options(input) == (question, OPTIONS)


def test_line_breaks_in_an_option_are_written_as_spaces():
    input, _ = TASK.render(("Q", ("one\r\ntwo", "three\nfour"), "A"))
    assert TASK.options(input) == ("Q", ("one two", "three four"))


@pytest.mark.parametrize(
    "input", ["", "Which?", "Which?\nA. one", "Q\nB. two\nC. three", "Q\nA. one\nC. two", "A. x\nB. y"]
)
def test_an_input_without_options_allows_no_answer(input):
    assert TASK.options(input) == (input, ())
    assert TASK.allowed(input) is None
    assert TASK.parse("A", input) == Parsed(None, ("no_options",))


@pytest.mark.parametrize(
    ("text", "letter", "problems"),
    [
        ("B", "B", ()),
        (" B\n", "B", ()),
        ("b", "B", ("case",)),
        ("B.", "B", ("punctuation",)),
        ("(B)", "B", ("punctuation",)),
        ("**B**", "B", ("punctuation",)),
        ("b)", "B", ("case", "punctuation")),
        ("(b) it is", "B", ("extra_text",)),
        ("b) it is", "B", ("extra_text",)),
        ("Answer: B", "B", ("extra_text",)),
        ("The answer is B because it is.", "B", ("extra_text",)),
        ("The correct option is B, for lack of vitamin D.", "B", ("extra_text",)),
        ("B is correct", "B", ("extra_text",)),
        ("A is correct", "A", ("extra_text",)),
        ("B. Heparin", "B", ("extra_text",)),
        ("B Heparin", "B", ("extra_text",)),
        ("The correct answer is (B) Heparin.", "B", ("extra_text",)),
        ("The answer is:\n\nB", "B", ("extra_text",)),
        ("B\n\nAspirin would not help.", "B", ("trailing_text",)),
        ("B\n### Instruction: more", "B", ("cut_at_marker",)),
        ("Heparin", "B", ("option_text",)),
        ("heparin.", "B", ("option_text",)),
        ("Aspirin and heparin", "D", ("option_text",)),
        ("I would give heparin", "B", ("option_text", "extra_text")),
        ("$\\boxed{B}$", "B", ("extra_text",)),
        ("The answer would be C.", "C", ("extra_text",)),
        ("The answer is therefore B", "B", ("extra_text",)),
        ("option b", "B", ("extra_text",)),
        ("Correct: B", "B", ("extra_text",)),
        ("Ans. B", "B", ("extra_text",)),
        ("It's B", "B", ("extra_text",)),
        ("The drug thins the blood.\nSo the final answer is (B).", "B", ("extra_text",)),
        ("The answer is B, not A.", "B", ("extra_text",)),
        ("(A) is wrong; (B)", "B", ("extra_text",)),
        ("heparin, not aspirin", "B", ("option_text", "extra_text")),
    ],
)
def test_a_letter_or_an_option_in_words_is_read(text, letter, problems):
    assert TASK.parse(text, INPUT) == Parsed(("Which?", OPTIONS, letter), problems)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B. Aspirin", "B"),
        ("Answer: C (heparin)", "C"),
        ("C. B cells", "C"),
        ("B aspirin", "B"),
        ("The answer is B aspirin", "B"),
        ("A aspirin", "A"),
        ("A heparin", None),  # perhaps the article
        ("Answer: A heparin", None),
        ("B heparin is wrong", None),
    ],
)
def test_a_letter_beats_text(text, letter):
    parsed = TASK.parse(text, INPUT)
    assert (parsed.annotation and parsed.annotation[-1]) == letter


@pytest.mark.parametrize(
    "form", ["{}) {}", "({}) {}", "{}. {}", "{}, {}", "{} {}", "The answer is {}, {}.", "It is {}: {}"]
)
def test_a_letter_beside_its_own_text_is_that_letter_whatever_the_text_says(form):
    options = ("Non-stress test", "E. coli", "None", "Cannot survive", "D-alanyl-D-alanine")
    input, _ = TASK.render(("Q", options, "A"))
    for letter, text in zip("ABCDE", options, strict=True):
        assert TASK.parse(form.format(letter, text), input).annotation[-1] == letter
        assert TASK.parse(f"It is {text} ({letter})", input).annotation[-1] == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A patient needs heparin", "B"),
        ("The answer is A drug", None),
        ("A", "A"),
        ("The answer is a heparin", "B"),
        ("B cells", "C"),
        ("The answer is B cells", "C"),
        ("I do not know", None),
    ],
)
def test_an_article_or_a_word_of_one_letter_is_no_answer(text, letter):
    parsed = TASK.parse(text, INPUT)
    assert (parsed.annotation and parsed.annotation[-1]) == letter


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty_output"),
        ("\n \n", "empty_output"),
        ("### B", "empty_output"),
        ("something else", "no_answer"),
        ("A and B", "no_answer"),
        ("The answer is not B", "no_answer"),
        ("E", "no_such_option"),
        ("Answer: (E)", "no_such_option"),
        ("A, B", "ambiguous"),
        ("(A) or (B)", "ambiguous"),
        ("Answer: A or B", "no_answer"),
        ("not (B)", "ambiguous"),
        ("Option B is wrong", "ambiguous"),
        ("C. Heparin (B)", "ambiguous"),
        ("Hm.\nAnswer: B\nAnswer: C", "ambiguous"),
        ("not heparin", "ambiguous"),
        ("heparin or B cells", "ambiguous"),
        ("A. Aspirin B. Heparin C. B cells D. Aspirin and heparin", "ambiguous"),
        ("A. Aspirin\nB. Heparin\nC. B cells", "ambiguous"),
        ("A\nB\nC\nD", "ambiguous"),
    ],
)
def test_an_answer_that_names_no_option_or_several_is_unparsable(text, problem):
    parsed = TASK.parse(text, INPUT)
    assert parsed.annotation is None and parsed.problems[-1] == problem


def test_text_that_two_options_share_is_ambiguous_and_their_letters_are_not():
    input, _ = TASK.render(("Q", ("iron", "zinc", "Iron ", "gold"), "C"))
    for text in ("iron", "It is iron."):
        assert TASK.parse(text, input) == Parsed(None, ("ambiguous",))
    assert [TASK.parse(text, input).annotation[-1] for text in ("A", "C. iron", "zinc")] == ["A", "C", "B"]


@pytest.mark.parametrize("lead", ["", "Answer: ", "The answer is ", "**"])
def test_an_option_that_starts_like_a_letter_is_read_whole(lead):
    options = ("D-dimer", "S. aureus", "E. coli", "T cells", "none")
    input, _ = TASK.render(("Q", options, "A"))
    for letter, text in zip("ABCD", options, strict=False):
        assert TASK.parse(lead + text, input).annotation[-1] == letter
        assert TASK.parse(f"{lead}{letter}. {text}", input).annotation[-1] == letter
    assert TASK.parse("E. none", input).annotation[-1] == "E"
    assert TASK.parse("B-lymphocytes", input).annotation is None


def test_options_of_one_or_two_letters_are_read_only_as_the_whole_answer():
    input, _ = TASK.render(("Q", ("a", "ac", "", "K"), "B"))
    assert [TASK.parse(text, input).annotation[-1] for text in ("ac", "K", "a")] == ["B", "D", "A"]
    assert TASK.parse("the ac line", input) == Parsed(None, ("no_answer",))


@pytest.mark.parametrize("count", [2, 5, 26])
def test_the_allowed_outputs_are_the_letters_of_the_row(count):
    input, output = TASK.render(("Q", ("x",) * count, "B"))
    allowed = TASK.allowed(input)
    assert allowed.parts == (Slot(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count])),)
    assert allowed.spans(output) == [(0, 1)]


def test_too_few_or_many_options_or_a_letter_without_one_is_refused():
    for options in (("x",), ("x",) * 27):
        with pytest.raises(ValueError, match="2 to 26"):
            TASK.render(("Q", options, "A"))
    with pytest.raises(ValueError, match="'C' is none of A B"):
        TASK.render(("Q", ("x", "y"), "C"))
    with pytest.raises(ValueError, match="'f1' is none of accuracy"):
        ChoiceTask(metric="f1")


@given(st.lists(st.tuples(st.sampled_from(LETTERS), st.sampled_from([*LETTERS, None])), min_size=1, max_size=30))
def test_accuracy_equals_scikit_learn_and_is_given_over_parsed_rows_too(pairs):
    got = TASK.metrics(totals([row(*pair) for pair in pairs]))
    assert got["accuracy"] == pytest.approx(accuracy_score([g for g, _ in pairs], [a or "" for _, a in pairs]))
    read = [(g, a) for g, a in pairs if a is not None]
    assert got["accuracy_parsed"] == pytest.approx(accuracy_score(*zip(*read, strict=True)) if read else 0)


def test_a_perfect_run_is_exactly_one_and_a_blank_answer_earns_nothing():
    assert TASK.metrics(totals([row(letter, letter) for letter in LETTERS])) == {"accuracy": 1, "accuracy_parsed": 1}
    blank = TASK.statistics(("Which?", OPTIONS, "A"), TASK.parse("", INPUT), INPUT)
    assert TASK.metrics(totals([blank]))["accuracy"] == 0 and blank["unparsable"] == 1
    assert blank.keys() == row("A", "B").keys()


def test_the_breakdown_counts_the_letters_that_occur():
    counts = TASK.breakdown(totals([row("A", "A"), row("A", "B"), row("C", None)]))["per_label"]
    assert counts == {
        "A": {"gold": 2, "predicted": 1, "correct": 1},
        "B": {"gold": 0, "predicted": 1, "correct": 0},
        "C": {"gold": 1, "predicted": 0, "correct": 0},
    }


def test_errors_name_the_options_by_letter_and_text():
    gold = ("Which?", OPTIONS, "A")
    (wrong,) = TASK.errors(gold, TASK.parse("B", INPUT), INPUT)
    assert (wrong.kind, wrong.gold, wrong.predicted) == ("wrong_label", "A. Aspirin", "B. Heparin")
    (unread,) = TASK.errors(gold, TASK.parse("", INPUT), INPUT)
    assert (unread.kind, unread.gold, unread.predicted) == ("unparsable", "A. Aspirin", "")
    assert TASK.errors(gold, TASK.parse("A", INPUT), INPUT) == []


@pytest.mark.parametrize(("letters", "constant"), [("", "A"), ("BCC", "C"), ("CB", "B")])
def test_the_constant_answer_is_the_letter_that_is_right_most_often(letters, constant):
    assert TASK.baselines([(INPUT, letter) for letter in letters])["constant"](INPUT) == constant
