"""`pip install .`: what is installed, that it works away from the checkout, that its needs are declared and pinned."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed into it, not editable, from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("medtune_jax", "configs", "data_prep"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", f"--target={target}", str(source)], check=True)
    return target


def medtune(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, str(installed / "bin" / "medtune"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_only_the_package_is_installed(installed):
    names = {path.name for path in installed.iterdir()} - {"bin"}
    assert {name for name in names if not name.endswith(".dist-info")} == {"medtune_jax"}
    assert (installed / "medtune_jax" / "configs" / "quickstart.py").is_file()
    assert (installed / "medtune_jax" / "data_prep" / "samples.py").is_file()


def test_every_module_of_the_checkout_is_installed(installed):
    for folder, where in (("medtune_jax", ""), ("configs", "configs"), ("data_prep", "data_prep")):
        for path in (REPOSITORY / folder).rglob("*.py"):
            assert (installed / "medtune_jax" / where / path.relative_to(REPOSITORY / folder)).is_file()


def test_the_installed_command_answers_with_its_named_experiments(installed, tmp_path):
    done = medtune(installed, tmp_path, "train", "--help")
    assert done.returncode == 0, done.stderr
    named = "llama2_13b_medtuned, llama2_7b_bioinstruct_lora, llama2_7b_medtuned, quickstart, stories260k_ncbi"
    assert f"Experiments: {named}" in done.stdout


def test_the_installed_command_prepares_rows(installed, tmp_path):
    (tmp_path / "raw" / "sample-relation").mkdir(parents=True)
    for split in ("train", "devel", "test"):
        text = "velol relieves talgitis .\tTreats\nvelol induced talgitis .\tCauses\n"
        (tmp_path / "raw" / "sample-relation" / f"{split}.tsv").write_text(text)
    done = medtune(installed, tmp_path, "prepare", "--raw_dir=raw", "--sources=sample-relation", "--out=rows")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rows" / "train.parquet").is_file()


def requirements(installed: Path) -> list[Requirement]:
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    return [Requirement(text) for text in found.requires or []]


def test_what_is_imported_is_declared_and_nothing_else(installed):
    optional = {"llguidance", "wandb"}  # of extras of their own, imported where they are asked for
    declared = {canonicalize_name(need.name) for need in requirements(installed) if need.marker is None}
    owners = importlib.metadata.packages_distributions()
    imported: set[str] = set()
    for path in (installed / "medtune_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "medtune_jax", *optional}
    assert {canonicalize_name(owners[name][0]) for name in imported} == declared


def test_every_need_is_pinned(installed):
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[0-9.]+", str(pin.specifier)) for pin in pins)
    pinned = {canonicalize_name(pin.name) for pin in pins}
    launched = ("tpu", "cuda", "wandb")  # what an accelerator or a service needs is not tested here
    for need in requirements(installed):
        if not any(f'"{extra}"' in str(need.marker) for extra in launched):
            assert canonicalize_name(need.name) in pinned, f"{need.name} is not in constraints.txt"


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_pins_are_one_version_of_each_for_every_python(version):
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    names = [
        canonicalize_name(pin.name)
        for pin in pins
        if pin.marker is None or pin.marker.evaluate({"python_version": version})
    ]
    assert len(names) == len(set(names)) and "jax" in names
