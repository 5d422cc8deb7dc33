"""The configuration: values that cannot mean anything are refused before anything is read."""

import pytest

from medtune_jax.config import Config
from medtune_jax.config_values import override
from medtune_jax.errors import UserError

RUNNABLE = override(Config(), {"model.path": "m", "data.path": "d", "train.steps": "1"})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("checkpoint.keep", "0"),
        ("checkpoint.every_steps", "0"),
        ("evaluation.every_steps", "-1"),
        ("evaluation.max_rows", "0"),
        ("log.every_steps", "0"),
        ("train.decision_weight", "0"),
        ("train.decision_weight", "inf"),
        ("optimizer.learning_rate", "nan"),
        ("optimizer.learning_rate", "inf"),
        ("optimizer.learning_rate", "0"),
        ("optimizer.warmup_steps", "-1"),
        ("optimizer.clip_norm", "0"),
        ("optimizer.clip_norm", "nan"),
        ("optimizer.end_factor", "-0.1"),
        ("optimizer.b1", "1"),
        ("optimizer.b2", "-0.1"),
        ("optimizer.eps", "0"),
    ],
)
def test_a_value_out_of_range_is_named(path, text):
    with pytest.raises(UserError, match=rf"^{path} is .*; it must be"):
        override(RUNNABLE, {path: text}).validate()


@pytest.mark.parametrize(
    ("path", "text"), [("evaluation.every_steps", "0"), ("optimizer.clip_norm", "none"), ("optimizer.b1", "0")]
)
def test_the_ends_of_the_ranges_are_accepted(path, text):
    assert override(RUNNABLE, {path: text}).validate()
