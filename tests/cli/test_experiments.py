"""Experiments by name and by path."""

import pytest

from medtune_jax.cli import experiments
from medtune_jax.config_values import from_dict, override, to_dict
from medtune_jax.errors import UserError


@pytest.mark.parametrize("name", experiments.names())
def test_every_named_experiment_is_complete_but_for_its_paths(name):
    config = experiments.load(name)
    with pytest.raises(UserError, match=r"--config\.model\.path"):
        config.validate()
    override(config, {"model.path": "m", "data.path": "d"}).validate()
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("name", ["llama2_7b_medtuned", "llama2_13b_medtuned"])
def test_the_papers_experiments_hold_what_the_paper_states(name):
    config = experiments.load(name)
    assert (config.train.epochs, config.train.seed, config.train.decision_weight) == (3.0, 42, 1.0)
    assert (config.optimizer.warmup_steps, config.optimizer.schedule) == (1000, "linear")
    assert config.data.template == "medtuned_train"


def test_a_python_file_is_an_experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from medtune_jax.config import Config, TrainConfig\n"
        "def get_config():\n    return Config(train=TrainConfig(steps=12))\n"
    )
    assert experiments.load(str(path)).train.steps == 12


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UserError, match=r"Did you mean 'stories260k_ncbi'.*quickstart"):
        experiments.load("stories260k_nbci")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("get_config = 3 +\n", "SyntaxError"),
        ("x = 1\n", "get_config"),
        ("def get_config():\n    return {}\n", "returned dict"),
        ("import medtune_jax.config as c\ndef get_config():\n    return c.TrainConfig(stepz=1)\n", "line 3: .*stepz"),
    ],
)
def test_a_file_that_gives_no_configuration_is_named_with_the_reason(tmp_path, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"broken\.py.*{said}"):
        experiments.load(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.py"):
        experiments.load(str(tmp_path / "nowhere.py"))
