"""Rows held out of training: whole groups, by seed, out of the plan; and never the reported ones where they choose."""

from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ner_rows, settings

from medtune_jax.config import Config, MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.rows import Row, write_rows
from medtune_jax.train.held_out import HOLDOUT, hold_out
from medtune_jax.train.inputs import read_inputs


def row(text: str, group: str = "", output: str = "x : O", source: str = "sample-disease") -> Row:
    return Row("Tag.", text, output, source, group=group)


def holding(wanted: float, seed: int = 0, **changes: object) -> Config:
    return settings("model", "data", evaluation__holdout=wanted, train__seed=seed, **changes)


names = st.text("abc", max_size=2)


@hypothesis.settings(deadline=None)
@given(st.lists(st.tuples(names, names), min_size=2, max_size=30), st.integers(1, 12), st.integers(0, 3))
def test_no_group_and_no_text_is_on_both_sides(pairs, wanted, seed):
    rows = [row(text or f"alone {index}", group) for index, (text, group) in enumerate(pairs)]
    try:
        kept, held = hold_out(holding(float(wanted), seed), rows)
    except UserError as error:
        assert "leaves none" in str(error)
        return
    trained = [rows[index] for index in kept]
    assert len(trained) + len(held.rows) == len(rows) and held.rows
    assert held.split == HOLDOUT
    assert not {one.input for one in trained} & {one.input for one in held.rows}
    assert not {one.group for one in trained if one.group} & {one.group for one in held.rows}


def test_a_share_is_of_the_rows_and_the_seed_draws():
    rows = [row(f"text {index}") for index in range(40)]
    drawn = [hold_out(holding(0.25, seed), rows)[1].rows for seed in (0, 0, 1)]
    assert len(drawn[0]) == 10 and drawn[0] == drawn[1] != drawn[2]


def test_no_more_is_held_out_than_asked_for_where_a_set_fits():
    rows = [row("<noinput>", group="large") for _ in range(30)] + [row(f"text {index}") for index in range(10)]
    for seed in range(8):
        assert len(hold_out(holding(5.0, seed), rows)[1].rows) == 5


def test_rows_share_no_text_by_a_placeholder():
    rows = [replace(row("<noinput>", output=f"{index}"), instruction=f"Question {index}?") for index in range(8)]
    assert len(hold_out(holding(3.0), rows)[1].rows) == 3


def test_rows_whose_question_is_their_instruction_belong_together_by_it():
    rows = [replace(row("", output=f"{index}"), instruction="What is gout?") for index in range(3)]
    with pytest.raises(UserError, match=r"leaves none of 3 training rows .* \(1 such sets\)"):
        hold_out(holding(1.0), rows)


@pytest.fixture
def read(model_folder, tmp_path: Path):
    """Returns a function that writes splits and reads the inputs of a run with changed settings."""

    def inputs(splits, **changes):
        for split, rows in splits.items():
            write_rows(tmp_path / f"{split}.parquet", rows)
        config = settings(model_folder, tmp_path, train__batch_size=8, **changes).validate()
        return read_inputs(config, make_mesh(MeshConfig(fsdp=-1)))

    return inputs


def test_what_is_held_out_is_not_trained_on_and_is_another_run(read):
    splits = {"train": ner_rows(30, 0), "validation": ner_rows(6, 1)}
    whole, part = read(splits), read(splits, evaluation__holdout=6.0)
    assert whole.held_out.split == "validation" and whole.held_out.rows == tuple(splits["validation"])
    assert part.held_out.split == HOLDOUT and len(part.held_out.rows) == 6
    assert len(part.row_numbers) == 24 and whole.identity.data != part.identity.data
    named = [splits["train"][number].id for number in part.row_numbers]
    assert tuple(named) == part.row_ids and not set(named) & {one.id for one in part.held_out.rows}
    assert part.origin.data["sample-disease"].rows == 24
    assert sum(batch["segment_ids"].max(axis=1).sum() for batch in part.evaluation) == 6


CHOOSES = {"checkpoint__best": "eval_loss"}


@pytest.mark.parametrize("split", ["test", "test2"])
def test_nothing_is_chosen_by_the_split_that_is_reported(read, split):
    splits = {"train": ner_rows(30, 0), split: ner_rows(6, 1)}
    with pytest.raises(UserError, match=rf"by evaluation.split={split}, a split whose scores are reported.*holdout=N"):
        read(splits, evaluation__split=split, **CHOOSES)
    assert read(splits, evaluation__split=split).held_out.rows
    assert read(splits, evaluation__split=split, evaluation__holdout=4.0, **CHOOSES).held_out.split == HOLDOUT


def test_rows_that_are_also_reported_choose_nothing(read, caplog):
    validation = ner_rows(6, 1)
    splits = {"train": ner_rows(30, 0), "validation": validation, "test": [*validation[:2], *ner_rows(3, 2)]}
    assert read(splits, **CHOOSES).held_out.rows == tuple(validation[2:])
    assert "2 of 6 rows also stand in a split that is reported" in caplog.text
    assert read(splits).held_out.rows == tuple(validation)  # where nothing is chosen they may be looked at
    with pytest.raises(UserError, match="every row of 'validation' also stands in a split that is reported"):
        read(splits | {"test": validation}, **CHOOSES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint__best": "eval_loss", "evaluation__every_steps": 0}, "evaluation.every_steps, which is 0"),
        ({"checkpoint__best": "samples"}, "evaluation.samples_every_steps, which is 0"),
        ({"evaluation__holdout": 2.5}, "a number of rows, or a share"),
        ({"evaluation__holdout": -3.0}, "a number of rows, or a share"),
        ({"evaluation__holdout": 30.0}, "leaves none of 30 training rows"),
        ({"checkpoint__best": "eval_loss"}, "there are no rows of 'validation'"),
    ],
)
def test_what_cannot_be_chosen_by_or_held_out_is_said_before_anything_is_trained(read, changes, said):
    with pytest.raises(UserError, match=said):
        read({"train": ner_rows(30, 0)}, **changes)


def test_the_draw_is_the_same_on_every_machine():
    rows = [row(f"text {index}", group="abcdefgh"[index % 7]) for index in range(50)]
    _, held = hold_out(holding(10.0), rows)
    assert sorted({one.group for one in held.rows}) == ["b"]
