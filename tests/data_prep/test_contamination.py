"""Training rows that share text with test sets: what counts as shared, and how it is counted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.data_prep.mixtures import contamination
from medtune_jax.data_prep.mixtures.contamination import HeldOut, N, overlap
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.tasks.rows import Row, read_rows

LONG = "the patient was given two grams of ceftriaxone on the second day after the operation"


def rows(source, *inputs):
    return [Row("", text, "x", source, f"{source}/{number}") for number, text in enumerate(inputs)]


def shared(train, test):
    """Says whether a training text and a test text share text."""
    return bool(overlap(rows("a", train), [HeldOut("b", "test", rows("b", test))]).hit[0])


def test_thirteen_words_in_a_row_are_shared_text_and_twelve_are_not():
    words = [f"w{number}" for number in range(40)]
    for count, expected in ((N, True), (N - 1, False)):
        train = " ".join(["x"] * 20 + words[:count] + ["y"] * 20)
        test = " ".join(["p"] * 5 + words[:count] + ["q"] * 5)
        assert shared(train, test) is expected


def test_a_short_text_is_compared_as_a_whole():
    assert shared("Is it flu ?", "is it flu?")
    assert not shared("Is it flu ?", "is it flu or a cold?")
    assert not shared(f"{LONG} is it flu", "is it flu")
    assert not shared("", "...")


def test_case_punctuation_and_tokenisation_do_not_hide_shared_text():
    assert shared(LONG, f"Note: {LONG.upper().replace(' ', ' - ')}!")


def test_words_of_two_neighbouring_rows_are_no_text():
    halves = [" ".join(LONG.split()[:8]), " ".join(LONG.split()[8:])]
    assert not overlap(rows("a", *halves), [HeldOut("b", "test", rows("b", LONG))]).hit.any()


def test_a_row_without_input_is_compared_by_its_instruction():
    question = Row(LONG, "", "x", "a", "a/0")
    assert overlap([question], [HeldOut("b", "test", rows("b", LONG))]).hit.all()
    assert not overlap([Row(LONG, "other", "x", "a")], [HeldOut("b", "test", rows("b", LONG))]).hit.any()


def test_counts_and_examples_are_given_for_each_pair_of_sets():
    train = [*rows("a", LONG, "nothing", LONG + " again"), *rows("c", "flu")]
    tests = [
        HeldOut("b", "test", rows("b", LONG, "free", LONG)),
        HeldOut("b", "test2", rows("b2", "flu", "cold"), "validation"),
    ]
    found = overlap(train, tests)
    assert found.hit.tolist() == [True, False, True, False]
    assert found.validation_hit.tolist() == [False, False, False, True]
    assert found.pairs == [
        {
            "train_source": "a",
            "test_source": "b",
            "test_split": "test",
            "role": "test",
            "train_rows": 2,
            "train_share": 2 / 3,
            "test_rows": 2,
            "test_share": 2 / 3,
            "identical_test_rows": 2,
            "examples": [["a/0", "b/0"], ["a/2", "b/0"]],
        },
        {
            "train_source": "c",
            "test_source": "b",
            "test_split": "test2",
            "role": "validation",
            "train_rows": 1,
            "train_share": 1.0,
            "test_rows": 1,
            "test_share": 0.5,
            "identical_test_rows": 1,
            "examples": [["c/0", "b2/0"]],
        },
    ]
    assert found.test_sets == [
        {"source": "b", "split": "test", "rows": 3, "role": "test"},
        {"source": "b", "split": "test2", "rows": 2, "role": "validation"},
    ]


def naive(train, test):
    """Returns for each training text whether it shares text with a test text, by comparing tuples of words."""

    def grams(text):
        words = tuple(text.split())
        return {words} - {()} if len(words) < N else {words[at : at + N] for at in range(len(words) - N + 1)}

    held_out = set().union(*map(grams, test))
    return [bool(grams(text) & held_out) for text in train]


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=20).map(" ".join), max_size=6)


@given(TEXTS, TEXTS, TEXTS)
@settings(max_examples=200)
def test_it_finds_what_a_naive_comparison_finds_whatever_the_batches(train, one, other):
    sets = [HeldOut("one", "test", rows("one", *one)), HeldOut("other", "test", rows("other", *other))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "_BATCH", 2)
        found = overlap(rows("a", *train), sets)
    assert found.hit.tolist() == naive(train, one + other)
    assert {pair["test_source"]: pair["train_rows"] for pair in found.pairs} == {
        name: count for name, test in (("one", one), ("other", other)) if (count := sum(naive(train, test)))
    }
    assert {pair["test_source"]: pair["test_rows"] for pair in found.pairs} == {
        name: count for name, test in (("one", one), ("other", other)) if (count := sum(naive(test, train)))
    }


@pytest.fixture
def raw(tmp_path):
    """Two sources; a training sentence of the first is a test sentence of both."""
    conll = "".join(f"{word}\tO\n" for word in LONG.split())
    for name, text in (
        ("NCBI-disease/train.tsv", f"{conll}\nflu\tB\n"),
        ("NCBI-disease/test.tsv", f"{conll}\n"),
        ("BC2GM/test.tsv", f"gene\tB\n\n{conll}\n"),
    ):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text(text)
    return tmp_path / "raw"


def test_prepare_compares_with_every_test_set_at_hand_also_of_sources_not_asked_for(raw, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=raw, sources=["NCBI-disease"])
    found = result["contamination"]
    assert [pair["test_source"] for pair in found["pairs"]] == ["NCBI-disease", "BC2GM"]
    assert found["pairs"][1]["examples"] == [["NCBI-disease/train/0", "BC2GM/test/1"]]
    assert (found["mode"], found["shared_rows"], found["dropped_rows"]) == ("report", 1, 0)
    assert result["rows"] == {"train": 2, "test": 1} and [*result["sources"]] == ["NCBI-disease"]


def test_prepare_drops_shared_rows_on_request_and_looks_at_nothing_when_told_so(raw, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=raw, sources=["NCBI-disease"], contamination="drop")
    assert result["contamination"]["dropped_rows"] == 1
    assert [row.input for row in read_rows(tmp_path / "rows", "train")] == ["flu"]
    result = prepare(tmp_path / "rows", raw_dir=raw, contamination="off")
    assert result["contamination"] == {"mode": "off", "train_rows": 2}


def test_a_test_set_that_cannot_be_read_is_named_and_stops_nothing(raw, tmp_path):
    (raw / "BC2GM" / "test.tsv").write_text("gene\tI\n")
    result = prepare(tmp_path / "rows", raw_dir=raw, sources=["NCBI-disease"])
    assert result["contamination"]["not_compared"] == [
        {"source": "BC2GM", "split": "test", "reason": "it cannot be read"}
    ]
    assert any("Not compared with training: BC2GM test" in warning for warning in result["warnings"])


def test_validation_rows_are_compared_and_no_training_row_is_dropped_for_them_alone(raw, tmp_path):
    (raw / "NCBI-disease" / "devel.tsv").write_text("flu\tB\n\n" + "".join(f"{word}\tO\n" for word in LONG.split()))
    (tmp_path / "mine.toml").write_text(
        "".join(f"[[{split}]]\nsource = 'NCBI-disease'\n" for split in ("train", "validation"))
    )
    result = prepare(tmp_path / "rows", raw_dir=raw, mixture=str(tmp_path / "mine.toml"), contamination="drop")
    found = result["contamination"]
    assert [(pair["test_source"], pair["test_split"], pair["role"], pair["train_rows"]) for pair in found["pairs"]] == [
        ("NCBI-disease", "test", "test", 1),
        ("BC2GM", "test", "test", 1),
        ("NCBI-disease", "validation", "validation", 2),
    ]
    assert (found["shared_rows"], found["validation_shared_rows"], found["dropped_rows"]) == (1, 2, 1)
    assert [row.input for row in read_rows(tmp_path / "rows", "train")] == ["flu"]
    card = (tmp_path / "rows" / "README.md").read_text()
    assert "| NCBI-disease | NCBI-disease validation | validation | 2 | 2 | 100.00 % | 2 |" in card


def test_validation_rows_of_a_test_split_are_compared_once_as_that_test_set(raw, tmp_path):
    (tmp_path / "mine.toml").write_text(
        "[[train]]\nsource = 'NCBI-disease'\n[[validation]]\nsource = 'NCBI-disease'\nsplit = 'test'\n"
    )
    found = prepare(tmp_path / "rows", raw_dir=raw, mixture=str(tmp_path / "mine.toml"))["contamination"]
    assert [tested["role"] for tested in found["test_sets"]] == ["test", "test"]


def test_94_test_sentences_of_jnlpba_stand_in_its_training_set(shared_data, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=None, raw={"JNLPBA": shared_data / "raw" / "JNLPBA"})
    train = {row.input for row in read_rows(tmp_path / "rows", "train")}
    assert len(train & {row.input for row in read_rows(tmp_path / "rows", "test")}) == 94
    pair = result["contamination"]["pairs"][0]
    assert pair["role"] == "test"
    assert (pair["train_rows"], pair["test_rows"], pair["identical_test_rows"]) == (126, 101, 100)
