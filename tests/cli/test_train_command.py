"""`medtune train`: which configuration a call on an existing run folder has."""

import json

import pytest

from medtune_jax.cli import arguments, train
from medtune_jax.config import Config
from medtune_jax.config_values import to_dict
from medtune_jax.errors import UserError


def config_of(*words: str) -> Config | None:
    return arguments.parse(train, list(words))[1]


@pytest.fixture
def run_folder(tmp_path):
    values = to_dict(Config()) | {"train": {"steps": 9, "seed": 3}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def test_overrides_change_the_configuration_of_the_run_in_the_folder(run_folder):
    config = config_of(f"--workdir={run_folder}", "--config.checkpoint.keep=5")
    assert config is not None
    assert (config.checkpoint.keep, config.train.steps, config.train.seed) == (5, 9, 3)


def test_an_override_equal_to_the_default_is_not_dropped(run_folder):
    config = config_of(f"--workdir={run_folder}", f"--config.train.seed={Config().train.seed}")
    assert config is not None
    assert (config.train.seed, config.train.steps) == (Config().train.seed, 9)


def test_a_named_experiment_goes_before_the_runs_configuration(run_folder):
    config = config_of(f"--workdir={run_folder}", "--config=quickstart")
    assert config is not None and config.train.steps == 500


def test_a_new_folder_starts_from_the_defaults(tmp_path):
    assert config_of(f"--workdir={tmp_path}/new") == Config()


@pytest.mark.parametrize("text", ["{", "[]", '{"train": 3}', '{"trian": {}}', '{"train": {"steps": "many"}}'])
def test_a_damaged_configuration_is_named(run_folder, text):
    (run_folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        config_of(f"--workdir={run_folder}")
