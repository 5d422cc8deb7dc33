"""Flags of one verb: values, values in a row, overrides of the configuration, mistakes."""

import re
from types import SimpleNamespace

import pytest
from absl import flags as absl_flags
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.cli import arguments
from medtune_jax.config import Config
from medtune_jax.config_values import leaves, override
from medtune_jax.errors import UserError


def define_flags(flags):
    absl_flags.DEFINE_string("model", None, "A model.", required=True, flag_values=flags)
    absl_flags.DEFINE_integer("limit", None, "A limit.", flag_values=flags)
    absl_flags.DEFINE_multi_string("scores", [], "Files.", flag_values=flags)


PLAIN = SimpleNamespace(define_flags=define_flags, MANY_VALUES=("scores",))
WITH_CONFIG = SimpleNamespace(define_flags=define_flags, TAKES_CONFIG=True)


def test_flags_are_read_with_equals_sign_or_space():
    for argv in (["--model=m", "--limit=5"], ["--model", "m", "--limit", "5"]):
        flags, config = arguments.parse(PLAIN, argv)
        assert (flags.model, flags.limit, flags.json, config) == ("m", 5, False, None)


@pytest.mark.parametrize(
    "argv",
    [
        ["--scores", "a", "b", "--model=m"],
        ["--model=m", "--scores=a", "b"],
        ["--scores=a", "--scores=b", "--model=m"],
    ],
)
def test_a_flag_of_many_values_takes_them_in_a_row_or_repeated(argv):
    assert arguments.parse(PLAIN, argv)[0].scores == ["a", "b"]


def test_flags_of_one_call_do_not_reach_the_next():
    assert arguments.parse(PLAIN, ["--model=m", "--limit=5"])[0].limit == 5
    assert arguments.parse(PLAIN, ["--model=m"])[0].limit is None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--model is required."),
        (["--model=m", "--limit=many"], "limit"),
        (["--model=m", "--modle=n"], "Did you mean: model"),
        (["--model=m", "stray"], "Unexpected argument 'stray'"),
        (["--model"], "model"),
    ],
)
def test_a_mistake_in_the_flags_is_named(argv, said):
    with pytest.raises(UserError, match=said):
        arguments.parse(PLAIN, argv)


def test_overrides_reach_the_configuration_whichever_way_they_are_written():
    argv = ["--model=m", "--config.train.steps=7", "--config.mesh.fsdp", "-1", "--config.data.sources=a,b"]
    _, config = arguments.parse(WITH_CONFIG, argv)
    assert (config.train.steps, config.mesh.fsdp, config.data.sources) == (7, -1, ("a", "b"))


def test_a_named_experiment_is_the_base_that_overrides_change():
    _, config = arguments.parse(WITH_CONFIG, ["--model=m", "--config=quickstart", "--config.train.seed=9"])
    assert config.train.seed == 9
    assert config.train.decision_weight == 5.0


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--config.trian.steps=7", "Did you mean 'train'"),
        ("--config.train.step=7", "Did you mean 'train.steps'"),
        ("--config.train.steps=seven", "train.steps=seven: expected int"),
        ("--config.data.packing=perhaps", "true or false"),
        ("--config.optimizer.schedule=cosin", "cosine"),
        ("--config.train.steps", "--config.train.steps needs a value"),
        ("--config=quikstart", "Did you mean 'quickstart'"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(word, said):
    with pytest.raises(UserError, match=said):
        arguments.parse(WITH_CONFIG, ["--model=m", word])


def test_a_verb_without_configuration_refuses_one():
    with pytest.raises(UserError, match=r"config\.train\.steps"):
        arguments.parse(PLAIN, ["--model=m", "--config.train.steps=7"])


def test_help_of_a_verb_with_a_configuration_lists_experiments_and_every_leaf():
    module = SimpleNamespace(define_flags=define_flags, TAKES_CONFIG=True, SUMMARY="tunes", __doc__="Tunes.")
    printed = arguments.verb_help(module, "train", "medtune train")
    assert "quickstart" in printed
    assert "--config.optimizer.learning_rate=2e-05" in printed
    shown = re.findall(r"--config\.([\w.]+)=(.*)", printed)
    assert override(Config(), dict(shown)) == Config()
    assert [path for path, _ in shown] == [path for path, _, _ in leaves()]


@given(st.lists(st.text(st.characters(exclude_characters="-"), min_size=1)))
def test_words_that_belong_to_no_repeatable_flag_are_left_alone(words):
    argv = ["--model", *words]
    assert arguments.repeat_flags(argv, ["scores"]) == argv
    assert arguments.split_overrides(argv) == (argv, {})
