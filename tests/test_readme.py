"""What README.md shows: its commands are run as they stand (with fewer steps and rows), its tables are compared."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medtune_jax.cli import experiments
from medtune_jax.cli.main import VERBS
from medtune_jax.convert.tiny import write_tiny_model
from medtune_jax.data_prep.samples import write_samples
from medtune_jax.tasks.sources import classification, generation, ner, questions

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]

BUILT_IN = (*ner.SOURCES, *classification.SOURCES, *questions.SOURCES, *generation.SOURCES)

# What is added so that a command takes seconds; a later flag replaces an earlier one.
SHORTER = {
    "train": "--config.train.epochs=none --config.train.steps=2 --config.train.batch_size=8"
    " --config.data.max_length=256 --config.evaluation.max_rows=4 --config.model.remat=none",
    "evaluate": "--limit=2",
    "generate": "--max_new_tokens=4",
}


def test_the_readme_shows_commands_of_two_kinds_only():
    assert {command.split()[0] for command in COMMANDS} == {"bash", "medtune"}


def test_the_two_first_commands_are_scripts_and_ci_runs_the_second():
    scripts = [shlex.split(command) for command in COMMANDS if command.startswith("bash")]
    assert scripts == [["bash", "scripts/quickstart.sh"], ["bash", "scripts/test.sh"]]
    assert all((REPOSITORY / script).is_file() for _, script in scripts)
    assert (REPOSITORY / ".ci" / "run").read_text().splitlines()[1:] == ["bash scripts/test.sh"]


def test_the_table_of_verbs_is_the_commands_own():
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", README, re.M))
    assert {name: table[name] for name in VERBS} == {name: verb.summary for name, verb in VERBS.items()}


def test_every_experiment_is_listed():
    assert all(f"`{name}`" in README for name in experiments.names())


def test_every_source_stands_in_the_table_under_its_task_marked_where_it_is_gated():
    named = {
        name: (kind, star)
        for kind, cells in re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", README, re.M)
        for name, star in re.findall(r"([\w-]+)(\*?)(?: \([^)]*\))?(?:, |$)", cells)
    }
    assert named == {
        source.name: (source.task.kind, "*" if source.credentialed else "")
        for source in BUILT_IN
        if not source.name.startswith("sample-")
    }


def test_every_file_and_folder_that_is_named_exists():
    for name in re.findall(r"`((?:scripts|tests|configs|data_prep|medtune_jax)/[\w./]*)`", README):
        assert (REPOSITORY / name).exists(), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/ and checkpoint/, as the README's reader has them."""
    made = tmp_path_factory.mktemp("readme")
    texts = [path.read_text(encoding="utf-8") for path in write_samples(made / "raw")]
    write_tiny_model(made / "checkpoint", texts, max_positions=1024)
    return made


def test_every_medtune_command_runs_as_it_stands_one_after_the_other(folder):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program != "medtune":
            continue
        words += SHORTER.get(words[0], "").split()
        call = [sys.executable, "-m", "medtune_jax", *words]
        done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    for written in (
        "rows/train.parquet",
        "comparison/compare.html",
        "exported/model.safetensors",
        "rescored/report.html",
    ):
        assert (folder / written).is_file()
