"""Every verb that compiles keeps its programs, where the user has said or in one place of ours."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHOW = """
import jax
from unittest import mock
from medtune_jax.cli import main
show = lambda *_, **__: print(jax.config.jax_compilation_cache_dir)
with mock.patch("medtune_jax.train.load.load_model", side_effect=show):
    main.dispatch({arguments!r})
"""


def _cache(tmp_path, *arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY), **environment}
    code = SHOW.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout.strip()


def test_generate_and_evaluate_keep_compiled_programs(tmp_path):
    (tmp_path / "test.jsonl").write_text(
        '{"instruction": "", "input": "a", "output": "Neutral", "source": "sample-nli"}'
    )
    ours = str(tmp_path / ".cache" / "medtune_jax" / "xla")
    assert _cache(tmp_path, "generate", "--model=m", "--prompt=a") == ours
    evaluate = ("evaluate", "--model=m", f"--data={tmp_path}", f"--out={tmp_path / 'out'}")
    assert _cache(tmp_path, *evaluate) == ours
    assert _cache(tmp_path, *evaluate, JAX_COMPILATION_CACHE_DIR="/their/own") == "/their/own"
