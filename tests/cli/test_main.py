"""`medtune`: verbs, help, exit statuses, --json."""

import ast
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags as absl_flags

from medtune_jax.cli import arguments, main
from medtune_jax.errors import Interrupted, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = (
    "jax", "flax", "optax", "orbax", "numpy", "pyarrow", "datasets", "tokenizers", "transformers", "torch", "seqeval",
    "matplotlib", "tensorboardX", "sentencepiece",
)  # fmt: skip


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that makes `medtune train` run the given function instead."""

    def install(run, **attributes):
        module = SimpleNamespace(
            __doc__="Does something.\n\nIn two paragraphs.",
            SUMMARY="does something",
            define_flags=lambda flags: absl_flags.DEFINE_integer("count", 3, "How many.", flag_values=flags),
            run=run,
            **attributes,
        )
        monkeypatch.setattr(main.importlib, "import_module", lambda name: module)

    return install


def test_help_lists_every_verb_with_its_one_liner_and_two_examples(capsys):
    assert main.dispatch(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, verb in main.VERBS.items():
        assert f"  {name} " in printed and verb.summary in printed
    assert printed.count("\n  medtune ") == 2


def test_help_and_every_verbs_module_load_nothing_heavy():
    verbs = "".join(f"import medtune_jax.cli.{name}\n" for name in main.VERBS)
    code = f"import sys\nfrom medtune_jax.cli import main\nmain.dispatch(['--help'])\n{verbs}"
    found = python("-c", code + f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)")
    assert found.stderr.strip() == "[]"


def test_without_a_verb_the_help_goes_to_stderr_and_the_status_is_2(capsys):
    assert main.dispatch([]) == 2
    captured = capsys.readouterr()
    assert "Usage:" in captured.err and not captured.out


def test_unknown_verb_is_a_users_mistake_with_a_suggestion(capsys):
    assert main.dispatch(["trian"]) == 2
    assert capsys.readouterr().err == "medtune: Unknown verb 'trian'. Did you mean 'train'? See `medtune --help`.\n"


@pytest.mark.parametrize("name", main.VERBS)
def test_the_one_liner_in_the_list_is_the_modules_own(name):
    assert main.VERBS[name].summary == importlib.import_module(f"medtune_jax.cli.{name}").SUMMARY


@pytest.mark.parametrize("name", main.VERBS)
def test_the_example_of_a_verb_is_accepted_by_its_flags(name):
    program, verb, *words = shlex.split(main.VERBS[name].example)
    assert (program, verb) == ("medtune", name)
    flags, _ = arguments.parse(importlib.import_module(f"medtune_jax.cli.{name}"), words)
    assert flags is not None


@pytest.mark.parametrize("name", main.VERBS)
def test_help_of_a_verb_teaches_its_summary_an_example_and_every_flag(name, capsys):
    assert main.dispatch([name, "--help"]) == 0
    printed = capsys.readouterr().out
    module = importlib.import_module(f"medtune_jax.cli.{name}")
    assert module.SUMMARY in printed and main.VERBS[name].example in printed
    for flag in arguments.define(module):
        assert f"\n  --{flag}" in printed


@pytest.mark.parametrize("name", main.VERBS)
def test_an_unknown_flag_is_a_users_mistake_of_every_verb(name, capsys):
    assert main.dispatch([name, "--jsno"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"medtune {name}: ") and "'jsno'" in error and "json" in error
    assert "Traceback" not in error


def test_json_is_the_last_line_of_stdout(verb, capsys):
    def run(flags):
        print("something on the way")
        return {"count": flags.count, "text": "μ"}

    verb(run)
    assert main.dispatch(["train", "--count=4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"count": 4, "text": "μ"}


def test_without_json_the_verbs_own_text_is_printed(verb, capsys):
    verb(lambda flags: {"count": 3}, human=lambda result: f"counted {result['count']}")
    assert main.dispatch(["train"]) == 0
    assert capsys.readouterr().out == "counted 3\n"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (UserError("rows.parquet is empty."), 2, "medtune train: rows.parquet is empty.\n"),
        (Interrupted("Resume with the same command."), 75, "interrupted. Resume with the same command.\n"),
        (KeyboardInterrupt(), 75, "medtune train: interrupted.\n"),
        (RuntimeError("out of memory"), 1, "RuntimeError: out of memory\n"),
    ],
)
def test_every_way_to_stop_has_its_exit_status(verb, capsys, raised, status, said):
    def run(flags):
        raise raised

    verb(run)
    assert main.dispatch(["train"]) == status
    error = capsys.readouterr().err
    assert error.endswith(said)
    assert ("Traceback" in error) == (status == 1)


def test_ctrl_c_in_a_verb_that_keeps_nothing_is_not_resumable(verb, capsys):
    def run(flags):
        raise KeyboardInterrupt

    verb(run)
    assert [main.dispatch([name]) for name in ("generate", "evaluate")] == [1, 75]
    assert "Traceback" not in capsys.readouterr().err


OLDER = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # XLA refuses both names at once
AT_THE_IMPORT_OF_JAX = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "jax":
            print({name: os.environ[name] for name in os.environ if "MEM_FRACTION" in name or name == "JAX_PLATFORMS"})
            os._exit(sys.stdout.flush() or 0)
sys.meta_path.insert(0, Watch())
from medtune_jax.cli import main
main.dispatch(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("words", "given", "expected"),
    [
        (["export", "--run=run", "--out=out"], {}, {"JAX_PLATFORMS": "cpu"}),
        (["export", "--run=run", "--out=out"], {"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "cuda"}),
        (["train", "--workdir=run"], {}, {"XLA_CLIENT_MEM_FRACTION": "0.95"}),
        (["train", "--workdir=run"], {"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}),
        (["train", "--workdir=run"], {OLDER: "0.5"}, {OLDER: "0.5"}),
        (["generate", "--model=run", "--prompt=x"], {}, {}),
    ],
)
def test_a_verb_says_before_jax_is_imported_where_it_runs_and_what_gpu_memory_it_takes(words, given, expected):
    ours = ("JAX_PLATFORMS", "XLA_CLIENT_MEM_FRACTION", OLDER)
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {**kept, "PYTHONPATH": str(REPOSITORY), **given}
    command = [sys.executable, "-c", AT_THE_IMPORT_OF_JAX, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ast.literal_eval(done.stdout) == expected, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_of_stdout_that_has_gone_is_no_failure(words):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "medtune_jax", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_medtune_jax_is_the_command_and_exits_with_its_status():
    done = python("-m", "medtune_jax", "trian")
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr
