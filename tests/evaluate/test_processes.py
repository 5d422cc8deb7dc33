"""Two real processes: the answers of one, and after a signal to either the same bytes as undisturbed."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest
from tiny_run import MODEL, ner_rows, write_model
from together import free_port, launch, log, until, wait

from medtune_jax.cli.main import dispatch
from medtune_jax.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR
from medtune_jax.tasks.rows import write_rows

CONFIG = dataclasses.replace(MODEL, num_kv_heads=4, initializer_range=0.4, max_positions=256)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_model(folder / "model", CONFIG)
    (folder / "rows").mkdir()
    write_rows(folder / "rows" / "test.parquet", ner_rows(6, 3))
    (folder / "p.txt").write_text("".join(f"{row.input}\n" for row in ner_rows(12, 5)))
    return folder


def answers(path: Path) -> list[str]:
    return [json.loads(line)["generated"] for line in path.read_text().splitlines()]


def test_evaluate_in_two_processes_answers_what_one_answers_and_the_first_speaks_and_writes(
    home: Path, tmp_path: Path
) -> None:
    common = ["evaluate", f"--model={home / 'model'}", f"--data={home / 'rows'}", "--template=medtuned_eval"]
    words = [*common, "--mesh=data=2,tensor=4", "--json"]
    pair = launch([*words, f"--out={tmp_path / 'two'}"], tmp_path / "two", devices=4)
    assert wait(pair, tmp_path / "two") == [0, 0], log(tmp_path / "two", 0)
    assert dispatch([*common, "--mesh=none", f"--out={tmp_path / 'one'}"]) == 0
    for name in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "two" / name).is_file()
    assert answers(tmp_path / "two" / "predictions.jsonl") == answers(tmp_path / "one" / "predictions.jsonl")
    told = json.loads(log(tmp_path / "two", 0).strip().split("\n")[-1])
    assert told["timing"]["rows_answered_now"] == 6
    assert "{" not in log(tmp_path / "two", 1) and "row/s" not in log(tmp_path / "two", 1)


@pytest.mark.slow
def test_processes_that_are_given_other_rows_or_settings_are_named(home: Path, tmp_path: Path) -> None:
    common = ["generate", f"--model={home / 'model'}", "--mesh=tensor=4", "--max_new_tokens=4"]
    port, base = free_port(), tmp_path / "run"
    pair = [
        *launch([*common, "--prompt=fever"], base, devices=2, only=0, port=port),
        *launch([*common, "--prompt=cancer", "--stop=x"], base, devices=2, only=1, port=port),
    ]
    assert wait(pair, base) == [EXIT_USER_ERROR] * 2, log(base, 0)
    assert "process 1 has another settings, prompts" in log(base, 0)


@pytest.mark.slow
def test_sigterm_to_one_process_keeps_what_is_answered_and_both_go_on_to_the_same_bytes(
    home: Path, tmp_path: Path
) -> None:
    """The weights are split over both processes: no token is written by one alone."""
    words = ["generate", f"--model={home / 'model'}", f"--input_file={home / 'p.txt'}", "--mesh=tensor=4"]
    words += ["--max_new_tokens=200", "--batch_size=1"]
    base, out = tmp_path / "run", tmp_path / "a.jsonl"
    partial = out.with_name("a.jsonl.partial")
    pair = launch([*words, f"--out={out}"], base, devices=2)
    until(lambda: partial.is_file() and partial.stat().st_size > 0, base, pair)
    pair[1].send_signal(signal.SIGTERM)
    assert wait(pair, base) == [EXIT_INTERRUPTED] * 2, log(base, 0)
    assert "Give the same command again to continue." in log(base, 0)
    kept = len(partial.read_bytes().splitlines())
    assert 0 < kept < 12 and not out.exists()
    assert wait(launch([*words, f"--out={out}"], base, devices=2), base) == [0, 0], log(base, 0)
    assert f"{kept} of 12 prompts are answered already." in log(base, 0)
    whole = tmp_path / "whole.jsonl"
    assert wait(launch([*words, f"--out={whole}"], tmp_path / "other", devices=2), tmp_path / "other") == [0, 0]
    assert out.read_bytes() == whole.read_bytes()
    assert dispatch([*words[:3], *words[4:], "--mesh=none", f"--out={tmp_path / 'one.jsonl'}"]) == 0
    assert answers(out) == answers(tmp_path / "one.jsonl")
