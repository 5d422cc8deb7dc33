"""Drawing, deduplication, balance and order of a mixture's rows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.data_prep.mixtures import mixing
from medtune_jax.data_prep.mixtures.mixing import Batch
from medtune_jax.data_prep.mixtures.mixture import Ingredient
from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import Row


def batch(source, count, **settings):
    rows = [Row("do", f"{source} {number}", "x", source, str(number)) for number in range(count)]
    return Batch(Ingredient("train", source=source, split="train", **settings), rows)


def inputs(*batches):
    return [row.input for one in batches for row in one.rows]


def test_a_cap_keeps_the_first_of_a_seeded_permutation_in_file_order():
    drawn = {}
    for cap in (10, 20):
        one = batch("GAD", 100, cap=cap)
        mixing.cap(one, seed=1)
        drawn[cap] = inputs(one)
        assert one.numbers == sorted(one.numbers) and len(one.rows) == cap
        assert one.dropped == {"over the cap": 100 - cap} and one.found == 100
    assert set(drawn[10]) < set(drawn[20])
    other = batch("GAD", 100, cap=10)
    mixing.cap(other, seed=2)
    assert inputs(other) != drawn[10]


def test_a_fraction_is_rounded_down_as_the_authors_do():
    for fraction, count, kept in ((0.5, 11, 5), (0.29, 100, 29), (0.07, 100, 7), (1, 3, 3), (1e-05, 100_000, 1)):
        one = batch("chatdoctor", count, fraction=fraction)
        mixing.cap(one, seed=0)
        assert len(one.rows) == kept


def test_the_draw_of_rows_does_not_depend_on_where_they_lie_nor_on_what_lies_between_them():
    drawn = []
    for path in ("rows.parquet", "./rows.parquet", "/data/other.jsonl"):
        rows = [Row("do", str(number), "x", "ncbi" if number % 3 else "NCBI-disease") for number in range(20)]
        if path.startswith("/"):
            rows = [row for pair in zip(rows, [Row("do", "between", "x", "mine")] * 20, strict=True) for row in pair]
        one = Batch(Ingredient("train", path=path, split="train"), rows)
        drawn.append([row.input for row in mixing.ordered([one], True, seed=0) if row.source != "mine"])
    native = batch("NCBI-disease", 20)
    drawn.append([row.id for row in mixing.ordered([native], True, seed=0)])
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]


def test_the_draw_is_fixed_for_ever():
    one = batch("GAD", 12, cap=4)
    mixing.cap(one, seed=0)
    assert one.numbers == [2, 6, 7, 10]
    assert [row.id for row in mixing.ordered([batch("GAD", 6)], True, seed=0)] == ["4", "5", "0", "3", "2", "1"]


def test_what_a_cap_leaves_is_spread_over_the_shuffled_split():
    small = batch("GAD", 1000, cap=100)
    mixing.cap(small, seed=0)
    order = [row.source for row in mixing.ordered([small, batch("hoc", 900)], True, seed=0)]
    assert 35 < order[:500].count("GAD") < 65


def test_the_shuffled_order_does_not_depend_on_the_order_of_ingredients():
    one, other = batch("GAD", 20), batch("hoc", 20)
    shuffled = mixing.ordered([one, other], True, seed=0)
    assert shuffled == mixing.ordered([other, one], True, seed=0) != mixing.ordered([one, other], True, seed=1)
    assert mixing.ordered([one, other], False, seed=0) == one.rows + other.rows


def test_duplicates_agree_in_source_input_and_output_and_the_first_stays():
    rows = [
        Row("one wording", "a", "x", "GAD", "0"),
        Row("another", "a", "x", "GAD", "1"),
        Row("one wording", "a", "y", "GAD", "2"),
        Row("one wording", "a", "x", "hoc", "3"),
        Row("one wording", "ax", "", "GAD", "4"),
    ]
    seen: set[bytes] = set()
    one, other = (Batch(Ingredient("train", source="GAD"), list(rows)) for _ in range(2))
    mixing.drop_duplicates(one, seen)
    mixing.drop_duplicates(other, seen)
    assert [row.id for row in one.rows] == ["0", "2", "3", "4"] and one.dropped == {"duplicate": 1}
    assert other.rows == [] and other.dropped == {"duplicate": 5}


def test_a_rows_own_category_comes_before_its_sources():
    rows = [
        Row("", "own", "", "GAD", meta=json.dumps({"category": "QA"})),
        Row("", "the source's", "", "PubMedQA"),
        Row("", "extraction", "", "NCBI-disease"),
        Row("", "unknown source", "", "my-notes"),
    ]
    for wanted, kept in (
        (("QA",), ["own", "the source's"]),
        (("IE",), ["extraction"]),
        (("other",), ["unknown source"]),
    ):
        one = Batch(Ingredient("train", categories=wanted), list(rows))
        mixing.keep_categories(one)
        assert inputs(one) == kept and one.dropped == {"other category": 4 - len(kept)}


def test_a_meta_that_is_no_object_cannot_be_filtered_by_category():
    one = Batch(Ingredient("train", categories=("QA",)), [Row("", "a", "b", "mine", "mine/7", meta="Mrs Zorblax")])
    with pytest.raises(UserError, match="Row mine/7: meta must be a JSON object") as told:
        mixing.keep_categories(one)
    assert "Zorblax" not in str(told.value)


def test_shares_follow_the_weights_and_what_one_lacks_goes_to_the_others():
    assert mixing.shares([100, 100], [3, 1], 40) == [30, 10]
    assert mixing.shares([10, 100, 100], [2, 1, 1], 80) == [10, 35, 35]
    assert mixing.shares([5, 5], [1, 1], 100) == [5, 5]
    assert mixing.shares([0, 9], [1, 1], 4) == [0, 4]
    assert mixing.shares([9, 9, 9], [1, 1, 1], 4) == [2, 1, 1]
    assert mixing.shares([9, 9, 9], [1e308, 1e308, 5e-324], 4) == [2, 2, 0]
    assert mixing.shares([1, 9], [10**400, 5e-324], 4) == [1, 3]


SIZES = st.lists(st.tuples(st.integers(0, 50), st.floats(0.01, 100)), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 200))
def test_shares_sum_to_the_total_and_never_repeat_a_row(parts, total):
    sizes, weights = zip(*parts, strict=True)
    given_ = mixing.shares(sizes, weights, total)
    assert sum(given_) == min(total, sum(sizes))
    assert all(0 <= count <= size for count, size in zip(given_, sizes, strict=True))


def test_a_temperature_flattens_the_sizes():
    counts = {}
    for temperature in (1.0, 2.0, 1000.0, 10**400):
        parts = [batch("GAD", 900), batch("hoc", 100)]
        mixing.sample(parts, 100, temperature, seed=0)
        counts[temperature] = [len(part.rows) for part in parts]
    assert counts == {1.0: [90, 10], 2.0: [75, 25], 1000.0: [50, 50], 10**400: [50, 50]}


def test_balance_leaves_as_many_rows_of_each_kind_of_task():
    parts = [batch("NCBI-disease", 60), batch("BC2GM", 20), batch("PubMedQA", 15), batch("my-notes", 30)]
    mixing.balance_tasks(parts, seed=0)
    ner, gene, qa, own = (len(part.rows) for part in parts)
    assert ner + gene == qa == own == 15
    assert ner > gene > 0  # a kind's sources keep their proportions
    assert parts[0].dropped == {"more than the other tasks have": 60 - ner}
