"""The launch scripts: the choice of a Python, the folder that quickstart may clear, the quickstart itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def bash(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)


def quickstart(out: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    command = [sys.executable, "scripts/quickstart.py", str(out)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "venv.sh"])
def test_scripts_are_valid_bash(script):
    assert bash(f"bash -n scripts/{script}").returncode == 0


def test_the_first_python_that_is_new_enough_is_chosen(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    found = bash(f". scripts/venv.sh; find_python {tmp_path}/absent {old} {sys.executable} python3")
    assert found.stdout.strip() == sys.executable


def test_without_a_python_the_message_says_what_to_install(tmp_path):
    found = bash(f". scripts/venv.sh; find_python {tmp_path}/absent")
    assert found.returncode == 1 and not found.stdout
    assert "Python 3.11 or newer" in found.stderr and "PYTHON=" in found.stderr


def test_test_sh_refuses_an_unknown_option():
    assert bash("bash scripts/test.sh --fast").returncode == 2


def test_quickstart_never_clears_a_folder_that_it_did_not_write(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = quickstart(tmp_path)
    assert done.returncode == 1 and "holds other files" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_quickstart_runs_twice_and_every_task_is_learned(tmp_path):
    for _ in range(2):
        done = quickstart(tmp_path)
        assert done.returncode == 0, done.stderr
        assert "largest difference of a logit between run and export: 0.0" in done.stdout
